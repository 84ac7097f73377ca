"""The one check that the losses on pixels share."""

import torch


def check_saliency(cams: torch.Tensor, saliency: torch.Tensor) -> None:
    """Refuse a saliency map that does not lie on the pixels of the CAMs.

    Args:
        cams: (B, K, H, W).
        saliency: to be (B, 1, H, W).

    Raises:
        ValueError: any other shape, which would broadcast without a word.
    """
    expected = (cams.shape[0], 1, *cams.shape[2:])
    if saliency.shape != expected:
        raise ValueError(
            f"saliency: expected shape {expected} with CAMs of {tuple(cams.shape)}, "
            f"got {tuple(saliency.shape)}. Resize both to the training size."
        )

"""Copy-paste augmentation: defects of one image on the defect-free areas of another."""

import torch
from torch import Tensor

from datasets.record import BACKGROUND, IGNORE


def paste_defects(images: Tensor, masks: Tensor, probability: float) -> tuple[Tensor, Tensor]:
    """Paste the defects of a batch's images onto each other (Ghiasi et al., CVPR 2021).

    Pasted pixels keep their difference to the mean background of the image that they come from,
    so a dark defect is dark on its new surface too. They only cover background; an ignored pixel
    is neither pasted nor covered. Draws come from torch's global generator on the CPU.

    Args:
        images: (B, 3, H, W) normalised.
        masks: (B, H, W) int64 mask values.
        probability: that an image is given the defects of another one.

    Returns:
        Images and masks with what was pasted; the arguments stay as they are.
    """
    count = len(images)
    donors = (torch.arange(count) + torch.randint(1, max(count, 2), (count,))) % count
    chosen = torch.rand(count) < probability
    donors, chosen = donors.to(masks.device), chosen.to(masks.device)

    background = masks == BACKGROUND
    defect = ~background & (masks != IGNORE)
    pasted = chosen[:, None, None] & defect[donors] & background  # (B, H, W)
    area = background.sum(dim=(1, 2)).clamp(min=1)[:, None]
    surface = (images * background[:, None]).sum(dim=(2, 3)) / area  # (B, 3)
    moved = images[donors] + (surface - surface[donors])[:, :, None, None]
    return (
        torch.where(pasted[:, None], moved, images),
        torch.where(pasted, masks[donors], masks),
    )

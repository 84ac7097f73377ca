"""Class-token contrast: the tokens of different classes are pushed apart (docs/method.md, D)."""

import torch
import torch.nn.functional as F

from models.device import full_precision


def token_contrast_loss(class_tokens: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of each present class' column of the cosine Gram matrix with its own index.

    Args:
        class_tokens: (L, B, K, D) class tokens of L blocks.
        labels: (B, K) multi-hot.

    Returns:
        0-d float32, mean over blocks and present classes; zero on the graph without any.
    """
    tokens = full_precision(class_tokens)
    with torch.autocast(tokens.device.type, enabled=False):
        tokens = F.normalize(tokens, dim=-1)
        gram = tokens @ tokens.transpose(-1, -2)  # (L, B, K, K), symmetric
        own = gram.log_softmax(dim=-2).diagonal(dim1=-2, dim2=-1)  # (L, B, K)
    present = (labels.detach() > 0).to(own.dtype)  # (B, K)
    num_terms = len(tokens) * present.sum()
    return -(own * present).sum() / num_terms.clamp(min=1)

"""An online segmentation head: the CAMs of a localiser, brought to the pixels of the image."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STEM_WIDTH = 48  # channels of what is seen in the image
WIDTH = 64
LEAST_ATTENTION = 1e-3  # of a patch, where the mean is 1


class PixelHead(nn.Module):
    """Segments an image at a quarter of its size, from CAMs, patch tokens and the image itself.

    The CAMs of a ViT lie on its grid of patches, 8 to 16 pixels wide. The tokens know what lies in
    a patch, a few convolutions of the image where in it the border runs.
    """

    def __init__(self, token_width: int, num_classes: int, padding_mode: str = "zeros"):
        """Build a head at random.

        Args:
            token_width: D.
            num_classes: K.
            padding_mode: of the 3 x 3 convolutions, as `torch.nn.Conv2d` names it.
        """
        super().__init__()
        self.stem = nn.Sequential(
            _convolution(3, STEM_WIDTH // 2, 2, padding_mode),
            _convolution(STEM_WIDTH // 2, STEM_WIDTH, 2, padding_mode),
            _convolution(STEM_WIDTH, STEM_WIDTH, 1, padding_mode),
        )
        self.norm = nn.LayerNorm(token_width)
        self.reduce = nn.Conv2d(token_width, WIDTH, 1)
        self.mix = nn.Sequential(
            _convolution(2 * num_classes + WIDTH + STEM_WIDTH, WIDTH, 1, padding_mode),
            _convolution(WIDTH, WIDTH, 1, padding_mode),
        )
        self.classify = nn.Conv2d(WIDTH, num_classes + 1, 1)

    def forward(
        self, images: Tensor, patch_tokens: Tensor, patch_map: Tensor, class_attention: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Segment.

        Args:
            images: (B, 3, H, W) normalised.
            patch_tokens: (B, D, h, w).
            patch_map: g (B, K, h, w) logits; taken as constants, as the next.
            class_attention: M (B, K, h, w) in [0, 1].

        Returns:
            Logits (B, K + 1, ceil(H / 4), ceil(W / 4)), background first, and what they are read
            from, (B, WIDTH, same size), for the pixel contrast.
        """
        detail = self.stem(images)
        tokens = self.reduce(self.norm(patch_tokens.movedim(1, -1)).movedim(-1, 1))
        num_patches = class_attention[0, 0].numel()
        attention = class_attention.detach() * num_patches  # at most 1 on average
        coarse = torch.cat([tokens, patch_map.detach(), (attention + LEAST_ATTENTION).log()], dim=1)
        coarse = F.interpolate(coarse, size=detail.shape[-2:], mode="bilinear", align_corners=False)
        features = self.mix(torch.cat([coarse, detail], dim=1))
        return self.classify(features), features


def _convolution(before: int, after: int, stride: int, padding_mode: str) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(before, after, 3, stride, padding=1, padding_mode=padding_mode, bias=False),
        nn.BatchNorm2d(after),
        nn.ReLU(inplace=True),
    )

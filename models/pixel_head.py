"""An online segmentation head: what the CAMs and the saliency of a batch teach, pixel by pixel."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STRIDE = 4  # pixels of the image to a pixel of the result
STEM_WIDTHS = (24, 48, 48)
WIDTH = 64


class PixelHead(nn.Module):
    """Segments an image at a quarter of its size, from patch tokens and the image itself.

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
        strides = (2, 2, 1)
        widths = (3, *STEM_WIDTHS)
        self.stem = nn.Sequential(
            *(
                _convolution(before, after, stride, padding_mode)
                for before, after, stride in zip(widths, STEM_WIDTHS, strides, strict=False)
            )
        )
        self.norm = nn.LayerNorm(token_width)
        self.reduce = nn.Conv2d(token_width, WIDTH, 1)
        self.mix = nn.Sequential(
            _convolution(WIDTH + STEM_WIDTHS[-1], WIDTH, 1, padding_mode),
            _convolution(WIDTH, WIDTH, 1, padding_mode),
        )
        self.classify = nn.Conv2d(WIDTH, num_classes + 1, 1)

    def forward(self, images: Tensor, patch_tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Segment.

        Args:
            images: (B, 3, H, W) normalised.
            patch_tokens: (B, D, h, w).

        Returns:
            Logits (B, K + 1, ceil(H / 4), ceil(W / 4)), background first, and what they are read
            from, (B, WIDTH, same size), for the pixel contrast.
        """
        detail = self.stem(images)
        tokens = self.norm(patch_tokens.movedim(1, -1)).movedim(-1, 1)
        tokens = F.interpolate(
            self.reduce(tokens), size=detail.shape[-2:], mode="bilinear", align_corners=False
        )
        features = self.mix(torch.cat([tokens, detail], dim=1))
        return self.classify(features), features


def _convolution(before: int, after: int, stride: int, padding_mode: str) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(before, after, 3, stride, padding=1, padding_mode=padding_mode, bias=False),
        nn.BatchNorm2d(after),
        nn.ReLU(inplace=True),
    )

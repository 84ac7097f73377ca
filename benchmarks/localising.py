"""CAMs of images at several scales against one image at a time with all attention matrices kept.

The other side is how MCTformer and its successors make them: each block's attention matrix is
computed whole and kept, and the maps are cut out of the stack of all of them at the end.
"""

import numpy as np
import torch
import torch.nn.functional as F
from timm.layers import resample_abs_pos_embed
from torch import Tensor

from benchmarks.measuring import Row, Step
from configs import CamConfig, Config, changed, to_dict
from datasets.record import Record
from datasets.transforms import as_image
from inference.images import Picture
from inference.localise import Localiser
from models.stac import Stac, build_stac

NUM_CLASSES = 3
MEAN, STD = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
SMALL = ("vit_tiny_patch16_224", 32, (1.0, 2.0), 2)  # backbone, size, scales, images
FULL = ("deit_small_patch16_224", 224, (0.5, 1.0, 1.5, 2.0), 4)


def localiser(backbone: str, size: int, scales: tuple[float, ...], device: str) -> Localiser:
    """Return a localiser of random weights."""
    settings = {"train.backbone": backbone, "train.image_size": [size, size], "train.amp": "off"}
    config = changed(Config(), settings)
    torch.manual_seed(0)
    model = build_stac(config.train, NUM_CLASSES)
    names = [f"class {k}" for k in range(NUM_CLASSES)]
    about = {"config": to_dict(config), "class_names": names, "mean": MEAN, "std": STD}
    cam = CamConfig(types=("fused",), scales=scales, flip=True, batch_size=4)
    return Localiser({**about, "model": model.state_dict()}, cam, torch.device(device))


def with_all_matrices(model: Stac, image: Tensor) -> Tensor:
    """Return the fused map (K, h, w) of an image (1, 3, H, W), before it is resized."""
    encoder = model.encoder
    patches = encoder.patch_embed.proj(image)
    grid = patches.shape[-2:]
    patches = patches.flatten(2).transpose(1, 2)
    patches = patches + resample_abs_pos_embed(
        encoder.pos_embed_pat, new_size=grid, old_size=encoder.grid_size, num_prefix_tokens=0
    )
    x = torch.cat([encoder.cls_token + encoder.pos_embed_cls, patches], dim=1)
    kept = []
    for block in encoder.blocks:
        attention = block.attn
        qkv = attention.qkv(block.norm1(x)).reshape(1, x.shape[1], 3, attention.num_heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        matrix = (q @ k.transpose(-2, -1) * attention.scale).softmax(dim=-1)  # (1, heads, T, T)
        kept.append(matrix)
        x = x + attention.proj((matrix @ v).transpose(1, 2).reshape(x.shape))
        x = x + block.mlp(block.norm2(x))
    matrices = torch.stack(kept).mean(dim=2)  # (L, 1, T, T)
    last = matrices[-encoder.attention_layers :].mean(dim=0)
    class_attention = last[:, :NUM_CLASSES, NUM_CLASSES:].unflatten(2, grid)
    logits = model.head(x[:, NUM_CLASSES:].transpose(1, 2).unflatten(2, grid))
    return (class_attention * logits.relu()).sqrt()[0]


def pixels_of(count: int, size: int) -> list[np.ndarray]:
    """Return images (H, W, 3) uint8, neither square nor of the training size."""
    rng = np.random.default_rng(0)
    shape = (size - 5, size + 9, 3)
    return [rng.integers(0, 256, shape).astype(np.uint8) for _ in range(count)]


def ours(small: bool, device: str) -> Step:
    """Return the step of make_cams.py; its result is the CAMs of all images."""
    backbone, size, scales, count = SMALL if small else FULL
    model = localiser(backbone, size, scales, device)
    classes = range(NUM_CLASSES)
    pictures = [
        Picture(Record(str(number), None, ()), pixels)
        for number, pixels in enumerate(pixels_of(count, size))
    ]

    def step() -> np.ndarray:
        found = model.over_pictures(pictures)
        return np.stack([output.cam("fused", classes) for _, _, output in found])

    return step


def other(small: bool, device: str) -> Step:
    """Return the same, one image, scale and mirror image at a time."""
    backbone, size, scales, count = SMALL if small else FULL
    model = localiser(backbone, size, scales, device)
    images = pixels_of(count, size)

    def cam(pixels: np.ndarray) -> np.ndarray:
        total = 0
        for transform in model.transforms:
            image = transform(as_image(pixels))[None].to(device)
            maps = with_all_matrices(model.network, image)
            maps = maps + with_all_matrices(model.network, image.flip(-1)).flip(-1)
            total = total + F.interpolate(
                maps[None], size=pixels.shape[:2], mode="bilinear", align_corners=False
            )
        low, high = (f(total, dim=(-2, -1), keepdim=True) for f in (torch.amin, torch.amax))
        return ((total - low) / (high - low))[0].cpu().numpy()

    @torch.no_grad()
    def step() -> np.ndarray:
        return np.stack([cam(pixels) for pixels in images])

    return step


ROW = Row(
    "CAMs of 4 images, DeiT-S, scales 0.5 to 2, mirrored",
    "one image at a time, all attention matrices kept",
    ours,
    other,
    target=2.0,
    memory=0.25,
    tolerance=1e-3,
)

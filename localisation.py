"""What a localiser says about images: maps of all classes and image scores."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.v2 import Transform

from configs import CamConfig, Config
from datasets.files import read_image
from datasets.native import native_loader, region_batches
from datasets.record import Record
from datasets.transforms import as_image, eval_transform
from models.cam import combine, min_max, resize_and_sum
from models.device import autocast
from models.stac import Stac, image_scores
from models.tiles import Tile, blend, tiles_of
from models.vit import whole_patches


class ScaledImages(Dataset):
    """Gives each record's native size and its image at every scale."""

    def __init__(self, records: Sequence[Record], transforms: Sequence[Transform]):
        self.records = records
        self.transforms = transforms

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> tuple[Record, tuple[int, int], list[Tensor]]:
        record = self.records[index]
        pixels = read_image(record.image)
        size = pixels.shape[:2]
        return record, size, [transform(as_image(pixels)) for transform in self.transforms]


class Localised(NamedTuple):
    """What the model says about one image, at the resolution of the patches."""

    record: Record
    size: tuple[int, int]  # native (H, W)
    tiles: list[Tile]  # T; one where the image was not cut
    maps: dict[str, list[Tensor]]  # per CAM type and scale (T, K, h_s, w_s)
    scores: Tensor  # (K,)


def localise_whole(
    model: Stac,
    records: Sequence[Record],
    transforms: Sequence[Transform],
    config: Config,
    device: torch.device,
    dtype: torch.dtype | None,
) -> Iterator[Localised]:
    """Run the model on whole images, cam.batch_size of them at a time."""
    loader = DataLoader(
        ScaledImages(records, transforms),
        config.cam.batch_size,
        num_workers=config.data.workers,
        collate_fn=_collate,
    )
    for batch in loader:
        with autocast(device, dtype):
            maps, scores = scaled_cams(model, batch["images"], config.cam, device)
        for i, record in enumerate(batch["records"]):
            of_image = {t: [scale[i : i + 1] for scale in scales] for t, scales in maps.items()}
            size = batch["sizes"][i]
            yield Localised(record, size, tiles_of(size, 0, 0), of_image, scores[i])


def localise_tiles(
    model: Stac,
    records: Sequence[Record],
    transforms: Sequence[Transform],
    config: Config,
    device: torch.device,
    dtype: torch.dtype | None,
) -> Iterator[Localised]:
    """Run the model on the tiles of one image after the other, cam.batch_size tiles at a time."""
    cam = config.cam
    for record, pixels in native_loader(records, config.data.workers):
        size = pixels.shape[:2]
        tiles = tiles_of(size, cam.tile, cam.tile_overlap)
        regions = [(tile.rows, tile.columns) for tile in tiles]
        parts, scores = [], []
        for images in region_batches(pixels, regions, transforms, cam.batch_size):
            with autocast(device, dtype):
                maps, of_batch = scaled_cams(model, images, cam, device)
            parts.append(maps)
            scores.append(of_batch)
        joined = {
            cam_type: [torch.cat(s) for s in zip(*(part[cam_type] for part in parts), strict=True)]
            for cam_type in cam.types
        }
        yield Localised(record, size, tiles, joined, torch.cat(scores).amax(0))


@torch.no_grad()
def scaled_cams(
    model: Stac, images: Sequence[Tensor], cam: CamConfig, device: torch.device
) -> tuple[dict[str, list[Tensor]], Tensor]:
    """Run the model at every scale, with the mirror image where `cam.flip` is set.

    Args:
        model: localiser.
        images: a (B, 3, H_s, W_s) batch per scale.
        cam: its types and flip are used.
        device: of the model.

    Returns:
        For each type and scale the maps (B, K, h_s, w_s), mirror image added, not normalised;
        and the image scores (B, K), averaged over scales and flips.
    """
    maps: dict[str, list[Tensor]] = {cam_type: [] for cam_type in cam.types}
    scores = []
    for batch in images:
        batch = batch.to(device)
        views = [batch, batch.flip(-1)] if cam.flip else [batch]
        outputs = [model(view) for view in views]
        scores += [image_scores(output) for output in outputs]
        for cam_type, of_scales in maps.items():
            parts = [
                combine(
                    cam_type,
                    o.class_attention,
                    o.patch_map,
                    revive=not cam.tile,
                    pixel_logits=o.pixel_logits,
                )
                for o in outputs
            ]
            of_scales.append(sum([parts[0], *(part.flip(-1) for part in parts[1:])]))
    return maps, torch.stack(scores).mean(0).float()


def native_cam(maps: Sequence[Tensor], tiles: Sequence[Tile], size: tuple[int, int]) -> np.ndarray:
    """Resize (T, M, h_s, w_s) maps of all scales to the tiles, add, blend, normalise each class."""
    if not maps[0].shape[1]:
        return np.zeros((0, *size), np.float32)
    of_tiles = (
        (tile, resize_and_sum([of_scale[t] for of_scale in maps], tile.size))
        for t, tile in enumerate(tiles)
    )
    cam = blend(of_tiles, size)
    for of_class in cam:  # one at a time: min_max makes several copies
        of_class.copy_(min_max(of_class))
    return cam.cpu().numpy()


def scale_transforms(
    model: Stac, checkpoint: dict[str, Any], scales: Sequence[float]
) -> list[Transform]:
    """Return the evaluation presets of a checkpoint's model, one per scale of its image size."""
    size = checkpoint["config"]["train"]["image_size"]
    return [
        eval_transform(scaled, checkpoint["mean"], checkpoint["std"])
        for scaled in scaled_sizes(size, scales, model.encoder.patch_size)
    ]


def scaled_sizes(
    size: Sequence[int], scales: Sequence[float], patch_size: tuple[int, int]
) -> list[tuple[int, int]]:
    """Return (H, W) at each scale, in whole patches."""
    height, width = size
    return [
        whole_patches((round(height * scale), round(width * scale)), patch_size) for scale in scales
    ]


def _collate(items: list[tuple[Record, tuple[int, int], list[Tensor]]]) -> dict[str, Any]:
    records, sizes, images = zip(*items, strict=True)
    batches = [torch.stack(of_scale) for of_scale in zip(*images, strict=True)]
    return {"records": records, "sizes": sizes, "images": batches}

"""Predict the masks of a split with the trained segmentation network.

Reads segmentation/best.pt or checkpoint.pt (segmentation.checkpoint) and images; writes
predictions/<name>.png (mask values, VOC palette) and predictions_colour/<name>.png (RGB picture
of the same colours) at native image size. No image label and no mask is used.

With segmentation.tile above 0 the network sees each image as overlapping tiles, whose logits are
blended.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2
from tqdm import tqdm

from configs import Config, from_dict
from configs.command_line import load_run, run_stage, save_config, stage_parser
from datasets.files import read_image, voc_palette, write_image, write_mask
from datasets.native import native_loader, region_batches
from datasets.record import Record
from datasets.sources import read_data
from datasets.transforms import as_image, eval_transform
from models.checkpoint import check_classes, load_checkpoint
from models.device import amp_dtype, autocast, select_device
from models.tiles import blend, tiles_of
from segmentation.networks import build_network, network_size


def main(argv: Sequence[str] | None = None) -> None:
    """Write the prediction of every image of a split."""
    parser = stage_parser(__doc__)
    parser.prog = "python -m segmentation.infer"
    parser.add_argument(
        "--split",
        metavar="SPLIT",
        help="train, fit, val or test (default: data.eval_split)",
    )
    args = parser.parse_args(argv)
    config, out_dir = load_run(args)
    settings = config.segmentation
    device = select_device(args.device)
    name = "checkpoint.pt" if settings.checkpoint == "last" else "best.pt"
    path = out_dir / "segmentation" / name
    checkpoint = load_checkpoint(path, "segmentation/train.py")

    data = read_data(config.data, out_dir / "labels.csv")
    check_classes(checkpoint, data.class_names, path)
    model = network_from_checkpoint(checkpoint).to(device)
    split = args.split or config.data.eval_split
    records = data.split(split)
    save_config(config, out_dir)
    size = network_size(settings.image_size)
    transform = eval_transform(size, checkpoint["mean"], checkpoint["std"])
    predict = predict_tiles if settings.tile else predict_whole
    dtype = amp_dtype(device, settings.amp)
    colours = voc_palette()
    pixels = np.zeros(len(data.class_names) + 1, np.int64)
    for image_name, prediction in tqdm(
        predict(model, records, transform, config, device, dtype),
        total=len(records),
        desc="predictions",
        unit="image",
        disable=None,
        dynamic_ncols=True,
    ):
        write_mask(out_dir / f"predictions/{image_name}.png", prediction)
        write_image(out_dir / f"predictions_colour/{image_name}.png", colours[prediction])
        pixels += np.bincount(prediction.reshape(-1), minlength=len(pixels))
    shares = zip(("background", *data.class_names), 100 * pixels / pixels.sum(), strict=True)
    print(f"wrote {len(records)} masks to {out_dir}/: predictions, predictions_colour")
    print("area: " + ", ".join(f"{name} {share:.2f} %" for name, share in shares))
    run = f"--config {out_dir / 'config.toml'} --out {out_dir}"
    print(f"next: python evaluation.py {run} --kind segmentation --split {split}")


class NamedImages(Dataset):
    """Gives each record's name, native size and network input."""

    def __init__(self, records: Sequence[Record], transform: v2.Transform):
        self.records = records
        self.transform = transform

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> tuple[str, tuple[int, int], Tensor]:
        record = self.records[index]
        pixels = read_image(record.image)
        return record.name, pixels.shape[:2], self.transform(as_image(pixels))


def network_from_checkpoint(checkpoint: dict[str, Any]) -> nn.Module:
    """Rebuild the trained network, in evaluation mode, from a checkpoint alone."""
    settings = from_dict(checkpoint["config"]).segmentation
    num_mask_classes = len(checkpoint["class_names"]) + 1
    model = build_network(settings.network, settings.encoder, "none", num_mask_classes)
    model.load_state_dict(checkpoint["model"])
    return model.eval()


def predict_whole(
    model: nn.Module,
    records: Sequence[Record],
    transform: v2.Transform,
    config: Config,
    device: torch.device,
    dtype: torch.dtype | None,
) -> Iterator[tuple[str, np.ndarray]]:
    """Give the name and mask of each image, segmentation.batch_size of them at a time."""
    loader = DataLoader(
        NamedImages(records, transform),
        config.segmentation.batch_size,
        num_workers=config.data.workers,
        collate_fn=_collate,
    )
    for names, sizes, images in loader:
        with autocast(device, dtype):
            logits = flip_averaged(model, images.to(device))
        for name, size, of_image in zip(names, sizes, logits, strict=True):
            yield name, best_class(resized(of_image, size))


def predict_tiles(
    model: nn.Module,
    records: Sequence[Record],
    transform: v2.Transform,
    config: Config,
    device: torch.device,
    dtype: torch.dtype | None,
) -> Iterator[tuple[str, np.ndarray]]:
    """Give the name and mask of each image, segmentation.batch_size tiles at a time."""
    settings = config.segmentation
    for record, pixels in native_loader(records, config.data.workers):
        size = pixels.shape[:2]
        tiles = tiles_of(size, settings.tile, settings.tile_overlap)
        regions = [(tile.rows, tile.columns) for tile in tiles]
        batches = region_batches(pixels, regions, [transform], settings.batch_size)
        logits = tile_logits(model, batches, device, dtype)
        parts = ((tile, resized(x, tile.size)) for tile, x in zip(tiles, logits, strict=True))
        yield record.name, best_class(blend(parts, size))


def tile_logits(
    model: nn.Module,
    batches: Iterator[list[Tensor]],
    device: torch.device,
    dtype: torch.dtype | None,
) -> Iterator[Tensor]:
    """Give the mean logits (K + 1, h, w) float32 of one tile after the other."""
    for (images,) in batches:
        with autocast(device, dtype):
            logits = flip_averaged(model, images.to(device))
        yield from logits


@torch.no_grad()
def flip_averaged(model: nn.Module, images: Tensor) -> Tensor:
    """Return the mean logits (B, K + 1, H, W) float32 of images (B, 3, H, W) and their mirrors."""
    mirrored = model(images.flip(-1)).flip(-1)
    return (model(images).float() + mirrored.float()) / 2


def resized(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize logits (K + 1, h, w) bilinearly to (H, W)."""
    return F.interpolate(logits[None], size=size, mode="bilinear", align_corners=False)[0]


def best_class(logits: Tensor) -> np.ndarray:
    """Return the mask values (H, W) uint8 of logits (K + 1, H, W)."""
    return logits.argmax(0).to(torch.uint8).cpu().numpy()


def _collate(
    items: list[tuple[str, tuple[int, int], Tensor]],
) -> tuple[tuple[str, ...], tuple[tuple[int, int], ...], Tensor]:
    names, sizes, images = zip(*items, strict=True)
    return names, sizes, torch.stack(images)


if __name__ == "__main__":
    run_stage(main)

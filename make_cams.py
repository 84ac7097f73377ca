"""Turn a checkpoint into class activation maps at native image size (METHOD A).

Reads stac/checkpoint.pt (or best.pt, or any --checkpoint) and images; writes cams/<name>.npz for
the first of cam.types with the given labels, and a folder for each further type (cams_<type>) and
for predicted labels (..._predicted). Each folder's meta.json says how its maps were made.

With cam.tile above 0 the model sees each image as overlapping tiles. Their maps are blended into
maps of the image before these are normalised, so a class has one maximum in the image and not one
per tile. An image's score of a class is the highest of its tiles: one defect anywhere is enough.
Class attention is a share of its tile, whatever the tile holds, so maps of type attention compare
tiles less well than the other types.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.v2 import Transform
from tqdm import tqdm

from configs import CamConfig, Config
from configs.command_line import load_run, run_stage, save_config, stage_parser
from datasets.files import Cam, read_image, write_cam
from datasets.native import native_loader, region_batches
from datasets.record import Record
from datasets.sources import Data, read_data
from datasets.transforms import as_image, eval_transform
from models.cam import combine, min_max, resize_and_sum
from models.checkpoint import check_classes, load_checkpoint
from models.device import amp_dtype, autocast, select_device
from models.stac import Stac, image_scores, stac_from_checkpoint
from models.tiles import Tile, blend, tiles_of
from models.vit import whole_patches


def main(argv: Sequence[str] | None = None) -> None:
    """Write the CAMs of the training split and the evaluation split."""
    parser = stage_parser(__doc__)
    parser.add_argument(
        "--split",
        nargs="+",
        metavar="SPLIT",
        help="train, val or test (default: train and data.eval_split)",
    )
    parser.add_argument(
        "--checkpoint",
        type=Path,
        metavar="FILE",
        help=".pt or .safetensors of train_stac.py or import_checkpoint.py (default: stac/"
        "checkpoint.pt of the run, or best.pt by cam.checkpoint)",
    )
    args = parser.parse_args(argv)
    config, out_dir = load_run(args)
    device = select_device(args.device)
    name = "checkpoint.pt" if config.cam.checkpoint == "last" else "best.pt"
    checkpoint_path = args.checkpoint or out_dir / "stac" / name
    checkpoint = load_checkpoint(checkpoint_path, "train_stac.py")

    data = read_data(config.data, out_dir / "labels.csv")
    check_classes(checkpoint, data.class_names, checkpoint_path)
    model = stac_from_checkpoint(checkpoint).to(device)
    records = records_of(data, args.split or ["train", config.data.eval_split])
    save_config(config, out_dir)
    folders = cam_folders(config.cam)
    for folder in folders:
        (out_dir / folder / "meta.json").unlink(missing_ok=True)  # back when all CAMs are there
    dtype = amp_dtype(device, checkpoint["config"]["train"]["amp"])
    transforms = _transforms(model, checkpoint, config.cam.scales)
    localise = localise_tiles if config.cam.tile else localise_whole
    for found in tqdm(
        localise(model, records, transforms, config, device, dtype),
        total=len(records),
        desc="CAMs",
        unit="image",
        disable=None,
        dynamic_ncols=True,
    ):
        for folder, (cam_type, labels) in folders.items():
            present = list(found.record.classes)
            if labels == "predicted":
                present = (found.scores >= config.cam.label_threshold).nonzero()[:, 0].tolist()
            chosen = [of_scale[:, present] for of_scale in found.maps[cam_type]]
            cam = _native_cam(chosen, found.tiles, found.size)
            path = out_dir / folder / f"{found.record.name}.npz"
            classes = np.array(present, dtype=np.int64)
            write_cam(path, Cam(cam, classes, found.scores.cpu().numpy()))
    for folder, (cam_type, labels) in folders.items():
        meta = {"type": cam_type, "labels": labels, "scales": list(config.cam.scales)}
        meta |= {"flip": config.cam.flip, "tile": config.cam.tile}
        meta |= {"tile_overlap": config.cam.tile_overlap, "checkpoint": checkpoint_path.name}
        meta |= checkpoint["progress"]
        (out_dir / folder).mkdir(parents=True, exist_ok=True)
        (out_dir / folder / "meta.json").write_text(json.dumps(meta, indent=1) + "\n")
    print(f"wrote the CAMs of {len(records)} images to {out_dir}/: {', '.join(folders)}")
    print(f"next: python make_pseudo_labels.py --config {out_dir / 'config.toml'} --out {out_dir}")


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
            parts = [combine(cam_type, o.class_attention, o.patch_map) for o in outputs]
            of_scales.append(sum([parts[0], *(part.flip(-1) for part in parts[1:])]))
    return maps, torch.stack(scores).mean(0).float()


def cam_folders(cam: CamConfig) -> dict[str, tuple[str, str]]:
    """Return {folder of the run: (CAM type, label origin)}; the first type is the main one."""
    folders = {}
    for cam_type in cam.types:
        for labels in cam.labels:
            kind = "" if cam_type == cam.types[0] else f"_{cam_type}"
            folders[f"cams{kind}{'_predicted' if labels == 'predicted' else ''}"] = (
                cam_type,
                labels,
            )
    return folders


def records_of(data: Data, splits: Sequence[str]) -> list[Record]:
    """Return the records of several splits, each record once."""
    return list({record.name: record for split in splits for record in data.split(split)}.values())


def _native_cam(maps: Sequence[Tensor], tiles: Sequence[Tile], size: tuple[int, int]) -> np.ndarray:
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


def _transforms(
    model: Stac, checkpoint: dict[str, Any], scales: Sequence[float]
) -> list[Transform]:
    height, width = checkpoint["config"]["train"]["image_size"]
    sizes = [(round(height * scale), round(width * scale)) for scale in scales]
    patch = model.encoder.patch_size
    return [
        eval_transform(whole_patches(size, patch), checkpoint["mean"], checkpoint["std"])
        for size in sizes
    ]


def _collate(items: list[tuple[Record, tuple[int, int], list[Tensor]]]) -> dict[str, Any]:
    records, sizes, images = zip(*items, strict=True)
    batches = [torch.stack(of_scale) for of_scale in zip(*images, strict=True)]
    return {"records": records, "sizes": sizes, "images": batches}


if __name__ == "__main__":
    run_stage(main)

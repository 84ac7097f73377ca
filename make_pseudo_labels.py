"""Turn CAMs into pseudo labels, the training masks of the second stage.

Reads images, cams/ and saliency/ of the run. The CAMs are weighted by the saliency map
(pseudo_label.saliency_weight), refined along the edges of the image and thresholded.
Writes pseudo_labels/<name>.png (mask values, VOC palette; 255 where a map is too close to the
threshold to tell, or where the image's label says that the mask is wrong) and, once all are
written, pseudo_labels/meta.json. A stopped call goes on where it was when it is given again.
Thresholds come from the refined maps of the training split, without a mask. By
pseudo_label.threshold_rule they are, for each class, the one whose seeds agree best with the
saliency maps ("agreement") or the one that splits its values best ("class", Otsu's method); that
of all classes together ("auto"); or pseudo_label.threshold ("fixed"). Where CAMs are weighted by
saliency, meta.json also has thresholds of the CAMs alone (agreement), for new images, which have
no saliency map.
"""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from configs import PseudoLabelConfig
from configs.command_line import load_run, run_stage, save_config, stage_parser
from datasets.files import Cam, read_cam, read_image, read_mask, read_saliency, write_mask
from datasets.record import BACKGROUND, IGNORE, Record
from datasets.sources import Data, read_data
from models.crf import refined
from models.device import select_device
from seeds import MapCounts, levelled, salient_level, seed_mask

MAX_THRESHOLD_IMAGES = 300  # that the auto threshold looks at; a histogram needs no more


@dataclasses.dataclass
class Summary:
    """What the pseudo labels of one split look like."""

    num_images: int = 0
    pixels: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(IGNORE + 1, np.int64))
    without_foreground: list[str] = dataclasses.field(default_factory=list)  # though labelled

    def add(self, record: Record, values: np.ndarray) -> None:
        """Count one image by the number of its pixels with each mask value, (256,)."""
        self.num_images += 1
        self.pixels += values
        if record.classes and not values[BACKGROUND + 1 : IGNORE].any():
            self.without_foreground.append(record.name)

    def lines(self, class_names: Sequence[str]) -> list[str]:
        """Return the summary as text, areas in %."""
        shares = 100 * self.pixels / self.pixels.sum()
        areas = [f"{n} {shares[i]:.2f} %" for i, n in enumerate(("background", *class_names))]
        lines = [f"area: {', '.join(areas)}, ignored {shares[IGNORE]:.2f} %"]
        empty = self.without_foreground
        listed = f" ({', '.join(empty[:5])}{', ...' if len(empty) > 5 else ''})" if empty else ""
        lines.append(f"labelled, but without any foreground: {len(empty)} images{listed}")
        return lines


def main(argv: Sequence[str] | None = None) -> None:
    """Write the pseudo labels of the training split and the evaluation split."""
    parser = stage_parser(__doc__)
    parser.add_argument(
        "--split",
        nargs="+",
        metavar="SPLIT",
        help="train, val or test (default: train, val and, if their CAMs are there, test); "
        "thresholds always come from train",
    )
    args = parser.parse_args(argv)
    config, out_dir = load_run(args)
    cam_dir, mask_dir = out_dir / "cams", out_dir / "pseudo_labels"
    data = read_data(config.data, out_dir / "labels.csv")
    num_classes = len(data.class_names)
    splits = args.split or default_splits(data, config.data.eval_split, cam_dir)
    for split in dict.fromkeys(["train", *splits]):
        require_cams(data.split(split), cam_dir)

    save_config(config, out_dir)
    (mask_dir / "meta.json").unlink(missing_ok=True)
    device = select_device(args.device)
    maker = MapMaker(config.pseudo_label, out_dir, num_classes, device)
    thresholds = choose_thresholds(config.pseudo_label, data.split("train"), maker)
    listed = ", ".join(f"{n} {t:.3f}" for n, t in zip(data.class_names, thresholds, strict=True))
    print(f"thresholds ({config.pseudo_label.threshold_rule}): {listed}")
    meta = {**dataclasses.asdict(config.pseudo_label), "thresholds": thresholds}
    if config.pseudo_label.saliency_weight:
        plain = dataclasses.replace(
            config.pseudo_label, saliency_weight=0.0, threshold_rule="agreement"
        )
        cam_maker = MapMaker(plain, out_dir, num_classes, device)
        meta["cam_thresholds"] = choose_thresholds(plain, data.split("train"), cam_maker)
    since = begin(mask_dir / "begun.json", meta)
    for split in splits:
        records, summary = data.split(split), Summary()
        writer = MaskWriter(records, maker, mask_dir, thresholds, since)
        workers = config.data.workers if device.type == "cpu" else 0
        loader = DataLoader(writer, batch_size=None, num_workers=workers, collate_fn=_as_it_is)
        for index, counts in tqdm(
            loader, desc=f"pseudo labels, {split}", disable=None, dynamic_ncols=True
        ):
            summary.add(records[index], counts)
        print(f"{split}: wrote {summary.num_images} pseudo labels to {mask_dir}/")
        print("\n".join(f"  {line}" for line in summary.lines(data.class_names)))
    _write_json(mask_dir / "meta.json", meta)
    (mask_dir / "begun.json").unlink()
    print(f"next: python -m segmentation.train --config {out_dir / 'config.toml'} --out {out_dir}")


def begin(path: Path, meta: dict[str, Any]) -> float:
    """Return when masks of these settings began to be made, in seconds; now if there are none.

    Args:
        path: of the file that says so until all masks are made.
        meta: the settings and the thresholds.
    """
    try:
        if json.loads(path.read_text(encoding="utf-8")) == meta:
            return path.stat().st_mtime
    except (OSError, ValueError):
        pass
    path.parent.mkdir(parents=True, exist_ok=True)
    _write_json(path, meta)
    return path.stat().st_mtime


class MapMaker:
    """Makes the maps that are thresholded from the files of a run."""

    def __init__(
        self,
        settings: PseudoLabelConfig,
        out_dir: Path,
        num_classes: int,
        device: torch.device,
    ):
        self.settings = settings
        self.cam_dir = out_dir / "cams"
        self.saliency_dir = out_dir / "saliency"
        self.num_classes = num_classes
        self.device = device

    def maps(self, record: Record) -> np.ndarray:
        """Return cam^(1 - w) * saliency^w, refined by the image, (M, H, W) float32 in [0, 1].

        Raises:
            ValueError: CAM or saliency map do not fit the image.
        """
        maps = read_cam_of(record, self.cam_dir, self.num_classes).cam
        image = read_image(record.image)
        path = self.cam_dir / f"{record.name}.npz"
        _check_size(path, maps.shape[1:], image.shape[:2], "make_cams.py")
        weight = self.settings.saliency_weight
        if weight and len(maps):
            saliency = self.saliency(record, image.shape[:2])
            maps = maps ** (1 - weight) * saliency**weight
        return (
            refined(
                torch.from_numpy(image).to(self.device).permute(2, 0, 1).float(),
                torch.from_numpy(maps).to(self.device),
                self.settings.refine,
                self.settings.refine_steps,
            )
            .cpu()
            .numpy()
        )

    def saliency(self, record: Record, size: tuple[int, ...] | None = None) -> np.ndarray:
        """Return the saliency map of a record, (H, W) float32 in [0, 1].

        Raises:
            ValueError: its size is not the (H, W) that is expected.
        """
        path = self.saliency_dir / f"{record.name}.png"
        saliency = read_saliency(path)
        if size:
            _check_size(path, saliency.shape, tuple(size), "make_saliency.py")
        return saliency

    def sources(self, record: Record) -> list[Path]:
        """Return the files that the maps of a record are made from."""
        files = [record.image, self.cam_dir / f"{record.name}.npz"]
        weighed = self.settings.saliency_weight and record.classes
        return files + [self.saliency_dir / f"{record.name}.png"] * bool(weighed)


def pseudo_label(
    maps: np.ndarray, classes: Sequence[int], thresholds: Sequence[float], band: float
) -> np.ndarray:
    """Return the seed mask of one image with an uncertain band around the thresholds.

    Args:
        maps: (M, H, W) in [0, 1]; without any the mask is all background.
        classes: (M,) foreground indices.
        thresholds: (K,) in [0, 1], background scores of all classes.
        band: pixels whose highest value, rescaled to a threshold of 0.5 (see `levelled`), is less
            than this away from 0.5 become 255.

    Returns:
        (H, W) uint8 mask values.
    """
    maps = levelled(maps, [thresholds[k] for k in classes])
    mask = seed_mask(maps, classes, 0.5)
    if len(classes):
        mask[np.abs(maps.max(axis=0) - 0.5) < band] = IGNORE
    return mask


def doubted(mask: np.ndarray, classes: Sequence[int], max_area: float) -> np.ndarray:
    """Return a mask with 255 where it cannot be right.

    A class that the image carries, but that is nowhere, must be in what is background now; one
    that covers nearly all of the image says nothing about where it is.

    Args:
        mask: (H, W) uint8 mask values.
        classes: (M,) foreground indices of the image's labels.
        max_area: share of the image, in [0, 1].
    """
    mask = mask.copy()
    counts = np.bincount(mask.reshape(-1), minlength=IGNORE + 1)
    for value in (BACKGROUND + 1 + k for k in classes):
        if counts[value] > max_area * mask.size:
            mask[mask == value] = IGNORE
        elif not counts[value]:
            mask[mask == BACKGROUND] = IGNORE
    return mask


class MaskWriter(Dataset):
    """Writes the pseudo label of a record when asked for it, and gives its pixel counts.

    A mask that is newer than all it is made from is left as it is.
    """

    def __init__(
        self,
        records: Sequence[Record],
        maker: MapMaker,
        mask_dir: Path,
        thresholds: Sequence[float],
        since: float,
    ):
        self.records = records
        self.maker = maker
        self.mask_dir = mask_dir
        self.thresholds = thresholds
        self.since = since  # seconds; masks older than that are of other settings

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> tuple[int, np.ndarray]:
        record, settings = self.records[index], self.maker.settings
        path = self.mask_dir / f"{record.name}.png"
        if self._is_done(record, path):
            mask = read_mask(path, self.maker.num_classes)
        else:
            maps = self.maker.maps(record)
            mask = pseudo_label(maps, record.classes, self.thresholds, settings.band)
            mask = doubted(mask, record.classes, settings.max_area)
            write_mask(path, mask)
        return index, np.bincount(mask.reshape(-1), minlength=IGNORE + 1)

    def _is_done(self, record: Record, path: Path) -> bool:
        if not path.is_file():
            return False
        sources = [file.stat().st_mtime for file in self.maker.sources(record) if file.is_file()]
        return path.stat().st_mtime > max(self.since, *sources)


def choose_thresholds(
    settings: PseudoLabelConfig, records: Sequence[Record], maker: MapMaker
) -> list[float]:
    """Return K thresholds: the fixed one, or those found in the maps without masks.

    Raises:
        ValueError: the rule is not fixed, and the maps hold no two different values.
    """
    if settings.threshold_rule == "fixed":
        return [settings.threshold] * maker.num_classes
    labelled, num_classes = [r for r in records if r.classes], maker.num_classes
    groups = [labelled]
    if settings.threshold_rule != "auto":
        groups = [[r for r in labelled if k in r.classes] for k in range(num_classes)]
    limit = max(1, MAX_THRESHOLD_IMAGES // len(groups))
    chosen = {r.name: r for group in groups for r in group[:: -(-len(group) // limit) or 1]}
    progress = tqdm(chosen.values(), "thresholds", unit="image", disable=None, dynamic_ncols=True)
    agreement, level = settings.threshold_rule == "agreement", None
    if agreement:
        level = settings.salient_from or salient_level(map(maker.saliency, chosen.values()))
    counts = MapCounts(num_classes, level)
    for record in progress:
        maps = maker.maps(record)
        saliency = maker.saliency(record, maps.shape[1:]) if agreement else None
        counts.add(maps, record.classes, saliency)
    try:
        return counts.thresholds(settings.threshold_rule)
    except ValueError as error:
        raise ValueError(f"{maker.cam_dir}: {error}") from error


def read_cam_of(record: Record, cam_dir: Path, num_classes: int) -> Cam:
    """Read the CAMs of a record.

    Raises:
        ValueError: the file has another number of classes, or was made with other labels.
    """
    path = cam_dir / f"{record.name}.npz"
    cam = read_cam(path)
    if len(cam.scores) != num_classes:
        raise ValueError(
            f"{path}: expected scores of {num_classes} classes, got {len(cam.scores)}. "
            "Run make_cams.py on this data set."
        )
    if tuple(cam.classes) != record.classes:
        raise ValueError(
            f"{path}: expected CAMs of the image's classes {list(record.classes)}, got "
            f"{cam.classes.tolist()}. Run make_cams.py with the given labels."
        )
    return cam


def default_splits(data: Data, eval_split: str, cam_dir: Path) -> list[str]:
    """Return the splits of the maps; test, which nothing is trained on, only with CAMs of it."""
    splits = data.default_splits(eval_split)
    tested = data.splits.get("test", ())
    there = any((cam_dir / f"{record.name}.npz").is_file() for record in tested)
    return [split for split in splits if split != "test" or there]


def require_cams(records: Sequence[Record], cam_dir: Path) -> None:
    """Check that every record has its CAM file.

    Raises:
        FileNotFoundError: some are missing; names the first five and the total.
    """
    missing = [r.name for r in records if not (cam_dir / f"{r.name}.npz").is_file()]
    if missing:
        raise FileNotFoundError(
            f"{cam_dir}: expected the CAMs of {len(records)} images, {len(missing)} are missing: "
            f"{', '.join(missing[:5])}. Run make_cams.py first, with given among cam.labels."
        )


def _check_size(path: Path, size: tuple[int, ...], of_image: tuple[int, int], made_by: str) -> None:
    if tuple(size) != of_image:
        raise ValueError(
            f"{path}: expected the image's size {of_image}, got {tuple(size)}. Run {made_by} again."
        )


def _as_it_is(item: tuple[int, np.ndarray]) -> tuple[int, np.ndarray]:
    return item


def _write_json(path: Path, content: dict[str, Any]) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    temporary.replace(path)


if __name__ == "__main__":
    run_stage(main)

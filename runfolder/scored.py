"""Which images of a run are scored, and what is said of how their maps were made."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from configs import Config
from datasets.record import Record
from runfolder.run import KINDS, CamMeta, MaskMeta, Run, SaliencyMeta, masked_in, read_meta
from scoring.passes import CAM_SUFFIXES, PICTURE_SUFFIXES, find_maps

Part = tuple[Sequence[Record], Sequence[Path]]  # images and the file of each


class Asked(NamedTuple):
    """What evaluation.py is asked to score."""

    kind: str  # of KINDS
    split: str
    part: str  # all, develop or report
    cam_type: str  # of CAMs
    labels: str  # given or predicted
    bound: bool  # images whose masks were used are scored too


class Scored(NamedTuple):
    """What is scored.

    Attributes:
        records: images with masks.
        paths: map or mask of each.
        parts: the same divided: images that no setting was chosen on first, then the others; one
            part where no list says which.
        about: what a line of results.jsonl says of all this.
    """

    records: list[Record]
    paths: list[Path]
    parts: list[Part]
    about: dict[str, Any]


def scored_of(run: Run, asked: Asked) -> Scored | None:
    """Return what is scored, None where no image has a mask; says which images are left out.

    Raises:
        FileNotFoundError: maps are missing.
        ValueError: no image with a defect has a mask; maps are not complete, or of another type
            than their folder says; a part is asked for that no list names.
    """
    saliency, meta = _metas_of(run, asked)
    records = in_part(run, asked)
    masked = masked_in(saliency, meta)
    unfair = set() if asked.bound else set(masked)
    # Where false alarms are counted, a generator knows the defect-free images it learnt from.
    if asked.kind == "saliency" and saliency and not run.config.saliency.empty_defect_free:
        unfair |= set(saliency.seen_defect_free)
    scored = [r for r in records if r.mask is not None and r.name not in unfair]
    if learnt_from := sum(record.name in unfair for record in records):
        print(f"{learnt_from} images that the maps were learnt from are not scored.")
    if not scored:
        return None
    _refuse_missing_masks(records, asked.split, run.config)
    unscored = [record.name for record in records if record.mask is None]
    if unscored:
        print(f"{len(unscored)} images have no mask, not scored: {', '.join(unscored[:5])}.")
    paths = maps_of(run.maps_dir(asked.kind, asked.cam_type, asked.labels), asked.kind, scored)
    return Scored(scored, paths, _divided(run, scored, paths), about_of(run, asked, scored))


def about_of(run: Run, asked: Asked, records: Sequence[Record]) -> dict[str, Any]:
    """Return what a line of results.jsonl says of how the maps of some images were made."""
    saliency, meta = _metas_of(run, asked)
    masked = masked_in(saliency, meta)
    learnt = asked.labels == "predicted" and _labels_learnt(run, records, meta)
    about = {"kind": asked.kind, "split": asked.split, "part": asked.part, "images": len(records)}
    about |= {"labels": "learnt" if learnt else asked.labels}
    about |= {"cam_type": asked.cam_type} if asked.kind == "cam" else {}
    about |= {"masks_used": len(masked)} if masked else {}
    return about | ({"bound": True} if asked.bound else {})


def _metas_of(run: Run, asked: Asked) -> tuple[SaliencyMeta | None, CamMeta | MaskMeta | None]:
    """Return how the saliency maps and the maps that are scored were made."""
    saliency = read_meta(run.saliency_dir, SaliencyMeta)
    if asked.kind == "cam":
        return saliency, run.read_cam_meta(asked.cam_type, asked.labels)
    if asked.kind == "saliency":
        return saliency, None
    return saliency, read_meta(run.maps_dir(asked.kind), MaskMeta)


def maps_of(folder: Path, kind: str, records: Sequence[Record]) -> list[Path]:
    """Return the file of each record; errors as of `find_maps`."""
    suffixes = CAM_SUFFIXES if kind == "cam" else PICTURE_SUFFIXES
    return find_maps(folder, [r.name for r in records], suffixes, f"Run {KINDS[kind]} first.")


def in_part(run: Run, asked: Asked) -> list[Record]:
    """Return the images of a split, or of one part of it.

    Raises:
        ValueError: no list says which images are of the part.
    """
    records, develop = list(run.data.split(asked.split)), run.data.develop
    if asked.part == "all":
        return records
    if not develop:
        raise ValueError(
            f"--part {asked.part}: expected data.develop_list to name training images, got "
            f"{run.config.data.develop_list!r}. Set it, or leave --part out."
        )
    return [r for r in records if (r.name in develop) is (asked.part == "develop")]


def _divided(run: Run, records: Sequence[Record], paths: Sequence[Path]) -> list[Part]:
    """Divide images into those that no setting was chosen on and the others."""
    both: dict[bool, tuple[list[Record], list[Path]]] = {False: ([], []), True: ([], [])}
    for record, path in zip(records, paths, strict=True):
        of_part = both[record.name in run.data.develop]
        of_part[0].append(record)
        of_part[1].append(path)
    return [part for part in both.values() if part[0]]


def _labels_learnt(run: Run, records: Sequence[Record], meta: CamMeta | MaskMeta | None) -> bool:
    """Tell whether the labels of what is scored took part in the making of its maps.

    They did where an image was trained on, and in the validation part if it chose the weights.
    """
    splits = ("fit", "val") if meta and meta.checkpoint == "best.pt" else ("fit",)
    used = {record.name for record in run.data.records(splits)}
    return any(record.name in used for record in records)


def _refuse_missing_masks(records: Sequence[Record], split: str, config: Config) -> None:
    """Check that some image with a defect has a mask: all background would score 100 else."""
    defective = [record for record in records if record.classes]
    if not defective or any(record.mask for record in defective):
        return
    root = config.data.root
    places = {"folder": f"below {root}/masks", "csv": f"in the column mask of {config.data.table}"}
    where = places.get(config.data.source, f"below {root}, where docs/datasets.md says")
    raise ValueError(
        f"{config.data.source}, {split}: expected masks of images with a defect, got none of "
        f"{len(defective)}: {', '.join(record.name for record in defective[:5])}. "
        f"Add masks {where}, or correct their names."
    )

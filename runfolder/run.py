"""One owner for the folder of a run: where every file lies, and what its folders say they hold.

    config.toml  labels.csv  groups.csv  thresholds.json  results.jsonl  results.csv  report.html
    suspicious_labels.csv
    saliency/<name>.png
    stac/checkpoint.pt  best.pt  log.jsonl  model.safetensors  model.json
    cams/<type>/<given|predicted>/<name>.npz
    pseudo_labels/<name>.png
    segmentation/checkpoint.pt  best.pt  log.jsonl
    predictions/<name>.png
    figures/<name>.svg  <name>.pdf

The folders of maps hold a meta.json that says how their files were made. From the first file to the
last it says that they are not complete, and whoever reads it then is refused. Maps that were
brought from elsewhere have none.
"""

import argparse
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from configs import Config, to_toml
from configs.command_line import load_run
from datasets.atomic import remove_temporaries
from datasets.files import write_json, write_text
from datasets.sources import Data, read_data
from execution import ranks
from execution.locks import hold

UNFINISHED = {"unfinished": True}
# What evaluation.py scores, in the order of the table, and the script that makes it.
KINDS = {
    "saliency": "make_saliency.py",
    "cam": "make_cams.py",
    "pseudo_label": "make_pseudo_labels.py",
    "segmentation": "python -m segmentation.infer",
}


@dataclass(frozen=True)
class SaliencyMeta:
    """How saliency maps were made.

    Attributes:
        settings: section saliency of the config.
        refinement: section refinement.
        splits: that maps were made for.
        learnt: what the generator learnt from labels and defect-free images.
        masked: images whose pixel masks were used; they are not scored.
        seen_defect_free: defect-free images that the generator learnt from.
    """

    settings: dict[str, Any]
    refinement: dict[str, Any]
    splits: list[str]
    learnt: dict[str, Any] = field(default_factory=dict)
    masked: list[str] = field(default_factory=list)
    seen_defect_free: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class CamMeta:
    """How CAMs were made.

    Attributes:
        type: of cam.types.
        labels: given or predicted.
        settings: section cam of the config.
        checkpoint: file name of the localiser's.
        progress: of its training.
        masked: as of the saliency maps that it was trained with.
        label_thresholds: image scores from which classes were predicted.
    """

    type: str
    labels: str
    settings: dict[str, Any]
    checkpoint: str
    progress: dict[str, Any]
    masked: list[str] = field(default_factory=list)
    label_thresholds: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class MaskMeta:
    """How pseudo labels or predictions were made.

    Attributes:
        settings: section pseudo_label or segmentation of the config.
        made_from: thresholds of pseudo labels; file name and progress of a network's checkpoint.
        masked: images whose pixel masks were used on the way.
    """

    settings: dict[str, Any]
    made_from: dict[str, Any]
    masked: list[str] = field(default_factory=list)

    @property
    def checkpoint(self) -> str:
        """File name of the network's; empty of pseudo labels."""
        return self.made_from.get("checkpoint", "")


Meta = SaliencyMeta | CamMeta | MaskMeta
Of = TypeVar("Of", SaliencyMeta, CamMeta, MaskMeta)


class Run:
    """A run folder with its config.

    Attributes:
        folder: of all files of the run.
        config: its settings.
    """

    def __init__(self, folder: Path, config: Config):
        self.folder = folder
        self.config = config
        self.config_path = folder / "config.toml"
        self.labels_path = folder / "labels.csv"
        self.thresholds_path = folder / "thresholds.json"
        self.results_path = folder / "results.jsonl"
        self.table_path = folder / "results.csv"
        self.suspects_path = folder / "suspicious_labels.csv"
        self.report_path = folder / "report.html"
        self.figures_dir = folder / "figures"  # charts of the report
        self.saliency_dir = folder / "saliency"
        self.stac_dir = folder / "stac"
        self.pseudo_label_dir = folder / "pseudo_labels"
        self.segmentation_dir = folder / "segmentation"
        self.prediction_dir = folder / "predictions"
        self.predicted_dir = folder / "predicted"  # of new images, by predict.py
        self.exported_dir = folder / "exported"

    @cached_property
    def data(self) -> Data:
        """The data set; errors as of `datasets.sources.read_data`."""
        with ranks.first_alone():  # it leaves labels.csv and groups.csv
            return read_data(self.config.data, self.labels_path)

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.data.class_names)

    def cam_dir(self, cam_type: str, labels: str) -> Path:
        """Return the folder of the CAMs of a type, with labels given or predicted."""
        return self.folder / "cams" / cam_type / labels

    def maps_dir(self, kind: str, cam_type: str = "", labels: str = "") -> Path:
        """Return the folder of what `KINDS` names; type and labels are of CAMs."""
        folders = {
            "saliency": self.saliency_dir,
            "pseudo_label": self.pseudo_label_dir,
            "segmentation": self.prediction_dir,
        }
        return self.cam_dir(cam_type, labels) if kind == "cam" else folders[kind]

    def stac_checkpoint(self) -> Path:
        """Return the localiser's checkpoint: the last one, else the best one."""
        return _first_there(self.stac_dir, "checkpoint.pt", "best.pt")

    def segmentation_checkpoint(self) -> Path:
        """Return the segmentation network's checkpoint: the last one, else the best one.

        The best one is chosen by the pseudo labels of `val`, so by given labels of its images.
        """
        return _first_there(self.segmentation_dir, "checkpoint.pt", "best.pt")

    def begin_stage(self, *folders: Path) -> None:
        """Begin a stage that writes to these folders: keep other calls out, write the config.

        --config accepts the resolved config again. What killed calls left half-written is removed.

        Raises:
            ValueError: another call writes to one of the folders.
        """
        if ranks.is_first():
            for folder in folders:
                hold(self.folder / folder.relative_to(self.folder).parts[0])
            for folder in (self.folder, *folders):
                remove_temporaries(folder)
            write_text(self.config_path, to_toml(self.config))

    def command(self, script: str) -> str:
        """Return the command line that runs a script on this run."""
        return f"python {script} --config {self.config_path} --out {self.folder}"

    def read_cam_meta(self, cam_type: str, labels: str) -> CamMeta | None:
        """Return how the CAMs of a folder were made; None where they were brought from elsewhere.

        Raises:
            ValueError: the file is damaged, or of another type or other labels than its folder.
        """
        folder = self.cam_dir(cam_type, labels)
        meta = read_meta(folder, CamMeta)
        if meta and (meta.type, meta.labels) != (cam_type, labels):
            raise ValueError(
                f"{folder}/meta.json: expected CAMs of type {cam_type} with labels {labels}, got "
                f"{meta.type} with labels {meta.labels}. Move them back, or run make_cams.py."
            )
        return meta


def open_run(args: argparse.Namespace) -> Run:
    """Return the run of parsed `configs.command_line.stage_parser` arguments."""
    config, folder = load_run(args)
    return Run(folder, config)


def begin_folder(folder: Path) -> None:
    """Say that the files of a folder are not complete any more; then all ranks may write there."""
    if ranks.is_first():
        write_json(folder / "meta.json", UNFINISHED)
    ranks.wait()


def write_meta(folder: Path, meta: Meta) -> None:
    """Say how the files of a folder were made, once all ranks have written theirs."""
    ranks.wait()
    if ranks.is_first():
        write_json(folder / "meta.json", asdict(meta))
    ranks.wait()


def masked_in(*metas: Meta | None) -> list[str]:
    """Return the images whose pixel masks were used on the way to some folders of maps, sorted."""
    return sorted({name for meta in metas if meta for name in meta.masked})


def read_meta(folder: Path, kind: type[Of]) -> Of | None:
    """Return what a folder says of its files; None where it says nothing.

    Raises:
        ValueError: the files are not complete; or the file is damaged, or another program's.
    """
    path = folder / "meta.json"
    if not path.is_file():
        return None
    try:
        content: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if content != UNFINISHED:
            return TypeAdapter(kind).validate_python(content)
    except (ValueError, ValidationError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"{path}: expected what this version writes, got: {reason}. Make the folder anew."
        ) from error
    raise ValueError(
        f"{folder}: expected complete files, got those of a call that was stopped. Run it again."
    )


def _first_there(folder: Path, *names: str) -> Path:
    return next((folder / n for n in names if (folder / n).is_file()), folder / names[0])

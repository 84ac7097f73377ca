"""Reads the data set that a config names, and makes the splits that its release lacks.

A release is read where it was unpacked; nothing is converted. A split whose folder is missing is
not offered. `val` is drawn from `train` by a seeded rule and `fit` is the rest of `train`; where
the user's own files name a `val`, `fit` is all of `train`. No draw divides a group of pictures that
show the same thing.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from configs import DataConfig
from datasets.groups import with_groups
from datasets.layouts.authors import read_authors
from datasets.layouts.common import UNDIVIDED, Layout, Splits, find_file, read_names
from datasets.layouts.dagm import read_dagm
from datasets.layouts.folder import read_folder
from datasets.layouts.mtd import read_mtd
from datasets.layouts.mvtec import read_mvtec
from datasets.layouts.neu_seg import read_neu_seg
from datasets.layouts.sample import read_sample
from datasets.layouts.table import read_table
from datasets.layouts.voc import read_voc
from datasets.outlines import read_annotated
from datasets.problems import Problem, Refused
from datasets.record import Record, check_num_classes, spread
from datasets.sample import write_sample
from datasets.skipped import SKIPPED_NAME, read_skipped
from datasets.splits import draw, single_groups

GROUPS_NAME = "groups.csv"  # beside labels.csv
FEW = 10  # training images of a class, less of which are told


@dataclass(frozen=True)
class Data:
    """A data set: its K class names and the records of each split it offers.

    Attributes:
        class_names: K.
        splits: train, fit, val and, where there is one, test.
        develop: names of images that settings may be chosen on, with their masks; results on the
            others are reported. Empty where no list says so.
    """

    class_names: tuple[str, ...]
    splits: dict[str, tuple[Record, ...]]
    develop: frozenset[str] = frozenset()

    def split(self, name: str) -> tuple[Record, ...]:
        """Return the records of train, fit, val or test.

        Raises:
            ValueError: the release lies here without that split.
        """
        if name not in self.splits:
            offered = ", ".join(self.splits)
            raise ValueError(
                f"split {name!r}: expected one of {offered}, which lie here. "
                "Add the missing folder or set data.eval_split."
            )
        return self.splits[name]

    def records(self, splits: Sequence[str]) -> list[Record]:
        """Return the records of several splits, each record once; errors as of `split`."""
        return list({r.name: r for name in splits for r in self.split(name)}.values())

    def default_splits(self, eval_split: str) -> list[str]:
        """Return the splits that maps are made for: train, and what lies outside it.

        That is the evaluation split, and a validation split of the data set's own; one held out of
        train is part of it.

        Raises:
            ValueError: no such evaluation split.
        """
        trained = {record.name for record in self.split("train")}
        others = {"val": self.splits.get("val", ()), eval_split: self.split(eval_split)}
        outside = (name for name, rs in others.items() if any(r.name not in trained for r in rs))
        return ["train", *outside]


def read_data(settings: DataConfig, labels_path: Path) -> Data:
    """Read the records of a data set.

    Args:
        settings: data section of a config.
        labels_path: `labels.csv` of the run. Sources whose release has no image labels
            (NEU-Seg) take them from the masks once and keep them there; with that file
            in place no mask is opened any more. groups.csv and skipped.csv lie beside it.

    Raises:
        FileNotFoundError: the folder is not there or holds no image of the layout.
        ValueError: labels, names or files that do not fit; of single files `Refused`.
    """
    root = Path(settings.root).expanduser()
    if settings.source == "sample":
        write_sample(root, settings.sample_train, settings.sample_test, settings.seed)
    if not root.is_dir():
        raise FileNotFoundError(
            f"{root}: expected the folder of the {settings.source} release, found none. "
            "Set data.root to where it was unpacked."
        )
    skipped = read_skipped(labels_path.with_name(SKIPPED_NAME))
    class_names, splits = _read_layout(root, settings, labels_path, skipped)
    if skipped:
        splits = {s: tuple(r for r in rs if r.image not in skipped) for s, rs in splits.items()}
    check_num_classes(len(class_names), root)
    _refuse_repeated_names(splits)
    if settings.annotations:
        splits = _annotate(splits, find_file(settings.annotations, root), class_names)

    # Groups, and the splits that the release lacks.
    records = [record for of_split in splits.values() for record in of_split]
    cache_path = labels_path.with_name(GROUPS_NAME)
    grouped = {r.name: r for r in with_groups(records, settings.group, cache_path)}
    splits = {name: tuple(grouped[r.name] for r in rs) for name, rs in splits.items()}
    if UNDIVIDED in splits:
        splits = _divide(splits, settings.test_share, settings.seed)
    if settings.clean_test:
        splits = _without_shown(splits)
    if settings.limit:
        splits = {name: tuple(spread(records, settings.limit)) for name, records in splits.items()}
    develop = _read_develop(settings.develop_list, splits)
    if "val" in splits:
        return Data(class_names, {"fit": splits["train"], **splits}, develop)
    fit, val = _hold_out(splits["train"], settings.val_fraction, settings.seed)
    splits = {"train": splits["train"], "fit": fit, "val": val, **splits}
    return Data(class_names, splits, develop)


def draw_warnings(data: Data) -> list[str]:
    """Return what the draws could not do, and which classes have very few training images."""
    train = data.split("train")
    counts = Counter(k for record in train for k in record.classes)
    return [
        *(
            f"{name}: all its training images are one group of pictures, so it is in fit alone"
            for name in single_groups(train, data.class_names)
        ),
        *(
            f"{name}: {counts[k]} training images, a class needs {FEW} or more"
            for k, name in enumerate(data.class_names)
            if counts[k] < FEW
        ),
    ]


def _read_layout(
    root: Path, settings: DataConfig, labels_path: Path, skipped: frozenset[Path]
) -> Layout:
    lists = {"train": settings.train_list, "test": settings.test_list}
    match settings.source:
        case "sample":
            return read_sample(root)
        case "neu_seg":
            return read_neu_seg(root, labels_path, lists)
        case "mtd":
            return read_mtd(root, lists)
        case "dagm":
            return read_dagm(root, settings.classes)
        case "mvtec":
            return read_mvtec(root, settings.defect_types)
        case "voc":
            return read_voc(root, lists)
        case "authors":
            return read_authors(root, lists, settings.table, settings.classes, settings.prefix)
        case "folder":
            return read_folder(root, settings.mask_level, skipped)
        case "csv":
            return read_table(root, settings.table, settings.classes, settings.mask_level)
    raise ValueError(f"data.source: expected a reader, got {settings.source!r}.")


def _divide(splits: Splits, share: float, seed: int) -> Splits:
    """Draw a share of what is undivided into test; all is train with share 0, or in one group.

    A group that reaches into the release's own train is all train.
    """
    train, test = splits.get("train", ()), splits.get("test", ())
    rest, drawn = draw(splits[UNDIVIDED], share, seed)
    shown = {record.group for record in (*train, *rest)}
    test = (*drawn, *test)
    train = (*train, *rest, *(r for r in test if r.group in shown or not share))
    kept = {record.name for record in train}
    test = tuple(record for record in test if record.name not in kept)
    return {"train": train, "test": test} if test else {"train": train}


def _without_shown(splits: Splits) -> Splits:
    """Leave out of train what test shows.

    Raises:
        ValueError: there is no test split, or nothing is left.
    """
    if "test" not in splits:
        raise ValueError(
            "data.clean_test: expected a test split, found none. Add its images, or give "
            "data.train_list, as configs/splits/ has one of NEU-Seg."
        )
    shown = {record.group for record in splits["test"]}
    train = tuple(record for record in splits["train"] if record.group not in shown)
    if not train:
        raise ValueError(
            f"data.clean_test: expected training images that test does not show, got none of "
            f"{len(splits['train'])}. Check data.group."
        )
    return {**splits, "train": train}


def _read_develop(given: str, splits: Splits) -> frozenset[str]:
    """Return the names of a list that are in train; other names are passed over.

    Raises:
        FileNotFoundError: no such file.
    """
    if not given:
        return frozenset()
    names = read_names(Path(given).expanduser(), "Correct data.develop_list.")
    return frozenset(names) & {record.name for record in splits["train"]}


def annotated_in(data: Data, settings: DataConfig) -> dict[str, list[Record]]:
    """Return the records of each split whose masks data.annotations holds; none without it."""
    if not settings.annotations:
        return {}
    path = find_file(settings.annotations, Path(settings.root).expanduser())
    return {
        split: [r for r in records if r.mask and r.mask_names and r.mask.is_relative_to(path)]
        for split, records in data.splits.items()
    }


def _annotate(splits: Splits, path: Path, class_names: Sequence[str]) -> Splits:
    """Take the masks of all images that annotation files list from there; none is drawn.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another file, one that lists none of the images, or entries that are of several.
    """
    listed = read_annotated(path)
    taken: dict[int, Record] = {}

    def annotated(record: Record) -> Record:
        number = listed.images.number_of(record.image)
        if number is None:
            return record
        if (other := taken.setdefault(number, record)).name != record.name:
            raise ValueError(
                f"{path}: expected paths that tell the images apart, got "
                f"{listed.images.paths[number]!r} for {other.image} and {record.image}. Give it "
                "with its folders."
            )
        file = listed.files[number]
        return replace(record, mask=file, mask_level=None, mask_names=tuple(class_names))

    replaced = {name: tuple(map(annotated, records)) for name, records in splits.items()}
    if not taken:
        raise ValueError(
            f"{path}: expected file names of the images, got none of them. Correct "
            f"data.annotations, or the paths of its {len(listed.files)} images ({listed.kind})."
        )
    return replaced


def _refuse_repeated_names(splits: Splits) -> None:
    """Check that no two records share a name, in one split or across them."""
    images: dict[str, Path] = {}
    refused: list[Problem] = []
    for record in (record for records in splits.values() for record in records):
        if record.name in images:
            text = (
                f"{record.image}: expected unique names, got {record.name} for "
                f"{images[record.name]} too. Rename or remove one of them."
            )
            refused.append(Problem("duplicate name", text, (record.image,)))
        images.setdefault(record.name, record.image)
    if refused:
        raise Refused(refused)


def _hold_out(
    records: Sequence[Record], fraction: float, seed: int
) -> tuple[tuple[Record, ...], tuple[Record, ...]]:
    """Divide records into (rest, drawn), at least one group each, in their own order."""
    rest, drawn = draw(records, fraction, seed)
    if not drawn:
        groups = len({record.group for record in records})
        raise ValueError(
            f"train: expected two groups of images or more of some class, one of them for "
            f"validation, got {len(records)} images in {groups} groups. Check data.root, "
            "data.limit, data.group and data.test_share."
        )
    return rest, drawn

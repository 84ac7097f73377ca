"""What tests share: two threads for torch, and a miniature of each layout of data sets.

The helpers that write single files are fixtures too, each a function, since tests import no tests.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from datasets.files import write_image, write_mask
from saliency import patches


@pytest.fixture(autouse=True, scope="session")
def two_threads() -> Iterator[None]:
    """Keep torch from taking every core of a shared machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(min(2, before))
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def no_features_kept(monkeypatch) -> None:
    """Let no test see features of an earlier one."""
    monkeypatch.setattr(patches, "_kept", patches.FeatureCache())


def _write_grey(path: Path, *row: int, mode: str = "L") -> None:
    pixels = np.zeros((7, 9), np.uint8)
    pixels[0, : len(row)] = row
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).convert(mode).save(path, format="PNG")


@pytest.fixture
def write_grey() -> Callable[..., None]:
    """Write 7 x 9 grey pixels as PNG, 0 but for the start of the first row: path, *row, mode."""
    return _write_grey


def _write_picture(path: Path, size: tuple[int, int] = (7, 9)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full(size, 90, np.uint8)).save(path)


@pytest.fixture
def write_picture() -> Callable[..., None]:
    """Write an even grey picture in the format that its suffix says: path, size."""
    return _write_picture


# NEU-Seg and MTD

NEU_MASKS = {  # values drawn into the mask of each training picture
    "000001": (1,),
    "000002": (1, 3),
    "000003": (2, 255),
    "000004": (3,),
    "000005": (),
}
MTD_PICTURES = {  # of each class one for test, one for val, and one to train on
    "Blowhole": ("exp1_num_11", "exp2_num_11", "exp4_num_11"),
    "Break": ("exp1_num_21", "exp2_num_21", "exp4_num_21"),
    "Crack": ("exp1_num_31", "exp3_num_31", "exp4_num_31"),
    "Fray": ("exp1_num_41", "exp2_num_41", "exp4_num_41"),
    "Uneven": ("exp1_num_51", "exp2_num_51", "exp4_num_51"),
    "Free": ("exp1_num_61", "exp2_num_61", "exp4_num_61"),
}


def _write_neu_split(root: Path, folder: str, masks: dict[str, tuple[int, ...]]) -> None:
    for name, values in masks.items():
        write_image(root / f"images/{folder}/{name}.jpg", np.full((6, 8, 3), 90, np.uint8))
        mask = np.zeros((6, 8), np.uint8)
        mask[0, : len(values)] = values
        write_mask(root / f"annotations/{folder}/{name}.png", mask)


@pytest.fixture
def write_neu_split() -> Callable[..., None]:
    """Write pictures and masks of NEU-Seg: root, folder, values in the mask of each name."""
    return _write_neu_split


@pytest.fixture
def neu_root(tmp_path: Path) -> Path:
    _write_neu_split(tmp_path / "neu", "training", NEU_MASKS)
    return tmp_path / "neu"


def _add_mtd(root: Path, folder: str, name: str) -> None:
    path = root / f"MT_{folder}/Imgs/{name}.jpg"
    write_image(path, np.full((6, 8), 90, np.uint8))
    mask = np.zeros((6, 8), np.uint8)
    mask[0, 0] = 127  # JPEG-like fringe, still background
    if folder != "Free":
        mask[0, 1:3] = 128, 255
    write_image(path.with_suffix(".png"), mask)


@pytest.fixture
def add_mtd() -> Callable[..., None]:
    """Write one picture of MTD and its mask: root, folder without MT_, name."""
    return _add_mtd


@pytest.fixture
def mtd_pictures() -> dict[str, tuple[str, ...]]:
    """Give the names in each folder of `mtd_root`."""
    return MTD_PICTURES


@pytest.fixture
def mtd_root(tmp_path: Path) -> Path:
    for folder, names in MTD_PICTURES.items():
        for name in names:
            _add_mtd(tmp_path / "mtd", folder, name)
    return tmp_path / "mtd"


# DAGM and MVTec AD


def _write_dagm_part(folder: Path, images: dict[str, int]) -> None:
    rows = ["1"]
    for i, (stem, defect) in enumerate(images.items(), start=1):
        _write_picture(folder / f"{stem}.PNG")
        if defect:
            _write_grey(folder / f"Label/{stem}_label.PNG", 0, 255, 128, 127)
        rows.append(f"{i}\t{defect}\t{stem}.PNG\t0\t{f'{stem}_label.PNG' if defect else 0}")
    (folder / "Label/Labels.txt").write_text("\r\n".join(rows) + "\r\n")


@pytest.fixture
def dagm(tmp_path: Path) -> Path:
    root = tmp_path / "DAGM2007"
    _write_dagm_part(root / "Class1/Train", {"0576": 1, "0577": 0})
    _write_dagm_part(root / "Class1/Test", {"0001": 0, "0002": 1})
    _write_dagm_part(root / "Class2/Train", {"0576": 1})
    _write_dagm_part(root / "Class10/Train", {"0576": 1, "0002": 0})
    return root


@pytest.fixture
def mvtec(tmp_path: Path) -> Path:
    root = tmp_path / "mvtec/bottle"
    for i in range(5):
        write_image(root / f"train/good/{i:03d}.png", np.full((7, 9, 3), i, np.uint8))
    for kind, count in (("good", 3), ("broken_large", 10), ("contamination", 4), ("cut", 1)):
        for i in range(count):
            write_image(root / f"test/{kind}/{i:03d}.png", np.full((7, 9, 3), 50, np.uint8))
            if kind != "good":
                _write_grey(root / f"ground_truth/{kind}/{i:03d}_mask.png", 0, 255)
    return root


# PASCAL VOC

VOC_OBJECTS = {  # name: (class, difficult) of its objects
    "2007_000032": (("aeroplane", 0), ("person", 0), ("person", 1)),
    "2007_000033": (("person", 0),),
    "2007_000039": (("tvmonitor", 0),),
    "2007_000061": (("boat", 1),),
    "2008_000002": (("cat", 0), ("dog", 1)),
    "2009_000001": (("train", 0),),
}


def _voc_annotation(objects: tuple[tuple[str, int], ...]) -> str:
    head = "<head><part><name>head</name></part></head>"
    parts = "".join(
        f"<object><name>{name}</name><difficult>{difficult}</difficult>"
        f"{head if name == 'person' else ''}</object>"
        for name, difficult in objects
    )
    return f"<annotation><folder>VOC2012</folder>{parts}</annotation>"


@pytest.fixture
def voc_annotation() -> Callable[..., str]:
    """Give the XML of an image: its objects, each a class and whether it is difficult."""
    return _voc_annotation


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    root = tmp_path / "VOCdevkit/VOC2012"
    (root / "Annotations").mkdir(parents=True)
    (root / "ImageSets/Segmentation").mkdir(parents=True)
    for name, objects in VOC_OBJECTS.items():
        write_image(root / f"JPEGImages/{name}.jpg", np.full((7, 9, 3), 90, np.uint8))
        (root / f"Annotations/{name}.xml").write_text(_voc_annotation(objects))
    mask = np.zeros((7, 9), np.uint8)
    mask[0, :4] = 255, 1, 15, 20
    for name in ("2007_000032", "2007_000033", "2007_000039", "2007_000061"):
        write_mask(root / f"SegmentationClass/{name}.png", mask)
    lists = {"train": "2007_000032\n2007_000033\n2007_000039\n", "val": "2007_000061"}
    for split, text in lists.items():
        (root / f"ImageSets/Segmentation/{split}.txt").write_text(text)
    return root


# The authors' layout

AUTHORS_LABELS = {
    "exp1.5_num_01": [1, 0, 0],
    "000002": [0.01, 1, 0.1],  # "soft"
    "000003.jpg": [0, 0, 0],
    "000004t.png": [0, 0.9, 1],
    "000006": [0, 1, 0],
}


@pytest.fixture
def authors(tmp_path: Path) -> Path:
    root = tmp_path / "MTD_VOC"
    for name in ("exp1.5_num_01", "000002", "000003", "000004t", "000006"):
        write_image(root / f"JPEGImages/{name}.jpg", np.full((7, 9, 3), 90, np.uint8))
        _write_grey(root / f"SALmapsALL/{name}.png", 200)
    mask = np.zeros((7, 9), np.uint8)
    mask[0, :3] = 2, 3, 255
    write_mask(root / "SegmentationMASK/000004t.png", mask)
    content = {name: np.array(label, np.float32) for name, label in AUTHORS_LABELS.items()}
    np.save(root / "cls_labels_soft.npy", content, allow_pickle=True)
    (root / "train.txt").write_text("000002\nexp1.5_num_01\r\n000003\n000006")
    (root / "test.txt").write_text("000004t")
    return root


# Pictures of the user: a folder per class, and a table


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    root = tmp_path / "parts"
    for i in range(4):
        _write_picture(root / f"Scratch/{i}.jpg")
        _write_picture(root / f"dent/{i}.bmp")
    for name in ("0.tif", "1.png", "2.PNG"):
        _write_picture(root / f"OK/{name}", (11, 6))
    return root


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    for name in ("a/1.png", "a/2.png", "b/1.png", "b/2.jpg"):
        _write_picture(tmp_path / "own" / name)
    mask = np.zeros((7, 9), np.uint8)
    mask[0, :3] = 2, 1, 255
    write_mask(tmp_path / "own/a/1_mask.png", mask)
    return tmp_path / "own"


@pytest.fixture
def own_table() -> str:
    """Give a CSV table of `pictures`; its masks hold class indices (data.mask_level=0)."""
    return (
        "image,classes,mask,split\n"
        "a/1.png,dent|scratch,a/1_mask.png,train\n"
        "a/2.png, scratch ,,train\n"
        "b/1.png,,,test\n"
    )


@pytest.fixture(scope="session")
def browser():
    """Return Chromium, driven by playwright; docs/contributing.md says how to install it."""
    pip = "playwright is not installed: pip install -r requirements-dev.txt"
    playwright = pytest.importorskip("playwright.sync_api", reason=pip)
    programs = map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))
    path = os.environ.get("CHROMIUM") or next(filter(None, programs), None)
    if path is None:
        pytest.skip("no Chromium here: apt-get install chromium, or set CHROMIUM=PATH")
    with playwright.sync_playwright() as started:
        # Root may not use the sandbox of Chromium, and tests in containers are root's.
        browser = started.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()

"""data.annotations: masks of COCO files, Label Studio's export and folders of LabelMe files."""

import json
from pathlib import Path

import numpy as np
import pytest

from configs import DataConfig
from datasets import inspect
from datasets.annotations import PathEnds
from datasets.files import read_truth, write_image
from datasets.sources import Data, annotated_in, read_data

SIZE = (10, 20)
IMAGES = ("crack/1.png", "crack/2.png", "crack/3.png", "dent/1.png", "dent/4.png", "good/5.png")
TRIANGLE = {"label": "dent", "points": [[0, 0], [4, 0], [4, 3], [0, 3]], "shape_type": "polygon"}


@pytest.fixture
def root(tmp_path) -> Path:
    rng = np.random.default_rng(0)
    for name in IMAGES:
        pixels = rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8)
        write_image(tmp_path / "parts" / name, pixels)
    return tmp_path / "parts"


def read(root: Path, annotations: Path) -> tuple[Data, DataConfig]:
    settings = DataConfig(
        source="folder", root=str(root), test_share=0.0, annotations=str(annotations)
    )
    return read_data(settings, root.parent / "run/labels.csv"), settings


def labelme(path: Path, image: str, **more: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # As LabelMe writes it: a field `mask` of null, and more that does not matter here.
    shapes = [TRIANGLE | {"group_id": None, "description": "", "flags": {}, "mask": None}]
    content = {"version": "5.5.0", "flags": {}, "shapes": shapes, "imagePath": image}
    content |= {"imageData": None, "imageHeight": SIZE[0], "imageWidth": SIZE[1]}
    path.write_text(json.dumps(content | more))


def label_studio(path: Path, *images: str) -> Path:
    value = {"x": 0, "y": 0, "width": 20, "height": 30, "rotation": 0, "rectanglelabels": ["dent"]}
    one = {"type": "rectanglelabels", "original_height": SIZE[0], "original_width": SIZE[1]}
    result = [one | {"value": value}]
    tasks = [{"data": {"image": i}, "annotations": [{"result": result}]} for i in images]
    path.write_text(json.dumps(tasks))
    return path


def coco(path: Path, *images: str) -> Path:
    listed = [
        {"id": i, "file_name": f, "height": SIZE[0], "width": SIZE[1]} for i, f in enumerate(images)
    ]
    # As CVAT exports a painted mask: crowd, run lengths as numbers; 3 of each of 4 columns.
    counts = [0, 3, 7, 3, 7, 3, 7, 3, 167]
    packed = {"size": list(SIZE), "counts": counts}
    areas = [packed, [[0.0, 0.0, 4.0, 0.0, 4.0, 3.0, 0.0, 3.0]]]
    annotations = [
        {
            "id": i + 7,
            "image_id": i,
            "category_id": 9,
            "segmentation": areas[i % 2],
            "area": 12.0,
            "bbox": [0, 0, 4, 3],
            "iscrowd": 1 - i % 2,
            "attributes": {"occluded": False},
        }
        for i in range(len(images))
    ]
    categories = [{"id": 9, "name": "dent"}, {"id": 2, "name": "unused"}]
    content = {"licenses": [], "info": {}, "categories": categories}
    path.write_text(json.dumps(content | {"images": listed, "annotations": annotations}))
    return path


@pytest.mark.parametrize("tool", ["CVAT", "Label Studio", "LabelMe"])
def test_corrected_masks_come_back(root, tool):
    chosen = ("dent/1.png", "dent/4.png", "good/5.png")
    path = root.parent / "back"
    match tool:
        case "CVAT":
            coco(path, *chosen, "elsewhere/1.png")
        case "Label Studio":
            urls = [f"/data/local-files/?d=parts/{name}" for name in chosen]
            label_studio(path, *urls, "/data/local-files/?d=elsewhere/1.png")
        case "LabelMe":
            for name in chosen:
                labelme(path / name.replace(".png", ".json"), f"../../parts/{name}")
            labelme(path / "one.json", r"..\elsewhere\1.png")
    data, settings = read(root, path)
    expected = np.zeros(SIZE, np.uint8)
    expected[:3, :4] = 2
    masked = {r.name: r for r in annotated_in(data, settings)["train"]}
    assert sorted(masked) == ["dent_1", "dent_4", "good_5"]
    for record in masked.values():
        np.testing.assert_array_equal(read_truth(record, 2), expected)
    others = [r for r in data.split("train") if r.name not in masked]
    assert [record.mask for record in others] == [None] * 3


def test_inspect_counts_and_names_them_as_masks(root, capsys):
    path = label_studio(root.parent / "back.json", "parts/dent/1.png", "parts/crack/2.png")
    config = root.parent / "c.toml"
    config.write_text(f'[data]\nsource = "folder"\nroot = "{root}"\ntest_share = 0.0\n')
    call = ["--config", str(config), "--out", str(root.parent / "run")]
    inspect.main([*call, "--set", f"data.annotations={path}", "data.eval_split=val"])
    printed = capsys.readouterr().out
    expected = f"masks from {path}: 2 images (train 2, fit "
    assert expected in printed and "they are masks, not labels" in printed
    assert "mask content without label: 1" in printed
    assert f"{path}, crack_2: dent" in printed  # an image of cracks


def test_without_annotations_no_mask_is_one_of_them(root):
    settings = DataConfig(source="folder", root=str(root), test_share=0.0)
    labelme(root / "dent/1.json", "1.png")
    data = read_data(settings, root.parent / "run/labels.csv")
    assert annotated_in(data, settings) == {}


def test_a_path_that_two_images_end_with_is_refused(root):
    path = coco(root.parent / "back.json", "1.png")
    message = r"back\.json: .* apart, got '1\.png' for .*1\.png and .*1\.png\. Give it with its fo"
    with pytest.raises(ValueError, match=message):
        read(root, path)


def test_what_is_no_annotation_is_one_line(root):
    back = root.parent / "back"
    back.mkdir()
    with pytest.raises(FileNotFoundError, match=r"back: expected LabelMe files \(\.json\), found"):
        read(root, back)
    coco(back / "coco.json", "dent/1.png")
    with pytest.raises(ValueError, match=r"coco\.json: expected a LabelMe file with an imagePath"):
        read(root, back)
    labelme(back / "coco.json", "../elsewhere.png")
    with pytest.raises(ValueError, match=r"file names of the images, .* 1 images \(LabelMe\)"):
        read(root, back)
    tasks = root.parent / "tasks.json"
    tasks.write_text(json.dumps([{"data": {"image": "dent/1.png"}, "predictions": []}]))
    with pytest.raises(ValueError, match=r"tasks\.json: expected Label Studio's export of type JS"):
        read(root, tasks)


def test_the_longest_end_of_a_path_counts(tmp_path):
    ends = PathEnds(["1.png", "dent/1.png", r".\crack\2.png", "../../parts/3.png", "/x/4.png", ""])
    parts = tmp_path / "parts"
    assert ends.number_of(parts / "dent/1.png") == 1
    assert ends.number_of(parts / "crack/1.png") == 0
    assert ends.number_of(parts / "crack/2.png") == 2
    assert ends.number_of(parts / "dent/2.png") is None
    assert ends.number_of(parts / "3.png") == 3
    assert ends.number_of(Path("/x/4.png")) == 4
    assert ends.number_of(parts / "5.png") is None


def test_links_do_not_matter(tmp_path):
    write_image(tmp_path / "real/1.png", np.zeros((4, 4), np.uint8))
    (tmp_path / "linked").symlink_to(tmp_path / "real")
    assert PathEnds(["real/1.png"]).number_of(tmp_path / "linked/1.png") == 0
    assert PathEnds(["linked/1.png"]).number_of(tmp_path / "linked/1.png") == 0

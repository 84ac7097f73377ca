"""make_pseudo_labels.py --masks: corrected masks of fit become training masks, and are named."""

import json

import numpy as np
import pytest


def corrected(cam_run, *names: str) -> str:
    """Write a LabelMe file for each image: class 0 in the two columns at the left."""
    height, width = cam_run.size
    corners = [[0, 0], [2, 0], [2, height], [0, height]]
    shape = {"label": "inclusion", "points": corners, "shape_type": "polygon"}
    folder = cam_run.root / "back"
    folder.mkdir()
    for name in names:
        image = f"../{cam_run.image_path(name).relative_to(cam_run.root)}"
        content = {"shapes": [shape], "imagePath": image}
        content |= {"imageHeight": height, "imageWidth": width}
        (folder / f"{name}.json").write_text(json.dumps(content))
    return f"data.annotations={folder}"


def test_masks_of_fit_take_the_place_of_pseudo_labels(cam_run, capsys):
    given = corrected(cam_run, "b", "c", "1t")
    expected = np.zeros(cam_run.size, np.uint8)
    expected[:, :2] = 1

    cam_run.make_fixed(0.5, given)
    assert cam_run.meta()["masked"] == []  # not without being asked
    assert not cam_run.mask("c").any()
    without = {name: cam_run.mask(name) for name in cam_run.labels}
    capsys.readouterr()

    cam_run.make_fixed(0.5, given, flags=("--masks",))
    assert cam_run.meta()["masked"] == ["b", "c"]
    assert "made with the masks of 2 of 4 images of fit: no longer image labels alone" in (
        capsys.readouterr().out
    )
    for name in cam_run.labels:
        wanted = expected if name in "bc" else without[name]  # 1t is of test, which is scored
        np.testing.assert_array_equal(cam_run.mask(name), wanted, name)

    cam_run.make_fixed(0.5, given)
    assert cam_run.meta()["masked"] == []
    np.testing.assert_array_equal(cam_run.mask("b"), without["b"])


def test_masks_that_are_not_there_are_missed(cam_run):
    with pytest.raises(ValueError, match=r"--masks: expected masks of images of fit in data\.ann"):
        cam_run.make_fixed(0.5, flags=("--masks",))
    with pytest.raises(ValueError, match=r"--masks: expected masks of images of fit"):
        cam_run.make_fixed(0.5, corrected(cam_run, "1t"), flags=("--masks",))

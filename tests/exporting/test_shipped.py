"""What the exported script computes is what PyTorch and OpenCV compute, on odd sizes too."""

import math

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from datasets.files import list_images, read_image, voc_palette, write_mask
from datasets.transforms import as_image, eval_transform
from exporting.compared import shipped
from inference.segment import Segmenter, shifted
from models import pamr, tiles
from scoring.calibration import Calibration
from segmentation.specks import without_specks

shipped()  # puts its folder on the path
import stac_arrays as arrays  # noqa: E402
import stac_files as files  # noqa: E402

SIZES = ((1, 1), (1, 9), (7, 1), (13, 22), (30, 17))


def blobs(rng, size, num_values):
    """Return values in smooth regions, with some single pixels."""
    noise = cv2.blur(rng.random(size).astype(np.float32), (3, 3))
    smooth = (noise > np.median(noise)) * rng.integers(1, num_values, size)
    return np.where(rng.random(size) < 0.1, rng.integers(0, num_values, size), smooth).astype("u1")


@pytest.mark.parametrize("size", [(33, 40), (200, 150), (64, 96), (31, 300), (90, 96), (1, 1)])
def test_the_network_sees_the_same_levels(size):
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    mean, std = [0.4, 0.5, 0.6], [0.2, 0.3, 0.4]
    wanted = eval_transform((64, 96), mean, std)(as_image(pixels)).numpy()
    got = arrays.network_input(pixels, [64, 96], mean, std)
    assert (got.shape, got.dtype) == ((1, 3, 64, 96), np.float32)
    levels = np.abs(got[0] - wanted) * np.float32(std)[:, None, None] * 255
    if torch.backends.cpu.get_cpu_capability().startswith("AVX"):
        assert levels.max() < 0.01
    else:  # PyTorch resizes floats, and rounds them then
        assert levels.max() < 1.01


def test_shrinking_averages_and_widening_interpolates():
    step = np.zeros((2, 4, 3), np.uint8)
    step[:, 2:] = 200
    # Half the width: centres 1 and 3, reach 2; distances 0.5, 0.5, 1.5 give the weights 3, 3, 1.
    shrunk = arrays.resized_levels(step, [2, 2])
    assert shrunk[0, :, 0].tolist() == [round(200 / 7), round(200 * 6 / 7)]
    # Twice the width: centres 0.25, 0.75, ...; a quarter of the neighbour.
    assert arrays.resized_levels(step, [2, 8])[1, :, 2].tolist() == [
        0,
        0,
        0,
        50,
        150,
        200,
        200,
        200,
    ]
    assert (arrays.resized_levels(step, [2, 4]) == step).all()


@pytest.mark.parametrize("size", [(8, 12), (40, 50), (5, 7), (16, 11), (1, 1)])
def test_maps_are_resized_as_pytorch_does(size):
    maps = np.random.default_rng(0).normal(size=(3, 8, 12)).astype(np.float32)
    wanted = F.interpolate(torch.from_numpy(maps)[None], size, mode="bilinear")[0]
    np.testing.assert_allclose(arrays.resized_maps(maps, size), wanted.numpy(), atol=1e-5)


@pytest.mark.parametrize("size", [(100, 70), (33, 32), (20, 300), (31, 31)])
@pytest.mark.parametrize("side", [0, 32])
def test_tiles_are_those_of_the_project(size, side):
    wanted = tiles.tiles_of(size, side, 0.25)
    got = arrays.tiles_of(size, side, 0.25)
    assert [(t.rows, t.columns) for t in got] == [(t.rows, t.columns) for t in wanted]
    for one, other in zip(got, wanted, strict=True):
        weights = other.row_weights[:, None] * other.column_weights
        np.testing.assert_array_equal(one.weights, weights.numpy())


def test_refinement_is_pamr_in_blocks_too(monkeypatch):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (37, 53, 3), np.uint8)
    pixels[:9, :9] = 80  # flat
    maps = rng.random((3, 37, 53)).astype(np.float32)
    image = torch.from_numpy(pixels).permute(2, 0, 1).float()
    wanted = pamr.pamr(image, torch.from_numpy(maps), 3).numpy()
    settings = {"steps": 3, "dilations": pamr.DILATIONS, "sharpness": pamr.SHARPNESS}
    np.testing.assert_allclose(arrays.refined(pixels, maps, settings), wanted, atol=1e-5)
    monkeypatch.setattr(arrays, "BLOCK", 20)
    np.testing.assert_allclose(arrays.refined(pixels, maps, settings), wanted, atol=1e-5)
    np.testing.assert_array_equal(arrays.refined(pixels, maps, settings | {"steps": 0}), maps)


@pytest.mark.parametrize("size", SIZES)
def test_regions_boxes_and_outlines_are_those_of_opencv(size):
    rng = np.random.default_rng(0)
    for _ in range(20):
        inside = blobs(rng, size, 2) > 0
        found = arrays.regions_of(inside)
        _, numbers, stats, _ = cv2.connectedComponentsWithStats(inside.astype("u1"), connectivity=8)
        listed = [(*box, area) for box, area in zip(found.boxes, found.areas, strict=True)]
        assert sorted(listed) == sorted(map(tuple, stats[1:]))
        pairs = set(zip(numbers.ravel().tolist(), found.numbers.ravel().tolist(), strict=True))
        assert len(pairs) == len(set(numbers.ravel())) == len(set(found.numbers.ravel()))
        for region in range(len(found.areas)):
            box, pixels = found.inside(region)
            assert pixels.sum() == found.areas[region] == (found.numbers[box] == region + 1).sum()
            (contour,), _ = cv2.findContours(
                pixels.astype("u1"), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE
            )
            assert arrays.outline(pixels) == contour[:, 0].tolist()


def test_a_snake_and_a_comb_are_one_region_each():
    snake = np.zeros((9, 6), bool)
    snake[::2] = True
    snake[1::4, -1] = snake[3::4, 0] = True
    comb = np.zeros((5, 9), bool)  # teeth that meet in the last row
    comb[:, ::2] = comb[-1] = True
    assert arrays.regions_of(snake).areas.tolist() == [30 + 4]
    assert arrays.regions_of(comb).areas.tolist() == [5 * 5 + 4]
    assert arrays.regions_of(~comb).areas.tolist() == [4] * 4
    assert arrays.regions_of(np.zeros((3, 4), bool)).areas.tolist() == []


@pytest.mark.parametrize("size", SIZES)
def test_specks_become_what_they_become_in_predictions(size):
    rng = np.random.default_rng(0)
    changed = 0
    for _ in range(20):
        mask = blobs(rng, size, 4)
        for least in ([], [0.02, 0.1, 0.0], [1 / mask.size, 3 / mask.size, 2.5 / mask.size]):
            wanted = without_specks(mask, least)
            np.testing.assert_array_equal(arrays.without_specks(mask, least), wanted)
            changed += (wanted != mask).sum()
    assert changed > 0 or mask.size == 1


def test_scores_are_those_of_the_segmenter():
    logits = torch.randn(4, 13, 9, generator=torch.Generator().manual_seed(0))
    segmenter = Segmenter.__new__(Segmenter)
    for least in ([], [0.0, 0.03, 0.5]):
        segmenter.least_areas = least
        shares = arrays.softmax(logits.numpy())
        got = arrays.surest(shares[1:], least)
        np.testing.assert_allclose(got, segmenter.scores(logits), atol=1e-6)
        counts = [max(1, math.ceil(area * 117)) for area in least or [0.0] * 3]
        for k, count in enumerate(counts):
            assert (shares[k + 1] >= got[k]).sum() == count


def test_thresholds_and_probabilities_are_those_of_the_project():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(4, 6, 5)).astype(np.float32)
    for thresholds in ([0.5] * 3, [0.3, 0.5, 0.9], [0.0, 1.0, 0.5]):
        wanted = shifted(torch.from_numpy(logits), thresholds).numpy()
        got = arrays.shifted(logits, thresholds)
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, wanted, rtol=1e-6)
    scores, calibration = np.array([0.0, 0.4, 1.0]), Calibration(1.7, (0.2, -1.0, 3.0))
    wanted = calibration.probabilities(scores)
    assert arrays.probabilities(scores, **calibration._asdict()) == pytest.approx(wanted)


@pytest.mark.parametrize("name", ["grey.png", "deep.png", "turned.jpg", "clear.webp", "few.bmp"])
def test_pictures_of_every_kind_are_read_alike(tmp_path, name):
    pixels = np.random.default_rng(0).integers(0, 256, (9, 14, 3), np.uint8)
    picture = Image.fromarray(pixels)
    exif = Image.Exif()
    if name == "grey.png":
        picture = picture.convert("L")
    elif name == "deep.png":
        picture = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257 + 100)
    elif name == "turned.jpg":
        exif[0x0112] = 6
    elif name == "clear.webp":
        picture.putalpha(40)
    else:
        picture = picture.quantize(9)
    picture.save(tmp_path / name, exif=exif.tobytes())
    got = files.read_image(tmp_path / name)
    assert (got.dtype, got.shape[2]) == (np.uint8, 3)
    np.testing.assert_array_equal(got, read_image(tmp_path / name))


def test_masks_are_the_same_files(tmp_path):
    mask = np.arange(6, dtype=np.uint8).reshape(2, 3)
    write_mask(tmp_path / "wanted.png", mask)
    files.write(tmp_path / "deep/got.png", files.png_of(mask))
    with Image.open(tmp_path / "deep/got.png") as got:
        np.testing.assert_array_equal(np.array(got), mask)
        colours = np.array(got.getpalette()).reshape(-1, 3)
    np.testing.assert_array_equal(colours[:6], voc_palette()[:6])
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["got.png"]


def test_what_is_no_picture_is_a_clear_error(tmp_path):
    (tmp_path / "a.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"a\.png: expected PNG, JPEG, .* Replace or remove"):
        files.read_image(tmp_path / "a.png")
    with pytest.raises(FileNotFoundError, match=r"b\.png: expected an image, found none"):
        files.read_image(tmp_path / "b.png")
    with pytest.raises(
        ValueError, match=r"expected \(H, W, 3\) uint8 RGB .* got \(4, 5, 4\) uint8"
    ):
        files.checked(np.zeros((4, 5, 4), np.uint8))
    with pytest.raises(FileNotFoundError, match="none: expected pictures, found none"):
        list(files.list_images([str(tmp_path / "none")], tmp_path / "to"))
    for folder in ("x", "y", "to/masks"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "a.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"expected another name than .*a\.png, both would be a"):
        list(files.list_images([str(tmp_path / "x"), str(tmp_path / "y")], tmp_path / "to"))
    found = dict(files.list_images([str(tmp_path)], tmp_path / "to"))
    assert list(found) == ["a", "x_a", "y_a"]


def test_pictures_of_patterns_are_named_below_what_stands_before_the_wildcard(
    tmp_path, monkeypatch
):
    for name in ("x/1/a.png", "x/2/a.png", "x/b.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    monkeypatch.chdir(tmp_path / "x")
    for pattern, expected in (
        (f"{tmp_path}/x/*/a.png", ["1/a.png", "2/a.png"]),
        (f"{tmp_path}/x/**/[ab].png", ["1/a.png", "2/a.png", "b.png"]),
        ("../x/?/*", ["1/a.png", "2/a.png"]),
        ("*.png", ["b.png"]),
        ("2/*.png", ["a.png"]),
        ("b.png", ["b.png"]),
    ):
        below = [relative.as_posix() for _, relative in list_images(pattern)]
        assert below == expected, pattern
        names = [name for name, _ in files.list_images([pattern], tmp_path / "to")]
        assert names == [path.removesuffix(".png").replace("/", "_") for path in below]

import cv2
import numpy as np
import pytest

from saliency import contrast
from saliency.contrast import (
    FULL_SHARE,
    MIN_IMAGES,
    WINDOWS,
    Look,
    Residual,
    choose_windows,
    contrast_map,
    keep_sides,
    learn_polarities,
    one_sidedness,
    residual,
    skewness,
)

DARK, BRIGHT, BOTH = (Look(side, WINDOWS) for side in ("dark", "bright", "both"))
SIZES = [(97, 131), (131, 97), (200, 200), (33, 250), (17, 16)]


def surface(height: int, width: int, level: int = 128, seed: int = 0) -> np.ndarray:
    """Grey (H, W, 3) uint8 with mild noise."""
    noise = np.random.default_rng(seed).normal(0, 2, (height, width, 1))
    return np.repeat(np.clip(level + noise, 0, 255).astype(np.uint8), 3, axis=2)


def with_blob(level: int, height: int = 97, width: int = 131, seed: int = 0):
    """Return a surface of level 128 with a round blob of another level, and the blob's mask."""
    image = surface(height, width, seed=seed)
    rows, columns = np.mgrid[:height, :width]
    centre = (0.4 * height, 0.7 * width)
    blob = np.hypot(rows - centre[0], columns - centre[1]) < 0.12 * min(height, width)
    image[blob] = level
    return image, blob


def inside_and_outside(saliency: np.ndarray, mask: np.ndarray) -> tuple[float, float]:
    """Median inside the mask, and the 99th percentile a few pixels away from it."""
    around = cv2.dilate(mask.astype(np.uint8), np.ones((7, 7), np.uint8)) > 0
    return float(np.median(saliency[mask])), float(np.percentile(saliency[~around], 99))


@pytest.mark.parametrize(("level", "side"), [(60, "dark"), (200, "bright"), (60, "both")])
def test_blob_lights_up_inside_and_not_outside(level, side):
    image, blob = with_blob(level)
    inside, outside = inside_and_outside(contrast_map(image, [Look(side, WINDOWS)]), blob)
    assert inside > 0.9
    assert outside < 0.2


def test_bright_line_lights_up_under_uneven_light():
    height, width = 120, 161
    light = np.linspace(60, 140, width)[None, :, None]
    image = (surface(height, width, 0) + light).astype(np.uint8)
    line = np.zeros((height, width), bool)
    line[50:54] = True
    image[line] += 60
    inside, outside = inside_and_outside(contrast_map(image, [BRIGHT]), line)
    assert inside > 0.9
    assert outside < 0.3


def test_the_other_side_stays_dark():
    image, blob = with_blob(60)
    image[5:15, 5:15] = 220
    dark = contrast_map(image, [DARK])
    bright = contrast_map(image, [BRIGHT])
    assert dark[7:13, 7:13].max() < 0.1 < 0.9 < dark[blob].mean()
    assert bright[blob].mean() < 0.1 < 0.9 < bright[7:13, 7:13].min()


def test_image_of_a_dark_and_a_bright_class_keeps_both_sides():
    image, _ = with_blob(60)
    image[5:15, 5:15] = 220
    two_classes = contrast_map(image, [DARK, BRIGHT])
    np.testing.assert_array_equal(two_classes, contrast_map(image, [BOTH]))


@pytest.mark.parametrize("size", SIZES)
def test_map_has_the_size_type_and_range_of_its_contract(size):
    saliency = contrast_map(with_blob(60, *size)[0], [BOTH])
    assert saliency.shape == size
    assert saliency.dtype == np.float32
    assert saliency.min() >= 0
    assert saliency.max() == 1


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("axis", [0, 1])
def test_mirrored_image_gives_the_mirrored_map(size, axis):
    image, _ = with_blob(60, *size)
    mirrored = contrast_map(np.flip(image, axis).copy(), [DARK])
    direct = np.flip(contrast_map(image, [DARK]), axis)
    # The 8-bit steps of the median may round the other way at a tie: 1/255 of the range.
    np.testing.assert_allclose(mirrored, direct, atol=0.02)


def test_image_of_twice_the_size_gives_about_the_same_map():
    image, blob = with_blob(60)
    small = contrast_map(image, [DARK])
    doubled = cv2.resize(image, None, fx=2, fy=2, interpolation=cv2.INTER_LINEAR)
    large = contrast_map(doubled, [DARK])
    back = cv2.resize(large, (131, 97), interpolation=cv2.INTER_AREA)
    assert np.abs(back - small).mean() < 0.03
    assert ((back > 0.5) & (small > 0.5)).sum() > 0.9 * ((back > 0.5) | (small > 0.5)).sum()
    assert ((small > 0.5) & blob).sum() > 0.8 * ((small > 0.5) | blob).sum()


def test_defect_free_image_has_an_all_zero_map():
    saliency = contrast_map(with_blob(60)[0], [])
    assert saliency.shape == (97, 131)
    assert not saliency.any()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("colour", [(0, 0, 0), (93, 93, 93), (255, 255, 255), (200, 30, 90)])
def test_constant_image_has_an_all_zero_map(size, colour):
    image = np.full((*size, 3), colour, np.uint8)
    saliency = contrast_map(image, [BOTH])
    assert np.isfinite(saliency).all()
    assert not np.round(saliency * 255).any()


def test_invisible_noise_is_not_stretched_to_full_range():
    noise = np.random.default_rng(0).integers(0, 2, (97, 131, 1))  # one grey level, 0.4 Lab units
    image = np.repeat((128 + noise).astype(np.uint8), 3, axis=2)
    assert contrast_map(image, [BOTH]).max() < 0.5


def test_colour_defect_without_lightness_difference_lights_up():
    height, width = 97, 131
    lab = np.zeros((height, width, 3), np.float32)
    lab[..., 0] = 60
    lab[30:50, 70:95, 1] = 30  # reddish, equally light
    image = np.round(cv2.cvtColor(lab, cv2.COLOR_Lab2RGB) * 255).astype(np.uint8)
    stain = np.zeros((height, width), bool)
    stain[30:50, 70:95] = True
    for side in ("dark", "bright", "both"):
        inside, outside = inside_and_outside(contrast_map(image, [Look(side, WINDOWS)]), stain)
        assert inside > 0.9
        assert outside < 0.1


def test_kept_sides_match_a_hand_calculation():
    parts = Residual(np.array([[-3.0, 4.0, 0.0]]), np.array([[4.0, 3.0, 2.0]]))
    # dark: sqrt(3^2 + 4^2), sqrt(0 + 3^2), 2; bright: 4, sqrt(4^2 + 3^2), 2
    np.testing.assert_allclose(keep_sides(parts, ["dark"]), [[5, 3, 2]])
    np.testing.assert_allclose(keep_sides(parts, ["bright"]), [[4, 5, 2]])
    np.testing.assert_allclose(keep_sides(parts, ["both"]), [[5, 5, 2]])


def test_residual_matches_a_loop_reference(monkeypatch):
    monkeypatch.setattr(contrast, "BLUR", 1e-6)  # of the shorter side: nothing
    height, width, window = 21, 27, 9  # small enough that medians are taken at full size
    image = np.random.default_rng(3).integers(60, 200, (height, width, 1))
    image = np.repeat(image.astype(np.uint8), 3, axis=2)
    # CIE lightness of a grey level: linear light by sRGB, then the cube root.
    grey = image[..., 0] / 255.0
    lightness = 116 * np.cbrt(((grey + 0.055) / 1.055) ** 2.4) - 16
    padded = np.pad(lightness, window // 2, mode="edge")
    expected = np.zeros((height, width))
    for row in range(height):
        for column in range(width):
            square = padded[row : row + window, column : column + window]
            expected[row, column] = lightness[row, column] - np.median(square)
    parts = residual(image, (window / height,))
    # Of a range of 54 units: OpenCV's table is off by up to 0.2 in the image and in the median,
    # and half a step of the median is 0.1.
    np.testing.assert_allclose(parts.lightness, expected, rtol=0, atol=0.5)
    assert not parts.chroma.any()


def test_percentile_share_becomes_one(monkeypatch):
    monkeypatch.setattr(contrast, "PERCENTILE", 100)
    image, _ = with_blob(60)
    kept = keep_sides(residual(image, (1.0,)), ["dark"])
    saliency = contrast_map(image, [Look("dark", (1.0,))])
    np.testing.assert_allclose(
        saliency, np.clip(kept / (FULL_SHARE * kept.max()), 0, 1), rtol=1e-5, atol=1e-6
    )


def test_skewness_matches_a_hand_calculation():
    # 0, 0, 0, 4: mean 1, variance 3, third moment (3 * -1 + 27) / 4 = 6, 6 / 3^1.5 = 1.1547
    values = np.array([[0.0, 0.0], [0.0, 4.0]])
    assert skewness(Residual(values, values)) == pytest.approx(6 / 3**1.5)
    assert skewness(Residual(-values, values)) == pytest.approx(-6 / 3**1.5)
    assert skewness(Residual(np.full((3, 4), 0.1), values)) == 0


def test_polarity_is_learnt_from_labelled_images():
    images = [with_blob(60, seed=seed)[0] for seed in range(8)]
    images += [with_blob(200, seed=seed)[0] for seed in range(8)]
    images += [surface(97, 131, seed=seed) for seed in range(8)]
    labels = [(0,)] * 8 + [(1,)] * 8 + [()] * 8
    values = [skewness(residual(image, (0.5, 1.0))) for image in images]
    polarities = learn_polarities(values, labels, num_classes=3)
    assert [p.side for p in polarities] == ["dark", "bright", "both"]
    assert [p.num_images for p in polarities] == [8, 8, 0]


def test_polarity_ignores_images_of_two_classes():
    values = [-1.0, -1.1, -0.9, -1.0, -1.0] + [9.0] * 20
    labels = [(0,)] * 5 + [(0, 1)] * 20
    assert [p.side for p in learn_polarities(values, labels, 2)] == ["dark", "both"]


def test_polarity_of_too_few_images_is_both():
    values = [-2.0] * (MIN_IMAGES - 1)
    assert learn_polarities(values, [(0,)] * len(values), 1)[0].side == "both"
    assert learn_polarities([*values, -2.0], [(0,)] * MIN_IMAGES, 1)[0].side == "dark"


def test_polarity_of_scattered_skewness_is_both():
    # median 0.1; deviations .6 .3 0 .3 .6: median .3, spread .44478; needed 2.5/sqrt(5) of it
    values = [-0.5, -0.2, 0.1, 0.4, 0.7]
    polarity = learn_polarities(values, [(0,)] * 5, 1)[0]
    assert polarity.side == "both"
    assert polarity.shift == pytest.approx(0.1)
    assert polarity.spread == pytest.approx(0.44478)
    # 0.497 is needed: 0.49 short of it, 0.51 above
    assert learn_polarities([v + 0.39 for v in values], [(0,)] * 5, 1)[0].side == "both"
    assert learn_polarities([v + 0.41 for v in values], [(0,)] * 5, 1)[0].side == "bright"


def test_skewness_of_the_bare_surface_is_no_evidence():
    defective, free = np.linspace(0.7, 1.3, 31), np.linspace(0.6, 1.2, 31)
    labels = [(0,)] * 31 + [()] * 31
    assert learn_polarities([*defective, *free], labels, 1)[0].side == "both"
    assert learn_polarities(defective, labels[:31], 1)[0].side == "bright"
    darker = learn_polarities([*(defective - 0.5), *free], labels, 1)[0]
    assert darker.side == "dark"
    assert darker.shift == pytest.approx(0.5 - 0.9)


def test_few_defect_free_images_weigh_less():
    # Median 0.3 below that of the defect-free images, spreads 1.4826 * 0.2 = 0.297 (41 images,
    # -1.1 to -0.3) and 0. Needed with 40 defect-free ones: 2 * 1.25 * sqrt(1/41 + 1/40) = 0.556
    # spreads = 0.165; with 5: 2 * 1.25 * sqrt(1/41 + 1/5) = 1.18 spreads = 0.351.
    defective = list(np.linspace(-1.1, -0.3, 41))
    sides = [
        learn_polarities(defective + [-0.4] * n, [(0,)] * 41 + [()] * n, 1)[0].side for n in (40, 5)
    ]
    assert sides == ["dark", "both"]


def test_one_sidedness_by_hand():
    # 3^3 bright against 1 + 2^3 dark: (27 - 9) / 36
    lightness = np.array([[3.0, -1.0, -2.0]], np.float32)
    parts = Residual(lightness, np.zeros_like(lightness))
    assert one_sidedness(parts) == pytest.approx(0.5)
    assert one_sidedness(Residual(-lightness, lightness)) == pytest.approx(-0.5)
    assert one_sidedness(Residual(0 * lightness, lightness)) == 0


def test_windows_of_the_most_reliable_one_sidedness_are_chosen():
    # medians .6, .8, .5; spreads 1.4826 * .1, .1, .04: certainty 4.05, 5.40, 8.43
    values = np.array([[0.5, 0.7, 0.46], [0.6, 0.8, 0.5], [0.7, 0.9, 0.54]])
    assert choose_windows((0.2, 0.5, 1.0), values, "bright") == (1.0,)
    assert choose_windows((0.2, 0.5, 1.0), -values, "dark") == (1.0,)
    assert choose_windows((0.2, 0.5, 1.0), values, "dark") == ()  # it is seen on the other side
    values[:, 1] += 0.3  # certainty 7.4, more than 0.8 of the best
    assert choose_windows((0.2, 0.5, 1.0), values, "bright") == (0.5, 1.0)


def test_a_wide_defect_takes_wider_windows_than_a_narrow_one():
    def seen(width: float) -> np.ndarray:
        rows = []
        for seed in range(8):
            image = surface(120, 120, seed=seed).astype(float)
            image += np.linspace(-15, 15, 120)[:, None, None]  # uneven light
            image[:, 40 : 40 + round(width * 120)] -= 50
            image = image.clip(0, 255).astype(np.uint8)
            rows.append([one_sidedness(residual(image, (w,))) for w in candidates])
        return np.array(rows)

    candidates = (0.15, 0.5, 2.0)
    narrow = choose_windows(candidates, seen(0.03), "dark")
    wide = choose_windows(candidates, seen(0.35), "dark")
    assert min(wide) > min(narrow)
    assert 2.0 in wide

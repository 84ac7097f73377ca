"""Defects of training images that are faded, and given to other images."""

import pytest
import torch

from datasets.defects import LEAST_LEFT, augment_defects, defect_change

NORM = ((0.5, 0.4, 0.3), (0.25, 0.2, 0.5))
SURFACE, SPOT = 0.6, 0.3  # grey levels


def normalised(light):
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in NORM)
    return (light - mean) / std


def light_of(images):
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in NORM)
    return images * std + mean


def spots(places, size=(56, 70), surface=SURFACE, spot=SPOT):
    """Images of one grey with a square of 12 pixels each, and their saliency maps."""
    light = torch.full((len(places), 3, *size), surface)
    saliency = torch.zeros(len(places), 1, *size)
    for i, place in enumerate(places):
        if place is not None:
            y, x = place
            light[i, :, y : y + 12, x : x + 12] = spot
            saliency[i, :, y : y + 12, x : x + 12] = 1.0
    return light, saliency


def test_what_a_defect_changes_is_its_difference_to_the_surface():
    light, saliency = spots([(20, 30)])

    change, background = defect_change(light, saliency)

    assert background == pytest.approx(torch.full_like(background, SURFACE), abs=1e-4)
    inside = change[0, :, 24:28, 34:38]
    assert inside == pytest.approx(torch.full_like(inside, SPOT - SURFACE), abs=1e-3)
    assert change[0, :, :10].abs().max() == 0


def test_the_background_follows_uneven_light():
    light, saliency = spots([(20, 30)])
    slope = torch.linspace(0, 0.3, 70)

    _, background = defect_change(light + slope - 0.15, saliency)

    # Of a straight slope the mean of both sides is the slope itself.
    middle = background[0, 0, 26, 36].item()
    assert middle == pytest.approx(SURFACE + slope[36].item() - 0.15, abs=0.03)


def test_an_image_full_of_defects_keeps_its_mean():
    light = torch.full((1, 3, 40, 48), 0.2)

    change, background = defect_change(light, torch.ones(1, 1, 40, 48))

    assert background == pytest.approx(torch.full_like(background, 0.2), abs=1e-5)
    assert change.abs().max() < 1e-5


def test_faded_defects_keep_their_side_and_some_contrast():
    torch.manual_seed(0)
    light, saliency = spots([(20, 30)] * 16)
    labels = torch.tensor([[1.0, 0.0]] * 16)  # no donor shows another class

    images, maps, joined = augment_defects(normalised(light), saliency, labels, 1.0, NORM)

    contrast = SURFACE - light_of(images)[:, 0, 26, 36]
    full = SURFACE - SPOT
    assert (contrast >= LEAST_LEFT * full - 1e-3).all() and (contrast <= full + 1e-3).all()
    assert contrast.std() > 0.03  # each image by its own number
    assert torch.equal(maps, saliency) and torch.equal(joined, labels)


def test_grain_is_not_faded():
    torch.manual_seed(0)
    light, saliency = spots([(20, 30)] * 2)
    grain = 0.05 * (torch.arange(70) % 2 * 2 - 1.0)  # from pixel to pixel
    labels = torch.tensor([[1.0, 0.0]] * 2)

    images, *_ = augment_defects(normalised(light + grain), saliency, labels, 1.0, NORM)

    row = light_of(images)[0, 0, 26, 33:41]
    assert (row[1:] - row[:-1]).abs().mean() > 0.08  # 0.1 in the image


def test_an_image_is_given_the_defects_of_another_class():
    torch.manual_seed(0)
    dark, dark_map = spots([(8, 8)])
    bright, bright_map = spots([(36, 50)], surface=0.4, spot=0.8)  # twice its surface
    labels = torch.tensor([[1.0, 0.0], [0.0, 1.0]])

    images, maps, joined = augment_defects(
        normalised(torch.cat([dark, bright])), torch.cat([dark_map, bright_map]), labels, 1.0, NORM
    )

    assert torch.equal(joined, torch.ones(2, 2))
    assert torch.equal(maps[0], torch.maximum(dark_map, bright_map)[0])
    # The receiver has its own surface, 0.6: twice as bright is white.
    assert light_of(images)[0, 0, 42, 56].item() == pytest.approx(1.0, abs=1e-3)
    # And the other one, of 0.4: half as bright as that.
    assert light_of(images)[1, 0, 14, 14].item() == pytest.approx(0.2, abs=1e-2)


def test_a_defect_is_not_laid_over_another():
    torch.manual_seed(0)
    light, saliency = spots([(20, 30), (20, 30)])
    labels = torch.tensor([[1.0, 0.0], [0.0, 1.0]])

    _, maps, joined = augment_defects(normalised(light), saliency, labels, 1.0, NORM)

    assert torch.equal(joined, labels)
    assert torch.equal(maps, saliency)


def test_a_defect_free_image_becomes_defective():
    torch.manual_seed(0)
    light, saliency = spots([(20, 30), None])
    labels = torch.tensor([[1.0, 0.0], [0.0, 0.0]])

    images, maps, joined = augment_defects(normalised(light), saliency, labels, 1.0, NORM)

    assert joined.tolist() == [[1, 0], [1, 0]]
    assert maps[1].max() == 1
    assert light_of(images)[1, 0, 26, 36].item() == pytest.approx(SPOT, abs=0.01)


def test_an_image_of_two_classes_gives_nothing():
    torch.manual_seed(0)
    light, saliency = spots([(20, 30), None])
    labels = torch.tensor([[1.0, 1.0], [0.0, 0.0]])

    _, maps, joined = augment_defects(normalised(light), saliency, labels, 1.0, NORM)

    assert torch.equal(joined, labels) and maps[1].max() == 0


def test_without_probability_nothing_changes():
    light, saliency = spots([(20, 30), (8, 8)])
    labels = torch.eye(2)

    images, maps, joined = augment_defects(normalised(light), saliency, labels, 0.0, NORM)

    assert light_of(images) == pytest.approx(light, abs=1e-6)
    assert torch.equal(maps, saliency) and torch.equal(joined, labels)


def test_arguments_stay_as_they_are():
    torch.manual_seed(0)
    light, saliency = spots([(20, 30), (8, 8)])
    given = normalised(light), saliency, torch.eye(2)
    copies = [values.clone() for values in given]

    augment_defects(*given, 1.0, NORM)

    assert all(torch.equal(a, b) for a, b in zip(given, copies, strict=True))


def test_a_single_image_has_no_donor_but_itself():
    light, saliency = spots([(20, 30)])
    labels = torch.tensor([[1.0, 0.0]])

    _, maps, joined = augment_defects(normalised(light), saliency, labels, 1.0, NORM)

    assert torch.equal(joined, labels) and torch.equal(maps, saliency)

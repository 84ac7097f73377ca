"""Defects pasted onto other images of the batch."""

import torch

from segmentation.copy_paste import paste_defects

# Two images of 2 x 4 pixels: surface 1 with a defect of class 0 that is 0.5 darker, and surface 5
# with a defect of class 2 that is 2 brighter and overlaps the first one's place in one pixel.
MASKS = torch.tensor([[[1, 1, 0, 0], [0, 0, 0, 255]], [[0, 3, 3, 0], [0, 0, 0, 0]]])
GREY = torch.tensor([[[0.5, 0.5, 1, 1], [1, 1, 1, 9]], [[5, 7, 7, 5], [5, 5, 5, 5]]])
IMAGES = GREY[:, None].repeat(1, 3, 1, 1)


def test_defects_keep_their_contrast_and_cover_background_alone():
    images, masks = paste_defects(IMAGES, MASKS, 1.0)

    # The donor of each of two images is the other one.
    assert masks.tolist() == [[[1, 1, 3, 0], [0, 0, 0, 255]], [[1, 3, 3, 0], [0, 0, 0, 0]]]
    expected = [[[0.5, 0.5, 3, 1], [1, 1, 1, 9]], [[4.5, 7, 7, 5], [5, 5, 5, 5]]]
    for channel in range(3):
        torch.testing.assert_close(images[:, channel], torch.tensor(expected))


def test_a_defect_is_not_covered_by_another_one():
    full = torch.ones_like(MASKS)
    _, masks = paste_defects(IMAGES, torch.stack([full[0], MASKS[1]]), 1.0)

    assert masks[0].tolist() == full[0].tolist()
    # The second one's background is covered by the defect that fills the first.
    assert masks[1].tolist() == [[1, 3, 3, 1], [1, 1, 1, 1]]


def test_no_probability_no_paste_and_arguments_stay():
    before = IMAGES.clone(), MASKS.clone()
    for result, given in zip(paste_defects(IMAGES, MASKS, 0.0), before, strict=True):
        assert torch.equal(result, given)
    paste_defects(IMAGES, MASKS, 1.0)
    for now, given in zip((IMAGES, MASKS), before, strict=True):
        assert torch.equal(now, given)


def test_an_image_never_gives_to_itself_and_seeds_repeat():
    images = torch.zeros(6, 3, 1, 12)
    masks = torch.zeros(6, 1, 12, dtype=torch.int64)
    for k in range(6):
        masks[k, 0, 2 * k : 2 * k + 2] = k + 1  # no two at one place: all that is pasted arrives
    torch.manual_seed(3)
    first = paste_defects(images, masks, 1.0)
    assert all(len(mask.unique()) == 3 for mask in first[1])  # background, own and given defect
    torch.manual_seed(3)
    again = paste_defects(images, masks, 1.0)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_defect_free_images_receive_and_a_single_image_stays():
    images, masks = paste_defects(IMAGES, torch.stack([MASKS[0], torch.zeros_like(MASKS[0])]), 1.0)
    assert images.shape == IMAGES.shape
    assert masks[1].tolist() == [[1, 1, 0, 0], [0, 0, 0, 0]]
    alone = paste_defects(IMAGES[:1], MASKS[:1], 1.0)
    assert torch.equal(alone[1], MASKS[:1]) and torch.isfinite(alone[0]).all()

"""Defects pasted onto other images of the batch."""

import torch

from segmentation.copy_paste import paste_defects

# Two images of 2 x 4 pixels: surface 1 with a defect of class 0 that is 0.5 darker, and surface 5
# with a defect of class 2 that is 2 brighter and overlaps the first one's place in one pixel.
MASKS = torch.tensor([[[1, 1, 0, 0], [0, 0, 0, 255]], [[0, 3, 3, 0], [0, 0, 0, 0]]])
GREY = torch.tensor([[[0.5, 0.5, 1, 1], [1, 1, 1, 9]], [[5, 7, 7, 5], [5, 5, 5, 5]]])
IMAGES = GREY[:, None].repeat(1, 3, 1, 1)
LABELS = torch.tensor([[1.0, 0, 0], [0, 0, 1.0]])


def test_defects_keep_their_contrast_and_cover_background_alone():
    images, masks, labels = paste_defects(IMAGES, MASKS, LABELS, 1.0)

    # The donor of each of two images is the other one.
    assert masks.tolist() == [[[1, 1, 3, 0], [0, 0, 0, 255]], [[1, 3, 3, 0], [0, 0, 0, 0]]]
    expected = [[[0.5, 0.5, 3, 1], [1, 1, 1, 9]], [[4.5, 7, 7, 5], [5, 5, 5, 5]]]
    for channel in range(3):
        torch.testing.assert_close(images[:, channel], torch.tensor(expected))
    assert labels.tolist() == [[1, 0, 1], [1, 0, 1]]


def test_what_did_not_arrive_is_not_in_the_labels():
    full = torch.ones_like(MASKS)
    _, masks, labels = paste_defects(IMAGES, torch.stack([full[0], MASKS[1]]), LABELS, 1.0)

    assert masks[0].tolist() == full[0].tolist() and labels[0].tolist() == [1, 0, 0]
    # The second one's background is covered by the defect that fills the first.
    assert masks[1].tolist() == [[1, 3, 3, 1], [1, 1, 1, 1]] and labels[1].tolist() == [1, 0, 1]


def test_no_probability_no_paste_and_arguments_stay():
    before = IMAGES.clone(), MASKS.clone(), LABELS.clone()
    for found, given in zip(paste_defects(IMAGES, MASKS, LABELS, 0.0), before, strict=True):
        assert torch.equal(found, given)
    paste_defects(IMAGES, MASKS, LABELS, 1.0)
    for now, given in zip((IMAGES, MASKS, LABELS), before, strict=True):
        assert torch.equal(now, given)


def test_an_image_never_gives_to_itself_and_seeds_repeat():
    images, labels = torch.zeros(6, 3, 1, 12), torch.eye(6)
    masks = torch.zeros(6, 1, 12, dtype=torch.int64)
    for k in range(6):
        masks[k, 0, 2 * k : 2 * k + 2] = k + 1  # no two at one place: all that is pasted arrives
    torch.manual_seed(3)
    first = paste_defects(images, masks, labels, 1.0)
    assert (first[2].sum(dim=1) == 2).all()
    torch.manual_seed(3)
    again = paste_defects(images, masks, labels, 1.0)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_defect_free_images_receive_and_a_single_image_stays():
    images, masks, labels = paste_defects(
        IMAGES, torch.stack([MASKS[0], torch.zeros_like(MASKS[0])]), LABELS * 0, 1.0
    )
    assert masks[1].tolist() == [[1, 1, 0, 0], [0, 0, 0, 0]] and labels[1].tolist() == [1, 0, 0]
    alone = paste_defects(IMAGES[:1], MASKS[:1], LABELS[:1], 1.0)
    assert torch.equal(alone[1], MASKS[:1]) and torch.isfinite(alone[0]).all()

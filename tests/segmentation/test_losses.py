"""The loss of the second stage against loops over pixels, and what it is for: wrong labels."""

import math

import pytest
import torch

from segmentation.losses import absent_loss, corrected, dense_loss, edge_smoothed, pixel_loss

KINDS = ("ce", "generalised", "symmetric", "bootstrapped")
SETTINGS = {
    "kind": "ce",
    "robustness": 0.7,
    "small_loss": 1.0,
    "edge_smoothing": 0.0,
    "dice_weight": 0.5,
    "absent_weight": 0.0,
}


def shares_of(logits):
    """Return the softmax of a list of numbers."""
    powers = [math.exp(value - max(logits)) for value in logits]
    return [power / sum(powers) for power in powers]


def slow_pixel_loss(logits, target, kind, q):
    """One pixel, in plain Python."""
    p = shares_of(logits)
    plain = -math.log(p[target])
    return {
        "ce": plain,
        "generalised": (1 - p[target] ** q) / q,
        "symmetric": 0.1 * plain + 4 * (1 - p[target]),
        "bootstrapped": 0.8 * plain - 0.2 * math.log(max(p)),
    }[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_pixel_losses_equal_a_loop(kind):
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(2, 3, 3, 4, generator=generator)
    masks = torch.randint(0, 3, (2, 3, 4), generator=generator)
    found = pixel_loss(logits, masks, kind, 0.6)
    for b, y, x in torch.cartesian_prod(torch.arange(2), torch.arange(3), torch.arange(4)):
        expected = slow_pixel_loss(logits[b, :, y, x].tolist(), int(masks[b, y, x]), kind, 0.6)
        assert found[b, y, x].item() == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_dense_loss_equals_a_loop_over_pixels():
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 3, 4, dtype=torch.float64)
    masks = torch.randint(0, 2, (2, 3, 4))  # class 2 is absent: Dice term 0
    masks[0, 1] = 255
    labels = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    entropies, absences, overlap, sizes = [], [], [0.0, 0.0], [0.0, 0.0]
    for b in range(2):
        for y in range(3):
            for x in range(4):
                p = shares_of(logits[b, :, y, x].tolist())
                absences.append(-math.log(1 - p[2]) if b == 0 else 0.0)
                k = int(masks[b, y, x])
                if k == 255:
                    continue
                entropies.append(-math.log(p[k]))
                overlap[k] += p[k]
                for c in range(2):
                    sizes[c] += p[c] + (c == k)
    dice = sum(1 - 2 * o / s for o, s in zip(overlap, sizes, strict=True)) / 3
    entropy, absent = sum(entropies) / len(entropies), sum(absences) / len(absences)

    total, terms = dense_loss(logits, masks, labels, **SETTINGS | {"absent_weight": 2.0})

    assert terms["pixel"].item() == pytest.approx(entropy, abs=1e-6)
    assert terms["dice"].item() == pytest.approx(dice, abs=1e-6)
    assert terms["absent"].item() == pytest.approx(absent, abs=1e-6)
    assert total.item() == pytest.approx(entropy + 0.5 * dice + 2 * absent, abs=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_loss_of_ignored_pixels_alone_is_zero_and_differentiable(kind):
    logits = torch.randn(2, 3, 4, 5, requires_grad=True)
    nothing = torch.full((2, 4, 5), 255)

    total, terms = dense_loss(logits, nothing, torch.ones(2, 2), **SETTINGS | {"kind": kind})
    total.backward()

    assert set(terms) == {"pixel", "dice"}
    assert total.item() == 0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


@pytest.mark.parametrize("kind", KINDS)
def test_extreme_logits_stay_finite(kind):
    logits = torch.tensor([[[[1e4]], [[-1e4]]], [[[-1e4]], [[1e4]]]], requires_grad=True)
    masks = torch.zeros(2, 1, 1, dtype=torch.int64)
    settings = SETTINGS | {"kind": kind, "absent_weight": 1.0}

    total, _ = dense_loss(logits, masks, torch.zeros(2, 1), **settings)
    total.backward()

    assert torch.isfinite(total)
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("kind", ["generalised", "symmetric", "bootstrapped"])
def test_a_confident_contradiction_pulls_less_than_with_the_cross_entropy(kind):
    logits = torch.tensor([[[[4.0]], [[-4.0]]]], requires_grad=True)
    masks = torch.ones(1, 1, 1, dtype=torch.int64)

    def pull(of_kind):
        (gradient,) = torch.autograd.grad(pixel_loss(logits, masks, of_kind, 0.7).sum(), logits)
        return gradient.abs().max().item()

    assert pull(kind) < 0.9 * pull("ce")


def test_a_class_that_the_image_lacks_is_pushed_down_everywhere():
    logits = torch.zeros(1, 3, 2, 2, requires_grad=True)

    absent_loss(logits, torch.tensor([[1.0, 0.0]])).backward()

    assert (logits.grad[0, 2] > 0).all()
    assert (logits.grad[0, :2] < 0).all()


def test_small_loss_leaves_the_worst_pixels_out():
    logits = torch.zeros(1, 2, 1, 4)
    logits[0, 1, 0] = torch.tensor([3.0, 2.0, -5.0, 9.0])
    masks = torch.tensor([[[1, 1, 1, 255]]])
    losses = [math.log1p(math.exp(-value)) for value in (3.0, 2.0)]
    _, terms = dense_loss(logits, masks, torch.ones(1, 1), **SETTINGS | {"small_loss": 0.67})
    assert terms["pixel"].item() == pytest.approx(sum(losses) / 2, rel=1e-5)


def test_labels_are_smoothed_at_borders_alone():
    torch.manual_seed(0)
    logits = torch.randn(1, 3, 12, 24)
    masks = torch.zeros(1, 12, 24, dtype=torch.int64)
    masks[:, :, 12:] = 2
    known = torch.ones_like(masks, dtype=torch.bool)
    smoothed = edge_smoothed(logits, masks, known)
    plain = pixel_loss(logits, masks, "ce", 0.7)
    torch.testing.assert_close(smoothed[..., :9], plain[..., :9])
    torch.testing.assert_close(smoothed[..., 15:], plain[..., 15:])
    # Column 11 sees columns 8 to 14: four of class 0, three of class 2.
    logs = logits.log_softmax(dim=1)[0, :, 6, 11]
    assert smoothed[0, 6, 11].item() == pytest.approx(-(4 * logs[0] + 3 * logs[2]).item() / 7)
    total, _ = dense_loss(logits, masks, torch.ones(1, 2), **SETTINGS | {"edge_smoothing": 1.0})
    _, dice = dense_loss(logits, masks, torch.ones(1, 2), **SETTINGS)
    wanted = smoothed.mean() + 0.5 * dice["dice"]
    assert total.item() == pytest.approx(wanted.item(), rel=1e-5)


def test_a_sure_teacher_corrects_labels_within_the_image_classes():
    logits = torch.tensor([[0.0, 9.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 9.0], [9.0, 0.0, 0.0]])
    logits = logits.T[None, :, None]  # four pixels, three mask classes
    masks = torch.tensor([[[0, 0, 1, 255]]])
    # Class 2 of the third pixel is absent: what is left is even, so nobody is sure.
    found = corrected(masks, logits, torch.tensor([[1.0, 0.0]]), 0.9)
    assert found.tolist() == [[[1, 0, 1, 0]]]
    found = corrected(masks, logits, torch.tensor([[1.0, 1.0]]), 0.9)
    assert found.tolist() == [[[1, 0, 2, 0]]]

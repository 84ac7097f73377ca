"""The loss of the second stage against a loop over pixels."""

import math

import pytest
import torch

from segmentation.losses import dense_loss


def shares_of(logits: list[float]) -> list[float]:
    """Return the softmax of a list of numbers."""
    powers = [math.exp(value - max(logits)) for value in logits]
    return [power / sum(powers) for power in powers]


def test_dense_loss_equals_a_loop_over_pixels():
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 3, 4, dtype=torch.float64)
    masks = torch.randint(0, 2, (2, 3, 4))  # class 2 is absent: Dice term 0
    masks[0, 1] = 255
    entropies, overlap, sizes = [], [0.0, 0.0], [0.0, 0.0]
    for b, y, x in torch.cartesian_prod(torch.arange(2), torch.arange(3), torch.arange(4)):
        p = shares_of(logits[b, :, y, x].tolist())
        k = int(masks[b, y, x])
        if k == 255:
            continue
        entropies.append(-math.log(p[k]))
        overlap[k] += p[k]
        for c in range(2):
            sizes[c] += p[c] + (c == k)
    dice = sum(1 - 2 * o / s for o, s in zip(overlap, sizes, strict=True)) / 3
    entropy = sum(entropies) / len(entropies)

    total, terms = dense_loss(logits, masks)

    assert set(terms) == {"pixel", "dice"}
    assert total.dtype == torch.float32
    assert terms["pixel"].item() == pytest.approx(entropy, abs=1e-6)
    assert terms["dice"].item() == pytest.approx(dice, abs=1e-6)
    assert total.item() == pytest.approx(entropy + dice, abs=1e-6)


def test_terms_carry_no_gradient_and_the_sum_does():
    logits = torch.randn(2, 3, 4, 5, requires_grad=True)
    total, terms = dense_loss(logits, torch.ones(2, 4, 5, dtype=torch.int64))
    assert total.requires_grad
    assert not any(term.requires_grad for term in terms.values())
    total.backward()
    assert (logits.grad[:, 1] < 0).all()
    assert (logits.grad[:, [0, 2]] > 0).all()


def test_loss_of_ignored_pixels_alone_is_zero_and_differentiable():
    logits = torch.randn(2, 3, 4, 5, requires_grad=True)
    nothing = torch.full((2, 4, 5), 255)

    total, _ = dense_loss(logits, nothing)
    total.backward()

    assert total.item() == 0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


def test_extreme_logits_stay_finite():
    logits = torch.tensor([[[[1e4]], [[-1e4]]], [[[-1e4]], [[1e4]]]], requires_grad=True)
    masks = torch.zeros(2, 1, 1, dtype=torch.int64)

    total, _ = dense_loss(logits, masks)
    total.backward()

    assert torch.isfinite(total)
    assert torch.isfinite(logits.grad).all()


def test_half_precision_logits_give_a_loss_in_float32():
    torch.manual_seed(0)
    logits, masks = torch.randn(2, 3, 4, 5), torch.randint(0, 3, (2, 4, 5))
    exact, _ = dense_loss(logits.bfloat16().float(), masks)
    total, _ = dense_loss(logits.bfloat16(), masks)
    assert total.dtype == torch.float32
    assert torch.equal(total, exact)

"""The single losses; the pixel contrast and the sum have their own files."""

import math

import pytest
import torch

from losses.classification import classification_loss
from losses.pixel import dice_loss, pixel_loss, pixel_targets
from losses.saliency import saliency_loss
from losses.token_contrast import token_contrast_loss

DTYPES = [(torch.float64, 1e-9), (torch.float32, 1e-5)]


def labels_of_three_images(num_classes):
    """Defect-free, one class, two classes (one where there is only one)."""
    labels = torch.zeros(3, num_classes)
    labels[1, 0] = 1
    labels[2, [num_classes // 2, num_classes - 1]] = 1
    return labels


def random_tensor(*shape, seed=0):
    return torch.rand(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("num_classes", [1, 3, 6, 20])
@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
def test_classification_matches_loop_reference(num_classes, dtype, tolerance):
    logits = 4 * random_tensor(3, num_classes) - 2
    labels = labels_of_three_images(num_classes)
    expected = 0.0
    for z_row, y_row in zip(logits.tolist(), labels.tolist(), strict=True):
        for z, y in zip(z_row, y_row, strict=True):
            score = 1 / (1 + math.exp(-z))
            expected -= (y * math.log(score) + (1 - y) * math.log(1 - score)) / (3 * num_classes)
    loss = classification_loss(logits.to(dtype), labels)
    assert loss.dtype == dtype
    assert loss.item() == pytest.approx(expected, rel=tolerance)


@pytest.mark.parametrize("num_classes", [1, 3, 6, 20])
@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
def test_saliency_matches_loop_reference(num_classes, dtype, tolerance):
    cams = (
        random_tensor(3, num_classes, 5, 7) * labels_of_three_images(num_classes)[..., None, None]
    )
    saliency = random_tensor(3, 1, 5, 7, seed=1)
    expected = 0.0
    for b in range(3):
        for y in range(5):
            for x in range(7):
                summed = sum(cams[b, k, y, x].item() for k in range(num_classes))
                expected += (summed - saliency[b, 0, y, x].item()) ** 2 / (3 * 5 * 7)
    loss = saliency_loss(cams.to(dtype), saliency.to(dtype))
    assert loss.dtype == dtype
    assert loss.item() == pytest.approx(expected, rel=tolerance)


def test_saliency_map_is_a_constant():
    cams = random_tensor(2, 3, 4, 5).requires_grad_()
    saliency = random_tensor(2, 1, 4, 5).requires_grad_()
    saliency_loss(cams, saliency).backward()
    assert saliency.grad is None
    assert cams.grad.abs().sum() > 0


def test_saliency_of_another_size_is_refused():
    message = r"saliency: expected shape \(2, 1, 4, 5\) .* got \(2, 1, 5, 4\). Resize both"
    with pytest.raises(ValueError, match=message):
        saliency_loss(torch.rand(2, 3, 4, 5), torch.rand(2, 1, 5, 4))


def loop_token_contrast(class_tokens, labels):
    num_layers, num_images, num_classes, _ = class_tokens.shape
    terms = []
    for layer in range(num_layers):
        for b in range(num_images):
            for k in range(num_classes):
                if labels[b, k] == 0:
                    continue
                tokens = class_tokens[layer, b]
                cosines = [
                    torch.dot(tokens[j], tokens[k]) / (tokens[j].norm() * tokens[k].norm())
                    for j in range(num_classes)
                ]
                terms.append(sum(c.exp() for c in cosines).log() - cosines[k])
    return (sum(terms) / len(terms)).item()


@pytest.mark.parametrize("num_classes", [1, 3, 6, 20])
@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
def test_token_contrast_matches_loop_reference(num_classes, dtype, tolerance):
    tokens = random_tensor(2, 3, num_classes, 9) - 0.5
    labels = labels_of_three_images(num_classes)
    loss = token_contrast_loss(tokens.to(dtype), labels)
    assert loss.dtype == dtype
    expected = loop_token_contrast(tokens, labels)
    assert loss.item() == pytest.approx(expected, rel=tolerance, abs=1e-15)


def test_orthogonal_tokens_give_the_hand_value():
    # Column of the Gram matrix: 1 for itself, 0 for two others: -log(e / (e + 2)).
    tokens = torch.eye(3).view(1, 1, 3, 3)
    loss = token_contrast_loss(tokens, torch.tensor([[0.0, 1.0, 0.0]]))
    assert loss.item() == pytest.approx(math.log(1 + 2 / math.e), rel=1e-6)


def test_defect_free_images_give_the_token_contrast_a_zero_with_a_gradient():
    tokens = torch.randn(2, 3, 4, 5, requires_grad=True)
    loss = token_contrast_loss(tokens, torch.zeros(3, 4))
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(tokens.grad, torch.zeros_like(tokens))


@pytest.mark.parametrize("num_classes", [1, 3, 6])
@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
def test_pixel_loss_matches_loop_reference(num_classes, dtype, tolerance):
    labels = labels_of_three_images(num_classes)
    cams = random_tensor(3, num_classes, 6, 8) * labels[..., None, None]
    saliency = random_tensor(3, 1, 6, 8, seed=1)
    logits = 4 * random_tensor(3, num_classes + 1, 3, 4, seed=2)
    expected, dice = 0.0, []
    for b in range(3):
        present = [k for k in range(num_classes) if labels[b, k]]
        sums = {k: [0.0, 0.0, 0.0] for k in present}  # of both, of found, of sought
        for y in range(3):
            for x in range(4):
                target = [0.0] * (num_classes + 1)
                for row in (2 * y, 2 * y + 1):  # four pixels fall into one
                    for column in (2 * x, 2 * x + 1):
                        salient = saliency[b, 0, row, column].item()
                        squares = {k: cams[b, k, row, column].item() ** 2 for k in present}
                        for k in present:
                            target[k + 1] += salient * squares[k] / sum(squares.values()) / 4
                target[0] = 1 - sum(target)
                scores = [math.exp(value) for value in logits[b, :, y, x].tolist()]
                shares = [score / sum(scores) for score in scores]
                for sought, found in zip(target, shares, strict=True):
                    expected -= sought * math.log(found) / (3 * 3 * 4)
                for k in present:
                    found, sought = shares[k + 1], target[k + 1]
                    terms = (found * sought, found**2, sought**2)
                    sums[k] = [old + new for old, new in zip(sums[k], terms, strict=True)]
        dice += [
            1 - (2 * both + 1e-3) / (found + sought + 1e-3) for both, found, sought in sums.values()
        ]
    expected += sum(dice) / max(len(dice), 1)
    loss = pixel_loss(logits.to(dtype), cams.to(dtype), saliency.to(dtype), labels)
    assert loss.dtype == dtype
    assert loss.item() == pytest.approx(expected, rel=tolerance)


def test_dice_by_hand():
    found = torch.tensor([[[[1.0, 1.0]], [[0.5, 0.5]]], [[[0.0, 0.0]], [[0.9, 0.9]]]])
    sought = torch.tensor([[[[1.0, 0.0]], [[0.5, 0.5]]], [[[0.0, 0.0]], [[0.0, 0.0]]]])
    # twice 1 of 2 + 1; equal; nothing found where nothing is sought; a class that is absent
    labels = torch.tensor([[1.0, 1.0], [1.0, 0.0]])
    assert dice_loss(found, sought, labels).item() == pytest.approx(1 / 3 / 3, abs=1e-3)
    assert dice_loss(found, sought, torch.zeros(2, 2)).item() == 0
    small, large = torch.zeros(2, 1, 1, 8, 8)
    small[..., 0, 0], large[..., :4] = 1, 1
    halves = [dice_loss(maps / 2, maps, torch.ones(1, 1)).item() for maps in (small, large)]
    assert halves == pytest.approx([0.2, 0.2], abs=1e-3)  # whatever the size


def test_pixel_targets_by_hand():
    """Of an image of two classes and a defect-free one, both salient."""
    cams = torch.zeros(2, 2, 1, 3)
    cams[0, :, 0, 0] = torch.tensor([0.6, 0.3])
    labels = torch.tensor([[1.0, 1.0], [0.0, 0.0]])
    saliency = torch.full((2, 1, 1, 3), 0.8)
    saliency[0, 0, 0, 2] = 0
    targets = pixel_targets(cams, saliency, labels, (1, 3))
    # 0.36 to 0.09; no CAM says where: even; not salient: background
    expected = torch.tensor([[0.2, 0.2, 1], [0.64, 0.4, 0], [0.16, 0.4, 0]])
    torch.testing.assert_close(targets[0, :, 0], expected)
    torch.testing.assert_close(targets[1, :, 0], torch.tensor([[1.0] * 3, [0.0] * 3, [0.0] * 3]))
    with pytest.raises(ValueError, match="saliency: expected shape"):
        pixel_targets(cams, saliency[..., :2], labels, (1, 3))


def test_losses_stay_float32_under_autocast():
    labels = labels_of_three_images(3)
    logits = torch.randn(3, 3, dtype=torch.bfloat16)
    tokens = torch.randn(2, 3, 3, 8, dtype=torch.bfloat16)
    cams = torch.rand(3, 3, 4, 5, dtype=torch.bfloat16)
    saliency = torch.rand(3, 1, 4, 5)
    pixel_logits = torch.randn(3, 4, 2, 2, dtype=torch.bfloat16)

    def losses():
        yield classification_loss(logits, labels)
        yield token_contrast_loss(tokens, labels)
        yield saliency_loss(cams, saliency)
        yield pixel_loss(pixel_logits, cams, saliency, labels)

    plain = list(losses())
    with torch.autocast("cpu", torch.bfloat16):
        mixed = list(losses())
    for loss, expected in zip(mixed, plain, strict=True):
        assert loss.shape == ()
        assert loss.dtype == torch.float32
        assert torch.equal(loss, expected)

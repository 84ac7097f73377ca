"""The pixel contrast against a reference that upsamples everything and loops."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from losses import pixel_contrast
from losses.interpolation import corner_cells, interpolation_matrix, upsampled_norms
from losses.pixel_contrast import (
    INVALID,
    _uniform,
    class_prototypes,
    draw_samples,
    negative_classes,
    pixel_classes,
    pixel_contrast_loss,
    sort_pixels,
)

SETTINGS = {"temperature": 0.5, "num_anchors": 5, "num_negatives": 4}
THRESHOLDS = {"valid_threshold": 0.5, "hard_threshold": 0.9}
# num_classes, (h, w), (H, W); the last reads a grid finer than the pixels
CASES = [
    (1, (3, 5), (11, 17)),
    (3, (4, 3), (19, 13)),
    (6, (1, 4), (9, 15)),
    (20, (3, 4), (23, 31)),
    (3, (9, 7), (5, 6)),
]


def make_batch(num_classes, grid, size, dtype=torch.float64, binary=False):
    """A defect-free image, one with one class, one with two (one where there is only one)."""
    generator = torch.Generator().manual_seed(num_classes)
    embedding = torch.randn(3, 6, *grid, dtype=torch.float64, generator=generator)
    labels = torch.zeros(3, num_classes)
    labels[1, 0] = 1
    labels[2, [num_classes // 2, num_classes - 1]] = 1
    cams = torch.rand(3, num_classes, *size, dtype=torch.float64, generator=generator)
    cams = cams * labels[:, :, None, None]
    saliency = torch.rand(3, 1, *size, dtype=torch.float64, generator=generator)
    if binary:
        saliency = saliency.round()
    batch = {"embedding": embedding, "cams": cams, "saliency": saliency, "labels": labels}
    return {name: tensor.to(dtype) for name, tensor in batch.items()}


def generator_of(seed):
    return torch.Generator().manual_seed(seed)


def compute_loss(batch, seed=0, **changes):
    settings = SETTINGS | THRESHOLDS | changes
    return pixel_contrast_loss(**batch, **settings, generator=generator_of(seed))


def samples_of(batch, seed=0, hard_threshold=0.9, **changes):
    """The samples that `compute_loss` draws."""
    num_classes = batch["cams"].shape[1] + 1
    embedding, *maps = (batch[name] for name in ("embedding", "cams", "saliency", "labels"))
    label, confidence = pixel_classes(*maps, 0.5)
    prototypes = class_prototypes(embedding.detach(), label, num_classes)
    pixels = sort_pixels(label, confidence, num_classes, hard_threshold)
    return draw_samples(pixels, prototypes, *(SETTINGS | changes).values(), generator_of(seed))


def loop_pixel_classes(batch, valid_threshold=0.5):
    """Lists [class of each pixel or INVALID] and [its probability], pixel by pixel."""
    label, confidence = [], []
    num_images, num_classes, height, width = batch["cams"].shape
    for b in range(num_images):
        for y in range(height):
            for x in range(width):
                probabilities = [1 - batch["saliency"][b, 0, y, x].item()]
                for k in range(num_classes):
                    here = batch["labels"][b, k] > 0
                    probabilities.append(batch["cams"][b, k, y, x].item() if here else 0.0)
                highest = max(probabilities)
                valid = highest >= valid_threshold
                label.append(probabilities.index(highest) if valid else INVALID)
                confidence.append(highest)
    return label, confidence


def upsampled(batch):
    maps = F.interpolate(
        batch["embedding"], batch["cams"].shape[2:], mode="bilinear", align_corners=False
    )
    return maps.permute(0, 2, 3, 1).flatten(0, 2)  # (B * H * W, E)


def loop_loss(batch, samples):
    """docs/method.md, C term by term on the upsampled map, for given samples."""
    vectors = upsampled(batch)
    label, confidence = loop_pixel_classes(batch)
    terms = []
    for k in range(batch["cams"].shape[1] + 1):
        own = [i for i, c in enumerate(label) if c == k]
        hard = [i for i in own if confidence[i] < 0.9] or (own if k == 0 else [])
        if not hard or all(c in (k, INVALID) for c in label):
            continue
        prototype = vectors[own].mean(dim=0).detach()
        losses = []
        for anchor, negatives in zip(samples.anchors[k], samples.negatives[k], strict=True):
            assert anchor.item() in hard
            towards = F.cosine_similarity(vectors[anchor], prototype, dim=0) / 0.5
            logits = [towards]
            for negative in negatives:
                assert label[negative] not in (k, INVALID)
                other = vectors[negative].detach()
                logits.append(F.cosine_similarity(vectors[anchor], other, dim=0) / 0.5)
            losses.append(torch.stack(logits).logsumexp(dim=0) - towards)
        terms.append(torch.stack(losses).mean())
    return torch.stack(terms).mean(), len(terms)


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_pixel_contrast_matches_loop_reference(case, binary):
    batch = make_batch(*case, binary=binary)
    batch["embedding"].requires_grad_()
    samples = samples_of(batch)
    expected, num_terms = loop_loss(batch, samples)
    assert samples.used.sum() == num_terms
    (expected_gradient,) = torch.autograd.grad(expected, batch["embedding"])
    loss = compute_loss(batch)
    loss.backward()
    assert loss.shape == ()
    assert loss.dtype == torch.float64
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=0)
    torch.testing.assert_close(batch["embedding"].grad, expected_gradient, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("case", CASES)
def test_float32_agrees_with_the_loop_reference(case):
    batch = make_batch(*case, dtype=torch.float32)
    exact = {name: tensor.double() for name, tensor in batch.items()}
    expected, _ = loop_loss(exact, samples_of(batch))
    loss = compute_loss(batch)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("case", CASES)
def test_pixel_classes_match_loop_reference(case):
    batch = make_batch(*case)
    label, confidence = pixel_classes(batch["cams"], batch["saliency"], batch["labels"], 0.5)
    expected_label, expected_confidence = loop_pixel_classes(batch)
    assert label.flatten().tolist() == expected_label
    assert confidence.flatten().tolist() == expected_confidence
    assert len({-1, 0, 1} & set(expected_label)) == 3


def test_equal_probabilities_go_to_the_lowest_class_and_absent_classes_never_count():
    # Pixels: background and class 0 equal; classes 0 and 1 equal; class 2 highest but absent.
    cams = torch.tensor([[0.5, 0.75, 0.0], [0.25, 0.75, 0.0], [0.0, 0.0, 1.0]]).view(1, 3, 1, 3)
    saliency = torch.tensor([0.5, 1.0, 0.75]).view(1, 1, 1, 3)
    label, _ = pixel_classes(cams, saliency, torch.tensor([[1.0, 1.0, 0.0]]), 0.5)
    assert label.flatten().tolist() == [0, 1, INVALID]


def test_confidence_has_the_type_of_the_cams():
    batch = make_batch(*CASES[1]) | {"cams": make_batch(*CASES[1], dtype=torch.float32)["cams"]}
    for saliency in (batch["saliency"], batch["saliency"].half()):
        _, confidence = pixel_classes(batch["cams"], saliency, batch["labels"], 0.5)
        assert confidence.dtype == torch.float32


def test_saliency_of_another_size_is_refused():
    batch = make_batch(*CASES[1])
    batch["saliency"] = batch["saliency"][:, :, 1:]
    with pytest.raises(ValueError, match=r"saliency: expected shape \(3, 1, 19, 13\)"):
        compute_loss(batch)


@pytest.mark.parametrize("case", CASES)
def test_interpolated_pixels_and_norms_equal_torch_interpolate(case):
    _, grid, size = case
    batch = make_batch(*case)
    expected = upsampled(batch)
    features = batch["embedding"].permute(0, 2, 3, 1)
    pixels = torch.randperm(len(expected), generator=generator_of(1)).view(-1, 1)
    cells, weights = corner_cells(pixels, size, grid, torch.float64)
    values = (features.flatten(0, 2)[cells] * weights[..., None]).sum(dim=0)
    torch.testing.assert_close(values, expected[pixels], rtol=1e-12, atol=1e-14)
    norms = upsampled_norms(features, size).flatten()
    torch.testing.assert_close(norms, expected.norm(dim=1), rtol=1e-12, atol=1e-14)
    rows, columns = (interpolation_matrix(*n, features) for n in zip(size, grid, strict=True))
    dense = torch.einsum("yi,xj,bijc->byxc", rows, columns, features)
    torch.testing.assert_close(dense.flatten(0, 2), expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("case", CASES)
def test_prototypes_are_the_means_of_the_upsampled_pixels(case):
    batch = make_batch(*case)
    label, _ = pixel_classes(batch["cams"], batch["saliency"], batch["labels"], 0.5)
    prototypes = class_prototypes(batch["embedding"], label, case[0] + 1)
    vectors = upsampled(batch)
    for k, prototype in enumerate(prototypes):
        own = vectors[label.flatten() == k]
        expected = own.mean(dim=0) if len(own) else torch.zeros_like(prototype)
        torch.testing.assert_close(prototype, expected, rtol=1e-10, atol=1e-12)


def test_background_anchors_where_saliency_is_soft():
    samples = samples_of(make_batch(*CASES[1]))
    assert samples.used.tolist() == [True, True, True, True]


def test_a_pixel_at_the_hard_threshold_is_not_hard():
    label = torch.tensor([[[0, 1, 1], [1, INVALID, 0]]], dtype=torch.int16)
    confidence = torch.tensor([[[0.75, 0.75, 0.5], [1.0, 0.25, 0.625]]])
    pixels = sort_pixels(label, confidence, 2, hard_threshold=0.75)
    assert pixels.num_hard.tolist() == [1, 1]
    assert pixels.num_valid.tolist() == [2, 3]
    # Pixels are numbered row by row; of each class the hard one comes first.
    assert pixels.order.tolist() == [5, 0, 2, 1, 3, 4]


def test_by_default_pixels_from_a_confidence_of_one_half_take_part_and_from_0_9_are_not_hard():
    batch = make_batch(*CASES[1])
    settings = SETTINGS | {"generator": generator_of(0)}
    assert torch.equal(pixel_contrast_loss(**batch, **settings), compute_loss(batch))


def assert_connected_zero(batch):
    batch["embedding"].requires_grad_()
    loss = compute_loss(batch)
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(batch["embedding"].grad, torch.zeros_like(batch["embedding"]))


def test_one_valid_class_alone_gives_a_zero_on_the_graph():
    batch = make_batch(*CASES[1])
    batch["cams"] = torch.zeros_like(batch["cams"])
    batch["labels"] = torch.zeros_like(batch["labels"])
    assert samples_of(batch).used.sum() == 0
    assert_connected_zero(batch)


def test_background_all_over_gives_a_zero_on_the_graph():
    """No pixel of a class, and none invalid: what has no pixel begins past the last one."""
    batch = make_batch(*CASES[1])
    batch["saliency"] = torch.zeros_like(batch["saliency"])
    batch["cams"] = torch.zeros_like(batch["cams"])
    assert_connected_zero(batch)


def test_no_valid_pixel_gives_a_zero_on_the_graph():
    batch = make_batch(*CASES[1])
    batch["cams"] = torch.zeros_like(batch["cams"])
    batch["saliency"] = torch.ones_like(batch["saliency"])
    assert_connected_zero(batch)


def test_an_embedding_of_zeros_stays_finite():
    batch = make_batch(*CASES[1])
    batch["embedding"] = torch.zeros_like(batch["embedding"]).requires_grad_()
    loss = compute_loss(batch)
    loss.backward()
    # Every cosine is 0: -log(1 / (1 + 4)).
    assert loss.item() == pytest.approx(math.log(5))
    assert batch["embedding"].grad.isfinite().all()


def test_cams_saliency_and_labels_are_constants():
    batch = make_batch(*CASES[1])
    for tensor in batch.values():
        tensor.requires_grad_()
    compute_loss(batch).backward()
    assert [name for name, tensor in batch.items() if tensor.grad is not None] == ["embedding"]


def test_the_generator_alone_decides_the_samples():
    batch = make_batch(*CASES[1])
    torch.manual_seed(1)
    first = compute_loss(batch, seed=5)
    torch.manual_seed(2)
    assert torch.equal(first, compute_loss(batch, seed=5))
    assert not torch.equal(first, compute_loss(batch, seed=6))


def test_autocast_and_half_precision_inputs_give_float32():
    batch = make_batch(*CASES[1], dtype=torch.float32)
    batch["embedding"] = batch["embedding"].bfloat16()
    expected = compute_loss(batch | {"embedding": batch["embedding"].float()})
    batch["embedding"].requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        loss = compute_loss(batch)
    loss.backward()
    assert loss.dtype == torch.float32
    assert torch.equal(loss.detach(), expected)
    assert batch["embedding"].grad.isfinite().all()


def test_negative_classes_match_a_hand_calculation():
    # Cosines of class 0: 0 to class 1, -1 to class 2; class 3 has no pixels. T = 0.5.
    prototypes = torch.tensor([[2.0, 0.0], [0.0, 3.0], [-1.0, 0.0], [1.0, 1.0]])
    chances = negative_classes(prototypes, torch.tensor([4, 1, 9, 0]), temperature=0.5)
    far = math.exp(-2)
    assert chances[0].tolist() == pytest.approx([0, 1 / (1 + far), far / (1 + far), 0])
    assert chances[1].tolist() == pytest.approx([0.5, 0, 0.5, 0])
    alone = negative_classes(prototypes, torch.tensor([4, 0, 0, 0]), temperature=0.5)
    assert alone[0].tolist() == [0, 0, 0, 0]


def chi_square_is_usual(observed, expected):
    """Whether the statistic lies within 4 standard deviations of its mean."""
    freedom = len(expected) - 1
    statistic = ((observed - expected).square() / expected).sum().item()
    return abs(statistic - freedom) < 4 * math.sqrt(2 * freedom)


def test_sampling_follows_the_method():
    batch = make_batch(3, (4, 3), (19, 13))
    label, confidence = pixel_classes(batch["cams"], batch["saliency"], batch["labels"], 0.5)
    prototypes = class_prototypes(batch["embedding"], label, 4)
    counts = torch.bincount(label.flatten() + 1, minlength=5)[1:]
    chances = negative_classes(prototypes, counts, 0.5)
    samples = samples_of(batch, num_anchors=4000, num_negatives=10)
    label, confidence = label.flatten(), confidence.flatten()
    for k in range(4):
        hard = (label == k) & (confidence < 0.9)
        drawn = torch.bincount(samples.anchors[k], minlength=len(label))
        assert drawn[~hard].sum() == 0
        fair = torch.full((int(hard.sum()),), 4000 / hard.sum())
        assert chi_square_is_usual(drawn[hard], fair)
        drawn = torch.bincount(samples.negatives[k].flatten(), minlength=len(label))
        others = (label != INVALID) & (label != k)
        assert drawn[~others].sum() == 0
        # Each pixel's own probability: that of its class, shared among the pixels of the class.
        of_class = label[others].long()
        assert chi_square_is_usual(drawn[others], 40_000 * chances[k, of_class] / counts[of_class])


@pytest.mark.parametrize("extreme", [0.0, 1 - 2**-53])
def test_extreme_draws_are_of_other_classes_too(monkeypatch, extreme):
    """At 0 the first class would be drawn, at 1 none, if bounds were compared the wrong way."""
    batch = make_batch(*CASES[1])
    label, confidence = pixel_classes(batch["cams"], batch["saliency"], batch["labels"], 0.5)
    monkeypatch.setattr(
        pixel_contrast,
        "_uniform",
        lambda shape, *_: torch.full(shape, extreme, dtype=torch.float64),
    )
    samples = samples_of(batch)
    label, confidence = label.flatten(), confidence.flatten()
    for k in range(4):
        assert (label[samples.anchors[k]] == k).all()
        assert (confidence[samples.anchors[k]] < 0.9).all()
        others = label[samples.negatives[k]]
        assert ((others != k) & (others != INVALID)).all()


def test_draws_are_fine_enough_for_a_million_pixels():
    assert _uniform((2, 3), generator_of(0), torch.device("cpu")).dtype == torch.float64


def test_no_step_waits_for_the_device():
    # Fake tensors hold no values: reading one on the host (`.item()`, a mask as index) raises.
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        batch = {name: mode.from_tensor(t) for name, t in make_batch(*CASES[1]).items()}
        assert compute_loss(batch).shape == ()
        with pytest.raises(DataDependentOutputException):
            batch["cams"].sum().item()

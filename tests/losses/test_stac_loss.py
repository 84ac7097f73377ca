"""The sum of the losses: its weights, what it reads, and what it gives a gradient."""

import pytest
import torch
import torch.nn.functional as F

from configs import LossConfig
from losses.pixel import pixel_loss
from losses.pixel_contrast import pixel_contrast_loss
from losses.stac import stac_loss
from losses.token_contrast import token_contrast_loss
from models.cam import guided_cams
from models.stac import StacOutput

LABELS = torch.tensor([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 1.0]])


def random_tensor(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def output_for(labels: torch.Tensor, **changes: torch.Tensor | None) -> StacOutput:
    """Return what a localiser without the online segmentation head might say, with gradients."""
    images, classes = labels.shape
    parts = {
        "class_logits": random_tensor(images, classes),
        "patch_logits": random_tensor(images, classes, seed=1),
        "class_tokens": random_tensor(2, images, classes, 6, seed=2) - 0.5,
        "patch_map": random_tensor(images, classes, 3, 2, seed=4) - 0.2,
        "class_attention": random_tensor(images, classes, 3, 2, seed=5),
        "feature_map": random_tensor(images, classes, 3, 2, seed=8) - 0.2,
        "embedding": random_tensor(images, 8, 3, 2, seed=3) - 0.5,
        "pixel_logits": None,
    }
    parts |= changes
    return StacOutput(**{n: t if t is None else t.requires_grad_() for n, t in parts.items()})


def saliency_for(labels: torch.Tensor) -> torch.Tensor:
    return random_tensor(len(labels), 1, 12, 10, seed=6)


def test_stac_loss_is_the_weighted_sum_of_its_terms():
    output, saliency = output_for(LABELS), saliency_for(LABELS)
    weights = {"classification": 1.5, "patch": 0.5, "token": 3, "saliency": 2, "contrast": 0.25}
    total, terms = stac_loss(output, LABELS, saliency, LossConfig(**weights), seeded())
    assert list(terms) == list(weights)
    expected = sum(weights[name] * terms[name] for name in weights)
    torch.testing.assert_close(total.detach(), expected, rtol=1e-12, atol=0)
    assert all(term.shape == () and not term.requires_grad for term in terms.values())
    cams = guided_cams(output, LABELS, (12, 10))
    first, second = (F.mse_loss(c.sum(1, True), saliency) for c in cams)
    torch.testing.assert_close(terms["saliency"], (first + second).detach(), rtol=1e-12, atol=0)
    token = token_contrast_loss(output.class_tokens, LABELS)
    torch.testing.assert_close(terms["token"], token.detach(), rtol=1e-12, atol=0)


def test_contrast_and_pixel_loss_read_the_first_maps():
    output = output_for(LABELS, pixel_logits=random_tensor(3, 4, 3, 3, seed=7))
    saliency = saliency_for(LABELS)
    _, terms = stac_loss(output, LABELS, saliency, LossConfig(), seeded())
    sampling = {"temperature": 0.6, "num_anchors": 256, "num_negatives": 256}  # the defaults
    for cams, reads in zip(guided_cams(output, LABELS, (12, 10)), (True, False), strict=True):
        contrast = pixel_contrast_loss(
            output.embedding, cams, saliency, LABELS, **sampling, generator=seeded()
        )
        pixel = pixel_loss(output.pixel_logits, cams, saliency, LABELS)
        for name, expected in (("contrast", contrast), ("pixel", pixel)):
            assert (terms[name].item() == pytest.approx(expected.item(), rel=1e-9)) is reads, name


def test_a_weight_of_zero_spares_the_loss_and_its_inputs():
    output = output_for(LABELS, embedding=None, class_tokens=None)
    settings = LossConfig(contrast=0, token=0, saliency=0)
    total, terms = stac_loss(output, LABELS, saliency_for(LABELS), settings, seeded())
    assert list(terms) == ["classification", "patch"]
    assert total.item() == pytest.approx(sum(term.item() for term in terms.values()))


def test_every_input_of_stac_loss_gets_a_gradient():
    output = output_for(LABELS, pixel_logits=random_tensor(3, 4, 3, 3, seed=7))
    total, terms = stac_loss(output, LABELS, saliency_for(LABELS), LossConfig(), seeded())
    assert "pixel" in terms
    total.backward()
    for name, tensor in output._asdict().items():
        assert tensor.grad.abs().sum() > 0, name


def test_a_batch_of_defect_free_images_has_finite_loss_and_gradients():
    labels = torch.zeros(2, 3)
    output = output_for(labels)
    total, terms = stac_loss(output, labels, saliency_for(labels), LossConfig(), seeded())
    total.backward()
    assert total.isfinite()
    assert terms["contrast"] == 0
    assert terms["token"] == 0
    for tensor in filter(lambda part: part is not None, output):
        assert tensor.grad.isfinite().all()
    assert output.class_logits.grad.abs().sum() > 0


def test_the_online_segmentation_head_does_not_move_the_cams():
    output = output_for(LABELS, pixel_logits=random_tensor(3, 4, 3, 3, seed=7))
    alone = LossConfig(classification=0, patch=0, token=1e-9, saliency=0, contrast=0, pixel=2)
    total, terms = stac_loss(output, LABELS, saliency_for(LABELS), alone, seeded())
    total.backward()
    assert list(terms) == ["token", "pixel"]
    assert total.item() == pytest.approx(2 * terms["pixel"].item(), rel=1e-6)
    assert output.pixel_logits.grad.abs().sum() > 0
    assert all(t.grad is None for t in (output.patch_map, output.class_attention))


def test_saliency_may_be_cut_to_0_and_1_for_all_losses():
    saliency = saliency_for(LABELS)
    cut = stac_loss(
        output_for(LABELS), LABELS, saliency, LossConfig(saliency_threshold=0.4), seeded()
    )
    binary = (saliency >= 0.4).double()
    expected = stac_loss(output_for(LABELS), LABELS, binary, LossConfig(), seeded())
    soft = stac_loss(output_for(LABELS), LABELS, saliency, LossConfig(), seeded())
    assert torch.equal(cut[0], expected[0])
    assert not torch.equal(cut[0], soft[0])


def test_saliency_at_the_threshold_is_salient():
    at_threshold = torch.full((3, 1, 12, 10), 0.5, dtype=torch.float64)
    settings = LossConfig(saliency_threshold=0.5)
    cut = stac_loss(output_for(LABELS), LABELS, at_threshold, settings, seeded())
    ones = torch.ones_like(at_threshold)
    expected = stac_loss(output_for(LABELS), LABELS, ones, LossConfig(), seeded())
    assert torch.equal(cut[0], expected[0])

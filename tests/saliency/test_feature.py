import types
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from configs import SaliencyConfig
from datasets.record import Record
from models.backbones import create_feature_network
from saliency import feature, patches
from saliency.feature import background_distance, median_distance, patch_saliency
from saliency.patches import fitted_size, load_encoder, to_image_size

CPU = torch.device("cpu")
RECORD = Record("a", Path("a.png"), (0,))
DATA = types.SimpleNamespace(class_names=("scratch",), split=lambda name: ())
SETTINGS = SaliencyConfig(generator="feature", weights="none", backbone="test_vit", image_size=160)


def auroc(saliency: np.ndarray, mask: np.ndarray) -> float:
    """Share of (defect, surface) pixel pairs in the right order, ties half."""
    surface = np.sort(saliency[~mask])
    below = np.searchsorted(surface, saliency[mask], "left")
    above = np.searchsorted(surface, saliency[mask], "right")
    return float((below + above).mean() / 2 / len(surface))


def textured(height: int, width: int, grey: bool = True, seed: int = 0):
    """Return a surface with a striped square defect, (H, W, 3) uint8, and the defect's mask."""
    rng = np.random.default_rng(seed)
    image = rng.normal(128, 3, (height, width, 1 if grey else 3))
    mask = np.zeros((height, width), bool)
    mask[height // 4 : height // 2, width // 2 : 3 * width // 4] = True
    stripes = 60 * (np.arange(width) // 4 % 2 * 2 - 1)
    image += (mask * stripes)[..., None] * ([1.0] if grey else [1.0, 0.4, -0.5])
    return np.broadcast_to(np.clip(image, 0, 255).astype(np.uint8), (height, width, 3)), mask


def planted(grid=(9, 13), touches_border=False, seed=0):
    """Return (h, w, D) features of two directions with noise, and where the second one is."""
    rng = np.random.default_rng(seed)
    mask = np.zeros(grid, bool)
    mask[(slice(0, 3) if touches_border else slice(3, 6)), 5:9] = True
    directions = np.eye(8)[:2]
    features = directions[mask.astype(int)] + rng.normal(0, 0.1, (*grid, 8))
    return (features / np.linalg.norm(features, axis=-1, keepdims=True)).astype(np.float32), mask


@pytest.mark.parametrize("touches_border", [False, True])
def test_planted_patches_are_salient(touches_border):
    features, mask = planted(touches_border=touches_border)
    saliency = patch_saliency(features)
    assert saliency.shape == mask.shape
    assert saliency.dtype == np.float32
    assert 0 <= saliency.min() <= saliency.max() == 1
    assert saliency[mask].min() > 2 * saliency[~mask].max()


def test_median_distance_matches_a_hand_calculation():
    # The median of (1, 0), (1, 0), (0, 1) is (1, 0): distances 0, 0, 1.
    features = np.array([[[1, 0], [1, 0], [0, 1]]], np.float32)
    np.testing.assert_allclose(median_distance(features), [[0, 0, 1]])


def test_background_distance_of_one_round_matches_a_loop_reference(monkeypatch):
    monkeypatch.setattr(feature, "NUM_ROUNDS", 1)
    features, _ = planted(grid=(5, 6))
    border = [(y, x) for y in range(5) for x in range(6) if y in (0, 4) or x in (0, 5)]
    median = np.median([features[p] for p in border], axis=0)
    median /= np.linalg.norm(median)
    seeds = sorted(border, key=lambda p: 1 - features[p] @ median)[: len(border) // 2]
    expected = np.zeros((5, 6))
    for y in range(5):
        for x in range(6):
            distances = sorted(1 - features[y, x] @ features[s] for s in seeds if s != (y, x))
            expected[y, x] = np.mean(distances[: feature.NUM_NEAREST])
    np.testing.assert_allclose(background_distance(features), expected, atol=1e-5)


def test_identical_patches_give_a_finite_map():
    features = np.zeros((5, 7, 4), np.float32)
    features[..., 0] = 1
    assert np.isfinite(patch_saliency(features)).all()


def test_even_patches_are_not_stretched_to_full_range():
    rng = np.random.default_rng(0)
    features = np.eye(8)[0] + rng.normal(0, 0.01, (9, 9, 8))
    features /= np.linalg.norm(features, axis=-1, keepdims=True)
    assert patch_saliency(features).max() < 0.1


@pytest.mark.parametrize(("size", "grey"), [((97, 131), True), ((150, 61), False)])
def test_generator_beats_chance_with_random_weights(size, grey):
    torch.manual_seed(0)
    image, mask = textured(*size, grey)
    saliency = feature.prepare(SETTINGS, DATA, [RECORD], CPU).make_map(RECORD, image)
    assert saliency.shape == size
    assert saliency.dtype == np.float32
    assert saliency.min() >= 0
    assert saliency.max() <= 1
    assert auroc(saliency, mask) > 0.75


@pytest.mark.parametrize("backbone", ["test_vit", "test_resnet"])
def test_features_have_length_one_and_the_aspect_of_the_image(backbone):
    encode = load_encoder(replace(SETTINGS, backbone=backbone), 128, CPU)
    assert encode.num_parts == 1
    features = encode(textured(60, 240)[0])
    assert features.dtype == np.float32
    assert features.shape[1] == 4 * features.shape[0]
    np.testing.assert_allclose(np.linalg.norm(features, axis=-1), 1, atol=1e-4)


@pytest.mark.parametrize(("backbone", "num_parts"), [("test_vit", 2), ("test_resnet", 1)])
def test_features_of_the_last_block_follow_those_of_the_middle_one(backbone, num_parts):
    settings, image = replace(SETTINGS, backbone=backbone), textured(60, 240)[0]
    middle = load_encoder(settings, 128, CPU)(image)
    encode = load_encoder(settings, 128, CPU, with_last=True)
    features = encode(image)
    # Stages of a CNN differ in size: of them the middle one is taken alone.
    assert encode.num_parts == num_parts
    width = middle.shape[-1]
    assert features.shape == (*middle.shape[:2], num_parts * width)
    np.testing.assert_array_equal(features[..., :width], middle)
    lengths = np.linalg.norm(features[..., -width:], axis=-1)
    np.testing.assert_allclose(lengths, 1, atol=1e-4)
    assert num_parts == 1 or np.abs(features[..., -width:] - middle).max() > 0.01


@pytest.mark.parametrize("backbone", ["test_vit", "test_resnet"])
def test_random_features_are_the_same_in_every_call_and_leave_the_random_state(backbone):
    settings, image = replace(SETTINGS, backbone=backbone), textured(60, 240)[0]
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = load_encoder(settings, 128, CPU)(image)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    np.testing.assert_array_equal(load_encoder(settings, 128, CPU)(image), first)


def counted(monkeypatch) -> list[tuple[int, ...]]:
    """Collect the sizes of what networks are given."""
    shapes = []
    create = patches.create_feature_network

    def create_counted(settings):
        network = create(settings)
        forward = network.forward_intermediates

        def count(pixels, **options):
            shapes.append(tuple(pixels.shape))
            return forward(pixels, **options)

        network.forward_intermediates = count
        return network

    monkeypatch.setattr(patches, "create_feature_network", create_counted)
    return shapes


def test_an_image_passes_a_network_once_whoever_asks(monkeypatch):
    passed = counted(monkeypatch)
    image, other = textured(60, 240)[0], textured(61, 240)[0]
    both, middle = (
        load_encoder(SETTINGS, 128, CPU, with_last=True),
        load_encoder(SETTINGS, 128, CPU),
    )
    first = both(image)
    width = first.shape[-1] // 2
    np.testing.assert_array_equal(both(image.copy()), first)
    np.testing.assert_array_equal(middle(image), first[..., :width])
    assert len(passed) == 1
    both(other)
    load_encoder(SETTINGS, 96, CPU)(image)
    assert len(passed) == 3


def test_of_too_many_features_the_oldest_are_forgotten(monkeypatch):
    passed = counted(monkeypatch)
    images = [textured(60, 100 + i)[0] for i in range(4)]
    encode = load_encoder(SETTINGS, 64, CPU)
    one = encode(images[0]).size * 2  # float16
    monkeypatch.setattr(patches, "KEPT_BYTES", 3 * one)
    for image in images[1:3]:
        encode(image)
    encode(images[0])  # seen last
    encode(images[3])
    assert len(passed) == 4
    encode(images[0])
    assert len(passed) == 4
    encode(images[1])
    assert len(passed) == 5


def test_the_middle_block_is_the_half_of_all_rounded_up(monkeypatch):
    asked = []

    class Network(torch.nn.Module):
        feature_info = [None] * 5

        def forward_intermediates(self, pixels, indices, **options):
            asked.append(indices)
            return [torch.ones(1, 4, 2, 2)]

    monkeypatch.setattr(patches, "create_feature_network", lambda settings: Network())
    load_encoder(SETTINGS, 64, CPU)(np.zeros((64, 64, 3), np.uint8))
    assert asked == [[2]]  # the third of five


def test_fitted_size_keeps_area_and_aspect_in_whole_patches():
    # 100 x 400 at the area of 200^2 stays; in patches of 14: 7.14 -> 7, 28.6 -> 29
    assert fitted_size((100, 400), 200, (14, 14)) == (98, 406)
    assert fitted_size((1, 4000), 32, (14, 14))[0] == 14


def test_patch_map_lies_where_its_patches_lie():
    patch_map = np.zeros((4, 6), np.float32)
    patch_map[1, 4] = 1
    resized = to_image_size(patch_map, (41, 59))
    y, x = np.unravel_index(resized.argmax(), resized.shape)
    assert abs((y + 0.5) / 41 - 1.5 / 4) < 0.03
    assert abs((x + 0.5) / 59 - 4.5 / 6) < 0.03


def test_weights_file_is_loaded_and_its_classifier_left_out(tmp_path):
    first = create_feature_network(SETTINGS)
    path = tmp_path / "weights.pt"
    torch.save({**first.state_dict(), "head.weight": torch.zeros(3, 64)}, path)
    second = create_feature_network(replace(SETTINGS, weights=str(path)))
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(one, other)


def test_unfit_weights_are_refused(tmp_path):
    path = tmp_path / "weights.pt"
    state = create_feature_network(SETTINGS).state_dict()
    torch.save({k: v for k, v in state.items() if "norm2" not in k}, path)
    with pytest.raises(ValueError, match=r"weights\.pt: expected the weights of saliency.backbone"):
        load_encoder(replace(SETTINGS, weights=str(path)), 64, CPU)
    with pytest.raises(FileNotFoundError, match=r"Set saliency\.weights"):
        load_encoder(replace(SETTINGS, weights=str(tmp_path / "none.pt")), 64, CPU)


def test_unknown_backbone_is_refused():
    with pytest.raises(ValueError, match=r"saliency\.backbone: expected a timm name such as"):
        load_encoder(replace(SETTINGS, backbone="no_such_vit"), 64, CPU)

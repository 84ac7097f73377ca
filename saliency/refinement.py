"""Learned refinement: a small network trained on all images, with noisy maps as its target.

A prior says little about one image, but what is alike in all images of a class, and differs from
the other classes and from the background, a network can learn from many priors; early in its
training it has learnt that and not yet their mistakes. Targets are what is known without masks:

- a pixel whose prior is high belongs to one of those classes of the image whose own prior is high
  there (partial-label likelihood);
- a pixel whose priors are all low is background; between both nothing is known;
- a class that the image does not carry is nowhere in it.

The network is a light decoder on the frozen patch features of a self-supervised ViT, which tell
what is alike, and on the image itself, which tells where it ends; or a U-Net where there are no
such features. The generalised cross-entropy (Zhang and Sabuncu, NeurIPS 2018) limits what a wrong
target can do.
Each image's map comes from a network that was trained on other images (`folds`), so no map can
repeat its own prior's mistakes by heart.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from datasets.files import Cam, read_cam, read_image, read_truth, write_cam
from datasets.record import IGNORE, Record
from datasets.sources import Data
from datasets.transforms import as_image, eval_transform, train_transform
from datasets.weak import WeakDataset, balance
from models.device import amp_dtype, autocast
from models.optim import optimizer_step, parameter_groups, set_lr, warmup_cosine
from models.vit import normalisation as vit_normalisation
from saliency.edges import along_edges
from saliency.generator import Prepared
from saliency.patches import load_encoder
from segmentation.networks import build_network, normalisation

MIRRORS = ((), (1,), (2,), (1, 2))  # flipped axes of a (C, H, W) image or map
# Of the image: what a class of its label is taken to cover at least, and the least value of its map
# that is scaled up to 1, as noise must not be. On every 12th NEU-Seg training image, maps of one
# student: pseudo labels 71.32 mIoU unscaled, 71.77 with these two, 71.94 with 0.02 and 0.05.
PRESENT_SHARE = 0.01
LEAST_LEVEL = 0.3
CLIP_NORM = 5.0
MIN_LR_SHARE = 0.01  # of the rate: what the schedule ends with
WARMUP_SHARE = 0.1  # of the steps
MASKED_SHARE = 0.25  # of the images drawn, where a few have a pixel mask as target


class Settings(Protocol):
    """What a round needs to know; `configs.RefinementConfig` has it."""

    network: str
    encoder: str
    pretrained: str
    backbone: str
    weights: str
    feature_size: int
    blocks: tuple[int, ...]
    image_size: tuple[int, int]
    steps: int
    batch_size: int
    lr: float
    weight_decay: float
    high: float
    low: float
    robustness: float
    robust_after: float
    masks: int
    folds: int
    ema: float
    smoothing: int
    jitter: float
    amp: str
    seed: int


class FeatureStudent(nn.Module):
    """Decodes patch features, sharpened by two strided stages of the image."""

    def __init__(self, feature_width: int, num_mask_classes: int):
        super().__init__()
        self.reduce = nn.Sequential(
            nn.Conv2d(feature_width, 128, 1), nn.BatchNorm2d(128), nn.ReLU(inplace=True)
        )
        self.to_half = nn.Sequential(*_convolution(3, 24, stride=2), *_convolution(24, 32))
        self.to_quarter = nn.Sequential(*_convolution(32, 48, stride=2))
        self.decode_quarter = nn.Sequential(*_convolution(128 + 48, 96), *_convolution(96, 64))
        self.decode_half = nn.Sequential(
            *_convolution(64 + 32, 48), nn.Conv2d(48, num_mask_classes, 3, padding=1)
        )

    def forward(self, image: Tensor, features: Tensor) -> Tensor:
        """Return logits (B, K + 1, H, W) of images (B, 3, H, W) with features (B, D, h, w)."""
        half = self.to_half(image)
        quarter = self.to_quarter(half)
        x = _resize(self.reduce(features), quarter.shape[2:])
        x = self.decode_quarter(torch.cat([x, quarter], dim=1))
        x = self.decode_half(torch.cat([_resize(x, half.shape[2:]), half], dim=1))
        return _resize(x, image.shape[2:])


class ImageStudent(nn.Module):
    """A network of segmentation_models_pytorch, which needs no features."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, image: Tensor, features: Tensor | None) -> Tensor:
        """Return logits (B, K + 1, H, W)."""
        return self.network(image)


class Inputs:
    """Gives image and features of a record as a student takes them; features wait in files."""

    def __init__(self, settings: Settings, folder: Path, device: torch.device):
        self.folder = folder
        self.encode = None
        if settings.network == "features":
            backbone = (settings.backbone, settings.weights, settings.feature_size)
            self.encode = load_encoder(*backbone, settings.blocks, device)
            self.mean, self.std = vit_normalisation(settings.backbone)
            self.grid = self.encode(np.zeros((64, 64, 3), np.uint8)).shape[:2]
            folder.mkdir(exist_ok=True)
        else:
            self.mean, self.std = normalisation(settings.encoder, settings.pretrained)
        self.eval_transform = eval_transform(settings.image_size, self.mean, self.std)

    def features(self, record: Record, image: np.ndarray | None = None) -> Tensor | None:
        """Return (D, h, w) features on the same grid for every image; None for a U-Net."""
        if self.encode is None:
            return None
        path = self.folder / f"{record.name}.npy"
        if path.is_file():
            return torch.from_numpy(np.load(path)).float()
        found = self.encode(read_image(record.image) if image is None else image)  # (h, w, D)
        found = torch.from_numpy(found).permute(2, 0, 1)
        return _resize(found[None], self.grid)[0]

    def keep(self, records: Sequence[Record]) -> None:
        """Write the features of records to files, but for those that are there."""
        if self.encode is None:
            return
        for record in tqdm(records, desc="features", unit="image", disable=None):
            path = self.folder / f"{record.name}.npy"
            if not path.is_file():
                np.save(path, self.features(record).half().numpy())


def prepare(
    settings: Settings,
    generator: Prepared,
    data: Data,
    work_dir: Path,
    device: torch.device,
    turn: int,
) -> Prepared:
    """Train one round on the maps of a generator and return it as a generator of its own.

    Args:
        settings: of the round.
        generator: makes the priors.
        data: whose training split is trained on.
        work_dir: existing folder for priors and features, the same for all rounds; the caller
            removes it when all maps are made.
        device: where the networks run.
        turn: which round, from 0; other rounds start from other weights.

    Raises:
        ValueError: too few training images for the folds.
    """
    num_classes = len(data.class_names)
    records = data.split("train")
    num_folds = settings.folds
    fewest = len(records) - math.ceil(len(records) / num_folds) if num_folds > 1 else len(records)
    if fewest < settings.batch_size:
        raise ValueError(
            f"refinement: expected {settings.batch_size} training images or more for each of "
            f"{num_folds} networks, got {fewest}. Lower refinement.batch_size or refinement.folds."
        )
    fold_of = {record.name: i % num_folds for i, record in enumerate(records)}
    prior_dir = work_dir / f"priors_{turn}"
    prior_dir.mkdir()
    write_priors(generator, records, prior_dir, num_classes)
    masked = choose_masked(records, settings.masks, num_classes, settings.seed)
    for record in masked:
        write_mask_as_prior(record, prior_dir, num_classes)
    masked_names = {record.name for record in masked}
    inputs = Inputs(settings, work_dir / "features", device)
    inputs.keep(records)
    students = []
    for fold in range(num_folds):
        others = [r for r in records if num_folds == 1 or fold_of[r.name] != fold]
        others = balance([r for r in others if r.name not in masked_names])
        others += masked * masked_repeats(len(masked), len(others))
        seed = (settings.seed * 1000 + turn) * num_folds + fold
        students.append(
            train_student(others, prior_dir, num_classes, settings, inputs, device, seed)
        )
    dtype = amp_dtype(device, settings.amp)

    def make_map(record: Record, image: np.ndarray) -> np.ndarray:
        if record.name in masked_names:
            known = read_prior(prior_dir, record, num_classes)
            return known[list(record.classes)].max(axis=0)
        fold = fold_of.get(record.name)
        chosen = students if fold is None else [students[fold]]
        pixels = inputs.eval_transform(as_image(image)).to(device)
        features = inputs.features(record, image)
        features = None if features is None else features.to(device)
        salient = foreground(chosen, pixels, features, record.classes, image.shape[:2], dtype)
        return along_edges(image, salient[0].cpu().numpy(), settings.smoothing, device)

    facts, lines = generator.facts, generator.lines
    if masked:
        facts = facts | {"masked": sorted(masked_names)}
        lines = (*lines, f"made with {len(masked)} pixel masks: no longer image labels alone")
    return Prepared(make_map, facts, lines, generator.problems)


def choose_masked(
    records: Sequence[Record], count: int, num_classes: int, seed: int
) -> list[Record]:
    """Draw images whose pixel masks become targets, as evenly over the classes as they allow.

    Raises:
        ValueError: fewer than `count` defective images have a mask.
    """
    order = torch.randperm(len(records), generator=torch.Generator().manual_seed(seed)).tolist()
    left = [records[i] for i in order if records[i].mask is not None and records[i].classes]
    if len(left) < count:
        raise ValueError(
            f"refinement.masks: expected masks of {count} defective training images, got "
            f"{len(left)}. Lower --masks."
        )
    chosen: list[Record] = []
    seen = [0] * num_classes
    while len(chosen) < count:
        record = min(left, key=lambda r: min(seen[k] for k in r.classes))
        left.remove(record)
        chosen.append(record)
        for k in record.classes:
            seen[k] += 1
    return chosen


def masked_repeats(num_masked: int, num_others: int) -> int:
    """Return how often each masked image is listed to make up `MASKED_SHARE` of all."""
    odds = MASKED_SHARE / (1 - MASKED_SHARE)
    return max(1, round(odds * num_others / max(num_masked, 1)))


def partial_label_loss(
    logits: Tensor, priors: Tensor, labels: Tensor, *, high: float, low: float, robustness: float
) -> Tensor:
    """Return the mean loss of the pixels about which the priors say something.

    Args:
        logits: (B, K + 1, H, W), background first.
        priors: (B, K, H, W) in [0, 1], zero for absent classes.
        labels: (B, K) multi-hot.
        high: a pixel may belong to a class whose prior is this or more.
        low: a pixel whose priors are all this or less is background.
        robustness: q of the generalised cross-entropy (1 - p^q) / q; towards 0 it becomes the
            cross-entropy, 1 is the mean absolute error.

    Returns:
        0-d float32: generalised cross-entropy of the known pixels plus, over all pixels, the
        cross-entropy of no absent class being there.
    """
    share = logits.float().softmax(dim=1)  # (B, K + 1, H, W)
    allowed = (priors >= high).float()
    is_background = (priors <= low).all(dim=1, keepdim=True).float()
    allowed = torch.cat([is_background, allowed], dim=1)
    known = allowed.amax(dim=1)  # (B, H, W)
    likelihood = (share * allowed).sum(dim=1).clamp(1e-6, 1)
    robust = (1 - likelihood**robustness) / robustness
    fit = (robust * known).sum() / known.sum().clamp(min=1)
    absent = (share[:, 1:] * (1 - labels)[:, :, None, None]).sum(dim=1)  # (B, H, W)
    return fit - torch.log1p(-absent.clamp(max=1 - 1e-6)).mean()


def train_student(
    records: Sequence[Record],
    prior_dir: Path,
    num_classes: int,
    settings: Settings,
    inputs: Inputs,
    device: torch.device,
    seed: int,
) -> nn.Module:
    """Train one network on the priors of the records and return it, weights averaged.

    Args:
        records: images with a prior <name>.npz each.
        prior_dir: of `write_priors`.
        num_classes: K.
        settings: of the round.
        inputs: gives the features.
        device: where to train.
        seed: of weights, order and augmentation.
    """
    torch.manual_seed(seed)
    first = inputs.features(records[0])
    if first is None:
        encoder = (settings.encoder, settings.pretrained, num_classes + 1)
        model = ImageStudent(build_network(settings.network, *encoder))
    else:
        model = FeatureStudent(len(first), num_classes + 1)
    model = model.to(device)
    average = ModelEmaV3(model, settings.ema, use_warmup=True)
    # Flips follow below, where features can be flipped too.
    moves = {"flip": False, "rotate": False, "jitter": settings.jitter}
    dataset = WeakDataset(
        records,
        num_classes,
        train_transform(settings.image_size, inputs.mean, inputs.std, **moves),
        seed,
        read_maps=lambda record: read_prior(prior_dir, record, num_classes),
    )
    by_name = {record.name: record for record in records}
    optimizer = torch.optim.AdamW(parameter_groups(model, settings.weight_decay), settings.lr)
    dtype = amp_dtype(device, settings.amp)
    scaler = torch.amp.GradScaler(device.type, enabled=dtype is torch.float16)
    order = torch.Generator().manual_seed(seed)
    loader = DataLoader(dataset, settings.batch_size, shuffle=True, drop_last=True, generator=order)
    model.train()
    # A robust loss hardly sees what is rare and still improbable, so it may begin as cross-entropy.
    robust_from = max(1, settings.robust_after * settings.steps)
    step, epoch, losses = 0, 0, []
    bar = tqdm(total=settings.steps, desc="refinement", disable=None, dynamic_ncols=True)
    while step < settings.steps:
        dataset.set_epoch(epoch)
        for batch in loader:
            warmup, floor = WARMUP_SHARE * settings.steps, MIN_LR_SHARE * settings.lr
            set_lr(optimizer, warmup_cosine(step, settings.steps, warmup, settings.lr, floor))
            parts = [batch["image"], batch["saliency"]]
            if first is not None:
                parts.append(torch.stack([inputs.features(by_name[n]) for n in batch["name"]]))
            image, priors, *features = (part.to(device) for part in flip_at_random(parts, order))
            with autocast(device, dtype):
                logits = model(image, features[0] if features else None)
            total = partial_label_loss(
                logits,
                priors,
                batch["label"].to(device),
                high=settings.high,
                low=settings.low,
                robustness=settings.robustness * min(1, (step + 1) / robust_from),
            )
            scaler.scale(total).backward()
            optimizer_step(model, optimizer, scaler, CLIP_NORM)
            step += 1
            average.update(model, step)
            losses.append(total.detach())
            bar.update()
            if step == settings.steps:
                break
        epoch += 1
    bar.close()
    ends = [torch.stack(part).mean().item() for part in (losses[:20], losses[-20:])]
    print(f"{len(records)} images, {step} steps: loss {ends[0]:.3f} to {ends[1]:.3f}", flush=True)
    return average.module.eval()


def flip_at_random(parts: Sequence[Tensor], generator: torch.Generator) -> list[Tensor]:
    """Flip (B, ...) images, and what lies on them, each image by a draw of its own."""
    draws = torch.randint(len(MIRRORS), (len(parts[0]),), generator=generator).tolist()
    return [
        torch.stack([item.flip(MIRRORS[i]) for item, i in zip(part, draws, strict=True)])
        for part in parts
    ]


def write_priors(
    generator: Prepared, records: Sequence[Record], folder: Path, num_classes: int
) -> None:
    """Write <name>.npz with the map of each of an image's classes, made for that class alone."""
    nothing = np.zeros(num_classes, np.float32)
    for record in tqdm(records, desc="priors", unit="image", disable=None):
        image = read_image(record.image)
        alone = [replace(record, classes=(k,)) for k in record.classes]
        maps = [generator.make_map(one, image) for one in alone]
        stack = np.stack(maps) if maps else np.zeros((0, *image.shape[:2]), np.float32)
        classes = np.array(record.classes, np.int64)
        write_cam(folder / f"{record.name}.npz", Cam(stack, classes, nothing))


def write_mask_as_prior(record: Record, folder: Path, num_classes: int) -> None:
    """Write a pixel mask as class maps of 0 and 1, 0.5 where nothing is known."""
    truth = read_truth(record, num_classes)
    classes = np.array(record.classes, np.int64)
    maps = (truth == classes[:, None, None] + 1).astype(np.float32)
    maps[:, truth == IGNORE] = 0.5
    write_cam(folder / f"{record.name}.npz", Cam(maps, classes, np.zeros(num_classes, np.float32)))


def read_prior(folder: Path, record: Record, num_classes: int) -> np.ndarray:
    """Return the (K, H, W) float32 class maps of a record, zero for classes it does not carry."""
    found = read_cam(folder / f"{record.name}.npz")
    maps = np.zeros((num_classes, *found.cam.shape[1:]), np.float32)
    maps[found.classes] = found.cam
    return maps


@torch.no_grad()
def foreground(
    models: Sequence[nn.Module],
    image: Tensor,
    features: Tensor | None,
    classes: Sequence[int],
    size: tuple[int, int],
    dtype: torch.dtype | None,
) -> Tensor:
    """Return the probability of defects against the background, mirror images averaged.

    The label says that each of an image's classes is somewhere in it, so the map of a class is
    scaled by the value that `PRESENT_SHARE` of the image exceed: beside a plain defect a faint one
    of another class is not lost. The highest class counts.

    Args:
        models: students, averaged.
        image: (3, H, W) normalised.
        features: (D, h, w), flipped with the image.
        classes: those of the image's label; without any, all are added up and none is scaled.
        size: (H, W) of the result.
        dtype: of the autocast, None for off.

    Returns:
        (1, H, W) float32 in [0, 1].
    """
    views = torch.stack([image.flip(axes) for axes in MIRRORS])
    if features is not None:
        features = torch.stack([features.flip(axes) for axes in MIRRORS])
    total = torch.zeros((), device=image.device)
    for model in models:
        with autocast(image.device, dtype):
            logits = model(views, features)
        for share, axes in zip(logits.float().softmax(dim=1), MIRRORS, strict=True):
            total = total + share.flip(axes)  # (K + 1, H, W)
    if classes:
        own = total[[k + 1 for k in classes]]  # (M, H, W)
        share = own / (own + total[0])
        highest = share.flatten(1).quantile(1 - PRESENT_SHARE, dim=1).clamp(min=LEAST_LEVEL)
        share = (share / highest[:, None, None]).amax(dim=0).clamp(max=1)
    else:
        share = total[1:].sum(dim=0) / total.sum(dim=0)
    return _resize(share[None, None], size)[0].clamp(0, 1)


def _convolution(width: int, new_width: int, stride: int = 1) -> list[nn.Module]:
    convolution = nn.Conv2d(width, new_width, 3, stride, padding=1)
    return [convolution, nn.BatchNorm2d(new_width), nn.ReLU(inplace=True)]


def _resize(maps: Tensor, size: Sequence[int]) -> Tensor:
    return F.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=False)

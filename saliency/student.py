"""The network of the learned refinement: how it is built, trained on priors, and asked.

A light decoder on the frozen patch features of a self-supervised ViT, which tell what is alike, and
on the image itself, which tells where it ends. The generalised cross-entropy (Zhang and Sabuncu,
NeurIPS 2018) limits what a wrong target can do.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from configs import RefinementConfig, SaliencyConfig
from datasets.files import read_cam, read_image
from datasets.image_maps import ImageMapDataset
from datasets.record import Record
from datasets.transforms import train_transform
from execution import ranks
from execution.cores import on_cores
from execution.progress import progress, steps_bar
from models.backbones import normalisation
from models.device import amp_dtype, autocast, processes_for
from models.optim import loader_of, optimizer_step, parameter_groups, set_lr, warmup_cosine
from models.whole_batch import alike, whole, with_shared_statistics
from saliency.patches import load_encoder

MIRRORS = ((), (1,), (2,), (1, 2))  # flipped axes of a (C, H, W) image or map
HIGH = 0.6  # a pixel may belong to a class whose prior is this or more
# A pixel whose priors are all this or less is background. Painted maps of NEU-Seg, develop part:
# 70.39 mIoU with 0.35, 71.55 with 0.2, 71.61 with 0.15.
LOW = 0.2
ROBUSTNESS = 0.7  # q of the generalised cross-entropy
FEATURE_SIZE = 322  # pixels; the features are those of an image of this size squared
FEATURE_BYTES = 500_000  # of an image on the disk, about, with a ViT-S
BATCH_SIZE = 16
LR = 1e-3
MIN_LR = 1e-5  # what the schedule ends with
WARMUP = 0.1  # of the steps
WEIGHT_DECAY = 1e-2
CLIP_NORM = 5.0
EMA = 0.98  # decay of the averaged weights, which make the maps
# Of the image: what a class of its label is taken to cover at least, and the least value of its map
# that is scaled up to 1, as noise must not be. On every 12th NEU-Seg training image, maps of one
# student: pseudo labels 71.32 mIoU unscaled, 71.77 with these two, 71.94 with 0.02 and 0.05.
PRESENT_SHARE = 0.01
LEAST_LEVEL = 0.3


class StudentInputs:
    """Gives what a student sees of a record; features and priors wait in files of a folder."""

    def __init__(
        self,
        settings: SaliencyConfig,
        num_classes: int,
        feature_dir: Path,
        prior_dir: Path,
        device: torch.device,
    ):
        """Load the network of the features.

        Args:
            settings: backbone and weights are used.
            num_classes: K.
            feature_dir: where features wait as <name>.npy.
            prior_dir: where priors wait as <name>.npz.
            device: of the network.
        """
        self.num_classes = num_classes
        self.feature_dir = feature_dir
        self.prior_dir = prior_dir
        self.processes = processes_for(device)
        self.encode = load_encoder(settings, FEATURE_SIZE, device, with_last=True)
        self.mean, self.std = normalisation(settings.backbone)
        self.grid = self.encode(np.zeros((64, 64, 3), np.uint8)).shape[:2]

    def features(self, record: Record, image: np.ndarray | None = None) -> Tensor:
        """Return (D, h, w) features on the same grid for every image."""
        path = self.feature_dir / f"{record.name}.npy"
        if path.is_file():
            return torch.from_numpy(np.load(path)).float()
        encoded = self.encode(read_image(record.image) if image is None else image)  # (h, w, D)
        encoded = torch.from_numpy(encoded).permute(2, 0, 1)[None]
        return F.interpolate(encoded, self.grid, mode="bilinear", align_corners=False)[0]

    def keep_features(self, records: Sequence[Record]) -> None:
        """Write the features of records to files, but for those that are there."""
        self.feature_dir.mkdir(exist_ok=True)
        own = ranks.part(records)

        def write(record: Record) -> None:
            path = self.feature_dir / f"{record.name}.npy"
            if not path.is_file():
                np.save(path, self.features(record).half().numpy())

        for _ in progress(on_cores(write, own, self.processes), "features", len(own)):
            pass
        ranks.wait()

    def priors(self, record: Record) -> np.ndarray:
        """Return the (K, H, W) float32 class maps of a record, zero for classes it lacks."""
        prior = read_cam(self.prior_dir / f"{record.name}.npz")
        maps = np.zeros((self.num_classes, *prior.cam.shape[1:]), np.float32)
        maps[prior.classes] = prior.cam
        return maps


class Student(nn.Module):
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


def train_student(
    records: Sequence[Record],
    num_classes: int,
    settings: RefinementConfig,
    inputs: StudentInputs,
    device: torch.device,
    seed: int,
) -> nn.Module:
    """Train one network on the priors of the records and return it, weights averaged.

    Args:
        records: images.
        num_classes: K.
        settings: steps and image_size are used.
        inputs: features and priors of a record.
        device: where to train.
        seed: of weights, order and augmentation.
    """
    torch.manual_seed(seed)
    model = Student(len(inputs.features(records[0])), num_classes + 1).to(device)
    model = with_shared_statistics(alike(model))
    average = ModelEmaV3(model, EMA, use_warmup=True)
    # Flips follow below, where features can be flipped too.
    transform = train_transform(settings.image_size, inputs.mean, inputs.std, flip=False)
    dataset = ImageMapDataset(records, num_classes, transform, seed, inputs.priors)
    by_name = {record.name: record for record in records}
    optimizer = torch.optim.AdamW(parameter_groups(model, WEIGHT_DECAY), LR)
    dtype = amp_dtype(device, "auto")
    scaler = torch.amp.GradScaler(device.type, enabled=dtype is torch.float16)
    order = torch.Generator().manual_seed(seed)
    batch_size = min(max(BATCH_SIZE, ranks.size()), len(records))
    loader = loader_of(dataset, batch_size, order, drop_last=True)
    model.train()
    num_steps, step, epoch, losses = settings.steps, 0, 0, []
    bar = steps_bar("refinement", num_steps)
    while step < num_steps:
        dataset.set_epoch(epoch)
        for batch in loader:
            set_lr(optimizer, warmup_cosine(step, num_steps, WARMUP * num_steps, LR, MIN_LR))
            features = torch.stack([inputs.features(by_name[name]) for name in batch["name"]])
            draws = torch.randint(len(MIRRORS), (batch_size,), generator=order).tolist()
            parts = flipped([batch["image"], batch["map"], features], ranks.part(draws))
            image, priors, features, labels = (p.to(device) for p in (*parts, batch["label"]))
            with autocast(device, dtype):
                logits = model(image, features)
            logits, priors, labels = whole([logits, priors, labels])  # of all ranks
            total = partial_label_loss(logits, priors, labels)
            scaler.scale(total).backward()
            optimizer_step(model, optimizer, scaler, CLIP_NORM)
            step += 1
            average.update(model, step)
            losses.append(total.detach())
            bar.update()
            if step == num_steps:
                break
        epoch += 1
    bar.close()
    ends = [torch.stack(part).mean().item() for part in (losses[:20], losses[-20:])]
    print(f"{len(records)} images, {step} steps: loss {ends[0]:.3f} to {ends[1]:.3f}", flush=True)
    return alike(average.module).eval()


def partial_label_loss(logits: Tensor, priors: Tensor, labels: Tensor) -> Tensor:
    """Return the mean loss of the pixels about which the priors say something.

    A pixel may belong to a class whose prior is `HIGH` or more; one whose priors are all `LOW` or
    less is background.

    Args:
        logits: (B, K + 1, H, W), background first.
        priors: (B, K, H, W) in [0, 1], zero for absent classes.
        labels: (B, K) multi-hot.

    Returns:
        0-d float32: generalised cross-entropy of the known pixels plus, over all pixels, the
        cross-entropy of no absent class being there.
    """
    share = logits.float().softmax(dim=1)  # (B, K + 1, H, W)
    allowed = (priors >= HIGH).float()
    is_background = (priors <= LOW).all(dim=1, keepdim=True).float()
    allowed = torch.cat([is_background, allowed], dim=1)
    known = allowed.amax(dim=1)  # (B, H, W)
    likelihood = (share * allowed).sum(dim=1).clamp(1e-6, 1)
    robust = (1 - likelihood**ROBUSTNESS) / ROBUSTNESS
    fit = (robust * known).sum() / known.sum().clamp(min=1)
    absent = (share[:, 1:] * (1 - labels)[:, :, None, None]).sum(dim=1)  # (B, H, W)
    return fit - torch.log1p(-absent.clamp(max=1 - 1e-6)).mean()


def flipped(parts: Sequence[Tensor], draws: Sequence[int]) -> list[Tensor]:
    """Flip (B, ...) images, and what lies on them, each image along the axes of `MIRRORS`."""
    return [
        torch.stack([item.flip(MIRRORS[i]) for item, i in zip(part, draws, strict=True)])
        for part in parts
    ]


@torch.no_grad()
def foreground(
    models: Sequence[nn.Module],
    image: Tensor,
    features: Tensor,
    classes: Sequence[int],
    size: tuple[int, int],
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

    Returns:
        (1, H, W) float32 in [0, 1].
    """
    views = torch.stack([image.flip(axes) for axes in MIRRORS])
    features = torch.stack([features.flip(axes) for axes in MIRRORS])
    dtype = amp_dtype(image.device, "auto")
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

"""Train the segmentation network on pseudo labels.

Reads images and pseudo_labels/ of the run; writes segmentation/checkpoint.pt (the last epoch,
with all that an exact resume needs), segmentation/best.pt (highest mIoU on the validation part)
and segmentation/log.jsonl, one line per epoch. Validation compares with the pseudo labels of
images held out of the training split; no pixel mask is opened.
"""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from timm.utils import ModelEmaV3
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from configs import Config, SegmentationConfig, refuse_other_settings, to_dict
from configs.command_line import load_run, run_stage, save_config, stage_parser
from datasets.dense import DenseDataset
from datasets.files import read_mask
from datasets.record import IGNORE, Record
from datasets.sources import read_data
from datasets.transforms import eval_transform, train_transform
from metrics import ConfusionMatrix
from models.checkpoint import load_checkpoint, restore_training, save_checkpoint, training_state
from models.device import amp_dtype, autocast, select_device
from models.optim import (
    batches_of,
    finite_or_raise,
    mean_terms,
    optimizer_step,
    parameter_groups,
    set_lr,
    warmup_cosine,
)
from segmentation.copy_paste import paste_defects
from segmentation.losses import corrected, dense_loss
from segmentation.networks import build_network, network_size, normalisation

MIN_LR_SHARE = 0.01  # of segmentation.lr: first and last rate of the schedule
CLIP_NORM = 5.0
RESUME_SECTIONS = ("data", "pseudo_label", "segmentation")  # must not change on the way
SEED_STRIDE = 1_000_003  # keeps the epochs of neighbouring seeds apart


def main(argv: Sequence[str] | None = None) -> None:
    """Train, or continue, one segmentation network."""
    parser = stage_parser(__doc__)
    parser.prog = "python -m segmentation.train"
    parser.add_argument(
        "--resume",
        action="store_true",
        help="continue from segmentation/checkpoint.pt if it is there",
    )
    args = parser.parse_args(argv)
    config, out_dir = load_run(args)
    settings = config.segmentation
    device = select_device(args.device)
    dtype = amp_dtype(device, settings.amp)

    data = read_data(config.data, out_dir / "labels.csv")
    num_classes = len(data.class_names)
    steps_per_epoch = steps_of(len(data.split("fit")), settings.batch_size)
    mask_dir = out_dir / "pseudo_labels"
    size = network_size(settings.image_size, settings.network)
    mean, std = normalisation(settings.encoder, settings.pretrained)
    moves = {"flip": settings.flip, "rotate": settings.rotate, "jitter": settings.jitter}
    moves["zoom"] = settings.zoom
    fit_transform = train_transform(size, mean, std, **moves)
    val_transform = eval_transform(size, mean, std)
    common = {"seed": settings.seed, "crop": settings.crop}  # val: the same crops in every epoch
    fit_data = DenseDataset(data.split("fit"), mask_dir, num_classes, fit_transform, **common)
    val_data = DenseDataset(data.split("val"), mask_dir, num_classes, val_transform, **common)
    _require_labels(data.split("val"), mask_dir, num_classes)

    torch.manual_seed(settings.seed)
    model = build_network(
        settings.network, settings.encoder, settings.pretrained, num_classes + 1
    ).to(device)
    average = ModelEmaV3(model, settings.ema, use_warmup=True) if settings.ema else None
    kept = average.module if average else model  # the weights that are validated and written
    num_steps = min(settings.epochs * steps_per_epoch, settings.max_steps or 10**9)
    warmup_steps = min(settings.warmup_steps, num_steps // 2)
    groups = parameter_groups(model, settings.weight_decay)
    optimizer = torch.optim.AdamW(groups, lr=settings.lr)
    scaler = torch.amp.GradScaler(device.type, enabled=dtype is torch.float16)

    state = {"epoch": 0, "step": 0, "best_miou": -1.0}
    folder = out_dir / "segmentation"
    save_config(config, out_dir)
    if args.resume and (folder / "checkpoint.pt").is_file():
        checkpoint = load_checkpoint(folder / "checkpoint.pt", "segmentation/train.py")
        refuse_other_settings(
            checkpoint["config"], config, RESUME_SECTIONS, "segmentation/checkpoint.pt"
        )
        state = restore_training(checkpoint, model, optimizer, scaler, average)
    else:
        (folder / "log.jsonl").unlink(missing_ok=True)
    _print_start(model, fit_data, val_data, size, device, dtype, num_steps)
    facts = {"config": to_dict(config), "class_names": list(data.class_names)}
    facts |= {"mean": list(mean), "std": list(std)}

    bar = tqdm(total=num_steps, initial=state["step"], disable=None, dynamic_ncols=True)
    while state["step"] < num_steps:
        epoch, started = state["epoch"], time.monotonic()
        model.train()
        # All randomness of an epoch comes from here, so that a resume is exact.
        torch.manual_seed(settings.seed * SEED_STRIDE + epoch)
        rows = []
        batches = _loader(fit_data, config, device, epoch)
        bar.set_description(f"epoch {epoch + 1}")
        for batch in batches:
            lr = warmup_cosine(
                state["step"], num_steps, warmup_steps, settings.lr, settings.lr * MIN_LR_SHARE
            )
            set_lr(optimizer, lr)
            images = batch["image"].to(device, non_blocking=True)
            masks, labels = batch["mask"].to(device), batch["label"].to(device)
            if average and state["step"] >= settings.teacher_after * num_steps:
                average.eval()
                with torch.no_grad(), autocast(device, dtype):
                    of_teacher = average.module(images)
                masks = corrected(masks, of_teacher, labels, settings.teacher_confidence)
            if settings.copy_paste:
                images, masks, labels = paste_defects(images, masks, labels, settings.copy_paste)
            with autocast(device, dtype):
                logits = model(images)
            total, terms = dense_loss(
                logits,
                masks,
                labels,
                kind=settings.loss,
                robustness=settings.robustness,
                small_loss=settings.small_loss,
                edge_smoothing=settings.edge_smoothing,
                dice_weight=settings.dice,
                absent_weight=settings.absent,
            )
            values = {"loss": total.item(), **{name: term.item() for name, term in terms.items()}}
            finite_or_raise(values, epoch + 1, state["step"] + 1)
            scaler.scale(total).backward()
            optimizer_step(model, optimizer, scaler, CLIP_NORM)
            state["step"] += 1
            if average:
                average.update(model, state["step"])
            rows.append(values)
            bar.update()
            bar.set_postfix({name: f"{value:.3f}" for name, value in rows[-1].items()})
            if state["step"] == num_steps:
                break
        state["epoch"] += 1

        miou = validate(kept, val_data, config, device, dtype)
        line = {"epoch": state["epoch"], "step": state["step"], "lr": lr, **mean_terms(rows)}
        line |= {"val_miou": miou, "seconds": round(time.monotonic() - started, 1)}
        is_best = miou > state["best_miou"]
        state["best_miou"] = max(miou, state["best_miou"])
        if is_best:
            best = {"model": kept.state_dict(), "progress": dict(state)}
            save_checkpoint(folder / "best.pt", facts | best)
        content = facts | training_state(model, optimizer, scaler, state, average)
        save_checkpoint(folder / "checkpoint.pt", content)
        with (folder / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        print(
            f"epoch {line['epoch']}, step {line['step']} of {num_steps}: loss {line['loss']:.3f}, "
            f"validation mIoU with the pseudo labels {miou:.2f} % ({line['seconds']:.0f} s)"
        )
    bar.close()
    print(
        f"wrote {folder / 'checkpoint.pt'} (step {state['step']}) and best.pt (mIoU with the "
        f"pseudo labels {state['best_miou']:.2f} %)"
    )
    print(f"next: python -m segmentation.infer --config {out_dir / 'config.toml'} --out {out_dir}")


def _require_labels(records: Sequence[Record], mask_dir: Path, num_classes: int) -> None:
    """Check that the validation part has a pixel to validate on."""
    paths = (mask_dir / f"{record.name}.png" for record in records)
    if not any((read_mask(path, num_classes) != IGNORE).any() for path in paths):
        raise ValueError(
            f"{mask_dir}: expected pseudo labels of the {len(records)} validation images, got "
            f"{IGNORE} (unknown) in every pixel. Hold more images out with data.val_fraction, or "
            "see why the localiser finds nothing in these."
        )


@torch.no_grad()
def validate(
    model: nn.Module, dataset: DenseDataset, config: Config, device: torch.device, dtype: Any
) -> float:
    """Return the mIoU (%) with the pseudo labels of held-out training images, at input size."""
    model.eval()
    matrix = ConfusionMatrix(dataset.num_classes)
    batch_size = config.segmentation.batch_size
    for batch in DataLoader(dataset, batch_size, num_workers=config.data.workers):
        with autocast(device, dtype):
            logits = model(batch["image"].to(device))
        matrix.update(batch["mask"].numpy(), logits.argmax(1).cpu().numpy())
    return matrix.miou()


def steps_of(num_images: int, batch_size: int) -> int:
    """Return the optimizer steps of an epoch; a last batch of one image is left out.

    Raises:
        ValueError: every batch would hold one image, which DeepLab cannot train on.
    """
    if batch_size < 2:
        raise ValueError(
            f"segmentation.batch_size: expected 2 or more, got {batch_size}. The network "
            "normalises over the images of a batch."
        )
    if num_images < 2:
        raise ValueError(
            f"training images: expected at least 2 outside the validation part, got {num_images}. "
            "Add images or lower data.val_fraction."
        )
    return batches_of(num_images, batch_size) - (num_images % batch_size == 1)


def _loader(dataset: DenseDataset, config: Config, device: torch.device, epoch: int) -> DataLoader:
    """Return the shuffled batches of an epoch; the order depends on seed and epoch alone."""
    settings: SegmentationConfig = config.segmentation
    dataset.set_epoch(epoch)
    return DataLoader(
        dataset,
        settings.batch_size,
        shuffle=True,
        drop_last=len(dataset) % settings.batch_size == 1,
        num_workers=config.data.workers,
        pin_memory=device.type == "cuda",
        generator=torch.Generator().manual_seed(settings.seed * SEED_STRIDE + epoch),
    )


def _print_start(
    model: nn.Module,
    fit: DenseDataset,
    val: DenseDataset,
    size: tuple[int, int],
    device: torch.device,
    dtype: torch.dtype | None,
    num_steps: int,
) -> None:
    parameters = sum(p.numel() for p in model.parameters())
    print(
        f"{len(fit)} training and {len(val)} validation images of {size[0]}x{size[1]}, "
        f"{parameters / 1e6:.2f} M parameters, {num_steps} steps, {device.type}, "
        f"autocast {str(dtype).removeprefix('torch.') if dtype else 'off'}"
    )


if __name__ == "__main__":
    run_stage(main)

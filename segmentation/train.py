"""Train the segmentation network on pseudo labels.

Reads images and pseudo_labels/ of the run; writes segmentation/checkpoint.pt (the last epoch,
with all that an exact resume needs, which predictions are made with), segmentation/best.pt (highest
mIoU on the validation part), segmentation/log.jsonl, TensorBoard curves and pictures. Validation
compares with the pseudo labels of images held out of the training split, so their labels choose
best.pt; no pixel mask is opened.
"""

import math
import time
from collections.abc import Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch
from timm.utils import ModelEmaV3
from torch import nn

from configs import Config, own_settings, refuse_other_settings, to_dict
from configs.command_line import run_stage, stage_parser
from datasets.examples import Examples
from datasets.files import read_mask
from datasets.image_maps import ImageMapDataset, pseudo_labels
from datasets.pictures import paint_mask
from datasets.record import IGNORE, spread
from datasets.transforms import eval_transform, train_transform
from execution import ranks
from execution.pauses import Pauses
from execution.progress import steps_bar
from models.device import amp_dtype, autocast, select_device
from models.optim import (
    epoch_batches,
    finite_or_raise,
    finite_outputs_or_raise,
    mean_terms,
    optimizer_step,
    parameter_groups,
    seed_of,
    set_lr,
    steps_per_epoch,
    validation_batches,
    warmup_cosine,
)
from models.whole_batch import alike, whole, with_shared_statistics
from pipeline import next_step
from runfolder.checkpoint import load_checkpoint, restore_training, save_checkpoint, training_state
from runfolder.run import MaskMeta, Run, masked_in, open_run, read_meta
from runfolder.training_log import TrainingLog
from scoring.confusion import ConfusionMatrix
from segmentation.copy_paste import paste_defects
from segmentation.losses import dense_loss
from segmentation.networks import build_network, network_size, normalisation
from segmentation.specks import least_areas

MIN_LR_SHARE = 0.01  # of segmentation.lr: first and last rate of the schedule
WEIGHT_DECAY = 0.01
CLIP_NORM = 5.0  # of the gradient
MAX_MASKS = 2000  # pseudo labels whose regions tell what a speck is
RESUME_SECTIONS = ("data", "pseudo_label", "segmentation")  # must not change on the way


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
    run = open_run(args)
    config, settings = run.config, run.config.segmentation
    device, workers = ranks.join(select_device(args.device)), config.data.workers
    dtype = amp_dtype(device, settings.amp)

    # Data and model.
    mean, std = normalisation(settings.encoder, settings.pretrained)
    maps_meta = read_meta(run.pseudo_label_dir, MaskMeta)  # refuses those of a stopped call
    fit_data, val_data = _datasets(run, mean, std)
    torch.manual_seed(settings.seed)
    model = build_network(
        settings.network, settings.encoder, settings.pretrained, run.num_classes + 1
    ).to(device)
    model = with_shared_statistics(alike(model))
    average = ModelEmaV3(model, settings.ema, use_warmup=True) if settings.ema else None
    kept = average.module if average else model  # the weights that are validated and written

    # Schedule and optimizer.
    num_batches = steps_per_epoch(len(fit_data), settings.batch_size, least_batch=2)
    num_steps = min(settings.epochs * num_batches, settings.max_steps or 10**9)
    warmup_steps = min(round(settings.warmup_epochs * num_batches), num_steps // 2)
    peak_lr, min_lr = settings.lr, settings.lr * MIN_LR_SHARE
    optimizer = torch.optim.AdamW(parameter_groups(model, WEIGHT_DECAY), lr=peak_lr)
    scaler = torch.amp.GradScaler(device.type, enabled=dtype is torch.float16)

    # Where an earlier call stopped.
    state: dict[str, Any] = {"epoch": 0, "step": 0, "best": None}
    begun: list[dict[str, float]] = []  # losses of the steps of an epoch that was begun
    run.begin_stage(run.segmentation_dir)
    path = run.segmentation_dir / "checkpoint.pt"
    if args.resume and path.is_file():
        checkpoint = load_checkpoint(path, "python -m segmentation.train")
        name = "segmentation/checkpoint.pt"
        refuse_other_settings(checkpoint["config"], config, RESUME_SECTIONS, name)
        state = restore_training(checkpoint, model, optimizer, scaler, average)
        begun = checkpoint.get("begun", [])
    facts = {"config": to_dict(config), "class_names": list(run.data.class_names)}
    facts |= {"mean": list(mean), "std": list(std), "masked": masked_in(maps_meta)}
    masks = (fit_data.read_map(record) for record in spread(fit_data.records, MAX_MASKS))
    facts["least_areas"] = least_areas(masks, run.num_classes)
    height, width = network_size(settings.image_size, settings.network)
    print(
        f"{len(fit_data)} training and {len(val_data)} validation images of {height}x{width}, "
        f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters, {num_steps} steps, "
        f"peak lr {peak_lr:.3g}, {device.type}, autocast {dtype or 'off'}"
    )

    first = ranks.is_first()
    log = TrainingLog(run.segmentation_dir, num_steps, state["epoch"] + 1) if first else None
    examples = Examples(val_data, run.data.class_names, (mean, std))
    bar, pauses = steps_bar("training", num_steps, state["step"]), Pauses()
    while state["step"] < num_steps:
        # An epoch. Its number and those of its steps seed all randomness: a resume is exact.
        epoch, started = state["epoch"], time.monotonic()
        model.train()
        fit_data.set_epoch(epoch)
        rows, begun = begun, []
        batches = epoch_batches(fit_data, settings, workers, device, epoch, 2)
        for batch in islice(batches, len(rows), None):
            if rows and pauses.due():
                saved = training_state(model, optimizer, scaler, state, average)
                save_checkpoint(path, facts | saved | {"begun": rows})
                pauses.saved()
            # A step: rate, forward, loss, backward, clip, update.
            torch.manual_seed(seed_of(settings.seed, state["step"] * ranks.size() + ranks.rank()))
            lr = warmup_cosine(state["step"], num_steps, warmup_steps, peak_lr, min_lr)
            set_lr(optimizer, lr)
            images = batch["image"].to(device, non_blocking=True)
            masks = batch["map"].to(device, non_blocking=True)[:, 0].long()  # (B, H, W)
            if settings.copy_paste:
                images, masks = paste_defects(images, masks, settings.copy_paste)
            with autocast(device, dtype):
                logits = model(images)
            logits, masks = whole([logits, masks])  # of all ranks
            total, terms = dense_loss(logits, masks)
            values = {"total": total.item(), **{name: term.item() for name, term in terms.items()}}
            finite_or_raise(values, epoch + 1, state["step"] + 1)
            scaler.scale(total).backward()
            optimizer_step(model, optimizer, scaler, CLIP_NORM)
            state["step"] += 1
            if average:
                average.update(model, state["step"])
            rows.append(values)
            bar.set_postfix({n: f"{value:.3f}" for n, value in values.items()}, refresh=False)
            bar.update()
            if state["step"] == num_steps:
                break
        state["epoch"] += 1

        # Validation.
        line: dict[str, Any] = {"epoch": state["epoch"], "step": state["step"], "lr": lr}
        line["train"] = mean_terms(rows)
        is_best = False
        if state["step"] == num_steps or state["epoch"] % settings.eval_every == 0:
            line["val"] = validate(kept, val_data, config, device, dtype)
            miou, best = line["val"]["miou"], state["best"]
            is_best = math.isfinite(miou) and (best is None or miou > best)
            state["best"] = miou if is_best else best
        line["seconds"] = round(time.monotonic() - started, 1)

        # Files: checkpoint.pt last, as a resume from it takes the others for written.
        if ranks.is_first():
            log.write(line)
            if examples.places and log.wants_picture(state["step"], num_batches):
                log.write_picture(state["epoch"], draw_examples(kept, examples, device, dtype))
            if is_best:
                best = {"model": kept.state_dict(), "progress": dict(state)}
                save_checkpoint(run.segmentation_dir / "best.pt", facts | best)
            save_checkpoint(path, facts | training_state(model, optimizer, scaler, state, average))
            pauses.saved()
    bar.close()
    pauses.close()
    if not ranks.is_first():
        return
    log.close(own_settings(config))
    print(
        f"wrote {run.segmentation_dir}/: checkpoint.pt (step {state['step']}), best.pt (mIoU with "
        f"the pseudo labels {state['best'] or 0:.2f} %)"
    )
    print(next_step("segmentation", run))


def _datasets(
    run: Run, mean: Sequence[float], std: Sequence[float]
) -> tuple[ImageMapDataset, ImageMapDataset]:
    """Return the images that are trained on, and those held out, with their pseudo labels."""
    settings = run.config.segmentation
    size = network_size(settings.image_size, settings.network)
    datasets = []
    for split, transform in (
        ("fit", train_transform(size, mean, std)),
        ("val", eval_transform(size, mean, std)),
    ):
        records = run.data.split(split)
        maps = pseudo_labels(records, run.pseudo_label_dir, run.num_classes, settings.crop)
        datasets.append(ImageMapDataset(records, run.num_classes, transform, settings.seed, *maps))
    _require_labels(run)
    datasets[1].set_epoch(0)  # the same crops in every validation
    return datasets[0], datasets[1]


def _require_labels(run: Run) -> None:
    """Check that the validation part has a pixel to validate on."""
    records = run.data.split("val")
    paths = (run.pseudo_label_dir / f"{record.name}.png" for record in records)
    if not any((read_mask(path, run.num_classes) != IGNORE).any() for path in paths):
        raise ValueError(
            f"{run.pseudo_label_dir}: expected pseudo labels of the {len(records)} validation "
            f"images, got {IGNORE} (unknown) in every pixel. Hold more images out with "
            "data.val_fraction, or see why the localiser finds nothing in these."
        )


@torch.no_grad()
def validate(
    model: nn.Module, dataset: ImageMapDataset, config: Config, device: torch.device, dtype: Any
) -> dict[str, float]:
    """Compare with the pseudo labels of held-out training images, at input size.

    Returns:
        The mIoU and the mean IoU of the classes without background, in %; NaN where neither masks
        nor pseudo labels show one.
    """
    model.eval()
    matrix = ConfusionMatrix(dataset.num_classes)
    batch_size, workers = config.segmentation.batch_size, config.data.workers
    for _, batch in validation_batches(dataset, batch_size, workers):
        with autocast(device, dtype):
            logits = model(batch["image"].to(device))
        finite_outputs_or_raise(logits)
        matrix.update(batch["map"][:, 0].numpy(), logits.argmax(1).cpu().numpy())
    matrix.counts = sum(ranks.gathered(matrix.counts))
    scores = matrix.scores()
    known = [iou for iou in scores.iou[1:] if not math.isnan(iou)]
    return {"miou": scores.miou, "foreground": sum(known) / len(known) if known else math.nan}


@torch.no_grad()
def draw_examples(
    model: nn.Module, examples: Examples, device: torch.device, dtype: Any
) -> np.ndarray:
    """Draw held-out images with their pseudo labels and the masks that the model gives them now.

    Returns:
        (H, W, 3) uint8.
    """
    model.eval()
    batch = examples.batch
    with autocast(device, dtype):
        masks = model(batch["image"].to(device)).argmax(1).cpu().numpy()
    rows = {"pseudo label": batch["map"][:, 0].numpy(), "prediction": masks}
    painted = {
        name: list(map(paint_mask, examples.images, of_row)) for name, of_row in rows.items()
    }
    return examples.picture(painted)


if __name__ == "__main__":
    run_stage(main)

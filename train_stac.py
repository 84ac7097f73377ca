"""Train the STAC localiser from images, image labels and saliency maps (docs/method.md, A to E).

Reads images, labels.csv and saliency/ of the run; writes stac/checkpoint.pt (the last epoch, with
all that an exact resume needs), stac/best.pt (lowest validation loss), stac/log.jsonl, TensorBoard
curves and pictures and, at the end, stac/model.safetensors with model.json to hand on. Validation
uses images and labels held out of the training split; no pixel mask is opened.
"""

import math
import time
from collections.abc import Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch
from sklearn.metrics import average_precision_score
from torch import Tensor

from configs import Config, own_settings, refuse_other_settings, to_dict
from configs.command_line import run_stage, stage_parser
from datasets.defects import augment_defects
from datasets.examples import Examples
from datasets.image_maps import ImageMapDataset, balance, saliency_maps
from datasets.pictures import paint_cam, paint_grey
from datasets.transforms import eval_transform, train_transform
from execution import ranks
from execution.pauses import Pauses
from execution.progress import steps_bar
from losses.stac import stac_loss
from models.backbones import normalisation, whole_patches
from models.cam import min_max, raw_cam, resize_and_sum
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
from models.stac import Stac, StacOutput, build_stac, image_scores
from models.whole_batch import alike, whole, with_shared_statistics
from pipeline import next_step
from runfolder.checkpoint import (
    load_checkpoint,
    restore_training,
    save_checkpoint,
    save_weights,
    training_state,
)
from runfolder.run import Run, SaliencyMeta, masked_in, open_run, read_meta
from runfolder.training_log import TrainingLog
from scoring.images import even_thresholds

LR_BATCH = 512  # train.lr is the rate of a batch of this size
MIN_LR = 1e-6  # first and last rate of the schedule
WEIGHT_DECAY = 0.05
CLIP_NORM = 5.0  # of the gradient
RESUME_SECTIONS = ("data", "saliency", "refinement", "train", "loss")  # must not change on the way


def main(argv: Sequence[str] | None = None) -> None:
    """Train, or continue, one localiser."""
    parser = stage_parser(__doc__)
    parser.add_argument(
        "--resume", action="store_true", help="continue from stac/checkpoint.pt if it is there"
    )
    args = parser.parse_args(argv)
    run = open_run(args)
    config, train = run.config, run.config.train
    device, workers = ranks.join(select_device(args.device)), config.data.workers
    dtype = amp_dtype(device, train.amp)

    # Model and data.
    torch.manual_seed(train.seed)
    model = build_stac(train, run.num_classes, train.pretrained).to(device)
    model = with_shared_statistics(alike(model))
    mean, std = normalisation(train.backbone)
    maps_meta = read_meta(run.saliency_dir, SaliencyMeta)  # refuses maps of a stopped call
    fit_data, val_data = _datasets(run, model, mean, std)

    # Schedule and optimizer.
    num_batches = steps_per_epoch(len(fit_data), train.batch_size)
    num_steps = min(train.epochs * num_batches, train.max_steps or 10**9)
    warmup_steps = min(round(train.warmup_epochs * num_batches), num_steps // 2)
    peak_lr = train.lr * train.batch_size / LR_BATCH
    groups = parameter_groups(
        model, WEIGHT_DECAY, lambda name: model.lr_scale(name, train.head_lr_scale)
    )
    optimizer = torch.optim.AdamW(groups, lr=peak_lr)
    scaler = torch.amp.GradScaler(device.type, enabled=dtype is torch.float16)
    generator = torch.Generator(device)

    # Where an earlier call stopped.
    state: dict[str, Any] = {"epoch": 0, "step": 0, "best": None}
    begun: list[dict[str, float]] = []  # losses of the steps of an epoch that was begun
    label_thresholds: list[float] = []  # of the last validation
    run.begin_stage(run.stac_dir)
    path = run.stac_dir / "checkpoint.pt"
    if args.resume and path.is_file():
        checkpoint = load_checkpoint(path, "train_stac.py")
        label_thresholds = checkpoint.get("label_thresholds", [])
        refuse_other_settings(checkpoint["config"], config, RESUME_SECTIONS, "stac/checkpoint.pt")
        state = restore_training(checkpoint, model, optimizer, scaler)
        begun = checkpoint.get("begun", [])
    facts = {"config": to_dict(config), "class_names": list(run.data.class_names)}
    facts |= {"mean": list(mean), "std": list(std), "masked": masked_in(maps_meta)}
    grid = "x".join(map(str, model.encoder.grid_size))
    print(
        f"{len(fit_data)} training and {len(val_data)} validation images, {grid} patches, "
        f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters, {num_steps} steps, "
        f"peak lr {peak_lr:.3g}, {device.type}, autocast {dtype or 'off'}"
    )

    log = TrainingLog(run.stac_dir, num_steps, state["epoch"] + 1) if ranks.is_first() else None
    examples = Examples(val_data, run.data.class_names, (mean, std))
    bar, pauses = steps_bar("training", num_steps, state["step"]), Pauses()
    while state["step"] < num_steps:
        # An epoch. Its number and those of its steps seed all randomness: a resume is exact.
        epoch, started = state["epoch"], time.monotonic()
        model.train()
        fit_data.set_epoch(epoch)
        rows, begun = begun, []
        batches = epoch_batches(fit_data, train, workers, device, epoch)
        for batch in islice(batches, len(rows), None):
            if rows and pauses.due():
                saved = training_state(model, optimizer, scaler, state)
                saved |= {"begun": rows, "label_thresholds": label_thresholds}
                save_checkpoint(path, facts | saved)
                pauses.saved()
            # A step: rate, forward, loss, backward, clip, update.
            torch.manual_seed(seed_of(train.seed, state["step"] * ranks.size() + ranks.rank()))
            generator.manual_seed(seed_of(train.seed, state["step"]))
            lr = warmup_cosine(state["step"], num_steps, warmup_steps, peak_lr, MIN_LR)
            set_lr(optimizer, lr)
            with autocast(device, dtype):
                total, terms, _ = batch_loss(model, batch, config, device, generator)
            values = _numbers(total, terms)  # the one wait for the device
            finite_or_raise(values, epoch + 1, state["step"] + 1)
            scaler.scale(total).backward()
            optimizer_step(model, optimizer, scaler, CLIP_NORM)
            state["step"] += 1
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
        if state["step"] == num_steps or state["epoch"] % train.eval_every == 0:
            line["val"], label_thresholds = validate(model, val_data, config, device, dtype)
            loss, best = line["val"]["total"], state["best"]
            is_best = math.isfinite(loss) and (best is None or loss <= best)
            state["best"] = loss if is_best else best
        line["seconds"] = round(time.monotonic() - started, 1)

        # Files: checkpoint.pt last, as a resume from it takes the others for written.
        if ranks.is_first():
            log.write(line)
            if examples.places and log.wants_picture(state["step"], num_batches):
                picture = draw_examples(model, examples, config, device, dtype)
                log.write_picture(state["epoch"], picture)
            facts["label_thresholds"] = label_thresholds
            if is_best:
                best = {"model": model.state_dict(), "progress": dict(state)}
                save_checkpoint(run.stac_dir / "best.pt", facts | best)
            save_checkpoint(path, facts | training_state(model, optimizer, scaler, state))
            pauses.saved()
    bar.close()
    pauses.close()
    if not ranks.is_first():
        return
    log.close(own_settings(config))
    save_weights(
        run.stac_dir / "model.safetensors", model.state_dict(), facts | {"progress": state}
    )
    print(
        f"wrote {run.stac_dir}/: checkpoint.pt (step {state['step']}), best.pt, model.safetensors"
    )
    print(next_step("train", run))


def _datasets(
    run: Run, model: Stac, mean: Sequence[float], std: Sequence[float]
) -> tuple[ImageMapDataset, ImageMapDataset]:
    """Return the images that are trained on, and those held out, with their saliency maps."""
    train = run.config.train
    size = whole_patches(train.image_size, model.encoder.patch_size)
    datasets = []
    for records, transform in (
        (balance(run.data.split("fit"), train.balance), train_transform(size, mean, std)),
        (run.data.split("val"), eval_transform(size, mean, std)),
    ):
        maps = saliency_maps(records, run.saliency_dir, train.crop)
        datasets.append(ImageMapDataset(records, run.num_classes, transform, train.seed, *maps))
    datasets[1].set_epoch(0)  # the same crops in every validation
    return datasets[0], datasets[1]


def batch_loss(
    model: Stac, batch: dict[str, Any], config: Config, device: torch.device, generator: Any
) -> tuple[Tensor, dict[str, Tensor], StacOutput]:
    """Run the model on a batch of `ImageMapDataset` items.

    In training the batch is this rank's part of one, and the losses are those of the whole.

    Returns:
        The weighted sum of the losses, each unweighted loss, and what the model said.
    """
    images = batch["image"].to(device, non_blocking=True)
    labels = batch["label"].to(device, non_blocking=True)
    saliency = batch["map"].to(device, non_blocking=True)
    if model.training and config.train.augment_defects:
        norm = normalisation(config.train.backbone)
        images, saliency, labels = augment_defects(
            images, saliency, labels, config.train.augment_defects, norm
        )
    output = model(images)
    if model.training:
        output, labels, saliency = whole_batch(output, labels, saliency)
    with torch.autocast(device.type, enabled=False):  # the losses are float32
        total, terms = stac_loss(output, labels, saliency, config.loss, generator)
    return total, terms, output


def whole_batch(
    output: StacOutput, labels: Tensor, saliency: Tensor
) -> tuple[StacOutput, Tensor, Tensor]:
    """Return what the ranks' models gave for all of a batch, with its labels and maps."""
    parts = {name: values for name, values in output._asdict().items() if values is not None}
    parts["class_tokens"] = output.class_tokens.movedim(1, 0)  # images first
    *parts_of_all, labels, saliency = whole([*parts.values(), labels, saliency])
    output = output._replace(**dict(zip(parts, parts_of_all, strict=True)))
    return output._replace(class_tokens=output.class_tokens.movedim(0, 1)), labels, saliency


@torch.no_grad()
def validate(
    model: Stac, dataset: ImageMapDataset, config: Config, device: torch.device, dtype: Any
) -> tuple[dict[str, float], list[float]]:
    """Score held-out training images.

    Returns:
        The mean losses and the classification mAP (%); and the image score from which each class
        is taken to be there.
    """
    model.eval()
    generator = torch.Generator(device)
    found: dict[int, tuple] = {}
    for number, batch in validation_batches(dataset, config.train.batch_size, config.data.workers):
        generator.manual_seed(seed_of(config.train.seed, number))
        with autocast(device, dtype):
            total, terms, output = batch_loss(model, batch, config, device, generator)
        score = image_scores(output)
        finite_outputs_or_raise(score)
        labels = batch["label"].numpy()
        found[number] = _numbers(total, terms), score.float().cpu().numpy(), labels
    for of_rank in ranks.gathered(found):
        found |= of_rank
    rows, scores, labels = zip(*(found[number] for number in sorted(found)), strict=True)
    labels, scores = np.concatenate(labels), np.concatenate(scores)
    precision = mean_average_precision(labels, scores)
    return {**mean_terms(rows), "map": precision}, even_thresholds(scores, labels > 0)


@torch.no_grad()
def draw_examples(
    model: Stac, examples: Examples, config: Config, device: torch.device, dtype: Any
) -> np.ndarray:
    """Draw held-out images with their saliency maps and the CAMs that the model gives them now.

    Returns:
        (H, W, 3) uint8.
    """
    model.eval()
    batch = examples.batch
    with autocast(device, dtype):
        output = model(batch["image"].to(device))
    cam_type, size = config.pseudo_label.cam_type, batch["image"].shape[-2:]
    cams = []
    pairs = zip(raw_cam(output, cam_type), batch["label"] > 0, strict=True)
    for image, (maps, label) in zip(examples.images, pairs, strict=True):
        cam = min_max(resize_and_sum([maps], size)).cpu()[label]  # (M, H, W), M may be 0
        cams.append(paint_cam(image, cam.numpy(), np.flatnonzero(label)))
    saliency = [paint_grey(one.numpy()) for one in batch["map"][:, 0]]
    return examples.picture({"saliency": saliency, f"CAM ({cam_type})": cams})


def mean_average_precision(labels: np.ndarray, scores: np.ndarray) -> float:
    """Return the mean over classes of the average precision over images, in %.

    Classes without a positive image are left out; NaN where that leaves none.

    Args:
        labels: (n, K) multi-hot.
        scores: (n, K), higher is more certain.
    """
    present = labels.any(axis=0)
    if not present.any():
        return float("nan")
    return 100 * float(average_precision_score(labels[:, present], scores[:, present]))


def _numbers(total: Tensor, terms: dict[str, Tensor]) -> dict[str, float]:
    """Bring a loss and its terms to the host in one transfer."""
    values = torch.stack([total.detach(), *(term.to(total.dtype) for term in terms.values())])
    return dict(zip(("total", *terms), values.tolist(), strict=True))


if __name__ == "__main__":
    run_stage(main)

"""Train the STAC localiser from images, image labels and saliency maps (METHOD A-D).

Reads images, labels.csv and saliency/ of the run; writes stac/checkpoint.pt (the last epoch, with
all that an exact resume needs), stac/best.pt (lowest validation loss), stac/log.jsonl, TensorBoard
curves and, at the end, stac/model.safetensors with model.json to hand on. Validation uses images
and labels held out of the training split; no pixel mask is opened.
"""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.metrics import average_precision_score
from timm.utils import ModelEmaV3
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from configs import Config, refuse_other_settings, to_dict
from configs.command_line import load_run, run_stage, save_config, stage_parser
from datasets.sources import read_data
from datasets.transforms import eval_transform, train_transform
from datasets.weak import WeakDataset, balance, with_saliency
from losses.stac import stac_loss
from models.cam import training_cam
from models.checkpoint import (
    load_checkpoint,
    restore_training,
    save_checkpoint,
    save_weights,
    training_state,
)
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
from models.stac import Stac, build_stac, image_scores
from models.vit import normalisation, whole_patches

LR_BATCH = 512  # train.lr is the rate of a batch of this size
RESUME_SECTIONS = ("data", "saliency", "refinement", "train", "loss")  # must not change on the way
SEED_STRIDE = 1_000_003  # keeps the epochs of neighbouring seeds apart


def main(argv: Sequence[str] | None = None) -> None:
    """Train, or continue, one localiser."""
    parser = stage_parser(__doc__)
    parser.add_argument(
        "--resume", action="store_true", help="continue from stac/checkpoint.pt if it is there"
    )
    args = parser.parse_args(argv)
    config, out_dir = load_run(args)
    train = config.train
    device = select_device(args.device)
    dtype = amp_dtype(device, train.amp)

    data = read_data(config.data, out_dir / "labels.csv")
    num_classes = len(data.class_names)
    torch.manual_seed(train.seed)
    model = build_stac(to_dict(config)["train"], num_classes, train.pretrained).to(device)
    model.encoder.freeze(train.frozen_blocks)
    average = ModelEmaV3(model, train.ema, use_warmup=True) if train.ema else None
    kept = average.module if average else model  # the weights that are validated and written
    size = whole_patches(train.image_size, model.encoder.patch_size)
    mean, std = normalisation(train.backbone)

    fit = with_saliency(data.split("fit"), out_dir / "saliency")
    val = with_saliency(data.split("val"), out_dir / "saliency")
    fit = balance(fit, train.balance)
    moves = {"flip": train.flip, "rotate": train.rotate, "jitter": train.jitter}
    fit_transform = train_transform(size, mean, std, **moves)
    crops = {"crop": train.crop, "crop_support": train.crop_support}
    fit_data = WeakDataset(fit, num_classes, fit_transform, train.seed, **crops)
    val_transform = eval_transform(size, mean, std)  # of the same crops in every epoch
    val_data = WeakDataset(val, num_classes, val_transform, train.seed, **crops)

    num_batches = batches_of(len(fit), train.batch_size)
    steps_per_epoch = batches_of(num_batches, train.accumulate)
    num_steps = min(train.epochs * steps_per_epoch, train.max_steps or 10**9)
    warmup_steps = min(round(train.warmup_epochs * steps_per_epoch), num_steps // 2)
    peak_lr = train.lr * train.batch_size * train.accumulate / LR_BATCH
    groups = parameter_groups(
        model,
        train.weight_decay,
        lambda name: model.lr_scale(
            name, train.head_lr_scale, train.layer_decay, train.pixel_lr_scale
        ),
    )
    optimizer = torch.optim.AdamW(groups, lr=peak_lr)
    scaler = torch.amp.GradScaler(device.type, enabled=dtype is torch.float16)
    generator = torch.Generator(device)

    state = {"epoch": 0, "step": 0, "best_loss": float("inf")}
    stac_dir = out_dir / "stac"
    save_config(config, out_dir)
    if args.resume and (stac_dir / "checkpoint.pt").is_file():
        checkpoint = load_checkpoint(stac_dir / "checkpoint.pt", "train_stac.py")
        refuse_other_settings(checkpoint["config"], config, RESUME_SECTIONS, "stac/checkpoint.pt")
        state = restore_training(checkpoint, model, optimizer, scaler, average)
    else:
        (stac_dir / "log.jsonl").unlink(missing_ok=True)
    _print_start(model, len(fit), len(val), device, dtype, peak_lr, num_steps)
    facts = {"config": to_dict(config), "class_names": list(data.class_names)}
    facts |= {"mean": list(mean), "std": list(std)}

    writer = SummaryWriter(stac_dir / "tensorboard", purge_step=state["epoch"] + 1)
    bar = tqdm(total=num_steps, initial=state["step"], disable=None, dynamic_ncols=True)
    while state["step"] < num_steps:
        epoch, started = state["epoch"], time.monotonic()
        model.train()
        seed = train.seed * SEED_STRIDE + epoch  # all randomness of an epoch, so resume is exact
        torch.manual_seed(seed)
        generator.manual_seed(seed)
        rows = []
        batches = _loader(fit_data, config, device, epoch)
        bar.set_description(f"epoch {epoch + 1}")
        for index, batch in enumerate(batches):
            lr = warmup_cosine(state["step"], num_steps, warmup_steps, peak_lr, train.min_lr)
            set_lr(optimizer, lr)
            with autocast(device, dtype):
                total, terms, _ = batch_loss(model, batch, config, device, generator)
            values = _numbers(total, terms)  # the one wait for the device
            finite_or_raise(values, epoch + 1, state["step"] + 1)
            first = index - index % train.accumulate  # of the batches that share this step
            shared = min(train.accumulate, num_batches - first)
            scaler.scale(total / shared).backward()
            rows.append(values)
            if index + 1 < first + shared:
                continue
            optimizer_step(model, optimizer, scaler, train.clip_norm)
            state["step"] += 1
            if average:
                average.update(model, state["step"])
            bar.update()
            bar.set_postfix({name: f"{value:.3f}" for name, value in rows[-1].items()})
            if state["step"] == num_steps:
                break
        state["epoch"] += 1
        finished = state["step"] == num_steps

        line: dict[str, Any] = {"epoch": state["epoch"], "step": state["step"], "lr": lr}
        line["train"] = mean_terms(rows)
        is_best = False
        if finished or state["epoch"] % train.eval_every == 0:
            line["val"] = validate(kept, val_data, config, device, dtype)
            is_best = line["val"]["total"] <= state["best_loss"]
            state["best_loss"] = min(state["best_loss"], line["val"]["total"])
        line["seconds"] = round(time.monotonic() - started, 1)
        content = facts | training_state(model, optimizer, scaler, state, average)
        if is_best:  # first, as a resume from checkpoint.pt takes best_loss for written
            save_checkpoint(stac_dir / "best.pt", content)
        save_checkpoint(stac_dir / "checkpoint.pt", content)
        _log(line, num_steps, stac_dir / "log.jsonl", writer)
    bar.close()
    writer.close()
    save_weights(stac_dir / "model.safetensors", kept.state_dict(), facts | {"progress": state})
    print(f"wrote {stac_dir}/: checkpoint.pt (step {state['step']}), best.pt, model.safetensors")
    print(f"next: python make_cams.py --config {out_dir / 'config.toml'} --out {out_dir}")


def batch_loss(
    model: Stac, batch: dict[str, Any], config: Config, device: torch.device, generator: Any
) -> tuple[Tensor, dict[str, Tensor], Tensor]:
    """Run the model on a batch of `WeakDataset` items.

    Returns:
        The weighted sum of the losses, each unweighted loss, and the image scores (B, K).
    """
    images = batch["image"].to(device, non_blocking=True)
    labels = batch["label"].to(device, non_blocking=True)
    saliency = batch["saliency"].to(device, non_blocking=True)
    output = model(images)
    with torch.autocast(device.type, enabled=False):  # the losses are float32
        cam_type = config.loss.cam_type
        second = config.loss.second_cam and cam_type != "attention"  # which knows no logits
        guided = [output.patch_map, output.feature_map] if second else [output.patch_map]
        size = images.shape[-2:]
        cams = [training_cam(output.class_attention, g, labels, size, cam_type) for g in guided]
        total, terms = stac_loss(
            class_logits=output.class_logits,
            patch_logits=output.patch_logits,
            class_tokens=output.class_tokens,
            cams=cams,
            embedding=output.embedding,
            pixel_logits=output.pixel_logits,
            labels=labels,
            saliency=saliency,
            settings=config.loss,
            generator=generator,
        )
    return total, terms, image_scores(output)


@torch.no_grad()
def validate(
    model: Stac, dataset: WeakDataset, config: Config, device: torch.device, dtype: Any
) -> dict[str, float]:
    """Return the mean losses and the classification mAP (%) on held-out training images."""
    model.eval()
    generator = torch.Generator(device).manual_seed(config.train.seed)
    rows, scores, labels = [], [], []
    for batch in DataLoader(dataset, config.train.batch_size, num_workers=config.data.workers):
        with autocast(device, dtype):
            total, terms, score = batch_loss(model, batch, config, device, generator)
        rows.append(_numbers(total, terms))
        scores.append(score.float().cpu().numpy())
        labels.append(batch["label"].numpy())
    precision = mean_average_precision(np.concatenate(labels), np.concatenate(scores))
    return {**mean_terms(rows), "map": precision}


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


def _loader(dataset: WeakDataset, config: Config, device: torch.device, epoch: int) -> DataLoader:
    """Return the shuffled batches of an epoch; the order depends on seed and epoch alone."""
    dataset.set_epoch(epoch)
    return DataLoader(
        dataset,
        config.train.batch_size,
        shuffle=True,
        num_workers=config.data.workers,
        pin_memory=device.type == "cuda",
        generator=torch.Generator().manual_seed(config.train.seed * SEED_STRIDE + epoch),
    )


def _print_start(
    model: Stac, num_fit: int, num_val: int, device: torch.device, dtype: Any, lr: float, steps: int
) -> None:
    parameters = sum(p.numel() for p in model.parameters())
    grid = "x".join(map(str, model.encoder.grid_size))
    print(
        f"{num_fit} training and {num_val} validation images, {parameters / 1e6:.2f} M parameters, "
        f"{grid} patches, {steps} steps, peak lr {lr:.3g}, {device.type}, "
        f"autocast {str(dtype).removeprefix('torch.') if dtype else 'off'}"
    )


def _log(line: dict[str, Any], num_steps: int, path: Path, writer: SummaryWriter) -> None:
    """Append an epoch's line to the log, its numbers to TensorBoard, and print them."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
    for part in ("train", "val"):
        for name, value in line.get(part, {}).items():
            writer.add_scalar(f"{name}/{part}", value, line["epoch"])
    writer.add_scalar("lr", line["lr"], line["epoch"])
    terms = ", ".join(f"{name} {value:.3f}" for name, value in line["train"].items())
    took = f"({line['seconds']:.0f} s)"
    print(f"epoch {line['epoch']}, step {line['step']} of {num_steps}: {terms} {took}")
    if "val" in line:
        print(f"  validation: loss {line['val']['total']:.3f}, mAP {line['val']['map']:.2f} %")


if __name__ == "__main__":
    run_stage(main)

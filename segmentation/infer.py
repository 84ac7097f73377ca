"""Predict the masks of a split with the trained segmentation network.

Reads segmentation/best.pt or checkpoint.pt (segmentation.checkpoint) and images; writes
predictions/<name>.png (mask values, VOC palette) and predictions_colour/<name>.png (RGB picture
of the same colours) at native image size. No image label and no mask is used.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2
from tqdm import tqdm

from configs import from_dict
from configs.command_line import load_run, run_stage, save_config, stage_parser
from datasets.files import read_image, voc_palette, write_image, write_mask
from datasets.record import Record
from datasets.sources import read_data
from datasets.transforms import as_image, eval_transform
from models.checkpoint import check_classes, load_checkpoint
from models.device import amp_dtype, autocast, select_device
from segmentation.networks import build_network, network_size


def main(argv: Sequence[str] | None = None) -> None:
    """Write the prediction of every image of a split."""
    parser = stage_parser(__doc__)
    parser.prog = "python -m segmentation.infer"
    parser.add_argument(
        "--split",
        metavar="SPLIT",
        help="train, fit, val or test (default: data.eval_split)",
    )
    args = parser.parse_args(argv)
    config, out_dir = load_run(args)
    settings = config.segmentation
    device = select_device(args.device)
    name = "checkpoint.pt" if settings.checkpoint == "last" else "best.pt"
    path = out_dir / "segmentation" / name
    checkpoint = load_checkpoint(path, "segmentation/train.py")

    data = read_data(config.data, out_dir / "labels.csv")
    check_classes(checkpoint, data.class_names, path)
    model = network_from_checkpoint(checkpoint).to(device)
    split = args.split or config.data.eval_split
    records = data.split(split)
    save_config(config, out_dir)
    size = network_size(settings.image_size)
    dataset = NamedImages(records, eval_transform(size, checkpoint["mean"], checkpoint["std"]))
    loader = DataLoader(
        dataset, settings.batch_size, num_workers=config.data.workers, collate_fn=_collate
    )
    dtype = amp_dtype(device, settings.amp)
    colours = voc_palette()
    pixels = np.zeros(len(data.class_names) + 1, np.int64)
    with tqdm(
        total=len(records), desc="predictions", unit="image", disable=None, dynamic_ncols=True
    ) as bar:
        for names, sizes, images in loader:
            with autocast(device, dtype):
                logits = flip_averaged(model, images.to(device))
            for i, image_name in enumerate(names):
                prediction = native_prediction(logits[i], sizes[i])
                write_mask(out_dir / f"predictions/{image_name}.png", prediction)
                colour_path = out_dir / f"predictions_colour/{image_name}.png"
                write_image(colour_path, colours[prediction])
                pixels += np.bincount(prediction.reshape(-1), minlength=len(pixels))
                bar.update()
    shares = zip(("background", *data.class_names), 100 * pixels / pixels.sum(), strict=True)
    print(f"wrote {len(records)} masks to {out_dir}/: predictions, predictions_colour")
    print("area: " + ", ".join(f"{name} {share:.2f} %" for name, share in shares))
    run = f"--config {out_dir / 'config.toml'} --out {out_dir}"
    print(f"next: python evaluation.py {run} --kind segmentation --split {split}")


class NamedImages(Dataset):
    """Gives each record's name, native size and network input."""

    def __init__(self, records: Sequence[Record], transform: v2.Transform):
        self.records = records
        self.transform = transform

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> tuple[str, tuple[int, int], Tensor]:
        record = self.records[index]
        pixels = read_image(record.image)
        return record.name, pixels.shape[:2], self.transform(as_image(pixels))


def network_from_checkpoint(checkpoint: dict[str, Any]) -> nn.Module:
    """Rebuild the trained network, in evaluation mode, from a checkpoint alone."""
    settings = from_dict(checkpoint["config"]).segmentation
    num_mask_classes = len(checkpoint["class_names"]) + 1
    model = build_network(settings.network, settings.encoder, "none", num_mask_classes)
    model.load_state_dict(checkpoint["model"])
    return model.eval()


@torch.no_grad()
def flip_averaged(model: nn.Module, images: Tensor) -> Tensor:
    """Return the mean logits (B, K + 1, H, W) float32 of images (B, 3, H, W) and their mirrors."""
    mirrored = model(images.flip(-1)).flip(-1)
    return (model(images).float() + mirrored.float()) / 2


def native_prediction(logits: Tensor, size: tuple[int, int]) -> np.ndarray:
    """Resize logits (K + 1, h, w) bilinearly to (H, W) and return the best class, uint8."""
    resized = F.interpolate(logits[None], size=size, mode="bilinear", align_corners=False)
    return resized[0].argmax(0).to(torch.uint8).cpu().numpy()


def _collate(
    items: list[tuple[str, tuple[int, int], Tensor]],
) -> tuple[tuple[str, ...], tuple[tuple[int, int], ...], Tensor]:
    names, sizes, images = zip(*items, strict=True)
    return names, sizes, torch.stack(images)


if __name__ == "__main__":
    run_stage(main)

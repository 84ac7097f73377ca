"""Turn a checkpoint into class activation maps at native image size (METHOD A).

Reads stac/checkpoint.pt (or best.pt, or any --checkpoint) and images; writes cams/<name>.npz for
the first of cam.types with the given labels, and a folder for each further type (cams_<type>) and
for predicted labels (..._predicted). Each folder's meta.json says how its maps were made.

With cam.tile above 0 the model sees each image as overlapping tiles. Their maps are blended into
maps of the image before these are normalised, so a class has one maximum in the image and not one
per tile. An image's score of a class is the highest of its tiles: one defect anywhere is enough.
Class attention is a share of its tile, whatever the tile holds, so maps of type attention compare
tiles less well than the other types.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from configs import CamConfig
from configs.command_line import load_run, run_stage, save_config, stage_parser
from datasets.files import Cam, write_cam
from datasets.sources import read_data
from localisation import localise_tiles, localise_whole, native_cam, scale_transforms
from models.checkpoint import check_classes, load_checkpoint
from models.device import amp_dtype, select_device
from models.stac import stac_from_checkpoint


def main(argv: Sequence[str] | None = None) -> None:
    """Write the CAMs of what is trained on, validated on and scored."""
    parser = stage_parser(__doc__)
    parser.add_argument(
        "--split",
        nargs="+",
        metavar="SPLIT",
        help="train, val or test (default: train, val and data.eval_split)",
    )
    parser.add_argument(
        "--checkpoint",
        type=Path,
        metavar="FILE",
        help=".pt or .safetensors of train_stac.py or import_checkpoint.py (default: stac/"
        "checkpoint.pt of the run, or best.pt by cam.checkpoint)",
    )
    args = parser.parse_args(argv)
    config, out_dir = load_run(args)
    device = select_device(args.device)
    name = "checkpoint.pt" if config.cam.checkpoint == "last" else "best.pt"
    checkpoint_path = args.checkpoint or out_dir / "stac" / name
    checkpoint = load_checkpoint(checkpoint_path, "train_stac.py")

    data = read_data(config.data, out_dir / "labels.csv")
    check_classes(checkpoint, data.class_names, checkpoint_path)
    model = stac_from_checkpoint(checkpoint).to(device)
    records = data.records(args.split or data.default_splits(config.data.eval_split))
    save_config(config, out_dir)
    folders = cam_folders(config.cam)
    for folder in folders:
        (out_dir / folder / "meta.json").unlink(missing_ok=True)  # back when all CAMs are there
    dtype = amp_dtype(device, checkpoint["config"]["train"]["amp"])
    transforms = scale_transforms(model, checkpoint, config.cam.scales)
    localise = localise_tiles if config.cam.tile else localise_whole
    for found in tqdm(
        localise(model, records, transforms, config, device, dtype),
        total=len(records),
        desc="CAMs",
        unit="image",
        disable=None,
        dynamic_ncols=True,
    ):
        for folder, (cam_type, labels) in folders.items():
            present = list(found.record.classes)
            if labels == "predicted":
                present = (found.scores >= config.cam.label_threshold).nonzero()[:, 0].tolist()
            chosen = [of_scale[:, present] for of_scale in found.maps[cam_type]]
            cam = native_cam(chosen, found.tiles, found.size)
            path = out_dir / folder / f"{found.record.name}.npz"
            classes = np.array(present, dtype=np.int64)
            write_cam(path, Cam(cam, classes, found.scores.cpu().numpy()))
    for folder, (cam_type, labels) in folders.items():
        meta = {"type": cam_type, "labels": labels, "scales": list(config.cam.scales)}
        meta |= {"flip": config.cam.flip, "tile": config.cam.tile}
        meta |= {"tile_overlap": config.cam.tile_overlap, "checkpoint": checkpoint_path.name}
        meta |= checkpoint["progress"]
        (out_dir / folder).mkdir(parents=True, exist_ok=True)
        (out_dir / folder / "meta.json").write_text(json.dumps(meta, indent=1) + "\n")
    print(f"wrote the CAMs of {len(records)} images to {out_dir}/: {', '.join(folders)}")
    print(f"next: python make_pseudo_labels.py --config {out_dir / 'config.toml'} --out {out_dir}")


def cam_folders(cam: CamConfig) -> dict[str, tuple[str, str]]:
    """Return {folder of the run: (CAM type, label origin)}; the first type is the main one."""
    folders = {}
    for cam_type in cam.types:
        for labels in cam.labels:
            kind = "" if cam_type == cam.types[0] else f"_{cam_type}"
            folders[f"cams{kind}{'_predicted' if labels == 'predicted' else ''}"] = (
                cam_type,
                labels,
            )
    return folders


if __name__ == "__main__":
    run_stage(main)

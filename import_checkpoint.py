"""Take over a checkpoint.pth of the authors' released code, so that make_cams.py can go on with it.

  python import_checkpoint.py --config configs/neu_seg.toml --out runs/theirs --file checkpoint.pth
  python make_cams.py --out runs/theirs

The released code runs 8 attention heads on weights of 6; its checkpoints are read with 8. Class
names, in the order of the checkpoint's class tokens, come from the data set of --config. What the
file decides goes over that config into the run folder's config.toml, which later stages take.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from configs import to_dict
from configs.command_line import load_run, run_stage, save_config, stage_parser
from datasets.sources import read_data
from models.checkpoint import save_checkpoint
from models.released import RELEASED_HEADS, convert_released
from models.stac import stac_from_checkpoint
from models.vit import normalisation
from models.weights import read_state_dict


def main(argv: Sequence[str] | None = None) -> None:
    """Convert one file."""
    parser = stage_parser(__doc__)
    add = parser.add_argument
    add("--file", type=Path, required=True, metavar="PTH", help="the released code's checkpoint")
    heads = f"attention heads it was trained with (default: {RELEASED_HEADS})"
    add("--heads", type=int, default=RELEASED_HEADS, metavar="N", help=heads)
    args = parser.parse_args(argv)
    config, out_dir = load_run(args)
    target = out_dir / "stac" / "checkpoint.pt"
    if target.exists():
        raise ValueError(f"{target}: expected no checkpoint there yet. Give another --out.")
    class_names = list(read_data(config.data, out_dir / "labels.csv").class_names)
    state = read_state_dict(args.file, "--file")
    weights, found = convert_released(state, len(class_names), str(args.file))
    found |= {"num_heads": args.heads, "head_padding": "zeros"}
    # Of the released code, whatever the config. It has no online segmentation head.
    found |= {"split_block": 0, "final_norm": False, "pixel_block": 0}
    train = dataclasses.replace(config.train, **found)
    types = tuple(cam_type for cam_type in config.cam.types if cam_type != "pixel")
    cam = dataclasses.replace(config.cam, types=types or ("patchcam",))
    config = dataclasses.replace(config, train=train, cam=cam)
    mean, std = normalisation(train.backbone)
    content = {
        "model": weights,
        "config": to_dict(config),
        "class_names": class_names,
        "mean": list(mean),
        "std": list(std),
        "progress": {"imported": args.file.name},
    }
    try:
        stac_from_checkpoint(content)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"{args.file}: expected weights of {train.backbone}: {reason}") from error
    save_config(config, out_dir)
    save_checkpoint(target, content)
    print(
        f"wrote {target}: {train.backbone} with {len(class_names)} class tokens at "
        f"{train.image_size[0]} x {train.image_size[1]}"
    )
    print(
        f"warning: read with {args.heads} attention heads, as the released code trains; a file "
        "trained otherwise needs --heads."
    )
    print(f"next: python make_cams.py --out {out_dir}")


if __name__ == "__main__":
    run_stage(main)

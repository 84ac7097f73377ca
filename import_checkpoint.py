"""Take over a checkpoint.pth of the authors' released code, so that make_cams.py can go on with it.

  python import_checkpoint.py --config configs/neu_seg.toml --out runs/theirs --file checkpoint.pth
  python make_cams.py --out runs/theirs

The released code runs 8 attention heads on weights of 6; its checkpoints are read with 8. Class
names, in the order of the checkpoint's class tokens, come from the data set of --config. What the
file decides goes over that config into the run folder's config.toml, which later stages take.
"""

from collections.abc import Sequence
from pathlib import Path

from configs import changed, to_dict
from configs.command_line import run_stage, stage_parser
from models.backbones import normalisation, read_state_dict
from models.stac import stac_from_checkpoint
from released.checkpoint import RELEASED_HEADS, convert_released
from runfolder.checkpoint import save_checkpoint
from runfolder.run import Run, open_run


def main(argv: Sequence[str] | None = None) -> None:
    """Convert one file."""
    parser = stage_parser(__doc__)
    add = parser.add_argument
    add("--file", type=Path, required=True, metavar="PTH", help="the released code's checkpoint")
    heads = f"attention heads it was trained with (default: {RELEASED_HEADS})"
    add("--heads", type=int, default=RELEASED_HEADS, metavar="N", help=heads)
    args = parser.parse_args(argv)
    run = open_run(args)
    target = run.stac_dir / "checkpoint.pt"
    if target.exists():
        raise ValueError(f"{target}: expected no checkpoint there yet. Give another --out.")
    class_names = list(run.data.class_names)
    state = read_state_dict(args.file, "--file")
    weights, settings = convert_released(state, len(class_names), str(args.file))
    settings |= {"num_heads": args.heads}
    values = {f"train.{key}": value for key, value in settings.items()}
    types = [cam_type for cam_type in run.config.cam.types if cam_type != "pixel"] or ["patchcam"]
    values["cam.types"] = types
    if run.config.pseudo_label.cam_type not in types:
        values["pseudo_label.cam_type"] = types[0]
    run = Run(run.folder, changed(run.config, values))
    train = run.config.train
    mean, std = normalisation(train.backbone)
    content = {
        "model": weights,
        "config": to_dict(run.config),
        "class_names": class_names,
        "mean": list(mean),
        "std": list(std),
        "progress": {"imported": args.file.name},
    }
    try:
        stac_from_checkpoint(content)
    except ValueError as error:
        raise ValueError(f"{args.file}: expected weights of {train.backbone}: {error}") from error
    run.begin_stage(run.stac_dir)
    save_checkpoint(target, content)
    print(
        f"wrote {target}: {train.backbone} with {len(class_names)} class tokens at "
        f"{train.image_size[0]} x {train.image_size[1]}"
    )
    print(
        f"warning: read with {args.heads} attention heads, as the released code trains; a file "
        "trained otherwise needs --heads."
    )
    print(f"next: {run.command('make_cams.py')}")


if __name__ == "__main__":
    run_stage(main)

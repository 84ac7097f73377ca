"""Turn a checkpoint into class activation maps at native image size (docs/method.md, A).

Reads stac/checkpoint.pt (or any --checkpoint) and images; writes cams/<type>/<labels>/<name>.npz
for each of cam.types and cam.labels: with the given image labels, or those that the localiser
predicts. Each folder's meta.json says how its maps were made.

With cam.tile above 0 the model sees each image as overlapping tiles. Their maps are blended into
maps of the image before these are normalised, so a class has one maximum in the image and not one
per tile. An image's score of a class is the highest of its tiles: one defect anywhere is enough.
Class attention is a share of its tile, whatever the tile holds, so maps of type attention compare
tiles less well than the other types.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from configs.command_line import run_stage, stage_parser
from datasets.files import Cam, cam_bytes, write_bytes
from execution import ranks
from execution.progress import progress
from inference.models import localiser_of
from models.device import select_device
from pipeline import next_step
from runfolder.checkpoint import check_classes, load_checkpoint
from runfolder.run import CamMeta, begin_folder, open_run, write_meta


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
        "checkpoint.pt of the run; stac/best.pt has the lowest validation loss)",
    )
    args = parser.parse_args(argv)
    run = open_run(args)
    cam, device = run.config.cam, ranks.join(select_device(args.device))
    checkpoint = load_checkpoint(args.checkpoint or run.stac_checkpoint(), "train_stac.py")
    check_classes(checkpoint, run.data.class_names)
    localiser = localiser_of(run, checkpoint, device)
    splits = args.split or run.data.default_splits(run.config.data.eval_split)
    records = run.data.records(splits)

    folders = {(t, labels): run.cam_dir(t, labels) for t in cam.types for labels in cam.labels}
    run.begin_stage(*folders.values())
    for folder in folders.values():
        begin_folder(folder)
    own = ranks.part(records, cam.batch_size)
    localised = localiser.over(own, run.config.data.workers)
    for record, _, output in progress(localised, "CAMs", len(own)):
        contents: dict[tuple, bytes] = {}  # given and predicted labels are mostly the same
        for (cam_type, labels), folder in folders.items():
            is_given = labels == "given"
            classes = list(record.classes) if is_given else localiser.predicted(output.scores)
            key = cam_type, *classes
            if key not in contents:
                maps = output.cam(cam_type, classes)
                contents[key] = cam_bytes(Cam(maps, np.array(classes, np.int64), output.scores))
            write_bytes(folder / f"{record.name}.npz", contents[key])
    for (cam_type, labels), folder in folders.items():
        meta = CamMeta(
            type=cam_type,
            labels=labels,
            settings=dataclasses.asdict(cam),
            checkpoint=checkpoint.path.name,
            progress=checkpoint["progress"],
            label_thresholds=localiser.label_thresholds,
            masked=checkpoint.get("masked", []),
        )
        write_meta(folder, meta)
    written = ", ".join(f"{cam_type}/{labels}" for cam_type, labels in folders)
    print(f"wrote the CAMs of {len(records)} images to {run.folder}/cams/: {written}")
    print(next_step("cams", run))


if __name__ == "__main__":
    run_stage(main)

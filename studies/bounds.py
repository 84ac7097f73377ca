r"""What the second stage reaches with the true masks of the training images: an upper bound.

    python -m studies.bounds --set data.root=DIR --out runs/neu_seg_clean_masks \
        --config configs/neu_seg_cpu.toml configs/variants/neu_seg_clean.toml

Takes the masks of the training split for pseudo labels, trains the second stage of the config on
them, predicts data.eval_split and scores that, with a 95 % interval over groups of pictures. Every
result says how many masks were used: none of them is a result of the method.
"""

import dataclasses
from collections.abc import Sequence

from configs.command_line import run_stage, stage_parser
from datasets.files import read_truth, write_mask
from execution.progress import progress
from runfolder.results import results_table
from runfolder.run import MaskMeta, begin_folder, open_run, write_meta
from studies.ablation import Job


def main(argv: Sequence[str] | None = None) -> None:
    """Train on true masks and score."""
    args = stage_parser(__doc__).parse_args(argv)
    run = open_run(args)
    records = run.data.split("train")
    without = [record.name for record in records if record.mask is None]
    if without:
        raise ValueError(
            f"true masks: expected one for each of {len(records)} training images, "
            f"{len(without)} have none: {', '.join(without[:5])}. Add them."
        )
    begin_folder(run.pseudo_label_dir)
    for record in progress(records, "true masks"):
        truth = read_truth(record, run.num_classes)
        write_mask(run.pseudo_label_dir / f"{record.name}.png", truth)
    settings = dataclasses.asdict(run.config.pseudo_label)
    names = sorted(record.name for record in records)
    write_meta(run.pseudo_label_dir, MaskMeta(settings, {"masks": len(names)}, names))
    job = Job(run.folder, args, [], [])
    job.call(["-m", "segmentation.train", "--resume"])
    job.call(["-m", "segmentation.infer"])
    job.call(["evaluation.py", "--kind", "segmentation", "--detailed"])
    print(results_table(run.results_path))


if __name__ == "__main__":
    run_stage(main)

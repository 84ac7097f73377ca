"""Check that the data of a config can be read, before anything is done with it.

python -m datasets --config configs/neu_seg.toml --set data.root=/data/NEU_Seg
"""

import shutil
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from configs.command_line import load_run, run_stage, stage_parser
from datasets.sources import GROUPS_NAME, read_data


def main(argv: Sequence[str] | None = None) -> None:
    """Read the records of a config; nothing is written to the run folder."""
    parser = stage_parser("Check that the data of a config can be read; nothing is written to OUT.")
    config, out_dir = load_run(parser.parse_args(argv))
    with TemporaryDirectory() as folder:
        labels_path = Path(folder, "labels.csv")
        for name in (labels_path.name, GROUPS_NAME):
            if (out_dir / name).is_file():
                shutil.copy(out_dir / name, folder)
        data = read_data(config.data, labels_path)
    data.split(config.data.eval_split)


if __name__ == "__main__":
    run_stage(main)

r"""Write the lists of configs/splits/: images, one name a line, that data.*_list take.

  python -m datasets.lists --config configs/mtd.toml --set data.root=DIR data.test_share=0 \
      --develop develop.txt
  python -m datasets.lists --config configs/neu_seg.toml --set data.root=DIR \
      --clean clean_train.txt clean_test.txt

--develop draws a third of the groups of pictures in train: the part that settings may be chosen on.
--clean divides train by what the official test split shows: images of other pictures, which a clean
protocol trains on, and the rest, which it may be scored on where the test split is not at hand.
"""

import sys

if not __package__:
    sys.exit("error: run it from the repository root as python -m datasets.lists")

from collections.abc import Iterable, Sequence
from pathlib import Path

from configs.command_line import load_run, run_stage, stage_parser
from datasets.files import write_text
from datasets.record import Record
from datasets.sources import read_data
from datasets.splits import draw

DEVELOP_SHARE, DEVELOP_SEED = 1 / 3, 2026


def main(argv: Sequence[str] | None = None) -> None:
    """Write the lists that are asked for."""
    parser = stage_parser(__doc__)
    parser.add_argument("--develop", type=Path, metavar="FILE")
    parser.add_argument("--clean", nargs=2, type=Path, metavar=("TRAIN", "TEST"))
    args = parser.parse_args(argv)
    config, out_dir = load_run(args)
    data = read_data(config.data, out_dir / "labels.csv")
    train = data.split("train")
    if args.develop:
        _, develop = draw(train, DEVELOP_SHARE, DEVELOP_SEED)
        _write(args.develop, develop)
    if args.clean:
        shown = {record.group for record in data.split("test")}
        _write(args.clean[0], (r for r in train if r.group not in shown))
        _write(args.clean[1], (r for r in train if r.group in shown))


def _write(path: Path, records: Iterable[Record]) -> None:
    names = sorted(record.name for record in records)
    write_text(path, "".join(f"{name}\n" for name in names))
    print(f"{path}: {len(names)} images")


if __name__ == "__main__":
    run_stage(main)

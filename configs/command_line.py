"""The flags every stage shares, and how a stage ends."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from configs.loading import load
from configs.schema import Config

ROOT = Path(__file__).resolve().parent.parent


def stage_parser(description: str, epilog: str = "") -> argparse.ArgumentParser:
    """Return a parser with --config, --out, --set and --device; stages add their own flags."""
    parser = argparse.ArgumentParser(
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--config",
        nargs="+",
        metavar="TOML",
        help="settings of all stages; keys of a later file replace those of an earlier one "
        "(default: OUT/config.toml of the run in --out, else the built-in sample, "
        "configs/sample.toml)",
    )
    parser.add_argument(
        "--out",
        metavar="DIR",
        help="run folder that holds every file of the run (default: runs/<names of the configs>)",
    )
    parser.add_argument(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="override settings, for example --set train.epochs=5 data.root=/data/NEU-Seg",
    )
    parser.add_argument(
        "--device",
        choices=("auto", "cpu", "cuda"),
        default="auto",
        help="auto takes CUDA where there is one (default: auto)",
    )
    return parser


def load_run(args: argparse.Namespace) -> tuple[Config, Path]:
    """Return the config and the run folder of parsed `stage_parser` arguments.

    Without --config, `args.config` becomes what is taken instead: the settings of the run that
    lies in --out, else the sample.
    """
    if not args.config:
        saved = Path(args.out or "", "config.toml")
        sample = ROOT / "configs/sample.toml"
        args.config = [str(saved if args.out and saved.is_file() else sample)]
    name = "_".join(Path(path).stem for path in args.config)
    return load(args.config, args.set), Path(args.out or f"runs/{name}")


def share(text: str) -> float:
    """Read a share on the command line.

    Raises:
        argparse.ArgumentTypeError: it is not in [0, 1].
    """
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"expected a share in [0, 1], got {text}")
    return value


def run_stage(main: Callable[[Sequence[str] | None], None]) -> None:
    """Run a stage's main; a foreseen error becomes one line on stderr and exit code 1.

    STAC_TRACEBACK=1 in the environment shows where an error was raised.
    """
    sys.stdout.reconfigure(line_buffering=True)  # a log file shows each line at once
    try:
        main(None)
    except (ValueError, OSError, RuntimeError) as error:
        if os.environ.get("STAC_TRACEBACK"):
            raise
        sys.exit(f"error: {_own_words(error)}")
    except KeyboardInterrupt:
        sys.exit("stopped; run the same command again to continue.")


def _own_words(error: Exception) -> str:
    """Return the message of an error in one line; of a loader process without the traceback."""
    lines = str(error).strip().splitlines()
    if lines and lines[0].startswith("Caught ") and "DataLoader worker" in lines[0]:
        return lines[-1].partition(": ")[2]
    return " ".join(lines)

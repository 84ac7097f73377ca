"""Print values of a config, for scripts in other languages.

python -m configs --config configs/sample.toml --get data.eval_split cam.labels
"""

from collections.abc import Sequence

from configs.command_line import load_run, run_stage, stage_parser
from configs.loading import fingerprint, to_dict, to_toml
from configs.schema import Config

# What each stage of run_STAC.sh adds to the sections that its files depend on.
STAGE_SECTIONS = {
    "saliency": ("data", "saliency", "refinement"),
    "train": ("train", "loss"),
    "cams": ("cam",),
    "pseudo_labels": ("pseudo_label",),
    "segmentation": ("segmentation",),
    "predictions": (),
}


def main(argv: Sequence[str] | None = None) -> None:
    """Print the resolved config as TOML, or what a flag asks for."""
    parser = stage_parser("Check a config and print it, every default filled in, as TOML.")
    parser.add_argument(
        "--get",
        nargs="+",
        metavar="KEY",
        help="print these values only, one a line, lists with spaces: --get cam.labels data.root",
    )
    parser.add_argument(
        "--fingerprints",
        action="store_true",
        help="print for each stage of run_STAC.sh a hash of the settings that its files depend on",
    )
    args = parser.parse_args(argv)
    config, _ = load_run(args)
    if not args.get and not args.fingerprints:
        print(to_toml(config), end="")
    for key in args.get or ():
        print(_value(config, key))
    if args.fingerprints:
        for stage, value in stage_fingerprints(config).items():
            print(stage, value)


def stage_fingerprints(config: Config) -> dict[str, str]:
    """Return 12 hex digits per stage, which change with the settings of it or of an earlier one."""
    sections: list[str] = []
    fingerprints = {}
    for stage, added in STAGE_SECTIONS.items():
        sections += added
        fingerprints[stage] = fingerprint(config, sections)
    return fingerprints


def _value(config: Config, key: str) -> str:
    table = {f"{s}.{k}": v for s, values in to_dict(config).items() for k, v in values.items()}
    if key not in table:
        raise ValueError(f"--get {key}: unknown key. Valid keys: {', '.join(table)}.")
    value = table[key]
    if isinstance(value, bool):
        return str(value).lower()
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


if __name__ == "__main__":
    run_stage(main)

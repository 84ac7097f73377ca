"""Check and print a config, and say what its settings do.

python -m configs --config configs/neu_seg.toml
python -m configs --explain train.lr loss
"""

import dataclasses
import typing
from collections.abc import Iterator, Sequence

from configs.command_line import load_run, run_stage, stage_parser
from configs.loading import flat, to_toml, toml_value
from configs.schema import Config


def main(argv: Sequence[str] | None = None) -> None:
    """Print the resolved config as TOML, or what a flag asks for."""
    parser = stage_parser("Check a config and print it, every default filled in, as TOML.")
    add = parser.add_mutually_exclusive_group().add_argument
    keys = "print these values only, one a line, lists with spaces: --get cam.labels data.root"
    add("--get", nargs="+", metavar="KEY", help=keys)
    explain = "say what settings do: keys, sections, or all without any"
    add("--explain", nargs="*", metavar="KEY", help=explain)
    add("--count", action="store_true", help="print the number of settings")
    add("--markdown", action="store_true", help="print docs/settings.md")
    args = parser.parse_args(argv)
    config, _ = load_run(args)
    if args.get:
        print("\n".join(_value(config, key) for key in args.get))
    elif args.explain is not None:
        print("\n".join(explained(config, args.explain)))
    elif args.count:
        print(len(list(settings())))
    elif args.markdown:
        print(settings_page(), end="")
    else:
        print(to_toml(config), end="")


def settings() -> Iterator[tuple[str, str]]:
    """Give each setting's key and its documentation, in the order of the schema."""
    for section, kind in typing.get_type_hints(Config).items():
        for field in dataclasses.fields(kind):
            text = kind.__pydantic_fields__[field.name].description
            yield f"{section}.{field.name}", " ".join(text.split())


def explained(config: Config, wanted: Sequence[str]) -> list[str]:
    """Return a line `key = value: documentation` for each key, or key of a section, asked for.

    Raises:
        ValueError: a key or section that does not exist.
    """
    known = dict(settings())
    for name in wanted:
        if name not in known and not any(key.startswith(f"{name}.") for key in known):
            raise ValueError(f"--explain {name}: unknown key. Valid keys: {', '.join(known)}.")
    values = flat(config)
    return [
        f"{key} = {toml_value(values[key])}: {text}"
        for key, text in known.items()
        if not wanted or any(key == name or key.startswith(f"{name}.") for name in wanted)
    ]


def settings_page() -> str:
    """Return docs/settings.md: every setting with its default and documentation."""
    defaults = flat(Config())
    lines = ["# Settings", ""]
    lines += ["Made by `python -m configs --markdown`; the texts stand in `configs/schema.py`."]
    lines += ["Set one with `--set section.key=value`, or in a TOML file below `[section]`."]
    for section, kind in typing.get_type_hints(Config).items():
        first_line = (kind.__doc__ or "").strip().splitlines()[0]
        lines += ["", f"## {section}", "", first_line, "", "| setting | default | what it does |"]
        lines.append("|---|---|---|")
        for key, text in settings():
            if key.startswith(f"{section}."):
                shown = text.replace("|", "\\|")
                lines.append(f"| `{key}` | `{toml_value(defaults[key])}` | {shown} |")
    return "\n".join(lines) + "\n"


def _value(config: Config, key: str) -> str:
    table = flat(config)
    if key not in table:
        raise ValueError(f"--get {key}: unknown key. Valid keys: {', '.join(table)}.")
    value = table[key]
    if isinstance(value, bool):
        return str(value).lower()
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


if __name__ == "__main__":
    run_stage(main)

"""TOML files and `--set` overrides to a checked `Config`, and back."""

import dataclasses
import difflib
import hashlib
import json
import math
import tomllib
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from configs.schema import Config, DataConfig


def load(paths: str | Path | Sequence[str | Path], overrides: Iterable[str] = ()) -> Config:
    """Read TOML configs, apply overrides and check every value.

    Args:
        paths: one or several TOML files with a table per stage. A later file replaces the keys
            it has of the earlier ones; keys in none of them keep their defaults.
        overrides: "section.key=value" strings; the value is written as in TOML, and a plain
            word needs no quotes.

    Raises:
        FileNotFoundError: no such file; the message lists the configs beside it.
        ValueError: not TOML, an unknown key, a wrong type or an impossible value.
    """
    paths = [Path(path) for path in ([paths] if isinstance(paths, str | Path) else paths)]
    table: dict[str, Any] = {}
    for path in paths:
        for section, values in _read_toml(path).items():
            if isinstance(values, dict) and isinstance(table.get(section), dict):
                values = table[section] | values
            table[section] = values
    try:
        return from_dict(_with_overrides(table, overrides))
    except ValueError as error:
        raise ValueError(f"{' + '.join(map(str, paths))}: {error}") from error


def from_dict(table: Mapping[str, Any]) -> Config:
    """Build a `Config` from nested plain values, as `to_dict` gives them."""
    sections = typing.get_type_hints(Config)
    _refuse_unknown("", table, sections)
    built = {}
    for section, section_type in sections.items():
        values = table.get(section, {})
        if not isinstance(values, Mapping):
            raise ValueError(f"{section}: expected a table, got {values!r}. Write [{section}].")
        hints = typing.get_type_hints(section_type)
        _refuse_unknown(f"{section}.", values, hints)
        built[section] = section_type(
            **{key: _typed(f"{section}.{key}", value, hints[key]) for key, value in values.items()}
        )
    return Config(**built)


def to_dict(config: Config) -> dict[str, dict[str, Any]]:
    """Return nested plain values (tuples become lists), for JSON and checkpoints."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def to_toml(config: Config) -> str:
    """Write the resolved config as TOML that `load` reads back to an equal `Config`."""
    lines = []
    for section, values in to_dict(config).items():
        lines.append(f"[{section}]")
        # A JSON bool, number, string or list of these is written the same way in TOML.
        lines += [f"{key} = {_toml_value(value)}" for key, value in values.items()]
        lines.append("")
    return "\n".join(lines)


def fingerprint(config: Config, sections: Iterable[str] | None = None) -> str:
    """Return 12 hex digits that change whenever a value of the given sections (or any) does.

    Only data.workers does not count: it changes no result.
    """
    table = to_dict(config)
    table["data"]["workers"] = DataConfig().workers
    chosen = {section: table[section] for section in sections or table}
    return hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()[:12]


def refuse_other_settings(
    saved: Mapping[str, Any], config: Config, sections: Sequence[str], name: str
) -> None:
    """Check that a checkpoint to resume from was made with the settings of this run.

    Args:
        saved: config inside the checkpoint, as `to_dict` gives it.
        config: of this run.
        sections: two or more that decide the training.
        name: of the checkpoint, for the error.

    Raises:
        ValueError: a value of the sections differs.
    """
    if fingerprint(from_dict(saved), sections) != fingerprint(config, sections):
        listed = f"{', '.join(sections[:-1])} and {sections[-1]}"
        raise ValueError(
            f"--resume: expected {name} of the same {listed} settings, got others. "
            "Train without --resume, or into another --out."
        )


def _read_toml(path: Path) -> dict[str, Any]:
    if not path.is_file():
        shipped = ", ".join(sorted(str(p) for p in Path(__file__).parent.glob("**/*.toml")))
        raise FileNotFoundError(f"{path}: expected a config file. Shipped ones: {shipped}.")
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: expected TOML, got: {error}.") from error


def _toml_value(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")  # only JSON takes DEL


def _with_overrides(table: dict[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    merged = {section: dict(v) if isinstance(v, dict) else v for section, v in table.items()}
    for override in overrides:
        key, equals, text = override.partition("=")
        section, dot, name = key.strip().partition(".")
        if not (equals and dot and section and name):
            raise ValueError(f"--set {override}: expected section.key=value.")
        values = merged.setdefault(section, {})
        if not isinstance(values, dict):
            raise ValueError(f"{section}: expected a table, got {values!r}.")
        values[name] = _parse_value(text.strip())
    return merged


def _parse_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text  # a plain word such as a path


def _refuse_unknown(prefix: str, given: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    for key in given:
        if key not in known:
            close = difflib.get_close_matches(str(key), known, n=1)
            hint = f" Did you mean {prefix}{close[0]}?" if close else ""
            valid = ", ".join(f"{prefix}{name}" for name in known)
            raise ValueError(f"{prefix}{key}: unknown key.{hint} Valid keys: {valid}.")


def _typed(key: str, value: Any, expected: Any) -> Any:
    """Check a plain value against int, float, bool, str or a tuple type of these."""
    if isinstance(expected, types.GenericAlias):
        items = typing.get_args(expected)
        fixed_length = items[-1] is not Ellipsis
        right_length = isinstance(value, list | tuple) and (
            not fixed_length or len(value) == len(items)
        )
        if not right_length:
            count = f"{len(items)} values" if fixed_length else "values"
            raise ValueError(f"{key}: expected a list of {count}, got {value!r}.")
        return tuple(_typed(key, item, items[0]) for item in value)
    if expected is float and type(value) is int:
        value = float(value)
    if expected is float and type(value) is float and not math.isfinite(value):
        raise ValueError(f"{key}: expected a finite number, got {value}.")
    if type(value) is not expected:
        got = f"{type(value).__name__} {value!r}"
        raise ValueError(f"{key}: expected a value of type {expected.__name__}, got {got}.")
    return value

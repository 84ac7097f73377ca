"""TOML files and `--set` overrides to a checked `Config`, and back."""

import dataclasses
import difflib
import hashlib
import json
import tomllib
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from configs.removed import REMOVED
from configs.schema import Config, DataConfig

SHOWN = 5  # problems of many


def load(paths: str | Path | Sequence[str | Path], overrides: Iterable[str] = ()) -> Config:
    """Read TOML configs, apply overrides and check every value.

    Args:
        paths: one or several TOML files with a table per section. A later file replaces the keys
            it has of the earlier ones; keys in none of them keep their defaults.
        overrides: "section.key=value" strings; the value is written as in TOML, and a plain
            word needs no quotes.

    Raises:
        FileNotFoundError: no such file; the message lists the shipped configs.
        ValueError: not TOML, an unknown or removed key, a wrong type or an impossible value.
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
    """Build a `Config` from nested plain values, as `to_dict` gives them.

    Raises:
        ValueError: an unknown or removed key, a wrong type or an impossible value.
    """
    sections = typing.get_type_hints(Config)
    _refuse_removed(table)
    _refuse_unknown("", table, sections)
    built = {}
    for section, section_type in sections.items():
        values = table.get(section, {})
        if not isinstance(values, Mapping):
            raise ValueError(f"{section}: expected a table, got {values!r}. Write [{section}].")
        _refuse_unknown(f"{section}.", values, typing.get_type_hints(section_type))
        plain = {key: tuple(v) if isinstance(v, list) else v for key, v in values.items()}
        built[section] = _checked(section_type, plain, f"{section}.")
    return _checked(Config, built, "")


def changed(config: Config, values: Mapping[str, Any]) -> Config:
    """Return a config with other values, {"section.key": plain value}; errors as of `from_dict`."""
    table = to_dict(config)
    for name, value in values.items():
        section, _, key = name.partition(".")
        table[section][key] = value
    return from_dict(table)


def to_dict(config: Config) -> dict[str, dict[str, Any]]:
    """Return nested plain values (tuples become lists), for JSON and checkpoints."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def flat(config: Config) -> dict[str, Any]:
    """Return all settings as {"section.key": plain value}."""
    return {f"{s}.{key}": v for s, values in to_dict(config).items() for key, v in values.items()}


def own_settings(config: Config) -> dict[str, Any]:
    """Return the settings that differ from the defaults, as `flat` gives them."""
    defaults = flat(Config())
    return {name: value for name, value in flat(config).items() if value != defaults[name]}


def to_toml(config: Config) -> str:
    """Write the resolved config as TOML that `load` reads back to an equal `Config`."""
    lines = []
    for section, values in to_dict(config).items():
        lines.append(f"[{section}]")
        # A JSON bool, number, string or list of these is written the same way in TOML.
        lines += [f"{key} = {toml_value(value)}" for key, value in values.items()]
        lines.append("")
    return "\n".join(lines)


def toml_value(value: Any) -> str:
    """Write a plain value as TOML."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")  # only JSON takes DEL


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


def _checked(kind: type, values: Mapping[str, Any], prefix: str) -> Any:
    """Make a section, or the config, of its values; all problems become one line of text."""
    try:
        return kind(**values)
    except ValidationError as error:
        problems = {one["loc"][:1]: _problem(one, prefix) for one in reversed(error.errors())}
        lines = list(problems.values())[::-1]  # the first problem of each key
        more = f" And {len(lines) - SHOWN} more." if len(lines) > SHOWN else ""
        raise ValueError(" ".join(lines[:SHOWN]) + more) from None


def _problem(error: Mapping[str, Any], prefix: str) -> str:
    """Say one of pydantic's errors as the key, what was expected and what it got."""
    context, value = error.get("ctx", {}), error["input"]
    if not error["loc"]:  # raised by the schema itself, with key and value
        return f"{context['error']}."
    key, *place = error["loc"]
    shown = repr(list(value) if isinstance(value, tuple) else value)
    match error["type"]:
        case "value_error":
            expected = str(context["error"])
        case "greater_than":
            expected = f"a number above {context['gt']:g}"
        case "less_than":
            expected = f"a number below {context['lt']:g}"
        case "greater_than_equal":
            expected = f"{context['ge']:g} or more"
        case "less_than_equal":
            expected = f"{context['le']:g} or less"
        case "tuple_type":
            expected = "a list"
        case "missing" | "too_long":
            expected = "a list of two values"
        case "too_short":
            expected = "one or more values"
        case kind:
            expected = error["msg"].removeprefix("Input should be ")
            if kind.endswith("_type"):
                shown = f"{type(value).__name__} {shown}"
    item = f" as value {place[0] + 1}" if place and error["type"] != "missing" else ""
    return f"{prefix}{key}: expected {expected}, got {shown}{item}."


def _read_toml(path: Path) -> dict[str, Any]:
    if not path.is_file():
        shipped = ", ".join(sorted(str(p) for p in Path(__file__).parent.glob("**/*.toml")))
        raise FileNotFoundError(f"{path}: expected a config file. Shipped ones: {shipped}.")
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: expected TOML, got: {error}.") from error


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


def _refuse_removed(table: Mapping[str, Any]) -> None:
    """Name every setting of earlier versions at once, each with what replaces it."""
    removed = [
        f"{section}.{key} ({REMOVED[f'{section}.{key}']})"
        for section, values in table.items()
        if isinstance(values, Mapping)
        for key in values
        if f"{section}.{key}" in REMOVED
    ]
    if removed:
        raise ValueError(
            f"expected settings of this version, got {len(removed)} of an earlier one: "
            f"{'; '.join(removed)}. Remove or replace them; checkpoints and run folders that hold "
            "them must be made anew, or used with the version that made them."
        )


def _refuse_unknown(prefix: str, given: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    for key in given:
        if key not in known:
            close = difflib.get_close_matches(str(key), known, n=1)
            hint = f" Did you mean {prefix}{close[0]}?" if close else ""
            valid = ", ".join(f"{prefix}{name}" for name in known)
            raise ValueError(f"{prefix}{key}: unknown key.{hint} Valid keys: {valid}.")

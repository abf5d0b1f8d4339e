"""Flags over a YAML file over the defaults: the settings of a verb, as tyro reads them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any, TypeVar, get_type_hints

import tyro

from pipeline.config import PrepareConfig, config_from_mapping, nearest_known, read_config_file
from pipeline.errors import UsageError

Options = TypeVar("Options")


def parse_config(args: Sequence[str]) -> PrepareConfig:
    """Return the settings of ``prepare`` from flags over a YAML file over the defaults."""
    rest, path = _take_value(args, "--config")
    values = read_config_file(path) if path else {}
    if path:
        _check_values(values, f"--config {path}")
    parsed = parse_options(PrepareConfig, rest, "prepare", _with_missing(values))
    return config_from_mapping(dataclasses.asdict(parsed), f"--config {path}" if path else "flags")


def parse_options(
    kind: type[Options], args: Sequence[str], verb: str, default: Options | None = None
) -> Options:
    """Return the options of a verb; a wrong flag prints what is right and exits with 2."""
    hints = get_type_hints(kind)
    # A flag can also take back what the YAML file switches on.
    switches = {f"no_{name}" for name, hint in hints.items() if hint is bool}
    known = sorted({*hints, *switches, "help"})
    for arg in args:
        name = arg.removeprefix("--").partition("=")[0].replace("-", "_")
        if arg.startswith("--") and name not in known:
            raise UsageError(
                f"{verb}: unknown flag {arg.partition('=')[0]}{nearest_known(name, known)}"
            )
    registry = tyro.constructors.ConstructorRegistry()
    registry.primitive_rule(_read_json_objects)
    with registry:
        parsed: Any = tyro.cli(
            kind,
            args=list(args),
            prog=f"context-frozen {verb}",
            default=default,
            use_underscores=True,
        )
    return parsed


def _take_value(args: Sequence[str], flag: str) -> tuple[list[str], str | None]:
    """Return the arguments without ``flag VALUE`` (or ``flag=VALUE``), and the value."""
    rest: list[str] = []
    value: str | None = None
    remaining = iter(args)
    for arg in remaining:
        if arg == flag:
            value = next(remaining, None)
            if value is None:
                raise UsageError(f"{flag}: nothing after it; expected a YAML file")
        elif arg.startswith(f"{flag}="):
            value = arg.removeprefix(f"{flag}=")
        else:
            rest.append(arg)
    return rest, value


def _check_values(values: dict[str, Any], where: str) -> None:
    """Check the keys and types of a file by themselves, so that the message names the file."""
    required = {name: "x" for name in ("input", "tokenizer", "output") if name not in values}
    config_from_mapping({**values, **required}, where)


def _with_missing(values: dict[str, Any]) -> PrepareConfig:
    """Return a config as tyro wants its defaults: what has no value yet is marked as missing."""
    default: PrepareConfig = object.__new__(PrepareConfig)
    for item in dataclasses.fields(PrepareConfig):
        if item.name in values:
            value = values[item.name]
            if item.name in ("input", "language"):
                value = (value,) if isinstance(value, str) else tuple(value)
        elif item.default is not dataclasses.MISSING:
            value = item.default
        elif item.default_factory is not dataclasses.MISSING:
            value = item.default_factory()
        else:
            value = tyro.MISSING_NONPROP
        object.__setattr__(default, item.name, value)
    return default


def _read_json_objects(
    info: tyro.constructors.PrimitiveTypeInfo,
) -> tyro.constructors.PrimitiveConstructorSpec[dict[str, Any]] | None:
    """Read a ``dict[str, Any]`` flag as one JSON object, as YAML would hold it."""
    if info.type != get_type_hints(PrepareConfig)["server_options"]:
        return None
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="JSON",
        instance_from_str=lambda texts: json.loads(texts[0]),
        is_instance=lambda value: isinstance(value, dict),
        str_from_instance=lambda value: [json.dumps(value)],
    )

"""Flags over a YAML file over the defaults: the settings of a verb, read by `argparse`.

Whatever is wrong is said in one style: the verb, the flag, what was found, what was expected.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from types import UnionType
from typing import (
    Any,
    Final,
    Literal,
    NoReturn,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

from pipeline.cli.words import EXAMPLES, group_settings, read_field_words
from pipeline.config import PrepareConfig, config_from_mapping, nearest_known, read_config_file
from pipeline.config_values import spell_type
from pipeline.errors import UsageError, excerpt_of

Options = TypeVar("Options")

POSITIONAL: Final = {"positional": True}
"""Metadata of a field that is given by its place and not by its name."""
POSITIONAL_OR_NAMED: Final = {"positional": True, "named": True}
"""Metadata of a field that is given either way."""

_UNIONS: Final = (UnionType, Union)
_METAVARS: Final = {int: "N", float: "NUMBER", str: "TEXT"}
_MOST_COLUMNS: Final = 110
_SWITCH_WORDS: Final = {"true": True, "yes": True, "on": True, "1": True} | dict.fromkeys(
    ("false", "no", "off", "0"), False
)


def parse_config(args: Sequence[str]) -> PrepareConfig:
    """Return the settings of ``prepare`` from flags over a YAML file over the defaults."""
    parser = _make_parser(PrepareConfig, "prepare")
    about = parser.add_argument_group("the command")
    about.add_argument("--config", metavar="FILE", help="YAML file of settings; flags win over it")
    about.add_argument("--json", action="store_true", help="print the manifest as JSON")
    about.add_argument("-h", "--help", action="help", help="show this and exit")
    given = parser.read(args)
    given.pop("json", None)
    path: str | None = given.pop("config", None)
    if path is None:
        return config_from_mapping(given, "prepare")
    values = read_config_file(path)
    _check_values(values, f"--config {path}")
    return config_from_mapping({**values, **given}, f"--config {path}")


def parse_options(kind: type[Options], args: Sequence[str], verb: str) -> Options:
    """Return the options of a verb. Raises `UsageError` for what is wrong; prints help and exits."""
    parser = _make_parser(kind, verb)
    parser.add_argument_group("help").add_argument(
        "-h", "--help", action="help", help="show this and exit"
    )
    return kind(**parser.read(args))


def is_positional(item: dataclasses.Field[Any]) -> bool:
    """Say whether a setting is given by its place."""
    return bool(item.metadata.get("positional"))


def _check_values(values: dict[str, Any], where: str) -> None:
    """Check the keys and types of a file by themselves, so that the message names the file."""
    required = {name: "x" for name in ("input", "tokenizer", "output") if name not in values}
    config_from_mapping({**values, **required}, where)


class _Parser(argparse.ArgumentParser):
    """Reads the flags of one verb, dashes and underscores alike."""

    def __init__(self, verb: str, hints: Mapping[str, Any], places: Sequence[str]) -> None:
        columns = min(shutil.get_terminal_size((100, 24)).columns, _MOST_COLUMNS)
        super().__init__(
            prog=f"context-frozen {verb}",
            usage=" ".join(["context-frozen", verb, *places, "[--setting value ...]"]),
            epilog=f"example:\n  {EXAMPLES[verb]}",
            formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, 2, 28, columns),
            argument_default=argparse.SUPPRESS,
            allow_abbrev=False,
            add_help=False,
        )
        self.verb = verb
        self._hints = hints

    def read(self, args: Sequence[str]) -> dict[str, Any]:
        """Return what the flags say, by name of the setting."""
        known, alone = self.parse_known_intermixed_args(self._check_flags(args))
        if alone:
            self._refuse_alone(alone[0])
        found = vars(known)
        return {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in found.items()
        }

    def error(self, message: str) -> NoReturn:
        """Say what is wrong as all errors are said."""
        raise UsageError(
            f"{self.verb}: {message.removeprefix('argument ')}; "
            f"`context-frozen {self.verb} --help` says what there is"
        )

    def _check_flags(self, args: Sequence[str]) -> list[str]:
        """Return the arguments with underscores in their flags, each of which is known."""
        known = [flag[2:] for flag in self._option_string_actions if flag.startswith("--")]
        spelt: list[str] = []
        for place, arg in enumerate(args):
            flag, is_joined, value = arg.partition("=")
            if not flag.startswith("--") or flag == "--":
                spelt.append(arg)
                continue
            name = flag[2:].replace("-", "_")
            if name not in known:
                raise UsageError(f"{self.verb}: unknown flag {flag}{nearest_known(name, known)}")
            if self._is_switch(name):
                words = value if is_joined else next(iter(args[place + 1 : place + 2]), "")
                self._refuse_value(name, words, is_joined=bool(is_joined))
            spelt.append(f"--{name}{is_joined}{value}")
        return spelt

    def _refuse_alone(self, word: str) -> NoReturn:
        """Refuse a word that no flag stands before, with the flag that it likely belongs to."""
        meant = "--config" if word.endswith((".yaml", ".yml")) else "--input"
        is_known = meant in self._option_string_actions
        remedy = f", perhaps {meant} {excerpt_of(word)}" if is_known else ""
        self.error(f"found {excerpt_of(word)} without a flag; expected a flag before it{remedy}")

    def _is_switch(self, name: str) -> bool:
        return self._hints.get(name.removeprefix("no_")) is bool

    def _refuse_value(self, name: str, value: str, *, is_joined: bool) -> None:
        """Refuse what looks like the value of a switch, which has none."""
        meant = _SWITCH_WORDS.get(value.lower())
        if meant is None and not is_joined:
            return
        bare = name.removeprefix("no_")
        right = f"--{bare}" if meant is (name == bare) else f"--no_{bare}"
        raise UsageError(
            f"{self.verb}: --{name}: found the value {excerpt_of(value)}; expected none: "
            f"a switch is given by its name alone, here {right}"
        )


def _make_parser(kind: type[Any], verb: str) -> _Parser:
    hints = get_type_hints(kind)
    fields = {item.name: item for item in dataclasses.fields(kind)}
    places = [
        item.name.upper() if item.default is dataclasses.MISSING else f"[{item.name.upper()}]"
        for item in fields.values()
        if is_positional(item)
    ]
    parser = _Parser(verb, hints, places)
    words = read_field_words(kind)
    groups = group_settings(list(fields)) if verb == "prepare" else [("settings", list(fields))]
    for title, names in groups:
        group = parser.add_argument_group(title)
        for name in names:
            _add_setting(group, fields[name], hints[name], words.get(name, ""))
    return parser


def _add_setting(group: Any, item: dataclasses.Field[Any], hint: Any, words: str) -> None:
    words = (words + _spell_default(item)).replace("%", "%%")
    if is_positional(item):
        nargs = None if item.default is dataclasses.MISSING else "?"
        group.add_argument(item.name, metavar=item.name.upper(), nargs=nargs, help=words)
        if not item.metadata.get("named"):
            return
        words = argparse.SUPPRESS
    if hint is bool:
        group.add_argument(f"--{item.name}", action="store_true", help=words)
        hidden = f"switch {item.name} off" if item.default else argparse.SUPPRESS
        group.add_argument(f"--no_{item.name}", dest=item.name, action="store_false", help=hidden)
        return
    group.add_argument(
        f"--{item.name}",
        metavar=_spell_metavar(hint),
        nargs="+" if get_origin(hint) is tuple else None,
        type=_make_reader(hint),
        help=words,
    )


def _spell_default(item: dataclasses.Field[Any]) -> str:
    default = item.default
    if default is dataclasses.MISSING:
        is_required = item.default_factory is dataclasses.MISSING and not is_positional(item)
        return " (required)" if is_required else ""
    if default is None or default == () or isinstance(default, bool):
        return ""
    shown = " ".join(map(str, default)) if isinstance(default, tuple) else str(default)
    return f" (default: {shown})"


def _spell_metavar(hint: Any) -> str:
    kind = _plain_kind(hint)
    if get_origin(kind) is Literal:
        return "|".join(get_args(kind))
    return "JSON" if get_origin(kind) is dict else _METAVARS[kind]


def _plain_kind(hint: Any) -> Any:
    """Return the type of one value of a setting: without None, and of many values that of each."""
    if get_origin(hint) in _UNIONS:
        return next(each for each in get_args(hint) if each is not type(None))
    return get_args(hint)[0] if get_origin(hint) is tuple else hint


def _make_reader(hint: Any) -> Callable[[str], Any]:
    """Return the function from the words of a flag to its value."""
    kind = _plain_kind(hint)
    may_be_none = get_origin(hint) in _UNIONS

    def read(text: str) -> Any:
        if may_be_none and text in ("None", "none", "null"):
            return None
        try:
            value = _read_value(kind, text)
        except ValueError:
            value = None
        if value is None:
            expected = "one JSON object" if get_origin(kind) is dict else spell_type(kind)
            raise argparse.ArgumentTypeError(f"found {excerpt_of(text)}; expected {expected}")
        return value

    return read


def _read_value(kind: Any, text: str) -> Any:
    """Return the value of a text, or None where it has none of that kind."""
    if get_origin(kind) is Literal:
        return text if text in get_args(kind) else None
    if get_origin(kind) is dict:
        value = json.loads(text)
        return value if isinstance(value, dict) else None
    return kind(text)

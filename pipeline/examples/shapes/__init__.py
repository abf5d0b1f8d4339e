"""Other people's row shapes -> `TrainingExample`.

One function per shape; which shape a row has is told by its keys alone, or by ``format:``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from pipeline.errors import Rejected, UsageError
from pipeline.examples.example import TrainingExample
from pipeline.examples.row_keys import settle_keys
from pipeline.examples.shapes.apis import RESPONSES, name_api
from pipeline.examples.shapes.bodies import BODIES, rename_bodies, settle_bodies
from pipeline.examples.shapes.foreign_rows import respell_row
from pipeline.examples.shapes.llama_factory import read_alpaca, read_sharegpt
from pipeline.examples.shapes.nearest import describe_nearest
from pipeline.examples.shapes.openai import read_call, read_openai
from pipeline.examples.shapes.own import read_own, read_pair
from pipeline.examples.shapes.record import Row
from pipeline.examples.shapes.responses import read_responses
from pipeline.examples.shapes.trl import read_trl
from pipeline.lines.known_keys import KNOWN_KEYS

__all__ = [
    "FORMATS",
    "KNOWN_KEYS",
    "Format",
    "ReadRow",
    "Sign",
    "check_format",
    "read_example",
    "read_row",
    "recognise_format",
]


class Sign(NamedTuple):
    """Keys that tell a shape: a row shows the sign if it ``has`` them all and ``lacks`` the others."""

    has: frozenset[str]
    lacks: frozenset[str] = frozenset()

    def is_shown_by(self, keys: frozenset[str]) -> bool:
        """Say whether a row with these keys shows the sign."""
        return self.has <= keys and not self.lacks & keys


@dataclass(frozen=True, slots=True)
class Format:
    """One shape of rows: its name, the signs that tell it, and its reader."""

    name: str
    signs: tuple[Sign, ...]
    read: Callable[[Row, str], TrainingExample]


def _signs(*texts: str, lacks: frozenset[str] = frozenset()) -> tuple[Sign, ...]:
    return tuple(Sign(frozenset(text.split()), lacks) for text in texts)


_ANSWERS = frozenset(
    {
        "continuation",
        "continuations",
        "continuation_ids",
        "context_ids",
        "decision_idx",
        "chosen",
        "better",
    }
)
_CALLS = frozenset({"choices", "response"})
_CONTEXTS = frozenset({"prompt", "context", "messages", "conversations", "instruction"})

_OWN_SIGNS = (
    *_signs(
        *(
            f"{context} {answer}"
            for context in ("context", "messages")
            for answer in ("continuation", "continuations", "continuation_ids", "chosen")
        ),
        "messages decision_idx",
        "context_ids",
    ),
    *_signs("id messages", lacks=_ANSWERS | _CALLS),
)

FORMATS: Final[Mapping[str, Format]] = MappingProxyType(
    {
        name: Format(name, signs, read)
        for name, signs, read in (
            ("own", _OWN_SIGNS, read_own),
            ("pairs", _signs("better"), read_pair),
            ("openai", _signs("messages", lacks=_ANSWERS | _CALLS | {"id"}), read_openai),
            (
                "openai_log",
                _signs("choices", "request response", "body response", "messages response")
                + _signs("custom_id response", "custom_id error")
                + _signs("prompt response", lacks=_ANSWERS | {"completion", "rejected"}),
                read_call,
            ),
            (
                "trl",
                _signs("prompt completion", "prompt chosen rejected")
                + _signs("chosen rejected", lacks=_CONTEXTS),
                read_trl,
            ),
            ("sharegpt", _signs("conversations"), read_sharegpt),
            ("alpaca", _signs("instruction output", "instruction chosen"), read_alpaca),
            # Told by its items, since logs keep it under the keys of other calls.
            ("responses", (), read_responses),
        )
    }
)
"""The shapes by the name that ``format:`` gives them (``docs/formats.md`` has a line of each)."""


class ReadRow(NamedTuple):
    """A row read: its example, the name of its shape, and the names of keys that nobody read."""

    example: TrainingExample
    format: str
    unread: frozenset[str]


def check_format(format: str) -> None:
    """Raise `UsageError` for a setting that is neither ``auto`` nor the name of a shape."""
    if format != "auto" and format not in FORMATS:
        raise UsageError(f"format: found {format!r}; expected auto or one of {', '.join(FORMATS)}")


def recognise_format(values: Mapping[str, Any]) -> str:
    """Return the name of the shape of one row, told by its keys that are not null.

    Raises `Rejected`: ``ambiguous_shape`` where two shapes fit, ``missing_field`` where none does.

    >>> recognise_format({"instruction": "Add.", "input": "2 3", "output": "5"})
    'alpaca'
    """
    keys = _find_keys(values)
    name = _name_format(keys)
    if isinstance(name, str):
        return name
    if name:
        shapes = " and ".join(f"{each} ({shown})" for each, shown in name)
        raise Rejected(
            "ambiguous_shape", f"the keys fit {shapes}; say which with format:", sorted(keys)
        )
    if name_api(values) == RESPONSES:
        return "responses"
    found = sorted(key for key, value in values.items() if value is not None)
    nearest = describe_nearest(found, lambda keys: _name_format(KNOWN_KEYS & keys))
    if nearest is None:
        shapes = "; ".join(
            f"{name} ({', '.join(sorted(each.signs[0].has)) if each.signs else 'items'})"
            for name, each in FORMATS.items()
        )
        nearest = f"expected those of one of {shapes}"
    raise Rejected("missing_field", f"the keys fit no shape; {nearest}; see docs/formats.md", found)


def _find_keys(values: Mapping[str, Any]) -> frozenset[str]:
    """Return the known keys that are not null."""
    keys = KNOWN_KEYS.intersection(values)
    for key in keys:
        if values[key] is None:
            return frozenset(key for key in keys if values[key] is not None)
    return keys


def _read_bodies(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the row with the bodies of its call under our names, if it has no shape without them."""
    shape = _name_format(_find_keys(values))
    if not shape:
        return rename_bodies(values)
    if shape == "openai_log":
        settle_bodies(values)
    return values


# Rows of one file have few sets of keys, and this is asked of each row.
@lru_cache(maxsize=1024)
def _name_format(keys: frozenset[str]) -> str | tuple[tuple[str, str], ...]:
    """Return the one shape that these keys show, or each that they show with its sign."""
    fits = {
        name: next((sign for sign in each.signs if sign.is_shown_by(keys)), None)
        for name, each in FORMATS.items()
    }
    found = {name: ", ".join(sorted(sign.has)) for name, sign in fits.items() if sign is not None}
    return next(iter(found)) if len(found) == 1 else tuple(found.items())


def read_row(values: Mapping[str, Any], format: str, position: str) -> ReadRow:
    """Return the example of one row, and what of the row it leaves out.

    ``format`` is ``auto`` or a key of `FORMATS`; ``position`` (``file:line``) is the id of a row that
    has none. Raises `Rejected` with the code and the row's own name of the field: also for a key that
    any shape knows and this reading would lose; `UsageError` for an unknown format.
    """
    check_format(format)
    try:
        return _read_as_it_stands(values, format, position)
    except Rejected as refusal:
        if format == "auto" and name_api(values) == RESPONSES:
            return _read_as_it_stands(values, "responses", position)
        respelled = respell_row(values, _has_shape)
        if respelled is None:
            raise
        try:
            read = _read_as_it_stands(respelled.values, format, position)
        except Rejected as error:
            reason = f"{error.reason} (read with {respelled.keys} under our names)"
            raise Rejected(error.code, reason, error.excerpt) from refusal
    return read._replace(format=f"{respelled.keys} as {read.format}")


def _has_shape(values: Mapping[str, Any]) -> bool:
    return bool(_name_format(_find_keys(values)))


def _read_as_it_stands(values: Mapping[str, Any], format: str, position: str) -> ReadRow:
    if format in ("auto", "openai_log") and not BODIES.keys().isdisjoint(values):
        values = _read_bodies(values)
    name = recognise_format(values) if format == "auto" else format
    row = Row(values)
    example = FORMATS[name].read(row, position)
    return ReadRow(example, name, settle_keys(row, example))


def read_example(values: Mapping[str, Any], format: str, position: str) -> TrainingExample:
    """Return the example of one row; see `read_row`."""
    return read_row(values, format, position).example

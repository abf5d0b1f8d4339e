"""Other people's row shapes -> `TrainingExample`.

One function per shape; which shape a row has is told by its keys alone, or by ``format:``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from pipeline.errors import Rejected, UsageError
from pipeline.examples import TrainingExample
from pipeline.formats.llama_factory import (
    ALPACA_KEYS,
    SHAREGPT_KEYS,
    read_alpaca,
    read_sharegpt,
)
from pipeline.formats.openai import CHAT_KEYS, LOG_KEYS, read_call, read_openai
from pipeline.formats.own import OWN_KEYS, PAIR_KEYS, read_own, read_pair
from pipeline.formats.row import Row
from pipeline.formats.trl import TRL_KEYS, read_trl

__all__ = ["FORMATS", "KNOWN_KEYS", "Format", "Sign", "read_example", "recognise_format"]


class Sign(NamedTuple):
    """Keys that tell a shape: a row shows the sign if it ``has`` them all and ``lacks`` the others."""

    has: frozenset[str]
    lacks: frozenset[str] = frozenset()

    def is_shown_by(self, keys: frozenset[str]) -> bool:
        """Say whether a row with these keys shows the sign."""
        return self.has <= keys and not self.lacks & keys


@dataclass(frozen=True, slots=True)
class Format:
    """One shape of rows: its name, the signs that tell it, every key it reads, and its reader."""

    name: str
    signs: tuple[Sign, ...]
    keys: frozenset[str]
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
        name: Format(name, signs, frozenset(keys), read)
        for name, signs, keys, read in (
            ("own", _OWN_SIGNS, OWN_KEYS, read_own),
            ("pairs", _signs("better"), PAIR_KEYS, read_pair),
            (
                "openai",
                _signs("messages", lacks=_ANSWERS | _CALLS | {"id"}),
                CHAT_KEYS,
                read_openai,
            ),
            (
                "openai_log",
                _signs("choices", "request response", "body response", "messages response")
                + _signs("custom_id response", "custom_id error"),
                LOG_KEYS,
                read_call,
            ),
            (
                "trl",
                _signs("prompt completion", "prompt chosen rejected")
                + _signs("chosen rejected", lacks=_CONTEXTS),
                TRL_KEYS,
                read_trl,
            ),
            ("sharegpt", _signs("conversations"), SHAREGPT_KEYS, read_sharegpt),
            (
                "alpaca",
                _signs("instruction output", "instruction chosen"),
                ALPACA_KEYS,
                read_alpaca,
            ),
        )
    }
)
"""The shapes by the name that ``format:`` gives them (``docs/formats.md`` has a line of each)."""

KNOWN_KEYS: Final = frozenset[str]().union(*(each.keys for each in FORMATS.values()))
"""Every key that some shape reads: the columns that are worth reading from a table."""


def recognise_format(values: Mapping[str, Any]) -> str:
    """Return the name of the shape of one row, told by its keys that are not null.

    Raises `Rejected`: ``ambiguous_shape`` where two shapes fit, ``missing_field`` where none does.

    >>> recognise_format({"instruction": "Add.", "input": "2 3", "output": "5"})
    'alpaca'
    """
    keys = frozenset(key for key, value in values.items() if value is not None)
    fits = {
        name: next((sign for sign in each.signs if sign.is_shown_by(keys)), None)
        for name, each in FORMATS.items()
    }
    found = {name: ", ".join(sorted(sign.has)) for name, sign in fits.items() if sign is not None}
    if len(found) == 1:
        return next(iter(found))
    if found:
        shapes = " and ".join(f"{name} ({shown})" for name, shown in found.items())
        raise Rejected(
            "ambiguous_shape", f"the keys fit {shapes}; say which with format:", sorted(keys)
        )
    expected = "; ".join(
        f"{name} ({', '.join(sorted(each.signs[0].has))})" for name, each in FORMATS.items()
    )
    raise Rejected(
        "missing_field",
        f"the keys fit no shape; expected those of one of {expected}; see docs/formats.md",
        sorted(keys),
    )


def read_example(values: Mapping[str, Any], format: str, position: str) -> TrainingExample:
    """Return the example of one row of the shape ``format`` (a key of `FORMATS`).

    ``position`` (``file:line``) is its id where the shape has none. Keys that the shape does not
    know are left alone. Raises `Rejected` with the code and the row's own name of the field, and
    `UsageError` for an unknown format.
    """
    if format not in FORMATS:
        raise UsageError(f"format: found {format!r}; expected auto or one of {', '.join(FORMATS)}")
    return FORMATS[format].read(values, position)

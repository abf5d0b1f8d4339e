"""The design's own shape, and the same with its answers called better and worse."""

from __future__ import annotations

from typing import Any, Final

from pipeline.errors import Rejected
from pipeline.examples.example import TrainingExample
from pipeline.examples.fields import read_continuation
from pipeline.examples.shapes.record import Row, read_shared, refuse_switches, require

_FIELDS: Final = frozenset(
    {
        *("context", "messages", "decision_idx", "rejected"),
        *("context_ids", "continuation_ids", "continuations_ids", "continuation_mask"),
    }
)
_ANSWERS: Final = ("continuation", "continuations", "chosen")
_OWN: Final = _FIELDS | frozenset(_ANSWERS)


def read_own(row: Row, position: str) -> TrainingExample:
    """Return the example of a row in our own shape (``docs/formats.md``)."""
    return TrainingExample.from_fields(_read_fields(row, position, _OWN))


def read_pair(row: Row, position: str) -> TrainingExample:
    """Return the example of ``context`` (or ``messages``), ``better`` and perhaps ``worse``.

    The other keys are those of our own shape.
    """
    for name in (*_ANSWERS, "rejected"):
        if row.get(name) is not None:
            raise Rejected("ambiguous_shape", f"found both better and {name}; expected one of them")
    worse = row.get("worse")
    return TrainingExample.from_fields(
        {
            **_read_fields(row, position, _FIELDS),
            "continuation": read_continuation(
                require(row, "better", "the better continuation"), "better"
            ),
            "rejected": None if worse is None else read_continuation(worse, "worse"),
        }
    )


def _read_fields(row: Row, position: str, names: frozenset[str]) -> dict[str, Any]:
    values = read_shared(row, position)
    if row.peek("context_ids") is None:
        refuse_switches(row)
    return values | row.take(names)

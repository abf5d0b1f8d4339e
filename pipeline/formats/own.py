"""The design's own shape, and the same with its answers called better and worse."""

from __future__ import annotations

from typing import Final

from pipeline.errors import Rejected
from pipeline.examples import TrainingExample
from pipeline.fields import read_continuation
from pipeline.formats.row import Row, read_name, require

OWN_KEYS: Final = (
    "id",
    "context",
    "messages",
    "decision_idx",
    "continuation",
    "continuations",
    "chosen",
    "rejected",
    "reason",
    "memories",
    "tools",
    "chat_template_kwargs",
    "weight",
    "conversation",
    "context_ids",
    "continuation_ids",
    "continuations_ids",
)
PAIR_KEYS: Final = (*OWN_KEYS, "better", "worse")

_ANSWERS = ("continuation", "continuations", "chosen", "rejected")


def read_own(row: Row, position: str) -> TrainingExample:
    """Return the example of a row in our own shape (``docs/formats.md``), whose id is required."""
    del position
    return TrainingExample.from_dict(row)


def read_pair(row: Row, position: str) -> TrainingExample:
    """Return the example of ``context`` (or ``messages``), ``better`` and perhaps ``worse``.

    The other keys are those of our own shape.
    """
    for name in _ANSWERS:
        if row.get(name) is not None:
            raise Rejected("ambiguous_shape", f"found both better and {name}; expected one of them")
    better = read_continuation(require(row, "better", "the better continuation"), "better")
    worse = row.get("worse")
    return TrainingExample.from_dict(
        {
            **row,
            "id": read_name(row, position),
            "continuation": better,
            "rejected": None if worse is None else read_continuation(worse, "worse"),
        }
    )

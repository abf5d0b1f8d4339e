"""Which shapes lines had, and which of their keys nobody read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from operator import add
from typing import Any, Final

from pipeline.examples.decisions import NO_ANSWERS, AnswerCounts

_MOST_NAMES: Final = 200
_NAME_LIMIT: Final = 80


@dataclass(slots=True)
class ShapeCounts:
    """Lines that were examples, by their shape, and by the keys of theirs that nobody read.

    A line counts once for each name. Of more than 200 names those are kept that come first by length,
    then by letter, which any split of the lines gives alike; ``other_keys`` counts the rest.
    ``answers`` are those of `pipeline.examples.decisions.count_answers`, summed.
    """

    formats: dict[str, int] = field(default_factory=dict[str, int])
    unread_keys: dict[str, int] = field(default_factory=dict[str, int])
    other_keys: int = 0
    answers: AnswerCounts = NO_ANSWERS

    def __post_init__(self) -> None:
        # JSON, as the record of a shard is, has a list.
        self.answers = AnswerCounts(*self.answers)

    @classmethod
    def from_described(cls, described: Mapping[str, Any]) -> ShapeCounts:
        """Return the counts in a manifest; one of an earlier release has none."""
        return cls(
            formats=dict(described.get("by_format", {})),
            unread_keys=dict(described.get("unread_keys", {})),
            other_keys=described.get("other_unread_keys", 0),
            answers=AnswerCounts(**described["answers"]) if "answers" in described else NO_ANSWERS,
        )

    def add(self, format: str, unread: Iterable[str], answers: AnswerCounts = NO_ANSWERS) -> None:
        """Count one line."""
        self.answers = _sum(self.answers, answers)
        self.formats[format] = self.formats.get(format, 0) + 1
        # Names that are one once they are cut and cleaned count once as well.
        for name in {clean_name(name) for name in unread} if unread else ():
            self.unread_keys[name] = self.unread_keys.get(name, 0) + 1
        if len(self.unread_keys) > 2 * _MOST_NAMES:
            self._forget_names()

    def merge(self, other: ShapeCounts) -> None:
        """Add the counts of other lines."""
        self.answers = _sum(self.answers, other.answers)
        for mine, theirs in (
            (self.formats, other.formats),
            (self.unread_keys, other.unread_keys),
        ):
            for name, number in theirs.items():
                mine[name] = mine.get(name, 0) + number
        self.other_keys += other.other_keys
        self._forget_names()

    def describe(self) -> dict[str, Any]:
        """Return what a manifest says."""
        self._forget_names()
        return {
            "by_format": dict(sorted(self.formats.items())),
            "unread_keys": dict(sorted(self.unread_keys.items())),
            "other_unread_keys": self.other_keys,
            "answers": self.answers._asdict(),
        }

    def _forget_names(self) -> None:
        # A name that is among the first of all lines is so among those of any part of them, so none
        # that is kept at the end was ever forgotten.
        if len(self.unread_keys) > _MOST_NAMES:
            ordered = sorted(self.unread_keys, key=lambda name: (len(name), name))
            for name in ordered[_MOST_NAMES:]:
                self.other_keys += self.unread_keys.pop(name)


def _sum(one: AnswerCounts, other: AnswerCounts) -> AnswerCounts:
    return AnswerCounts(*map(add, one, other))


def clean_name(name: str) -> str:
    """Return a key as it may be shown anywhere: of at most 80 characters, each printable."""
    shown = name[:_NAME_LIMIT]
    if not shown.isprintable():
        shown = "".join(
            each if each.isprintable() else each.encode("unicode_escape").decode() for each in shown
        )
    return shown if len(name) <= _NAME_LIMIT and len(shown) <= _NAME_LIMIT else f"{shown[:79]}…"

"""What a manifest counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import pyarrow as pa

_MOST_NAMES: Final = 200
_NAME_LIMIT: Final = 80

_SUMMED: Final = ("total_len", "context_len", "dropped_tokens", "dropped_messages")
COUNTED: Final = ("flags", *_SUMMED)
"""The columns of rows that are counted."""


@dataclass(slots=True)
class RowCounts:
    """Counts of rows: how many, how many were shortened, sums of columns, and flags by name."""

    rows: int = 0
    shortened: int = 0
    sums: dict[str, int] = field(default_factory=lambda: dict.fromkeys(_SUMMED, 0))
    flags: dict[str, int] = field(default_factory=dict[str, int])

    @classmethod
    def from_described(cls, described: Mapping[str, Any]) -> RowCounts:
        """Return the counts of the rows of a set from those in its manifest (`describe_counts`)."""
        tokens = described["tokens"]
        sums = (
            tokens["total"],
            tokens["context"],
            tokens["dropped"],
            described["dropped_messages"],
        )
        return cls(
            rows=described["rows"],
            shortened=described["rows_shortened"],
            sums=dict(zip(_SUMMED, sums, strict=True)),
            flags=dict(described["by_flag"]),
        )

    def add(self, table: pa.Table, sign: int = 1) -> None:
        """Count the rows of a table with the columns `COUNTED`; with ``sign`` -1 no longer."""
        found = Counter[str](table.column("flags").combine_chunks().flatten().to_pylist())
        self._add_flags(found, sign)
        for name in _SUMMED:
            self.sums[name] += sign * int(np.asarray(table.column(name)).sum())
        shortened = int(np.count_nonzero(np.asarray(table.column("dropped_tokens"))))
        self.shortened += sign * shortened
        self.rows += sign * table.num_rows

    def merge(self, other: RowCounts) -> None:
        """Add the counts of other rows."""
        self.rows += other.rows
        self.shortened += other.shortened
        for name in _SUMMED:
            self.sums[name] += other.sums[name]
        self._add_flags(other.flags, 1)

    def _add_flags(self, found: Mapping[str, int], sign: int) -> None:
        for flag, number in found.items():
            self.flags[flag] = self.flags.get(flag, 0) + sign * number
            if not self.flags[flag]:
                del self.flags[flag]


@dataclass(slots=True)
class ShapeCounts:
    """Lines that were examples, by their shape, and by the keys of theirs that nobody read.

    A line counts once for each name. Of more than 200 names those are kept that come first by length,
    then by letter, which any split of the lines gives alike; ``other_keys`` counts the rest.
    """

    formats: dict[str, int] = field(default_factory=dict[str, int])
    unread_keys: dict[str, int] = field(default_factory=dict[str, int])
    other_keys: int = 0

    @classmethod
    def from_described(cls, described: Mapping[str, Any]) -> ShapeCounts:
        """Return the counts in a manifest; one of an earlier release has none."""
        return cls(
            formats=dict(described.get("by_format", {})),
            unread_keys=dict(described.get("unread_keys", {})),
            other_keys=described.get("other_unread_keys", 0),
        )

    def add(self, format: str, unread: Iterable[str]) -> None:
        """Count one line."""
        self.formats[format] = self.formats.get(format, 0) + 1
        # Names that are one once they are cut and cleaned count once as well.
        for name in {clean_name(name) for name in unread} if unread else ():
            self.unread_keys[name] = self.unread_keys.get(name, 0) + 1
        if len(self.unread_keys) > 2 * _MOST_NAMES:
            self._forget_names()

    def merge(self, other: ShapeCounts) -> None:
        """Add the counts of other lines."""
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
        }

    def _forget_names(self) -> None:
        # A name that is among the first of all lines is so among those of any part of them, so none
        # that is kept at the end was ever forgotten.
        if len(self.unread_keys) > _MOST_NAMES:
            ordered = sorted(self.unread_keys, key=lambda name: (len(name), name))
            for name in ordered[_MOST_NAMES:]:
                self.other_keys += self.unread_keys.pop(name)


def clean_name(name: str) -> str:
    """Return a key as it may be shown anywhere: of at most 80 characters, each printable."""
    shown = name[:_NAME_LIMIT]
    if not shown.isprintable():
        shown = "".join(
            each if each.isprintable() else each.encode("unicode_escape").decode() for each in shown
        )
    return shown if len(name) <= _NAME_LIMIT and len(shown) <= _NAME_LIMIT else f"{shown[:79]}…"


def describe_counts(
    lines: int,
    rows_by_split: Mapping[str, int],
    codes: Mapping[str, int],
    counts: Iterable[RowCounts],
    shapes: Iterable[ShapeCounts] = (),
) -> dict[str, Any]:
    """Return the counts of a set, by code and flag, and its tokens.

    ``codes`` counts the rejects. ``points`` = rows + rejects counts the decision points, a line that
    is no example as one; where each line has one, points = ``lines``.
    """
    total = RowCounts()
    for each in counts:
        total.merge(each)
    seen = ShapeCounts()
    for each in shapes:
        seen.merge(each)
    rejects = sum(codes.values())
    return {
        "lines": lines,
        "points": total.rows + rejects,
        "rows": total.rows,
        "rows_by_split": dict(rows_by_split),
        "rejects": rejects,
        "by_code": dict(sorted(codes.items())),
        "by_flag": dict(sorted(total.flags.items())),
        "rows_as_served": total.rows - total.shortened,
        "rows_shortened": total.shortened,
        "tokens": {
            "total": total.sums["total_len"],
            "context": total.sums["context_len"],
            "continuation": total.sums["total_len"] - total.sums["context_len"],
            "dropped": total.sums["dropped_tokens"],
        },
        "dropped_messages": total.sums["dropped_messages"],
        **seen.describe(),
    }

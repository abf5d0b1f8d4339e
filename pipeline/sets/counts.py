"""What a manifest counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.rows.line_mapper import ShapeCounts

_SUMMED: Final = ("total_len", "context_len", "dropped_tokens", "dropped_messages")
COUNTED: Final = ("flags", *_SUMMED)
"""The columns of rows that are counted."""


@dataclass(slots=True)
class RowCounts:
    """Counts of rows: how many, how many were shortened, sums of columns, and flags by name."""

    rows: int = 0
    shortened: int = 0
    sums: Counter[str] = field(default_factory=Counter[str])
    flags: Counter[str] = field(default_factory=Counter[str])

    @classmethod
    def from_described(cls, described: Mapping[str, Any]) -> RowCounts:
        """Return the counts of the rows of a set from those in its manifest (`describe_counts`)."""
        tokens = described["tokens"]
        sums = {
            "total_len": tokens["total"],
            "context_len": tokens["context"],
            "dropped_tokens": tokens["dropped"],
            "dropped_messages": described["dropped_messages"],
        }
        flags = Counter[str](described["by_flag"])
        return cls(described["rows"], described["rows_shortened"], Counter(sums), flags)

    def add(self, table: pa.Table, sign: int = 1) -> None:
        """Count the rows of a table with the columns `COUNTED`; with ``sign`` -1 no longer."""
        columns = {name: np.asarray(table.column(name)) for name in _SUMMED}
        shortened = int(np.count_nonzero(columns["dropped_tokens"]))
        flags = Counter[str](table.column("flags").combine_chunks().flatten().to_pylist())
        sums = Counter({name: int(column.sum()) for name, column in columns.items()})
        self.merge(RowCounts(table.num_rows, shortened, sums, flags), sign)

    def merge(self, other: RowCounts, sign: int = 1) -> None:
        """Add the counts of other rows; with ``sign`` -1 take them away."""
        self.rows += sign * other.rows
        self.shortened += sign * other.shortened
        # These leave out what is nought.
        self.sums = self.sums + other.sums if sign > 0 else self.sums - other.sums
        self.flags = self.flags + other.flags if sign > 0 else self.flags - other.flags


def count_rows(table: pa.Table, places: NDArray[np.int64]) -> RowCounts:
    """Return the counts of the rows at ``places`` of a table with the columns `COUNTED`."""
    counts = RowCounts()
    counts.add(table.select(list(COUNTED)).take(pa.array(places)))
    return counts


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

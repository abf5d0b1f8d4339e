"""What each ``max_len`` would cost, and how long the rows of a saved set are.

A row that was shortened when the set was made counts with the length it had before: ``total_len``
plus ``dropped_tokens``. Two things a saved set cannot tell: rows that were rejected then (their
tokens were never saved), and what was cut off a continuation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.errors import UsageError
from pipeline.sets.load import open_splits
from pipeline.sets.manifest import read_manifest
from pipeline.sets.row_columns import RowColumns

Lengths = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class LengthSummary:
    """Smallest, middle, 95th-percentile and largest of some lengths, in tokens."""

    min: int
    median: int
    p95: int
    max: int


@dataclass(frozen=True, slots=True)
class MaxLenCost:
    """What one ``max_len`` would do to the rows.

    ``refused`` rows have a continuation that leaves no token for a context, ``shortened`` ones lose
    ``lost_tokens`` of context together, at the least: ``drop_turns`` removes whole turns.
    """

    max_len: int
    shortened: int
    refused: int
    lost_tokens: int


@dataclass(frozen=True, slots=True)
class LengthReport:
    """Lengths of a set. ``context`` and ``total`` are those before the set's own shortening.

    ``shared_contexts`` is the number of distinct contexts that several rows share (None where
    ``columns: train`` kept no hash), ``rows_per_context`` the mean over all contexts.
    """

    rows: int
    already_shortened: int
    context: LengthSummary | None
    continuation: LengthSummary | None
    total: LengthSummary | None
    costs: tuple[MaxLenCost, ...]
    contexts: int | None
    shared_contexts: int | None
    rows_per_context: float | None
    flags: dict[str, int]

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as JSON can hold them."""
        return asdict(self)


def measure_set(path: str | Path, max_lens: Sequence[int]) -> LengthReport:
    """Return the report of a saved set, all splits together.

    Raises `UsageError` where there is no set, or for a ``max_len`` below 2.
    """
    if wrong := [max_len for max_len in max_lens if max_len < 2]:
        raise UsageError(f"max_lens: found {wrong[0]}; expected at least 2 tokens")
    read_manifest(Path(path))
    # What is refused when a set is opened is refused here too.
    open_splits(Path(path))
    return measure_table(RowColumns(Path(path)).table, max_lens)


def measure_table(rows: pa.Table, max_lens: Sequence[int]) -> LengthReport:
    """Return the report of the table of `RowColumns`."""
    context, total, dropped = (
        np.asarray(rows.column(name)).astype(np.int64)
        for name in ("context_len", "total_len", "dropped_tokens")
    )
    continuation = total - context
    sharing: NDArray[np.int64] | None = None
    flags: dict[str, int] = {}
    if "context_hash" in rows.column_names:
        keys = np.asarray(rows.column("context_hash"))
        sharing = np.unique(keys, return_counts=True)[1]
        found = rows.column("flags").combine_chunks().flatten().value_counts()
        flags = {str(each["values"]): each["counts"].as_py() for each in found}
    return LengthReport(
        rows=rows.num_rows,
        already_shortened=int(np.count_nonzero(dropped)),
        context=_summarise(context + dropped),
        continuation=_summarise(continuation),
        total=_summarise(total + dropped),
        costs=tuple(
            _price(max_len, total + dropped, continuation) for max_len in sorted(set(max_lens))
        ),
        contexts=None if sharing is None else len(sharing),
        shared_contexts=None if sharing is None else int(np.count_nonzero(sharing > 1)),
        rows_per_context=rows.num_rows / len(sharing)
        if sharing is not None and len(sharing)
        else None,
        flags=dict(sorted(flags.items())),
    )


def _price(max_len: int, total: Lengths, continuation: Lengths) -> MaxLenCost:
    refused = continuation >= max_len
    shortened = (total > max_len) & ~refused
    return MaxLenCost(
        max_len=max_len,
        shortened=int(np.count_nonzero(shortened)),
        refused=int(np.count_nonzero(refused)),
        lost_tokens=int((total[shortened] - max_len).sum()),
    )


def _summarise(lengths: Lengths) -> LengthSummary | None:
    """Return the summary; of an even number of rows the lower middle one, so that it is a length."""
    if not len(lengths):
        return None
    points = np.percentile(lengths, [0, 50, 95, 100], method="lower")
    return LengthSummary(*(int(point) for point in points))

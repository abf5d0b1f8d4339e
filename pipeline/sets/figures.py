"""What a report says of a set in numbers, read from the columns that hold no tokens."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.sets.lengths import LengthReport, Lengths, measure_table
from pipeline.sets.row_choice import equal_mask
from pipeline.sets.row_columns import RowColumns

USUAL_MAX_LENS: Final = (512, 1024, 2048, 4096, 8192, 16384, 32768)
_BATCH_SIZES: Final = (2, 4, 8, 16, 32, 64)
_ALL: Final = slice(None)
# Rows per context: the upper ends of the classes that a report tells apart.
_SHARING_CLASSES: Final = (1, 2, 4, 8, 16, 64)


class PaddingCost(NamedTuple):
    """Share of padding in batches of ``batch_size`` rows, 0 to 1: drawn at random, or of like length."""

    batch_size: int
    random: float
    of_like_length: float


class GroupFigures(NamedTuple):
    """Rows of one source file, or with one memory, and their tokens."""

    name: str
    rows: int
    context: int
    continuation: int
    shortened: int


class SharingClass(NamedTuple):
    """Contexts that stand in ``least`` to ``most`` rows each (``most`` None: or more)."""

    least: int
    most: int | None
    contexts: int
    rows: int


@dataclass(frozen=True, slots=True)
class ContextSharing:
    """How often contexts recur. ``saved`` are the tokens that need no run where each runs once."""

    classes: tuple[SharingClass, ...]
    saved: int


class CutCurve(NamedTuple):
    """For each ``max_len``: the share of rows that are longer, and of tokens that do not fit."""

    max_lens: Lengths
    rows: NDArray[np.float64]
    tokens: NDArray[np.float64]


class SetFigures:
    """The splits of a set and what is counted in them; each figure is made when asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        columns = RowColumns(folder)
        self.table, self.rows_by_split = columns.table, columns.rows_by_split
        self.rows_at = columns.rows_at

    @property
    def has_provenance(self) -> bool:
        """True where the rows say where they came from (``columns: full``)."""
        return "source" in self.table.column_names

    @cached_property
    def context(self) -> Lengths:
        """Length of each context as the server saw it: with what was dropped."""
        return self._column("context_len") + self._column("dropped_tokens")

    @cached_property
    def continuation(self) -> Lengths:
        """Length of each continuation."""
        return self._column("total_len") - self._column("context_len")

    @cached_property
    def total(self) -> Lengths:
        """Length of each row as the server saw it."""
        return self.context + self.continuation

    @cached_property
    def lengths(self) -> LengthReport:
        """Lengths in words and what the usual values of ``max_len`` cost."""
        return measure_table(self.table, USUAL_MAX_LENS)

    def cut_curve(self, points: int = 80) -> CutCurve:
        """Return what values of ``max_len`` from the shortest to the longest row would cut."""
        ordered = np.sort(self.total)
        least, most = max(1, int(ordered[0])), int(ordered[-1])
        max_lens = np.unique(np.geomspace(least, most, points).round().astype(np.int64))
        fitting = np.searchsorted(ordered, max_lens, side="right")
        sums = np.concatenate([[0], np.cumsum(ordered)])
        longer = len(ordered) - fitting
        excess = sums[-1] - sums[fitting] - max_lens * longer
        return CutCurve(max_lens, longer / len(ordered), excess / sums[-1])

    def padding(self) -> tuple[PaddingCost, ...]:
        """Return the padding of batches padded to their longest row, as rows are saved."""
        total = self._column("total_len")
        shuffled = np.random.default_rng(0).permutation(total)
        ordered = np.sort(total)
        return tuple(
            PaddingCost(size, _pad_share(shuffled, size), _pad_share(ordered, size))
            for size in _BATCH_SIZES
            if size <= len(total)
        )

    def sharing(self) -> ContextSharing | None:
        """Return how often contexts recur, or nothing where the rows keep no hash of theirs."""
        if "context_hash" not in self.table.column_names:
            return None
        keys = np.asarray(self.table.column("context_hash"))
        _, firsts, rows = np.unique(keys, return_index=True, return_counts=True)
        lengths = self._column("context_len")[firsts]
        ends = (*_SHARING_CLASSES, None)
        classes: list[SharingClass] = []
        for before, most in zip((0, *_SHARING_CLASSES), ends, strict=True):
            is_here = (rows > before) & (True if most is None else rows <= most)
            if is_here.any():
                found = int(np.count_nonzero(is_here)), int(rows[is_here].sum())
                classes.append(SharingClass(before + 1, most, *found))
        return ContextSharing(tuple(classes), int((lengths * (rows - 1)).sum()))

    def sources(self) -> list[GroupFigures]:
        """Return the figures of each source file, the one with most rows first."""
        return self._group(self.table.column("source").combine_chunks())

    def memories(self) -> list[GroupFigures]:
        """Return the figures of each memory, the one with most rows first; a row may have several."""
        lists = self.table.column("memories").combine_chunks()
        return self._group(lists.flatten(), np.asarray(lists.value_parent_indices()))

    def flagged_rows(self, most: int) -> dict[str, list[int]]:
        """Return the numbers of the first rows of each flag, by flag."""
        if "flags" not in self.table.column_names:
            return {}
        lists = self.table.column("flags").combine_chunks()
        flags, parents = lists.flatten(), np.asarray(lists.value_parent_indices())
        return {
            flag: [int(row) for row in parents[equal_mask(flags, flag)][:most]]
            for flag in sorted(flags.unique().to_pylist())
        }

    def _group(
        self, names: pa.DictionaryArray, rows: NDArray[np.int64] | slice = _ALL
    ) -> list[GroupFigures]:
        """Return the figures of each name; ``rows`` are the rows that the names are of."""
        codes, known = np.asarray(names.indices), names.dictionary.to_pylist()
        of_rows = (
            self._column("context_len"),
            self.continuation,
            (self._column("dropped_tokens") > 0).astype(np.int64),
        )
        sums = [np.bincount(codes, each[rows], len(known)).astype(np.int64) for each in of_rows]
        counts = [np.bincount(codes, minlength=len(known)), *sums]
        found = [
            GroupFigures(name, *figures)
            for name, *figures in zip(known, *(each.tolist() for each in counts), strict=True)
        ]
        return sorted(found, key=lambda group: (-group.rows, group.name))

    def _column(self, name: str) -> Lengths:
        return np.asarray(self.table.column(name)).astype(np.int64)


def _pad_share(lengths: Lengths, size: int) -> float:
    """Return the share of padding where rows are batched as they come, the last batch smaller."""
    starts = np.arange(0, len(lengths), size)
    widths = np.maximum.reduceat(lengths, starts)
    counts = np.diff(np.append(starts, len(lengths)))
    return 1 - float(lengths.sum() / (widths * counts).sum())

"""Ids of many texts in one block, as every encoder gives them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class EncodedBatch:
    """Ids of a batch of texts in one block: text ``i`` is ``flat[offsets[i]:offsets[i + 1]]``.

    ``flat`` is int32 [tokens of all texts], ``offsets`` is int64 [texts + 1]. Both may be read-only.
    """

    flat: Ids
    offsets: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> Ids:
        return self.flat[self.offsets[index] : self.offsets[index + 1]]

    def __iter__(self) -> Iterator[Ids]:
        for start, end in pairwise(self.offsets.tolist()):
            yield self.flat[start:end]


def join_lists(rows: Sequence[Sequence[int]]) -> EncodedBatch:
    """Return the batch of rows that are lists of ids."""
    offsets = _offsets_of(rows)
    flat = np.fromiter(chain.from_iterable(rows), np.int32, int(offsets[-1]))
    return EncodedBatch(flat, offsets)


def join_rows(rows: Sequence[Ids]) -> EncodedBatch:
    """Return the batch of rows that are arrays of ids."""
    flat = np.concatenate(rows) if rows else np.empty(0, np.int32)
    return EncodedBatch(flat, _offsets_of(rows))


def join_parts(rows: Iterable[Sequence[Ids]]) -> EncodedBatch:
    """Return the batch of rows that are each a sequence of parts."""
    parts: list[Ids] = [np.empty(0, np.int32)]
    lengths: list[int] = [0]
    for row in rows:
        parts += row
        lengths.append(sum(map(len, row)))
    return EncodedBatch(np.concatenate(parts), np.cumsum(lengths, dtype=np.int64))


def join_batches(first: EncodedBatch, second: EncodedBatch) -> EncodedBatch:
    """Return the texts of ``first``, then those of ``second``."""
    return EncodedBatch(
        np.concatenate([first.flat, second.flat]),
        np.concatenate([first.offsets, second.offsets[1:] + first.offsets[-1]]),
    )


def _offsets_of(rows: Sequence[Sequence[int] | Ids]) -> NDArray[np.int64]:
    offsets = np.zeros(len(rows) + 1, np.int64)
    np.cumsum([len(row) for row in rows], out=offsets[1:])
    return offsets

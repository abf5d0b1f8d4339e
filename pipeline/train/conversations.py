"""Batches of whole conversations, for one pass over each (the collator's ``conversation`` layout)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from heapq import heapify, heappop, heappush
from itertools import islice
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from pipeline.rows.chains import find_chains
from pipeline.train.epochs import EpochSampler, Lengths, Unit, read_column
from pipeline.train.token_rows import RowSource, read_token_rows

_ROWS_PER_READ = 256
# A backward pass takes about twice as long as the forward pass that comes before it.
_COST_OF_GRADIENT = 3


class FrozenTokens(NamedTuple):
    """Tokens that run without gradient in an epoch: each row by itself, or chains in one pass."""

    by_rows: int
    in_one_pass: int


class ConversationSampler(EpochSampler):
    """Batch sampler that keeps rows together whose frozen parts begin one another.

    For the collator's ``conversation`` layout and `pipeline.train.step.frozen_losses`, which run
    such a chain of rows in one pass. Rows are compared by ids, among those of one ``conversation``;
    one that fits no other is a chain by itself. A chain of more than ``continuation_tokens`` is cut
    into several, each of which runs its context anew.

    Args:
        rows: a loaded split, or anything with columns ``input_ids``, ``conversation``,
            ``context_len`` and ``total_len``; those of conversations of several rows are read once.
        context_tokens: most frozen tokens that a batch runs. Memory needs less: one chain's cache.
        continuation_tokens: most tokens with gradient of a batch, in all its losses together; how
            many one backward pass holds is ``max_tokens`` of `frozen_losses`.
        seed, rank, world_size, with_rejected: as `LengthBatchSampler`'s.

    A chain whose context exceeds ``context_tokens``, or a row whose continuation exceeds
    ``continuation_tokens``, is a batch of its own. Each epoch has every row once, and equally many
    batches for each rank, of like cost in one step: tokens run, those with gradient three times.
    Where ranks come out uneven, chains are cut, or rows that are batches alone put together.

    >>> rows = {"input_ids": [[5, 6, 7], [5, 6, 8, 9], [7, 7]], "context_len": [2, 3, 1]}
    >>> rows |= {"total_len": [3, 4, 2], "conversation": ["a", "a", "b"]}
    >>> [sorted(batch) for batch in ConversationSampler(rows)]
    [[0, 1, 2]]
    """

    def frozen_tokens(self) -> FrozenTokens:
        """Return what the frozen phase of an epoch runs, of all ranks, and would run without chains.

        Not counted is what uneven ranks make of it.
        """
        return FrozenTokens(int(self._frozen.sum()), sum(unit.frozen for unit in self._units))

    def _read_groups(self, rows: Any) -> Lengths:
        """Return the number of the chain of each row."""
        chains = np.arange(len(self._frozen))
        numbers = np.unique(read_column(rows, "conversation"), return_inverse=True)[1]
        order = np.argsort(numbers, kind="stable")
        talks = np.split(order, np.flatnonzero(np.diff(numbers[order])) + 1)
        for talk, frozen in _read_frozen(rows, [talk for talk in talks if len(talk) > 1]):
            for chain in find_chains(frozen):
                chains[talk[chain]] = talk[chain].min()
        return chains

    def _make_units(self) -> list[Unit]:
        units: list[Unit] = []
        order = np.lexsort((self._frozen, self._groups))
        for chain in np.split(order, np.flatnonzero(np.diff(self._groups[order])) + 1):
            unit = Unit((), 0, 0)
            for row in chain.tolist():
                live = unit.live + int(self._live[row])
                if unit.rows and live > self.continuation_tokens:
                    units.append(unit)
                    unit, live = Unit((), 0, 0), int(self._live[row])
                unit = Unit((*unit.rows, row), int(self._frozen[row]), live)
            units.append(unit)
        return units

    def _plan_batches(self, random: np.random.Generator) -> list[list[int]]:
        batches: list[list[int]] = []
        frozen = live = 0
        for place in random.permutation(len(self._units)):
            unit = self._units[place]
            frozen, live = frozen + unit.frozen, live + unit.live
            if not batches or frozen > self.context_tokens or live > self.continuation_tokens:
                batches.append([])
                frozen, live = unit.frozen, unit.live
            batches[-1] += unit.rows
        return batches

    def _even_out(self, batches: list[list[int]], random: np.random.Generator) -> list[list[int]]:
        """Return the batches with the costliest cut until the ranks come out even.

        Where every batch is down to one row, those left over join others, the cheapest of all.
        """
        queue = [(-self._count_cost(batch), batch) for batch in batches]
        heapify(queue)
        whole: list[list[int]] = []
        while queue and (len(queue) + len(whole)) % self.world_size:
            batch = heappop(queue)[1]
            if len(batch) == 1:
                whole.append(batch)
                continue
            for half in self._halve(batch):
                heappush(queue, (-self._count_cost(half), half))
        batches = whole + [batch for _, batch in queue]
        left_over = len(batches) % self.world_size
        if left_over:
            batches.sort(key=self._count_cost)
            for batch, other in zip(batches[:left_over], batches[left_over:], strict=False):
                other += batch
            batches = batches[left_over:]
        return batches

    def _halve(self, batch: list[int]) -> tuple[list[int], list[int]]:
        """Return the batch in two, cut between two chains where it has several."""
        middle = len(batch) / 2
        between = np.flatnonzero(np.diff(self._groups[batch])) + 1
        cuts = between.tolist() or [len(batch) // 2]
        cut = min(cuts, key=lambda cut: abs(cut - middle))
        return batch[:cut], batch[cut:]

    def _count_cost(self, batch: list[int]) -> int:
        longest: dict[int, int] = {}
        for row in batch:
            chain, frozen = int(self._groups[row]), int(self._frozen[row])
            longest[chain] = max(longest.get(chain, 0), frozen)
        return sum(longest.values()) + _COST_OF_GRADIENT * int(self._live[batch].sum())


def _read_frozen(
    rows: Any, talks: Sequence[Lengths]
) -> Iterator[tuple[Lengths, list[NDArray[np.integer[Any]]]]]:
    """Yield the places of the rows of each conversation and their frozen ids, read some at a time."""
    start = 0
    while start < len(talks):
        end, count = start, 0
        while end < len(talks) and (end == start or count + len(talks[end]) <= _ROWS_PER_READ):
            count, end = count + len(talks[end]), end + 1
        read = iter(
            read_token_rows(
                _take_rows(rows, np.concatenate(talks[start:end]).tolist()), with_rejected=True
            )
        )
        for talk in talks[start:end]:
            yield talk, [row.frozen_ids for row in islice(read, len(talk))]
        start = end


def _take_rows(rows: Any, places: list[int]) -> RowSource:
    if hasattr(rows, "with_format"):
        return rows.with_format("arrow")[places]
    columns = cast("Mapping[str, Any]", rows)
    names = ("input_ids", "context_len", "total_len")
    return {name: [columns[name][place] for place in places] for name in names if name in columns}

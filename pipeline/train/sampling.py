"""Batches of rows of like lengths, or of like contexts, within a budget of tokens per phase.

A two-phase batch of B rows costs B x C cells of cache and B x R cells of activations, where C and R
are its longest frozen part and its longest last context token + continuation, in tokens. Rows are
cut in two, along either length and at the place that leaves the fewest cells, until each part fits
both budgets; both phases so have little padding, and no bucket widths need to be chosen.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.train.epochs import EpochSampler, Lengths, Unit, read_column

logger = logging.getLogger(__name__)

# Rows planned together: enough to find like lengths among, few enough to plan in a second.
_POOL_ROWS = 8192
# Lengths count as up to this much longer when rows are cut, so that neighbours change with the
# epoch; it costs a third of a point of padding.
_JITTER = 0.02


class PaddingShare(NamedTuple):
    """Share of padded cells in each phase's blocks and in both, 0 to 1."""

    context: float
    continuation: float
    both: float


class _TokenBudgetSampler(EpochSampler):
    """What both samplers of padded batches share: cut the rows to fit, count the padding."""

    def _plan_batches(self, random: np.random.Generator) -> list[list[int]]:
        order = random.permutation(len(self._units))
        batches: list[list[int]] = []
        for start in range(0, len(order), _POOL_ROWS):
            pool = [self._units[place] for place in order[start : start + _POOL_ROWS]]
            batches += _cut_to_fit(pool, self.context_tokens, self.continuation_tokens, random)
        return batches

    def _even_out(self, batches: list[list[int]], random: np.random.Generator) -> list[list[int]]:
        """Return the batches with the widest halved until the ranks come out even.

        Where every batch is down to one row, those left over, fewer than ``world_size``, wait for
        an epoch that draws them.
        """
        while len(batches) % self.world_size:
            widest = max(range(len(batches)), key=lambda place: len(batches[place]))
            batch = batches.pop(widest)
            if len(batch) == 1:
                batches.append(batch)
                break
            batches += [batch[: len(batch) // 2], batch[len(batch) // 2 :]]
        left_over = len(batches) % self.world_size
        if left_over:
            logger.warning(
                "%d of %d rows are left out of epoch %d: %d ranks cannot share them evenly",
                left_over,
                len(self._frozen),
                self._epoch,
                self.world_size,
            )
            batches = [batches[place] for place in random.permutation(len(batches))[left_over:]]
        return batches

    def _count_cost(self, batch: list[int]) -> int:
        return len(batch) * int((self._frozen + self._live)[batch].max())

    def padding_share(self) -> PaddingShare:
        """Return the padded share of the running epoch's batches, all ranks together."""
        context_cells = live_cells = context_tokens = live_tokens = 0
        for batch in (batch for step in self._steps() for batch in step):
            firsts = np.unique(self._groups[batch], return_index=True)[1]
            contexts = self._frozen[batch][firsts]
            context_cells += len(contexts) * int(contexts.max())
            context_tokens += int(contexts.sum())
            live_cells += len(batch) * int(self._live[batch].max())
            live_tokens += int(self._live[batch].sum())
        return PaddingShare(
            1 - context_tokens / max(context_cells, 1),
            1 - live_tokens / live_cells,
            1 - (context_tokens + live_tokens) / (context_cells + live_cells),
        )


class LengthBatchSampler(_TokenBudgetSampler):
    """Batch sampler of rows with like lengths, in a new seeded order each epoch.

    Args:
        rows: a loaded split, or anything with columns ``context_len`` and ``total_len``.
        context_tokens: most cells of a batch's frozen block, B x C, in tokens (memory: the cache).
        continuation_tokens: most cells of its other block, B x R (activations and logits).
        seed: of the order; the same seed gives the same batches on every machine.
        rank, world_size: this process among those that train; default: of the process group, else
            one. The loader is not for ``accelerator.prepare``, which would deal the batches again.
        with_rejected: take the worse continuations of pairs too; else they are refused.

    A row that exceeds a budget alone is a batch of its own, with a warning. Ranks get equally many
    batches and no row twice. Use as ``DataLoader(rows, batch_sampler=...)``; with rows in Arrow
    format, the fastest, as ``DataLoader(rows, sampler=..., batch_size=None)``.

    >>> sampler = LengthBatchSampler({"context_len": [5, 900, 6], "total_len": [9, 950, 9]})
    >>> sorted(map(sorted, sampler))
    [[0, 1, 2]]
    """

    def _read_groups(self, rows: Any) -> Lengths:
        return np.arange(len(self._frozen))

    def _make_units(self) -> list[Unit]:
        return [
            Unit((row,), int(frozen), int(live))
            for row, (frozen, live) in enumerate(zip(self._frozen, self._live, strict=True))
        ]


class ContextGroupSampler(_TokenBudgetSampler):
    """Batch sampler that keeps rows with the same ``context_hash`` together.

    For the collator's ``grouped`` layout, which runs each context of a batch once. Arguments as
    `LengthBatchSampler`'s, and a column ``context_hash``. ``context_tokens`` still bounds *rows* x
    C, since the gradient phase holds the context's keys once for each continuation that reads
    them; a group that does not fit is cut into several batches.
    """

    def _read_groups(self, rows: Any) -> Lengths:
        return np.unique(read_column(rows, "context_hash"), return_inverse=True)[1]

    def _make_units(self) -> list[Unit]:
        units: list[Unit] = []
        # Long continuations first, so that those which share a batch are of like length.
        order = np.lexsort((-self._live, self._groups))
        starts = np.flatnonzero(np.diff(self._groups[order])) + 1
        for group in np.split(order, starts.tolist()):
            frozen = int(self._frozen[group].max())
            while len(group):
                live = int(self._live[group[0]])
                fitting = min(
                    self.context_tokens // max(frozen, 1), self.continuation_tokens // live
                )
                head, group = np.split(group, [max(fitting, 1)])
                units.append(Unit(tuple(head.tolist()), frozen, live))
        return units


def _cut_to_fit(
    units: Sequence[Unit],
    context_tokens: int,
    continuation_tokens: int,
    random: np.random.Generator,
) -> list[list[int]]:
    """Return the units' rows as batches within the budgets, by cutting where most padding goes."""
    counts = np.array([len(unit.rows) for unit in units])
    lengths = np.array([(unit.frozen, unit.live) for unit in units])
    shown = lengths * random.uniform(1, 1 + _JITTER, lengths.shape)
    batches: list[list[int]] = []
    parts = [np.arange(len(units))]
    while parts:
        part = parts.pop()
        frozen, live = lengths[part].max(axis=0) * counts[part].sum()
        if len(part) == 1 or (frozen <= context_tokens and live <= continuation_tokens):
            batches.append([row for place in part.tolist() for row in units[place].rows])
        else:
            parts += _cut_in_two(part, shown, counts)
    return batches


def _cut_in_two(part: Lengths, lengths: NDArray[np.float64], counts: Lengths) -> list[Lengths]:
    """Return the part as the two that need the fewest cells, of all cuts along either length."""
    best_cells, best = np.inf, []
    for axis in (0, 1):
        order = part[np.argsort(-lengths[part, axis], kind="stable")]
        heads = _count_cells(lengths[order], counts[order])[:-1]
        tails = _count_cells(lengths[order[::-1]], counts[order[::-1]])[-2::-1]
        cut = int(np.argmin(heads + tails))
        if heads[cut] + tails[cut] < best_cells:
            best_cells, best = heads[cut] + tails[cut], np.split(order, [cut + 1])
    return best


def _count_cells(lengths: NDArray[np.float64], counts: Lengths) -> NDArray[np.float64]:
    """Return, for each prefix of the units, the cells of a batch of it: G x C + K x R."""
    longest = np.maximum.accumulate(lengths, axis=0)
    cells = np.arange(1, len(counts) + 1) * longest[:, 0] + counts.cumsum() * longest[:, 1]
    return cells.astype(np.float64)

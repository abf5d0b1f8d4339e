"""Batches of rows of like lengths, or of like contexts, within a budget of tokens per phase.

A two-phase batch of B rows costs B x C cells of cache and B x R cells of activations, where C and R
are its longest frozen part and its longest last context token + continuation, in tokens. Rows are
cut in two, along either length and at the place that leaves the fewest cells, until each part fits
both budgets; both phases so have little padding, and no bucket widths need to be chosen.
"""

from __future__ import annotations

import hashlib
import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch.distributed
from numpy.typing import NDArray

from pipeline.errors import UsageError
from pipeline.types import REJECTED

logger = logging.getLogger(__name__)
Lengths = NDArray[np.int64]

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


@dataclass(frozen=True, slots=True)
class _Unit:
    """Rows that stay in one batch: their places in the set, and their longest parts in tokens."""

    rows: tuple[int, ...]
    frozen: int
    live: int


class _TokenBudgetSampler(ABC):
    """What both samplers share: plan an epoch, deal its batches to ranks, remember the place."""

    def __init__(
        self,
        rows: Any,
        context_tokens: int = 32_768,
        continuation_tokens: int = 8_192,
        seed: int = 0,
        rank: int | None = None,
        world_size: int | None = None,
        *,
        with_rejected: bool = False,
    ) -> None:
        has_group = torch.distributed.is_available() and torch.distributed.is_initialized()
        if world_size is None:
            world_size = torch.distributed.get_world_size() if has_group else 1
        if rank is None:
            rank = torch.distributed.get_rank() if has_group else 0
        if not 0 <= rank < world_size:
            raise UsageError(f"rank is {rank} of {world_size}; expected 0 to world_size - 1")
        for name, budget in (
            ("context_tokens", context_tokens),
            ("continuation_tokens", continuation_tokens),
        ):
            if budget < 1:
                raise UsageError(f"{name} is {budget}; expected a budget of 1 or more tokens")
        self.context_tokens, self.continuation_tokens = context_tokens, continuation_tokens
        self.seed, self.rank, self.world_size = seed, rank, world_size
        if not with_rejected:
            _refuse_rejected(rows)
        context_lens = _read_column(rows, "context_len").astype(np.int64)
        self._frozen: Lengths = context_lens - 1
        self._live: Lengths = _read_column(rows, "total_len").astype(np.int64) - self._frozen
        if len(context_lens) < world_size:
            raise UsageError(
                f"{len(context_lens)} rows for {world_size} ranks; expected at least one each"
            )
        self._groups = self._read_groups(rows)
        self._units = self._make_units()
        self._epoch, self._batches_done = 0, 0
        self._plan_epoch: int | None = None
        self._plan: list[list[list[int]]] = []
        self._warn_of_long_rows()

    @abstractmethod
    def _read_groups(self, rows: Any) -> Lengths:
        """Return the number of the context of each row: rows of one number run it once."""

    @abstractmethod
    def _make_units(self) -> list[_Unit]:
        """Return the rows as units that each fit the budgets, or hold one row."""

    @property
    def batch_size(self) -> int:
        """Never there: batches differ. Who asks among several ranks is about to deal them again."""
        has_group = torch.distributed.is_available() and torch.distributed.is_initialized()
        if has_group and torch.distributed.get_world_size() > 1:
            raise UsageError(
                "the loader of a sampler of its own rank was given to accelerator.prepare, which deals "
                "batches again; prepare the model and the optimizer alone (docs/training.md)"
            )
        raise AttributeError(f"{type(self).__name__} has batches of unlike sizes")

    def set_epoch(self, epoch: int) -> None:
        """Go to the start of ``epoch``; where that is the running one, stay at its place.

        Unless it is called, an iteration that ends goes on to the next epoch by itself.
        """
        if epoch != self._epoch:
            self._epoch, self._batches_done = epoch, 0

    def state_dict(self, batches_done: int | None = None) -> dict[str, Any]:
        """Return the place in the epoch, for `load_state_dict`.

        ``batches_done`` is how many batches of this epoch this rank has trained; default: how many
        were taken from here. DataLoader workers and `DeviceFeeder` take some ahead, so give it.
        """
        done = self._batches_done if batches_done is None else batches_done
        return {"epoch": self._epoch, "batches_done": done, "plan": self._identify()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where ``state`` was taken; refuse one of other rows, budgets, seed or ranks."""
        if state["plan"] != self._identify():
            raise UsageError(
                f"the state is of plan {state['plan']}, this sampler makes plan {self._identify()}; "
                "expected the same rows, budgets, seed and world_size: restore those, or start anew"
            )
        self._epoch, self._batches_done = int(state["epoch"]), int(state["batches_done"])

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

    def __len__(self) -> int:
        """Return this rank's batches in the running epoch; every rank has as many."""
        return len(self._steps())

    def __iter__(self) -> Iterator[list[int]]:
        steps = self._steps()
        while self._batches_done < len(steps):
            batch = steps[self._batches_done][self.rank]
            self._batches_done += 1
            yield batch
        self._epoch, self._batches_done = self._epoch + 1, 0

    def _steps(self) -> list[list[list[int]]]:
        """Return the running epoch's steps, each with one batch for every rank."""
        if self._plan_epoch != self._epoch:
            random = np.random.default_rng([self.seed, self._epoch])
            order = random.permutation(len(self._units))
            batches: list[list[int]] = []
            for start in range(0, len(order), _POOL_ROWS):
                pool = [self._units[place] for place in order[start : start + _POOL_ROWS]]
                batches += _cut_to_fit(pool, self.context_tokens, self.continuation_tokens, random)
            self._plan, self._plan_epoch = self._deal(batches, random), self._epoch
        return self._plan

    def _deal(self, batches: list[list[int]], random: np.random.Generator) -> list[list[list[int]]]:
        """Return steps of ``world_size`` batches of like cost, shuffled; no row twice.

        The widest batches are halved until the ranks come out even. Where every batch is down to
        one row, those left over, fewer than ``world_size``, wait for an epoch that draws them.
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
        batches.sort(key=lambda batch: len(batch) * int((self._frozen + self._live)[batch].max()))
        steps = [
            batches[start : start + self.world_size]
            for start in range(0, len(batches), self.world_size)
        ]
        return [steps[place] for place in random.permutation(len(steps))]

    def _identify(self) -> str:
        settings = (self.context_tokens, self.continuation_tokens, self.seed, self.world_size)
        digest = hashlib.sha256(repr((type(self).__name__, settings)).encode())
        for lengths in (self._frozen, self._live, self._groups):
            digest.update(lengths.tobytes())
        return digest.hexdigest()[:16]

    def _warn_of_long_rows(self) -> None:
        long = (self._frozen > self.context_tokens) | (self._live > self.continuation_tokens)
        if long.any():
            logger.warning(
                "%d rows exceed a budget alone (the longest: %d + %d tokens); each is its own batch",
                long.sum(),
                self._frozen.max(),
                self._live.max(),
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

    def _make_units(self) -> list[_Unit]:
        return [
            _Unit((row,), int(frozen), int(live))
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
        return np.unique(_read_column(rows, "context_hash"), return_inverse=True)[1]

    def _make_units(self) -> list[_Unit]:
        units: list[_Unit] = []
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
                units.append(_Unit(tuple(head.tolist()), frozen, live))
        return units


def _refuse_rejected(rows: Any) -> None:
    """Refuse the worse continuations of pairs. Raises `UsageError`."""
    is_told = "preference" in (getattr(rows, "column_names", None) or rows)
    if is_told and len(places := np.flatnonzero(_read_column(rows, "preference") == REJECTED)):
        raise UsageError(
            f"{len(places)} rows, the first at {places[0]}, have the preference {REJECTED}, not to be "
            "trained; leave them out (`pipeline.load` does), or say with_rejected=True"
        )


def _read_column(rows: Any, name: str) -> NDArray[Any]:
    names: Sequence[str] = getattr(rows, "column_names", None) or list(rows)
    if name not in names:
        raise UsageError(
            f"the rows have no column {name} (found {', '.join(map(str, names))}); "
            "expected a loaded set: keep the column, or prepare with columns: full"
        )
    return np.asarray(rows[name][:])


def _cut_to_fit(
    units: Sequence[_Unit],
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

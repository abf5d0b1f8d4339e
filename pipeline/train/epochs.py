"""What every batch sampler here is: a plan of each epoch, dealt to ranks, and a place in it."""

from __future__ import annotations

import hashlib
import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch.distributed
from numpy.typing import NDArray

from pipeline.errors import UsageError
from pipeline.types import REJECTED

logger = logging.getLogger(__name__)
Lengths = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Unit:
    """Rows that stay in one batch: their places in the set, and what they need of both budgets."""

    rows: tuple[int, ...]
    frozen: int
    live: int


class EpochSampler(ABC):
    """Batches of rows in a new seeded order each epoch, equally many for each rank, resumable."""

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
            refuse_rejected(rows)
        context_lens = read_column(rows, "context_len").astype(np.int64)
        self._frozen: Lengths = context_lens - 1
        self._live: Lengths = read_column(rows, "total_len").astype(np.int64) - self._frozen
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
    def _make_units(self) -> list[Unit]:
        """Return the rows as units that each fit the budgets, or hold what cannot be cut."""

    @abstractmethod
    def _plan_batches(self, random: np.random.Generator) -> list[list[int]]:
        """Return every row in one batch of an epoch."""

    @abstractmethod
    def _even_out(self, batches: list[list[int]], random: np.random.Generator) -> list[list[int]]:
        """Return a multiple of ``world_size`` batches."""

    @abstractmethod
    def _count_cost(self, batch: list[int]) -> int:
        """Return what a batch takes, in units of its sampler."""

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
            self._plan = self._deal(self._plan_batches(random), random)
            self._plan_epoch = self._epoch
        return self._plan

    def _deal(self, batches: list[list[int]], random: np.random.Generator) -> list[list[list[int]]]:
        """Return steps of ``world_size`` batches of like cost, shuffled; no row twice.

        Neighbours by cost share a step, so that ranks wait for each other, in a whole epoch, no
        longer than the costliest batch takes.
        """
        batches = self._even_out(batches, random)
        batches.sort(key=self._count_cost)
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


def refuse_rejected(rows: Any) -> None:
    """Refuse the worse continuations of pairs. Raises `UsageError`."""
    is_told = "preference" in (getattr(rows, "column_names", None) or rows)
    if is_told and len(places := np.flatnonzero(read_column(rows, "preference") == REJECTED)):
        raise UsageError(
            f"{len(places)} rows, the first at {places[0]}, have the preference {REJECTED}, not to be "
            "trained; leave them out (`pipeline.load` does), or say with_rejected=True"
        )


def read_column(rows: Any, name: str) -> NDArray[Any]:
    """Return a column of a loaded split, or of a dict of columns. Raises `UsageError`."""
    names: Sequence[str] = getattr(rows, "column_names", None) or list(rows)
    if name not in names:
        raise UsageError(
            f"the rows have no column {name} (found {', '.join(map(str, names))}); "
            "expected a loaded set: keep the column, or prepare with columns: full"
        )
    values = rows[name][:]
    # Texts as they are: numpy would give each the room of the longest.
    is_text = len(values) > 0 and isinstance(values[0], str)
    return np.asarray(values, dtype=object if is_text else None)

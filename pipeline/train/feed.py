"""CPU batches to a CUDA device, copied one batch ahead of the one in use.

What moves batches by itself needs no feeder: accelerate after ``accelerator.prepare(loader)``, and
the transformers ``Trainer``. A plain loop does, also under ``torchrun``.
"""

from __future__ import annotations

import logging
import os
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sized
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor

from pipeline.errors import UsageError

logger = logging.getLogger(__name__)
Batch = Mapping[str, Any]


@dataclass
class FeedStats:
    """What feeding has cost since the feeder was made.

    ``host_seconds`` is how long the loop waited for batches to be read, collated and pinned; none
    of it is lost while the device still has work queued. ``device_seconds`` is how long the
    device's stream stood still for a copy; 0 on the CPU.
    """

    batches: int = 0
    host_seconds: float = 0.0
    device_seconds: float = 0.0

    @property
    def stall_seconds(self) -> float:
        """Mean wait of a step for its batch, host and device together, in seconds."""
        return (self.host_seconds + self.device_seconds) / max(self.batches, 1)


@dataclass
class DeviceFeeder:
    """Iterable over the batches of ``loader`` on ``device``, the next one copied meanwhile.

    Args:
        loader: iterable of dicts of CPU tensors (other values pass as they are). It is read from
            one batch ahead, in this thread: a sampler's `state_dict` needs ``batches_done``.
        device: default ``cuda:LOCAL_RANK`` (``LOCAL_RANK`` as set by torchrun; else 0) where there
            is a CUDA card, else the CPU, where batches pass through untouched; a log line says so.

    Batches go through pinned memory and a stream of their own; neither side's memory is used again
    before the work queued on it is done. An exception of the loader comes out at once; when the
    loop stops early, nothing is left running.

    >>> feeder = DeviceFeeder([{"input_ids": torch.ones(1)}], device="cpu")
    >>> [batch["input_ids"].device.type for batch in feeder], feeder.stats.batches
    (['cpu'], 1)
    """

    loader: Iterable[Batch]
    device: torch.device | str | None = None
    stats: FeedStats = field(default_factory=FeedStats, init=False)

    def __post_init__(self) -> None:
        self._target = pick_device() if self.device is None else torch.device(self.device)
        if self._target.type not in ("cuda", "cpu"):
            raise UsageError(
                f"the device is {self._target}; expected a CUDA device or the CPU: "
                "move batches to other devices in the loop"
            )

    def __len__(self) -> int:
        """Return the loader's number of batches, where it has one."""
        return len(cast("Sized", self.loader))

    def __iter__(self) -> Iterator[Batch]:
        batches = iter(self.loader)
        if self._target.type == "cuda":
            batches = _keep_one_ahead(batches, _CudaCopier(self._target, self.stats))
        while True:
            start = time.perf_counter()
            batch = next(batches, None)
            self.stats.host_seconds += time.perf_counter() - start
            if batch is None:
                return
            self.stats.batches += 1
            yield batch


def pick_device() -> torch.device:
    """Return ``cuda:LOCAL_RANK`` where there is a CUDA card, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    logger.info("no CUDA card: batches stay on the CPU")
    return torch.device("cpu")


@dataclass(frozen=True, slots=True)
class _Copy:
    """A batch on its way: ``pinned`` must outlive the copy, ``done`` fires when it is there."""

    pinned: Batch
    moved: Batch
    done: torch.cuda.Event


class _CudaCopier:
    """Copies batches on a stream of its own; the compute stream waits for them, not the host."""

    def __init__(self, device: torch.device, stats: FeedStats) -> None:
        self._device, self._stats = device, stats
        self._stream = torch.cuda.Stream(device)
        self._waits: deque[tuple[torch.cuda.Event, torch.cuda.Event]] = deque()

    def start(self, batch: Batch) -> _Copy:
        """Queue the copy of ``batch`` and return at once."""
        pinned = {name: _pin(value) for name, value in batch.items()}
        with torch.cuda.stream(self._stream):
            moved = {
                name: value.to(self._device, non_blocking=True)
                if isinstance(value, Tensor)
                else value
                for name, value in pinned.items()
            }
            done = torch.cuda.Event()
            done.record(self._stream)
        return _Copy(pinned, moved, done)

    def finish(self, copy: _Copy) -> Batch:
        """Return the copied batch, which work queued from now on may read."""
        compute = torch.cuda.current_stream(self._device)
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        before.record(compute)
        compute.wait_event(copy.done)
        after.record(compute)
        self._waits.append((before, after))
        self._count_waits()
        for value in copy.moved.values():
            if isinstance(value, Tensor):
                # The memory belongs to the copy stream, which would reuse it when the loop lets go.
                value.record_stream(compute)
        return copy.moved

    def _count_waits(self) -> None:
        """Add the waits that are over to the stats, without waiting for the device."""
        while self._waits and self._waits[0][1].query():
            before, after = self._waits.popleft()
            self._stats.device_seconds += before.elapsed_time(after) / 1000


def _keep_one_ahead(batches: Iterator[Batch], copier: _CudaCopier) -> Iterator[Batch]:
    """Yield each batch after the copy of the next has been queued."""
    ahead: _Copy | None = None
    for batch in batches:
        following = copier.start(batch)
        if ahead is not None:
            yield copier.finish(ahead)
        ahead = following
    if ahead is not None:
        yield copier.finish(ahead)


def _pin(value: Any) -> Any:
    if isinstance(value, Tensor) and value.device.type == "cpu" and not value.is_pinned():
        return value.pin_memory()
    return value

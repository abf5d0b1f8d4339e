"""Shards on the cores of this machine: forked worker processes that one loop watches.

Workers are forked, so they begin with the tokenizer, the compiled template and all that was learnt
of it. A worker that dies or falls silent ends the job with the place that it was at; pools of the
standard library say only that some process died, and some wait for ever.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import pickle
import signal
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkProcess
from typing import Final

from pipeline.errors import WorkerFailed
from pipeline.job.heap import give_back_free_memory
from pipeline.job.lock import end_with_parent
from pipeline.job.shard import Progress
from pipeline.job.shard_record import ShardRecord
from pipeline.source.plan import SourceShard

SILENCE_SECONDS: Final = 600.0
"""How long a worker may work on one batch. The slowest batches seen took some seconds."""

OnProgress = Callable[[Progress], None]
EncodeShard = Callable[[SourceShard, OnProgress], ShardRecord]


def run_shards(
    shards: Sequence[SourceShard],
    encode: EncodeShard,
    workers: int,
    on_progress: OnProgress,
    start_worker: Callable[[], None] = lambda: None,
    *,
    watches_one: bool = False,
) -> Iterator[ShardRecord]:
    """Yield the record of each shard as it is done, in any order.

    One worker is this process, unless ``watches_one``: then that is forked too, so that its silence is
    noticed. More are forked, each calls ``start_worker`` first, and an error of
    one is raised here. Raises `WorkerFailed` for a worker that died or that was silent for
    `SILENCE_SECONDS`; no worker is left behind, however this ends.
    """
    if not shards or (min(workers, len(shards)) <= 1 and not watches_one):
        with _rare_collections():
            for shard in shards:
                yield encode(shard, on_progress)
        return
    with (
        _rare_collections(),
        _started(max(1, min(workers, len(shards))), encode, start_worker) as running,
    ):
        waiting = deque(shards)
        for worker in running:
            worker.take(waiting.popleft())
        while busy := [worker for worker in running if worker.shard]:
            _wait_for_message(busy)
            for worker in busy:
                for message in worker.read_messages():
                    if isinstance(message, Progress):
                        on_progress(message)
                        continue
                    if isinstance(message, Exception):
                        raise message
                    worker.take(waiting.popleft() if waiting else None)
                    yield message


Message = Progress | ShardRecord | Exception


@dataclass(slots=True)
class _Worker:
    """A worker process as its parent sees it."""

    process: ForkProcess
    pipe: Connection
    shard: SourceShard | None = None
    place: str = ""
    heard: float = 0.0

    def take(self, shard: SourceShard | None) -> None:
        """Give the worker its next shard; None lets it end."""
        self.shard, self.place = shard, ""
        self.heard = time.monotonic()
        try:
            self.pipe.send(shard)
        except OSError as error:
            if shard:
                raise self._failed(self._ending()) from error

    def read_messages(self) -> Iterator[Message]:
        """Yield what the worker has said. Raises `WorkerFailed` where it is dead or silent."""
        is_ended = not self.process.is_alive()
        try:
            while self.pipe.poll():
                message: Message = self.pipe.recv()
                self.heard = time.monotonic()
                if isinstance(message, Progress):
                    self.place = message.place
                yield message
        except (EOFError, OSError):
            # An OSError where it died in the middle of a message, or with one that it had not read.
            is_ended = True
        if self.shard and is_ended:
            raise self._failed(self._ending())
        if self.shard and time.monotonic() - self.heard > SILENCE_SECONDS:
            raise self._failed(f"has been at one batch for over {SILENCE_SECONDS:.0f} s")

    def _ending(self) -> str:
        self.process.join(1)
        code = self.process.exitcode
        if code is not None and code < 0:
            name = signal.Signals(-code).name
            hint = " (out of memory?)" if name == "SIGKILL" else ""
            return f"was ended by {name}{hint}"
        return f"ended with exit code {code}"

    def _failed(self, what: str) -> WorkerFailed:
        assert self.shard is not None, "only a worker with a shard can fail"
        after = f"after {self.place}" if self.place else "at its beginning"
        return WorkerFailed(
            f"a worker process {what}: {self.shard.describe()}, {after}; nothing was published. "
            "Shards that were finished are kept: run again, with a smaller num_proc or batch_size "
            "where memory is short"
        )


def _wait_for_message(workers: Sequence[_Worker]) -> None:
    sources = [*(worker.pipe for worker in workers), *(each.process.sentinel for each in workers)]
    silent_since = min(worker.heard for worker in workers)
    wait(sources, timeout=max(0.0, silent_since + SILENCE_SECONDS - time.monotonic()) + 0.05)


@contextmanager
def _rare_collections() -> Generator[None]:
    """Look for cycles seldom: rows are made without any, and a search costs a tenth of the time.

    Objects made before stay out of it altogether; in a worker, looking at them would copy their pages.
    """
    before = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 50, 1000)
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()


@contextmanager
def _started(
    number: int, encode: EncodeShard, start_worker: Callable[[], None]
) -> Generator[list[_Worker]]:
    """Fork the workers; at the end let those that are done go, and end the others."""
    context = multiprocessing.get_context("fork")
    # What the parent has freed would be part of every worker.
    give_back_free_memory()
    running: list[_Worker] = []
    try:
        for _ in range(number):
            ours, theirs = context.Pipe()
            others = [*(worker.pipe for worker in running), ours]
            process = context.Process(
                target=_work,
                args=(os.getpid(), theirs, others, encode, start_worker),
                daemon=True,
            )
            process.start()
            theirs.close()
            running.append(_Worker(process, ours))
        yield running
        for worker in running:
            worker.process.join(5)
    finally:
        for worker in running:
            worker.process.kill()
        for worker in running:
            worker.process.join()
            worker.pipe.close()


def _work(
    parent: int,
    pipe: Connection,
    others: Sequence[Connection],
    encode: EncodeShard,
    start_worker: Callable[[], None],
) -> None:
    """Encode the shards that come through ``pipe`` until none comes."""
    end_with_parent(parent)
    for other in others:
        # A copy of another worker's pipe would keep it open after its end.
        other.close()
    # The parent hears Ctrl-C and ends its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    start_worker()
    while shard := pipe.recv():
        try:
            record = encode(shard, pipe.send)
        except Exception as error:  # noqa: BLE001 (nothing goes on here: the parent raises it)
            # One that cannot travel ends this process, with its trace on standard error.
            pickle.loads(pickle.dumps(error))  # noqa: S301
            pipe.send(error)
            return
        pipe.send(record)

"""Shards on the cores of this machine: forked worker processes that one loop watches.

Workers are forked, so they begin with the tokenizer, the compiled template and all that was learnt
of it. A worker that dies or falls silent ends the job with the place that it was at; pools of the
standard library say only that some process died, and some wait for ever. A worker that the limits of
a render ended is no failure: another, careful one does its shard again from the beginning.
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
from functools import partial
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkProcess
from typing import Final

from pipeline.errors import WorkerFailed
from pipeline.job.heap import collect_rarely, give_back_free_memory
from pipeline.job.shard import Progress
from pipeline.job.shard_record import ShardRecord
from pipeline.lines.plan import SourceShard
from pipeline.prompt.bounded import DEATHS
from pipeline.sets.lock import end_with_parent

SILENCE_SECONDS: Final = 600.0
"""How long a worker may work on one batch. The slowest batches seen took some seconds."""

OnProgress = Callable[[Progress], None]
StartWorker = Callable[[bool], None]
"""Called in a new worker; True where it is to be careful: it runs no template in its own process."""
EncodeShard = Callable[[SourceShard, OnProgress], ShardRecord]


def run_shards(
    shards: Sequence[SourceShard],
    encode: EncodeShard,
    workers: int,
    on_progress: OnProgress,
    start_worker: StartWorker = lambda is_careful: None,
) -> Iterator[ShardRecord]:
    """Yield the record of each shard as it is done, in any order.

    Workers are forked, one too: what a template does must not end this process. Each calls
    ``start_worker`` first, and an error of one is raised here. Raises `WorkerFailed` for a worker
    that died or that was silent for `SILENCE_SECONDS`; no worker is left behind, however this ends.
    Where this process `may_have_children` of no kind, it makes the shards itself.
    """
    if not shards:
        return
    if not may_have_children():
        with _rare_collections():
            for shard in shards:
                yield encode(shard, on_progress)
        return
    number = max(1, min(workers, len(shards)))
    with _rare_collections(), _started(number, encode, start_worker) as running:
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
                if worker.broke_limits:
                    on_progress(worker.undone())
                    careful = _fork_worker(running, encode, start_worker, is_careful=True)
                    careful.take(worker.shard)
                    running[running.index(worker)] = careful
                    worker.end()


def may_have_children() -> bool:
    """Return False in a worker of somebody's pool: `multiprocessing` lets it start no processes."""
    return not multiprocessing.current_process().daemon


Message = Progress | ShardRecord | Exception


@dataclass(slots=True)
class _Worker:
    """A worker process as its parent sees it."""

    process: ForkProcess
    pipe: Connection
    is_careful: bool = False
    shard: SourceShard | None = None
    place: str = ""
    heard: float = 0.0
    broke_limits: bool = False
    said: tuple[int, ...] = (0, 0, 0, 0)
    """Lines, rows, tokens and rejects that it told of its shard."""

    def take(self, shard: SourceShard | None) -> None:
        """Give the worker its next shard; None lets it end."""
        self.shard, self.place, self.said = shard, "", (0, 0, 0, 0)
        self.heard = time.monotonic()
        try:
            self.pipe.send(shard)
        except OSError as error:
            if shard:
                raise self._failed(self._ending()) from error

    def read_messages(self) -> Iterator[Message]:
        """Yield what the worker has said.

        Raises `WorkerFailed` where it is dead, but for the limits of a render, or silent.
        """
        is_ended = not self.process.is_alive()
        try:
            while self.pipe.poll():
                message: Message = self.pipe.recv()
                self.heard = time.monotonic()
                if isinstance(message, Progress):
                    self.place = message.place or self.place
                    told = (message.lines, message.rows, message.tokens, message.rejects)
                    self.said = tuple(map(sum, zip(self.said, told, strict=True)))
                yield message
        except (EOFError, OSError):
            # An OSError where it died in the middle of a message, or with one that it had not read.
            is_ended = True
        if self.shard and is_ended:
            ending = self._ending()
            self.broke_limits = not self.is_careful and -(self.process.exitcode or 0) in DEATHS
            if not self.broke_limits:
                raise self._failed(ending)
            return
        if self.shard and time.monotonic() - self.heard > SILENCE_SECONDS:
            raise self._failed(f"has been at one batch for over {SILENCE_SECONDS:.0f} s")

    def undone(self) -> Progress:
        """Return the progress that takes back what was said of the shard that is not done."""
        assert self.shard is not None, "only a shard that is not done is done again"
        lines, rows, tokens, rejects = self.said
        return Progress(self.shard.index, self.place, -lines, -rows, -tokens, -rejects)

    def end(self) -> None:
        """Kill the process and let go of it."""
        self.process.kill()
        self.process.join()
        self.pipe.close()

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
    gc.freeze()
    collect_rarely()
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()


@contextmanager
def _started(
    number: int, encode: EncodeShard, start_worker: StartWorker
) -> Generator[list[_Worker]]:
    """Fork the workers; at the end let those that are done go, and end the others."""
    # What the parent has freed would be part of every worker.
    give_back_free_memory()
    running: list[_Worker] = []
    try:
        for _ in range(number):
            running.append(_fork_worker(running, encode, start_worker, is_careful=False))
        yield running
        for worker in running:
            worker.process.join(5)
    finally:
        for worker in running:
            worker.process.kill()
        for worker in running:
            worker.end()


def _fork_worker(
    running: Sequence[_Worker], encode: EncodeShard, start_worker: StartWorker, *, is_careful: bool
) -> _Worker:
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    others = [*(worker.pipe for worker in running), ours]
    process = context.Process(
        target=_work,
        args=(os.getpid(), theirs, others, encode, partial(start_worker, is_careful)),
        daemon=True,
    )
    process.start()
    theirs.close()
    return _Worker(process, ours, is_careful)


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

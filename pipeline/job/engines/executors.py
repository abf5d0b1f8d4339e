"""Tasks on an engine until every shard is made: what is the same for all engines.

An engine starts tasks and says whether they still run. What counts is the markers in the folder of
the shards: a task that ended without them is run again once, whatever the engine thinks of it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Final, Protocol

from pipeline.config import PrepareConfig
from pipeline.errors import UsageError, WorkerFailed
from pipeline.job.engines.plan_file import (
    Failure,
    JobPlan,
    failure_path,
    log_path,
    with_absolute_paths,
)
from pipeline.job.shard_record import ShardRecord, read_made, record_path
from pipeline.lines.plan import SourcePlan, SourceShard

logger = logging.getLogger(__name__)

MOST_TASKS: Final = 1000
"""Tasks where nobody says how many. Slurm's MaxArraySize is 1001 where nobody changed it."""

_ATTEMPTS: Final = 2
# Once all is made, how long the tasks are left alone to end by themselves.
_GRACE_SECONDS: Final = 10.0
# Tasks are named in an error up to so many.
_MOST_NAMED: Final = 5


class Run(Protocol):
    """Tasks that were started; asked every ``poll_seconds`` whether any of them has not ended."""

    poll_seconds: float

    def is_running(self) -> bool: ...
    def describe(self, task: int) -> str:
        """Return what the engine knows of a task that did not do its work."""
        ...


class Engine(Protocol):
    """Starts tasks, each as ``pipeline.job.engines.task.run_task(plan, task)`` somewhere."""

    def started(self, plan: Path, tasks: Sequence[int]) -> AbstractContextManager[Run]:
        """Start tasks of the plan at ``plan``; at the end of the block those that still run are ended.

        Raises `pipeline.errors.UsageError` where the engine cannot take them.
        """
        ...


def plan_tasks(
    config: PrepareConfig,
    source: SourcePlan,
    seal: Mapping[str, Any],
) -> JobPlan:
    """Return the plan of a job for ``config.executor``.

    Where the input is cut does not depend on the number of tasks, so that another number goes on
    with the shards that were finished; there are never more tasks than shards.
    """
    wanted = config.tasks or config.workers or MOST_TASKS
    tasks = max(1, min(wanted, len(source.shards)))
    return JobPlan(with_absolute_paths(config), source, seal, tasks)


def run_tasks(job: JobPlan, folder: Path, missing: Sequence[SourceShard]) -> Iterator[ShardRecord]:
    """Yield the record of each of the ``missing`` shards as an engine's tasks make it in ``folder``.

    Raises `UnreadableFile` as one process would, and `WorkerFailed` where shards are missing after
    a second attempt, or at once where another attempt cannot help: it names the tasks, what they and
    the engine said, and their logs. No task is left running, however this ends.
    """
    waiting = {shard.index for shard in missing}
    if not waiting:
        return
    path = job.write(folder)
    log_path(folder, 0).parent.mkdir(exist_ok=True)
    engine = open_engine(job.config)
    run: Run | None = None
    for attempt in range(_ATTEMPTS):
        tasks = sorted({index % job.tasks for index in waiting})
        if attempt:
            logger.warning("%s: tasks %s are run again", job.config.executor, _join(tasks))
        for task in tasks:
            failure_path(folder, task).unlink(missing_ok=True)
        with engine.started(path, tasks) as started:
            run = started
            yield from _watch(run, folder, waiting, tasks)
        if not waiting:
            return
        failures = _read_failures(folder, tasks)
        for failure in failures.values():
            failure.raise_for_data()
        if any(failure.is_final for failure in failures.values()):
            break
    raise _failed(job, folder, waiting, run)


def open_engine(config: PrepareConfig) -> Engine:
    """Return the engine of a job. Raises `UsageError` where it is not installed here."""
    if config.executor == "slurm":
        from pipeline.job.engines.slurm import SlurmEngine

        return SlurmEngine(config)
    try:
        from pipeline.job.engines.ray_tasks import RayEngine
    except ImportError as error:
        raise UsageError(
            "executor: ray is not installed; pip install 'context-frozen[scale]' on every machine"
        ) from error
    return RayEngine(config)


def _watch(
    run: Run, folder: Path, waiting: set[int], tasks: Sequence[int]
) -> Iterator[ShardRecord]:
    """Yield the records of shards as their markers appear, until the tasks have ended.

    A task that failed for good ends the others early.
    """
    made_at: float | None = None
    while True:
        # Asked first: what a task did before its end is then seen below.
        is_running = run.is_running()
        begun = time.monotonic()
        yield from _take_made(folder, waiting)
        now = time.monotonic()
        made_at = made_at or (None if waiting else now)
        if not is_running or (made_at and now - made_at > _GRACE_SECONDS):
            return
        if any(failure.is_final for failure in _read_failures(folder, tasks).values()):
            return
        # A folder of many files on a slow disk is looked through a tenth of the time at most.
        time.sleep(max(run.poll_seconds, 10 * (now - begun)))


def _take_made(folder: Path, waiting: set[int]) -> Iterator[ShardRecord]:
    """Yield the records of the shards that were made, and wait for these no longer."""
    names = {path.name for path in folder.glob("*.json")}
    for index in sorted(waiting):
        if record_path(folder, index).name not in names:
            continue
        if (record := read_made(folder, index)) is not None:
            waiting.discard(index)
            yield record


def _read_failures(folder: Path, tasks: Iterable[int]) -> dict[int, Failure]:
    said = set(log_path(folder, 0).parent.glob("*.failed"))
    read = {
        task: Failure.read(folder, task) for task in tasks if failure_path(folder, task) in said
    }
    return {task: failure for task, failure in read.items() if failure is not None}


def _failed(job: JobPlan, folder: Path, waiting: set[int], run: Run | None) -> WorkerFailed:
    tasks = sorted({index % job.tasks for index in waiting})
    failures = _read_failures(folder, tasks)
    # Those that said why come first: others were ended because of them.
    named = sorted(tasks, key=lambda task: task not in failures)[:_MOST_NAMED]
    said = "; ".join(
        f"task {task}: "
        f"{failures[task].words if task in failures else run.describe(task) if run else 'not run'} "
        f"(log: {log_path(folder, task)})"
        for task in named
    )
    return WorkerFailed(
        f"executor {job.config.executor}: {len(waiting)} of {len(job.source.shards)} shards were not "
        f"made (shards {_join(sorted(waiting))} of tasks {_join(tasks)}): {said}. Nothing was "
        "published; shards that were finished are kept: run again"
    )


def _join(numbers: Sequence[int]) -> str:
    shown = ", ".join(map(str, numbers[:_MOST_NAMED]))
    return f"{shown} and {len(numbers) - _MOST_NAMED} more" if len(numbers) > _MOST_NAMED else shown

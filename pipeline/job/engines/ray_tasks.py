"""Tasks on a Ray cluster: plain remote functions, which Ray runs again where a worker or node is lost.

Not Ray Data, which has batches and a plan of its own: the shards of a job are cut already.
"""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import ray
from ray.exceptions import RayError

from pipeline.config import PrepareConfig
from pipeline.errors import UsageError
from pipeline.job.engines.plan_file import log_path

_RETRIES: Final = 3
"""How often Ray runs a task again whose worker or node died."""
_CONNECT_SECONDS: Final = 10.0


class RayEngine:
    """Runs tasks on the cluster at ``ray_address``, else on Ray's default: the cluster that there is,
    or one that is started here and ended with the job.
    """

    def __init__(self, config: PrepareConfig) -> None:
        self._config = config

    @contextmanager
    def started(self, plan: Path, tasks: Sequence[int]) -> Generator[RayRun]:
        """Start tasks of a plan, as `pipeline.job.engines.executors.Engine.started`."""
        was_there = ray.is_initialized()
        if not was_there:
            self._connect()
        run = RayRun(plan, tasks, self._config)
        try:
            yield run
        finally:
            run.stop()
            if not was_there:
                ray.shutdown()

    def _connect(self) -> None:
        address = self._config.ray_address
        try:
            _check_address(address)
            ray.init(address=address, log_to_driver=False, include_dashboard=False)
        except (OSError, RuntimeError, ValueError) as error:
            raise UsageError(
                f"ray_address: {address or 'the default'}: {error}; expected a running cluster, such "
                "as 10.0.0.1:6379 (ray start --head)"
            ) from error


class RayRun:
    """Tasks on a cluster, at most ``workers`` of them handed over at a time."""

    poll_seconds = 0.2

    def __init__(self, plan: Path, tasks: Sequence[int], config: PrepareConfig) -> None:
        self._plan, self._waiting = plan, deque(tasks)
        self._most = config.workers or len(tasks)
        self._function: Any = ray.remote(
            num_cpus=config.cpus_per_task, max_retries=_RETRIES, retry_exceptions=False
        )(_run_task)
        self._running: dict[Any, int] = {}
        self._said: dict[int, str] = {}

    def is_running(self) -> bool:
        """Say whether any task has not ended; hand over those that there is now room for."""
        for each in self._take_ended():
            task = self._running.pop(each)
            try:
                ray.get(each)
            except RayError as error:
                self._said[task] = f"{type(error).__name__}: {_last_line(str(error))}"
                with log_path(self._plan.parent, task).open("a", encoding="utf-8") as log:
                    log.write(f"{error}\n")
        while self._waiting and len(self._running) < self._most:
            task = self._waiting.popleft()
            self._running[self._function.remote(str(self._plan), task)] = task
        return bool(self._running)

    def _take_ended(self) -> list[Any]:
        running = list(self._running)
        return ray.wait(running, num_returns=len(running), timeout=0)[0] if running else []

    def describe(self, task: int) -> str:
        """Return what Ray said of a task."""
        return self._said.get(task, "was not run to its end")

    def stop(self) -> None:
        """End the tasks that still run."""
        for each in self._running:
            # One that has just ended cannot be ended.
            with suppress(RayError, ValueError):
                ray.cancel(each, force=True)
        self._running.clear()


def _run_task(plan: str, task: int) -> int:
    """Run a task in a worker of the cluster."""
    from pipeline.job.engines.task import run_task

    return run_task(Path(plan), task)


def _check_address(address: str | None) -> None:
    """Raise `OSError` where nobody listens: Ray would try again for minutes before it says so."""
    host, mark, port = (address or "").rpartition(":")
    if mark and port.isdecimal():
        host = host.removeprefix("ray://").strip("[]")
        socket.create_connection((host, int(port)), _CONNECT_SECONDS).close()


def _last_line(text: str) -> str:
    return text.strip().rpartition("\n")[2]

"""Tasks as processes of this machine, a few at a time."""

from __future__ import annotations

import signal
import subprocess
from collections import deque
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path

from pipeline.config import PrepareConfig, usable_cores
from pipeline.job.engines.engine import task_command
from pipeline.job.engines.failure import log_path
from pipeline.job.engines.task import WATCH_INPUT


class LocalEngine:
    """Runs each task as a process of its own; it ends with this one, however this one ends."""

    def __init__(self, config: PrepareConfig) -> None:
        self._command = task_command(config)
        self._most = config.workers or max(1, usable_cores() // config.cpus_per_task)

    @contextmanager
    def started(self, plan: Path, tasks: Sequence[int]) -> Generator[LocalRun]:
        """Start tasks of a plan, as `pipeline.job.engines.engine.Engine.started`."""
        run = LocalRun(self._command, plan, tasks, self._most)
        try:
            yield run
        finally:
            run.stop()


class LocalRun:
    """Processes that run tasks, ``most`` at a time."""

    poll_seconds = 0.1

    def __init__(self, command: Sequence[str], plan: Path, tasks: Sequence[int], most: int) -> None:
        self._command, self._plan, self._most = command, plan, most
        self._waiting = deque(tasks)
        self._running: dict[int, subprocess.Popen[bytes]] = {}
        self._codes: dict[int, int] = {}

    def is_running(self) -> bool:
        """Say whether any task has not ended; start those that there is now room for."""
        for task, process in list(self._running.items()):
            if (code := process.poll()) is not None:
                self._codes[task] = code
                self._end(self._running.pop(task))
        while self._waiting and len(self._running) < self._most:
            task = self._waiting.popleft()
            self._running[task] = self._start(task)
        return bool(self._running)

    def describe(self, task: int) -> str:
        """Return how a task ended."""
        code = self._codes.get(task)
        if code is None:
            return "was not run to its end"
        if code >= 0:
            return f"ended with exit code {code}"
        name = signal.Signals(-code).name
        return f"was ended by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")

    def stop(self) -> None:
        """End the tasks that still run."""
        for process in self._running.values():
            process.kill()
            self._end(process)
        self._running.clear()

    def _start(self, task: int) -> subprocess.Popen[bytes]:
        with log_path(self._plan.parent, task).open("ab") as log:
            return subprocess.Popen(
                [*self._command, WATCH_INPUT, str(self._plan), str(task)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                # Ctrl-C is heard here, and ends the tasks.
                start_new_session=True,
            )

    @staticmethod
    def _end(process: subprocess.Popen[bytes]) -> None:
        process.wait()
        if process.stdin is not None:
            process.stdin.close()

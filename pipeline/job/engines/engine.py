"""What an engine is: something that starts tasks of a plan and says whether they still run."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from pipeline.config import PrepareConfig


class Run(Protocol):
    """Tasks that were started."""

    poll_seconds: float
    """How often it is worth asking."""

    def is_running(self) -> bool:
        """Say whether any of the tasks has not ended."""
        ...

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


def task_command(config: PrepareConfig) -> list[str]:
    """Return the command that a plan and the number of a task are added to.

    ``-P``: the folder that it runs in is not searched for code.
    """
    python = str(Path(config.venv).absolute() / "bin" / "python") if config.venv else sys.executable
    return [python, "-P", "-m", "pipeline.job.engines.task"]

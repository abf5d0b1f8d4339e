"""What a task says of its failure: kept as JSON beside the plan, for whoever waits for the task."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from pipeline.errors import ContextFrozenError, UnreadableFile, WorkerFailed

LOGS = "logs"
"""Folder in the work folder: ``task-00003.log`` is what a task printed, ``.failed`` why it failed."""


@dataclass(frozen=True, slots=True)
class Failure:
    """An error of a task on a machine: the class, what it was made with, and its words.

    Errors of ours come again with each attempt, but for those of a worker process.
    """

    error: str
    args: tuple[Any, ...]
    words: str
    host: str

    @property
    def is_final(self) -> bool:
        """False where another attempt may do."""
        return self.error != WorkerFailed.__name__

    @classmethod
    def of(cls, error: ContextFrozenError, host: str) -> Self:
        """Return the failure that ``error`` is."""
        args = error.args if isinstance(error, UnreadableFile) else ()
        return cls(type(error).__name__, args, str(error), host)

    @classmethod
    def read(cls, folder: Path, task: int) -> Self | None:
        """Return why a task failed, or None where it said nothing."""
        try:
            values: dict[str, Any] = json.loads(cls.path(folder, task).read_bytes())
            args = tuple(values["args"])
            return cls(values["error"], args, values["words"], values["host"])
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def write(self, path: Path) -> None:
        """Write the failure to ``path``, whole or not at all."""
        path.parent.mkdir(exist_ok=True)
        partial = path.with_name(f".{path.name}-{self.host}-{os.getpid()}")
        partial.write_text(json.dumps(asdict(self)), encoding="utf-8")
        partial.replace(path)

    def raise_for_data(self) -> None:
        """Raise `UnreadableFile` where that is what the task raised: the input is at fault."""
        if self.error == UnreadableFile.__name__:
            raise UnreadableFile(*self.args)

    @staticmethod
    def path(folder: Path, task: int) -> Path:
        """Return where the failure of a task is kept."""
        return folder / LOGS / f"task-{task:05d}.failed"


def log_path(folder: Path, task: int) -> Path:
    """Return where what a task prints is kept."""
    return folder / LOGS / f"task-{task:05d}.log"

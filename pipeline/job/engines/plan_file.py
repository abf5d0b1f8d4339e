"""What a job and its tasks on other machines tell each other, by files in the folder of its shards.

``plan.json`` is all that a task has to know: it is written once, before the first task starts, and names
its files by absolute path, for all machines alike. ``logs/task-00003.log`` is what a task printed,
``logs/task-00003.failed`` why it failed.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final, Self

from pipeline.config import PrepareConfig, config_from_mapping
from pipeline.errors import ContextFrozenError, UnreadableFile, UsageError, WorkerFailed
from pipeline.lines.files import SourceFile
from pipeline.lines.plan import Piece, SourcePlan, SourceShard

PLAN: Final = "plan.json"
LOGS: Final = "logs"
_FORMAT: Final = 3


@dataclass(frozen=True, slots=True)
class JobPlan:
    """A job cut into shards, and its shards dealt out to ``tasks`` tasks.

    ``seal`` is the complete seal
    (`pipeline.sets.seal.complete_seal`), which a machine has to agree with before it makes a row.
    """

    config: PrepareConfig
    source: SourcePlan
    seal: Mapping[str, Any]
    tasks: int

    def shards_of(self, task: int) -> list[SourceShard]:
        """Return the shards of a task, from 0: each ``tasks``-th, so that all get some of each file.

        Raises `UsageError` for a task that the plan has not.
        """
        if not 0 <= task < self.tasks:
            raise UsageError(f"task {task}: no such task; the plan has 0 to {self.tasks - 1}")
        return list(self.source.shards[task :: self.tasks])

    def write(self, folder: Path) -> Path:
        """Write the plan into ``folder`` under its one name; return its path."""
        return _write_json(folder / PLAN, self._to_dict())

    @classmethod
    def read(cls, path: Path) -> Self:
        """Return the plan in a file. Raises `UsageError` where there is none that this release wrote."""
        try:
            values: dict[str, Any] = json.loads(path.read_bytes())
            if values["format"] != _FORMAT:
                raise ValueError(f"format {values['format']!r}, expected {_FORMAT}")
            return cls._from_dict(values)
        except OSError as error:
            raise UsageError(
                f"{path}: {error.strerror}; expected the plan of a job that is running, in a folder "
                "that all machines share"
            ) from error
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise UsageError(
                f"{path}: no plan of this release ({error}); run prepare again, with one release of "
                "context-frozen on all machines"
            ) from error

    def _to_dict(self) -> dict[str, Any]:
        # A file of many pieces is named once.
        places = {file: place for place, file in enumerate(self.source.sizes)}
        return {
            "format": _FORMAT,
            "config": self.config.to_dict(),
            "files": [[str(file.path), file.name] for file in places],
            "sha256": self.source.sha256,
            "shards": [
                [
                    [places[each.file], each.start, each.end, each.first_line, each.checksum]
                    for each in shard.pieces
                ]
                for shard in self.source.shards
            ],
            "seal": dict(self.seal),
            "tasks": self.tasks,
        }

    @classmethod
    def _from_dict(cls, values: Mapping[str, Any]) -> Self:
        files = [SourceFile(Path(path), name) for path, name in values["files"]]
        shards = tuple(
            SourceShard(index, tuple(Piece(files[place], *rest) for place, *rest in pieces))
            for index, pieces in enumerate(values["shards"])
        )
        return cls(
            config=config_from_mapping(values["config"], PLAN),
            source=SourcePlan(shards, values["sha256"]),
            seal=values["seal"],
            tasks=values["tasks"],
        )


@dataclass(frozen=True, slots=True)
class Failure:
    """The words of an error of a task; ``unreadable`` are the parts of an `UnreadableFile`.

    Errors of ours come again with each attempt (``is_final``), but for those of a worker process.
    """

    words: str
    is_final: bool
    unreadable: tuple[str, int, str] | None = None

    @classmethod
    def of(cls, error: ContextFrozenError) -> Self:
        """Return the failure that ``error`` is."""
        is_final = not isinstance(error, WorkerFailed)
        return cls(str(error), is_final, error.args if isinstance(error, UnreadableFile) else None)

    @classmethod
    def read(cls, folder: Path, task: int) -> Self | None:
        """Return why a task failed, or None where it said nothing."""
        try:
            values: dict[str, Any] = json.loads(failure_path(folder, task).read_bytes())
            parts = values.pop("unreadable")
            return cls(**values, unreadable=tuple(parts) if parts else None)
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def write(self, folder: Path, task: int) -> None:
        """Say beside the plan why a task failed."""
        path = failure_path(folder, task)
        path.parent.mkdir(exist_ok=True)
        _write_json(path, asdict(self))

    def raise_for_data(self) -> None:
        """Raise `UnreadableFile` where that is what the task raised: the input is at fault."""
        if self.unreadable:
            raise UnreadableFile(*self.unreadable)


def log_path(folder: Path, task: int) -> Path:
    """Return where what a task prints is kept."""
    return folder / LOGS / f"task-{task:05d}.log"


def failure_path(folder: Path, task: int) -> Path:
    """Return where the failure of a task is kept."""
    return log_path(folder, task).with_suffix(".failed")


def with_absolute_paths(config: PrepareConfig) -> PrepareConfig:
    """Return the settings with what they name by a relative path named by an absolute one.

    A task works in another folder. A tokenizer that is no folder is a Hub name, and stays.
    """
    tokenizer = Path(config.tokenizer).expanduser()
    template = config.chat_template
    return replace(
        config,
        tokenizer=str(tokenizer.absolute()) if tokenizer.is_dir() else config.tokenizer,
        chat_template=template and str(Path(template).absolute()),
    )


def _write_json(path: Path, value: Mapping[str, Any]) -> Path:
    """Write a file that others wait for, whole or not at all; return its path."""
    partial = path.with_name(f".{path.name}-{platform.node()}-{os.getpid()}")
    with partial.open("w", encoding="utf-8") as file:
        json.dump(value, file)
        file.flush()
        os.fsync(file.fileno())
    return partial.replace(path)

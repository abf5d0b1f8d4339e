"""``plan.json``: all that a task on another machine has to know of a job.

It is written once into the work folder of the job, before the first task starts, and read by every
task. What it names (input, tokenizer, template) is named by absolute path, for all machines alike.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Self

from pipeline.config import PrepareConfig, config_from_mapping
from pipeline.errors import UsageError
from pipeline.lines.files import SourceFile
from pipeline.lines.plan import Piece, SourcePlan, SourceShard

PLAN: Final = "plan.json"
_FORMAT: Final = 2


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
        """Write the plan into ``folder`` under its one name, whole or not at all; return its path."""
        path, partial = folder / PLAN, folder / f".{PLAN}-{os.getpid()}"
        with partial.open("w", encoding="utf-8") as file:
            json.dump(self._to_dict(), file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        return path

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
        sizes = self.source.sizes
        places = {file: place for place, file in enumerate(sizes)}
        return {
            "format": _FORMAT,
            "config": self.config.to_dict(),
            "files": [
                [str(file.path), file.name, size, self.source.sha256[file.name]]
                for file, size in sizes.items()
            ],
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
        files = [SourceFile(Path(path), name) for path, name, _, _ in values["files"]]
        shards = tuple(
            SourceShard(index, tuple(Piece(files[place], *rest) for place, *rest in pieces))
            for index, pieces in enumerate(values["shards"])
        )
        sha256 = {name: sha256 for _, name, _, sha256 in values["files"]}
        return cls(
            config=config_from_mapping(values["config"], PLAN),
            source=SourcePlan(shards, sha256),
            seal=values["seal"],
            tasks=values["tasks"],
        )


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

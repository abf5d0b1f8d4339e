"""A job of many small shards, its plan in a folder, and machines on which things go wrong."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import PrepareConfig
from pipeline.job.engines.executors import plan_tasks
from pipeline.job.engines.plan_file import JobPlan
from pipeline.job.engines.slurm import SlurmRun
from pipeline.job.prepare import prepare
from pipeline.job.prepared import Prepared
from pipeline.job.shard_record import ShardRecord, read_finished, record_path
from pipeline.job.shards import load_row_map
from pipeline.lines.files import SourceFile
from pipeline.lines.plan import plan_shards
from pipeline.sets.seal import complete_seal, make_seal
from tests.conftest import shards_of, write_lines

LINES = 60
SHARD_BYTES = 400

BROKEN_PYTHON = """#!{python} -P
import os, signal, sys
from importlib import metadata
from pathlib import Path
sys.modules["torch"] = None
from pipeline.job.engines import task

sys.argv[1:4] = []  # -P -m pipeline.job.engines.task, which runs here
told = Path({folder!r})

def is_first(what):
    try:
        (told / what).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True

{fault}
sys.exit(task.main(sys.argv[1:]))
"""

SHARD_FAULT = """
from pipeline.job import shard, shards
map_shard = shard.map_shard
made = []
def broken(each, *args):
    {fault}
    made.append(each.index)
    return map_shard(each, *args)
shards.map_shard = broken
"""


@dataclass(frozen=True)
class PlannedJob:
    """A job, its plan and the folder of its shards."""

    plan: JobPlan
    path: Path

    @property
    def folder(self) -> Path:
        return self.path.parent

    @property
    def indexes(self) -> list[int]:
        return [shard.index for shard in self.plan.source.shards]

    @property
    def records(self) -> dict[int, ShardRecord]:
        """The shards that are whole."""
        found = {index: read_finished(self.folder, index) for index in self.indexes}
        return {index: record for index, record in found.items() if record}

    def record_file(self, index: int) -> Path:
        return record_path(self.folder, index)

    def snapshot(self) -> dict[str, bytes]:
        """Every file of the shards that has its name."""
        paths = [path for path in self.folder.iterdir() if path.is_file()]
        return {path.name: path.read_bytes() for path in paths if not path.name.startswith(".")}


@pytest.fixture
def examples_file(tmp_path: Path) -> Path:
    rows = [{"id": f"e{n}", "context": "2+2=", "continuation": f"four {n}"} for n in range(LINES)]
    return write_lines(tmp_path / "in.jsonl", rows)


@pytest.fixture
def plan_job(
    tmp_path: Path, examples_file: Path, make_config: Callable[..., PrepareConfig]
) -> Callable[..., PlannedJob]:
    """Return a function that plans the job as `build_set` does, and writes the plan."""

    def plan(tasks: int = 3, **settings: Any) -> PlannedJob:
        config = make_config(examples_file, executor="slurm", tasks=tasks, **settings)
        files = [SourceFile(examples_file, "in.jsonl")]
        with shards_of(SHARD_BYTES):
            source = plan_shards(files)
        builder = load_row_map(config, files).mapper.builder
        seal = complete_seal(make_seal(config, source.sha256), builder.encoder, builder.templates)
        folder = tmp_path / "work"
        folder.mkdir(exist_ok=True)
        job = plan_tasks(config, source, seal)
        return PlannedJob(job, job.write(folder))

    return plan


@pytest.fixture
def digest(run_job: Callable[..., Prepared]) -> str:
    """The digest of the set that one process makes."""
    return run_job("none").digest


@pytest.fixture
def run_job(
    tmp_path: Path, examples_file: Path, make_config: Callable[..., PrepareConfig]
) -> Callable[..., Prepared]:
    """Return a function that prepares the set with an executor, in many shards."""

    def run(executor: str, **settings: Any) -> Prepared:
        output = settings.pop("output", str(tmp_path / executor / "set"))
        config = make_config(
            settings.pop("input", examples_file), executor=executor, output=output, **settings
        )
        with shards_of(SHARD_BYTES):
            return prepare(config)

    return run


@pytest.fixture
def machine_with(tmp_path: Path) -> Callable[..., str]:
    """Return a function that makes an environment whose Python has a fault.

    ``fault`` is code that runs before the task; with ``at_shard``, before a shard is made, with
    ``each`` (the shard), ``made`` (the indexes before it) and ``is_first(name)``, which is true once.
    """

    def make(fault: str, *, at_shard: bool = False) -> str:
        venv = tmp_path / "venv"
        (venv / "bin").mkdir(parents=True)
        code = SHARD_FAULT.format(fault=fault) if at_shard else fault
        text = BROKEN_PYTHON.format(python=sys.executable, folder=str(tmp_path), fault=code)
        python = venv / "bin" / "python"
        python.write_text(text, encoding="utf-8")
        python.chmod(0o755)
        return str(venv)

    return make


@pytest.fixture
def fake_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put commands on PATH that play Slurm with processes of this machine."""
    folder = tmp_path / "commands"
    folder.mkdir()
    for name in ("sbatch", "squeue", "scancel", "scontrol", "sacct"):
        script = f'#!/bin/sh\nexec {sys.executable} -I {FAKE_SLURM} {name} {folder} "$@"\n'
        (folder / name).write_text(script, encoding="utf-8")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(SlurmRun, "poll_seconds", 0.1)


FAKE_SLURM = Path(__file__).with_name("fake_slurm.py")
KILL = "os.kill(os.getpid(), signal.SIGKILL)"

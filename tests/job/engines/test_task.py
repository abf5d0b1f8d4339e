"""A task makes its shards and no others, the same bytes however often and wherever it runs."""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest

from pipeline.errors import UnreadableFile, UsageError
from pipeline.job import shards, workers
from pipeline.job.engines.plan_file import Failure
from pipeline.job.engines.task import main, run_task
from pipeline.job.shard import map_shard
from tests.conftest import ROOT
from tests.job.engines.conftest import PlannedJob

PlanJob = Callable[..., PlannedJob]

pytestmark = pytest.mark.usefixtures("tokenizers_loaded_once")


def test_the_tasks_together_make_every_shard_once(plan_job: PlanJob) -> None:
    job = plan_job(tasks=3)
    made = [run_task(job.path, task) for task in range(3)]
    assert sum(made) == len(job.indexes)
    assert sorted(job.records) == job.indexes
    assert sum(record.rows for record in job.records.values()) == 60


def test_a_task_makes_its_own_shards_alone(plan_job: PlanJob) -> None:
    job = plan_job(tasks=3)
    run_task(job.path, 1)
    assert sorted(job.records) == job.indexes[1::3]


def test_a_second_attempt_makes_nothing_and_needs_no_tokenizer(
    plan_job: PlanJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = plan_job()
    run_task(job.path, 0)
    before = job.snapshot()
    monkeypatch.setattr(shards, "load_row_map", lambda *_: pytest.fail("loaded a tokenizer"))
    assert run_task(job.path, 0) == 0
    assert job.snapshot() == before


@pytest.mark.parametrize(
    "damage", ["record without rows", "rows without record", "one bit", "cut record"]
)
def test_a_shard_that_is_not_whole_is_made_again_with_the_same_bytes(
    plan_job: PlanJob, damage: str
) -> None:
    job = plan_job()
    run_task(job.path, 0)
    before = job.snapshot()
    rows = job.folder / "00003.arrow"
    if damage == "record without rows":
        rows.unlink()
    elif damage == "rows without record":
        job.record_file(3).unlink()
    elif damage == "one bit":
        data = bytearray(rows.read_bytes())
        data[len(data) // 2] ^= 1
        rows.write_bytes(data)
    else:
        job.record_file(3).write_bytes(job.record_file(3).read_bytes()[:-9])
    assert run_task(job.path, 0) == 1
    assert job.snapshot() == before


def test_two_attempts_at_once_give_one_whole_shard(
    plan_job: PlanJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "may_have_children", lambda: False)
    job = plan_job(tasks=1)
    inner: list[int] = []

    def overtaken(
        shard: object, row_map: object, folder: Path, most_lines: int, on_batch: object
    ) -> object:
        if not inner:
            # While this attempt has its files open, another one makes every shard, marker and all.
            inner.append(os.getpid())
            with monkeypatch.context() as other:
                other.setattr("os.getpid", lambda: 1)
                assert run_task(job.path, 0) == len(job.indexes)
            inner.append(len(job.records))
        return map_shard(shard, row_map, folder, most_lines, on_batch)

    monkeypatch.setattr(shards, "map_shard", overtaken)
    run_task(job.path, 0)
    first = job.snapshot()
    assert inner[1] == len(job.indexes)
    assert sorted(job.records) == job.indexes
    monkeypatch.setattr(shards, "map_shard", map_shard)
    for index in job.indexes:
        job.record_file(index).unlink()
    run_task(job.path, 0)
    assert job.snapshot() == first
    assert not [path for path in job.folder.iterdir() if path.name.startswith(".")]


def test_the_temporary_names_of_two_machines_differ(
    plan_job: PlanJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "may_have_children", lambda: False)
    job = plan_job(tasks=1)
    seen: list[set[str]] = []

    def look(
        shard: object, row_map: object, folder: Path, most_lines: int, on_batch: object
    ) -> object:
        def note(progress: object) -> None:
            seen.append({path.name for path in folder.glob(".*")})

        return map_shard(shard, row_map, folder, most_lines, note)

    monkeypatch.setattr(shards, "map_shard", look)
    for name in ("node-a", "node-b"):
        monkeypatch.setattr("platform.node", lambda name=name: name)
        for index in job.indexes:
            job.record_file(index).unlink(missing_ok=True)
        run_task(job.path, 0)
    here, there = seen[0], seen[-1]
    assert here
    assert there
    assert all("node-a" in name for name in here)
    assert all("node-b" in name for name in there)


@pytest.mark.parametrize("library", ["transformers", "tokenizers", "jinja2", "context-frozen"])
def test_a_machine_with_another_library_is_refused_with_the_key(
    plan_job: PlanJob,
    monkeypatch: pytest.MonkeyPatch,
    library: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    job = plan_job()
    real = metadata.version
    monkeypatch.setattr(
        metadata, "version", lambda name: "0.0.9" if name == library else real(name)
    )
    assert main([str(job.path), "0"]) == 2
    said = capsys.readouterr().err
    assert f"seal.versions.{library} differs on " in said
    assert real(library) in said
    assert "0.0.9" in said
    assert job.records == {}


def test_a_machine_with_another_tokenizer_file_is_refused_with_the_key(
    plan_job: PlanJob, tmp_path: Path, bundled_tokenizer: Path
) -> None:
    folder = tmp_path / "tokenizer"
    shutil.copytree(bundled_tokenizer, folder)
    job = plan_job(tokenizer=str(folder))
    config = folder / "tokenizer_config.json"
    config.write_bytes(config.read_bytes() + b"\n")
    with pytest.raises(
        UsageError, match=r"seal\.tokenizer\.files\.tokenizer_config\.json differs on"
    ):
        run_task(job.path, 0)


def test_a_plan_whose_settings_were_changed_is_refused_with_the_key(plan_job: PlanJob) -> None:
    job = plan_job()
    changed = dataclasses.replace(job.plan, config=dataclasses.replace(job.plan.config, max_len=77))
    with pytest.raises(UsageError, match=r"seal\.settings\.max_len differs on .*8192, found 77"):
        run_task(changed.write(job.folder), 0)


def test_a_tokenizer_that_loads_otherwise_is_refused(plan_job: PlanJob) -> None:
    job = plan_job()
    seal = {
        **job.plan.seal,
        "tokenizer": {**job.plan.seal["tokenizer"], "backend_sha256": "0" * 64},
    }
    with pytest.raises(UsageError, match=r"seal\.tokenizer\.backend_sha256 differs on"):
        run_task(dataclasses.replace(job.plan, seal=seal).write(job.folder), 0)


def test_input_of_another_size_is_refused_before_a_tokenizer_is_loaded(
    plan_job: PlanJob, examples_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = plan_job()
    size = examples_file.stat().st_size
    examples_file.write_bytes(examples_file.read_bytes() + b"\n")
    monkeypatch.setattr(shards, "load_row_map", lambda *_: pytest.fail("loaded a tokenizer"))
    with pytest.raises(UsageError, match=rf"in\.jsonl has {size + 1} bytes, the plan says {size}"):
        run_task(job.path, 0)


def test_input_of_the_same_size_and_other_bytes_is_refused(
    plan_job: PlanJob, examples_file: Path
) -> None:
    job = plan_job(tasks=1)
    examples_file.write_bytes(examples_file.read_bytes().replace(b"four 40", b"five 40"))
    with pytest.raises(UsageError, match=r"in\.jsonl changed while it was read"):
        run_task(job.path, 0)
    assert 0 < len(job.records) < len(job.indexes)


def test_input_that_a_machine_cannot_see_is_named_with_the_machine(
    plan_job: PlanJob, examples_file: Path
) -> None:
    job = plan_job()
    examples_file.unlink()
    with pytest.raises(UsageError, match=r"in\.jsonl: No such file or directory on .*all share"):
        run_task(job.path, 0)


def test_a_failure_is_left_beside_the_plan_until_the_next_attempt(
    plan_job: PlanJob, examples_file: Path
) -> None:
    job = plan_job()
    whole = examples_file.read_bytes()
    examples_file.write_bytes(whole + b"\n")
    with pytest.raises(UsageError):
        run_task(job.path, 2)
    failure = Failure.read(job.folder, 2)
    assert failure is not None
    assert failure.is_final
    assert "in.jsonl has" in failure.words
    examples_file.write_bytes(whole)
    run_task(job.path, 2)
    assert Failure.read(job.folder, 2) is None


def test_a_file_that_cannot_be_read_is_raised_as_itself_by_who_waits(tmp_path: Path) -> None:
    Failure.of(UnreadableFile("a.jsonl", 3, "cut")).write(tmp_path, 0)
    failure = Failure.read(tmp_path, 0)
    assert failure is not None
    with pytest.raises(UnreadableFile, match=r"a\.jsonl:3: unreadable_file: cut"):
        failure.raise_for_data()


@pytest.mark.parametrize("args", [[], ["plan.json"], ["plan.json", "x"], ["a", "1", "2"]], ids=str)
def test_wrong_arguments_end_with_2(args: list[str]) -> None:
    assert main(args) == 2


def test_a_missing_plan_ends_with_2(tmp_path: Path) -> None:
    assert main([str(tmp_path / "plan.json"), "0"]) == 2


def test_what_a_task_says_moves_no_cursor(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path / "\x1b[31mplan\u202e.json"), "0"]) == 2
    said = capsys.readouterr().err
    assert said.replace("\n", "").isprintable()
    assert r"\x1b[31mplan\u202e" in said


# ---- as a process


def start(job: PlannedJob, task: int) -> subprocess.Popen[bytes]:
    command = [
        sys.executable,
        "-P",
        "-m",
        "pipeline.job.engines.task",
        str(job.path),
        str(task),
    ]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=ROOT / "docs",
    )


def test_a_killed_task_leaves_whole_shards_and_a_new_attempt_the_rest(plan_job: PlanJob) -> None:
    job = plan_job(tasks=1)
    with start(job, 0) as process:
        deadline = time.monotonic() + 60
        while not job.record_file(0).exists() and time.monotonic() < deadline:
            time.sleep(0.001)
        os.kill(process.pid, signal.SIGKILL)
    left = sorted(job.records)
    run_task(job.path, 0)
    assert left
    assert sorted(job.records) == job.indexes

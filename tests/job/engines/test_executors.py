"""Tasks of an engine: the set of one process, whatever becomes of them."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import datasets
import pytest
from datasets.distributed import split_dataset_by_node

from pipeline.errors import UnreadableFile, WorkerFailed
from pipeline.job.prepared import Prepared
from pipeline.sets.load import verify
from pipeline.sets.place import MANIFEST
from tests.conftest import write_lines
from tests.job.engines.conftest import KILL, LINES

RunJob = Callable[..., Prepared]

pytestmark = pytest.mark.usefixtures("fake_slurm")


def files_of(folder: Path | str) -> dict[str, bytes]:
    paths = sorted(path for path in Path(folder).rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def test_tasks_give_the_set_of_one_process(run_job: RunJob) -> None:
    alone = run_job("none")
    tasks = run_job("slurm", tasks=3, workers=2)
    assert tasks.digest == alone.digest
    assert tasks.counts == alone.counts
    made, expected = files_of(tasks.output), files_of(alone.output)
    # These two tell the settings.
    assert {name for name in expected if made.get(name) != expected[name]} <= {
        MANIFEST,
        "README.md",
    }
    assert made.keys() == expected.keys()
    assert verify(tasks.output) == []
    # Nothing stays beside it.
    assert [path.name for path in Path(tasks.output).parent.iterdir()] == ["set"]


def test_a_task_that_is_killed_in_the_middle_is_run_again(
    run_job: RunJob, machine_with: Callable[..., str], digest: str
) -> None:
    venv = machine_with(f"if len(made) == 2 and is_first('killed'): {KILL}", at_shard=True)
    assert run_job("slurm", tasks=2, workers=2, venv=venv).digest == digest
    assert (Path(venv).parent / "killed").exists()


def test_a_task_that_dies_again_and_again_is_named_and_its_job_goes_on_with_other_tasks(
    run_job: RunJob, machine_with: Callable[..., str], tmp_path: Path, digest: str
) -> None:
    venv = machine_with(f"if each.index == 3: {KILL}", at_shard=True)
    with pytest.raises(
        WorkerFailed,
        match=r"executor slurm: \d of \d+ shards .*shards 3, .* of tasks 1\): task 1: a worker process "
        r"was ended by SIGKILL \(out of memory\?\): shard 3: .*\(log: .*task-00001\.log\)",
    ):
        run_job("slurm", tasks=2, venv=venv)
    assert not (tmp_path / "slurm" / "set").exists()
    again = run_job("slurm", tasks=1)
    made, reused = (again.manifest["shards"][name] for name in ("made", "reused"))
    # The other task's, and shard 1 of the one that died.
    assert reused == made // 2 + made % 2 + 1
    assert again.digest == digest


@pytest.mark.nightly
def test_a_task_that_raises_something_unforeseen_is_run_again(
    run_job: RunJob, machine_with: Callable[..., str], digest: str
) -> None:
    venv = machine_with("if is_first('raised'): raise OSError(116, 'stale handle')", at_shard=True)
    assert run_job("slurm", tasks=1, venv=venv).digest == digest
    assert (Path(venv).parent / "raised").exists()


def test_a_machine_with_another_library_fails_the_job_at_once_with_the_key(
    run_job: RunJob, machine_with: Callable[..., str], tmp_path: Path
) -> None:
    venv = machine_with(
        "(told / f'start-{os.getpid()}').touch()\n"
        "version = metadata.version\n"
        "metadata.version = lambda name: '0.0.9' if name == 'tokenizers' else version(name)"
    )
    with pytest.raises(WorkerFailed, match=r"seal\.versions\.tokenizers differs on .*0\.0\.9"):
        run_job("slurm", tasks=1, venv=venv)
    assert len(list(tmp_path.glob("start-*"))) == 1


def test_a_file_that_is_cut_is_told_as_one_process_tells_it(
    run_job: RunJob, tmp_path: Path
) -> None:
    rows = [{"id": f"e{n}", "context": "2+2=", "continuation": "4"} for n in range(40)]
    path = write_lines(tmp_path / "cut.jsonl", rows)
    path.write_bytes(gzip.compress(path.read_bytes())[:-20])
    path = path.rename(tmp_path / "cut.jsonl.gz")
    said: list[str] = []
    for executor in ("none", "slurm"):
        with pytest.raises(UnreadableFile) as caught:
            run_job(executor, input=path, tasks=2)
        said.append(str(caught.value))
    assert said[0] == said[1]
    assert not (tmp_path / "slurm").exists() or list((tmp_path / "slurm").iterdir()) == []


def test_rejects_are_those_of_one_process(run_job: RunJob, tmp_path: Path) -> None:
    rows = [{"id": f"e{n // 2 * 2}", "context": "2+2=", "continuation": f"{n}"} for n in range(30)]
    path = write_lines(tmp_path / "faulty.jsonl", [*rows, "{torn"])
    settings = {"input": path, "max_reject_rate": 1.0, "on_duplicate": "first"}
    alone, tasks = run_job("none", **settings), run_job("slurm", tasks=2, **settings)
    assert tasks.counts == alone.counts
    assert tasks.counts["rejects"] == 16
    names = ("rejects.jsonl", "examples.sha256")
    assert [(Path(tasks.output) / name).read_bytes() for name in names] == [
        (Path(alone.output) / name).read_bytes() for name in names
    ]


def test_tasks_that_append_give_the_set_that_one_process_gives(
    run_job: RunJob, tmp_path: Path
) -> None:
    more = [{"id": f"m{n}", "context": "1+1=", "continuation": f"two {n}"} for n in range(20)]
    path = write_lines(tmp_path / "more.jsonl", more)
    digests = set[str]()
    for executor in ("none", "slurm"):
        output = str(tmp_path / "out" / f"appended-{executor}")
        run_job("none", output=output)
        appended = run_job(executor, output=output, input=path, append=True, tasks=2)
        assert appended.counts["rows"] == LINES + 20
        digests.add(appended.digest)
    assert len(digests) == 1


@pytest.mark.nightly
def test_no_more_tasks_than_workers_run_at_once(
    run_job: RunJob, machine_with: Callable[..., str], tmp_path: Path
) -> None:
    venv = machine_with(
        "import time\n"
        "mine = told / f'running-{os.getpid()}'; mine.touch()\n"
        "(told / f'seen-{os.getpid()}').write_text(str(len(list(told.glob('running-*')))))\n"
        "import atexit; atexit.register(mine.unlink)"
    )
    run_job("slurm", tasks=3, workers=2, venv=venv)
    seen = [int(path.read_text()) for path in tmp_path.glob("seen-*")]
    assert len(seen) == 3
    assert max(seen) <= 2


def test_nodes_that_stream_a_set_of_many_shards_read_each_row_once(run_job: RunJob) -> None:
    output = run_job("none").output
    rows = datasets.load_dataset(str(output), split="train", streaming=True)
    parts = [split_dataset_by_node(rows, rank=rank, world_size=2) for rank in range(2)]
    ids = [[row["id"] for row in part] for part in parts]
    assert sorted(ids[0] + ids[1]) == sorted(f"e{n}" for n in range(LINES))
    assert abs(len(ids[0]) - len(ids[1])) <= LINES // 4

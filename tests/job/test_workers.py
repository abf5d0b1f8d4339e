"""Workers that die, hang or raise end the job with the place named; none is ever left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NoReturn

import pytest

from pipeline.errors import Rejected, UsageError, WorkerFailed
from pipeline.job import workers
from pipeline.job.shard import Progress
from pipeline.job.shard_record import ShardRecord
from pipeline.job.workers import OnProgress, run_shards
from pipeline.lines.files import SourceFile
from pipeline.lines.plan import Piece, SourceShard
from pipeline.lines.text import PieceRecord
from pipeline.rows.line_mapper import ShapeCounts
from tests.conftest import ROOT, write_lines

FILE = SourceFile(Path("in.jsonl"), "in.jsonl")
SHARDS = [SourceShard(index, (Piece(FILE, 0, 1, 1 + 10 * index, 0),)) for index in range(6)]
SILENT = 0.6

MapShard = Callable[[SourceShard, OnProgress], ShardRecord]


def record_of(shard: SourceShard, text: str = "") -> ShardRecord:
    """Return a record that says ``text`` where it says what it hashed."""
    pieces = (PieceRecord("in.jsonl", 10, 0),)
    return ShardRecord(shard.index, pieces, 0, text, 0, {}, ShapeCounts())


def progress_of(shard: SourceShard, line: int = 0) -> Progress:
    return Progress(shard.index, f"in.jsonl:{shard.pieces[0].first_line + line}", 1, 1, 9, 0)


def map_one(shard: SourceShard, on_progress: OnProgress) -> ShardRecord:
    """Say which process made the shard, and that two batches were read."""
    on_progress(progress_of(shard, 4))
    on_progress(progress_of(shard, 9))
    return record_of(shard, str(os.getpid()))


def at_shard(index: int, act: Callable[[], Any]) -> MapShard:
    """Return a map that does something else after the first batch of one shard."""

    def run(shard: SourceShard, on_progress: OnProgress) -> ShardRecord:
        if shard.index == index:
            on_progress(progress_of(shard, 4))
            act()
        return map_one(shard, on_progress)

    return run


def ignore(progress: Progress) -> None:
    pass


def children() -> list[int]:
    """Return the processes that this one started, those that nobody waited for too."""
    tasks = Path(f"/proc/{os.getpid()}/task").iterdir()
    return [int(child) for task in tasks for child in (task / "children").read_text().split()]


@pytest.fixture(autouse=True)
def _no_child_is_left() -> Iterator[None]:
    if not Path(f"/proc/{os.getpid()}/task").exists():
        pytest.skip("children are looked up in /proc")
    before = set(children())
    yield
    assert set(children()) - before == set()


# ---- work that ends well


@pytest.mark.parametrize("number", [1, 2, 3, 20])
def test_every_shard_is_made_once_and_every_batch_is_heard(number: int) -> None:
    heard: list[Progress] = []
    records = list(run_shards(SHARDS, map_one, number, heard.append))
    assert sorted(record.index for record in records) == [shard.index for shard in SHARDS]
    assert sorted((each.shard, each.place) for each in heard) == sorted(
        (shard.index, progress_of(shard, line).place) for shard in SHARDS for line in (4, 9)
    )
    makers = {record.sha256 for record in records}
    assert str(os.getpid()) not in makers
    assert 1 <= len(makers) <= min(number, len(SHARDS))


def test_one_shard_takes_one_worker_and_none_takes_no_worker() -> None:
    (record,) = run_shards(SHARDS[:1], map_one, 8, ignore)
    assert record.sha256 != str(os.getpid())
    assert list(run_shards([], map_one, 8, ignore)) == []


def test_a_slow_shard_does_not_hold_up_the_others() -> None:
    records = run_shards(SHARDS, at_shard(0, lambda: time.sleep(1)), 2, ignore)
    assert [record.index for record in records] == [1, 2, 3, 4, 5, 0]


def test_workers_begin_with_what_the_parent_knows_and_are_started_once_each() -> None:
    known, started = {"word": "learnt"}, []

    def start(is_careful: bool) -> None:
        assert not is_careful
        started.append("started")

    def say(shard: SourceShard, _: OnProgress) -> ShardRecord:
        return record_of(shard, f"{known['word']} {len(started)}")

    known["word"] = "learnt here"
    records = run_shards(SHARDS, say, 2, ignore, start)
    assert {record.sha256 for record in records} == {"learnt here 1"}
    assert started == []


def test_a_shard_of_many_files_and_a_long_record_pass_through_the_pipe() -> None:
    pieces = tuple(
        Piece(SourceFile(Path(f"{'x' * 50}{n}"), f"{'x' * 50}{n}"), 0, 1, 1, 0) for n in range(5000)
    )
    shards = [SourceShard(index, pieces) for index in range(4)]
    records = run_shards(shards, lambda shard, _: record_of(shard, "y" * 2**20), 2, ignore)
    assert sorted(record.index for record in records) == [0, 1, 2, 3]


# ---- work that does not


def fail_to_pickle() -> NoReturn:
    class LocalError(Exception):
        pass

    raise LocalError("cannot travel")


class OddError(Exception):
    """An error that pickles and does not come back, as some of libraries do."""

    def __init__(self, one: str, two: str) -> None:
        super().__init__(one + two)


def raise_odd() -> NoReturn:
    raise OddError("a", "b")


@pytest.mark.parametrize(
    ("act", "ending"),
    [
        (
            lambda: os.kill(os.getpid(), signal.SIGKILL),
            r"was ended by SIGKILL \(out of memory\?\)",
        ),
        (lambda: os.kill(os.getpid(), signal.SIGTERM), "was ended by SIGTERM"),
        (lambda: os._exit(3), "ended with exit code 3"),
        (lambda: os._exit(0), "ended with exit code 0"),
        (lambda: sys.exit(4), "ended with exit code 4"),
        (fail_to_pickle, "ended with exit code 1"),
        (raise_odd, "ended with exit code 1"),
    ],
    ids=["SIGKILL", "SIGTERM", "exit 3", "exit 0", "sys.exit", "local error", "odd error"],
)
@pytest.mark.parametrize("index", [0, 3, 5])
def test_a_worker_that_dies_is_named_with_its_shard_and_line(
    act: Callable[[], Any], ending: str, index: int
) -> None:
    place = (
        rf"shard {index}: in\.jsonl from line {1 + 10 * index}, after in\.jsonl:{5 + 10 * index};"
    )
    with pytest.raises(WorkerFailed, match=f"a worker process {ending}: {place}"):
        list(run_shards(SHARDS, at_shard(index, act), 2, ignore))


def test_a_worker_that_dies_before_its_first_batch_is_named_too() -> None:
    def die(shard: SourceShard, _: OnProgress) -> ShardRecord:
        os.kill(os.getpid(), signal.SIGKILL)
        return record_of(shard)

    with pytest.raises(WorkerFailed, match=r"in\.jsonl from line \d+, at its beginning"):
        list(run_shards(SHARDS, die, 2, ignore))


def test_a_worker_that_dies_in_the_middle_of_a_message_is_named_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def half(shard: SourceShard, on_progress: OnProgress) -> ShardRecord:
        on_progress(progress_of(shard, 4))

        def send_half(pipe: Any, data: bytes) -> NoReturn:
            os.write(pipe.fileno(), data[: len(data) // 2])
            os._exit(5)

        monkeypatch.setattr(Connection, "_send", send_half)
        return record_of(shard)

    with pytest.raises(WorkerFailed, match=r"exit code 5: shard [01]: .*, after in\.jsonl:1?5;"):
        list(run_shards(SHARDS, half, 2, ignore))


def test_a_worker_that_dies_while_it_starts_is_named_too() -> None:
    with pytest.raises(WorkerFailed, match=r"exit code 7: shard [01]: .*, at its beginning"):
        list(run_shards(SHARDS, map_one, 2, ignore, lambda _: os._exit(7)))


@pytest.mark.parametrize(
    "error",
    [
        UsageError("input: in.jsonl changed while it was read"),
        Rejected("wrong_type", "id: expected text", ["x"]),
        MemoryError("no memory"),
        OSError(28, "No space left on device", "shard"),
    ],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("number", [1, 2])
def test_an_error_of_a_shard_is_raised_here(error: Exception, number: int) -> None:
    def fail() -> NoReturn:
        raise error

    with pytest.raises(type(error)) as caught:
        list(run_shards(SHARDS, at_shard(3, fail), number, ignore))
    assert str(caught.value) == str(error)
    assert vars(caught.value) == vars(error)


def test_a_worker_that_hangs_is_ended_with_its_shard_and_line_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(workers, "SILENCE_SECONDS", SILENT)
    begun = time.monotonic()
    with pytest.raises(WorkerFailed, match=r"at one batch .*: shard 2: .*, after in\.jsonl:25;"):
        list(run_shards(SHARDS, at_shard(2, lambda: time.sleep(60)), 2, ignore))
    assert time.monotonic() - begun < 20


def test_a_single_worker_that_falls_silent_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "SILENCE_SECONDS", SILENT)
    with pytest.raises(WorkerFailed, match=r"at one batch .*: shard 0: "):
        list(run_shards(SHARDS[:1], at_shard(0, lambda: time.sleep(60)), 1, ignore))


def test_a_worker_that_hangs_while_the_others_work_on_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(workers, "SILENCE_SECONDS", SILENT)

    def run(shard: SourceShard, on_progress: OnProgress) -> ShardRecord:
        for line in range(100):
            time.sleep(60 if shard.index == 0 else 0.1)
            on_progress(progress_of(shard, line))
        return record_of(shard)

    with pytest.raises(WorkerFailed, match="shard 0"):
        list(run_shards(SHARDS, run, 2, ignore))


def test_a_worker_that_goes_on_is_not_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "SILENCE_SECONDS", SILENT)

    def slowly(shard: SourceShard, on_progress: OnProgress) -> ShardRecord:
        for line in range(8):
            time.sleep(SILENT / 4)
            on_progress(progress_of(shard, line))
        return record_of(shard)

    assert len(list(run_shards(SHARDS[:2], slowly, 2, ignore))) == 2


def test_what_was_finished_before_is_given_first() -> None:
    made: list[int] = []

    def collect() -> None:
        for record in run_shards(SHARDS, at_shard(5, lambda: os._exit(1)), 2, ignore):
            made.append(record.index)

    with pytest.raises(WorkerFailed, match="shard 5"):
        collect()
    # All but the one that the other worker is at.
    assert len(made) >= 4


# ---- ended from outside


def test_who_stops_asking_leaves_no_worker() -> None:
    records = run_shards(SHARDS, at_shard(1, lambda: time.sleep(60)), 2, ignore)
    assert next(records).index == 0
    assert len(children()) >= 2
    records.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_an_error_of_who_listens_leaves_no_worker(error: type[BaseException]) -> None:
    def fail(_: Progress) -> NoReturn:
        raise error

    with pytest.raises(error):
        list(run_shards(SHARDS, map_one, 2, fail))


def test_ctrl_c_is_for_the_parent_alone() -> None:
    # A terminal sends it to every process of the group.
    def interrupted(shard: SourceShard, on_progress: OnProgress) -> ShardRecord:
        os.kill(os.getpid(), signal.SIGINT)
        return map_one(shard, on_progress)

    assert len(list(run_shards(SHARDS, interrupted, 2, ignore))) == len(SHARDS)


ORPHANS = r"""
import os, sys, time
from tests.job.test_workers import SHARDS, progress_of, record_of
from pipeline.job.workers import run_shards

def work(shard, on_progress):
    os.write(1, f"{os.getpid()}\n".encode())
    time.sleep(1)
    return record_of(shard)

list(run_shards(SHARDS, work, 2, print))
"""


def test_workers_end_with_a_parent_that_is_killed() -> None:
    """Without a lock of a target too: their pipe ends with the parent."""
    parent = subprocess.Popen(
        [sys.executable, "-c", ORPHANS],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=ROOT,
    )
    assert parent.stdout is not None
    orphans = [int(parent.stdout.readline()) for _ in range(2)]
    parent.kill()
    parent.wait()
    end = time.monotonic() + 20
    while any(map(is_alive, orphans)) and time.monotonic() < end:
        time.sleep(0.05)
    assert not any(map(is_alive, orphans))
    parent.stdout.close()


def is_alive(process: int) -> bool:
    """Return False where a process is gone, or ended and nobody has asked for its exit code."""
    try:
        return ") Z " not in Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return False


AFTER_THREADS = """
import threading, sys, json
import torch
torch.set_num_threads(4)
(torch.rand(600, 600) @ torch.rand(600, 600)).sum()
torch.nn.functional.relu(torch.rand(4_000_000)).sum()
import pyarrow.compute as pc, pyarrow as pa
pa.table({"a": list(range(100_000))}).group_by("a").aggregate([])
from tokenizers import Tokenizer
tokenizer = Tokenizer.from_file(sys.argv[2] + "/tokenizer.json")
tokenizer.encode_batch(["some words and more of them"] * 500)
from pipeline.job import shards
from pipeline.lines import plan
plan.LEAST_SHARD_BYTES, shards.BYTES_PER_WORKER = 200, 1
from pipeline import prepare
print(prepare(quiet=True, **json.loads(sys.argv[1])).counts["rows"])
"""


def test_threads_that_were_used_before_the_fork_hang_no_worker(
    tmp_path: Path, bundled_tokenizer: Path
) -> None:
    rows = [{"id": str(n), "context": "2+2=", "continuation": str(n)} for n in range(200)]
    settings = {
        "input": str(write_lines(tmp_path / "in.jsonl", rows)),
        "tokenizer": str(bundled_tokenizer),
        "output": str(tmp_path / "set"),
        "num_proc": 2,
    }
    done = subprocess.run(
        [sys.executable, "-c", AFTER_THREADS, json.dumps(settings), str(bundled_tokenizer)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "4"},
        timeout=120,
    )
    assert done.stdout == "200\n", done.stderr


# ---- a template that breaks the limits


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("end", [signal.SIGPROF, signal.SIGSEGV])
def test_a_shard_that_ends_its_worker_is_done_again_carefully(
    number: int, end: signal.Signals
) -> None:
    careful: list[bool] = []
    heard: list[Progress] = []

    def die_unless_careful() -> None:
        if not careful[0]:
            os.kill(os.getpid(), end)

    work = at_shard(1, die_unless_careful)
    records = list(run_shards(SHARDS, work, number, heard.append, careful.append))
    assert sorted(record.index for record in records) == [shard.index for shard in SHARDS]
    # What was said of the shard that was not done is taken back.
    assert sum(each.rows for each in heard if each.shard == 1) == 3
    assert sum(each.rows for each in heard if each.shard == 0) == 2


def test_a_careful_worker_that_dies_ends_the_job() -> None:
    with pytest.raises(WorkerFailed, match="was ended by SIGSEGV"):
        list(
            run_shards(SHARDS, at_shard(1, lambda: os.kill(os.getpid(), signal.SIGSEGV)), 2, ignore)
        )


def test_a_worker_of_somebodys_pool_makes_the_shards_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(workers, "may_have_children", lambda: False)
    records = list(run_shards(SHARDS, map_one, 2, ignore))
    assert {record.sha256 for record in records} == {str(os.getpid())}

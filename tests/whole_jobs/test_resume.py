"""Whatever ends a job, the target is a whole set; the next run goes on where it was stopped."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import PrepareConfig
from pipeline.errors import WorkerFailed
from pipeline.job import shards
from pipeline.job.prepare import prepare
from pipeline.sets.load import verify
from pipeline.sets.place import MANIFEST
from tests.conftest import asked_by_line, write_lines

LINES = 60
UNTOLD = 1
"""Shards that each worker may have finished, at the moment of a kill, that nobody was told of."""

RUNNER = """
import json, os, resource, signal, sys, time
import datasets, transformers
from pipeline.config import config_from_mapping
from pipeline.job import build, prepare as job, save, shards
from pipeline.sets.place import Target
from pipeline.lines import plan

# A shell's background job begins with Ctrl-C ignored, and so does what it starts.
signal.signal(signal.SIGINT, signal.default_int_handler)
job.prepare(config_from_mapping(json.loads(sys.argv[1]), "test"), quiet=True)
plan.LEAST_SHARD_BYTES, shards.BYTES_PER_WORKER = 300, 1

def stop(order):
    # A terminal sends Ctrl-C to the whole group.
    send = os.killpg if order["signal"] == signal.SIGINT else os.kill
    send(os.getpid(), order["signal"])
    time.sleep(60)

def arrange(order):
    if "file_bytes" in order:
        resource.setrlimit(resource.RLIMIT_FSIZE, (order["file_bytes"],) * 2)
    if "shards" in order:
        end_shard, ended = build.ProgressReport.end_shard, []
        def counted(report, record):
            end_shard(report, record)
            ended.append(record)
            if len(ended) == order["shards"]:
                stop(order)
        build.ProgressReport.end_shard = counted
    if "at" in order:
        module, name, when = order["at"]
        home = {"build": build, "job": job, "save": save, "target": Target}[module]
        function = getattr(home, name)
        def stopped(*args, **kwargs):
            if when == "after":
                function(*args, **kwargs)
            stop(order)
        setattr(home, name, stopped)

for line in sys.stdin:
    order = json.loads(line)
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.setsid()
        os.close(read)
        try:
            arrange(order)
            answer = job.prepare(config_from_mapping(order["config"], "test"), quiet=True).manifest
        except BaseException as error:
            answer = {"error": type(error).__name__, "text": str(error)}
        os.write(write, json.dumps(answer).encode()[:60000])
        os._exit(0)
    os.close(write)
    if "seconds" in order:
        time.sleep(order["seconds"])
        os.kill(child, order["signal"])
    with os.fdopen(read, "rb") as pipe:
        told = pipe.read()
    status = os.waitpid(child, 0)[1]
    print(json.dumps({"signal": os.WTERMSIG(status), **(json.loads(told) if told else {})}), flush=True)
"""

Run = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, bundled_tokenizer: Path) -> Iterator[Run]:
    """Return a function that runs a job in a process of its own, and says how it ended.

    ``signal`` is sent after some ``seconds``, after a number of ``shards`` are made, or ``at`` a
    call: module, name, and whether before or after it. ``file_bytes`` is a limit of every file.
    """
    # Imports take seconds: one process has done them for a first job, and the others are its forks.
    folder = tmp_path_factory.mktemp("first")
    first = PrepareConfig(
        input=(str(write_lines(folder / "first.jsonl", examples("one", 1))),),
        tokenizer=str(bundled_tokenizer),
        output=str(folder / "set"),
        num_proc=1,
        report=False,
    )
    command = [sys.executable, "-c", RUNNER, json.dumps(first.to_dict())]
    with asked_by_line(command, stderr=subprocess.DEVNULL) as ask:

        def order(config: PrepareConfig, **order: Any) -> dict[str, Any]:
            return ask({"signal": signal.SIGKILL, "config": config.to_dict(), **order})

        yield order


def examples(answer: str, number: int = LINES) -> list[dict[str, Any]]:
    return [
        {"id": f"e{n}", "context": "2+2=", "continuation": f"{answer} {n}"} for n in range(number)
    ]


@pytest.fixture
def config(tmp_path: Path, bundled_tokenizer: Path) -> PrepareConfig:
    """The config of a job of many shards."""
    return PrepareConfig(
        input=(str(write_lines(tmp_path / "new.jsonl", examples("four"))),),
        tokenizer=str(bundled_tokenizer),
        output=str(tmp_path / "out" / "set"),
        num_proc=1,
        report=False,
        # An older set stands there, of another input.
        overwrite=True,
    )


def snapshot(folder: Path) -> dict[str, bytes]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def beside(config: PrepareConfig) -> list[str]:
    """Return what stands in the folder of the target, the set itself left out."""
    output = Path(config.output)
    return sorted(path.name for path in output.parent.iterdir() if path != output)


@pytest.fixture
def undisturbed(config: PrepareConfig, run: Run, tmp_path: Path) -> dict[str, Any]:
    """The manifest of the set that the job makes where nothing stops it."""
    manifest = run(dataclasses.replace(config, output=str(tmp_path / "undisturbed" / "set")))
    assert manifest["shards"]["made"] > 9
    assert manifest["shards"]["reused"] == 0
    return manifest


# ---- finished shards are not made again


@pytest.mark.parametrize("num_proc", [1, 2])
@pytest.mark.parametrize("name", ["SIGKILL", "SIGTERM", "SIGINT"])
def test_a_stopped_job_goes_on_with_the_shards_that_were_finished(
    config: PrepareConfig,
    run: Run,
    undisturbed: dict[str, Any],
    tmp_path: Path,
    num_proc: int,
    name: str,
) -> None:
    config = dataclasses.replace(config, num_proc=num_proc)
    ended = run(config, shards=5, signal=signal.Signals[name])
    if name == "SIGINT":
        assert ended["error"] == "KeyboardInterrupt"
    else:
        assert ended["signal"] == signal.Signals[name]
    assert not Path(config.output).exists()
    manifest = run(config)
    reused = manifest["shards"]["reused"]
    assert 5 <= reused <= 5 + num_proc * UNTOLD
    assert manifest["digest"] == undisturbed["digest"]
    assert manifest["counts"] == undisturbed["counts"]
    assert beside(config) == []
    made, expected = snapshot(Path(config.output)), snapshot(tmp_path / "undisturbed" / "set")
    assert {name for name in made if made[name] != expected[name]} == {MANIFEST}
    assert verify(config.output) == []


def test_a_job_that_is_stopped_again_and_again_ends_at_last(
    config: PrepareConfig, run: Run, undisturbed: dict[str, Any]
) -> None:
    for _ in range(4):
        run(config, shards=2)
    manifest = run(config)
    assert 8 <= manifest["shards"]["reused"] <= 8 + 4 * UNTOLD
    assert manifest["digest"] == undisturbed["digest"]


@pytest.mark.parametrize(
    "changes",
    [{"num_proc": 2}, {"batch_size": 1}, {"max_reject_rate": 1.0}, {"encoder": "tokenizers"}],
    ids=str,
)
def test_a_setting_that_changes_no_byte_keeps_the_shards(
    config: PrepareConfig, run: Run, undisturbed: dict[str, Any], changes: dict[str, Any]
) -> None:
    run(config, shards=5)
    manifest = run(dataclasses.replace(config, **changes))
    assert 5 <= manifest["shards"]["reused"] <= 5 + UNTOLD
    assert manifest["digest"] == undisturbed["digest"]


@pytest.mark.parametrize("change", ["settings", "input", "name"])
def test_the_shards_of_another_job_are_never_taken_and_are_removed(
    config: PrepareConfig, run: Run, undisturbed: dict[str, Any], tmp_path: Path, change: str
) -> None:
    run(config, shards=5)
    work = tmp_path / "out" / ".set.work"
    (mine,) = (path for path in work.iterdir() if path.is_dir())
    if change == "settings":
        other = dataclasses.replace(config, max_len=100)
    elif change == "input":
        path = Path(config.input[0])
        path.write_bytes(path.read_bytes().replace(b"four 59", b"five 59"))
        other = config
    else:
        renamed = Path(config.input[0]).rename(tmp_path / "renamed.jsonl")
        other = dataclasses.replace(config, input=(str(renamed),))
    run(other, shards=2)
    (theirs,) = (path for path in work.iterdir() if path.is_dir())
    assert theirs != mine
    assert 2 <= run(other)["shards"]["reused"] <= 2 + UNTOLD
    assert beside(config) == []


@pytest.mark.parametrize("damage", ["one bit", "missing", "no record"])
def test_a_shard_that_is_not_whole_is_made_again(
    config: PrepareConfig, run: Run, undisturbed: dict[str, Any], tmp_path: Path, damage: str
) -> None:
    run(config, shards=5)
    (folder,) = (path for path in (tmp_path / "out" / ".set.work").iterdir() if path.is_dir())
    rows = folder / "00003.arrow"
    if damage == "one bit":
        data = bytearray(rows.read_bytes())
        data[len(data) // 2] ^= 1
        rows.write_bytes(data)
    else:
        (rows if damage == "missing" else folder / "00003.json").unlink()
    manifest = run(config)
    assert 4 <= manifest["shards"]["reused"] <= 4 + UNTOLD
    assert manifest["digest"] == undisturbed["digest"]
    assert verify(config.output) == []


def test_a_set_that_is_ready_needs_no_leftover(
    config: PrepareConfig, run: Run, undisturbed: dict[str, Any]
) -> None:
    run(config)
    run(dataclasses.replace(config, max_len=100), shards=5)
    assert beside(config) != []
    assert run(config)["digest"] == undisturbed["digest"]
    assert beside(config) == []


@pytest.mark.usefixtures("many_shards")
def test_a_worker_that_dies_is_named_and_the_other_shards_are_kept(
    config: PrepareConfig, undisturbed: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    map_shard = shards.map_shard

    def die(shard: Any, *args: Any) -> Any:
        if shard.index == 7:
            os.kill(os.getpid(), signal.SIGKILL)
        return map_shard(shard, *args)

    config = dataclasses.replace(config, num_proc=2)
    with monkeypatch.context() as patched:
        patched.setattr(shards, "map_shard", die)
        with pytest.raises(WorkerFailed, match=r"SIGKILL .*: shard 7: new\.jsonl from line \d+,"):
            prepare(config)
    assert not Path(config.output).exists()
    assert beside(config) == [".set.work"]
    again = prepare(config)
    assert again.manifest["shards"]["reused"] >= 6
    assert again.digest == undisturbed["digest"]
    assert beside(config) == []


@pytest.mark.usefixtures("many_shards")
def test_the_shards_of_standard_input_are_known_by_its_content(
    config: PrepareConfig, run: Run, tmp_path: Path
) -> None:
    fifo = tmp_path / "pipe.jsonl"
    os.mkfifo(fifo)
    config = dataclasses.replace(config, input=(str(fifo),))
    reused: list[int] = []
    for order in ({"shards": 5}, {}):
        writer = subprocess.Popen(["cp", str(tmp_path / "new.jsonl"), str(fifo)])
        ended = run(config, **order)
        assert writer.wait(10) == 0
        reused.append(ended.get("shards", {}).get("reused"))
    assert reused[0] is None
    assert 5 <= reused[1] <= 5 + UNTOLD
    assert beside(config) == []


# ---- the target at every moment


@pytest.fixture
def older(config: PrepareConfig, run: Run, tmp_path: Path) -> Path:
    """An older set of the same size as the one that the job makes."""
    lines = write_lines(tmp_path / "older.jsonl", examples("five"))
    older = dataclasses.replace(config, input=(str(lines),), output=str(tmp_path / "older"))
    assert "digest" in run(older)
    return Path(older.output)


MOMENTS = [
    ("build", "open_shards", "before", "old"),
    ("target", "publish", "before", "old"),
    ("target", "publish", "after", "new"),
]
MORE_MOMENTS = [
    ("job", "make_seal", "before", "old"),
    ("target", "open_work", "after", "old"),
    ("build", "assemble", "after", "old"),
    ("save", "save_rows", "before", "old"),
    ("save", "save_rows", "after", "old"),
    ("save", "write_card", "after", "old"),
    ("target", "clear", "before", "new"),
]


@pytest.mark.parametrize(
    ("module", "name", "when", "left"),
    [*MOMENTS, *(pytest.param(*moment, marks=pytest.mark.nightly) for moment in MORE_MOMENTS)],
)
def test_a_killed_job_leaves_a_whole_set_and_the_next_run_finishes(
    config: PrepareConfig,
    run: Run,
    undisturbed: dict[str, Any],
    older: Path,
    module: str,
    name: str,
    when: str,
    left: str,
) -> None:
    shutil.copytree(older, config.output)
    before = snapshot(older)
    assert run(config, at=(module, name, when))["signal"] == signal.SIGKILL
    assert (snapshot(Path(config.output)) == before) == (left == "old")
    assert verify(config.output) == []
    assert run(config)["digest"] == undisturbed["digest"]
    assert beside(config) == []
    assert verify(config.output) == []


def test_a_killed_first_job_leaves_nothing_that_looks_like_a_set(
    config: PrepareConfig, run: Run
) -> None:
    run(config, at=("build", "write_set", "after"))
    assert not Path(config.output).exists()
    shards = run(config)["shards"]
    assert shards["reused"] == shards["made"]


@pytest.mark.parametrize("before", ["nothing", "an older set", "a smaller set"])
@pytest.mark.parametrize("num_proc", [1, 2])
@pytest.mark.parametrize("moments", [2, pytest.param(40, marks=pytest.mark.nightly)])
def test_a_job_killed_at_any_moment_leaves_the_old_set_or_the_new(
    config: PrepareConfig,
    run: Run,
    undisturbed: dict[str, Any],
    older: Path,
    tmp_path: Path,
    before: str,
    num_proc: int,
    moments: int,
) -> None:
    config = dataclasses.replace(config, num_proc=num_proc)
    target = Path(config.output)
    begun = time.monotonic()
    run(config)
    whole_run = time.monotonic() - begun
    old: Path | None = None
    if before == "an older set":
        old = older
    elif before == "a smaller set":
        lines = write_lines(tmp_path / "smaller.jsonl", examples("two", 9))
        old = tmp_path / "smaller"
        run(dataclasses.replace(config, input=(str(lines),), output=str(old)))
    sealed = json.loads((old / MANIFEST).read_text("utf-8"))["digest"] if old else None
    chance = random.Random(f"{before} {num_proc}")
    for place in range(moments):
        shutil.rmtree(target, ignore_errors=True)
        if old:
            shutil.copytree(old, target)
        # Spread over the whole run, and a little beyond its end.
        seconds = whole_run * 1.1 * (place + chance.random()) / moments
        kind = chance.choice([signal.SIGKILL, signal.SIGTERM])
        ended = run(config, seconds=seconds, signal=kind)
        assert ended["signal"] == kind or ended["digest"] == undisturbed["digest"]
        if target.exists():
            assert verify(target) == []
            digest = json.loads((target / MANIFEST).read_text("utf-8"))["digest"]
            assert digest in (sealed, undisturbed["digest"])
        else:
            assert old is None
        assert run(config)["digest"] == undisturbed["digest"]
        assert verify(target) == []
        assert beside(config) == []


# ---- a disk that is full


@pytest.mark.parametrize("num_proc", [1, 2])
@pytest.mark.parametrize("place", ["shards", "set", "report"])
def test_a_disk_that_is_full_is_said_and_leaves_the_old_set_and_no_rest(
    config: PrepareConfig, run: Run, older: Path, num_proc: int, place: str
) -> None:
    shutil.copytree(older, config.output)
    before = snapshot(Path(config.output))
    # The manifest is larger than the files of any shard here, and a report than all of them.
    limits = {
        "shards": 1000,
        "set": len(before[MANIFEST]) - 100,
        "report": 2 * len(before[MANIFEST]),
    }
    config = dataclasses.replace(config, num_proc=num_proc, report=place == "report")
    ended = run(config, file_bytes=limits[place])
    assert ended["error"] == "UsageError"
    assert ended["text"].startswith(f"output: {config.output}: File too large; about ")
    assert "bytes are needed in" in ended["text"]
    assert snapshot(Path(config.output)) == before
    assert beside(config) == []

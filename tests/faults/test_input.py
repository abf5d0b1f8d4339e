"""Input that does not stand still, or is larger than memory in one line or in many."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from pipeline.config import PrepareConfig
from pipeline.errors import ContextFrozenError
from pipeline.job import prepare as job
from pipeline.job.prepare import prepare
from pipeline.lines.text import MAX_LINE_BYTES
from tests.conftest import ROOT, write_lines

ConfigMaker = Callable[..., PrepareConfig]
GIB = 2**30


def examples(answer: str, number: int = 200) -> list[dict[str, Any]]:
    return [{"id": f"e{n}", "context": "2+2=", "continuation": answer} for n in range(number)]


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# ---- files that change


def rewrite(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"four", b"five"))


def shrink(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def replace_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("num_proc", [1, 2])
@pytest.mark.parametrize("change", [rewrite, shrink, empty, Path.unlink, replace_by_folder])
@pytest.mark.usefixtures("many_shards")
def test_input_that_changes_under_the_job_is_named_and_changes_nothing(
    tmp_path: Path,
    make_config: ConfigMaker,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[Path], None],
    num_proc: int,
) -> None:
    path = write_lines(tmp_path / "in.jsonl", examples("four"))
    old = prepare(make_config(write_lines(tmp_path / "old.jsonl", examples("two")))).output
    before = snapshot(old)
    make_seal = job.make_seal

    def change_and_seal(*args: Any) -> dict[str, Any]:
        # The input has just been hashed and cut.
        change(path)
        return make_seal(*args)

    monkeypatch.setattr(job, "make_seal", change_and_seal)
    with pytest.raises(ContextFrozenError, match=r"in\.jsonl") as caught:
        prepare(make_config(path, num_proc=num_proc, overwrite=True))
    assert "changed while it was read" in str(caught.value) or "cannot be read" in str(caught.value)
    assert snapshot(old) == before
    assert sorted(each.name for each in tmp_path.iterdir() if each != path) == ["old.jsonl", "set"]


@pytest.mark.usefixtures("many_shards")
def test_a_log_that_grows_under_the_job_gives_the_lines_it_had(
    tmp_path: Path, make_config: ConfigMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_lines(tmp_path / "in.jsonl", examples("four"))
    still = prepare(make_config(path, output=str(tmp_path / "still")))
    make_seal = job.make_seal

    def grow_and_seal(*args: Any) -> dict[str, Any]:
        with path.open("a") as file:
            file.write('{"id": "late", "context": "x", "continuation": "y"}\n{"id": "half')
        return make_seal(*args)

    monkeypatch.setattr(job, "make_seal", grow_and_seal)
    grown = prepare(make_config(path))
    assert grown.digest == still.digest
    assert grown.manifest["seal"]["key"] == still.manifest["seal"]["key"]


def test_a_fifo_gives_the_set_that_its_file_gives(tmp_path: Path, make_config: ConfigMaker) -> None:
    path = write_lines(tmp_path / "in.jsonl", examples("four"))
    fifo = tmp_path / "pipe.jsonl"
    os.mkfifo(fifo)
    writer = threading.Thread(target=lambda: fifo.write_bytes(path.read_bytes()))
    writer.start()
    piped = prepare(make_config(fifo))
    writer.join()
    assert piped.digest == prepare(make_config(path, output=str(tmp_path / "plain"))).digest


# ---- memory

JOB = """
import json, resource, sys
from pipeline.config import config_from_mapping
from pipeline.job.prepare import prepare
counts = prepare(config_from_mapping(json.loads(sys.argv[1]), "test"), quiet=True).counts
own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(json.dumps({"counts": counts, "peak": own}))
"""


def run_job(config: PrepareConfig, stdin: Path | None = None) -> dict[str, Any]:
    """Run a job in a process of its own; return its counts and peaks of memory in bytes.

    ``peak`` is that of the process, ``together`` that of it and its workers, shared pages once.
    """
    together = 0
    with (stdin or Path(os.devnull)).open("rb") as stream:
        job = subprocess.Popen(
            [sys.executable, "-c", JOB, json.dumps(config.to_dict())],
            stdin=stream,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        while job.poll() is None:
            together = max(together, proportional_bytes(psutil.Process(job.pid)))
            time.sleep(0.1)
        said, faults = job.communicate()
    assert job.returncode == 0, faults
    return {**json.loads(said), "together": together}


def proportional_bytes(process: psutil.Process) -> int:
    """Return the memory of a process and its children, each shared page counted once."""
    total = 0
    for each in (process, *process.children(recursive=True)):
        # One that has just ended has no memory.
        with suppress(OSError):
            rollup = Path(f"/proc/{each.pid}/smaps_rollup").read_text()
            found = re.findall(r"^Pss: *(\d+)", rollup, re.MULTILINE)
            total += 1024 * sum(map(int, found))
    return total


def write_long_line(path: Path, size: int) -> Path:
    """Write three lines; the second has ``size`` zero bytes, which take no room on the disk."""
    first, last = (json.dumps(example) for example in examples("four", 2))
    with path.open("wb") as file:
        file.write(f"{first}\n".encode())
        file.seek(size, os.SEEK_CUR)
        file.write(f"\n{last}\n".encode())
    return path


@pytest.fixture(scope="module")
def peak_of_a_long_line(tmp_path_factory: pytest.TempPathFactory, bundled_tokenizer: Path) -> int:
    """The peak of memory, in bytes, of a job with a line that is just too long."""
    folder = tmp_path_factory.mktemp("long")
    config = PrepareConfig(
        input=(str(write_long_line(folder / "in.jsonl", MAX_LINE_BYTES + 2**20)),),
        tokenizer=str(bundled_tokenizer),
        output=str(folder / "set"),
        num_proc=1,
        report=False,
        max_reject_rate=1,
    )
    return run_job(config)["peak"]


@pytest.mark.parametrize(
    ("size", "is_piped"),
    [
        (GIB // 8, False),
        (GIB // 8, True),
        pytest.param(5 * GIB, False, marks=[pytest.mark.nightly, pytest.mark.timeout(900)]),
        pytest.param(5 * GIB, True, marks=[pytest.mark.nightly, pytest.mark.timeout(900)]),
    ],
)
def test_a_line_longer_than_memory_is_one_reject_in_bounded_memory(
    tmp_path: Path,
    make_config: ConfigMaker,
    peak_of_a_long_line: int,
    size: int,
    is_piped: bool,
) -> None:
    path = write_long_line(tmp_path / "long.jsonl", size)
    config = make_config(
        "-" if is_piped else path, output=str(tmp_path / "long"), max_reject_rate=1
    )
    found = run_job(config, stdin=path if is_piped else None)
    assert found["counts"]["by_code"] == {"line_too_long": 1}
    assert (found["counts"]["lines"], found["counts"]["rows"]) == (3, 2)
    (reject,) = (tmp_path / "long" / "rejects.jsonl").read_text("utf-8").splitlines()
    assert f"{size} bytes, expected at most" in reject
    assert found["peak"] - peak_of_a_long_line < 2**24


@pytest.mark.parametrize(
    "number",
    [30_000, pytest.param(10_000_000, marks=[pytest.mark.nightly, pytest.mark.timeout(7200)])],
)
def test_a_great_many_tiny_lines_are_all_accounted_for_in_bounded_memory(
    tmp_path: Path, make_config: ConfigMaker, number: int
) -> None:
    path = tmp_path / "in.jsonl"
    bad = 0
    with path.open("w") as file:
        for n in range(number):
            if n % 10 == 3:
                bad += 1
                file.write("{}\n")
            else:
                file.write(f'{{"id":{n},"context":"a","continuation":"b"}}\n')
    found = run_job(make_config(path, num_proc=2, max_reject_rate=1))
    counts = found["counts"]
    assert (counts["lines"], counts["rows"]) == (number, number - bad)
    assert counts["by_code"] == {"missing_field": bad}
    assert found["together"] < 1.2 * GIB

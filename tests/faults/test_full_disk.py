"""A disk that is really full, or cannot be written: a small tmpfs in a mount namespace of its own.

Where a process may not mount (no root, no user namespaces) these are skipped; ``RLIMIT_FSIZE`` and
simulated errors show the same in ``test_resume.py`` and ``test_job.py``.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import PrepareConfig
from tests.conftest import asked_by_line, write_lines

LINES = 300
PLACES = ["mapping", "merging", "report"]

RUNNER = """
import contextlib, filecmp, json, os, shutil, subprocess, sys
from pathlib import Path
import datasets, transformers
from pipeline.config import config_from_mapping
from pipeline.job import build, prepare as job, save, shards
from pipeline.sets.place import Target
from pipeline.lines import plan

plan.LEAST_SHARD_BYTES, shards.BYTES_PER_WORKER = 2000, 1
disk = Path(sys.argv[1])
target, filler = disk / "set", disk / "filler"

def mount(*options):
    subprocess.run(["mount", *options, str(disk)], check=True)

def used():
    stat = os.statvfs(disk)
    return stat.f_frsize * (stat.f_blocks - stat.f_bfree)

def before(home, name, action):
    function = getattr(home, name)
    def wrapped(*args, **kwargs):
        action()
        return function(*args, **kwargs)
    setattr(home, name, wrapped)

def fill():
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    assert os.statvfs(disk).f_bavail == 0

def run(order):
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            if order.get("stdin"):
                os.dup2(os.open(order["stdin"], os.O_RDONLY), 0)
            marks = [used()]
            if order.get("full_at_publish"):
                before(Target, "publish", fill)
            else:
                before(build, "assemble", lambda: marks.append(used()))
                before(save, "write_card", lambda: marks.append(used()))
                before(Target, "publish", lambda: marks.append(used()))
            manifest = job.prepare(config_from_mapping(order["config"], "test"), quiet=True).manifest
            answer = {"digest": manifest["digest"], "used": marks}
        except BaseException as error:
            code = getattr(error, "exit_code", None)
            answer = {"error": type(error).__name__, "code": code, "text": str(error)}
        os.write(write, json.dumps(answer).encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        told = pipe.read()
    os.waitpid(child, 0)
    return json.loads(told)

def names():
    return sorted(path.name for path in disk.iterdir() if path not in (target, filler))

for line in sys.stdin:
    order = json.loads(line)
    mount("-t", "tmpfs", "-o", "size=64m", "tmpfs")
    shutil.copytree(order["old"], target)
    if "free" in order:
        mount("-o", f"remount,size={used() + order['free']}")
    if "inodes" in order:
        stat = os.statvfs(disk)
        mount("-o", f"remount,nr_inodes={stat.f_files - stat.f_ffree + order['inodes']}")
    if order.get("read_only"):
        mount("-o", "remount,ro")
    answer = run(order)
    old = Path(order["old"])
    files = [path.relative_to(old) for path in old.rglob("*") if path.is_file()]
    answer["old_is_whole"] = filecmp.cmpfiles(old, target, files, shallow=False)[1:] == ([], [])
    answer["beside"] = names()
    mount("-o", "remount,rw,size=64m,nr_inodes=100000")
    filler.unlink(missing_ok=True)
    answer["again"] = run({"config": order["config"], "stdin": order.get("stdin")})
    answer["left"] = names()
    # A process apart may still look at its files for a moment.
    subprocess.run(["umount", "--lazy", str(disk)], check=True)
    print(json.dumps(answer), flush=True)
"""

Run = Callable[..., dict[str, Any]]


def why_no_mounts() -> str:
    """Return why this process can mount nothing, or an empty text where it can."""
    if sys.platform != "linux" or shutil.which("unshare") is None:
        return "mount namespaces need Linux and unshare"
    ended = subprocess.run(
        ["unshare", "-m", "mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", "/mnt"],
        capture_output=True,
        text=True,
    )
    return f"this process may not mount: {ended.stderr.strip()}" if ended.returncode else ""


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the small disk is mounted; outside of the namespace the folder is empty."""
    return tmp_path_factory.mktemp("disk")


@pytest.fixture(scope="module")
def run(disk: Path) -> Iterator[Run]:
    """Return a function that runs a job, over an older set, on a disk of 64 MiB that an order makes
    smaller: ``free`` bytes, free ``inodes``, ``read_only``, or ``full_at_publish``.

    It says how the job ended, what was beside the target then, and how ``again`` a run ended that
    was given room.
    """
    if reason := why_no_mounts():
        pytest.skip(reason)
    with asked_by_line(["unshare", "-m", sys.executable, "-c", RUNNER, str(disk)]) as ask:

        def order(config: PrepareConfig, old: Path, **order: Any) -> dict[str, Any]:
            return ask({"config": config.to_dict(), "old": str(old), **order})

        yield order


def examples(answer: str) -> list[dict[str, Any]]:
    return [
        {"id": f"e{n}", "context": "2+2=", "continuation": f"{answer} {n}"} for n in range(LINES)
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("full")


@pytest.fixture(scope="module")
def config(folder: Path, disk: Path, bundled_tokenizer: Path) -> Callable[..., PrepareConfig]:
    """Return a function that makes the config of a job of many shards on that disk."""
    lines = write_lines(folder / "new.jsonl", examples("four"))

    def make(**settings: Any) -> PrepareConfig:
        values: dict[str, Any] = {
            "input": (str(lines),),
            "tokenizer": str(bundled_tokenizer),
            "output": str(disk / "set"),
            "num_proc": 1,
            "overwrite": True,
            **settings,
        }
        return PrepareConfig(**values)

    return make


@pytest.fixture(scope="module")
def old(folder: Path, config: Callable[..., PrepareConfig]) -> Path:
    """An older set, of other answers."""
    from pipeline.job.prepare import prepare

    lines = write_lines(folder / "old.jsonl", examples("five"))
    return prepare(config(input=(str(lines),), output=str(folder / "old"), report=False)).output


@pytest.fixture(scope="module")
def undisturbed(run: Run, config: Callable[..., PrepareConfig], old: Path) -> dict[str, Any]:
    """How the job ends that has all the room: with the bytes in use before it and at three moments."""
    ended = run(config(), old)
    assert len(ended["used"]) == len(PLACES) + 1
    assert sorted(set(ended["used"])) == ended["used"]
    return ended


def assert_mended(ended: dict[str, Any], undisturbed: dict[str, Any]) -> None:
    """Check that a job that failed changed nothing, and that the next one ends as if it had not been."""
    assert ended["old_is_whole"]
    assert ended["beside"] == []
    assert ended["again"].get("digest") == undisturbed["digest"], ended["again"]
    assert ended["left"] == []


@pytest.mark.parametrize("num_proc", [pytest.param(1, marks=pytest.mark.nightly), 2])
@pytest.mark.parametrize("place", PLACES)
def test_a_full_disk_is_said_with_path_and_bytes_and_leaves_the_old_set(
    run: Run,
    config: Callable[..., PrepareConfig],
    old: Path,
    undisturbed: dict[str, Any],
    place: str,
    num_proc: int,
) -> None:
    start, *moments = undisturbed["used"]
    at = PLACES.index(place)
    free = ([start, *moments][at] + moments[at]) // 2 - start
    ended = run(config(num_proc=num_proc, report=place == "report"), old, free=free)
    output = Path(config().output)
    assert (ended.get("error"), ended.get("code")) == ("UsageError", 2), ended
    assert ended["text"].startswith(f"output: {output}: No space left on device; about ")
    assert f" bytes are needed in {output.parent}; nothing was changed" in ended["text"]
    assert_mended(ended, undisturbed)


def test_a_disk_that_fills_up_before_the_exchange_takes_the_whole_new_set(
    run: Run, config: Callable[..., PrepareConfig], old: Path, undisturbed: dict[str, Any]
) -> None:
    # Two folders that change their names take no room.
    ended = run(config(report=False), old, full_at_publish=True)
    assert (ended.get("digest"), ended["beside"]) == (undisturbed["digest"], []), ended
    assert ended["again"]["digest"] == undisturbed["digest"]


@pytest.mark.parametrize("inodes", [0, 1, 3, 8])
def test_a_disk_that_takes_no_more_files_is_said(
    run: Run,
    config: Callable[..., PrepareConfig],
    old: Path,
    undisturbed: dict[str, Any],
    inodes: int,
) -> None:
    ended = run(config(report=False), old, inodes=inodes)
    assert (ended.get("error"), ended.get("code")) == ("UsageError", 2), ended
    assert "No space left on device" in ended["text"]
    assert ended["text"].startswith(f"output: {Path(config().output).parent}")
    assert_mended(ended, undisturbed)


def test_a_disk_too_small_for_standard_input_is_said(
    run: Run,
    config: Callable[..., PrepareConfig],
    old: Path,
    undisturbed: dict[str, Any],
    folder: Path,
) -> None:
    ended = run(config(input=("-",), report=False), old, free=8192, stdin=str(folder / "new.jsonl"))
    assert (ended.get("error"), ended.get("code")) == ("UsageError", 2), ended
    assert "No space left on device" in ended["text"]
    assert str(Path(config().output).parent) in ended["text"]
    assert_mended(ended, undisturbed)


def test_a_disk_that_cannot_be_written_is_said(
    run: Run, config: Callable[..., PrepareConfig], old: Path, undisturbed: dict[str, Any]
) -> None:
    ended = run(config(report=False), old, read_only=True)
    assert (ended.get("error"), ended.get("code")) == ("UsageError", 2), ended
    parent = Path(config().output).parent
    assert ended["text"].startswith(f"output: {parent}: Read-only file system; expected a folder")
    assert_mended(ended, undisturbed)

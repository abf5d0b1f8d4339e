"""A target is always a whole set: exchanged in one step, held by one job, mended after a crash."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.errors import UsageError
from pipeline.sets import lock
from pipeline.sets import place as publish
from pipeline.sets.disk import sync_tree
from pipeline.sets.marks import MARK, make_marked_folder
from pipeline.sets.place import MANIFEST, Target
from pipeline.sets.store import open_target

REPOSITORY = Path(__file__).parents[2]


def write_set(folder: Path, name: str) -> None:
    """Write what counts as a sealed set whose content is ``name``."""
    (folder / "train").mkdir(parents=True)
    (folder / "train" / "data.arrow").write_text(name)
    (folder / MANIFEST).write_text(json.dumps({"digest": name, "seal": {}}))


def stage(target: Target, name: str) -> None:
    """Write a set into the staging folder of a target."""
    if not target.work.exists():
        make_marked_folder(target.work, target.path)
    write_set(target.staging, name)


def content_of(folder: Path) -> str:
    """Return the name of the set in ``folder``; both of its files must be of one set."""
    name = json.loads((folder / MANIFEST).read_text())["digest"]
    assert (folder / "train" / "data.arrow").read_text() == name
    assert sorted(path.name for path in folder.rglob("*")) == ["data.arrow", MANIFEST, "train"]
    return name


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def target(tmp_path: Path) -> Target:
    (tmp_path / "out").mkdir()
    return Target(str(tmp_path / "out" / "set"))


@pytest.fixture(params=["exchange", "two renames"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways of putting a folder in the place of another."""
    if request.param == "two renames":
        monkeypatch.setattr(publish, "exchange_paths", lambda *_: False)
    return request.param


# ---- publishing


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("before", ["nothing", "empty folder", "old set"])
def test_the_new_set_takes_the_place_and_nothing_stays_beside_it(
    target: Target, before: str
) -> None:
    if before == "empty folder":
        target.path.mkdir()
    elif before == "old set":
        write_set(target.path, "old")
    with target.locked():
        stage(target, "new")
        target.publish()
    assert content_of(target.path) == "new"
    assert names_in(target.path.parent) == ["set"]


def test_this_system_can_exchange_two_folders_in_one_step(tmp_path: Path) -> None:
    # Linux can; where a file system cannot, the fallback is tested above.
    if not sys.platform.startswith("linux"):
        pytest.skip("renameat2 is Linux")
    write_set(tmp_path / "a", "left")
    write_set(tmp_path / "b", "right")
    assert publish.exchange_paths(tmp_path / "a", tmp_path / "b")
    assert (content_of(tmp_path / "a"), content_of(tmp_path / "b")) == ("right", "left")


def test_the_target_is_a_whole_set_at_every_moment(tmp_path: Path) -> None:
    """A reader that opens the target again and again while it is replaced never misses it."""
    if not sys.platform.startswith("linux"):
        pytest.skip("without renameat2 there is a moment between the two renames")
    path = tmp_path / "set"
    write_set(path, "0")
    code = (
        "import json, sys\n"
        f"path = {str(path / MANIFEST)!r}\n"
        "print('reading', flush=True)\n"
        "seen = set()\n"
        "while len(seen) < 500:\n"
        "    name = json.load(open(path))['digest']\n"
        "    seen.add(name)\n"
        "    if name == 'last': break\n"
    )
    reader = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert reader.stdout is not None
    assert reader.stdout.readline() == "reading\n"
    target = Target(str(path))
    for number in [*map(str, range(200)), "last"]:
        stage(target, number)
        target.publish()
    assert reader.wait(30) == 0


def test_an_error_while_exchanging_is_not_taken_for_a_system_that_cannot(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        publish.exchange_paths(tmp_path / "missing", tmp_path / "set")


def test_a_link_at_the_output_stays_and_its_folder_is_replaced(tmp_path: Path) -> None:
    real = tmp_path / "disk" / "real"
    write_set(real, "old")
    (tmp_path / "set").symlink_to(real)
    for name in ("new", "newer"):
        target = Target(str(tmp_path / "set"))
        with target.locked():
            stage(target, name)
            target.publish()
        assert (tmp_path / "set").is_symlink()
        assert content_of(real) == name
    assert names_in(tmp_path) == ["disk", "set"]
    assert names_in(tmp_path / "disk") == ["real"]


@pytest.mark.parametrize("spelling", ["set", "./set", "sub/../set", "~/set"])
def test_every_spelling_of_a_path_is_one_target(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spelling: str
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    target = Target(spelling)
    assert target.path == tmp_path / "set"
    assert {target.work.parent, target.rejects.parent} == {tmp_path}


def path_of(descriptor: int) -> str:
    return str(Path(f"/proc/self/fd/{descriptor}").readlink())


def test_everything_is_flushed_before_the_exchange(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda fd: flushed.append(path_of(fd)))
    stage(target, "new")
    before = [str(target.staging / name) for name in ("train/data.arrow", MANIFEST, "train", "")]
    sync_tree(target.staging)
    assert {path.rstrip("/") for path in before} == set(flushed)
    flushed.clear()
    target.publish()
    assert flushed[-1] == str(target.path.parent)


# ---- what may be replaced


def test_a_free_name_an_empty_folder_and_an_old_set_may_be_replaced(target: Target) -> None:
    target.check(overwrite=False)
    target.path.mkdir()
    target.check(overwrite=False)
    write_set(target.path, "old")
    target.check(overwrite=False)


@pytest.mark.parametrize(
    "manifest", [None, '{"name": "a web app", "icons": []}', "[]", '{"digest": "x", "se', "\xff"]
)
def test_a_foreign_folder_is_refused_even_with_a_manifest_of_its_own(
    target: Target, manifest: str | None
) -> None:
    target.path.mkdir()
    (target.path / "thesis.tex").write_text("years of work")
    if manifest is not None:
        (target.path / MANIFEST).write_text(manifest, encoding="latin-1")
    assert not target.holds_set
    with pytest.raises(UsageError, match=r"not a set of ours; .*--overwrite"):
        target.check(overwrite=False)
    target.check(overwrite=True)
    assert names_in(target.path) == sorted(["thesis.tex"] + [MANIFEST] * (manifest is not None))


@pytest.mark.parametrize("output", ["/", "/proc"])
def test_a_mount_point_is_refused_before_any_work(output: str) -> None:
    # A volume in a container: the exchange would fail after the last row.
    with pytest.raises(UsageError, match="is a mount point"):
        Target(output).check(overwrite=True)


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_file_at_the_output_is_refused_always(target: Target, overwrite: bool) -> None:
    target.path.write_text("text")
    with pytest.raises(UsageError, match="is a file; expected a folder or a free name"):
        target.check(overwrite=overwrite)
    assert target.path.read_text() == "text"


@pytest.mark.parametrize(
    "name", ["set/a.jsonl", "set/deep/a.jsonl", "set", "set.rejects.jsonl", "link"]
)
def test_what_a_job_reads_may_not_lie_where_it_writes(target: Target, name: str) -> None:
    # With overwrite the input would be removed; rejects of the last run would become examples.
    target.path.mkdir()
    (target.path.parent / "link").symlink_to(target.path)
    with pytest.raises(UsageError, match="choose an output apart from the inputs"):
        target.check_sources([target.path.parent / "fine.jsonl", target.path.parent / name])


@pytest.mark.parametrize("name", ["a.jsonl", "set2/a.jsonl", "set.jsonl", "other.rejects.jsonl"])
def test_what_a_job_reads_may_lie_beside_what_it_writes(target: Target, name: str) -> None:
    target.check_sources([target.path.parent / name])


# ---- one job at a time

HOLD_LOCK = """
import sys
from pipeline.sets.place import Target
with Target(sys.argv[1]).locked():
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def hold_lock() -> Callable[[Target], subprocess.Popen[str]]:
    """Return a function that starts another process which holds a target until its stdin ends."""

    def start(target: Target) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", HOLD_LOCK, str(target.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=REPOSITORY,
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        return process

    return start


def test_a_second_job_is_refused_and_leaves_the_first_alone(
    target: Target, hold_lock: Callable[[Target], subprocess.Popen[str]]
) -> None:
    first = hold_lock(target)
    stage(target, "of the first")
    with pytest.raises(UsageError, match="another job is writing"), target.locked():
        pytest.fail("two jobs hold one target")
    assert content_of(target.staging) == "of the first"
    first.communicate("")
    assert first.returncode == 0
    with target.locked():
        pass


def test_a_lock_ends_with_a_killed_process(
    target: Target, hold_lock: Callable[[Target], subprocess.Popen[str]]
) -> None:
    first = hold_lock(target)
    first.kill()
    first.communicate()
    with target.locked():
        assert not target.staging.exists()


def test_workers_of_a_killed_job_end_with_it_and_do_not_keep_its_lock(target: Target) -> None:
    """A pool's workers wait for ever for work that a killed parent will not give them."""
    if not sys.platform.startswith("linux"):
        pytest.skip("prctl is Linux")
    code = (
        "import os, signal, sys\n"
        "from pipeline.sets.place import Target\n"
        "with Target(sys.argv[1]).locked():\n"
        "    worker = os.fork()\n"
        "    if worker == 0: print('asked', flush=True)\n"
        "    signal.pause()\n"
    )
    first = subprocess.Popen(
        [sys.executable, "-c", code, str(target.path)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
    )
    assert first.stdout is not None
    assert first.stdout.readline() == "asked\n"
    first.kill()
    first.wait()
    # The pipe ends once the worker, which has it too, has ended as well.
    ended, _, _ = select.select([first.stdout], [], [], 60)
    assert ended
    assert first.stdout.read() == ""
    with target.locked():
        pass


def test_a_worker_whose_job_ended_before_it_asked_to_be_told_ends_itself(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Ended(BaseException):
        pass

    def end(code: int) -> None:
        raise Ended(code)

    told: list[tuple[int, ...]] = []
    told_by = types.SimpleNamespace(prctl=lambda *words: told.append(words))
    monkeypatch.setattr(lock, "LIBC", told_by)
    monkeypatch.setattr(os, "_exit", end)
    lock.end_with_parent(os.getppid())
    assert told == [(1, signal.SIGKILL)]
    # An orphan belongs to the init of its namespace.
    monkeypatch.setattr(os, "getppid", lambda: 1)
    with pytest.raises(Ended):
        lock.end_with_parent(12345)


def test_a_worker_does_not_free_the_lock_of_its_job(target: Target) -> None:
    with target.locked():
        worker = os.fork()
        if worker == 0:
            os._exit(0)
        os.waitpid(worker, 0)
        done = subprocess.run(
            [sys.executable, "-c", HOLD_LOCK, str(target.path)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            cwd=REPOSITORY,
        )
        assert "another job is writing" in done.stderr


def test_targets_beside_each_other_do_not_wait_for_each_other(target: Target) -> None:
    other = Target(str(target.path.parent / "other"))
    with target.locked(), other.locked():
        assert names_in(target.path.parent) == [
            *(".other.lock", ".other.work", ".set.lock", ".set.work")
        ]
    assert names_in(target.path.parent) == []


def test_many_jobs_at_once_hold_the_target_one_after_the_other(
    target: Target, tmp_path: Path
) -> None:
    """Each process takes the lock whenever it can; inside, it must be alone."""
    code = (
        "import os, sys, time\n"
        "from pipeline.errors import UsageError\n"
        "from pipeline.sets.place import Target\n"
        "target, inside, turns = Target(sys.argv[1]), sys.argv[2], 0\n"
        "end = time.monotonic() + 20\n"
        "while turns < 20 and time.monotonic() < end:\n"
        "    try:\n"
        "        with target.locked():\n"
        "            os.mkdir(inside)\n"
        "            os.rmdir(inside)\n"
        "            turns += 1\n"
        "    except UsageError: pass\n"
        "print(turns)\n"
    )
    jobs = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(target.path), str(tmp_path / "inside")],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=REPOSITORY,
        )
        for _ in range(4)
    ]
    results = [job.communicate() for job in jobs]
    assert results == [("20\n", "")] * 4
    assert names_in(target.path.parent) == []


def test_an_error_of_the_job_frees_the_target(target: Target) -> None:
    with pytest.raises(KeyError), target.locked():
        raise KeyError
    with target.locked():
        pass


@pytest.mark.parametrize("shards", [False, True])
def test_what_an_error_left_unpublished_is_removed_and_shards_stay(
    target: Target, shards: bool
) -> None:
    write_set(target.path, "old")

    def stop() -> None:
        with target.locked():
            stage(target, "new")
            target.streams.mkdir(parents=True)
            (target.streams / "stream-1").write_text("a copy of standard input")
            if shards:
                target.open_work("job")
            raise KeyError

    with pytest.raises(KeyError):
        stop()
    assert content_of(target.path) == "old"
    assert names_in(target.path.parent) == [*([target.work.name] if shards else []), "set"]
    assert not shards or names_in(target.work) == ["job", MARK]


def test_missing_parents_are_made(tmp_path: Path) -> None:
    target = Target(str(tmp_path / "a" / "b" / "set"))
    with target.locked():
        stage(target, "new")
        target.publish()
    assert content_of(target.path) == "new"


def test_a_parent_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("text")
    with (
        pytest.raises(UsageError, match="expected a folder that can be written"),
        Target(str(tmp_path / "a" / "set")).locked(),
    ):
        pytest.fail("locked in a file")


@pytest.mark.parametrize(
    "error", [PermissionError(13, "Permission denied"), OSError(30, "Read-only")]
)
def test_a_parent_that_cannot_be_written_is_refused(
    target: Target, monkeypatch: pytest.MonkeyPatch, error: OSError
) -> None:
    # Simulated, because for root every folder can be written.
    def refuse(*_: object) -> int:
        raise error

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(UsageError, match=f"{error.strerror}; expected a folder"), target.locked():
        pytest.fail("locked without a file")


# ---- crashes

CRASH = """
import json, os, shutil, sys
from pathlib import Path
from pipeline.sets import place as publish
path, moment = sys.argv[1:]
target = publish.Target(path)
def crash(*args, **kwargs): os._exit(9)
def crash_after(function):
    def run(*args, **kwargs): function(*args, **kwargs); os._exit(9)
    return run
def crash_at(function, count):
    calls = iter(range(1000))
    def run(*args, **kwargs):
        if next(calls) == count: os._exit(9)
        return function(*args, **kwargs)
    return run
with target.locked():
    (target.staging / "train").mkdir(parents=True)
    (target.staging / "train" / "data.arrow").write_text("new")
    if moment == "while writing": os._exit(9)
    (target.staging / "manifest.json").write_text(json.dumps({"digest": "new", "seal": {}}))
    if moment == "before flushing": publish.sync_tree = crash
    if moment == "before exchanging": publish.exchange_paths = crash
    if moment == "after exchanging": publish.exchange_paths = crash_after(publish.exchange_paths)
    if moment == "while removing": shutil.rmtree = crash
    if moment.startswith("rename"):
        publish.exchange_paths = lambda *_: False
        Path.rename = crash_at(Path.rename, int(moment[-1]))
    if moment == "after rename 2":
        publish.exchange_paths = lambda *_: False
        shutil.rmtree = crash
    target.publish()
"""


@pytest.mark.parametrize(
    ("moment", "expected"),
    [
        ("while writing", "old"),
        ("before flushing", "old"),
        ("before exchanging", "old"),
        ("after exchanging", "new"),
        ("while removing", "new"),
        ("rename 0", "old"),
        ("rename 1", "old"),
        ("after rename 2", "new"),
    ],
)
@pytest.mark.parametrize("had_set", [True, False], ids=["over a set", "first set"])
def test_a_crash_at_any_moment_leaves_a_whole_set_after_the_next_start(
    target: Target, moment: str, expected: str, had_set: bool
) -> None:
    if had_set:
        write_set(target.path, "old")
    done = subprocess.run(
        [sys.executable, "-c", CRASH, str(target.path), moment], cwd=REPOSITORY, check=False
    )
    # Over nothing there is one rename and no exchange, so the later moments never come.
    assert done.returncode == 9 or (not had_set and done.returncode == 0)
    with target.locked():
        pass
    if had_set:
        assert content_of(target.path) == expected
    elif target.path.exists():
        assert content_of(target.path) == "new"
    assert names_in(target.path.parent) in (["set"], [])


def test_between_two_renames_the_old_set_comes_back_not_the_new(target: Target) -> None:
    stage(target, "new")
    write_set(target.work / "old", "old")
    with target.locked():
        assert content_of(target.path) == "old"
        assert not target.staging.exists()


def test_an_error_between_two_renames_leaves_the_old_set(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_set(target.path, "old")
    rename = Path.rename

    def fail(path: Path, to: Path) -> Path:
        if path == target.staging:
            raise OSError(5, "Input/output error")
        return rename(path, to)

    monkeypatch.setattr(publish, "exchange_paths", lambda *_: False)
    monkeypatch.setattr(Path, "rename", fail)
    with target.locked():
        stage(target, "new")
        with pytest.raises(OSError, match="Input/output error"):
            target.publish()
        target.clear()
    assert content_of(target.path) == "old"
    assert names_in(target.path.parent) == ["set"]


def test_what_stands_at_the_target_is_never_replaced_by_a_leftover(target: Target) -> None:
    write_set(target.path, "now")
    stage(target, "new")
    write_set(target.work / "old", "old")
    with target.locked():
        assert content_of(target.path) == "now"
    assert names_in(target.path.parent) == ["set"]


def test_clearing_twice_or_with_nothing_there_is_no_error(target: Target) -> None:
    target.clear()
    target.open_work("job")
    target.clear()
    target.clear()
    assert names_in(target.path.parent) == []


# ---- shards of a job that was stopped


def test_the_shards_of_a_job_stay_for_its_next_run_and_those_of_others_go(target: Target) -> None:
    with target.locked():
        (target.open_work("mine") / "00000.json").write_text("{}")
        (target.open_work("mine") / ".00001-9-train.arrow").write_text("half")
        target.streams.mkdir()
    with target.locked():
        assert names_in(target.work) == [MARK, "mine"]
        target.streams.mkdir()
        assert names_in(target.open_work("mine")) == ["00000.json"]
        assert names_in(target.work) == [MARK, "mine", "streams"]
        assert names_in(target.open_work("other")) == []
        assert names_in(target.work) == [MARK, "other", "streams"]
        target.clear()
    assert names_in(target.path.parent) == []


def test_clearing_what_was_not_published_leaves_the_shards(target: Target) -> None:
    (target.open_work("mine") / "00000.json").write_text("{}")
    stage(target, "half")
    target.clear_staging()
    assert names_in(target.path.parent) == [".set.work"]
    assert names_in(target.work / "mine") == ["00000.json"]


def test_clearing_leaves_the_rejects_and_the_target(target: Target) -> None:
    write_set(target.path, "now")
    target.rejects.write_text("{}\n")
    target.clear()
    assert names_in(target.path.parent) == ["set", "set.rejects.jsonl"]
    assert content_of(target.path) == "now"


# ---- what others called so


@pytest.mark.parametrize("name", [".set.old", ".set.staging"])
def test_folders_of_somebody_else_beside_the_target_stay(target: Target, name: str) -> None:
    write_set(target.path.parent / name, "theirs")
    with target.locked():
        stage(target, "new")
        target.publish()
    assert content_of(target.path.parent / name) == "theirs"
    assert content_of(target.path) == "new"


@pytest.mark.parametrize("kind", ["folder", "empty", "file", "link", "of another target"])
def test_a_work_folder_that_no_job_made_is_refused_and_stays(target: Target, kind: str) -> None:
    if kind in ("folder", "empty"):
        target.work.mkdir()
    elif kind == "file":
        target.work.write_text("mine")
    else:
        other = Target(str(target.path.parent / "other"))
        other.open_work("job")
        (other.work / "job" / "shard").write_text("x")
        (target.work.symlink_to if kind == "link" else other.work.rename)(
            other.work if kind == "link" else target.work
        )
    if kind == "folder":
        (target.work / "thesis.tex").write_text("years of work")
    before = sorted(target.path.parent.rglob("*"))
    words = r"\.set\.work is there, .* was not made by context-frozen .* move it away"
    with pytest.raises(UsageError, match=words):
        target.check(overwrite=True)
    with pytest.raises(UsageError, match=words), target.locked():
        pytest.fail("a folder of others is used")
    target.clear()
    assert sorted(target.path.parent.rglob("*")) == before


def test_a_lock_file_of_somebody_else_is_used_and_stays(target: Target) -> None:
    theirs = target.path.parent / ".set.lock"
    theirs.write_text("theirs")
    with target.locked():
        stage(target, "new")
        target.publish()
    assert theirs.read_text() == "theirs"
    assert names_in(target.path.parent) == [".set.lock", "set"]


@pytest.mark.parametrize("kind", ["folder", "link", "fifo"])
def test_what_is_no_file_where_the_lock_would_be_is_refused(target: Target, kind: str) -> None:
    path = target.path.parent / ".set.lock"
    {
        "folder": path.mkdir,
        "link": lambda: path.symlink_to("elsewhere"),
        "fifo": lambda: os.mkfifo(path),
    }[kind]()
    with pytest.raises(UsageError, match="is no file, and was not made"), target.locked():
        pytest.fail("locked")
    assert names_in(target.path.parent) == [".set.lock"]


@pytest.mark.parametrize("system", ["no nameless files", "no links"])
def test_a_lock_works_where_the_file_system_can_do_less(
    target: Target, monkeypatch: pytest.MonkeyPatch, system: str
) -> None:
    if system == "no nameless files":
        monkeypatch.delattr(os, "O_TMPFILE")
    else:

        def refuse(*_: object, **__: object) -> None:
            raise PermissionError(1, "Operation not permitted")

        monkeypatch.setattr(os, "link", refuse)
    with target.locked(), pytest.raises(UsageError, match="another job"), target.locked():
        pytest.fail("two jobs hold one target")
    assert names_in(target.path.parent) == []


@pytest.mark.parametrize(
    ("output", "words"),
    [
        ("https://host/set", "https is nothing that a set is written to"),
        ("http://host/set", "expected a folder"),
        ("hf://datasets/a/b", "hf is nothing"),
        ("file:///tmp/set", "file is nothing"),
        ("S3://bucket/set", "S3 is nothing"),
        ("s3:/bucket/set", "s3 is nothing"),
        ("~nobody-of-that-name/set", "expected the path of a folder"),
        ("a\0b", "expected the path of a folder"),
        ("a\udcffb", "expected the path of a folder"),
    ],
)
def test_what_is_no_path_of_a_folder_is_refused_in_one_line(output: str, words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        open_target(output)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["x" * 300, "x" * 240, "/".join(["x" * 100] * 60), "é" * 120])
def test_a_path_past_the_limit_is_refused_in_one_line(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match=r"output: .*(expected at most|too long)"):
        Target(str(tmp_path / name)).check(overwrite=False)


def test_a_name_that_leaves_room_for_its_neighbours_is_fine(tmp_path: Path) -> None:
    target = Target(str(tmp_path / ("x" * 225)))
    target.check(overwrite=False)
    with target.locked():
        stage(target, "new")
        target.publish()
    assert content_of(target.path) == "new"

"""Leftovers of killed jobs are known by their mark, found and removed; everything else stays."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.cli.command import main
from pipeline.errors import UsageError
from pipeline.job.clean import find_leftovers, remove_leftovers
from pipeline.sets.marks import MARK, RUNNING, Mark, make_marked_folder, mark_of, marked_as_running
from pipeline.sets.place import Target

KEY = "0123456789abcdef-01234567"


def dead_process() -> int:
    """Return the number of a process that has ended."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    return ended.pid


def leave(target: Path, **changes: str | int) -> Path:
    """Leave what a job leaves that is killed; ``changes`` are of the mark. Return its work folder."""
    work = target.parent / f".{target.name}.work"
    work.parent.mkdir(parents=True, exist_ok=True)
    make_marked_folder(work, target)
    mark = replace(Mark.of_this_process(target), **{"pid": dead_process(), **changes})
    (work / MARK).write_bytes(mark.to_bytes())
    (work / KEY).mkdir()
    (work / KEY / "00000.arrow").write_bytes(b"x" * 100)
    return work


@pytest.fixture
def killed(tmp_path: Path) -> Path:
    """A folder with the leftovers of two killed jobs, and with folders of their names of somebody else."""
    leave(tmp_path / "deep" / "set")
    leave(tmp_path / "other")
    for name in (".mine.work", ".mine.staging", ".mine.old", ".git", f".a.work/{KEY}"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "notes.txt").write_text("mine")
    (tmp_path / ".mine.lock").touch()
    (tmp_path / ".link.work").symlink_to(tmp_path / "deep" / ".set.work")
    return tmp_path


def strangers(folder: Path) -> list[str]:
    names = (path for path in folder.rglob("*") if path.is_file() or path.is_symlink())
    return sorted(path.relative_to(folder).as_posix() for path in names)


THEIRS = sorted(
    [
        *(f"{name}/notes.txt" for name in (".mine.work", ".mine.staging", ".mine.old", ".git")),
        *(f".a.work/{KEY}/notes.txt", ".mine.lock", ".link.work"),
    ]
)


def test_leftovers_are_removed_and_nothing_else(killed: Path) -> None:
    found = {each.path.relative_to(killed).as_posix() for each in find_leftovers(killed)}
    assert found == {".other.work", "deep/.set.work"}
    assert [each.used for each in remove_leftovers(killed)] == ["", ""]
    assert list(find_leftovers(killed)) == []
    assert strangers(killed) == THEIRS


def test_a_folder_whose_mark_is_of_another_target_or_of_no_job_stays(tmp_path: Path) -> None:
    work = leave(tmp_path / "set")
    work.rename(tmp_path / ".theirs.work")
    (tmp_path / ".b.work").mkdir()
    (tmp_path / ".b.work" / MARK).write_text('{"format": "something else"}')
    before = strangers(tmp_path)
    assert list(remove_leftovers(tmp_path)) == []
    assert strangers(tmp_path) == before


def test_what_a_running_job_uses_stays(killed: Path) -> None:
    with Target(str(killed / "deep" / "set")).locked():
        found = {each.path.name: each.used for each in remove_leftovers(killed)}
    uses = f"process {os.getpid()} of {platform.node()} uses it"
    assert found == {".other.work": "", ".set.work": uses, ".set.lock": uses}
    assert (killed / "deep" / ".set.work" / KEY / "00000.arrow").exists()


def test_the_shards_that_a_task_still_makes_for_a_killed_lead_stay(tmp_path: Path) -> None:
    work = leave(tmp_path / "set")
    with marked_as_running(work / KEY, work / KEY / "plan.json"):
        (left,) = remove_leftovers(tmp_path)
        assert "uses it" in left.used
    (left,) = remove_leftovers(tmp_path)
    assert not left.used
    assert not work.exists()


def test_what_another_machine_made_stays_unless_asked(tmp_path: Path) -> None:
    work = leave(tmp_path / "set", host="node7")
    (left,) = remove_leftovers(tmp_path)
    assert "of node7, another machine; --other_machines removes it too" in left.used
    assert main(["clean", str(tmp_path), "--other_machines"]) == 0
    assert not work.exists()


def test_a_task_of_another_machine_keeps_the_folder_of_a_killed_lead(tmp_path: Path) -> None:
    work = leave(tmp_path / "set")
    mark = replace(Mark.of_this_process(tmp_path), host="node7")
    (work / KEY / RUNNING).mkdir()
    (work / KEY / RUNNING / "node7-1.json").write_bytes(mark.to_bytes())
    (left,) = remove_leftovers(tmp_path)
    assert "another machine" in left.used
    assert work.exists()


@pytest.mark.parametrize("change", ["boot", "started"])
def test_a_later_process_of_the_same_number_is_not_the_job(tmp_path: Path, change: str) -> None:
    work = leave(tmp_path / "set", pid=os.getpid(), **{change: "earlier"})
    assert not mark_of(work).is_running
    (left,) = remove_leftovers(tmp_path)
    assert not left.used


def test_an_old_set_whose_target_is_gone_is_put_back(tmp_path: Path) -> None:
    work = leave(tmp_path / "set")
    (work / "old").mkdir()
    (work / "old" / "manifest.json").write_text(json.dumps({"digest": "d", "seal": {}}))
    list(remove_leftovers(tmp_path))
    assert (tmp_path / "set" / "manifest.json").exists()
    assert not work.exists()


def test_a_dry_run_removes_nothing(killed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["clean", str(killed), "--dry_run"]) == 0
    assert "2 leftovers, " in capsys.readouterr().out
    assert len(list(find_leftovers(killed))) == 2
    assert main(["clean", str(killed)]) == 0
    assert " bytes removed" in capsys.readouterr().out


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such folder"):
        list(find_leftovers(tmp_path / "none"))

"""Leftovers of killed jobs are found and removed; everything else stays."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.cli import main
from pipeline.errors import UsageError
from pipeline.job.clean import find_leftovers, remove_leftovers
from pipeline.job.publish import Target

SHARDS = "0123456789abcdef-01234567"


@pytest.fixture
def killed(tmp_path: Path) -> Path:
    """A folder with the leftovers of two killed jobs, and with hidden folders of somebody else."""
    shards = tmp_path / "deep" / ".set.work" / SHARDS
    shards.mkdir(parents=True)
    (shards / "00000-train.arrow").write_bytes(b"x" * 100)
    staging = tmp_path / ".other.staging"
    (staging / "train").mkdir(parents=True)
    (staging / "train" / "data-00000-of-00001.arrow").write_bytes(b"x" * 10)
    for name in (".mine.work", ".mine.staging", ".mine.old", ".git"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "notes.txt").write_text("mine")
    return tmp_path


def test_leftovers_are_found_with_their_sizes(killed: Path) -> None:
    found = {
        each.path.relative_to(killed).as_posix(): each.bytes for each in find_leftovers(killed)
    }
    assert found == {".other.staging": 10, "deep/.set.work": 100}


def test_leftovers_are_removed_and_nothing_else(killed: Path) -> None:
    assert len(remove_leftovers(killed)) == 2
    assert list(find_leftovers(killed)) == []
    left = {path.relative_to(killed).as_posix() for path in killed.rglob("*") if path.is_file()}
    assert left == {
        f"{name}/notes.txt" for name in (".mine.work", ".mine.staging", ".mine.old", ".git")
    }


def test_what_a_running_job_uses_stays(killed: Path) -> None:
    with Target(str(killed / "deep" / "set")).locked():
        assert [each.path.name for each in remove_leftovers(killed)] == [".other.staging"]
        assert (killed / "deep" / ".set.work" / SHARDS / "00000-train.arrow").exists()


def test_an_old_set_whose_target_is_gone_is_put_back(tmp_path: Path) -> None:
    old = tmp_path / ".set.old"
    old.mkdir()
    (old / "manifest.json").write_text(json.dumps({"digest": "d", "seal": {}}))
    remove_leftovers(tmp_path)
    assert (tmp_path / "set" / "manifest.json").exists()


def test_a_dry_run_removes_nothing(killed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["clean", str(killed), "--dry_run"]) == 0
    assert "2 folders, 110 bytes would be removed" in capsys.readouterr().out
    assert len(list(find_leftovers(killed))) == 2
    assert main(["clean", str(killed)]) == 0
    assert "2 folders, 110 bytes removed" in capsys.readouterr().out


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such folder"):
        list(find_leftovers(tmp_path / "none"))

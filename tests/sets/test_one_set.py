"""What is read of a set that is replaced meanwhile is of one set, or is read again."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from pipeline.errors import DataRefused
from pipeline.sets import load as saved
from pipeline.sets.load import load, verify
from pipeline.sets.one_set import read_one_set
from pipeline.sets.place import MANIFEST


@pytest.fixture
def replaced(quickstart_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A set, in whose place another of the same rows comes as soon as its manifest was read."""
    path, other = tmp_path / "set", tmp_path / "other"
    for folder in (path, other):
        shutil.copytree(quickstart_set, folder)
    # What is not as sealed in the set that is there at first.
    (path / "README.md").write_text("cut")
    read = saved.read_manifest

    def replace_after(folder: Path) -> object:
        manifest = read(folder)
        if other.exists():
            path.rename(tmp_path / "gone")
            other.rename(path)
            shutil.rmtree(tmp_path / "gone" / "train")
        return manifest

    monkeypatch.setattr(saved, "read_manifest", replace_after)
    return path


def test_verify_and_load_see_the_new_set_where_it_comes_while_they_read(replaced: Path) -> None:
    assert verify(replaced) == []
    assert len(load(replaced)["train"])


def test_an_error_of_a_set_that_went_is_not_raised(tmp_path: Path) -> None:
    calls: list[bytes] = []
    (tmp_path / MANIFEST).write_text("0")

    def read(folder: Path) -> bytes:
        calls.append((folder / MANIFEST).read_bytes())
        if len(calls) == 1:
            (folder / MANIFEST).write_text("1")
            raise FileNotFoundError("train/data.arrow")
        return calls[-1]

    assert read_one_set(tmp_path, read) == b"1"
    with pytest.raises(KeyError):
        read_one_set(tmp_path, lambda _: {}["of a set that stands"])


def test_a_set_that_never_stands_still_is_refused(tmp_path: Path) -> None:
    count = iter(range(100))

    def read(folder: Path) -> None:
        (folder / MANIFEST).write_text(str(next(count)))

    with pytest.raises(DataRefused, match="was replaced 10 times while it was read"):
        read_one_set(tmp_path, read)


@pytest.mark.timeout(20)
def test_a_manifest_that_is_a_pipe_or_endless_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / MANIFEST)
    assert read_one_set(tmp_path, lambda _: 1) == 1
    (tmp_path / MANIFEST).unlink()
    (tmp_path / MANIFEST).symlink_to("/dev/zero")
    assert read_one_set(tmp_path, lambda _: 1) == 1

"""Rows saved by `datasets`, and a manifest that names every file beside them by its hash."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import datasets
import pytest

from pipeline.sets import folder as saving
from pipeline.sets.folder import save_rows, seal_folder
from pipeline.sets.manifest import MANIFEST
from pipeline.types import row_features
from tests.conftest import read_train


def test_a_large_split_is_saved_in_files_of_about_one_size(
    tmp_path: Path, quickstart_set: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = read_train(quickstart_set)
    monkeypatch.setattr(saving, "FILE_BYTES", 2000)
    save_rows(datasets.DatasetDict({"train": rows, "validation": rows.select([0])}), tmp_path)
    files = sorted((tmp_path / "train").glob("*.arrow"))
    assert 1 < len(files) <= len(rows)
    assert len(list((tmp_path / "validation").glob("*.arrow"))) == 1
    saved = datasets.load_from_disk(str(tmp_path))
    assert saved["train"].to_list() == rows.to_list()
    assert saved["train"].features == row_features("full")


def test_a_split_of_no_rows_opens(tmp_path: Path, quickstart_set: Path) -> None:
    rows = read_train(quickstart_set).select([])
    save_rows(datasets.DatasetDict({"train": rows}), tmp_path)
    assert datasets.load_from_disk(str(tmp_path))["train"].features == row_features("full")


def test_saving_shows_no_bar_and_leaves_the_callers_bars_as_they_were(
    tmp_path: Path, quickstart_set: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    shown = not datasets.are_progress_bars_disabled()
    rows = read_train(quickstart_set)
    save_rows(datasets.DatasetDict({"train": rows}), tmp_path)
    assert capfd.readouterr().err == ""
    assert (not datasets.are_progress_bars_disabled()) == shown


def test_a_manifest_names_every_file_in_order_and_seals_itself(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    for name in ("train/b", "train/a", "README.md"):
        (tmp_path / name).write_text(name)
    sealed = seal_folder(tmp_path, {"digest": "caf\udce9"})
    assert list(sealed["files"]) == ["README.md", "train/a", "train/b"]
    for name, entry in sealed["files"].items():
        expected = hashlib.sha256(name.encode()).hexdigest()
        assert entry == {"bytes": len(name), "sha256": expected}
    assert json.loads((tmp_path / MANIFEST).read_bytes()) == sealed

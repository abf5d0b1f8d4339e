"""The one reader of manifests, and of the folder they stand in: strict in type, tolerant of what is newer."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import DataRefused, UnreadableFile, UsageError
from pipeline.rows.seal import SEAL_FORMAT
from pipeline.sets.damage import hash_manifest
from pipeline.sets.load import load, open_splits, restore_config, verify
from pipeline.sets.manifest import MANIFEST, read_manifest
from pipeline.sets.seal import hash_seal

Change = Callable[[dict[str, Any]], Any]


@pytest.fixture
def folder(quickstart_set: Path, tmp_path: Path) -> Path:
    """A copy of the quickstart's set."""
    return Path(shutil.copytree(quickstart_set, tmp_path / "set"))


def edit(path: Path, change: Change) -> None:
    """Change a JSON file; a manifest is sealed again, as somebody does who wants to be believed."""
    values = json.loads(path.read_bytes())
    change(values)
    if path.name == MANIFEST:
        values["sha256"] = hash_manifest(values)
    path.write_text(json.dumps(values), "utf-8")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: m.update(seal=7), "seal: found 7; expected an object"),
        (lambda m: m.update(files=[1]), r"files: found \[1\]; expected an object"),
        (
            lambda m: m["files"].update({"../x": {}}),
            "files: found ../x; expected the name of a file",
        ),
        (lambda m: m["files"].update({"/etc/passwd": {}}), "files: found /etc/passwd"),
        (lambda m: m["files"]["README.md"].update(bytes=-1), "expected a whole number from 0"),
        (lambda m: m.update(digest="\x1b[31m"), r"digest: found \\x1b\[31m; expected 64 hexa"),
        (lambda m: m["counts"].update(rows=True), "counts.rows: found True"),
        (lambda m: m["counts"].update(rows=1), "rows_by_split: 68 rows in all, counts.rows is 1"),
        (lambda m: m["counts"].update(rows_by_split={"..": 68}), "expected the name of a split"),
        (lambda m: m["counts"]["rows_by_split"].update(train=-5), "found -5"),
        (lambda m: m["counts"].pop("by_code"), "counts.by_code: missing"),
        (lambda m: m["config"].update(tokenizer=["a"]), "config.tokenizer: found .*expected text"),
        (lambda m: m["seal"]["settings"].update(columns="x"), "expected full or train"),
        (lambda m: m["seal"].update(format=SEAL_FORMAT + 1), "newer context-frozen.*upgrade it"),
        (lambda m: m["seal"].update(format="1"), "seal.format: found 1; expected a whole number"),
        (lambda m: m.update(left_out=None), "left_out: found None; expected an object"),
    ],
)
def test_a_manifest_that_none_can_be_is_refused_with_its_place(
    folder: Path, change: Change, words: str
) -> None:
    edit(folder / MANIFEST, change)
    with pytest.raises(DataRefused, match=rf"{MANIFEST}: .*{words}.*prepare or pull the set again"):
        read_manifest(folder)
    (finding,) = verify(folder)
    assert "\x1b" not in finding


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"[" * 100_000, "nested deeper than 100"),
        (b'{"a":' * 101 + b"1" + b"}" * 101, "nested deeper than 100"),
        (b'{"a": ' + b"9" * 5000 + b"}", "4300"),
        (b"\xff\xfe{}", "expected JSON"),
        (b'{"a": "\\ud800"}', "a lone surrogate"),
        (b"7", "a JSON int; expected a JSON object"),
        (b"{}", "lacks config, counts, digest, files, seal"),
    ],
)
def test_a_manifest_that_is_no_json_within_bounds_is_no_set(
    tmp_path: Path, content: bytes, words: str
) -> None:
    (tmp_path / MANIFEST).write_bytes(content)
    with pytest.raises(UsageError, match=words):
        read_manifest(tmp_path)


def test_a_manifest_that_is_a_pipe_or_a_link_to_outside_is_not_read(folder: Path) -> None:
    (folder / MANIFEST).rename(folder.parent / MANIFEST)
    os.mkfifo(folder / MANIFEST)
    with pytest.raises(UsageError, match="no regular file"):
        read_manifest(folder)
    (folder / MANIFEST).unlink()
    (folder / MANIFEST).symlink_to(folder.parent / MANIFEST)
    with pytest.raises(UsageError, match="a link to outside of the set"):
        read_manifest(folder)


def test_a_manifest_of_300_mb_is_not_read_at_all(folder: Path) -> None:
    os.truncate(folder / MANIFEST, 300_000_000)
    with pytest.raises(UsageError, match="300000000 bytes; expected JSON of at most"):
        read_manifest(folder)


def test_keys_that_only_a_newer_version_knows_stop_no_reader(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def add(manifest: dict[str, Any]) -> None:
        manifest["new"] = {"x": 1}
        manifest["config"]["a_new_setting"] = manifest["counts"]["new"] = 3
        manifest["seal"]["new"] = manifest["seal"]["settings"]["a_new_setting"] = 3
        manifest["seal"]["key"] = hash_seal(manifest["seal"])

    edit(folder / MANIFEST, add)
    assert verify(folder) == []
    assert len(load(folder)["train"]) == 68
    assert restore_config(read_manifest(folder)).max_len == 768
    assert "a_new_setting" in caplog.text


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("dataset_dict.json", lambda v: v.update(splits=[".."]), "expected names of splits"),
        ("dataset_dict.json", lambda v: v.update(splits=7), "expected names of splits"),
        (
            "train/state.json",
            lambda v: v.update(_data_files=[{"filename": "../../x.arrow"}]),
            "expected names of Arrow files in this folder",
        ),
        ("train/state.json", lambda v: v.update(_data_files=7), "expected the files of rows"),
        (
            "train/state.json",
            lambda v: v.update(_format_type="nonsense"),
            "datasets cannot open it",
        ),
        (
            "train/dataset_info.json",
            lambda v: v["features"].update(input_ids={"_type": "Image"}),
            "expected columns of values and lists of them",
        ),
    ],
)
def test_a_folder_that_points_out_of_itself_is_not_opened(
    folder: Path, name: str, change: Change, words: str
) -> None:
    edit(folder / name, change)
    with pytest.raises((DataRefused, UnreadableFile), match=words):
        open_splits(folder)


def test_rows_that_are_a_link_to_outside_are_neither_opened_nor_measured(folder: Path) -> None:
    # Beside it lie what `Dataset.map` of another test has made of it.
    (rows,) = (folder / "train").glob("data-*.arrow")
    rows.rename(folder.parent / "rows.arrow")
    rows.symlink_to(folder.parent / "rows.arrow")
    with pytest.raises(DataRefused, match="a link to outside of the set"):
        open_splits(folder)
    assert any("a link to outside of the set" in each for each in verify(folder))

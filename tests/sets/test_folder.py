"""The folder of a set is what `datasets` itself would have saved, and its rows are not copied."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.sets.arrow_file import RowFile, row_schema
from pipeline.sets.folder import (
    PlacedFile,
    find_row_files,
    join_files,
    link_or_copy,
    write_splits,
)
from pipeline.types import row_features

MakeFile = Callable[..., PlacedFile]


def rows_of(ids: list[str]) -> pa.Table:
    """Return rows whose every column depends on their id."""
    rows = [
        {
            "input_ids": list(range(number + 2)),
            "labels": [-100, *range(1, number + 2)],
            "attention_mask": [1] * (number + 2),
            "context_len": 1,
            "total_len": number + 2,
            "context_hash": f"{number:032x}",
            "dropped_tokens": number,
            "dropped_messages": 0,
            "flags": ["truncated"] * (number % 2),
            "id": id_,
            "conversation": id_,
            "source": f"in.jsonl:{number}",
            "decision_idx": -1,
            "preference": "",
            "reason": "null",
            "memories": ["1e5"] * (number % 3),
            "weight": 0.5,
        }
        for id_, number in ((id_, ord(id_[-1]) % 10) for id_ in ids)
    ]
    return pa.Table.from_pylist(rows, schema=row_schema("full"))


@pytest.fixture
def make_file(tmp_path: Path) -> MakeFile:
    """Return a function that writes a file of rows with given ids, in the folder of shards."""
    folder = tmp_path / "shards"
    folder.mkdir()

    def make(*ids: str, columns: str = "full", rows_per_batch: int = 1) -> PlacedFile:
        path = folder / f"{len(list(folder.iterdir())):05d}.arrow"
        table = rows_of(list(ids))
        with RowFile(path, row_schema(columns)) as file:
            for start in range(0, table.num_rows, rows_per_batch):
                file.write(table.slice(start, rows_per_batch))
        return PlacedFile(path, file.written())

    return make


# ---- what datasets sees


def test_it_opens_from_disk_and_by_load_dataset(make_file: MakeFile, tmp_path: Path) -> None:
    splits = {"train": [make_file("a", "b"), make_file("c")], "validation": [make_file("d")]}
    write_splits(tmp_path / "set", splits, "full")
    from_disk = datasets.load_from_disk(str(tmp_path / "set"))
    loaded = datasets.load_dataset(str(tmp_path / "set"), cache_dir=str(tmp_path / "cache"))
    for opened in (from_disk, loaded):
        assert list(opened) == ["train", "validation"]
        assert opened["train"].features == row_features("full")
        assert opened["train"]["id"][:] == ["a", "b", "c"]
        assert opened["validation"]["id"][:] == ["d"]


@pytest.mark.parametrize("columns", ["full", "train"])
def test_it_is_what_save_to_disk_would_have_written(
    make_file: MakeFile, tmp_path: Path, columns: Any
) -> None:
    ids = [f"e{number}" for number in range(7)]
    files = [make_file(*ids[:4], columns=columns), make_file(*ids[4:], columns=columns)]
    write_splits(tmp_path / "ours", {"train": files}, columns)
    table = rows_of(ids).select(list(row_features(columns)))
    rows = datasets.Dataset(
        table.cast(row_features(columns).arrow_schema), split=datasets.Split.TRAIN
    )
    datasets.DatasetDict({"train": rows}).save_to_disk(
        str(tmp_path / "theirs"), num_shards={"train": 2}
    )
    ours, theirs = (
        datasets.load_from_disk(str(tmp_path / name))["train"] for name in ("ours", "theirs")
    )
    assert ours.features == theirs.features
    assert ours.data.schema == theirs.data.schema
    assert ours.data.table.equals(theirs.data.table)
    names = [
        sorted(
            path.relative_to(tmp_path / name).as_posix() for path in (tmp_path / name).rglob("*")
        )
        for name in ("ours", "theirs")
    ]
    assert names[0] == names[1]
    for name in ("dataset_dict.json", "train/state.json"):
        made, expected = (
            json.loads((tmp_path / which / name).read_text("utf-8")) for which in ("ours", "theirs")
        )
        assert made.keys() == expected.keys()
        for key in made.keys() - {"_fingerprint"}:
            assert made[key] == expected[key]


def test_what_datasets_can_do_with_a_set_it_can_do_with_ours(
    make_file: MakeFile, tmp_path: Path
) -> None:
    write_splits(tmp_path / "set", {"train": [make_file("a", "b"), make_file("c")]}, "full")
    rows = datasets.load_from_disk(str(tmp_path / "set"))["train"]
    mapped = rows.map(lambda row: {"id": row["id"] * 2}, num_proc=1, load_from_cache_file=False)
    assert mapped["id"][:] == ["aa", "bb", "cc"]
    assert rows.shuffle(seed=1).select([0]).with_format("torch")[0]["input_ids"].ndim == 1
    rows.select([2, 0]).save_to_disk(str(tmp_path / "again"))
    assert datasets.load_from_disk(str(tmp_path / "again"))["id"][:] == ["c", "a"]


@pytest.mark.parametrize("columns", ["full", "train"])
def test_a_split_of_no_rows_opens(make_file: MakeFile, tmp_path: Path, columns: Any) -> None:
    splits = {
        "train": [make_file("a", columns=columns)],
        "validation": [make_file(columns=columns)],
    }
    placed = write_splits(tmp_path / "set", splits, columns)
    opened = datasets.load_from_disk(str(tmp_path / "set"))
    assert {name: len(rows) for name, rows in opened.items()} == {"train": 1, "validation": 0}
    assert opened["validation"].features == row_features(columns)
    assert placed["validation/data-00000-of-00001.arrow"].rows == 0
    assert {path.name for path in (tmp_path / "set" / "validation").iterdir()} == {
        "data-00000-of-00001.arrow",
        "dataset_info.json",
        "state.json",
    }


@given(st.lists(st.integers(0, 3), max_size=6))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=20)
def test_rows_of_any_files_follow_each_other(
    make_file: MakeFile, tmp_path: Path, sizes: list[int]
) -> None:
    ids = iter(f"e{number}" for number in range(100))
    files = [make_file(*[next(ids) for _ in range(size)]) for size in sizes]
    folder = tmp_path / f"set{len(list(tmp_path.iterdir()))}"
    placed = write_splits(folder, {"train": files}, "full")
    rows = datasets.load_from_disk(str(folder))["train"]
    assert rows["id"][:] == [f"e{number}" for number in range(sum(sizes))]
    assert len(placed) == max(1, sum(size > 0 for size in sizes))
    assert sum(file.rows for file in placed.values()) == len(rows)


# ---- what is written


def test_the_fingerprint_is_that_of_the_rows(make_file: MakeFile, tmp_path: Path) -> None:
    prints: list[str] = []
    for name, ids in (("one", "ab"), ("two", "ab"), ("three", "ac")):
        write_splits(tmp_path / name, {"train": [make_file(*ids)]}, "full")
        prints.append(datasets.load_from_disk(str(tmp_path / name))["train"]._fingerprint)
    assert prints[0] == prints[1] != prints[2]


def test_files_are_links_to_those_of_the_shards(make_file: MakeFile, tmp_path: Path) -> None:
    files = [make_file("a"), make_file("b")]
    placed = write_splits(tmp_path / "set", {"train": files}, "full")
    assert list(placed) == ["train/data-00000-of-00002.arrow", "train/data-00001-of-00002.arrow"]
    for each, (name, file) in zip(files, placed.items(), strict=True):
        assert (tmp_path / "set" / name).samefile(each.path)
        assert file == replace(each.file, name=Path(name).name)
        each.path.unlink()
    assert datasets.load_from_disk(str(tmp_path / "set"))["train"]["id"][:] == ["a", "b"]


@pytest.mark.parametrize("code", [errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP])
def test_a_file_system_without_links_gets_copies(
    make_file: MakeFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "link", refuse)
    file = make_file("a")
    write_splits(tmp_path / "set", {"train": [file]}, "full")
    copy = tmp_path / "set" / "train" / "data-00000-of-00001.arrow"
    assert not copy.samefile(file.path)
    assert copy.read_bytes() == file.path.read_bytes()


def test_a_link_never_takes_the_place_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "one").write_text("one")
    (tmp_path / "two").write_text("two")
    with pytest.raises(FileExistsError):
        link_or_copy(tmp_path / "one", tmp_path / "two")
    assert (tmp_path / "two").read_text() == "two"


def test_joined_files_are_their_bytes_one_after_the_other(tmp_path: Path) -> None:
    parts = [tmp_path / name for name in ("b", "a", "c")]
    for part, data in zip(parts, (b"\xff\n", b"", b"x" * 3_000_000), strict=True):
        part.write_bytes(data)
    join_files(parts, tmp_path / "all")
    assert (tmp_path / "all").read_bytes() == b"\xff\n" + b"x" * 3_000_000
    join_files([], tmp_path / "none")
    assert (tmp_path / "none").read_bytes() == b""


# ---- reading it again


def test_the_files_of_a_split_come_back_in_order(make_file: MakeFile, tmp_path: Path) -> None:
    files = [make_file("a", "b"), make_file("c", "d", "e", rows_per_batch=2)]
    placed = write_splits(tmp_path / "set", {"train": files}, "full")
    sealed = {name: file.to_entry() for name, file in placed.items()}
    found = find_row_files(tmp_path / "set", "train", sealed)
    assert [each.file for each in found] == list(placed.values())
    assert [each.path for each in found] == [tmp_path / "set" / name for name in placed]

"""The shape of each input file, told by its first line that shows one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import UnreadableFile, UsageError
from pipeline.formats import FORMATS
from pipeline.source.files import SourceFile
from pipeline.source.line_formats import name_formats
from tests.conftest import write_lines

OWN = {"id": "a", "context": "2+2=", "continuation": "4"}
ALPACA = {"instruction": "Add.", "input": "2 2", "output": "4"}
SHAREGPT = {"conversations": [{"from": "human", "value": "2+2"}, {"from": "gpt", "value": "4"}]}
SHAPELESS = {"foo": 1}
BOTH = {**ALPACA, **SHAREGPT}


FileMaker = Callable[..., list[SourceFile]]


@pytest.fixture
def make_files(tmp_path: Path) -> FileMaker:
    """Return a function that writes files, given as their rows by name."""

    def make(**files: list[Any]) -> list[SourceFile]:
        return [
            SourceFile(write_lines(tmp_path / name, rows), name) for name, rows in files.items()
        ]

    return make


def test_each_file_has_its_own_shape(make_files: FileMaker) -> None:
    files = make_files(a=[OWN, OWN], b=[ALPACA], c=[SHAREGPT])
    assert name_formats(files, "auto") == {"a": "own", "b": "alpaca", "c": "sharegpt"}


def test_a_table_shows_its_shape_by_its_rows(make_files: FileMaker, tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist([ALPACA]), tmp_path / "t.parquet")
    files = [*make_files(a=[OWN]), SourceFile(tmp_path / "t.parquet", "t.parquet")]
    assert name_formats(files, "auto") == {"a": "own", "t.parquet": "alpaca"}


def test_lines_that_show_nothing_are_passed_over(make_files: FileMaker) -> None:
    files = make_files(a=["{broken", "[1]", SHAPELESS, "", BOTH, ALPACA, SHAREGPT])
    assert name_formats(files, "auto") == {"a": "alpaca"}


def test_a_file_that_shows_nothing_is_read_as_ours(make_files: FileMaker) -> None:
    files = make_files(a=[SHAPELESS], b=[ALPACA], c=[])
    assert name_formats(files, "auto") == {"a": "own", "b": "alpaca", "c": "own"}


@pytest.mark.parametrize(("before", "expected"), [(99, "alpaca"), (100, "own")])
def test_a_hundred_lines_are_looked_at(make_files: FileMaker, before: int, expected: str) -> None:
    files = make_files(a=[*[SHAPELESS] * before, ALPACA])
    assert name_formats(files, "auto") == {"a": expected}


def test_what_comes_after_the_lines_looked_at_is_not_read(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a", [OWN])
    path.write_bytes(path.read_bytes() * 3 + b"\x1f\x8b\xff" * 2**20)
    assert name_formats([SourceFile(path, "a")], "auto") == {"a": "own"}


def test_a_file_that_is_no_jsonl_stops_the_job_here_already(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a", ["[", "1", "]"])
    with pytest.raises(UnreadableFile, match="a:1: unreadable_file: the file is a JSON array"):
        name_formats([SourceFile(path, "a")], "auto")


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_a_name_that_is_given_holds_for_all_files(make_files: FileMaker, name: str) -> None:
    assert name_formats(make_files(a=[OWN], b=[ALPACA]), name) == {"a": name, "b": name}


def test_an_unknown_name_is_wrong_usage(make_files: FileMaker) -> None:
    with pytest.raises(UsageError, match="format: found 'alpacca'; expected auto or one of own"):
        name_formats(make_files(a=[ALPACA]), "alpacca")

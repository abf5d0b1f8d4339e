"""The shape of each input file, told by its first line that shows one."""

from __future__ import annotations

import json
from typing import Any

import datasets
import pytest

from pipeline.errors import UsageError
from pipeline.formats import FORMATS
from pipeline.source.line_formats import name_formats

OWN = {"id": "a", "context": "2+2=", "continuation": "4"}
ALPACA = {"instruction": "Add.", "input": "2 2", "output": "4"}
SHAREGPT = {"conversations": [{"from": "human", "value": "2+2"}, {"from": "gpt", "value": "4"}]}
SHAPELESS = {"foo": 1}
BOTH = {**ALPACA, **SHAREGPT}


def lines_of(**files: list[Any]) -> datasets.Dataset:
    """Return the lines of files, in order, as the reader gives them."""
    return datasets.Dataset.from_list(
        [
            {"file": file, "line": number, "text": row if isinstance(row, str) else json.dumps(row)}
            for file, rows in files.items()
            for number, row in enumerate(rows, 1)
        ]
    )


def test_each_file_has_its_own_shape() -> None:
    lines = lines_of(a=[OWN, OWN], b=[ALPACA], c=[SHAREGPT])
    assert name_formats(lines, "auto") == {"a": "own", "b": "alpaca", "c": "sharegpt"}


def test_lines_that_show_nothing_are_passed_over() -> None:
    lines = lines_of(a=["{broken", "[1]", SHAPELESS, BOTH, ALPACA, SHAREGPT])
    assert name_formats(lines, "auto") == {"a": "alpaca"}


def test_a_file_that_shows_nothing_is_read_as_ours() -> None:
    assert name_formats(lines_of(a=[SHAPELESS], b=[ALPACA]), "auto") == {"a": "own", "b": "alpaca"}


def test_the_next_files_lines_do_not_tell_this_ones_shape() -> None:
    assert name_formats(lines_of(a=[SHAPELESS], b=[SHAREGPT]), "auto")["a"] == "own"


@pytest.mark.parametrize(("before", "expected"), [(99, "alpaca"), (100, "own")])
def test_a_hundred_lines_are_looked_at(before: int, expected: str) -> None:
    lines = lines_of(a=[*[SHAPELESS] * before, ALPACA])
    assert name_formats(lines, "auto") == {"a": expected}


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_a_name_that_is_given_holds_for_all_files(name: str) -> None:
    assert name_formats(lines_of(a=[OWN], b=[ALPACA]), name) == {"a": name, "b": name}


def test_an_unknown_name_is_wrong_usage() -> None:
    with pytest.raises(UsageError, match="format: found 'alpacca'; expected auto or one of own"):
        name_formats(lines_of(a=[ALPACA]), "alpacca")

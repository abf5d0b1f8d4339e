"""Which rows are looked at: what is asked for, and what tells much of a set."""

from __future__ import annotations

from typing import Any

import datasets
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import UsageError
from pipeline.sets.row_choice import RowChoice, choose_rows, choose_telling_rows
from pipeline.types import FLAGS, ROW_SCHEMA

ROWS = [
    ("a", 30, 0, []),
    ("b", 10, 5, ["truncated"]),
    ("c", 50, 0, ["no_bos"]),
    ("b", 20, 9, ["truncated", "raw_cut"]),
    ("d", 40, 0, []),
]


def table_of(rows: list[tuple[str, int, int, list[str]]]) -> pa.Table:
    names = ("id", "total_len", "dropped_tokens", "flags")
    schema = pa.schema([ROW_SCHEMA.field(name) for name in names])
    return pa.table([list(column) for column in zip(*rows, strict=True)], schema=schema)


def chosen(**choice: Any) -> list[int]:
    return list(choose_rows(datasets.Dataset(table_of(ROWS)), "out/set", RowChoice(**choice)))


def test_the_first_three_rows_are_shown_by_default() -> None:
    assert chosen() == [0, 1, 2]
    assert chosen(rows=1) == [0]
    assert chosen(rows=99) == [0, 1, 2, 3, 4]
    assert chosen(rows=0) == []


def test_a_row_is_chosen_by_number_and_all_of_an_id() -> None:
    assert chosen(row=4) == [4]
    assert chosen(id="b") == [1, 3]
    assert chosen(id="b", rows=1) == [1]


def test_rows_are_chosen_by_flag() -> None:
    assert chosen(flag="truncated") == [1, 3]
    assert chosen(flag="raw_cut") == [3]


def test_rows_are_picked_by_length_and_by_what_was_cut() -> None:
    assert chosen(pick="longest", rows=2) == [2, 4]
    assert chosen(pick="shortest", rows=2) == [1, 3]
    assert chosen(pick="most_truncated", rows=2) == [3, 1]
    assert chosen(pick="longest", flag="truncated") == [3, 1]
    assert chosen(pick="shortest", id="b") == [1, 3]


def test_random_rows_are_those_of_their_seed() -> None:
    assert sorted(chosen(pick="random", rows=5)) == [0, 1, 2, 3, 4]
    assert chosen(pick="random", rows=5) == chosen(pick="random", rows=5)
    assert len({tuple(chosen(pick="random", rows=5, seed=seed)) for seed in range(20)}) > 5


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        ({"row": 5}, "no row 5; expected 0 to 4"),
        ({"row": -1}, "no row -1"),
        ({"id": "nobody"}, "no row with id 'nobody'"),
        ({"flag": "double_bos"}, "no row has the flag double_bos"),
        ({"flag": "truncate"}, "unknown flag 'truncate'; did you mean 'truncated'"),
        ({"row": 1, "pick": "longest"}, "chooses one row, so pick cannot"),
        ({"row": 1, "id": "a"}, "so id cannot"),
        ({"rows": -1}, "rows: found -1; expected a number of rows from 0"),
    ],
    ids=str,
)
def test_a_choice_that_means_nothing_is_wrong_usage(choice: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        chosen(**choice)


def test_most_truncated_of_a_set_without_such_rows_is_wrong_usage() -> None:
    rows = datasets.Dataset(table_of(ROWS[:1]))
    with pytest.raises(UsageError, match="no row was shortened"):
        choose_rows(rows, "out/set", RowChoice(pick="most_truncated"))


@pytest.mark.parametrize("choice", [{"id": "a"}, {"flag": "no_bos"}])
def test_a_set_for_training_keeps_no_ids_and_flags(choice: dict[str, Any]) -> None:
    rows = datasets.Dataset(table_of(ROWS).select(["total_len", "dropped_tokens"]))
    with pytest.raises(UsageError, match="columns: train keeps no"):
        choose_rows(rows, "out/set", RowChoice(**choice))
    assert choose_rows(rows, "out/set", RowChoice(pick="longest", rows=1)) == [2]


_ROWS = st.lists(
    st.tuples(
        st.just("a"),
        st.integers(1, 99),
        st.integers(0, 3),
        st.lists(st.sampled_from(sorted(FLAGS)), unique=True, max_size=2),
    ),
    max_size=60,
)


@given(_ROWS, st.integers(10, 40))
def test_telling_rows_are_some_of_every_kind(rows: list[Any], most: int) -> None:
    if not rows:
        return
    told = choose_telling_rows(table_of(rows), most)
    assert list(told) == sorted(set(told))
    assert len(told) == min(most, len(rows))
    assert all(0 <= number < len(rows) for number in told)
    longest = max(length for _, length, _, _ in rows)
    assert any(rows[number][1] == longest for number in told)
    cut = [dropped for _, _, dropped, _ in rows]
    if max(cut):
        assert any(rows[number][2] == max(cut) for number in told)


def test_telling_rows_are_spread_over_the_whole_set() -> None:
    rows = [("a", 5, 0, []) for _ in range(1000)]
    told = choose_telling_rows(table_of(rows), 30)
    spread = [number for number, why in told.items() if why == "evenly spread"]
    assert len(spread) >= 20
    tenths = {number // 100 for number in spread}
    assert tenths == set(range(10))


def test_the_reason_of_each_choice_is_told() -> None:
    rows = [*ROWS, ("e", 5, 0, []), *[("f", 25, 0, ["no_bos"])] * 90]
    told = choose_telling_rows(table_of(rows), 20)
    assert told[2] == "among the longest"
    assert told[5] == "among the shortest"
    assert told[1] == told[3] == "most shortened"
    assert told[6] == "flag no_bos"

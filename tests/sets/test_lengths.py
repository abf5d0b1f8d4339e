"""What a saved set would cost under each max_len, and how the figures are told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.cli.command import main
from pipeline.errors import UsageError
from pipeline.sets.lengths import LengthSummary, MaxLenCost, measure_set, measure_table


def table_of(rows: list[tuple[int, int, int]], **columns: list[Any]) -> pa.Table:
    """Return rows given as context_len, continuation length and dropped_tokens."""
    return pa.table(
        {
            "context_len": pa.array([context for context, _, _ in rows], pa.int32()),
            "total_len": pa.array([context + answer for context, answer, _ in rows], pa.int32()),
            "dropped_tokens": pa.array([dropped for *_, dropped in rows], pa.int32()),
            **columns,
        }
    )


def test_rows_are_shortened_or_refused_at_each_max_len() -> None:
    rows = table_of([(10, 5, 0), (100, 5, 0), (1, 99, 0)])
    report = measure_table(rows, [200, 100, 50, 15])
    assert report.costs == (
        MaxLenCost(15, shortened=1, refused=1, lost_tokens=90),
        MaxLenCost(50, shortened=1, refused=1, lost_tokens=55),
        # One token of context beside 99 of continuation fits exactly.
        MaxLenCost(100, shortened=1, refused=0, lost_tokens=5),
        MaxLenCost(200, shortened=0, refused=0, lost_tokens=0),
    )


def test_a_row_that_was_shortened_counts_with_the_length_it_had() -> None:
    report = measure_table(table_of([(40, 10, 50), (20, 10, 0)]), [60])
    assert report.already_shortened == 1
    assert report.total == LengthSummary(30, 30, 30, 100)
    assert report.context == LengthSummary(20, 20, 20, 90)
    assert report.continuation == LengthSummary(10, 10, 10, 10)
    assert report.costs == (MaxLenCost(60, shortened=1, refused=0, lost_tokens=40),)


@given(
    st.lists(st.tuples(st.integers(1, 50), st.integers(1, 50), st.integers(0, 50)), max_size=20),
    st.integers(2, 120),
)
def test_no_row_is_lost_to_the_count(rows: list[tuple[int, int, int]], max_len: int) -> None:
    (cost,) = measure_table(table_of(rows), [max_len]).costs
    whole = [(context + dropped, answer) for context, answer, dropped in rows]
    fitting = sum(context + answer <= max_len for context, answer in whole)
    assert cost.refused == sum(answer >= max_len for _, answer in whole)
    assert cost.shortened == len(rows) - fitting - cost.refused
    assert cost.lost_tokens == sum(
        max(0, context + answer - max_len) for context, answer in whole if answer < max_len
    )


def test_shared_contexts_and_flags_are_counted() -> None:
    flags = [["truncated"], [], ["truncated", "no_bos"], []]
    rows = table_of([(3, 1, 0)] * 4, context_hash=["a", "b", "a", "c"], flags=flags)
    report = measure_table(rows, [8])
    assert (report.contexts, report.shared_contexts) == (3, 1)
    assert report.rows_per_context == pytest.approx(4 / 3)
    assert report.flags == {"no_bos": 1, "truncated": 2}


def test_columns_for_training_have_no_contexts_to_count() -> None:
    report = measure_table(table_of([(3, 1, 0)]), [8])
    assert (report.contexts, report.shared_contexts, report.rows_per_context) == (None, None, None)


def test_a_set_of_no_rows_has_a_report() -> None:
    report = measure_table(
        table_of([], context_hash=[], flags=pa.array([], pa.list_(pa.string()))), [8]
    )
    assert (report.rows, report.context, report.contexts) == (0, None, 0)
    assert report.costs == (MaxLenCost(8, 0, 0, 0),)


def test_the_figures_are_those_of_the_manifest(quickstart_set: Path) -> None:
    counts = json.loads((quickstart_set / "manifest.json").read_text("utf-8"))["counts"]
    report = measure_set(quickstart_set, [2, 1_000_000])
    assert report.rows == counts["rows"]
    assert report.flags == counts["by_flag"]
    assert report.already_shortened == counts["rows_shortened"]
    assert report.costs[1] == MaxLenCost(1_000_000, 0, 0, 0)


def test_a_max_len_without_room_for_a_row_is_wrong_usage(quickstart_set: Path) -> None:
    with pytest.raises(UsageError, match="max_lens: found 1; expected at least 2"):
        measure_set(quickstart_set, [1024, 1])


def test_no_set_is_wrong_usage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path)]) == 2
    assert "manifest.json" in capsys.readouterr().err


def test_the_command_prints_tables(
    quickstart_set: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(quickstart_set), "--max_lens", "64", "4096"]) == 0
    shown = capsys.readouterr().out
    for words in ("continuation", "median", "max_len", "4096", "rows per context"):
        assert words in shown
    assert "8192" not in shown


def test_json_holds_the_same_figures(
    quickstart_set: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(quickstart_set), "--json", "--max_lens", "64", "128"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures.pop("set") == str(quickstart_set)
    report = measure_set(quickstart_set, [64, 128]).to_dict()
    assert figures == json.loads(json.dumps(report))

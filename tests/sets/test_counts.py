"""What is counted of rows can be added, taken away and read back from a manifest."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from pipeline.sets.counts import COUNTED, RowCounts, describe_counts
from pipeline.types import ROW_SCHEMA

SCHEMA = pa.schema([ROW_SCHEMA.field(name) for name in COUNTED])
ROW = st.fixed_dictionaries(
    {
        "flags": st.lists(st.sampled_from(["truncated", "double_bos", "raw_cut"]), unique=True),
        "total_len": st.integers(2, 2**31 - 1),
        "context_len": st.integers(1, 2**31 - 1),
        "dropped_tokens": st.integers(0, 2**31 - 1),
        "dropped_messages": st.integers(0, 9),
    }
)
ROWS = st.lists(ROW, max_size=6)


def table_of(rows: list[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def counts_of(rows: list[dict[str, Any]]) -> RowCounts:
    counts = RowCounts()
    counts.add(table_of(rows))
    return counts


@given(ROWS)
def test_rows_are_counted_summed_and_told_by_flag(rows: list[dict[str, Any]]) -> None:
    counts = counts_of(rows)
    assert counts.rows == len(rows)
    assert counts.shortened == sum(row["dropped_tokens"] > 0 for row in rows)
    # Sums pass what 32 bits hold.
    for name, total in counts.sums.items():
        assert total == sum(row[name] for row in rows)
    assert counts.flags == Counter(flag for row in rows for flag in row["flags"])


@given(ROWS, ROWS)
def test_parts_add_up_to_the_whole_and_can_be_taken_away_again(
    left: list[dict[str, Any]], right: list[dict[str, Any]]
) -> None:
    whole = counts_of(left + right)
    merged = counts_of(left)
    merged.merge(counts_of(right))
    assert merged == whole
    whole.add(table_of(right), -1)
    assert whole == counts_of(left)
    merged.add(table_of(left + right), -1)
    assert merged == RowCounts()


@given(ROWS)
def test_the_counts_of_a_manifest_come_back(rows: list[dict[str, Any]]) -> None:
    described = describe_counts(9, {"train": len(rows)}, {"bad_json": 2}, [counts_of(rows)])
    assert RowCounts.from_described(json.loads(json.dumps(described))) == counts_of(rows)


def test_what_a_manifest_counts() -> None:
    row = {"flags": ["truncated"], "total_len": 9, "context_len": 5, "dropped_messages": 1}
    rows = [{**row, "dropped_tokens": 3}, {**row, "dropped_tokens": 0, "flags": []}]
    parts = [counts_of(rows[:1]), counts_of(rows[1:])]
    split = {"train": 1, "validation": 1}
    assert describe_counts(4, split, {"too_long": 1, "bad_json": 1}, parts) == {
        "lines": 4,
        "points": 4,
        "rows": 2,
        "rows_by_split": split,
        "rejects": 2,
        "by_code": {"bad_json": 1, "too_long": 1},
        "by_flag": {"truncated": 1},
        "rows_as_served": 1,
        "rows_shortened": 1,
        "tokens": {"total": 18, "context": 10, "continuation": 8, "dropped": 3},
        "dropped_messages": 2,
        "by_format": {},
        "unread_keys": {},
        "other_unread_keys": 0,
        "answers": {"said": 0, "used": 0, "usable": 0},
    }

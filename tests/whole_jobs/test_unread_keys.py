"""Keys that nobody reads are counted by name: in the summary, the manifest and the report."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.cli.command import main
from pipeline.config import PrepareConfig
from pipeline.job.prepare import prepare
from pipeline.rows.line_mapper import ShapeCounts, clean_name
from tests.conftest import write_lines

ConfigMaker = Callable[..., PrepareConfig]

CHAT = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello", "mood": "calm"},
]
ROWS: list[dict[str, Any]] = [
    {"id": "a", "messages": CHAT, "score": 1},
    {"id": "b", "messages": CHAT, "score": 2, "<b>\x1b[31m": "x"},
    {"instruction": "Hi", "output": "Hello", "lang": "en"},
]
UNREAD = {"<b>\\x1b[31m": 1, "lang": 1, "messages.mood": 2, "score": 2}


def counts_of(lines: list[tuple[str, list[str]]]) -> ShapeCounts:
    counts = ShapeCounts()
    for format, keys in lines:
        counts.add(format, keys)
    return counts


LINES = st.lists(
    st.tuples(st.sampled_from(["own", "trl"]), st.lists(st.text(max_size=3), max_size=4)),
    max_size=60,
)


@given(LINES, st.integers(0, 60))
def test_counts_of_parts_are_the_counts_of_the_whole(
    lines: list[tuple[str, list[str]]], cut: int
) -> None:
    left, right = counts_of(lines[:cut]), counts_of(lines[cut:])
    left.merge(right)
    assert left.describe() == counts_of(lines).describe()
    described = json.loads(json.dumps(left.describe()))
    assert ShapeCounts.from_described(described).describe() == described


@pytest.mark.parametrize("parts", [1, 2, 7])
def test_many_names_take_a_bounded_place_and_the_same_ones_stay_wherever_lines_are_cut(
    parts: int,
) -> None:
    lines = [("own", [f"key{n * 7919 % 3000}", "score"]) for n in range(3000)]
    total = ShapeCounts()
    for part in range(parts):
        counts = counts_of(lines[part::parts])
        assert len(counts.unread_keys) <= 400
        total.merge(counts)
    described = total.describe()
    assert len(described["unread_keys"]) == 200
    assert described["unread_keys"]["score"] == 3000
    assert sum(described["unread_keys"].values()) + described["other_unread_keys"] == 6000
    assert "key198" in described["unread_keys"]


@given(st.text(max_size=300))
def test_a_name_is_printable_and_short_when_it_is_counted(name: str) -> None:
    shown = clean_name(name)
    assert shown.isprintable()
    assert len(shown) <= 80


def test_unread_keys_stand_in_the_manifest_the_summary_and_the_report(
    tmp_path: Path, make_config: ConfigMaker, capsys: pytest.CaptureFixture[str]
) -> None:
    config = make_config(write_lines(tmp_path / "in.jsonl", ROWS), report=True)
    prepared = prepare(config)
    assert prepared.counts["unread_keys"] == UNREAD
    assert prepared.counts["by_format"] == {"alpaca": 1, "own": 2}
    page = (Path(prepared.output) / "report.html").read_text("utf-8")
    assert "messages.mood" in page
    assert "<b>" not in page.partition('id="unread"')[2].partition("</section>")[0]
    args = ["--input", str(tmp_path / "in.jsonl"), "--tokenizer", config.tokenizer]
    assert main(["prepare", *args, "--output", config.output]) == 0
    said = capsys.readouterr().out
    assert "messages.mood (2), score (2)" in said
    assert "alpaca 1, own 2" in said
    assert "\x1b" not in said


def test_columns_of_a_table_that_are_not_read_are_counted(
    tmp_path: Path, make_config: ConfigMaker
) -> None:
    path = tmp_path / "in.parquet"
    rows = [{"instruction": "Hi", "output": "Hello", "lang": "en", "day": None}] * 3
    pq.write_table(pa.Table.from_pylist(rows), path)
    assert prepare(make_config(path)).counts["unread_keys"] == {"day": 3, "lang": 3}


def test_a_set_that_is_appended_to_counts_its_keys_further(
    tmp_path: Path, make_config: ConfigMaker
) -> None:
    prepare(make_config(write_lines(tmp_path / "a.jsonl", ROWS[:2])))
    more = [{**ROWS[0], "id": "c"}]
    both = prepare(make_config(write_lines(tmp_path / "b.jsonl", more), append=True))
    assert both.counts["unread_keys"] == {"<b>\\x1b[31m": 1, "messages.mood": 3, "score": 3}

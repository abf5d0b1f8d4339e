"""`load_lines`: every line of the input in a `Dataset`, byte for byte, or what is wrong with it."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import RowMap, load_lines
from pipeline.errors import Rejected, UnreadableFile, UsageError
from pipeline.lines.dataset import (
    LINE_SCHEMA,
    batch_lines,
    read_batch,
    restore_line,
    spell_line,
)
from pipeline.lines.text import SourceLine
from tests.conftest import ROOT, write_lines

ROWS = [{"id": f"e{n}", "context": "2+2=", "continuation": f"{n}"} for n in range(3)]
TEXTS = [json.dumps(row) for row in ROWS]


@pytest.fixture(scope="module")
def keeping() -> RowMap:
    return RowMap(str(ROOT / "configs" / "tokenizer"), on_reject="keep")


def test_lines_come_in_the_order_of_the_input_without_the_blank_ones(tmp_path: Path) -> None:
    write_lines(tmp_path / "b.jsonl", [TEXTS[0], "", TEXTS[1]])
    write_lines(tmp_path / "a.jsonl", [TEXTS[2]])
    lines = load_lines(f"{tmp_path}/*.jsonl", cache_dir=tmp_path / "cache")
    assert lines.features == datasets.Features.from_arrow_schema(LINE_SCHEMA)
    assert lines.to_list() == [
        {"file": "a.jsonl", "line": 1, "text": TEXTS[2]},
        {"file": "b.jsonl", "line": 1, "text": TEXTS[0]},
        {"file": "b.jsonl", "line": 3, "text": TEXTS[1]},
    ]


def test_what_python_takes_for_line_ends_ends_no_line(tmp_path: Path) -> None:
    text = '{"id": "a\u2028b\x85c"}'
    path = write_lines(tmp_path / "in.jsonl", [text])
    assert load_lines(path, cache_dir=tmp_path)["text"][:] == [text]


def test_archives_and_tables_give_the_lines_of_the_plain_file(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl.gz").write_bytes(gzip.compress("\n".join(TEXTS).encode()))
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "in.parquet")
    for name in ("in.jsonl.gz", "in.parquet"):
        lines = load_lines(tmp_path / name, cache_dir=tmp_path / "cache")
        assert [json.loads(text) for text in lines["text"]] == ROWS
        assert lines["line"][:] == [1, 2, 3]
        assert set(lines["file"]) == {name}


def test_lines_that_are_no_text_are_accounted_for(tmp_path: Path, keeping: RowMap) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(b"\n".join([TEXTS[0].encode(), b'{"id": "\xff"}', b"{torn", b"\0\0"]) + b"\n")
    rows = keeping.map(load_lines(path, cache_dir=tmp_path))
    found = list(zip(rows["source"], rows["code"], strict=True))
    assert found == [
        ("in.jsonl:1", None),
        ("in.jsonl:2", "bad_encoding"),
        ("in.jsonl:3", "bad_json"),
        ("in.jsonl:4", "bad_json"),
    ]
    assert "0xff" in rows[1]["reject_reason"]


def test_lines_come_from_the_cache_until_their_file_changes(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "in.jsonl", TEXTS)
    first = load_lines(path, cache_dir=tmp_path / "cache")
    again = load_lines(path, cache_dir=tmp_path / "cache")
    assert again.cache_files == first.cache_files
    write_lines(path, TEXTS[:1])
    assert len(load_lines(path, cache_dir=tmp_path / "cache")) == 1


def test_a_cut_archive_is_refused_with_its_name(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl.gz").write_bytes(gzip.compress("\n".join(TEXTS).encode())[:-9])
    with pytest.raises(UnreadableFile, match=r"in\.jsonl\.gz"):
        load_lines(tmp_path / "in.jsonl.gz", cache_dir=tmp_path / "cache")


def test_no_file_and_a_stream_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nothing"):
        load_lines(tmp_path / "nothing.jsonl")
    with pytest.raises(UsageError, match="a stream, which can be read only once; give a file"):
        load_lines("-")


# ---- a line in a column of texts


FAULTS = st.builds(
    lambda code, reason, excerpt: SourceLine(2, None, Rejected(code, reason, excerpt)),
    st.sampled_from(["bad_encoding", "line_too_long", "bad_json"]),
    st.text(st.characters(exclude_categories=["Cs"])),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
)
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n"), min_size=1)
GOOD = st.builds(
    lambda text, unread: SourceLine(2, text, None, frozenset(unread)),
    TEXT.filter(lambda text: not text.startswith("\0")),
    st.sets(st.text(st.characters(exclude_categories=["Cs"]))),
)


def facts_of(line: SourceLine) -> tuple[Any, ...]:
    fault = line.reject
    told = (fault.code, fault.reason, fault.excerpt) if fault else None
    return line.line, line.text, told, line.unread_columns


@given(st.lists(GOOD | FAULTS, max_size=5))
def test_lines_come_back_from_their_columns(lines: list[SourceLine]) -> None:
    named = [(f"f{n}.jsonl", line) for n, line in enumerate(lines)]
    back = [each for table in batch_lines(named) for each in read_batch(table)]
    assert [(name, facts_of(line)) for name, line in back] == [
        (name, facts_of(line)) for name, line in named
    ]


@given(TEXT)
def test_a_strangers_line_that_begins_like_ours_stays_text(text: str) -> None:
    line = restore_line(1, f"\0{text}")
    assert line.reject is None or line.reject.code in ("bad_encoding", "bad_json")
    if not text.startswith("{"):
        assert facts_of(line) == (1, f"\0{text}", None, frozenset())


@pytest.mark.parametrize(
    "said", ['{"reject": ["no_code", "x", "y"]}', "{}", "[]", "7", '{"reject": 1}']
)
def test_a_strangers_line_is_never_a_reject_of_a_code_that_is_none(
    keeping: RowMap, said: str
) -> None:
    rows = keeping({"file": ["a"], "line": [1], "text": [f"\0{said}"]})
    assert rows["code"] == ["bad_json"]


def test_batches_are_bounded_by_their_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.lines.dataset.BATCH_CHARACTERS", 10)
    lines = [("a", SourceLine(n, "x" * size)) for n, size in enumerate([4, 4, 4, 30, 1])]
    assert [table.num_rows for table in batch_lines(lines)] == [2, 1, 1, 1]
    assert spell_line(lines[0][1]) == "xxxx"

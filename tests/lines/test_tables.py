"""A table's rows become the lines that a JSONL file of them would have, or a refusal says why not."""

from __future__ import annotations

import datetime
import decimal
import gzip
import json
import math
import tempfile
import tracemalloc
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import Rejected, UnreadableFile
from pipeline.examples.shapes import read_example, recognise_format
from pipeline.lines.cells import write_json
from pipeline.lines.files import SourceFile
from pipeline.lines.json_text import parse_line
from pipeline.lines.plan import whole_piece
from pipeline.lines.tables import TableReading, read_file
from tests.conftest import ReadInput, read_input

Row = dict[str, Any]

CHAT = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]


def file_at(path: Path) -> SourceFile:
    return SourceFile(path, path.name)


def write_parquet(path: Path, table: pa.Table | list[Row], **options: Any) -> SourceFile:
    table = pa.Table.from_pylist(table) if isinstance(table, list) else table
    pq.write_table(table, path, **options)
    return file_at(path)


def write_stream(path: Path, table: pa.Table, rows_per_batch: int = 1000) -> SourceFile:
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=rows_per_batch)
    return file_at(path)


def read_one(file: SourceFile, **options: Any) -> ReadInput:
    return read_input([file], **options)


def open_whole(file: SourceFile) -> TableReading:
    return TableReading(whole_piece(file))


def rows_of(read: ReadInput) -> list[Row]:
    return [parse_line(text) for text in read.texts]


def only_reject(read: ReadInput) -> tuple[int, str, str]:
    ((_, line, reject),) = read.rejects
    return line, reject.code, reject.reason


# ---- what is read


ROWS: list[Row] = [
    {"id": "a", "messages": CHAT, "weight": 0.5, "reason": "2024-03-01"},
    {"id": "b", "messages": CHAT, "weight": 1.0, "reason": "null"},
]


@pytest.mark.parametrize("kind", ["parquet", "stream", "file"])
def test_rows_become_the_lines_that_a_jsonl_file_would_have(kind: str, tmp_path: Path) -> None:
    table = pa.Table.from_pylist(ROWS)
    path = tmp_path / ("rows.parquet" if kind == "parquet" else "rows.arrow")
    if kind == "parquet":
        pq.write_table(table, path)
    elif kind == "stream":
        write_stream(path, table)
    else:
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
    read = read_one(file_at(path))
    assert rows_of(read) == ROWS
    assert read.places == [(path.name, 1), (path.name, 2)]
    (piece,) = read.pieces
    assert (piece.file, piece.lines, piece.blank_lines) == (path.name, 2, 0)
    assert [line.text for line in read_file(file_at(path))] == read.texts


def test_text_is_written_as_it_is(tmp_path: Path) -> None:
    texts = ["ä 日本 😀", "tab\tnew\nline\u2028", "42", " x ", '"quoted"', "\u0000"]
    rows = [{"prompt": text, "completion": text} for text in texts]
    assert rows_of(read_one(write_parquet(tmp_path / "t.parquet", rows))) == rows


def test_columns_that_no_shape_reads_are_not_read(tmp_path: Path) -> None:
    table = pa.table(
        {
            "prompt": ["p"],
            "completion": ["c"],
            "created_at": pa.array([datetime.datetime(2026, 1, 1)]),
            "score": [math.nan],
            "embedding": [b"\x00"],
        }
    )
    read = read_one(write_parquet(tmp_path / "t.parquet", table))
    assert rows_of(read) == [{"prompt": "p", "completion": "c"}]
    assert not read.rejects


def test_tables_and_jsonl_files_are_read_in_the_order_given(tmp_path: Path) -> None:
    table = write_parquet(tmp_path / "b.parquet", ROWS)
    lines = tmp_path / "a.jsonl"
    lines.write_text('{"id": "x", "messages": []}\n\nnot JSON\n', encoding="utf-8")
    read = read_input([table, file_at(lines)])
    assert read.places == [("b.parquet", 1), ("b.parquet", 2), ("a.jsonl", 1), ("a.jsonl", 3)]
    assert [piece.lines for piece in read.pieces] == [2, 2]
    assert (table.is_table, file_at(lines).is_table) == (True, False)


def test_row_numbers_run_on_over_batches_and_row_groups(tmp_path: Path) -> None:
    rows = [{"prompt": str(index), "completion": "x" * 50_000} for index in range(300)]
    read = read_one(write_parquet(tmp_path / "t.parquet", rows, row_group_size=70))
    assert [line for _, line in read.places] == list(range(1, 301))
    assert [row["prompt"] for row in rows_of(read)] == [str(index) for index in range(300)]


def test_a_table_without_rows_has_no_lines(tmp_path: Path) -> None:
    table = pa.table({"prompt": pa.array([], pa.string())})
    read = read_one(write_parquet(tmp_path / "t.parquet", table))
    assert (read.lines, read.pieces[0].lines) == ([], 0)


CELLS = st.none() | st.text(st.characters(exclude_categories=["Cs"]))


@given(st.lists(st.fixed_dictionaries({"id": CELLS, "tools": st.lists(CELLS), "input": CELLS})))
def test_any_rows_come_back_without_their_null_columns(rows: list[Row]) -> None:
    kinds = {"id": pa.string(), "tools": pa.list_(pa.string()), "input": pa.large_string()}
    table = pa.Table.from_pylist(rows, schema=pa.schema(kinds))
    with tempfile.TemporaryDirectory() as folder:
        reading = open_whole(write_parquet(Path(folder, "t.parquet"), table, row_group_size=2))
        read = [parse_line(line.text or "") for line in reading]
        assert reading.record().lines == len(rows)
    assert read == [{key: row[key] for key in row if row[key] is not None} for row in rows]


@pytest.mark.parametrize(
    "kind",
    [
        pa.string(),
        pa.large_string(),
        pa.string_view(),
        pa.dictionary(pa.int32(), pa.string()),
    ],
    ids=str,
)
def test_every_kind_of_text_column_is_text(kind: pa.DataType, tmp_path: Path) -> None:
    table = pa.table({"prompt": pa.array(["p", None, "p"]).cast(kind)})
    path = write_stream(tmp_path / "t.arrow", table)
    assert rows_of(read_one(path)) == [{"prompt": "p"}, {}, {"prompt": "p"}]


def test_numbers_keep_their_value_and_kind(tmp_path: Path) -> None:
    table = pa.table(
        {
            "id": pa.array([2**63 + 1], pa.uint64()),
            "weight": pa.array([0.1], pa.float32()),
            "input": pa.array([1.0], pa.float64()),
            "label": [True],
        }
    )
    (text,) = read_one(write_parquet(tmp_path / "t.parquet", table)).texts
    assert text == (
        '{"id": 9223372036854775809, "weight": 0.10000000149011612, "input": 1.0, "label": true}'
    )


def test_a_map_is_an_object(tmp_path: Path) -> None:
    kind = pa.map_(pa.string(), pa.list_(pa.int64()))
    table = pa.table({"chat_template_kwargs": pa.array([[("a", [1]), ("b", None)], None], kind)})
    read = read_one(write_parquet(tmp_path / "t.parquet", table))
    assert rows_of(read) == [{"chat_template_kwargs": {"a": [1], "b": None}}, {}]


def test_memory_stays_bounded_however_long_the_table_is(tmp_path: Path) -> None:
    rows = [{"prompt": "p" * 20_000, "completion": "c"}] * 3000
    file = write_parquet(tmp_path / "t.parquet", rows, use_dictionary=False, compression="zstd")
    tracemalloc.start()
    count = sum(1 for _ in open_whole(file))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 3000
    assert peak < 16 * 2**20 < 3000 * 20_000


# ---- what JSON does not have


@pytest.mark.parametrize(
    ("values", "code", "words"),
    [
        ([datetime.datetime(2026, 1, 1)], "wrong_type", "reason: a timestamp"),
        ([datetime.date(2026, 1, 1)], "wrong_type", "reason: a date"),
        ([datetime.time(1)], "wrong_type", "reason: a time"),
        ([datetime.timedelta(1)], "wrong_type", "reason: a duration"),
        ([decimal.Decimal("1.5")], "wrong_type", "reason: a decimal"),
        ([b"\x89PNG"], "unsupported_content", "reason: bytes"),
        ([math.nan], "bad_json", "reason: nan"),
        ([-math.inf], "bad_json", "reason: -inf"),
        ([[{"deep": [1.0, math.inf]}]], "bad_json", "reason[0].deep[1]: inf"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_value_that_json_lacks_is_a_reject_with_its_place(
    values: list[Any], code: str, words: str, tmp_path: Path
) -> None:
    table = pa.table({"id": ["a", "b"], "reason": pa.array([None, *values])})
    read = read_one(write_parquet(tmp_path / "t.parquet", table))
    line, found, reason = only_reject(read)
    assert (line, found, reason.startswith(words)) == (2, code, True), reason
    assert read.places == [("t.parquet", 1)]
    assert read.pieces[0].lines == 2


def test_columns_of_other_tools_are_read_where_there_is_no_conversation_of_ours(
    tmp_path: Path,
) -> None:
    row = {"inputs": {"messages": [{"role": "user", "content": "q"}]}, "outputs": "a", "cost": 1}
    alone = read_one(write_parquet(tmp_path / "a.parquet", [row]))
    assert rows_of(alone) == [{key: row[key] for key in ("inputs", "outputs")}]
    beside = read_one(write_parquet(tmp_path / "b.parquet", [{"messages": "[]", **row}]))
    assert rows_of(beside) == [{"messages": "[]"}]


def test_the_time_of_a_turn_is_text_and_costs_no_row(tmp_path: Path) -> None:
    said = {"role": "user", "content": "Hi", "timestamp": datetime.datetime(2026, 1, 1)}
    read = read_one(write_parquet(tmp_path / "t.parquet", pa.table({"conversation": [[said]]})))
    assert rows_of(read) == [{"conversation": [{**said, "timestamp": "2026-01-01T00:00:00"}]}]


def test_a_text_that_is_not_utf8_is_one_reject(tmp_path: Path) -> None:
    good = pa.array([b"fine", b"caf\xe9 au lait", b"fine too"])
    texts = pa.Array.from_buffers(pa.string(), 3, good.buffers())
    read = read_one(write_stream(tmp_path / "t.arrow", pa.table({"prompt": texts})))
    line, code, reason = only_reject(read)
    assert (line, code, "byte 0xe9" in reason) == (2, "bad_encoding", True)
    assert "caf\\xe9 au" in read.rejects[0][2].excerpt
    assert [row["prompt"] for row in rows_of(read)] == ["fine", "fine too"]


def test_a_map_with_a_key_twice_is_a_reject(tmp_path: Path) -> None:
    kind = pa.map_(pa.string(), pa.int64())
    table = pa.table({"chat_template_kwargs": pa.array([[("a", 1), ("a", 2)]], kind)})
    assert only_reject(read_one(write_parquet(tmp_path / "t.parquet", table)))[1] == "bad_json"


def test_a_row_longer_than_a_line_may_be_is_a_reject(tmp_path: Path) -> None:
    rows = [{"prompt": "ä" * 40}, {"prompt": "ok"}]
    read = read_one(write_parquet(tmp_path / "t.parquet", rows), max_line_bytes=60)
    assert only_reject(read)[:2] == (1, "line_too_long")


@given(
    st.dictionaries(st.text(), st.none() | st.booleans() | st.integers() | st.floats() | st.text())
)
def test_a_row_is_written_so_that_it_reads_back_the_same_or_is_refused(row: Row) -> None:
    has_no_json = any(
        isinstance(value, float) and not math.isfinite(value) for value in row.values()
    )
    if has_no_json:
        with pytest.raises(Rejected, match="is not JSON"):
            write_json(row)
    else:
        assert json.loads(write_json(row)) == row


# ---- Arrow types that keep two values apart no longer


@pytest.mark.parametrize("key", ["arguments", "args"])
def test_a_null_argument_in_a_struct_is_absent(key: str, tmp_path: Path) -> None:
    def turn(arguments: Row) -> Row:
        call = {"type": "function", "function": {"name": "f", key: arguments}}
        return {"role": "assistant", "content": "", "tool_calls": [call]}

    rows = [
        {"id": "a", "messages": [turn({"x": 1, "y": {"z": 1}})]},
        {"id": "b", "messages": [turn({"x": 1, "y": {}})]},
        {"id": "c", "messages": [turn({"x": 2})]},
    ]
    assert rows_of(read_one(write_parquet(tmp_path / "t.parquet", rows))) == rows


TOOLS = [{"function": {"name": "f", "parameters": {"x": 1.5, "y": 12345678901234567890}}}]


def json_table(features: Row, rows: dict[str, list[Any]]) -> pa.Table:
    """Return the Arrow table that `datasets` keeps of columns with its type Json."""
    made = datasets.Dataset.from_dict(rows, features=datasets.Features(features))
    return made.data.table


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_a_json_column_of_objects_comes_out_as_its_text_says(kind: str, tmp_path: Path) -> None:
    features = {"messages": datasets.List(datasets.Json()), "tools": datasets.Json()}
    turns = [{"role": "user", "content": "42"}, {"role": "assistant", "content": ["null", 1e-5]}]
    table = json_table(features, {"messages": [turns, None], "tools": [TOOLS, None]})
    path = tmp_path / f"t.{kind}"
    file = write_parquet(path, table) if kind == "parquet" else write_stream(path, table)
    assert rows_of(read_one(file)) == [{"messages": turns, "tools": TOOLS}, {}]


def test_a_json_column_gives_text_back_and_refuses_what_may_have_been_text_or_not(
    tmp_path: Path,
) -> None:
    said = {"role": "assistant", "content": "hi"}
    values = ["Four.", said, "42", "null", '{"a": 1}']
    table = json_table({"continuation": datasets.Json()}, {"continuation": values})
    read = read_one(write_stream(tmp_path / "t.arrow", table))
    assert rows_of(read) == [{"continuation": "Four."}, {"continuation": said}]
    rejects = [(line, reject.code) for _, line, reject in read.rejects]
    assert rejects == [(3, "wrong_type"), (4, "wrong_type"), (5, "wrong_type")]
    assert "continuation: of datasets' type Json" in read.rejects[0][2].reason


def test_a_json_value_that_is_no_object_is_a_reject(tmp_path: Path) -> None:
    table = json_table({"tools": datasets.Json()}, {"tools": [TOOLS, "[]", "42"]})
    read = read_one(write_stream(tmp_path / "t.arrow", table))
    assert only_reject(read)[:2] == (3, "wrong_type")
    assert rows_of(read) == [{"tools": TOOLS}, {"tools": []}]


# ---- files that cannot be read


def refused(*files: SourceFile) -> UnreadableFile:
    with pytest.raises(UnreadableFile) as caught:
        read_input(files)
    return caught.value


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_a_cut_parquet_file_stops_the_job(share: float, tmp_path: Path) -> None:
    file = write_parquet(tmp_path / "t.parquet", ROWS)
    whole = file.path.read_bytes()
    file.path.write_bytes(whole[: int(len(whole) * share)])
    error = refused(file)
    assert (error.file, "not a whole table" in error.reason) == ("t.parquet", True)


def test_a_damaged_parquet_page_stops_the_job(tmp_path: Path) -> None:
    rows = [{"prompt": f"{index} of the prompts", "completion": "c"} for index in range(500)]
    file = write_parquet(tmp_path / "t.parquet", rows, compression="zstd", use_dictionary=False)
    whole = bytearray(file.path.read_bytes())
    whole[60:120] = b"\xff" * 60
    file.path.write_bytes(whole)
    assert "not a whole table" in refused(file).reason


@given(st.integers(1, 10_000))
def test_a_cut_arrow_stream_is_never_taken_for_a_shorter_table(cut: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        table = pa.Table.from_pylist(ROWS * 8)
        file = write_stream(Path(folder, "t.arrow"), table, rows_per_batch=4)
        whole = file.path.read_bytes()
        file.path.write_bytes(whole[: -min(cut, len(whole))])
        assert "not a whole table" in refused(file).reason


def test_a_table_of_other_columns_stops_the_job_and_says_what_was_expected(tmp_path: Path) -> None:
    table = pa.table({"text": ["x"], "meta": ["y"]})
    assert "none of its columns" in refused(write_parquet(tmp_path / "t.parquet", table)).reason


def test_two_columns_of_one_name_stop_the_job(tmp_path: Path) -> None:
    table = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["prompt", "prompt"])
    for file in (
        write_parquet(tmp_path / "t.parquet", table),
        write_stream(tmp_path / "t.arrow", table),
    ):
        assert "two columns have one name: prompt" in refused(file).reason


def test_a_table_that_is_not_there_stops_the_job(tmp_path: Path) -> None:
    assert "No such file" in refused(file_at(tmp_path / "gone.parquet")).reason


# ---- the whole way


def test_null_filled_rows_of_a_table_give_the_examples_of_the_lines(tmp_path: Path) -> None:
    search = {"name": "search", "parameters": {"properties": {"q": {"type": "string"}}}}
    call = {"type": "function", "function": {"name": "search", "arguments": '{"q": "x"}'}}
    rows: list[Row] = [
        {"id": "a", "messages": CHAT, "tools": [{"type": "function", "function": search}]},
        {
            "id": "b",
            "messages": [CHAT[0], {"role": "assistant", "content": None, "tool_calls": [call]}],
            "reason": "why",
        },
    ]
    table = pa.Table.from_struct_array(pa.array(rows))
    read = read_one(write_parquet(tmp_path / "t.parquet", table))
    for before, after in zip(rows, rows_of(read), strict=True):
        assert recognise_format(after) == recognise_format(before)
        assert read_example(after, "own", "x:1") == read_example(before, "own", "x:1")


def test_real_conversations_give_the_same_examples_from_a_table(
    shared: Path, tmp_path: Path
) -> None:
    for name in ("swe_gym_openhands", "reason_tool_use", "tau_airline_gpt4o", "dpo_pairs_en_zh"):
        path = shared / "assets" / "data" / f"{name}.jsonl.gz"
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            rows = [json.loads(line) for line in lines]
        stored = [
            row | ({"tools": json.dumps(row["tools"])} if "tools" in row else {}) for row in rows
        ]
        table = pa.Table.from_struct_array(pa.array(stored))
        read = read_one(write_parquet(tmp_path / f"{name}.parquet", table, row_group_size=40))
        assert len(read.texts) == len(rows)
        for before, after in zip(rows, rows_of(read), strict=True):
            shape = recognise_format(before)
            assert recognise_format(after) == shape
            assert read_example(after, shape, "x") == read_example(before, shape, "x")

"""Cutting the input loses and moves nothing: its pieces in order are its files read whole."""

from __future__ import annotations

import codecs
import dataclasses
import gzip
import hashlib
import itertools
import json
import os
import pickle
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.errors import UnreadableFile, UsageError
from pipeline.lines import plan as planning
from pipeline.lines import text as source
from pipeline.lines.files import SourceFile
from pipeline.lines.plan import Piece, SourcePlan, SourceShard, plan_shards, whole_piece
from pipeline.lines.tables import open_piece
from pipeline.lines.text import SourceLine, read_lines
from tests.conftest import read_input, shards_of

ROWS = [json.dumps({"id": str(number), "text": "x" * number}) for number in range(40)]
TEXT = "".join(f"{row}\n" for row in ROWS).encode()


def write(folder: Path, name: str, content: bytes) -> SourceFile:
    path = folder / name
    path.write_bytes(content)
    return SourceFile(path, name)


def pieces_of(plan: SourcePlan) -> list[Piece]:
    return [piece for shard in plan.shards for piece in shard.pieces]


def places_of(plan: SourcePlan) -> list[tuple[str, int, int, int]]:
    return [
        (piece.file.name, piece.start, piece.end, piece.first_line) for piece in pieces_of(plan)
    ]


def told(lines: list[tuple[str, SourceLine]]) -> list[tuple[str, int, str | None, str]]:
    """Return what can be compared of lines: an error is equal to itself alone."""
    return [
        (file, line.line, line.text, str(line.reject) if line.reject else "")
        for file, line in lines
    ]


# ---- the same lines however the input is cut


LINES = st.one_of(
    st.sampled_from([b"", b" \t", b"\r", b"{}", b"\xff", b"\x1f\x8b\x08", b"PK\x03\x04", b"\x00"]),
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n"), max_size=12).map(
        str.encode
    ),
    st.integers(0, 400).map(lambda size: b"x" * size),
)


@st.composite
def contents(draw: st.DrawFn) -> bytes:
    """Draw the bytes of a file: any lines after one that shows that the file is JSONL."""
    mark = draw(st.sampled_from([b"", codecs.BOM_UTF8]))
    line_end = draw(st.sampled_from([b"\n", b"\r\n"]))
    first = draw(st.sampled_from([b'{"id": "a"}', b"plain", b""]))
    lines = [first, *draw(st.lists(LINES, max_size=30))] if first else []
    last = draw(st.sampled_from([b"", line_end])) if lines else b""
    return mark + line_end.join(lines) + last


PACKED = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress}


@given(
    files=st.lists(st.tuples(contents(), st.sampled_from(sorted(PACKED))), max_size=5),
    size=st.integers(1, 600),
    chunk_bytes=st.sampled_from([7, 64, 2**20]),
)
@example(files=[(b"a\n\nb\n\x1f\x8b\nc\nPK\x03\x04\n", "")], size=1, chunk_bytes=2**20)
@example(files=[(b"a\nb\nc\nd\xff\xfe\n\xff\xfe\n", "")], size=1, chunk_bytes=2**20)
def test_pieces_in_order_are_the_files_read_whole(
    files: list[tuple[bytes, str]], size: int, chunk_bytes: int
) -> None:
    with tempfile.TemporaryDirectory() as place, pytest.MonkeyPatch.context() as patched:
        patched.setattr(planning, "CHUNK_BYTES", chunk_bytes)
        patched.setattr(source, "CHUNK_BYTES", chunk_bytes)
        written = [
            write(Path(place), f"{number}.jsonl{suffix}", PACKED[suffix](content))
            for number, (content, suffix) in enumerate(files)
        ]
        whole = [(file.name, line) for file in written for line in read_lines(file, 300)]
        with shards_of(size):
            plan = plan_shards(written)
            read = read_input(written, max_line_bytes=300)
        assert told(read.lines) == told(whole)
        for file, (content, _) in zip(written, files, strict=True):
            assert plan.sha256[file.name] == hashlib.sha256(file.path.read_bytes()).hexdigest()
            pieces = [piece for piece in read.pieces if piece.file == file.name]
            lines = content.count(b"\n") + (content[-1:] not in (b"", b"\n"))
            assert sum(piece.lines + piece.blank_lines for piece in pieces) == lines


@given(content=contents(), size=st.integers(1, 600))
def test_a_file_is_cut_into_whole_lines_without_a_gap(content: bytes, size: int) -> None:
    with tempfile.TemporaryDirectory() as place, shards_of(size):
        file = write(Path(place), "a.jsonl", content)
        plan = plan_shards([file])
    pieces = pieces_of(plan)
    assert (pieces[0].start, pieces[0].first_line, pieces[-1].end) == (0, 1, len(content))
    for before, after in itertools.pairwise(pieces):
        assert after.start == before.end
        assert content[: before.end].endswith(b"\n")
        assert after.first_line == 1 + content[: before.end].count(b"\n")
    assert [shard.index for shard in plan.shards] == list(range(len(plan.shards)))
    assert plan.bytes == len(content)


@given(content=contents(), size=st.integers(1, 600))
def test_the_plan_depends_on_the_bytes_alone(content: bytes, size: int) -> None:
    with tempfile.TemporaryDirectory() as place, shards_of(size):
        one = write(Path(place), "a.jsonl", content)
        (Path(place) / "other").mkdir()
        two = write(Path(place) / "other", "a.jsonl", content)
        os.utime(two.path, (0, 0))
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(planning, "CHUNK_BYTES", 5)
            in_small_chunks = plan_shards([two])
        plan = plan_shards([one])
    assert places_of(plan) == places_of(in_small_chunks)
    assert plan.key == in_small_chunks.key
    assert plan.sha256 == in_small_chunks.sha256


def test_another_byte_name_or_cut_is_another_key(tmp_path: Path) -> None:
    keys = [plan_shards([write(tmp_path, "a.jsonl", TEXT)]).key]
    keys.append(plan_shards([write(tmp_path, "b.jsonl", TEXT)]).key)
    keys.append(plan_shards([write(tmp_path, "a.jsonl", TEXT.replace(b"x", b"y", 1))]).key)
    with shards_of(200):
        keys.append(plan_shards([write(tmp_path, "a.jsonl", TEXT)]).key)
    assert len(set(keys)) == 4


# ---- how many shards, and of what


def test_small_files_share_a_shard_and_large_ones_have_several(tmp_path: Path) -> None:
    small = [write(tmp_path, f"{number}.jsonl", b"{}\n") for number in range(5)]
    large = write(tmp_path, "large.jsonl", TEXT)
    with shards_of(len(TEXT) // 4):
        plan = plan_shards([*small, large])
    assert [piece.file.name for piece in plan.shards[0].pieces][:5] == [file.name for file in small]
    assert 4 <= len(plan.shards) <= 5
    assert max(shard.bytes for shard in plan.shards) < len(TEXT) // 4 + 100


@pytest.mark.parametrize(
    ("total", "shards"), [(100_000, 1), (3 * 2**20, 3), (40 * 2**20, 32)], ids=str
)
def test_an_input_is_cut_into_thirty_two_where_its_size_allows(
    tmp_path: Path, total: int, shards: int
) -> None:
    line = b"x" * 999 + b"\n"
    plan = plan_shards([write(tmp_path, "a.jsonl", line * (total // 1000))])
    assert abs(len(plan.shards) - shards) <= 1
    assert len(plan.shards) <= planning.SHARDS


def test_a_shard_is_never_larger_than_the_bound_and_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning, "LEAST_SHARD_BYTES", 100)
    monkeypatch.setattr(planning, "MOST_SHARD_BYTES", 500)
    plan = plan_shards([write(tmp_path, "a.jsonl", TEXT * 40)])
    assert len(plan.shards) > planning.SHARDS
    assert max(shard.bytes for shard in plan.shards) <= 500 + max(len(row) for row in ROWS) + 1


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.ZST", "a.jsonl", "a.parquet", "a.arrow"])
def test_what_is_packed_is_one_piece(tmp_path: Path, name: str) -> None:
    if name.endswith(("parquet", "arrow")):
        table = pa.Table.from_pylist([json.loads(row) for row in ROWS])
        sink = pa.BufferOutputStream()
        if name.endswith("parquet"):
            pq.write_table(table, sink)
        else:
            with pa.ipc.new_stream(sink, table.schema) as writer:
                writer.write_table(table)
        content = sink.getvalue().to_pybytes()
    else:
        content = (zstandard if name.endswith("ZST") else gzip).compress(TEXT)
    with shards_of(1):
        plan = plan_shards([write(tmp_path, name, content)])
    assert places_of(plan) == [(name, 0, len(content), 1)]


def test_no_files_are_no_shards_and_an_empty_file_is_one_piece(tmp_path: Path) -> None:
    assert plan_shards([]) == SourcePlan((), {})
    plan = plan_shards([write(tmp_path, "a.jsonl", b"")])
    assert places_of(plan) == [("a.jsonl", 0, 0, 1)]
    assert plan.sha256 == {"a.jsonl": hashlib.sha256(b"").hexdigest()}


def test_a_shard_says_where_it_lies_and_travels_to_a_worker(tmp_path: Path) -> None:
    files = [write(tmp_path, name, TEXT) for name in ("a.jsonl", "b.jsonl")]
    (whole,) = plan_shards(files).shards
    assert whole.describe() == "shard 0: a.jsonl from line 1 to b.jsonl"
    with shards_of(len(TEXT) // 3):
        shards = plan_shards(files).shards
    second = shards[1]
    assert second.describe() == f"shard 1: a.jsonl from line {second.pieces[0].first_line}"
    assert pickle.loads(pickle.dumps(shards)) == shards  # noqa: S301


def test_a_head_of_one_value_over_lines_is_told_however_small_the_shards(tmp_path: Path) -> None:
    content = b'{\n"id": "a",\n"context": "x"\n}\n' + TEXT
    with shards_of(1), pytest.raises(UnreadableFile, match="spread over several lines"):
        read_input([write(tmp_path, "a.jsonl", content)])


@pytest.mark.parametrize("name", ["gone.jsonl", "gone.jsonl.gz", "folder"])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(UnreadableFile, match=f"{name}:0: unreadable_file: cannot be read"):
        plan_shards([SourceFile(tmp_path / name, name)])


# ---- input that does not stand still


def read_shards(shards: tuple[SourceShard, ...]) -> list[str]:
    texts: list[str] = []
    for piece in (piece for shard in shards for piece in shard.pieces):
        reading = open_piece(piece)
        texts += [line.text for line in reading if line.text is not None]
        reading.record()
    return texts


CHANGES = {
    "one byte": TEXT.replace(b'"20"', b'"2O"'),
    "a byte in the last line": TEXT.replace(b'x"}\n', b'y"}\n', 40).removesuffix(b"\n") + b"\n",
    "two lines in each other's place": b"".join(
        f"{row}\n".encode() for row in [*ROWS[1:], ROWS[0]]
    ),
    "cut": TEXT[:-30],
    "emptied": b"",
    "a line more at the start": b"{}\n" + TEXT,
}


@pytest.mark.parametrize("change", sorted(CHANGES))
@pytest.mark.parametrize("size", [200, 2**20])
def test_a_file_that_changes_after_the_plan_is_refused(
    tmp_path: Path, change: str, size: int
) -> None:
    file = write(tmp_path, "a.jsonl", TEXT)
    with shards_of(size):
        shards = plan_shards([file]).shards
    file.path.write_bytes(CHANGES[change])
    with pytest.raises(UsageError, match=r"a\.jsonl changed while it was read; .*run again"):
        read_shards(shards)


@pytest.mark.parametrize("size", [200, 2**20])
def test_a_file_that_grows_at_its_end_gives_the_planned_lines(tmp_path: Path, size: int) -> None:
    # A log that is still written to: what came before the plan is a set of its own.
    file = write(tmp_path, "a.jsonl", TEXT)
    with shards_of(size):
        shards = plan_shards([file]).shards
    with file.path.open("ab") as stream:
        stream.write(b'{"id": "later"}\n')
    assert read_shards(shards) == ROWS


def test_a_line_that_was_half_written_at_the_plan_stays_half(tmp_path: Path) -> None:
    file = write(tmp_path, "a.jsonl", TEXT + b'{"id": "ha')
    shards = plan_shards([file]).shards
    with file.path.open("ab") as stream:
        stream.write(b'lf"}\n')
    assert read_shards(shards)[-1] == '{"id": "ha'


def test_a_file_that_vanishes_after_the_plan_is_refused(tmp_path: Path) -> None:
    file = write(tmp_path, "a.jsonl", TEXT)
    shards = plan_shards([file]).shards
    file.path.unlink()
    with pytest.raises(UnreadableFile, match=r"a\.jsonl:1: .*No such file"):
        read_shards(shards)


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_packed_file_that_is_swapped_for_another_is_refused(tmp_path: Path, suffix: str) -> None:
    name = f"a.jsonl{suffix}"
    file = write(tmp_path, name, PACKED[suffix](TEXT))
    shards = plan_shards([file]).shards
    write(tmp_path, name, PACKED[suffix](CHANGES["one byte"]))
    with pytest.raises((UsageError, UnreadableFile), match=name):
        read_shards(shards)


def test_a_table_that_changes_after_the_plan_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"prompt": ["one"]}), path)
    shards = plan_shards([SourceFile(path, "a.parquet")]).shards
    pq.write_table(pa.table({"prompt": ["two"]}), path)
    with pytest.raises(UsageError, match=r"a\.parquet changed while it was read"):
        read_shards(shards)


def test_a_piece_is_checked_by_size_and_by_content(tmp_path: Path) -> None:
    piece = whole_piece(write(tmp_path, "a.jsonl", TEXT))
    piece.check_bytes(piece.end, piece.checksum)
    for size, checksum in ((piece.end + 1, piece.checksum), (piece.end, piece.checksum ^ 1)):
        with pytest.raises(UsageError, match="changed while it was read"):
            piece.check_bytes(size, checksum)
    reading = open_piece(dataclasses.replace(piece, checksum=piece.checksum ^ 1))
    assert len(list(reading)) == len(ROWS)
    with pytest.raises(UsageError, match="changed while it was read"):
        reading.record()

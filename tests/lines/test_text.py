"""Every line of a JSONL file is a row or a reject, its text exactly as in the file."""

from __future__ import annotations

import codecs
import gzip
import json
import pickle
import random
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.errors import EXCERPT_LIMIT, Rejected, UnreadableFile
from pipeline.lines import text as source
from pipeline.lines.files import SourceFile, find_files
from pipeline.lines.json_text import parse_line
from pipeline.lines.text import read_lines
from tests.conftest import read_input

PACKED: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".zst": zstandard.compress,
}
ROW_A = '{"id": "a", "context": "x", "continuation": "y"}'
ROW_B = '{"id": "b", "context": "x", "continuation": "y"}'

WriteFile = Callable[..., SourceFile]


@pytest.fixture
def write_file(tmp_path: Path) -> WriteFile:
    """Write bytes, or lines that each get a newline, to a file and return it as a source file."""

    def write(content: bytes | Sequence[str], name: str = "in.jsonl") -> SourceFile:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not isinstance(content, bytes):
            content = "".join(f"{line}\n" for line in content).encode()
        path.write_bytes(content)
        return SourceFile(path, name)

    return write


def outcomes(file: SourceFile) -> list[str]:
    """Read and parse a file; per line its id, or ``line:code``."""
    found: list[str] = []
    for line in read_lines(file):
        try:
            if line.reject is not None:
                raise line.reject
            assert line.text is not None
            found.append(str(parse_line(line.text).get("id")))
        except Rejected as error:
            found.append(f"{line.line}:{error.code}")
    return found


def fault_of(file: SourceFile) -> UnreadableFile:
    with pytest.raises(UnreadableFile) as caught:
        list(read_lines(file))
    assert pickle.loads(pickle.dumps(caught.value)).line == caught.value.line  # noqa: S301
    return caught.value


# ---- lines -------------------------------------------------------------------------------------


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    texts=st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n"))),
    quoted=st.booleans(),
    suffix=st.sampled_from(sorted(PACKED)),
    line_end=st.sampled_from(["\n", "\r\n"]),
    mark=st.sampled_from([b"", codecs.BOM_UTF8]),
    ended=st.booleans(),
)
def test_any_lines_come_back_as_they_were_written(
    tmp_path: Path,
    texts: list[str],
    quoted: bool,
    suffix: str,
    line_end: str,
    mark: bytes,
    ended: bool,
):
    lines = [
        json.dumps({"t": text}, ensure_ascii=False) if quoted else f"t{text}" for text in texts
    ]
    content = mark + line_end.join(lines).encode() + (line_end.encode() if ended and lines else b"")
    path = tmp_path / f"in.jsonl{suffix}"
    path.write_bytes(PACKED[suffix](content))
    read = read_input([SourceFile(path, "in")])
    assert read.texts == lines
    assert read.places == [("in", number) for number in range(1, len(lines) + 1)]
    assert (read.rejects, read.pieces[0].lines) == ([], len(lines))
    if quoted:
        assert [parse_line(text)["t"] for text in read.texts] == texts


def test_lines_end_at_newlines_alone(write_file: WriteFile):
    text = '{"id": "ls", "t": "one\u2028two\u2029three\u0085four\x7f"}'
    assert [line.text for line in read_lines(write_file([text, ROW_A]))] == [text, ROW_A]


def test_carriage_returns_before_newlines_are_dropped_once(write_file: WriteFile):
    file = write_file(f"{ROW_A}\r\n\r\n{ROW_B}\r\r\n{ROW_A}\r".encode())
    assert [line.text for line in read_lines(file)] == [ROW_A, f"{ROW_B}\r", ROW_A]
    assert outcomes(file) == ["a", "b", "a"]


def test_carriage_returns_alone_are_no_line_ends(write_file: WriteFile):
    assert outcomes(write_file(f"{ROW_A}\r{ROW_B}\r".encode())) == ["1:bad_json"]


def test_one_byte_order_mark_is_dropped_at_the_start_of_every_file(write_file: WriteFile):
    files = [write_file(codecs.BOM_UTF8 + ROW_A.encode(), name) for name in ("1.jsonl", "2.jsonl")]
    assert read_input(files).texts == [ROW_A, ROW_A]
    joined = write_file((codecs.BOM_UTF8 + ROW_A.encode() + b"\n") * 2)
    assert outcomes(joined) == ["a", "2:bad_json"]
    assert outcomes(write_file(codecs.BOM_UTF8 * 2 + ROW_A.encode())) == ["1:bad_json"]
    assert outcomes(write_file(codecs.BOM_UTF8)) == []


def test_blank_lines_are_no_rows_and_are_counted_apart(write_file: WriteFile):
    file = write_file(["", ROW_A, " \t", "\r", ROW_B, "\x0b\x0c"])
    assert [line.line for line in read_lines(file)] == [2, 5]
    (piece,) = read_input([file]).pieces
    assert (piece.lines, piece.blank_lines) == (2, 4)


def test_white_space_beyond_ascii_is_not_blank(write_file: WriteFile):
    assert outcomes(write_file([ROW_A, "\u3000", "\xa0"])) == ["a", "2:bad_json", "3:bad_json"]


@pytest.mark.parametrize(
    ("line", "place"),
    [
        (b'{"t": "caf\xe9"}', "byte 0xe9 at offset 10 of the line is not UTF-8"),
        ('{"é": "'.encode() + b"\xff", "byte 0xff at offset 8 "),
        (b'{"t": "\xed\xa0\xbd"}', "byte 0xed at offset 7 "),  # a surrogate in three bytes
        (b'{"t": "\xe4\xb8', "unexpected end of data"),
    ],
)
def test_a_line_that_is_not_utf8_is_one_reject_with_its_byte(
    write_file: WriteFile, line: bytes, place: str
):
    file = write_file(b"\n".join([ROW_A.encode(), line, ROW_B.encode()]))
    first, bad, last = read_lines(file)
    assert (first.text, last.text) == (ROW_A, ROW_B)
    assert bad.text is None
    assert bad.reject is not None
    assert bad.reject.code == "bad_encoding"
    assert place in bad.reject.reason
    assert "convert the file to UTF-8" in bad.reject.reason
    assert bad.reject.excerpt.startswith('{"')


def test_the_excerpt_of_bad_bytes_shows_the_text_around_them(write_file: WriteFile):
    file = write_file(("x" * 300).encode() + "日本".encode() + b"\xff" + b"y" * 300)
    (bad,) = read_lines(file)
    assert bad.reject is not None
    assert "x日本\\xffy" in bad.reject.excerpt


def test_a_line_over_the_limit_is_a_reject_and_the_next_lines_are_read(write_file: WriteFile):
    file = write_file(["x" * 100, "y" * 101, ROW_A, " " * 300, "z" * 5000])
    lines = list(read_lines(file, max_line_bytes=100))
    assert [line.text for line in lines] == ["x" * 100, None, ROW_A, None, None]
    for line, size in ((lines[1], 101), (lines[3], 300), (lines[4], 5000)):
        assert line.reject is not None
        assert line.reject.code == "line_too_long"
        assert line.reject.reason == f"{size} bytes, expected at most 100; split the example"
        assert len(line.reject.excerpt) == EXCERPT_LIMIT


@pytest.mark.parametrize("suffix", sorted(PACKED))
def test_a_line_over_the_limit_is_not_held(write_file: WriteFile, suffix: str):
    random_bytes = random.Random(0).randbytes(2**20).hex().encode()
    content = b"x" + random_bytes * 40 + b"\n" + ROW_A.encode()
    file = write_file(PACKED[suffix](content), f"in.jsonl{suffix}")
    tracemalloc.start()
    lines = list(read_lines(file, max_line_bytes=2**20))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert [line.text for line in lines] == [None, ROW_A]
    assert peak < 12 * 2**20


def test_lines_that_cross_chunks_are_whole(write_file: WriteFile, monkeypatch: pytest.MonkeyPatch):
    texts = [str(i) * i for i in range(1, 60)]
    for chunk_bytes in (1, 2, 7, 64):
        monkeypatch.setattr(source, "CHUNK_BYTES", chunk_bytes)
        assert [line.text for line in read_lines(write_file(texts))] == texts


# ---- files that cannot be read to their end ------------------------------------------------------


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-be"])
@pytest.mark.parametrize("text", [ROW_A, "{\n}"])
def test_wide_text_is_named(write_file: WriteFile, encoding: str, text: str):
    fault = fault_of(write_file(text.encode(encoding)))
    assert "UTF-16 or UTF-32 text, expected UTF-8; convert it" in fault.reason


def test_zero_bytes_of_a_crashed_writer_are_one_bad_line(write_file: WriteFile):
    assert outcomes(write_file(f"{ROW_A}\n".encode() + bytes(4096))) == ["a", "2:bad_json"]
    assert outcomes(write_file(bytes(4096) + f"\n{ROW_A}\n".encode())) == ["1:bad_json", "a"]
    assert outcomes(write_file(f"{ROW_A}\n{{\0".encode())) == ["a", "2:bad_json"]


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_cut_archive_is_named_with_the_line_where_it_ends(write_file: WriteFile, suffix: str):
    rng = random.Random(0)
    rows = [json.dumps({"id": str(rng.random())}) for _ in range(400)]
    members = [
        PACKED[suffix]("".join(f"{row}\n" for row in part).encode())
        for part in (rows[:100], rows[100:200], rows[200:])
    ]
    packed = b"".join(members)
    file = write_file(packed[: -len(members[-1]) // 2], f"in.jsonl{suffix}")
    fault = fault_of(file)
    assert 200 < fault.line < 400
    assert f"in.jsonl{suffix}:{fault.line}: unreadable_file: the " in str(fault)
    assert "data is cut" in fault.reason
    with pytest.raises(UnreadableFile):
        read_input([file])


def test_plain_text_named_gz_is_unreadable(write_file: WriteFile):
    assert "rename it" in fault_of(write_file([ROW_A], "in.jsonl.gz")).reason


def test_packed_content_without_a_suffix_is_read(write_file: WriteFile):
    for pack in (gzip.compress, zstandard.compress):
        assert outcomes(write_file(pack(ROW_A.encode()), "in.jsonl")) == ["a"]


ARRAY = json.dumps([json.loads(ROW_A), json.loads(ROW_B)])
PRETTY = json.dumps(json.loads(ROW_A), indent=1)


@pytest.mark.parametrize(
    ("text", "found", "remedy"),
    [
        (ARRAY, "the file is a JSON array", "jq -c '.[]'"),
        (ARRAY + "\n", "the file is a JSON array", "jq -c '.[]'"),
        (ARRAY[:-9], "the file is a JSON array", "jq -c '.[]'"),
        ("[]", "the file is a JSON array", "jq -c '.[]'"),
        (f"[\n{ROW_A},\n{ROW_B}\n]\n", "the file is a JSON array", "jq -c '.[]'"),
        (f"[\n{ROW_A}\n,{ROW_B}\n]\n", "the file is a JSON array", "jq -c '.[]'"),
        (json.dumps([json.loads(ROW_A)], indent=2), "the file is a JSON array", "jq -c '.[]'"),
        (f"{PRETTY}\n{PRETTY}\n", "an object is spread over several lines", "jq -c ."),
        (PRETTY.replace("\n", "\r\n"), "an object is spread over several lines", "jq -c ."),
        (PRETTY[:30], "an object is spread over several lines", "jq -c ."),
        (PRETTY.replace("{\n", "{"), "an object is spread over several lines", "jq -c ."),
    ],
)
def test_one_json_value_instead_of_lines_is_named(
    write_file: WriteFile, text: str, found: str, remedy: str
):
    for mark in (b"", codecs.BOM_UTF8, b"\n\n"):
        fault = fault_of(write_file(mark + text.encode()))
        assert fault.reason.startswith(f"{found}, expected one object a line")
        assert f"`{remedy}`" in fault.reason
        assert fault.line == (3 if mark == b"\n\n" else 1)


def test_an_array_longer_than_a_line_may_be_is_named_too(write_file: WriteFile):
    with pytest.raises(UnreadableFile, match="the file is a JSON array"):
        list(read_lines(write_file(ARRAY.encode()), max_line_bytes=50))


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["[1, 2]", ROW_A, ROW_B], ["1:not_an_object", "a", "b"]),
        ([ROW_A, "[1, 2]"], ["a", "2:not_an_object"]),
        (["[1, 2]"], ["1:not_an_object"]),
        ([f"[{ROW_A}]", f"[{ROW_B}]"], ["1:not_an_object", "2:not_an_object"]),
        ([ROW_A[:20], ROW_B], ["1:bad_json", "b"]),
        (['{"id": "t", "context":', ROW_A], ["1:bad_json", "a"]),
        (['{"id": "t",', ROW_A, ROW_B], ["1:bad_json", "a", "b"]),
        ([ROW_A[:25] + ROW_B, ROW_A], ["1:bad_json", "a"]),
        (["{"], ["1:bad_json"]),
        ([ROW_A, "{", '"id": "c"', "}"], ["a", "2:bad_json", "3:bad_json", "4:bad_json"]),
    ],
)
def test_a_bad_line_among_lines_is_a_reject_of_that_line(
    write_file: WriteFile, lines: list[str], expected: list[str]
):
    assert outcomes(write_file(lines)) == expected


def test_a_torn_last_line_is_a_reject(write_file: WriteFile):
    assert outcomes(write_file(f"{ROW_A}\n{ROW_B[:30]}".encode())) == ["a", "2:bad_json"]


def test_a_bad_byte_at_the_start_does_not_hide_the_other_lines(write_file: WriteFile):
    file = write_file(b"{\n\xff\n" + ROW_A.encode())
    assert outcomes(file) == ["1:bad_json", "2:bad_encoding", "a"]
    file = write_file(f"[{ROW_A}]\n".encode() + b"\xff")
    assert outcomes(file) == ["1:not_an_object", "2:bad_encoding"]


CSV_HEAD = "id,context,continuation"


@pytest.mark.parametrize(
    ("content", "kind", "cure"),
    [
        (f"{CSV_HEAD}\n1,a,b\n2,c,d\n", "CSV", "csv.DictReader(sys.stdin)"),
        (f"{CSV_HEAD}\r\n1,a,b\r\n", "CSV", "csv.DictReader(sys.stdin)"),
        ('"id","context"\n"1","a, ""x""\nmore"\n"2","b"\n', "CSV", "csv.DictReader"),
        ("id;context\n1;a\n", "CSV", 'delimiter=";"'),
        ("id\tcontext\n1\ta\n", "TSV", 'delimiter="\\t"'),
        ("\ufeffprompt,completion\nAdd 0+1,1\nAdd 1+1,2\n", "CSV", "csv.DictReader"),
        ('<?xml version="1.0"?>\n<rows/>\n', "XML", "JSONL"),
        ("<!DOCTYPE html>\n<p>\n", "HTML", "JSONL"),
        ("---\nid: a\ncontext: b\n", "YAML", "JSON"),
    ],
)
def test_text_of_another_kind_is_named_with_what_converts_it(
    write_file: WriteFile, content: str, kind: str, cure: str
) -> None:
    for packed in ("", ".gz"):
        fault = fault_of(write_file(PACKED[packed](content.encode()), f"in.jsonl{packed}"))
        assert fault.line == 1
        assert f"this is a {kind} file, expected one object a line" in fault.reason
        assert cure in fault.reason


def test_the_cure_of_csv_gives_lines_whose_cells_are_the_texts_that_they_were(
    write_file: WriteFile, tmp_path: Path
) -> None:
    file = write_file(b'id;context\n007;"a ""b""\nc"\n')
    cure = fault_of(file).reason.partition("`")[2].partition("`")[0]
    command = cure.replace("python", sys.executable, 1).replace("FILE.jsonl", "out.jsonl")
    subprocess.run(command.replace("FILE", "in.jsonl"), shell=True, cwd=tmp_path, check=True)
    assert json.loads((tmp_path / "out.jsonl").read_text()) == {"id": "007", "context": 'a "b"\nc'}


@pytest.mark.parametrize(
    "first", ["id,context,continuation", "not json", '"id": "a", "b"}', "x, y, z"]
)
def test_a_first_line_that_is_no_json_does_not_make_a_file_another_kind(
    write_file: WriteFile, first: str
) -> None:
    assert outcomes(write_file([first, ROW_A, ROW_B])) == ["1:bad_json", "a", "b"]


def test_lines_of_prose_are_rejects_of_their_own(write_file: WriteFile) -> None:
    prose = ["Well, no", "one, two, three", "the end"]
    assert outcomes(write_file(prose)) == [f"{line}:bad_json" for line in (1, 2, 3)]


def test_a_dict_as_python_writes_it_has_its_own_remedy() -> None:
    with pytest.raises(Rejected, match=r"Python's repr of a dict: write it with json\.dumps"):
        parse_line("{'id': 'a', 'context': None}")


def test_a_folder_and_a_vanished_file_are_unreadable(tmp_path: Path):
    assert "cannot be read (Is a directory)" in fault_of(SourceFile(tmp_path, "in")).reason
    fault = fault_of(SourceFile(tmp_path / "gone.jsonl", "gone.jsonl"))
    assert str(fault).startswith("gone.jsonl:1: unreadable_file: cannot be read (No such file")


# ---- an input of files --------------------------------------------------------------------------


def test_lines_and_records_follow_the_files_in_order(write_file: WriteFile, tmp_path: Path):
    write_file([ROW_B], "data/b.jsonl")
    write_file(gzip.compress(f"\n{ROW_A}\n{ROW_B}".encode()), "data/a/z.jsonl.gz")
    read = read_input(find_files(str(tmp_path / "data")))
    assert read.places == [("a/z.jsonl.gz", 2), ("a/z.jsonl.gz", 3), ("b.jsonl", 1)]
    assert read.texts == [ROW_A, ROW_B, ROW_B]
    assert [(piece.file, piece.lines, piece.blank_lines) for piece in read.pieces] == [
        ("a/z.jsonl.gz", 2, 1),
        ("b.jsonl", 1, 0),
    ]


@pytest.mark.parametrize("lines", [[], ["2024-03-01"], ["null", "7"]])
def test_a_line_is_text_whatever_it_looks_like(write_file: WriteFile, lines: list[str]):
    assert read_input([write_file(lines)]).texts == lines


def test_rejects_carry_file_and_line_and_every_line_is_accounted_for(write_file: WriteFile):
    file = write_file(f"{ROW_A}\n\n".encode() + b"\xff\n" + b"x" * 200)
    read = read_input([file], max_line_bytes=100)
    assert [(name, line, reject.code) for name, line, reject in read.rejects] == [
        ("in.jsonl", 3, "bad_encoding"),
        ("in.jsonl", 4, "line_too_long"),
    ]
    assert read.rejects[0][2].excerpt == "\\xff"
    assert read.pieces[0].lines == len(read.texts) + len(read.rejects) == 3


def test_stdin_is_read_by_lines(repository: Path):
    code = (
        "from pipeline.lines.files import find_files;"
        "from pipeline.lines.text import read_lines;"
        "print([(line.line, line.text) for line in read_lines(find_files('-')[0])])"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code],
        input=b"one\n\ntwo",
        capture_output=True,
        cwd=repository,
        check=True,
    )
    assert ended.stdout.decode().strip() == "[(1, 'one'), (3, 'two')]"


PEAK_MEMORY = """
import resource, sys
from pipeline.lines.files import find_files
from pipeline.lines.plan import plan_shards
from pipeline.lines.tables import open_piece

def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

before = peak_mib()
lines = 0
for shard in plan_shards(find_files(sys.argv[1])).shards:
    for piece in shard.pieces:
        lines += sum(1 for _ in open_piece(piece))
print(lines, peak_mib() - before)
"""


@pytest.mark.nightly
@pytest.mark.parametrize("suffix", sorted(PACKED))
def test_a_gigabyte_is_read_in_bounded_memory(tmp_path: Path, repository: Path, suffix: str):
    block = (ROW_A.replace("x", "é" * 400) + "\n").encode() * 1000
    blocks = 2**30 // len(block)
    path = tmp_path / f"big.jsonl{suffix}"
    opened: Any = {"": open, ".gz": gzip.open, ".zst": zstandard.open}[suffix]
    with opened(path, "wb") as stream:
        for _ in range(blocks):
            stream.write(block)
    arguments = [sys.executable, "-c", PEAK_MEMORY, str(path)]
    ended = subprocess.run(arguments, capture_output=True, cwd=repository, check=True)
    lines, peak = ended.stdout.split()
    assert int(lines) == blocks * 1000
    assert float(peak) < 128  # MiB above what importing takes


# ---- the case files beside the repository --------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("bom_first.jsonl", ["a", "b"]),
        ("bom_second_a.jsonl", ["a"]),
        ("bom_second_b.jsonl", ["b"]),
        ("line_separators.jsonl", ["ls", "nel"]),
        ("latin1_byte.jsonl", ["ok", "2:bad_encoding"]),
        (
            "lone_surrogate.jsonl",
            ["ok-1", "2:lone_surrogate", "3:lone_surrogate", "pair-ok", "5:lone_surrogate", "ok-2"],
        ),
        ("nan_infinity.jsonl", ["1:bad_json", "2:bad_json", "3:bad_json", "4:bad_json", "ok"]),
        ("dup_keys.jsonl", ["ok", "2:bad_json"]),
        ("truncated_last_line.jsonl", ["a", "b", "3:bad_json"]),
        ("torn_middle_line.jsonl", ["a", "2:bad_json", "d"]),
        (
            "not_object_lines.jsonl",
            ["a", *(f"{line}:not_an_object" for line in (2, 3, 4, 5)), "None", "b"],
        ),
        ("agent_trace_hermes.jsonl", ["h1", "h2"]),
        ("agent_trace_droid.jsonl", ["d1"]),
    ],
)
def test_a_case_file_ends_as_the_fault_log_says(shared: Path, name: str, expected: list[str]):
    assert outcomes(SourceFile(shared / "cases" / name, name)) == expected


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("utf16.jsonl", 1),
        ("json_array.jsonl", 1),
        ("pretty_printed.jsonl", 1),
        ("gz_truncated.jsonl.gz", 21),
        ("zst_multiframe_truncated.jsonl.zst", 29),
    ],
)
def test_a_case_file_that_cannot_be_read_to_its_end_is_named(shared: Path, name: str, line: int):
    with pytest.raises(UnreadableFile) as caught:
        read_input([SourceFile(shared / "cases" / name, name)])
    assert (caught.value.file, caught.value.line) == (name, line)


@pytest.mark.parametrize(
    "name", ["gz_ok.jsonl.gz", "gz_two_members.jsonl.gz", "zst_multiframe.jsonl.zst"]
)
def test_a_packed_case_file_has_its_forty_rows(shared: Path, name: str):
    assert len(outcomes(SourceFile(shared / "cases" / name, name))) == 40


CHANGED_BY_OTHER_READERS = [
    *("late_reason", "late_missing_key", "first_row_missing_key", "date_like", "date_like_late"),
    *("ids_mixed", "json_lookalike_strings", "memories_mixed", "tool_args_floats"),
    *("tool_calls_late", "tool_schema_varied", "whitespace_edges", "wrong_types"),
]


@pytest.mark.parametrize("name", CHANGED_BY_OTHER_READERS)
def test_a_case_file_keeps_every_value_as_python_reads_it(shared: Path, name: str):
    path = shared / "cases" / f"{name}.jsonl"
    texts = read_input([SourceFile(path, name)]).texts
    lines = path.read_bytes().decode().split("\n")[:-1]
    assert texts == lines
    # `repr` tells 1 from "1", from 1.0 and from True, and keeps the order of the keys.
    parsed = [parse_line(text) for text in texts]
    assert repr(parsed) == repr([json.loads(line) for line in lines])


@pytest.mark.parametrize(
    "values",
    [
        [None, None, "late text"],
        ["2024-03-01", "2024-03-01T00:00:00Z"],
        [1, "1", "01", "1e5", "null", True, 1.0],
        ["42", ["a"], {"b": 1}, "None"],
        [1e-12, 0.3, 1e2, 10**25],
        [{"p": {"a": 1}}, {"p": {"b": "x"}}, {}],
    ],
)
def test_values_of_one_key_keep_their_own_types(write_file: WriteFile, values: list[Any]):
    rows = [{"id": str(i), "value": value} for i, value in enumerate(values)] + [{"id": "last"}]
    read = read_input([write_file([json.dumps(row) for row in rows])])
    assert repr([parse_line(text) for text in read.texts]) == repr(rows)

"""A shard is made whole or not at all, and the same bytes every time."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config import PrepareConfig
from pipeline.errors import UnreadableFile, UsageError
from pipeline.job.shard import ENTRY_SCHEMA, Progress, encode_shard
from pipeline.job.shard_record import ShardRecord, marker_path, read_finished
from pipeline.lines.files import SourceFile
from pipeline.lines.plan import SourceShard, plan_shards, whole_piece
from pipeline.lines.tables import open_table
from pipeline.rows.builder import RowBuilder
from pipeline.rows.line_mapper import LineMapper
from pipeline.rows.table import sum_digests
from pipeline.sets.arrow_file import HashedFile, RowFile, read_table, row_schema
from pipeline.sets.place import Target
from pipeline.types import NUMERIC_COLUMNS
from tests.conftest import shards_of, write_lines


def example(id_: str, continuation: str = "4", **values: Any) -> dict[str, Any]:
    return {"id": id_, "context": "2+2=", "continuation": continuation, **values}


LINES: list[dict[str, Any] | str] = [
    example("a"),
    "",
    '{"torn',
    *(example(f"e{number}", f"{number}") for number in range(6)),
    example("header", "<|im_start|>user"),
]


@dataclass(frozen=True)
class Job:
    """What a shard is made with, and the folder that it is made in."""

    shards: tuple[SourceShard, ...]
    mapper: LineMapper
    config: PrepareConfig
    folder: Path

    def encode(self, index: int = 0, **options: Any) -> ShardRecord:
        return encode_shard(self.shards[index], self.mapper, self.config, self.folder, **options)


@pytest.fixture
def make_job(tmp_path: Path, make_config: Callable[..., PrepareConfig]) -> Callable[..., Job]:
    """Return a function that makes the job of `LINES` with given settings and shard size."""

    def make(shard_bytes: int = 2**20, **settings: Any) -> Job:
        path = write_lines(tmp_path / "in.jsonl", LINES)
        config = make_config(path, **{"batch_size": 3, **settings})
        files = [SourceFile(path, "in.jsonl")]
        with shards_of(shard_bytes):
            plan = plan_shards(files)
        mapper = LineMapper(config, RowBuilder(config))
        folder = tmp_path / "shards"
        folder.mkdir(exist_ok=True)
        return Job(plan.shards, mapper, config, folder)

    return make


def contents_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


# ---- what a shard becomes


def test_a_shard_becomes_rows_entries_examples_rejects_and_a_marker(
    make_job: Callable[..., Job],
) -> None:
    job = make_job()
    record = job.encode()
    assert sorted(contents_of(job.folder)) == [
        "00000-entries.arrow",
        "00000-examples.sha256",
        "00000-rejects.jsonl",
        "00000-train.arrow",
        "00000.json",
    ]
    rows = read_table(job.folder / record.rows["train"].name)
    ids = ["a", *(f"e{number}" for number in range(6))]
    assert rows.column("id").to_pylist() == ids
    rejects = (job.folder / record.rejects.name).read_text("utf-8").splitlines()
    assert [json.loads(line)["line"] for line in rejects] == [3, 10]
    assert record.codes == {"bad_json": 1, "control_tokens": 1}
    assert (record.lines, record.pieces[0].blank_lines) == (9, 1)
    assert record.lines == record.counts.rows + sum(record.codes.values())
    assert record.counts.sums["total_len"] == sum(rows.column("total_len").to_pylist())
    examples = (job.folder / record.examples.name).read_text("utf-8").splitlines()
    assert [json.loads(line.partition("  ")[2]) for line in examples] == ids


def test_entries_say_which_example_each_row_is(make_job: Callable[..., Job]) -> None:
    job = make_job()
    record = job.encode()
    entries = read_table(job.folder / record.entries.name)
    assert entries.schema.remove_metadata() == ENTRY_SCHEMA
    assert entries.column("source").to_pylist()[:2] == ["in.jsonl:1", "in.jsonl:4"]
    first, *_ = Path(job.config.input[0]).read_bytes().splitlines()
    assert entries.column("line_digest")[0].as_py() == hashlib.sha256(first).digest()
    assert record.digest == sum_digests(entries.column("row_digest").to_pylist())


def test_what_is_recorded_of_a_file_is_what_is_on_disk(make_job: Callable[..., Job]) -> None:
    job = make_job(validation_fraction=0.5)
    record = job.encode()
    assert set(record.rows) == {"train", "validation"}
    for file in record.files:
        data = (job.folder / file.name).read_bytes()
        assert (file.bytes, file.sha256) == (len(data), hashlib.sha256(data).hexdigest())
        lines = (
            read_table(job.folder / file.name).num_rows
            if "arrow" in file.name
            else data.count(b"\n")
        )
        assert file.rows == lines
    assert sum(file.rows for file in record.rows.values()) == record.counts.rows == 7
    assert min(file.rows for file in record.rows.values()) > 0


def test_columns_for_training_are_the_only_ones_in_the_rows(make_job: Callable[..., Job]) -> None:
    job = make_job(columns="train")
    record = job.encode()
    assert read_table(job.folder / record.rows["train"].name).column_names == list(NUMERIC_COLUMNS)
    assert read_table(job.folder / record.entries.name).column("id").to_pylist()[0] == "a"


def test_each_batch_is_told_with_its_place_and_its_figures(make_job: Callable[..., Job]) -> None:
    heard: list[Progress] = []
    record = make_job().encode(on_batch=heard.append)
    assert [(each.place, each.lines, each.rejects) for each in heard] == [
        ("in.jsonl:4", 3, 1),
        ("in.jsonl:7", 3, 0),
        ("in.jsonl:10", 3, 1),
    ]
    assert sum(each.rows for each in heard) == record.counts.rows
    assert sum(each.tokens for each in heard) == record.counts.sums["total_len"]


def test_long_lines_make_small_batches(
    make_job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.job.shard.BATCH_CHARACTERS", 100)
    heard: list[Progress] = []
    make_job(batch_size=1000).encode(on_batch=heard.append)
    # The torn line fits beside the first, and no other pair does.
    assert [each.lines for each in heard] == [2, 1, 1, 1, 1, 1, 1, 1]


# ---- the same bytes


def test_two_attempts_give_the_same_bytes(make_job: Callable[..., Job], tmp_path: Path) -> None:
    job = make_job()
    first = job.encode()
    before = contents_of(job.folder)
    assert job.encode() == first
    assert contents_of(job.folder) == before
    elsewhere = replace(job, folder=tmp_path / "elsewhere")
    elsewhere.folder.mkdir()
    assert elsewhere.encode() == first
    assert contents_of(elsewhere.folder) == before


def test_batches_change_no_row_no_count_and_no_digest(
    make_job: Callable[..., Job], tmp_path: Path
) -> None:
    job = make_job()
    record = job.encode()
    rows = read_table(job.folder / record.rows["train"].name)
    for size in (1, 2, 100):
        again = replace(job, config=replace(job.config, batch_size=size)).encode()
        assert read_table(job.folder / again.rows["train"].name).equals(rows)
        assert (again.digest, again.counts, again.codes) == (
            record.digest,
            record.counts,
            record.codes,
        )
        assert (again.examples, again.rejects) == (record.examples, record.rejects)


def test_shards_of_a_few_lines_hold_the_rows_of_one_shard(make_job: Callable[..., Job]) -> None:
    whole = make_job()
    record = whole.encode()
    rows = read_table(whole.folder / record.rows["train"].name)
    shutil.rmtree(whole.folder)
    parts = make_job(shard_bytes=100)
    records = [parts.encode(shard.index) for shard in parts.shards]
    assert len(records) > 3
    tables = [read_table(parts.folder / each.rows["train"].name) for each in records]
    assert pa.concat_tables(tables).combine_chunks().equals(rows.combine_chunks())
    assert sum_digests(bytes.fromhex(each.digest) for each in records) == record.digest


# ---- whole or not at all


def test_names_are_given_to_whole_files_and_the_marker_is_the_last(
    make_job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job()
    named: dict[str, bytes] = {}
    give_name = Path.replace

    def note(path: Path, target: Path) -> Path:
        named[target.name] = path.read_bytes()
        assert path.name.startswith(".")
        return give_name(path, target)

    monkeypatch.setattr(Path, "replace", note)
    job.encode()
    assert list(named)[-1] == "00000.json"
    assert named == contents_of(job.folder)


@pytest.mark.parametrize("batches", [1, 2, 3])
def test_a_shard_that_is_killed_has_no_name_and_is_not_taken_for_finished(
    make_job: Callable[..., Job], batches: int
) -> None:
    job = make_job()
    child = os.fork()
    if child == 0:
        heard: list[Progress] = []

        def die(progress: Progress) -> None:
            heard.append(progress)
            if len(heard) == batches:
                os.kill(os.getpid(), signal.SIGKILL)

        job.encode(on_batch=die)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    assert contents_of(job.folder)
    assert all(name.startswith(".") for name in contents_of(job.folder))
    assert read_finished(job.folder, 0) is None


def test_an_error_leaves_no_name(make_job: Callable[..., Job]) -> None:
    job = make_job()
    path = Path(job.config.input[0])
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(UsageError, match=r"in\.jsonl changed while it was read"):
        job.encode()
    path.unlink()
    with pytest.raises(UnreadableFile, match=r"in\.jsonl"):
        job.encode()
    assert all(name.startswith(".") for name in contents_of(job.folder))


def test_what_a_killed_attempt_left_is_removed_and_what_is_finished_stays(
    make_job: Callable[..., Job], tmp_path: Path
) -> None:
    job = make_job()
    target = Target(str(tmp_path / "set"))
    job = replace(job, folder=target.open_work("mine"))
    record = job.encode()
    before = contents_of(job.folder)
    (job.folder / ".00001-77-train.arrow").write_bytes(b"half")
    assert target.open_work("mine") == job.folder
    assert contents_of(job.folder) == before
    assert read_finished(job.folder, 0) == record


# ---- which shards are finished


@pytest.mark.parametrize("batch_size", [1, 100])
def test_a_finished_shard_is_known_by_its_marker(
    make_job: Callable[..., Job], batch_size: int
) -> None:
    job = make_job(batch_size=batch_size)
    assert read_finished(job.folder, 0) is None
    record = job.encode()
    assert read_finished(job.folder, 0) == record
    assert read_finished(job.folder, 1) is None


FILES = ["entries.arrow", "examples.sha256", "rejects.jsonl", "train.arrow"]


@pytest.mark.parametrize("damage", ["missing", "one bit", "cut", "longer", "empty"])
@pytest.mark.parametrize("name", [*(f"00000-{name}" for name in FILES), "00000.json"])
def test_a_shard_of_which_a_byte_is_wrong_is_not_finished(
    make_job: Callable[..., Job], name: str, damage: str
) -> None:
    job = make_job()
    job.encode()
    path = job.folder / name
    data = bytearray(path.read_bytes())
    if damage == "missing":
        path.unlink()
    elif damage == "one bit":
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    else:
        path.write_bytes({"cut": data[:-1], "longer": data + b"\n", "empty": b""}[damage])
    assert read_finished(job.folder, 0) is None


def test_the_marker_of_another_shard_does_not_count(make_job: Callable[..., Job]) -> None:
    job = make_job()
    job.encode()
    shutil.copy(marker_path(job.folder, 0), marker_path(job.folder, 1))
    assert read_finished(job.folder, 1) is None


def test_a_record_comes_back_from_its_marker(make_job: Callable[..., Job]) -> None:
    record = make_job(validation_fraction=0.5).encode()
    assert ShardRecord.from_marker(record.to_marker()) == record


@given(st.text())
def test_other_text_is_no_marker(text: str) -> None:
    with pytest.raises(ValueError, match="its hash is not that of its text"):
        ShardRecord.from_marker(text)


VALUES = st.none() | st.integers() | st.text() | st.lists(st.integers())
KEYS = st.sampled_from(["index", "pieces", "rows", "entries", "examples", "rejects", "counts"])


@given(VALUES | st.dictionaries(KEYS, VALUES | st.dictionaries(st.text(), VALUES)))
def test_a_marker_of_another_shape_is_none_of_ours(value: Any) -> None:
    text = json.dumps(value)
    with pytest.raises(ValueError, match="no marker of a shard: "):
        ShardRecord.from_marker(f"{text}\n{hashlib.sha256(text.encode()).hexdigest()}\n")


# ---- files that are hashed while they are written


@given(st.lists(st.lists(st.text(st.characters(exclude_categories=["Cs"])))))
def test_lines_are_hashed_and_counted_as_they_are_written(batches: list[list[str]]) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "lines"
        file = HashedFile(path)
        for lines in batches:
            file.write_lines([f"{line}\n" for line in lines])
        file.close()
        file.close()
        data = path.read_bytes()
    written = file.written()
    assert data.decode() == "".join(f"{line}\n" for lines in batches for line in lines)
    assert (written.name, written.bytes) == ("lines", len(data))
    assert written.sha256 == hashlib.sha256(data).hexdigest()
    assert written.rows == sum(map(len, batches))


@pytest.mark.parametrize("columns", ["full", "train"])
def test_a_file_of_no_rows_is_whole(tmp_path: Path, columns: str) -> None:
    with RowFile(tmp_path / "rows.arrow", row_schema(columns)) as file:
        pass
    assert file.written().rows == 0
    assert read_table(tmp_path / "rows.arrow").schema == row_schema(columns)


def test_a_file_that_an_error_stopped_is_no_whole_stream(tmp_path: Path) -> None:
    schema = pa.schema([pa.field("prompt", pa.string())])
    with pytest.raises(KeyError, match="prompt"), RowFile(tmp_path / "rows.arrow", schema) as file:
        file.write(pa.table({"other": ["x"]}))
    reading = open_table(whole_piece(SourceFile(tmp_path / "rows.arrow", "rows.arrow")))
    with pytest.raises(UnreadableFile, match="not a whole table"):
        list(reading)


def test_writing_a_name_again_leaves_what_is_linked_from_it(tmp_path: Path) -> None:
    """The files of a published set are those of its shards under another name."""
    (tmp_path / "shard").write_bytes(b"published")
    os.link(tmp_path / "shard", tmp_path / "set")
    file = HashedFile(tmp_path / "shard")
    file.write_lines(["new\n"])
    file.close()
    assert (tmp_path / "set").read_bytes() == b"published"
    assert (tmp_path / "shard").read_bytes() == b"new\n"

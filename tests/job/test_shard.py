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
from typing import Any

import datasets
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import prepare
from pipeline.config import PrepareConfig
from pipeline.errors import UnreadableFile, UsageError
from pipeline.job.shard import Progress, map_shard
from pipeline.job.shard_record import (
    ShardRecord,
    read_finished,
    read_made,
    record_path,
    rows_path,
)
from pipeline.lines.files import SourceFile
from pipeline.lines.plan import SourceShard, plan_shards
from pipeline.rows.row_map import RowMap
from pipeline.sets.load import verify
from pipeline.sets.place import Target
from tests.conftest import shards_of, write_lines

pytestmark = pytest.mark.usefixtures("tokenizers_loaded_once")


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
    row_map: RowMap
    config: PrepareConfig
    folder: Path

    def map(self, index: int = 0, **options: Any) -> ShardRecord:
        lines = self.config.batch_size
        return map_shard(self.shards[index], self.row_map, self.folder, lines, **options)

    def rows(self, index: int = 0) -> list[dict[str, Any]]:
        """Return the rows and rejects of a shard that was made."""
        return datasets.Dataset.from_file(str(rows_path(self.folder, index))).to_list()


@pytest.fixture
def make_job(tmp_path: Path, make_config: Callable[..., PrepareConfig]) -> Callable[..., Job]:
    """Return a function that makes the job of `LINES` with given settings and shard size."""

    def make(shard_bytes: int = 2**20, **settings: Any) -> Job:
        path = write_lines(tmp_path / "in.jsonl", LINES)
        config = make_config(path, **{"batch_size": 3, **settings})
        with shards_of(shard_bytes):
            plan = plan_shards([SourceFile(path, "in.jsonl")])
        folder = tmp_path / "shards"
        folder.mkdir(exist_ok=True)
        row_map = RowMap(settings=config.row_settings(), on_reject="keep")
        return Job(plan.shards, row_map, config, folder)

    return make


def contents_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


# ---- what a shard becomes


def test_a_shard_becomes_one_file_of_rows_and_rejects_in_order_and_a_record(
    make_job: Callable[..., Job],
) -> None:
    job = make_job()
    record = job.map()
    data = contents_of(job.folder)
    assert sorted(data) == ["00000.arrow", "00000.json"]
    rows = job.rows()
    assert [(row["source"], row["code"]) for row in rows] == [
        ("in.jsonl:1", None),
        ("in.jsonl:3", "bad_json"),
        *((f"in.jsonl:{line}", None) for line in range(4, 10)),
        ("in.jsonl:10", "control_tokens"),
    ]
    assert record.codes == {"bad_json": 1, "control_tokens": 1}
    assert (record.lines, record.pieces[0].blank_lines) == (9, 1)
    assert record.lines == record.rows + sum(record.codes.values())
    assert record.shapes.formats == {"own": 8}
    made = data["00000.arrow"]
    assert (record.bytes, record.sha256) == (len(made), hashlib.sha256(made).hexdigest())


def test_each_row_says_which_example_it_is_and_which_split_it_is_of(
    make_job: Callable[..., Job],
) -> None:
    job = make_job(validation_fraction=0.5)
    job.map()
    (first, *others) = [row for row in job.rows() if row["code"] is None]
    line, *_ = Path(job.config.input[0]).read_bytes().splitlines()
    assert first["line_sha256"] == hashlib.sha256(line).digest()
    assert {row["split"] for row in [first, *others]} == {"train", "validation"}


def test_each_batch_is_told_with_its_place_and_its_figures(make_job: Callable[..., Job]) -> None:
    heard: list[Progress] = []
    job = make_job()
    record = job.map(on_batch=heard.append)
    assert [(each.place, each.lines, each.rejects) for each in heard] == [
        ("in.jsonl:4", 3, 1),
        ("in.jsonl:7", 3, 0),
        ("in.jsonl:10", 3, 1),
    ]
    assert heard[0].first_reject.startswith("in.jsonl:3: bad_json: ")
    assert heard[1].first_reject == ""
    assert sum(each.rows for each in heard) == record.rows
    assert sum(each.tokens for each in heard) == sum(row["total_len"] or 0 for row in job.rows())


def test_long_lines_make_small_batches(
    make_job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.job.shard.BATCH_CHARACTERS", 120)
    heard: list[Progress] = []
    make_job(batch_size=1000).map(on_batch=heard.append)
    lines = [len(json.dumps(line)) for line in LINES if line]
    start = 0
    for each in heard:
        assert each.lines == 1 or sum(lines[start : start + each.lines]) <= 120
        start += each.lines
    assert start == len(lines)
    assert max(each.lines for each in heard) > 1


@pytest.mark.parametrize("text", ["", "\n \n"])
def test_a_shard_of_blank_lines_is_whole_and_has_no_row(
    make_job: Callable[..., Job], text: str
) -> None:
    job = make_job()
    path = Path(job.config.input[0])
    path.write_text(text)
    job = replace(job, shards=plan_shards([SourceFile(path, "in.jsonl")]).shards)
    if not job.shards:
        return
    record = job.map()
    assert (record.lines, record.rows, job.rows()) == (0, 0, [])
    assert read_finished(job.folder, 0) == record


# ---- the same bytes


def test_two_attempts_give_the_same_bytes(make_job: Callable[..., Job], tmp_path: Path) -> None:
    job = make_job()
    first = job.map()
    before = contents_of(job.folder)
    assert job.map() == first
    assert contents_of(job.folder) == before
    elsewhere = replace(job, folder=tmp_path / "elsewhere")
    elsewhere.folder.mkdir()
    assert elsewhere.map() == first
    assert contents_of(elsewhere.folder) == before


def test_batches_change_no_row_and_no_count(make_job: Callable[..., Job]) -> None:
    job = make_job()
    record, rows = job.map(), job.rows()
    for size in (1, 2, 100):
        job = replace(job, config=replace(job.config, batch_size=size))
        again = job.map()
        assert job.rows() == rows
        assert (again.rows, again.codes, again.shapes) == (
            record.rows,
            record.codes,
            record.shapes,
        )


def test_shards_of_a_few_lines_hold_the_rows_of_one_shard(make_job: Callable[..., Job]) -> None:
    whole = make_job()
    whole.map()
    rows = whole.rows()
    shutil.rmtree(whole.folder)
    parts = make_job(shard_bytes=100)
    for shard in parts.shards:
        parts.map(shard.index)
    assert len(parts.shards) > 3
    assert [row for shard in parts.shards for row in parts.rows(shard.index)] == rows


# ---- whole or not at all


def test_names_are_given_to_whole_files_and_the_record_is_the_last(
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
    job.map()
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

        job.map(on_batch=die)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    assert contents_of(job.folder)
    assert not rows_path(job.folder, 0).exists()
    assert read_finished(job.folder, 0) is None


def test_an_error_leaves_no_name(make_job: Callable[..., Job]) -> None:
    job = make_job()
    path = Path(job.config.input[0])
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(UsageError, match=r"in\.jsonl changed while it was read"):
        job.map()
    path.unlink()
    with pytest.raises(UnreadableFile, match=r"in\.jsonl"):
        job.map()
    assert all(name.startswith(".") for name in contents_of(job.folder))


def test_what_a_killed_attempt_left_is_removed_and_what_is_finished_stays(
    make_job: Callable[..., Job], tmp_path: Path
) -> None:
    job = make_job()
    target = Target(str(tmp_path / "set"))
    job = replace(job, folder=target.open_work("mine"))
    record = job.map()
    before = contents_of(job.folder)
    for name in (".00001-host-77.arrow", ".00001-host-77-lines.arrow", "tmpabcdef"):
        (job.folder / name).write_bytes(b"half")
    assert target.open_work("mine") == job.folder
    assert contents_of(job.folder) == before
    assert read_finished(job.folder, 0) == record


# ---- which shards are finished


@pytest.mark.parametrize("batch_size", [1, 100])
def test_a_finished_shard_is_known_by_its_record(
    make_job: Callable[..., Job], batch_size: int
) -> None:
    job = make_job(batch_size=batch_size)
    assert read_finished(job.folder, 0) is None
    record = job.map()
    assert read_finished(job.folder, 0) == read_made(job.folder, 0) == record
    assert read_finished(job.folder, 1) is None


@pytest.mark.parametrize("damage", ["missing", "one bit", "cut", "longer", "empty"])
@pytest.mark.parametrize("name", ["00000.arrow", "00000.json"])
def test_a_shard_of_which_a_byte_is_wrong_is_not_finished(
    make_job: Callable[..., Job], name: str, damage: str
) -> None:
    job = make_job()
    job.map()
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


def test_the_record_of_another_shard_does_not_count(make_job: Callable[..., Job]) -> None:
    job = make_job()
    job.map()
    for path_of in (record_path, rows_path):
        shutil.copy(path_of(job.folder, 0), path_of(job.folder, 1))
    assert read_finished(job.folder, 1) is None


def test_a_record_comes_back_from_its_text(make_job: Callable[..., Job]) -> None:
    record = make_job(validation_fraction=0.5).map()
    assert ShardRecord.from_marker(record.to_marker()) == record


@given(st.text())
def test_other_text_is_no_record(text: str) -> None:
    with pytest.raises(ValueError, match="its hash is not that of its text"):
        ShardRecord.from_marker(text)


VALUES = st.none() | st.integers() | st.text() | st.lists(st.integers())
KEYS = st.sampled_from(["index", "pieces", "bytes", "sha256", "rows", "codes", "shapes"])


@given(VALUES | st.dictionaries(KEYS, VALUES | st.dictionaries(st.text(), VALUES)))
def test_a_record_of_another_shape_is_none_of_ours(value: Any) -> None:
    text = json.dumps(value)
    with pytest.raises(ValueError, match="no record of a shard: "):
        ShardRecord.from_marker(f"{text}\n{hashlib.sha256(text.encode()).hexdigest()}\n")


@pytest.mark.parametrize("name", ["x[m-1", "x(1", "x{a}", "x*?", "x\\1", "x m-1 ü"])
def test_a_job_writes_to_a_folder_of_any_name(
    tmp_path: Path, make_config: Callable[..., PrepareConfig], name: str
) -> None:
    lines = write_lines(tmp_path / "in.jsonl", [example("a"), example("b")])
    made = prepare(make_config(lines, output=str(tmp_path / name / name)))
    assert verify(made.output) == []
    assert datasets.load_from_disk(str(made.output))["train"]["id"][:] == ["a", "b"]
    # A second job beside the first, from the same name.
    more = write_lines(tmp_path / "more.jsonl", [example("c")])
    both = prepare(make_config(more, output=str(tmp_path / name / name), append=True))
    assert both.counts["rows"] == 3

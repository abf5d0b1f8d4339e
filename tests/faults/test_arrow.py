"""Arrow and Parquet files of others: a sentence with the file's name, never a signal or a traceback."""

from __future__ import annotations

import random
import shutil
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.cli.command import main
from pipeline.errors import DataRefused, UnreadableFile
from pipeline.lines import apart
from pipeline.lines.apart import EndedApart, run_apart
from pipeline.lines.files import SourceFile
from pipeline.lines.tables import read_file
from pipeline.sets.load import load, open_splits, verify
from pipeline.sets.row_files import check_row_files
from scripts.fuzz_arrow import find_faults, lie, make_inputs
from tests.faults.apart_tasks import (
    count,
    count_and_die,
    name_process,
    read,
    take_memory,
    wait,
)

SHARD = "train/data-00000-of-00001.arrow"


def test_what_a_process_apart_yields_comes_in_order_and_the_next_task_has_its_own() -> None:
    begun = run_apart(count, 1000)
    assert next(begun) == 0
    begun.close()
    assert list(run_apart(count, 50)) == list(range(50))


def test_a_relative_path_is_one_of_the_callers_folder_even_where_that_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
        monkeypatch.chdir(tmp_path / name)
        assert list(run_apart(read, "file")) == [name]
    # A folder that is gone has no paths; what needs none goes on.
    (tmp_path / "second" / "file").unlink()
    (tmp_path / "second").rmdir()
    assert list(run_apart(count, 2)) == [0, 1]


def test_the_death_of_a_process_apart_is_an_error_and_the_next_one_works() -> None:
    with pytest.raises(EndedApart, match="SIGSEGV"):
        list(run_apart(count_and_die, 3))
    assert list(run_apart(count, 3)) == [0, 1, 2]


def test_memory_and_silence_of_a_process_apart_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EndedApart, match="over 2 GiB of memory"):
        list(run_apart(take_memory))
    monkeypatch.setattr(apart, "SILENCE_SECONDS", 1.0)
    with pytest.raises(EndedApart, match="takes over 1 s"):
        list(run_apart(wait))


@pytest.fixture
def folder(quickstart_set: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(quickstart_set, tmp_path / "set"))


def test_a_lying_offset_is_named_by_every_verb(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = bytearray((folder / SHARD).read_bytes())
    with pa.ipc.open_stream(pa.py_buffer(bytes(content))) as batches:
        offsets = batches.read_next_batch().column("id").buffers()[1].to_pybytes()
    place = content.index(offsets) + 8
    content[place : place + 4] = (2_000_000_000).to_bytes(4, "little")
    (folder / SHARD).write_bytes(content)
    for args in (["report"], ["inspect", "--row", "2"], ["diff", str(folder)], ["verify"]):
        assert main([args[0], str(folder), *args[1:]]) == 1
        said = "".join(capsys.readouterr())
        assert SHARD in said
        assert "Traceback" not in said


@pytest.mark.parametrize(
    ("name", "values", "words"),
    [
        ("input_ids", [[1, -2, 3]], "below 0"),
        ("context_len", [3], "context_len is not within"),
        ("total_len", [4], "not as long as total_len"),
        ("flags", [[None]], "flags holds nulls"),
    ],
)
def test_a_row_that_leads_out_of_itself_is_refused(
    name: str, values: list[object], words: str, folder: Path
) -> None:
    with pa.OSFile(str(folder / SHARD)) as file, pa.ipc.open_stream(file) as batches:
        table = batches.read_all().slice(0, 1)
    short = {"input_ids": [[1, 2, 3]], "labels": [[-100, 2, 3]], "attention_mask": [[1, 1, 1]]}
    for column, value in {**short, "context_len": [1], "total_len": [3], name: values}.items():
        at = table.schema.get_field_index(column)
        table = table.set_column(at, table.field(at), pa.array(value, table.field(at).type))
    with pa.OSFile(str(folder / SHARD), "wb") as file, pa.ipc.new_stream(file, table.schema) as out:
        out.write_table(table)
    with pytest.raises(UnreadableFile, match=f"{SHARD}:1: .*{words}"):
        open_splits(folder)


def test_names_in_a_set_are_no_paths(folder: Path) -> None:
    (folder / "train" / "state.json").write_text('{"_data_files": [{"filename": "../../x.arrow"}]}')
    with pytest.raises(DataRefused, match="expected names of Arrow files in this folder"):
        check_row_files(folder)
    with pytest.raises(DataRefused, match=r"dataset_dict.json: is missing"):
        check_row_files(folder / "train" / "none")


def test_a_whole_set_passes(quickstart_set: Path) -> None:
    check_row_files(quickstart_set)
    assert verify(quickstart_set) == []
    assert len(load(quickstart_set)["train"]) > 0


def test_rows_that_say_nothing_are_refused_before_they_are_read(tmp_path: Path) -> None:
    path = tmp_path / "nulls.parquet"
    pq.write_table(pa.table({"prompt": pa.nulls(20_000_000)}), path)
    with pytest.raises(UnreadableFile, match="hold 20000000 rows, over 10 for each byte"):
        list(read_file(SourceFile(path, path.name)))


def test_a_table_that_holds_hundreds_of_times_its_size_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bomb.parquet"
    text = pa.array(["x" * 2**21] * 100)
    pq.write_table(pa.table({"prompt": text, "completion": text}), path, compression="zstd")
    with pytest.raises(UnreadableFile, match=r"more than 500 times as many; .* give it as JSONL"):
        list(read_file(SourceFile(path, path.name)))


def test_lying_inputs_are_read_or_refused(tmp_path: Path) -> None:
    for name, content in make_inputs().items():
        for seed in range(10):
            path = tmp_path / name
            path.write_bytes(lie(content, random.Random(f"{name} {seed}")))
            try:
                list(read_file(SourceFile(path, name)))
            except UnreadableFile:
                continue


@pytest.mark.nightly
@pytest.mark.timeout(7200)
def test_a_thousand_lying_files_end_no_verb_otherwise_than_in_a_sentence(tmp_path: Path) -> None:
    faults, _ = find_faults(1000, 1, tmp_path)
    assert faults == []


def test_a_process_that_may_be_about_to_end_is_not_asked_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (first,) = run_apart(name_process)
    assert list(run_apart(name_process)) == [first]
    later = time.monotonic() + 15
    monkeypatch.setattr("pipeline.lines.apart.time.monotonic", lambda: later)
    assert list(run_apart(name_process)) != [first]

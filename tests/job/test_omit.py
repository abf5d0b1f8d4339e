"""Rows left out of files that are made: the others stay, in order, and every count follows."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config import PrepareConfig
from pipeline.job.duplicates import Duplicates
from pipeline.job.omit import keep_rows, omit_duplicates, read_table
from pipeline.job.shard import encode_shard
from pipeline.job.shard_record import ShardRecord
from pipeline.lines.files import SourceFile
from pipeline.lines.plan import plan_shards
from pipeline.rows.builder import RowBuilder
from pipeline.rows.line_mapper import LineMapper
from pipeline.rows.table import sum_digests
from pipeline.sets.arrow_file import RowFile
from pipeline.types import Reject
from tests.conftest import shards_of, write_lines

SCHEMA = pa.schema([pa.field("id", pa.int64()), pa.field("ids", pa.list_(pa.int32()))])


@given(st.lists(st.lists(st.booleans(), max_size=5), max_size=6))
def test_what_is_kept_and_what_is_not_are_all_rows_in_order(batches: list[list[bool]]) -> None:
    is_kept = [kept for batch in batches for kept in batch]
    with TemporaryDirectory() as place:
        source, target = Path(place) / "source", Path(place) / "target"
        with RowFile(source, SCHEMA) as file:
            start = 0
            for batch in batches:
                rows = [{"id": n, "ids": [n] * n} for n in range(start, start + len(batch))]
                file.write(pa.Table.from_pylist(rows, schema=SCHEMA))
                start += len(batch)
        written, others = keep_rows(source, np.array(is_kept, np.bool_), target)
        kept = read_table(target)
    assert kept.column("id").to_pylist() == [n for n, is_in in enumerate(is_kept) if is_in]
    assert others.column("id").to_pylist() == [n for n, is_in in enumerate(is_kept) if not is_in]
    assert kept.column("ids").to_pylist() == [[n] * n for n in kept.column("id").to_pylist()]
    assert (written.name, written.rows) == ("target", sum(is_kept))
    assert kept.schema == others.schema == SCHEMA


def reject_of(place: int, line: int) -> Reject:
    return Reject("in.jsonl", line, "", "duplicate_id", f"place {place}", "")


@pytest.fixture
def shards(
    tmp_path: Path, make_config: Callable[..., PrepareConfig]
) -> tuple[Path, list[ShardRecord]]:
    """Shards of nine conversations of two answers each, the second of some of them refused."""
    rows = [
        {
            "id": f"e{number}",
            "messages": [
                {"role": "user", "content": "?"},
                {"role": "assistant", "content": f"{number}"},
                {"role": "user", "content": "?"},
                {"role": "assistant", "content": "" if number % 3 == 0 else "yes"},
            ],
        }
        for number in range(9)
    ]
    path = write_lines(tmp_path / "in.jsonl", rows)
    config = make_config(path, decisions="all", validation_fraction=0.5)
    files = [SourceFile(path, "in.jsonl")]
    mapper = LineMapper(config, RowBuilder(config))
    folder = tmp_path / "shards"
    folder.mkdir()
    with shards_of(600):
        plan = plan_shards(files)
    assert len(plan.shards) == 3
    return folder, [encode_shard(shard, mapper, config, folder) for shard in plan.shards]


def ids_in(folder: Path, record: ShardRecord, split: str) -> list[str]:
    return read_table(folder / record.rows[split].name).column("id").to_pylist()


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_rows_that_are_left_out_are_rejects_in_their_place(
    shards: tuple[Path, list[ShardRecord]],
) -> None:
    folder, records = shards
    entries = pa.concat_tables(read_table(folder / each.entries.name) for each in records)
    ids = entries.column("id").to_pylist()
    dropped = [place for place, id_ in enumerate(ids) if id_ in ("e1", "e8")]
    lines = [int(entries.column("source")[place].as_py().split(":")[1]) for place in dropped]
    rejects = {p: reject_of(p, line) for p, line in zip(dropped, lines, strict=True)}
    kept = omit_duplicates(folder, records, Duplicates(rejects=rejects), ())
    assert kept[1] is records[1]
    left = [place for place in range(len(ids)) if place not in dropped]
    tables = [read_table(folder / each.entries.name) for each in kept]
    assert pa.concat_tables(tables).equals(entries.take(pa.array(left)))
    for record, before, table in zip(kept, records, tables, strict=True):
        splits = table.column("split").to_pylist()
        for split in ("train", "validation"):
            found = [
                id_
                for id_, name in zip(table.column("id").to_pylist(), splits, strict=True)
                if name == split
            ]
            assert ids_in(folder, record, split) == found
            assert record.rows[split].rows == len(found)
        assert record.counts.rows == table.num_rows
        assert record.counts.sums["total_len"] == sum(table.column("total_len").to_pylist())
        assert record.counts.flags == Counter(
            flag for flags in table.column("flags").to_pylist() for flag in flags
        )
        assert record.digest == sum_digests(table.column("row_digest").to_pylist())
        found = read_json_lines(folder / record.rejects.name)
        assert [each["line"] for each in found] == sorted(each["line"] for each in found)
        assert Counter(each["code"] for each in found) == record.codes
        assert record.counts.rows + sum(record.codes.values()) == before.counts.rows + sum(
            before.codes.values()
        )
        examples = [
            json.loads(line.split("  ")[1])
            for line in (folder / record.examples.name).read_text("utf-8").splitlines()
        ]
        assert examples == list(dict.fromkeys(table.column("id").to_pylist()))


def test_rows_that_the_set_has_already_go_with_the_rejects_of_their_line(
    shards: tuple[Path, list[ShardRecord]],
) -> None:
    folder, records = shards
    entries = read_table(folder / records[0].entries.name)
    places = {place for place, id_ in enumerate(entries.column("id").to_pylist()) if id_ == "e0"}
    lines = [each["line"] for each in read_json_lines(folder / records[0].rejects.name)]
    assert lines == [1, 4]
    (kept, *others) = omit_duplicates(
        folder, records, Duplicates(already_there=places), {"in.jsonl:1"}
    )
    assert others == records[1:]
    assert kept.codes == {"empty_continuation": 1}
    assert [each["line"] for each in read_json_lines(folder / kept.rejects.name)] == [4]
    assert kept.counts.rows == records[0].counts.rows - len(places)


def test_the_files_of_finished_shards_stay_as_they_are(
    shards: tuple[Path, list[ShardRecord]],
) -> None:
    # The next run, after a crash, finds them whole.
    folder, records = shards
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    everything = range(sum(each.entries.rows for each in records))
    rejects = {place: reject_of(place, 1) for place in everything}
    for _ in range(2):
        kept = omit_duplicates(folder, records, Duplicates(rejects=rejects), ())
        assert [each.counts.rows for each in kept] == [0, 0, 0]
        assert {name: (folder / name).read_bytes() for name in before} == before


def test_what_an_earlier_attempt_published_is_not_written_again(
    shards: tuple[Path, list[ShardRecord]],
) -> None:
    """A job that was killed after it published left links of the set's files here."""
    folder, records = shards
    found = Duplicates(rejects={0: reject_of(0, 1)})
    (first, *_) = omit_duplicates(folder, records, found, ())
    for split, file in first.rows.items():
        os.link(folder / file.name, folder / f"published-{split}")
    before = {split: (folder / f"published-{split}").read_bytes() for split in first.rows}
    everything = {place: reject_of(place, 1) for place in range(records[0].entries.rows)}
    omit_duplicates(folder, records, Duplicates(rejects=everything), ())
    for split, data in before.items():
        assert (folder / f"published-{split}").read_bytes() == data

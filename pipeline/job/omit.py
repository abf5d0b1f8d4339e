"""Rows left out of shards that are made already: only the files that hold such rows are written again."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.job.duplicates import Duplicates
from pipeline.job.shard import format_examples, format_rejects
from pipeline.job.shard_record import ShardRecord
from pipeline.rows.table import sum_digests
from pipeline.sets.arrow_file import HashedFile, RowFile, WrittenFile, read_table
from pipeline.sets.counts import RowCounts
from pipeline.types import Reject

Mask = NDArray[np.bool_]


def keep_rows(source: Path, is_kept: Mask, target: Path) -> tuple[WrittenFile, pa.Table]:
    """Write the rows of an Arrow file that are kept to ``target``; return what it is, and the others.

    ``is_kept`` has one entry per row of ``source``. The others are in memory.
    """
    others: list[pa.Table] = []
    start = 0
    with pa.memory_map(str(source)) as mapped, pa.ipc.open_stream(mapped) as batches:
        with RowFile(target, batches.schema) as file:
            for batch in batches:
                table = pa.Table.from_batches([batch])
                mask = is_kept[start : start + batch.num_rows]
                file.write(table.filter(pa.array(mask)))
                others.append(table.filter(pa.array(~mask)))
                start += batch.num_rows
        dropped = pa.concat_tables(others or [batches.schema.empty_table()])
    return file.written(), dropped


def omit_duplicates(
    folder: Path, records: Sequence[ShardRecord], duplicates: Duplicates, known: Collection[str]
) -> list[ShardRecord]:
    """Return the records without the rows at ``duplicates.places``, which are rejects then.

    Places count the rows of all shards in order. Rejects of the ``known`` lines (``file:line``) are
    left out: the set that is appended to has them.
    """
    dropped = np.array(duplicates.places, np.int64)
    result: list[ShardRecord] = []
    start = 0
    for record in records:
        end = start + record.entries.rows
        places = dropped[(dropped >= start) & (dropped < end)]
        if len(places):
            is_kept = np.full(record.entries.rows, fill_value=True)
            is_kept[places - start] = False
            rejects = [duplicates.rejects[at] for at in places.tolist() if at in duplicates.rejects]
            result.append(_omit_rows(folder, record, is_kept, rejects, known))
        else:
            result.append(record)
        start = end
    return result


def _omit_rows(
    folder: Path,
    record: ShardRecord,
    is_kept: Mask,
    rejects: Sequence[Reject],
    known: Collection[str],
) -> ShardRecord:
    stem = f"{record.index:05d}-kept-"
    counts = RowCounts()
    counts.merge(record.counts)
    entries = read_table(folder / record.entries.name)
    splits = np.array(entries.column("split").to_pylist(), object)
    rows: dict[str, WrittenFile] = {}
    for name, file in record.rows.items():
        rows[name], _ = keep_rows(
            folder / file.name, is_kept[splits == name], folder / f"{stem}{name}.arrow"
        )
    kept_entries, dropped = keep_rows(
        folder / record.entries.name, is_kept, folder / f"{stem}entries.arrow"
    )
    counts.add(dropped, -1)
    kept = entries.filter(pa.array(is_kept))
    all_rejects = _sort_rejects(
        record, [*_read_rejects(folder / record.rejects.name, known), *rejects]
    )
    return replace(
        record,
        rows=rows,
        entries=kept_entries,
        examples=_write_lines(folder / f"{stem}examples.sha256", format_examples(kept)),
        rejects=_write_lines(folder / f"{stem}rejects.jsonl", format_rejects(all_rejects)),
        counts=counts,
        codes=dict(Counter(reject.code for reject in all_rejects)),
        digest=sum_digests(kept.column("row_digest").to_pylist()),
    )


def _read_rejects(path: Path, known: Collection[str]) -> list[Reject]:
    # Lines end at "\n" alone: an id or a reason may hold other line ends.
    *lines, _ = path.read_text(encoding="utf-8").split("\n")
    rejects = (Reject(**json.loads(line)) for line in lines)
    return [reject for reject in rejects if f"{reject.file}:{reject.line}" not in known]


def _sort_rejects(record: ShardRecord, rejects: list[Reject]) -> list[Reject]:
    """Return the rejects in the order of the input."""
    order = {piece.file: place for place, piece in enumerate(record.pieces)}
    return sorted(rejects, key=lambda reject: (order[reject.file], reject.line))


def _write_lines(path: Path, lines: list[str]) -> WrittenFile:
    with closing(HashedFile(path)) as file:
        file.write_lines(lines)
    return file.written()

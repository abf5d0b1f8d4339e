"""One shard of the input becomes one Arrow file of rows per split, and a marker that says so.

The same function runs in this process, in a worker process and on another machine, so a set is the
same bytes wherever its shards were made. The marker is written last: a shard without one is made
again, one with a marker is not.
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa

from pipeline.config import PrepareConfig
from pipeline.errors import excerpt_of
from pipeline.job.heap import give_back_free_memory
from pipeline.job.shard_record import ShardRecord, marker_path
from pipeline.lines.plan import SourceShard
from pipeline.lines.tables import open_piece
from pipeline.lines.text import PieceRecord, SourceLine
from pipeline.rows.line_mapper import LineMapper, MappedLines
from pipeline.rows.shape_counts import ShapeCounts
from pipeline.rows.table import sum_digests
from pipeline.sets.arrow_file import HashedFile, RowFile, WrittenFile, row_schema
from pipeline.sets.counts import COUNTED, RowCounts
from pipeline.sets.row_columns import key_ids
from pipeline.types import REJECTED, ROW_SCHEMA, Reject

BATCH_CHARACTERS: Final = 2**21
"""Text of the lines that are mapped at once; with the longest line it bounds the memory."""

_BATCHES_PER_TRIM: Final = 16

ENTRY_SCHEMA: Final = pa.schema(
    [
        pa.field("id", pa.string()),
        pa.field("id_key", pa.uint64()),
        pa.field("source", pa.string()),
        pa.field("split", pa.string()),
        pa.field("line_digest", pa.binary(32)),
        pa.field("row_digest", pa.binary(32)),
        *(ROW_SCHEMA.field(name) for name in COUNTED),
    ]
)
"""Columns of ``entries``: which example each row is, and what is counted of it. ``id_key`` is a hash
of the id."""


@dataclasses.dataclass(frozen=True, slots=True)
class Progress:
    """What one batch of a shard gave."""

    shard: int
    place: str
    lines: int
    rows: int
    tokens: int
    rejects: int
    first_reject: str = ""
    """Place, code and reason of the first of the rejects."""


def encode_shard(
    shard: SourceShard,
    mapper: LineMapper,
    config: PrepareConfig,
    folder: Path,
    on_batch: Callable[[Progress], None] = lambda progress: None,
) -> ShardRecord:
    """Write the files of ``shard`` into ``folder``, its marker last; return what that says.

    ``on_batch`` is told what each batch of lines gave. A file has its name only once it is whole.
    Raises `UnreadableFile` for input that cannot be read to its end, `UsageError` for input that is
    not what was planned.
    """
    stem = f"{shard.index:05d}"
    # Two attempts at one shard write files of their own, and give the same bytes.
    temporary = f".{stem}-{platform.node()}-{os.getpid()}-"
    splits = split_names(config)
    counts, codes, digest = RowCounts(), Counter[str](), sum_digests(())
    shapes = ShapeCounts()
    pieces: list[PieceRecord] = []
    with ExitStack() as stack:
        rows = {
            name: stack.enter_context(
                RowFile(folder / f"{temporary}{name}.arrow", row_schema(config.columns))
            )
            for name in splits
        }
        entries = stack.enter_context(RowFile(folder / f"{temporary}entries.arrow", ENTRY_SCHEMA))
        examples = stack.enter_context(closing(HashedFile(folder / f"{temporary}examples.sha256")))
        rejects = stack.enter_context(closing(HashedFile(folder / f"{temporary}rejects.jsonl")))
        for number, batch in enumerate(_batch_lines(shard, config.batch_size, pieces), 1):
            if number % _BATCHES_PER_TRIM == 0:
                give_back_free_memory()
            mapped = mapper(batch)
            for name, table in _split_rows(mapped):
                rows[name].write(table)
            listed = list_entries(mapped)
            entries.write(listed)
            examples.write_lines(format_examples(listed))
            rejects.write_lines(format_rejects(mapped.rejects))
            counts.add(mapped.table)
            shapes.merge(mapped.shapes)
            codes.update(reject.code for reject in mapped.rejects)
            digest = sum_digests([bytes.fromhex(digest), *mapped.row_digests])
            tokens = int(np.asarray(mapped.table.column("total_len")).sum())
            file, line = batch[-1]
            place = f"{file}:{line.line}"
            on_batch(
                Progress(
                    shard.index,
                    place,
                    len(batch),
                    mapped.table.num_rows,
                    tokens,
                    len(mapped.rejects),
                    _say_first(mapped.rejects),
                )
            )
    named = {
        name: _name_file(folder, file.written(), temporary, f"{stem}-")
        for name, file in {
            **rows,
            "entries": entries,
            "examples": examples,
            "rejects": rejects,
        }.items()
    }
    record = ShardRecord(
        index=shard.index,
        pieces=tuple(pieces),
        rows={name: named[name] for name in splits},
        entries=named["entries"],
        examples=named["examples"],
        rejects=named["rejects"],
        counts=counts,
        codes=dict(codes),
        shapes=shapes,
        digest=digest,
    )
    give_back_free_memory()
    marker = folder / f"{temporary}marker"
    marker.write_text(record.to_marker(), encoding="utf-8")
    marker.replace(marker_path(folder, shard.index))
    return record


def split_names(config: PrepareConfig) -> tuple[str, ...]:
    """Return the splits that the rows of a job may be of, in the order of `SPLITS`."""
    validation = ("validation",) if config.validation_fraction else ()
    rejected = (REJECTED,) if config.rejected_continuations == "keep" else ()
    return ("train", *validation, *rejected)


def read_lines_of(
    shard: SourceShard, pieces: list[PieceRecord]
) -> Iterator[tuple[str, SourceLine]]:
    """Yield the lines of a shard with the name of their file; add to ``pieces`` what was read."""
    for piece in shard.pieces:
        reading = open_piece(piece)
        for line in reading:
            yield piece.file.name, line
        pieces.append(reading.record())


def list_entries(mapped: MappedLines) -> pa.Table:
    """Return the table of `ENTRY_SCHEMA` for the rows of a batch."""
    ids: list[str] = mapped.table.column("id").to_pylist()
    columns = [
        mapped.table.column("id"),
        pa.array(key_ids(ids)),
        mapped.table.column("source"),
        mapped.splits,
        mapped.line_digests,
        mapped.row_digests,
        *(mapped.table.column(name) for name in COUNTED),
    ]
    arrays = [
        column if isinstance(column, (pa.Array, pa.ChunkedArray)) else pa.array(column, field.type)
        for column, field in zip(columns, ENTRY_SCHEMA, strict=True)
    ]
    return pa.Table.from_arrays(arrays, schema=ENTRY_SCHEMA)


def format_examples(entries: pa.Table) -> list[str]:
    """Return the lines of ``examples.sha256`` for entries: the sha256 of a line, and its id as JSON.

    The rows of one line follow each other and are one example.
    """
    ids, digests = (entries.column(name).to_pylist() for name in ("id", "line_digest"))
    return [
        format_example(id_, digest)
        for place, (id_, digest) in enumerate(zip(ids, digests, strict=True))
        if not place or id_ != ids[place - 1]
    ]


def format_example(id_: str, line_digest: bytes) -> str:
    """Return the line of ``examples.sha256`` for one example."""
    return f"{line_digest.hex()}  {json.dumps(id_)}\n"


def format_rejects(rejects: Sequence[Reject]) -> list[str]:
    """Return the lines of ``rejects.jsonl``."""
    return [json.dumps(reject.to_dict(), ensure_ascii=False) + "\n" for reject in rejects]


def _batch_lines(
    shard: SourceShard, most_lines: int, pieces: list[PieceRecord]
) -> Iterator[list[tuple[str, SourceLine]]]:
    """Yield the lines of a shard in batches, bounded by their number and by their text."""
    held: list[tuple[str, SourceLine]] = []
    characters = 0
    for file, line in read_lines_of(shard, pieces):
        size = len(line.text or "")
        if held and (len(held) == most_lines or characters + size > BATCH_CHARACTERS):
            yield held
            held, characters = [], 0
        held.append((file, line))
        characters += size
    if held:
        yield held


def _say_first(rejects: Sequence[Reject]) -> str:
    if not rejects:
        return ""
    first = rejects[0]
    return f"{first.file}:{first.line}: {first.code}: {excerpt_of(first.reason)}"


def _split_rows(mapped: MappedLines) -> Iterator[tuple[str, pa.Table]]:
    """Yield the rows of each split that has some."""
    names = dict.fromkeys(mapped.splits)
    if len(names) == 1:
        yield mapped.splits[0], mapped.table
        return
    for name in names:
        yield name, mapped.table.filter(pa.array([split == name for split in mapped.splits]))


def _name_file(folder: Path, file: WrittenFile, temporary: str, stem: str) -> WrittenFile:
    """Give a whole file its name."""
    name = file.name.replace(temporary, stem)
    (folder / file.name).replace(folder / name)
    return dataclasses.replace(file, name=name)

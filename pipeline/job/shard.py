"""One shard of the input -> its lines as a `Dataset`, one batched ``map``, one Arrow file of rows.

The same function runs in a worker process and on another machine, so the rows of a set are the same
wherever its shards were made. The record is written last: a shard without one is made again, one with
a record is not.
"""

from __future__ import annotations

import os
import platform
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

import datasets
import numpy as np
import pyarrow as pa

from pipeline.errors import excerpt_of
from pipeline.job.heap import give_back_free_memory
from pipeline.job.shard_record import ShardRecord, record_path, rows_path
from pipeline.lines.dataset import BATCH_CHARACTERS, LINE_SCHEMA, batch_lines
from pipeline.lines.plan import SourceShard
from pipeline.lines.tables import open_piece
from pipeline.lines.text import PieceRecord, SourceLine
from pipeline.rows.line_mapper import ShapeCounts
from pipeline.rows.row_map import RowMap
from pipeline.rows.seal import hash_file_bytes
from pipeline.sets.disk import named_plainly

_BATCHES_PER_TRIM: Final = 16
# More than any batch has rows, so that each is written as it comes.
_WHOLE_TABLES: Final = 2**31 - 1


@dataclass(frozen=True, slots=True)
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


OnBatch = Callable[[Progress], None]


def map_shard(
    shard: SourceShard,
    row_map: RowMap,
    folder: Path,
    most_lines: int,
    on_batch: OnBatch = lambda progress: None,
) -> ShardRecord:
    """Map the lines of ``shard`` to an Arrow file of rows and rejects in ``folder``; return its record.

    ``row_map`` keeps rejects; a batch has at most ``most_lines``; ``on_batch`` is told what each gave.
    A file has its name only once it is whole. Raises `UnreadableFile` for input that cannot be read
    to its end, `UsageError` for input that is not what was planned.
    """
    # Two attempts at one shard write files of their own, and give the same rows.
    temporary = f"{folder}/.{shard.index:05d}-{platform.node()}-{os.getpid()}"
    lines_file, made = Path(f"{temporary}-lines.arrow"), Path(f"{temporary}.arrow")
    pieces: list[PieceRecord] = []
    sizes = _write_lines(shard, lines_file, pieces)
    lines = datasets.Dataset.from_file(str(lines_file))
    batches = _Batches(shard.index, row_map, on_batch)
    if sizes:
        try:
            with named_plainly(folder) as place:
                lines.with_format("arrow").map(
                    batches.map,
                    batched=True,
                    batch_size=_fit_batch(sizes, most_lines),
                    features=row_map.features,
                    remove_columns=lines.column_names,
                    cache_file_name=str(place / made.name),
                    load_from_cache_file=False,
                    new_fingerprint=f"{row_map.key[:8]}{shard.index:08x}",
                    writer_batch_size=_WHOLE_TABLES,
                )
        except ValueError as error:
            # A writer of `datasets` that cannot end its file speaks of that, and not of the full disk.
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise
    else:
        # A map over nothing writes nothing.
        _write_nothing(made, row_map.features)
    del lines
    lines_file.unlink()
    record = ShardRecord(
        index=shard.index,
        pieces=tuple(pieces),
        bytes=made.stat().st_size,
        sha256=hash_file_bytes(made),
        rows=batches.rows,
        codes=dict(batches.codes),
        shapes=batches.shapes,
    )
    made.replace(rows_path(folder, shard.index))
    give_back_free_memory()
    marker = Path(f"{temporary}.json")
    marker.write_text(record.to_marker(), encoding="utf-8")
    marker.replace(record_path(folder, shard.index))
    return record


def read_lines_of(
    shard: SourceShard, pieces: list[PieceRecord]
) -> Iterator[tuple[str, SourceLine]]:
    """Yield the lines of a shard with the name of their file; add to ``pieces`` what was read."""
    for piece in shard.pieces:
        reading = open_piece(piece)
        for line in reading:
            yield piece.file.name, line
        pieces.append(reading.record())


class _Batches:
    """The map of a shard's batches, counting what they give."""

    def __init__(self, index: int, row_map: RowMap, on_batch: OnBatch) -> None:
        self._index, self._row_map, self._on_batch = index, row_map, on_batch
        self._number = self.rows = 0
        self.codes = Counter[str]()
        self.shapes = row_map.shapes = ShapeCounts()

    def map(self, lines: pa.Table) -> pa.Table:
        """Return the rows and rejects of a batch of lines."""
        self._number += 1
        if self._number % _BATCHES_PER_TRIM == 0:
            give_back_free_memory()
        table = self._row_map(lines)
        is_row = np.asarray(table.column("code").is_null())
        rows = int(is_row.sum())
        codes = Counter[str](table.column("code").drop_null().to_pylist())
        tokens = int(np.asarray(table.column("total_len").drop_null()).sum())
        last = lines.slice(lines.num_rows - 1).to_pylist()[0]
        self._on_batch(
            Progress(
                self._index,
                f"{last['file']}:{last['line']}",
                lines.num_rows,
                rows,
                tokens,
                table.num_rows - rows,
                _say_first(table, is_row),
            )
        )
        self.rows += rows
        self.codes.update(codes)
        return table


def _say_first(table: pa.Table, is_row: np.ndarray[Any, np.dtype[np.bool_]]) -> str:
    if is_row.all():
        return ""
    (first,) = table.slice(int(is_row.argmin()), 1).to_pylist()
    return f"{first['source']}: {first['code']}: {excerpt_of(first['reject_reason'])}"


def _write_lines(shard: SourceShard, path: Path, pieces: list[PieceRecord]) -> list[int]:
    """Write the lines of a shard as Arrow; return the characters of each."""
    sizes: list[int] = []
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, LINE_SCHEMA) as writer:
        for table in batch_lines(read_lines_of(shard, pieces)):
            sizes += [len(text) for text in table.column("text").to_pylist()]
            writer.write_table(table)
    return sizes


def _fit_batch(sizes: Sequence[int], most_lines: int) -> int:
    """Return a number of lines of which no batch holds more than `BATCH_CHARACTERS`, at least 1.

    `datasets` cuts batches by their number of lines; a line that is longer is a batch of one.
    """
    ends = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
    lines = max(1, min(most_lines, len(sizes)))
    while lines > 1:
        starts = np.arange(0, len(sizes), lines)
        stops = np.minimum(starts + lines, len(sizes))
        if int((ends[stops] - ends[starts]).max()) <= BATCH_CHARACTERS:
            break
        lines //= 2
    return lines


def _write_nothing(path: Path, features: datasets.Features) -> None:
    schema = cast("Any", features).arrow_schema
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, schema):
        pass

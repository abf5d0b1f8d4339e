"""Parquet and Arrow files of others, batch by batch, each batch validated before it is looked at.

Arrow checks little of what it reads: an offset that lies is followed to anywhere in memory. All of
its own checks are made here, first thing (`RecordBatch.validate`). What they may miss, and what takes
too much memory, ends the process: read files of others with `pipeline.lines.apart.run_apart`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.lines.archive import LINES_PER_BYTE, most_lines

_BUFFER_BYTES: Final = 2**20
_PARQUET_BYTES: Final = 4 * 2**20
"""Decoded data of a Parquet file that is held at once, as its own figures have it."""
_PARQUET_ROWS: Final = 64
"""Rows of it that are held at once: a file of a kilobyte may repeat a text of megabytes in each."""

_FILE_MAGIC: Final = b"ARROW1"
_STREAM_END: Final = b"\xff\xff\xff\xff\x00\x00\x00\x00"
"""Arrow's IPC formats: how a file begins, and how a stream ends."""

ChooseColumns = Callable[[pa.Schema], list[str]]


def read_batches(path: Path, choose: ChooseColumns) -> Iterator[pa.RecordBatch]:
    """Yield the batches of a file, with the columns that ``choose`` names for its schema.

    The end of the name tells Parquet from Arrow, the first bytes an Arrow file from a stream. Raises
    what Arrow raises: `pa.ArrowException`, `OSError`, `ValueError`; nothing is yielded of a batch
    that is not valid; its texts may be no UTF-8.
    """
    size = path.stat().st_size
    is_parquet = path.name.lower().endswith(".parquet")
    rows = 0
    for batch in _read_parquet(path, choose) if is_parquet else _read_arrow(path, choose):
        rows += batch.num_rows
        _check_rows(rows, size)
        _validate(batch)
        yield batch


def _validate(batch: pa.RecordBatch) -> None:
    """Raise `pa.ArrowInvalid` for a batch that lies; texts that are not UTF-8 are no lie."""
    try:
        batch.validate(full=True)
    except pa.ArrowInvalid as error:
        if "Invalid UTF8" not in str(error):
            raise
        # It stops at the first fault, so all else is looked at without them.
        for column in batch.columns:
            column.view(_without_texts(column.type)).validate(full=True)


def _without_texts(kind: pa.DataType) -> pa.DataType:
    """Return the type of the same layout in which texts are bytes."""
    if pa.types.is_string(kind):
        return pa.binary()
    if pa.types.is_large_string(kind):
        return pa.large_binary()
    if pa.types.is_list(kind):
        return pa.list_(_field_without_texts(kind.value_field))
    if pa.types.is_large_list(kind):
        return pa.large_list(_field_without_texts(kind.value_field))
    if pa.types.is_struct(kind):
        return pa.struct([_field_without_texts(kind.field(at)) for at in range(kind.num_fields)])
    return kind


def _field_without_texts(field: pa.Field) -> pa.Field:
    return field.with_type(_without_texts(field.type))


def _check_rows(rows: int, size: int) -> None:
    if rows > most_lines(size):
        raise pa.ArrowInvalid(f"{size} bytes hold {rows} rows, over {LINES_PER_BYTE} for each byte")


def _read_parquet(path: Path, choose: ChooseColumns) -> Iterator[pa.RecordBatch]:
    # Without buffers each row group would be in memory whole.
    with pq.ParquetFile(path, buffer_size=_BUFFER_BYTES, pre_buffer=False) as table:
        rows = table.metadata.num_rows
        _check_rows(rows, path.stat().st_size)
        groups = [table.metadata.row_group(index) for index in range(table.num_row_groups)]
        size = sum(group.total_byte_size for group in groups)
        fitting = _PARQUET_BYTES * rows // max(size, 1)
        yield from table.iter_batches(
            batch_size=max(1, min(_PARQUET_ROWS, fitting)),
            columns=choose(table.schema_arrow),
            use_threads=False,
        )


def _read_arrow(path: Path, choose: ChooseColumns) -> Iterator[pa.RecordBatch]:
    with pa.memory_map(str(path)) as mapped:
        is_stream = mapped.read(len(_FILE_MAGIC)) != _FILE_MAGIC
        # Arrow takes a stream that was cut between two batches for a whole one.
        mapped.seek(max(mapped.size() - len(_STREAM_END), 0))
        if is_stream and mapped.read() != _STREAM_END:
            raise pa.ArrowInvalid("the mark at the end of the stream is missing")
        mapped.seek(0)
        yield from _read_stream(mapped, choose) if is_stream else _read_file(mapped, choose)


def _read_stream(mapped: pa.MemoryMappedFile, choose: ChooseColumns) -> Iterator[pa.RecordBatch]:
    with pa.ipc.open_stream(mapped) as batches:
        names = choose(batches.schema)
        for batch in batches:
            yield batch.select(names)


def _read_file(mapped: pa.MemoryMappedFile, choose: ChooseColumns) -> Iterator[pa.RecordBatch]:
    with pa.ipc.open_file(mapped) as table:
        names = choose(table.schema)
        for index in range(table.num_record_batches):
            yield table.get_batch(index).select(names)

"""Tables (Parquet and Arrow files) -> the lines that a JSONL file of their rows would have.

Each row becomes one line of JSON that we write, so everything after it is the same for both. Only
the columns that some shape reads are read (`pipeline.row_keys.KNOWN_KEYS`), batch by batch. Nothing
is given another type: what JSON cannot say exactly is a reject (`pipeline.source.cells`).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import Rejected, UnreadableFile, excerpt_of
from pipeline.row_keys import KNOWN_KEYS, OPTION_NAMES, TOOL_NAMES
from pipeline.source.cells import Decoder, find_decoder, write_json
from pipeline.source.files import TABLE_SUFFIXES, SourceFile, unreadable
from pipeline.source.lines import (
    MAX_LINE_BYTES,
    PieceRecord,
    Reading,
    SourceLine,
    open_lines,
    read_lines,
)
from pipeline.source.plan import Piece, whole_piece

_BATCH_BYTES: Final = 4 * 2**20
"""Arrow data that is held as Python objects at once; those take several times as much."""
_BUFFER_BYTES: Final = 2**20
_MOST_ROWS: Final = 1024

_FILE_MAGIC: Final = b"ARROW1"
_STREAM_END: Final = b"\xff\xff\xff\xff\x00\x00\x00\x00"
"""Arrow's IPC formats: how a file begins, and how a stream ends."""


def open_piece(piece: Piece, max_line_bytes: int = MAX_LINE_BYTES) -> Reading:
    """Return the reading of a piece: of a table, or of lines."""
    return (open_table if is_table(piece.file) else open_lines)(piece, max_line_bytes)


def read_file(file: SourceFile, max_line_bytes: int = MAX_LINE_BYTES) -> Iterator[SourceLine]:
    """Yield the rows of a table or the lines of another file, as they are now.

    Raises `UnreadableFile` as `open_piece` does.
    """
    if is_table(file):
        return iter(_TableReading(Piece(file, 0, 0, 1, 0), max_line_bytes))
    return read_lines(file, max_line_bytes)


def is_table(file: SourceFile) -> bool:
    """Say whether a file is read as a table: by the end of its name."""
    return file.path.name.lower().endswith(TABLE_SUFFIXES)


def open_table(piece: Piece, max_line_bytes: int = MAX_LINE_BYTES) -> Reading:
    """Return the reading of a Parquet or Arrow file, one line per row.

    Columns of datasets' type Json are read from the JSON text that they hold where it can only stand
    for objects; where it may stand for text they are refused, since ``"42"`` and ``42`` are one there.

    Raises:
        UnreadableFile: while it is read, for a file that is damaged, that has no column that a shape
            knows, or one that is refused for its type.
    """
    return _TableReading(piece, max_line_bytes)


class _TableReading:
    """Yields the rows of one table as lines, and counts them."""

    def __init__(self, piece: Piece, max_line_bytes: int) -> None:
        self._piece, self._file = piece, piece.file
        self._max_line_bytes = max_line_bytes
        self._rows = 0

    def __iter__(self) -> Iterator[SourceLine]:
        try:
            for batch, unread in _read_batches(self._file.path):
                decode = self._decoder_of(batch.schema)
                step = _fitting_rows(batch.nbytes, batch.num_rows)
                for start in range(0, batch.num_rows, step):
                    yield from self._lines_of(batch.slice(start, step), decode, unread)
        except (pa.ArrowException, OSError) as error:
            # Arrow raises an OSError without a number for a file that is damaged.
            if isinstance(error, OSError) and error.errno is not None:
                raise unreadable(self._file, self._rows + 1, error) from error
            reason = f"not a whole table ({excerpt_of(str(error))}); restore the file"
            raise UnreadableFile(self._file.name, self._rows + 1, reason) from error

    def record(self) -> PieceRecord:
        """Return what was read of the file; only after the last row."""
        found = whole_piece(self._file)
        self._piece.check_bytes(found.end, found.checksum)
        return PieceRecord(self._file.name, self._rows, 0)

    def _decoder_of(self, schema: pa.Schema) -> Decoder | None:
        if not schema.names:
            reason = (
                "none of its columns is part of a shape; expected messages, prompt and completion, "
                "or others of docs/formats.md"
            )
            raise UnreadableFile(self._file.name, 1, reason)
        try:
            return find_decoder(schema)
        except Rejected as error:
            raise UnreadableFile(self._file.name, 1, error.reason) from error

    def _lines_of(
        self, rows: pa.RecordBatch, decode: Decoder | None, unread: frozenset[str]
    ) -> Iterator[SourceLine]:
        for row in _values_of(rows):
            self._rows += 1
            try:
                if isinstance(row, Rejected):
                    raise row
                text = write_json(row if decode is None else decode(row))
                size = len(text.encode())
                if size > self._max_line_bytes:
                    reason = f"{size} bytes of JSON, expected at most {self._max_line_bytes}"
                    raise Rejected("line_too_long", f"{reason}; split the example", text)
                yield SourceLine(self._rows, text, None, unread)
            except Rejected as error:
                yield SourceLine(self._rows, None, error)


_Batch = tuple[pa.RecordBatch, frozenset[str]]
"""Rows of the columns that are read, and the names of those that are not."""


def _read_batches(path: Path) -> Iterator[_Batch]:
    """Yield the known columns of a table, batch by batch."""
    if path.name.lower().endswith(".parquet"):
        yield from _read_parquet(path)
        return
    with pa.memory_map(str(path)) as mapped:
        is_stream = mapped.read(len(_FILE_MAGIC)) != _FILE_MAGIC
        # Arrow takes a stream that was cut between two batches for a whole one.
        mapped.seek(max(mapped.size() - len(_STREAM_END), 0))
        if is_stream and mapped.read() != _STREAM_END:
            raise pa.ArrowInvalid("the mark at the end of the stream is missing")
        mapped.seek(0)
        yield from _read_stream(mapped) if is_stream else _read_file(mapped)


def _read_parquet(path: Path) -> Iterator[_Batch]:
    # Without buffers each row group would be in memory whole.
    with pq.ParquetFile(path, buffer_size=_BUFFER_BYTES, pre_buffer=False) as table:
        groups = [table.metadata.row_group(index) for index in range(table.num_row_groups)]
        size = sum(group.total_byte_size for group in groups)
        names, unread = _known_columns(table.schema_arrow)
        for batch in table.iter_batches(
            batch_size=_fitting_rows(size, table.metadata.num_rows),
            columns=names,
            use_threads=False,
        ):
            yield batch, unread


def _read_stream(mapped: pa.MemoryMappedFile) -> Iterator[_Batch]:
    with pa.ipc.open_stream(mapped) as batches:
        names, unread = _known_columns(batches.schema)
        for batch in batches:
            yield batch.select(names), unread


def _read_file(mapped: pa.MemoryMappedFile) -> Iterator[_Batch]:
    with pa.ipc.open_file(mapped) as table:
        names, unread = _known_columns(table.schema)
        for index in range(table.num_record_batches):
            yield table.get_batch(index).select(names), unread


def _known_columns(schema: pa.Schema) -> tuple[list[str], frozenset[str]]:
    """Return the columns to read, and the others.

    Read are those of a shape, and those in which tools or template options lie.
    """
    names = [
        field.name for field in schema if field.name in KNOWN_KEYS or _holds_request(field.type)
    ]
    if len(set(names)) != len(names):
        raise pa.ArrowInvalid(f"two columns have one name: {', '.join(sorted(names))}")
    if not any(name in KNOWN_KEYS for name in names):
        return [], frozenset(schema.names)
    return names, frozenset(schema.names).difference(names)


def _holds_request(type_: pa.DataType) -> bool:
    if pa.types.is_struct(type_):
        return any(
            each.name in (*TOOL_NAMES, *OPTION_NAMES) or _holds_request(each.type) for each in type_
        )
    if pa.types.is_list(type_) or pa.types.is_large_list(type_):
        return _holds_request(type_.value_type)
    return False


def _fitting_rows(size: int, rows: int) -> int:
    """Return how many of ``rows`` rows of ``size`` bytes in all fit in `_BATCH_BYTES`; at least 1."""
    return max(1, min(_MOST_ROWS, _BATCH_BYTES * rows // max(size, 1)))


def _values_of(rows: pa.RecordBatch) -> Iterator[dict[str, Any] | Rejected]:
    """Yield each row as Python values, keys that are null left out, or why it has none."""
    try:
        values: list[dict[str, Any]] = rows.to_pylist()
    except UnicodeDecodeError as error:
        if rows.num_rows == 1:
            yield _bad_encoding(error)
            return
        for index in range(rows.num_rows):
            yield from _values_of(rows.slice(index, 1))
        return
    for row in values:
        yield {name: value for name, value in row.items() if value is not None}


def _bad_encoding(error: UnicodeDecodeError) -> Rejected:
    around = error.object[max(error.start - 20, 0) : error.end + 20]
    reason = (
        f"byte 0x{error.object[error.start]:02x} of a text is not UTF-8 ({error.reason}); "
        "write the column again as UTF-8"
    )
    return Rejected("bad_encoding", reason, around.decode("utf-8", "backslashreplace"))

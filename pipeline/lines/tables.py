"""Tables (Parquet and Arrow files) -> the lines that a JSONL file of their rows would have.

Each row becomes one line of JSON that we write, so everything after it is the same for both. Only
the columns that some shape reads are read (`pipeline.examples.row_keys.KNOWN_KEYS`), batch by batch. Nothing
is given another type: what JSON cannot say exactly is a reject (`pipeline.lines.cells`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from pipeline.errors import Rejected, UnreadableFile, excerpt_of
from pipeline.lines.apart import EndedApart, run_apart
from pipeline.lines.archive import EXPANSION_LIMIT
from pipeline.lines.arrow_files import read_batches
from pipeline.lines.cells import Decoder, find_decoder, write_json
from pipeline.lines.data_sets import expand_data_sets
from pipeline.lines.files import SourceFile, find_files, unreadable
from pipeline.lines.known_keys import FOREIGN_KEYS, KNOWN_KEYS, OPTION_NAMES, PROMPTS, TOOL_NAMES
from pipeline.lines.plan import Piece, whole_piece
from pipeline.lines.text import (
    MAX_LINE_BYTES,
    LineReading,
    PieceRecord,
    SourceLine,
    read_lines,
)

_BATCH_BYTES: Final = 4 * 2**20
"""Arrow data that is held as Python objects at once; those take several times as much."""
_FREE_BYTES: Final = 2**26
"""JSON that a table may give however small it is; see `EXPANSION_LIMIT`."""
_MOST_ROWS: Final = 1024
_FIRST_ROWS: Final = 16
_CONTEXTS: Final = frozenset(PROMPTS) - {"input"}


def open_piece(piece: Piece, max_line_bytes: int = MAX_LINE_BYTES) -> LineReading | TableReading:
    """Return the reading of a piece: of a table, or of lines."""
    if piece.file.is_table:
        return TableReading(piece, max_line_bytes)
    return LineReading(piece.file, max_line_bytes, piece)


def read_file(file: SourceFile, max_line_bytes: int = MAX_LINE_BYTES) -> Iterator[SourceLine]:
    """Yield the rows of a table or the lines of another file, as they are now.

    Raises `UnreadableFile` as `open_piece` does.
    """
    if file.is_table:
        return iter(TableReading(Piece(file, 0, 0, 1, 0), max_line_bytes))
    return read_lines(file, max_line_bytes)


def read_inputs(inputs: Sequence[str]) -> Iterator[tuple[str, SourceLine]]:
    """Yield the lines of files, folders, globs and data sets in input order, each with its file's name.

    Raises `UsageError` where an input leads to no file, `UnreadableFile` as `open_piece` does.
    """
    for file in find_files(expand_data_sets(inputs)):
        for line in read_file(file):
            yield file.name, line


class TableReading:
    """One pass over a Parquet or Arrow file, one line per row.

    Columns of datasets' type Json are read from the JSON text that they hold where it can only stand
    for objects; where it may stand for text they are refused, since ``"42"`` and ``42`` are one there.
    Iterating raises `UnreadableFile` for a file that is damaged, that has no column that a shape
    knows, or one that is refused for its type.
    """

    def __init__(self, piece: Piece, max_line_bytes: int = MAX_LINE_BYTES) -> None:
        self._piece, self._file = piece, piece.file
        self._max_line_bytes = max_line_bytes
        self._rows = 0

    def __iter__(self) -> Iterator[SourceLine]:
        lines = run_apart(read_rows, str(self._file.path), self._file.name, self._max_line_bytes)
        try:
            for part in lines:
                for line in part:
                    self._rows = line.line
                    yield line
        except EndedApart as error:
            reason = f"cannot be read ({error}); write it again, or restore it"
            raise UnreadableFile(self._file.name, self._rows + 1, reason) from error

    def record(self) -> PieceRecord:
        """Return what was read, as `LineReading.record`."""
        found = whole_piece(self._file)
        self._piece.check_bytes(found.end, found.checksum)
        return PieceRecord(self._file.name, self._rows, 0)


def read_rows(path: str, name: str, max_line_bytes: int) -> Iterator[list[SourceLine]]:
    """Yield the rows of a table as lines, some at a time: what `run_apart` does.

    Raises `UnreadableFile`, calling the file ``name``.
    """
    size = Path(path).stat().st_size if Path(path).exists() else 0
    rows = content = 0
    unread = frozenset[str]()

    def choose(schema: pa.Schema) -> list[str]:
        nonlocal unread
        names, unread = choose_columns(schema)
        return names

    try:
        for batch in read_batches(Path(path), choose):
            decode = _decoder_of(batch.schema, name)
            for part in _read_parts(batch, decode, rows, max_line_bytes, unread):
                rows += len(part)
                content += sum(map(_size_of, part))
                if content > max(_FREE_BYTES, EXPANSION_LIMIT * size):
                    reason = (
                        f"{size} bytes hold over {content} bytes of JSON, more than "
                        f"{EXPANSION_LIMIT} times as many; if that is meant, give it as JSONL"
                    )
                    raise UnreadableFile(name, rows, reason)
                yield part
    except (pa.ArrowException, OSError) as error:
        # Arrow raises an OSError without a number for a file that is damaged.
        if isinstance(error, OSError) and error.errno is not None:
            raise unreadable(SourceFile(Path(path), name), rows + 1, error) from error
        reason = f"not a whole table ({excerpt_of(str(error))}); restore the file"
        raise UnreadableFile(name, rows + 1, reason) from error


def _size_of(line: SourceLine) -> int:
    return len(line.text or "")


def _decoder_of(schema: pa.Schema, name: str) -> Decoder | None:
    if not schema.names:
        reason = (
            "none of its columns is part of a shape; expected messages, prompt and completion, "
            "or others of docs/formats.md"
        )
        raise UnreadableFile(name, 1, reason)
    try:
        return find_decoder(schema)
    except Rejected as error:
        raise UnreadableFile(name, 1, error.reason) from error


def _read_parts(
    batch: pa.RecordBatch,
    decode: Decoder | None,
    before: int,
    max_line_bytes: int,
    unread: frozenset[str],
) -> Iterator[list[SourceLine]]:
    """Yield the rows of a batch, so many at once as fit in `_BATCH_BYTES` by the rows before them.

    A dictionary holds a text once for all of its rows, so the size of the batch does not tell.
    """
    start, step = 0, min(_FIRST_ROWS, _fitting_rows(batch.nbytes, batch.num_rows))
    while start < batch.num_rows:
        rows = batch.slice(start, step)
        part = list(_lines_of(rows, decode, before + start, max_line_bytes, unread))
        yield part
        start += len(part)
        step = min(8 * step, _fitting_rows(sum(map(_size_of, part)), len(part)))


def _lines_of(
    rows: pa.RecordBatch,
    decode: Decoder | None,
    before: int,
    max_line_bytes: int,
    unread: frozenset[str],
) -> Iterator[SourceLine]:
    for number, row in enumerate(values_of(rows), before + 1):
        try:
            if isinstance(row, Rejected):
                raise row
            text = write_json(row if decode is None else decode(row))
            size = len(text.encode())
            if size > max_line_bytes:
                reason = f"{size} bytes of JSON, expected at most {max_line_bytes}"
                raise Rejected("line_too_long", f"{reason}; split the example", text)
            yield SourceLine(number, text, None, unread)
        except Rejected as error:
            yield SourceLine(number, None, error.without_frames())


def choose_columns(schema: pa.Schema) -> tuple[list[str], frozenset[str]]:
    """Return the names of the columns to read, and those of the others.

    Read are those of a shape, and those in which tools or template options lie; none where no shape
    has any of them. Raises `pa.ArrowInvalid` where two of them have one name.
    """
    # Beside a conversation of ours a column of another tool is one more that nobody reads.
    has_context = not _CONTEXTS.isdisjoint(schema.names)
    known = KNOWN_KEYS if has_context else KNOWN_KEYS | FOREIGN_KEYS
    names = [field.name for field in schema if field.name in known or _holds_request(field.type)]
    if len(set(names)) != len(names):
        raise pa.ArrowInvalid(f"two columns have one name: {', '.join(sorted(names))}")
    if known.isdisjoint(names):
        names = []
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


def values_of(rows: pa.RecordBatch) -> Iterator[dict[str, Any] | Rejected]:
    """Yield each row as Python values, keys that are null left out, or why it has none."""
    try:
        values: list[dict[str, Any]] = rows.to_pylist()
    except UnicodeDecodeError as error:
        if rows.num_rows == 1:
            yield _bad_encoding(error)
            return
        for index in range(rows.num_rows):
            yield from values_of(rows.slice(index, 1))
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

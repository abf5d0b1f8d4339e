"""JSONL files (plain, .gz, .zst) -> a `datasets.Dataset` of their lines, byte-exact.

The text of a line stays as it is in the file and is given no type: readers that infer the types of
columns rewrite dates, ids, numbers and "null". Every line that is not blank becomes a row or a
reject; a file that cannot be read to its end stops the job, because its row count would be a guess.
"""

from __future__ import annotations

import codecs
import hashlib
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

import datasets
import pyarrow as pa

from pipeline.errors import EXCERPT_LIMIT, Rejected, UnreadableFile
from pipeline.source.archive import BrokenArchive, decompressed
from pipeline.source.files import (
    SourceFile,
    find_files,
    hash_file,
    open_bytes,
    spool_streams,
    unreadable,
)
from pipeline.source.json_lines import is_one_value_over_lines, parse_line
from pipeline.types import Reject

__all__ = [
    "FileRecord",
    "LoadedLines",
    "Reading",
    "SourceFile",
    "SourceLine",
    "find_files",
    "hash_file",
    "load_lines",
    "open_lines",
    "parse_line",
    "read_lines",
    "spool_streams",
]

MAX_LINE_BYTES: Final = 64 * 2**20
"""Default limit of a line: no example is that long, and a file without newlines is no JSONL."""

CHUNK_BYTES: Final = 2**20
BATCH_CHARACTERS: Final = 8 * 2**20
"""Text in one Arrow record batch; with CHUNK_BYTES and the longest line it bounds the memory."""

LINE_SCHEMA: Final = pa.schema(
    # `text` is large: its offsets must reach past 2 GiB where batches are joined.
    [("file", pa.string()), ("line", pa.int64()), ("text", pa.large_string())]
)


@dataclass(frozen=True, slots=True)
class SourceLine:
    """A line that is not blank: its number (from 1; blank lines count) and its text or its reject.

    ``text`` is exactly what the file has between two newlines, without a carriage return at its
    end and without a byte order mark at the start of the file.
    """

    line: int
    text: str | None
    reject: Rejected | None = None


@dataclass(frozen=True, slots=True)
class FileRecord:
    """What was read of one file: ``bytes`` and ``sha256`` of it as it is on disk, and its lines.

    ``lines`` counts the lines that are not blank, rejects included.
    """

    name: str
    bytes: int
    sha256: str
    lines: int
    blank_lines: int


@dataclass(frozen=True, slots=True)
class LoadedLines:
    """All lines of a run: ``dataset`` has the columns ``file``, ``line``, ``text`` (`LINE_SCHEMA`).

    ``sum(record.lines for record in records) == len(dataset) + len(rejects)``.
    """

    dataset: datasets.Dataset
    records: tuple[FileRecord, ...]
    rejects: tuple[Reject, ...]


def read_lines(file: SourceFile, max_line_bytes: int = MAX_LINE_BYTES) -> Iterator[SourceLine]:
    r"""Yield the lines of one file that are not blank, in bounded memory.

    Lines end at ``\n`` alone; one ``\r`` before it is dropped. A line that is not UTF-8 or longer
    than ``max_line_bytes`` is yielded as a reject (``bad_encoding``, ``line_too_long``).

    Raises:
        UnreadableFile: the file is cut, damaged, UTF-16, a JSON array, a pretty-printed object, or
            cannot be opened. Lines before the fault may have been yielded; they must not be used.
    """
    return iter(_Reading(file, max_line_bytes))


class Reading(Protocol):
    """One file being read: its lines, as `read_lines` yields them, then the record of it."""

    def __iter__(self) -> Iterator[SourceLine]: ...

    def record(self) -> FileRecord:
        """Return what was read; only after the last line."""
        ...


def open_lines(file: SourceFile, max_line_bytes: int) -> Reading:
    """Return the reading of a JSONL file."""
    return _Reading(file, max_line_bytes)


def load_lines(
    files: Sequence[SourceFile],
    cache_file: Path,
    max_line_bytes: int = MAX_LINE_BYTES,
    open_file: Callable[[SourceFile, int], Reading] = open_lines,
) -> LoadedLines:
    """Write the lines of ``files`` to the Arrow file ``cache_file`` and open it as a data set.

    Rows keep the order of ``files``, then of lines. ``cache_file`` appears whole or not at all.
    Streams are read as they come. ``open_file`` says how a file is read.

    Raises:
        UnreadableFile: as `read_lines`; nothing is written then.
    """
    records: list[FileRecord] = []
    rejects: list[Reject] = []
    cache_file.parent.mkdir(parents=True, exist_ok=True)
    partial = cache_file.with_name(f"{cache_file.name}.{os.getpid()}.part")
    try:
        with pa.OSFile(str(partial), "wb") as sink, pa.ipc.new_stream(sink, LINE_SCHEMA) as writer:
            readings = ((file, open_file(file, max_line_bytes)) for file in files)
            for batch in _batches(readings, records, rejects):
                writer.write_batch(batch)
        partial.replace(cache_file)
    finally:
        partial.unlink(missing_ok=True)
    dataset = datasets.Dataset.from_file(str(cache_file))
    return LoadedLines(dataset, tuple(records), tuple(rejects))


def _batches(
    readings: Iterable[tuple[SourceFile, Reading]],
    records: list[FileRecord],
    rejects: list[Reject],
) -> Iterator[pa.RecordBatch]:
    """Yield the lines as record batches, and add to ``records`` and ``rejects`` on the way."""
    names: list[str] = []
    numbers: list[int] = []
    texts: list[str] = []
    held = 0

    for file, reading in readings:
        for line in reading:
            if line.reject is not None:
                error = line.reject
                rejects.append(
                    Reject(file.name, line.line, "", error.code, error.reason, error.excerpt)
                )
            elif line.text is not None:
                names.append(file.name)
                numbers.append(line.line)
                texts.append(line.text)
                held += len(line.text)
                if held >= BATCH_CHARACTERS:
                    yield pa.record_batch([names, numbers, texts], schema=LINE_SCHEMA)
                    names, numbers, texts, held = [], [], [], 0
        records.append(reading.record())
    if texts:
        yield pa.record_batch([names, numbers, texts], schema=LINE_SCHEMA)


class _Reading:
    """One pass over one file: iterate once for its lines, then ask for its record."""

    def __init__(self, file: SourceFile, max_line_bytes: int) -> None:
        self._file, self._max_line_bytes = file, max_line_bytes
        self._sha256 = hashlib.sha256()
        self._bytes = self._line = self._blank_lines = 0

    def __iter__(self) -> Iterator[SourceLine]:
        lines = self._decoded_lines()
        head = list(itertools.islice(lines, 3))
        self._refuse_one_value(head)
        yield from itertools.chain(head, lines)

    def record(self) -> FileRecord:
        """Return what was read; complete after the last line."""
        return FileRecord(
            name=self._file.name,
            bytes=self._bytes,
            sha256=self._sha256.hexdigest(),
            lines=self._line - self._blank_lines,
            blank_lines=self._blank_lines,
        )

    def _decoded_lines(self) -> Iterator[SourceLine]:
        for raw, size in self._raw_lines():
            self._line += 1
            if self._line == 1:
                raw = raw.removeprefix(codecs.BOM_UTF8)
            if not raw or (raw.isspace() and size <= self._max_line_bytes):
                self._blank_lines += 1
                continue
            if self._line == self._blank_lines + 1 and _is_wide_text(raw):
                reason = "UTF-16 or UTF-32 text, expected UTF-8; convert it, e.g. `iconv -f UTF-16`"
                raise UnreadableFile(self._file.name, self._line, reason)
            yield self._decoded(raw, size)

    def _decoded(self, raw: bytes, size: int) -> SourceLine:
        if size > self._max_line_bytes:
            reason = f"{size} bytes, expected at most {self._max_line_bytes}; split the example"
            found = raw.decode("utf-8", "backslashreplace")
            return SourceLine(self._line, None, Rejected("line_too_long", reason, found))
        try:
            return SourceLine(self._line, raw.removesuffix(b"\r").decode())
        except UnicodeDecodeError as error:
            reason = (
                f"byte 0x{raw[error.start]:02x} at offset {error.start} of the line is not UTF-8 "
                f"({error.reason}); convert the file to UTF-8"
            )
            before = raw[: error.start].decode()[-EXCERPT_LIMIT // 2 :]
            after = raw[error.start :][:EXCERPT_LIMIT].decode("utf-8", "backslashreplace")
            return SourceLine(self._line, None, Rejected("bad_encoding", reason, before + after))

    def _refuse_one_value(self, head: Sequence[SourceLine]) -> None:
        """Raise for a file that is one JSON array or pretty-printed: ``head`` is how it begins."""
        if not head:
            return
        texts = [line.text for line in head if line.text is not None]
        # An array in one line can be longer than any line that is held.
        reject = head[0].reject
        long_array = (
            reject is not None
            and reject.code == "line_too_long"
            and reject.excerpt.lstrip().startswith("[")
        )
        if not long_array and not (len(texts) == len(head) and is_one_value_over_lines(texts)):
            return
        if long_array or texts[0].lstrip().startswith("["):
            found, remedy = "the file is a JSON array", "jq -c '.[]'"
        else:
            found, remedy = "an object is spread over several lines", "jq -c ."
        raise UnreadableFile(
            self._file.name,
            head[0].line,
            f"{found}, expected one object a line (JSONL); convert it, e.g. `{remedy}`",
        )

    def _raw_lines(self) -> Iterator[tuple[bytes, int]]:
        """Yield each line and its size in bytes; of a line over the limit only the beginning."""
        try:
            chunks = decompressed(self._disk_chunks(), self._file.path.name)
            yield from _split(chunks, self._max_line_bytes)
        except BrokenArchive as error:
            raise UnreadableFile(self._file.name, self._line + 1, str(error)) from error
        except OSError as error:
            raise unreadable(self._file, self._line + 1, error) from error

    def _disk_chunks(self) -> Iterator[bytes]:
        with open_bytes(self._file) as stream:
            while chunk := stream.read(CHUNK_BYTES):
                self._sha256.update(chunk)
                self._bytes += len(chunk)
                yield chunk


def _split(chunks: Iterator[bytes], max_line_bytes: int) -> Iterator[tuple[bytes, int]]:
    """Yield each line and its size in bytes; of a line over the limit only the beginning."""
    held, size = bytearray(), 0
    for chunk in chunks:
        *ended, rest = chunk.split(b"\n")
        for part in ended:
            size += len(part)
            if held:
                held += part
                part = bytes(held)
                held.clear()
            yield (part if size <= max_line_bytes else part[:EXCERPT_LIMIT]), size
            size = 0
        held += rest
        size += len(rest)
        if size > max_line_bytes:
            del held[EXCERPT_LIMIT:]
    if size:
        yield bytes(held), size


def _is_wide_text(raw: bytes) -> bool:
    """Say whether text begins as UTF-16 or UTF-32: with their mark, or ASCII beside zero bytes."""
    marks = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE)
    zeros = [byte == 0 for byte in raw[:4]]
    return (
        raw.startswith(marks)
        or zeros[:2] in ([True, False], [False, True])
        or (zeros == [True, True, True, False])
    )

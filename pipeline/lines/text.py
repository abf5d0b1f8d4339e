"""JSONL files (plain, .gz, .zst) -> their lines, byte-exact, every one accounted for.

The text of a line stays as it is in the file and is given no type: readers that infer the types of
columns rewrite dates, ids, numbers and "null". Every line that is not blank is read or is a reject;
a file that cannot be read to its end stops the job, because its row count would be a guess.
"""

from __future__ import annotations

import codecs
import itertools
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from pipeline.errors import EXCERPT_LIMIT, Rejected, UnreadableFile
from pipeline.lines.archive import BrokenArchive, decompressed
from pipeline.lines.file_kinds import text_kind_of
from pipeline.lines.files import SourceFile, open_bytes, unreadable
from pipeline.lines.json_text import is_one_value_over_lines
from pipeline.lines.plan import Piece

MAX_LINE_BYTES: Final = 64 * 2**20
"""Limit of a line: no example is that long, and a file without newlines is no JSONL."""

CHUNK_BYTES: Final = 2**20


def _do_nothing() -> None:
    pass


@dataclass
class WatchedReads:
    """Who is told that this process still reads: blank lines and slow disks give no batch for long."""

    on_read: Callable[[], None] = _do_nothing


WATCHED_READS: Final = WatchedReads()
"""The reads of this process."""


class SourceLine(NamedTuple):
    """A line that is not blank: its number (from 1; blank lines count) and its text or its reject.

    ``text`` is exactly what the file has between two newlines, without a carriage return at its
    end and without a byte order mark at the start of the file. ``unread_columns`` are those of a
    table that were not read.
    """

    line: int
    text: str | None
    reject: Rejected | None = None
    unread_columns: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class PieceRecord:
    """What was read of a piece of ``file``: ``lines`` that are not blank, rejects included."""

    file: str
    lines: int
    blank_lines: int


def read_lines(file: SourceFile, max_line_bytes: int = MAX_LINE_BYTES) -> Iterator[SourceLine]:
    r"""Yield the lines of one file that are not blank, in bounded memory.

    Lines end at ``\n`` alone; one ``\r`` before it is dropped. A line that is not UTF-8 or longer
    than ``max_line_bytes`` is yielded as a reject (``bad_encoding``, ``line_too_long``).

    Raises:
        UnreadableFile: the file is cut, damaged, UTF-16, a JSON array, a pretty-printed object, or
            cannot be opened. Lines before the fault may have been yielded; they must not be used.
    """
    return iter(LineReading(file, max_line_bytes))


class LineReading:
    """One pass over one file or a piece of it: iterate once for its lines, then ask for its record."""

    def __init__(
        self,
        file: SourceFile,
        max_line_bytes: int = MAX_LINE_BYTES,
        piece: Piece | None = None,
    ) -> None:
        self._file, self._max_line_bytes, self._piece = file, max_line_bytes, piece
        self._before = piece.first_line - 1 if piece else 0
        self._line = self._before
        self._bytes = self._checksum = self._blank_lines = 0

    def __iter__(self) -> Iterator[SourceLine]:
        lines = self._decoded_lines()
        if not self._before:
            head = list(itertools.islice(lines, 3))
            self._refuse_other_text(head)
            lines = itertools.chain(head, lines)
        yield from lines

    def record(self) -> PieceRecord:
        """Return what was read; only after the last line.

        Raises `UsageError` where it is not what was planned: the file changed meanwhile.
        """
        if self._piece:
            self._piece.check_bytes(self._bytes, self._checksum)
        lines = self._line - self._before - self._blank_lines
        return PieceRecord(self._file.name, lines, self._blank_lines)

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

    def _refuse_other_text(self, head: Sequence[SourceLine]) -> None:
        """Raise for a file that is one JSON value or no JSON at all: ``head`` is how it begins."""
        if not head:
            return
        texts = [line.text for line in head if line.text is not None]
        if len(texts) == len(head) and (found := text_kind_of(texts)):
            kind, cure = found
            reason = (
                f"this is a {kind} file, expected one object a line (JSONL); convert it: {cure}"
            )
            raise UnreadableFile(self._file.name, head[0].line, reason)
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
        chunks = self._disk_chunks()
        try:
            # What a file is shows at its start: a later piece is text, whatever it begins with.
            if not self._before:
                chunks = decompressed(chunks, self._file.path.name)
            yield from _split(chunks, self._max_line_bytes)
        except BrokenArchive as error:
            raise UnreadableFile(self._file.name, self._line + 1, str(error)) from error
        except OSError as error:
            raise unreadable(self._file, self._line + 1, error) from error

    def _disk_chunks(self) -> Iterator[bytes]:
        size = self._piece.end - self._piece.start if self._piece else None
        with open_bytes(self._file) as stream:
            if self._piece:
                stream.seek(self._piece.start)
            while chunk := stream.read(
                CHUNK_BYTES if size is None else min(CHUNK_BYTES, size - self._bytes)
            ):
                self._checksum = zlib.crc32(chunk, self._checksum)
                self._bytes += len(chunk)
                WATCHED_READS.on_read()
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

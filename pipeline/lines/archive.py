"""Compressed files as a stream of their content; a cut file is an error, never a short read.

Common readers take a multi-frame zstd file that was cut for a shorter one: `stream_reader` of
zstandard ends without a word. Here each gzip member and each zstd frame must reach its own end,
where its checksum is verified. A cut exactly between two of them leaves a valid file and cannot
be known.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Callable, Iterator
from typing import Final, Protocol

import zstandard

from pipeline.errors import excerpt_of
from pipeline.lines.file_kinds import HEAD_BYTES, kind_of

PIECE_BYTES: Final = 1024
"""Compressed bytes decoded at once. A zstd block of 4 bytes can hold 128 KiB, so one piece expands
to 32 MiB at the very worst (gzip: 1 MiB); larger pieces are hardly faster."""

LONGEST_WINDOW_BYTES: Final = 2**31
"""Window that `zstd --long=31` writes; the library's own limit refuses such files."""

EXPANSION_LIMIT: Final = 500
FREE_BYTES: Final = 2**28
"""Beyond this much content a file may not hold more than so many times its own size: that is no log
but a bomb. Logs that repeat themselves in every line reach about a hundred times."""

FREE_LINES: Final = 2**20
LINES_PER_BYTE: Final = 10
"""Beyond so many lines or rows a compressed file or a table may not hold more than so many for each
of its bytes: they can say nothing. The shortest examples, packed 100 to 1, are 5 lines a byte."""

GZIP_MAGIC: Final = b"\x1f\x8b"
ZSTD_MAGICS: Final = (
    b"\x28\xb5\x2f\xfd",
    *(bytes([0x50 + i]) + b"\x2a\x4d\x18" for i in range(16)),
)
"""First bytes of a zstd frame and of the 16 kinds of skippable frames (RFC 8878, section 3.1)."""


class BrokenArchive(ValueError):
    """A compressed file is cut, damaged, of a kind that is not read, or not what its name says."""


class _Member(Protocol):
    """One gzip member or one zstd frame while it is decoded."""

    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, /) -> bytes: ...


def decompressed(chunks: Iterator[bytes], name: str) -> Iterator[bytes]:
    """Yield the content of a file whose bytes are ``chunks``, decompressed if it is compressed.

    The first bytes decide, not ``name``; but a name in ``.gz`` or ``.zst`` must keep its promise.

    Raises:
        BrokenArchive: see there; raised where the fault is met, after the content before it.
    """
    first = next(chunks, b"")
    chunks = itertools.chain([first], chunks)
    kind = compression_of(first)
    for suffix, promised in ((".gz", "gzip"), (".zst", "zstd")):
        if name.lower().endswith(suffix) and kind != promised:
            found = f"it begins with {excerpt_of(repr(first[:16]))}" if first else "it is empty"
            raise BrokenArchive(
                f"the name ends in {suffix} but the content is not {promised} ({found}); "
                "make the file again, or rename it"
            )
    if kind == "gzip":
        # Tapes and some uploads pad a gzip file with zero bytes; `gzip -d` ignores them too.
        content = _members(chunks, kind, lambda: zlib.decompressobj(wbits=31), padding=b"\0")
        return _refuse_other_kinds(content, f" inside {kind}")
    if kind == "zstd":
        decompressor = zstandard.ZstdDecompressor(max_window_size=LONGEST_WINDOW_BYTES)
        content = _members(chunks, kind, decompressor.decompressobj, padding=b"")
        return _refuse_other_kinds(content, f" inside {kind}")
    return _refuse_other_kinds(chunks, "")


def most_lines(size: int) -> int:
    """Return how many lines or rows ``size`` bytes of a compressed file or a table may hold."""
    return max(FREE_LINES, LINES_PER_BYTE * size)


def _refuse_other_kinds(content: Iterator[bytes], where: str) -> Iterator[bytes]:
    """Yield content that may be text; raise `BrokenArchive` for another kind of file."""
    head = b""
    for chunk in content:
        head += chunk
        if len(head) >= HEAD_BYTES:
            break
    if where and (twice := compression_of(head)):
        raise BrokenArchive(f"this is a {twice} file{where}: compressed twice; unpack it once")
    if found := kind_of(head):
        kind, cure = found
        raise BrokenArchive(
            f"this is a {kind} file{where}, and only plain, gzip and zstd JSONL is read; "
            f"convert it first: {cure}"
        )
    if head:
        yield head
    # Let go of the first part before the next ones expand.
    head = chunk = b""
    yield from content


def compression_of(first: bytes) -> str:
    """Return the compression of a file that begins with these bytes; empty where it has none."""
    if first.startswith(GZIP_MAGIC):
        return "gzip"
    return "zstd" if first.startswith(ZSTD_MAGICS) else ""


def _members(
    chunks: Iterator[bytes], kind: str, new_member: Callable[[], _Member], padding: bytes
) -> Iterator[bytes]:
    """Yield the content of gzip members or zstd frames that follow each other."""
    member: _Member | None = None
    packed = unpacked = lines = 0
    for chunk in chunks:
        packed += len(chunk)
        for start in range(0, len(chunk), PIECE_BYTES):
            piece = chunk[start : start + PIECE_BYTES]
            while piece:
                if member is None:
                    piece = piece.lstrip(padding)
                    member = new_member() if piece else None
                    continue
                try:
                    content = member.decompress(piece)
                except (zlib.error, zstandard.ZstdError) as error:
                    raise BrokenArchive(
                        f"the {kind} data is damaged ({error}); copy or download the file again"
                    ) from error
                unpacked += len(content)
                if unpacked > max(FREE_BYTES, EXPANSION_LIMIT * packed):
                    raise BrokenArchive(
                        f"{packed} bytes of {kind} data hold over {unpacked} bytes, more than "
                        f"{EXPANSION_LIMIT} times as many; if that is meant, unpack the file first"
                    )
                lines += content.count(b"\n")
                if lines > most_lines(packed):
                    raise BrokenArchive(
                        f"{packed} bytes of {kind} data hold over {lines} lines, more than "
                        f"{LINES_PER_BYTE} for each byte; if that is meant, unpack the file first"
                    )
                yield content
                # Let go before the next piece expands.
                piece = content = b""
                if member.eof:
                    piece, member = member.unused_data, None
    if member is not None:
        raise BrokenArchive(
            f"the {kind} data is cut: the file ends before its content does; "
            "copy or download the file again"
        )

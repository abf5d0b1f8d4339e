"""The input cut into shards: runs of whole lines, each turned into rows on its own.

One pass over every file gives its sha256 for the seal and the places where it is cut, so that a
shard is the same whatever number of processes or machines works on the plan.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from pipeline.errors import UsageError
from pipeline.lines.archive import compression_of
from pipeline.lines.file_kinds import HEAD_BYTES, kind_of
from pipeline.lines.files import TABLE_SUFFIXES, SourceFile, open_bytes, unreadable

SHARDS: Final = 32
"""Shards that an input is cut into where that gives shards between the two bounds."""
LEAST_SHARD_BYTES: Final = 2**20
MOST_SHARD_BYTES: Final = 2**28


class _Hash(Protocol):
    def update(self, data: bytes, /) -> None: ...


# Names whose files are cut nowhere, compressed or not: a wrong name is told by its reader.
_PACKED_SUFFIXES: Final = (".gz", ".zst", *TABLE_SUFFIXES)
# How many bytes of JSON one byte of a compressed file or a table stands for, roughly.
_PACKED_SHARE: Final = 4
CHUNK_BYTES: Final = 2**20
# A reader tells a file that is no JSONL by its first lines, so the first piece holds so many.
_HEAD_LINES: Final = 3


@dataclass(frozen=True, slots=True)
class Piece:
    """Whole lines of one file: the bytes from ``start`` to ``end`` on disk.

    ``first_line`` is the number of its first line, from 1; ``checksum`` is the CRC-32 of its bytes,
    by which a reader knows that the file stands still. A file that is compressed, or a table, is one
    piece.
    """

    file: SourceFile
    start: int
    end: int
    first_line: int
    checksum: int

    def check_bytes(self, size: int, checksum: int) -> None:
        """Refuse bytes that are not those of the plan. Raises `UsageError`."""
        if (size, checksum) != (self.end - self.start, self.checksum):
            raise UsageError(
                f"input: {self.file.name} changed while it was read; "
                "expected files that stand still, run again"
            )


@dataclass(frozen=True, slots=True)
class SourceShard:
    """Consecutive pieces of the input; ``index`` is its place among the shards, from 0."""

    index: int
    pieces: tuple[Piece, ...]

    @property
    def bytes(self) -> int:
        """Size of the shard on disk."""
        return sum(piece.end - piece.start for piece in self.pieces)

    def describe(self) -> str:
        """Return where the shard lies, for an error or a log line.

        A piece is named by the line it begins at: where it ends is known once it is read.
        """
        first, *_, last = (self.pieces[0], *self.pieces)
        begin = f"shard {self.index}: {first.file.name} from line {first.first_line}"
        return begin if first is last else f"{begin} to {last.file.name}"


@dataclass(frozen=True, slots=True)
class SourcePlan:
    """The shards of an input, and the sha256 of each file on disk by name, in input order."""

    shards: tuple[SourceShard, ...]
    sha256: dict[str, str]

    @property
    def bytes(self) -> int:
        """Size of the input on disk."""
        return sum(shard.bytes for shard in self.shards)

    @property
    def sizes(self) -> dict[SourceFile, int]:
        """Bytes on disk of each file, in input order."""
        return {piece.file: piece.end for shard in self.shards for piece in shard.pieces}

    @property
    def key(self) -> str:
        """Hash of where the input is cut, in hex: equal plans have equal shards."""
        cuts = [
            [[each.file.name, each.start, each.end, each.checksum] for each in shard.pieces]
            for shard in self.shards
        ]
        return hashlib.sha256(json.dumps(cuts).encode()).hexdigest()


def plan_shards(files: Sequence[SourceFile]) -> SourcePlan:
    """Return the plan of ``files``, in their order. None of them may be a stream.

    Raises `UnreadableFile` for a file that the system does not let us read.
    """
    weights = [_weigh(file) for file in files]
    total = sum(size * share for size, share in weights)
    wanted = min(max(total // SHARDS, LEAST_SHARD_BYTES), MOST_SHARD_BYTES)
    sha256: dict[str, str] = {}
    shards: list[SourceShard] = []
    held: list[Piece] = []
    held_bytes = 0
    for file, (_, share) in zip(files, weights, strict=True):
        whole = hashlib.sha256()
        for piece in _cut_file(file, wanted, whole, is_whole=share > 1):
            held.append(piece)
            held_bytes += (piece.end - piece.start) * share
            if held_bytes >= wanted:
                shards.append(SourceShard(len(shards), tuple(held)))
                held, held_bytes = [], 0
        sha256[file.name] = whole.hexdigest()
    if held:
        shards.append(SourceShard(len(shards), tuple(held)))
    return SourcePlan(tuple(shards), sha256)


def whole_piece(file: SourceFile) -> Piece:
    """Return a file that is not to be cut as its one piece.

    Raises `UnreadableFile` as `plan_shards`.
    """
    pieces = list(_cut_file(file, 0, hashlib.sha256(), is_whole=True))
    return pieces[0] if pieces else Piece(file, 0, 0, 1, 0)


def _cut_file(file: SourceFile, wanted: int, whole: _Hash, *, is_whole: bool) -> Iterator[Piece]:
    """Yield the pieces of a file, cut after the first newline past ``wanted`` bytes."""
    start = end = checksum = 0
    first_line, newlines = 1, 0
    try:
        with open_bytes(file) as stream:
            while chunk := stream.read(CHUNK_BYTES):
                whole.update(chunk)
                while chunk:
                    missing = max(wanted - (end - start), 0)
                    cut = -1 if is_whole else chunk.find(b"\n", missing) + 1
                    part = chunk[:cut] if cut > 0 else chunk
                    checksum = zlib.crc32(part, checksum)
                    end += len(part)
                    newlines += 0 if is_whole else part.count(b"\n")
                    chunk = chunk[len(part) :]
                    if cut > 0 and (start or newlines >= _HEAD_LINES):
                        yield Piece(file, start, end, first_line, checksum)
                        start, checksum = end, 0
                        first_line, newlines = first_line + newlines, 0
    except OSError as error:
        raise unreadable(file, 0, error) from error
    if end > start or not end:
        yield Piece(file, start, end, first_line, checksum)


def _weigh(file: SourceFile) -> tuple[int, int]:
    """Return the size of a file, and for how many bytes of JSON each of its bytes stands, roughly."""
    try:
        with open_bytes(file) as stream:
            head = stream.read(HEAD_BYTES)
        is_packed = file.path.name.lower().endswith(_PACKED_SUFFIXES)
        is_packed = is_packed or bool(compression_of(head) or kind_of(head))
        return file.path.stat().st_size, _PACKED_SHARE if is_packed else 1
    except OSError as error:
        raise unreadable(file, 0, error) from error

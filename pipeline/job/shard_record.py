"""What is kept of a shard that was made: its file of rows and rejects, and its counts."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from pipeline.lines.text import PieceRecord
from pipeline.rows.line_mapper import ShapeCounts
from pipeline.rows.seal import hash_file_bytes


@dataclass(frozen=True, slots=True)
class ShardRecord:
    """What a shard became: its file (`rows_path`) of ``bytes`` and ``sha256``, and in it ``rows``.

    ``codes`` counts the rejects, which stand in the same file, ``shapes`` the lines that were examples.
    """

    index: int
    pieces: tuple[PieceRecord, ...]
    bytes: int
    sha256: str
    rows: int
    codes: dict[str, int]
    shapes: ShapeCounts

    @property
    def lines(self) -> int:
        """Lines that are not blank."""
        return sum(piece.lines for piece in self.pieces)

    def to_marker(self) -> str:
        """Return the text of the record's file: the record as JSON, and the sha256 of that."""
        text = json.dumps(asdict(self))
        return f"{text}\n{_hash_text(text)}\n"

    @classmethod
    def from_marker(cls, marker: str) -> Self:
        """Return the record that a file holds. Raises `ValueError` for another text."""
        text, _, sha256 = marker.partition("\n")
        if sha256 != f"{_hash_text(text)}\n":
            raise ValueError("no record of a shard: its hash is not that of its text")
        try:
            values: dict[str, Any] = json.loads(text)
            pieces = tuple(PieceRecord(**piece) for piece in values.pop("pieces"))
            shapes = ShapeCounts(**values.pop("shapes"))
            return cls(pieces=pieces, shapes=shapes, **values)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"no record of a shard: {error}") from error


def _hash_text(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def record_path(folder: Path, index: int) -> Path:
    """Return where the record of a shard is written."""
    return folder / f"{index:05d}.json"


def rows_path(folder: Path, index: int) -> Path:
    """Return where the rows and rejects of a shard are written."""
    return folder / f"{index:05d}.arrow"


def read_finished(folder: Path, index: int) -> ShardRecord | None:
    """Return the record of a shard that is whole in ``folder``, or None where it is to be made.

    A record counts only with a file of the size and hash that it names.
    """
    record = read_made(folder, index)
    try:
        is_whole = record is not None and hash_file_bytes(rows_path(folder, index)) == record.sha256
    except OSError:
        return None
    return record if is_whole else None


def read_made(folder: Path, index: int) -> ShardRecord | None:
    """Return the record of a shard that was just made in ``folder``, or None where none was.

    The size of its file is the one that it names; its bytes are not read again.
    """
    try:
        record = ShardRecord.from_marker(record_path(folder, index).read_text(encoding="utf-8"))
        is_whole = rows_path(folder, index).stat().st_size == record.bytes
    except (OSError, ValueError):
        return None
    return record if is_whole and record.index == index else None

"""What is kept of a shard that was made: its files, its counts, its share of the digest."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.lines.text import PieceRecord
from pipeline.rows.seal import hash_file_bytes
from pipeline.rows.shape_counts import ShapeCounts
from pipeline.sets.arrow_file import WrittenFile
from pipeline.sets.counts import RowCounts


@dataclass(frozen=True, slots=True)
class ShardRecord:
    """What a shard became; its files lie in the folder of the shards.

    ``rows`` has one file per split, ``entries`` says which examples the rows are, ``examples`` and
    ``rejects`` are its lines of the files of those names. ``codes`` counts the rejects, ``shapes`` the
    lines that were examples, ``digest`` is the content digest of the rows.
    """

    index: int
    pieces: tuple[PieceRecord, ...]
    rows: dict[str, WrittenFile]
    entries: WrittenFile
    examples: WrittenFile
    rejects: WrittenFile
    counts: RowCounts
    codes: dict[str, int]
    shapes: ShapeCounts
    digest: str

    @property
    def lines(self) -> int:
        """Lines that are not blank."""
        return sum(piece.lines for piece in self.pieces)

    @property
    def files(self) -> Iterator[WrittenFile]:
        """Every file of the shard but its marker."""
        return iter((*self.rows.values(), self.entries, self.examples, self.rejects))

    def to_marker(self) -> str:
        """Return the text of the marker: the record as JSON, and the sha256 of that."""
        text = json.dumps(asdict(self))
        return f"{text}\n{_hash_text(text)}\n"

    @classmethod
    def from_marker(cls, marker: str) -> ShardRecord:
        """Return the record that a marker holds. Raises `ValueError` for another text."""
        text, _, sha256 = marker.partition("\n")
        if sha256 != f"{_hash_text(text)}\n":
            raise ValueError("no marker of a shard: its hash is not that of its text")
        try:
            values: dict[str, Any] = json.loads(text)
            named = {
                name: WrittenFile.from_dict(values[name])
                for name in ("entries", "examples", "rejects")
            }
            return cls(
                index=values["index"],
                pieces=tuple(PieceRecord(**piece) for piece in values["pieces"]),
                rows={name: WrittenFile.from_dict(file) for name, file in values["rows"].items()},
                counts=RowCounts(**values["counts"]),
                codes=values["codes"],
                shapes=ShapeCounts(**values["shapes"]),
                digest=values["digest"],
                **named,
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"no marker of a shard: {error}") from error


def _hash_text(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def marker_path(folder: Path, index: int) -> Path:
    """Return where the marker of a shard is written."""
    return folder / f"{index:05d}.json"


def read_finished(folder: Path, index: int) -> ShardRecord | None:
    """Return the record of a shard that is whole in ``folder``, or None where it is to be made.

    A marker counts only with files of the sizes and hashes that it names.
    """
    record = read_made(folder, index)
    try:
        is_whole = record is not None and all(
            hash_file_bytes(folder / file.name) == file.sha256 for file in record.files
        )
    except OSError:
        return None
    return record if is_whole else None


def read_made(folder: Path, index: int) -> ShardRecord | None:
    """Return the record of a shard that was just made in ``folder``, or None where none was.

    The sizes of its files are those that its marker names; their bytes are not read again.
    """
    try:
        record = ShardRecord.from_marker(marker_path(folder, index).read_text(encoding="utf-8"))
        is_whole = all((folder / file.name).stat().st_size == file.bytes for file in record.files)
    except (OSError, ValueError):
        return None
    return record if is_whole and record.index == index else None

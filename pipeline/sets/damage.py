"""What of a saved set is not as it was sealed: the files, and of a file of rows the first bad rows.

The sha256 of a file says whether it is whole. Where it is not, the checksums of the blocks that it
was written in (one a batch of rows) say which is the first that is damaged; no byte of the file has
to make sense for that.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from pipeline.rows.seal import hash_file_bytes, hash_json
from pipeline.sets.manifest import MANIFEST, lies_inside


@dataclass(frozen=True, slots=True)
class Damage:
    """A file that differs: its name, what was sealed, what is there, and which rows that hits.

    ``rows`` is a sentence such as ``first bad rows: 512 to 767 of train``, empty for a file of none.
    """

    name: str
    expected: str
    found: str
    rows: str = ""

    def __str__(self) -> str:
        sentence = f"{self.name}: expected {self.expected}, found {self.found}"
        return f"{sentence}; {self.rows}" if self.rows else sentence


def hash_manifest(manifest: Mapping[str, Any]) -> str:
    """Return the sha256 (hex) of what a manifest says, but for its own ``sha256``."""
    return hash_json({name: value for name, value in manifest.items() if name != "sha256"})


def find_damage(folder: Path, manifest: Mapping[str, Any]) -> Iterator[Damage]:
    """Yield what differs in the set in ``folder``: its manifest, else its files in order of name.

    A manifest that is not as it was written is all that is named: what it says of the files counts
    for nothing.
    """
    sealed, found = str(manifest.get("sha256")), hash_manifest(manifest)
    if sealed != found:
        yield Damage(MANIFEST, f"sha256 {sealed[:16]}", f"sha256 {found[:16]}")
        return
    files: Mapping[str, Any] = manifest["files"]
    for name in files:
        if (damage := _find_damage_of(folder, name, files)) is not None:
            yield damage
    # Another set was copied over this one: load_dataset would read what it left as rows of this one.
    for path in sorted(folder.glob("*/data-*.arrow")):
        name = path.relative_to(folder).as_posix()
        if name not in files:
            yield Damage(name, "no such file", f"{path.stat().st_size} bytes of another set")


def _find_damage_of(folder: Path, name: str, files: Mapping[str, Any]) -> Damage | None:
    path, entry = folder / name, files[name]
    if not lies_inside(folder, path):
        return Damage(name, f"{entry['bytes']} bytes", "a link to outside of the set")
    if not path.is_file():
        expected, found = f"{entry['bytes']} bytes", "no such file"
    else:
        size = path.stat().st_size
        # Shards that were exchanged have the size and the hash of another file of the set.
        rows = [other for other in files if "blocks" in files[other]]
        as_large = [other for other in (name, *rows) if files[other]["bytes"] == size]
        sha256 = hash_file_bytes(path) if as_large else ""
        if sha256 == entry["sha256"]:
            return None
        expected, found = f"sha256 {entry['sha256'][:16]}", f"sha256 {sha256[:16]}"
        if size != entry["bytes"]:
            expected, found = f"{entry['bytes']} bytes", f"{size} bytes"
        same = (other for other in as_large if files[other]["sha256"] == sha256)
        if (other := next(same, None)) is not None:
            found = f"the content of {other}"
    if "blocks" not in entry:
        return Damage(name, expected, found)
    split = name.split("/", 1)[0]
    before = sum(
        _count_rows(files[other]["blocks"])
        for other in files
        if other.startswith(f"{split}/") and other < name and "blocks" in files[other]
    )
    return Damage(name, expected, found, _name_bad_rows(path, entry["blocks"], before, split))


def _name_bad_rows(path: Path, blocks: Sequence[str], start: int, split: str) -> str:
    """Return the rows of the first block that is not in the file; ``start`` is the file's first row."""
    if not path.is_file():
        rows = _count_rows(blocks)
        return f"missing rows: {start} to {start + rows - 1} of {split}" if rows else ""
    with path.open("rb") as file:
        for block in blocks:
            rows, size, checksum = _read_block(block)
            if _sum_next(file, size) != checksum:
                end = start + rows - 1
                return f"first bad rows: {start} to {end} of {split}" if rows else "no row is hit"
            start += rows
    return "no row is hit"


def _sum_next(file: BinaryIO, size: int) -> int:
    """Return the checksum of the next ``size`` bytes, or of as many as there are."""
    checksum = 0
    while size and (data := file.read(min(size, 2**20))):
        checksum = zlib.crc32(data, checksum)
        size -= len(data)
    return checksum


def _count_rows(blocks: Sequence[str]) -> int:
    return sum(_read_block(block)[0] for block in blocks)


def _read_block(block: str) -> tuple[int, int, int]:
    """Return the rows, the bytes and the checksum of a block as the manifest has it."""
    rows, size, checksum = block.split()
    return int(rows), int(size), int(checksum, 16)

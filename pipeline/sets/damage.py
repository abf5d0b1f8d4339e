"""What of a saved set is not as it was sealed: each file is known by its size and its sha256."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.rows.seal import hash_file_bytes, hash_json
from pipeline.sets.manifest import MANIFEST, lies_inside


@dataclass(frozen=True, slots=True)
class Damage:
    """A file that differs: its name, what was sealed, and what is there."""

    name: str
    expected: str
    found: str

    def __str__(self) -> str:
        return f"{self.name}: expected {self.expected}, found {self.found}"


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
        return Damage(name, f"{entry['bytes']} bytes", "no such file")
    size = path.stat().st_size
    # Files that were exchanged have the size and the hash of another file of the set.
    as_large = [other for other in files if files[other]["bytes"] == size]
    sha256 = hash_file_bytes(path) if as_large else ""
    if sha256 == entry["sha256"]:
        return None
    same = (other for other in as_large if size and files[other]["sha256"] == sha256)
    if (other := next(same, None)) is not None:
        found = f"the content of {other}"
    elif size == entry["bytes"]:
        return Damage(name, f"sha256 {entry['sha256'][:16]}", f"sha256 {sha256[:16]}")
    else:
        found = f"{size} bytes"
    return Damage(name, f"{entry['bytes']} bytes", found)

"""``OUTPUT.rejects.jsonl``: what a refused job leaves for a person to read, and later jobs replace.

It is known by the sha256 that was noted when it was written. A file of that name which somebody else
wrote, or in which somebody mends the lines, is neither replaced nor removed: the rejects then go to
``OUTPUT.rejects.1.jsonl``, or the next free number.
"""

from __future__ import annotations

import errno
import itertools
import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pipeline.rows.seal import hash_file_bytes

NOTE = "rejects-file.json"
"""File in the work folder of a target: the name of the rejects beside it, and their sha256."""


class RejectsFile:
    """The rejects of the last refused job for a target; ``path`` is where they are by default."""

    def __init__(self, path: Path, work: Path) -> None:
        self.path = path
        self._work = work
        self._note = work / NOTE

    def find(self) -> Path | None:
        """Return the file that an earlier job wrote and nobody changed, or None."""
        try:
            note: dict[str, Any] = json.loads(self._note.read_bytes())
            path = self.path.with_name(Path(note["name"]).name)
            if (
                path.is_symlink()
                or not path.is_file()
                or hash_file_bytes(path) not in note["sha256"]
            ):
                return None
        except (OSError, ValueError, TypeError, KeyError):
            return None
        return path

    def write(self, lines: Iterable[str]) -> Path:
        """Write ``lines`` in the place of the earlier rejects; return where."""
        earlier = self.find()
        path = earlier or self._find_free_name()
        partial = self._work / ".rejects.jsonl"
        with partial.open("w", encoding="utf-8", newline="\n") as file:
            file.writelines(lines)
        sha256 = hash_file_bytes(partial)
        # Until the exchange is done either may stand there.
        self._write_note(path, [sha256, *([hash_file_bytes(earlier)] if earlier else [])])
        try:
            partial.replace(path)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            shutil.copyfile(partial, path)
            partial.unlink()
        self._write_note(path, [sha256])
        return path

    def remove(self) -> None:
        """Remove the rejects of an earlier job."""
        if (path := self.find()) is not None:
            path.unlink(missing_ok=True)
        self._note.unlink(missing_ok=True)

    def _find_free_name(self) -> Path:
        stem = self.path.name.removesuffix(".jsonl")
        names = (f"{stem}.{number}.jsonl" for number in itertools.count(1))
        for name in itertools.chain([self.path.name], names):
            if not os.path.lexists(path := self.path.with_name(name)):
                return path
        raise AssertionError("numbers do not end")

    def _write_note(self, path: Path, sha256: list[str]) -> None:
        partial = self._work / f".{NOTE}"
        partial.write_text(json.dumps({"name": path.name, "sha256": sha256}), encoding="utf-8")
        partial.replace(self._note)

"""Paths, globs, folders and stdin -> the files to read, each once, under names that travel.

A name is relative to the input's folder, so that it means the same on another machine.
"""

from __future__ import annotations

import glob
import hashlib
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from io import BufferedReader
from pathlib import Path
from typing import Final

from pipeline.errors import UnreadableFile, UsageError

STDIN: Final = Path("-")

FOLDER_SUFFIXES: Final = tuple(
    plain + packed for plain in (".jsonl", ".ndjson") for packed in ("", ".gz", ".zst")
)
"""What a search below a folder takes, in any case of letters. Not ``.json`` or ``.json.gz``: beside
data these are mostly metadata or arrays; name such files or give a glob."""


TABLE_SUFFIXES: Final = (".parquet", ".arrow")
"""Ends of names by which a file is read as a table, one example a row."""


@dataclass(frozen=True, slots=True)
class SourceFile:
    """An input file: where it is, and ``name``, what rows, rejects and errors call it.

    ``name`` is unique in a run and has ``/`` between folders: relative to the folder that was
    given, else to the deepest folder that holds all files; ``stdin`` for standard input.
    """

    path: Path
    name: str

    @property
    def is_table(self) -> bool:
        """Whether it is read as a table, by the end of its name."""
        return self.path.name.lower().endswith(TABLE_SUFFIXES)

    @property
    def is_stream(self) -> bool:
        """Whether the bytes can be read only once (stdin, a FIFO, ``<(command)``)."""
        if self.path == STDIN:
            return True
        mode = self.path.stat().st_mode if self.path.exists() else stat.S_IFREG
        return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)


def find_files(
    inputs: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
) -> list[SourceFile]:
    """Return the files that ``inputs`` name, sorted by path.

    An input is a path, a folder (every `FOLDER_SUFFIXES` file below it; hidden ones are left out),
    a glob (``**`` crosses folders; a folder that it matches is searched), or ``-`` for stdin. A
    file that several inputs or links lead to counts once.

    Raises:
        UsageError: an input leads to no file.

    >>> [file.name for file in find_files("data")]  # doctest: +SKIP
    ['a.jsonl', 'more/b.jsonl.gz']
    """
    given = [inputs] if isinstance(inputs, str | os.PathLike) else inputs
    texts = [os.fspath(each) for each in given]
    if not texts:
        raise UsageError("no input: name a file, a folder, a glob, or - for stdin")
    try:
        paths = {path for text in texts for path in _paths_of(text)}
    except OSError as error:
        raise UsageError(f"cannot look into {error.filename}: {error.strerror}") from error
    once: dict[str, Path] = {}
    for path in sorted(paths, key=Path.as_posix):
        once.setdefault(os.path.realpath(path), path)
    files = [path for path in once.values() if path != STDIN]
    folder = _absolute(Path(texts[0]).expanduser())
    if files and not (len(texts) == 1 and folder.is_dir()):
        folder = Path(os.path.commonpath([path.parent for path in files]))
    return [
        SourceFile(path, "stdin" if path == STDIN else _name_below(folder, path))
        for path in once.values()
    ]


def open_bytes(file: SourceFile) -> BufferedReader:
    """Open a source file for reading; stdin stays open when the result is closed."""
    if file.path == STDIN:
        return os.fdopen(0, "rb", closefd=False)
    return file.path.open("rb")


def hash_file(file: SourceFile) -> str:
    """Return the sha256, in hex, of the bytes on disk, compressed or not.

    Raises:
        UnreadableFile: the file vanished or may not be read.
        UsageError: a stream, which hashing would use up; see `spool_streams`.
    """
    if file.is_stream:
        raise UsageError(f"{file.name} can be read only once; copy it with spool_streams first")
    try:
        with open_bytes(file) as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise unreadable(file, 0, error) from error


def spool_streams(files: Sequence[SourceFile], folder: Path) -> list[SourceFile]:
    """Return ``files`` with each stream copied to a new file in ``folder``, its name kept.

    The copies can be hashed and read again; they are the caller's to delete.
    """
    return [_spool(file, folder) if file.is_stream else file for file in files]


def unreadable(file: SourceFile, line: int, error: OSError) -> UnreadableFile:
    """Return the error for a file that the system does not let us read."""
    reason = f"cannot be read ({error.strerror or error}); check the path and its permissions"
    return UnreadableFile(file.name, line, reason)


def _spool(file: SourceFile, folder: Path) -> SourceFile:
    folder.mkdir(parents=True, exist_ok=True)
    with (
        open_bytes(file) as stream,
        tempfile.NamedTemporaryFile(dir=folder, prefix="stream-", delete=False) as copy,
    ):
        shutil.copyfileobj(stream, copy, 2**20)
    return SourceFile(Path(copy.name), file.name)


def _paths_of(text: str) -> list[Path]:
    """Return the absolute paths of the files that one input names; at least one."""
    if text == "-":
        return [STDIN]
    if "://" in text:
        # Neither a password in front of the host nor a signature behind the path is shown.
        shown = re.sub(r"//[^/@]*@", "//", text.partition("?")[0])
        raise UsageError(f"{shown} is an address, expected a path: download the data first")
    path = Path(text).expanduser()
    if text and path.is_dir():
        found = _data_files_below(path)
        wanted = f"found in the folder, looked for {', '.join(FOLDER_SUFFIXES)} at any depth"
    elif text and path.exists():
        return [_absolute(path)]
    else:
        found = list(_matches(path)) if any(mark in text for mark in "*?[") else []
        wanted = f"there, looked in {Path.cwd()}"
    if not found:
        raise UsageError(f"input {text!r}: nothing {wanted}; name a file, a folder or a glob")
    return [_absolute(path) for path in found]


def _matches(pattern: Path) -> Iterator[Path]:
    """Yield the files that a glob matches, and the data files below the folders it matches.

    `glob.glob` would follow a loop of links under ``**`` to the system's limit, for each path
    anew; the folders above the first ``**`` are left to it, and the rest is matched here.
    """
    parts = pattern.parts
    crossing = parts.index("**") if "**" in parts else len(parts)
    above = str(Path(*parts[:crossing]))
    heads = sorted(glob.glob(above))  # noqa: PTH207 (`Path.glob` takes hidden files)
    for head in map(Path, heads):
        if crossing == len(parts):
            yield from _data_files_below(head) if head.is_dir() else [head]
        elif head.is_dir():
            below = parts[crossing:]
            yield from (
                path for path in _files_below(head) if _fits(path.relative_to(head).parts, below)
            )


def _fits(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    """Say whether a relative path fits a pattern; ``**`` stands for any number of folders."""
    if not pattern:
        return not parts
    if pattern[0] == "**" and _fits(parts, pattern[1:]):
        return True
    if not parts:
        return False
    if pattern[0] == "**":
        return _fits(parts[1:], pattern)
    return fnmatchcase(parts[0], pattern[0]) and _fits(parts[1:], pattern[1:])


def _data_files_below(folder: Path) -> list[Path]:
    return [path for path in _files_below(folder) if path.name.lower().endswith(FOLDER_SUFFIXES)]


def _files_below(folder: Path) -> Iterator[Path]:
    """Yield every file below ``folder`` that is not hidden, each folder entered once.

    Linked folders are entered last, so that a file is known by its real place where it has one
    below ``folder``; a folder that was seen is not entered again, which ends every loop.
    """
    seen: set[str] = set()
    roots = [folder]
    for root in roots:
        for parent, folders, names in os.walk(root, onerror=_raise):
            real = os.path.realpath(parent)
            folders[:] = sorted(each for each in folders if not each.startswith("."))
            if real in seen:
                folders.clear()
                continue
            seen.add(real)
            roots += [link for each in folders if (link := Path(parent, each)).is_symlink()]
            yield from (Path(parent, name) for name in sorted(names) if not name.startswith("."))


def _raise(error: OSError) -> None:
    """`os.walk` leaves out a folder that it cannot list unless this is its ``onerror``."""
    raise error


def _absolute(path: Path) -> Path:
    # Only the file system knows where ".." leads after a link.
    return path.resolve() if ".." in path.parts else path.absolute()


def _name_below(folder: Path, path: Path) -> str:
    """Return the relative path as text that UTF-8 can write, whatever bytes the name has."""
    relative = path.relative_to(folder).as_posix()
    return os.fsencode(relative).decode("utf-8", "backslashreplace")

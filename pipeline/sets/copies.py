"""Copies on this machine of what lies on an object store: a set to be read, the inputs of a job."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from pipeline.errors import StoreFailed, UsageError
from pipeline.lines.data_sets import READABLE_SUFFIXES
from pipeline.sets.manifest import MANIFEST, lies_inside
from pipeline.sets.marks import make_marked_folder, mark_of
from pipeline.sets.store import SetStore, cache_folder, is_address, open_files, store_failures
from pipeline.sets.store_names import tag_of

# How often a set that is replaced while it is fetched is looked for anew.
_ATTEMPTS: Final = 10


def find_folder(path: str | Path) -> Path:
    """Return the folder of a set; of one on a store a copy, fetched again once the set has changed.

    Raises `UsageError` where there is none at the address, `StoreFailed` where it cannot be read.
    """
    if not is_address(path):
        return Path(path)
    store = SetStore(str(path))
    copies = _open_copies(store.address)
    for _ in range(_ATTEMPTS):
        manifest = store.read_manifest()
        if manifest is None:
            raise UsageError(f"{store.address}: no set there; expected one that prepare wrote")
        copy = copies / tag_of(manifest)
        try:
            if json.loads((copy / MANIFEST).read_bytes()) == manifest:
                return copy
        except (OSError, ValueError):
            pass
        try:
            _fetch_copy(store, manifest, copy)
        except FileNotFoundError:
            # Another set came meanwhile, and the objects of this one went.
            if store.read_manifest() == manifest:
                raise StoreFailed(
                    f"{store.address}: a file of the set is not there; prepare the set again"
                ) from None
            continue
        return copy
    raise StoreFailed(f"{store.address}: is replaced again and again; try again later")


def _open_copies(address: str) -> Path:
    """Return the folder of the copies of a set, known by its mark. Raises `UsageError`."""
    copies = cache_folder(address) / "copies"
    try:
        if not os.path.lexists(copies):
            copies.parent.mkdir(parents=True, exist_ok=True)
            make_marked_folder(copies, address)
    except OSError as error:
        # Another process was as fast.
        if mark_of(copies) is None:
            raise UsageError(
                f"{copies.parent}: {error.strerror}; expected a folder that can be written, for a "
                "copy of the set (XDG_CACHE_HOME names another)"
            ) from error
    if mark_of(copies) is None:
        raise UsageError(
            f"{copies} was not made by context-frozen; move it away, or name another folder with "
            "XDG_CACHE_HOME"
        )
    return copies


def _fetch_copy(store: SetStore, manifest: Mapping[str, Any], copy: Path) -> None:
    """Make ``copy`` the set of a manifest; copies of other sets that were there go."""
    fresh = copy.with_name(f".fresh-{os.getpid()}")
    shutil.rmtree(fresh, ignore_errors=True)
    try:
        store.fetch(fresh, manifest)
        for other in copy.parent.iterdir():
            if other.is_dir() and not other.name.startswith("."):
                shutil.rmtree(other, ignore_errors=True)
        # Another process may have been as fast.
        with suppress(FileExistsError, NotADirectoryError):
            fresh.rename(copy)
    except OSError as error:
        if isinstance(error, (FileNotFoundError, StoreFailed)) or copy.is_dir():
            raise
        raise UsageError(f"{copy.parent}: {error.strerror or error}; make room there") from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def fetch_inputs(inputs: Sequence[str], folder: Path) -> list[str]:
    """Return the inputs, each address among them (file, folder or glob) as a copy below ``folder``.

    Raises `UsageError` where there is no data file at an address, `StoreFailed` where it cannot be
    read.
    """
    return [
        str(_fetch_input(text, folder / f"store-{number:03d}")) if is_address(text) else text
        for number, text in enumerate(inputs)
    ]


def _fetch_input(address: str, folder: Path) -> Path:
    files, root = open_files(address)
    with store_failures(address):
        if any(mark in root for mark in "*?["):
            found: list[str] = files.glob(root)
            base = root[: min(root.find(mark) for mark in "*?[" if mark in root)].rpartition("/")[0]
        elif files.isfile(root):
            found, base = [root], root.rpartition("/")[0]
        else:
            found, base = files.find(root), root
        found = [name for name in found if name.lower().endswith(READABLE_SUFFIXES)]
        if not found:
            raise UsageError(
                f"input {address}: no data file there; expected {', '.join(READABLE_SUFFIXES)}"
            )
        for name in found:
            copy = folder / name[len(base) + 1 :]
            if not lies_inside(folder, copy):
                raise UsageError(f"input {address}: {name} is no name of a file")
            copy.parent.mkdir(parents=True, exist_ok=True)
            files.get_file(name, str(copy))
    return folder

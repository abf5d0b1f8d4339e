"""The folder of a set: rows as `datasets` saves them, and the manifest that names every file by its hash."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, cast

import datasets

from pipeline.rows.seal import hash_file_bytes
from pipeline.sets.damage import hash_manifest
from pipeline.sets.manifest import MANIFEST, write_manifest

FILE_BYTES: Final = 2**28


def save_rows(splits: datasets.DatasetDict, folder: Path) -> None:
    """Save the splits in ``folder``, in files of about `FILE_BYTES`.

    Raises `OSError` where there is no room.
    """
    files = {str(name): count_files(rows) for name, rows in splits.items()}
    with without_bars():
        splits.save_to_disk(str(folder), num_shards=files)


def count_files(rows: datasets.Dataset) -> int:
    """Return in how many files the rows of a split are kept: their tokens are most of their bytes."""
    table = cast("Any", rows).data.table
    tokens: int = table.select(["input_ids", "labels", "attention_mask"]).nbytes
    return max(1, min(len(rows), tokens // FILE_BYTES))


@contextmanager
def without_bars() -> Generator[None]:
    """Show no bars of `datasets` in the block: the job has one of its own."""
    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()


def describe_file(path: Path) -> dict[str, Any]:
    """Return what a manifest says of a file."""
    return {"bytes": path.stat().st_size, "sha256": hash_file_bytes(path)}


def seal_folder(folder: Path, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Write the manifest, with every file of ``folder`` named by its hash, and return it."""
    files = {
        path.relative_to(folder).as_posix(): describe_file(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    sealed = {**manifest, "files": files}
    sealed["sha256"] = hash_manifest(sealed)
    (folder / MANIFEST).write_bytes(write_manifest(sealed))
    return sealed

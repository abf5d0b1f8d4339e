"""The folder of a set: shard files under the names of ``save_to_disk``, linked and not copied.

`datasets` writes a set by copying the rows of a map's cache. Here the shards are in that format
already, so only the small files around them are written: ``state.json``, ``dataset_info.json`` and
``dataset_dict.json`` (datasets 5.2, ``Dataset.save_to_disk``, ``DatasetDict.save_to_disk``).
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa

from pipeline.errors import DataRefused
from pipeline.rows.seal import hash_file_bytes
from pipeline.sets import layout as set_layout
from pipeline.sets.arrow_file import RowFile, WrittenFile, row_schema
from pipeline.sets.damage import hash_manifest
from pipeline.sets.place import MANIFEST
from pipeline.types import row_features


@dataclass(frozen=True, slots=True)
class PlacedFile:
    """A whole file of rows and where it is now."""

    path: Path
    file: WrittenFile


def keep_filled(splits: Mapping[str, Sequence[PlacedFile]]) -> dict[str, Sequence[PlacedFile]]:
    """Return the splits that have rows: one that has none makes ``load_dataset`` fail for all.

    Of a set without any row the first is kept, so that it can be opened and says its columns.
    """
    filled = {
        name: files for name, files in splits.items() if any(each.file.rows for each in files)
    }
    return filled or dict(list(splits.items())[:1])


def write_splits(
    folder: Path, splits: Mapping[str, Sequence[PlacedFile]], columns: str
) -> dict[str, WrittenFile]:
    """Make ``folder`` a saved `datasets.DatasetDict` of the given files; return them by their new names.

    A file appears under its new name as a hard link, or as a copy where the file system has none.
    """
    placed: dict[str, WrittenFile] = {}
    for split, files in splits.items():
        below = folder / split
        below.mkdir(parents=True)
        filled = [each for each in files if each.file.rows]
        if not filled:
            filled = [_write_empty_file(below, columns)]
        names = [f"data-{at:05d}-of-{len(filled):05d}.arrow" for at in range(len(filled))]
        for name, each in zip(names, filled, strict=True):
            link_or_copy(each.path, below / name)
            placed[f"{split}/{name}"] = replace(each.file, name=name)
        (below / ".empty").unlink(missing_ok=True)
        hashes = "".join(each.file.sha256 for each in filled)
        _write_json(
            below / "state.json",
            {
                "_data_files": [{"filename": name} for name in names],
                "_fingerprint": hashlib.sha256(hashes.encode()).hexdigest()[:16],
                "_format_columns": None,
                "_format_kwargs": {},
                "_format_type": None,
                "_output_all_columns": False,
                "_split": split,
            },
        )
        datasets.DatasetInfo(features=row_features(columns)).write_to_directory(str(below))
    _write_json(folder / "dataset_dict.json", {"splits": list(splits)})
    return placed


def seal_folder(
    folder: Path, manifest: Mapping[str, Any], placed: Mapping[str, WrittenFile]
) -> dict[str, Any]:
    """Write the manifest, with every file of ``folder`` named by its hash, and return it.

    ``placed`` are the files of which the hash is known already.
    """
    files = {name: file.to_entry() for name, file in placed.items()}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name not in files:
            files[name] = {"bytes": path.stat().st_size, "sha256": hash_file_bytes(path)}
    sealed = {**manifest, "files": dict(sorted(files.items()))}
    sealed["sha256"] = hash_manifest(sealed)
    text = json.dumps(sealed, indent=2, ensure_ascii=False) + "\n"
    # Half a character, of a path that is not UTF-8, is an escape of JSON then, and read as it was.
    (folder / MANIFEST).write_bytes(text.encode("utf-8", "backslashreplace"))
    return sealed


def find_row_files(folder: Path, split: str, sealed: Mapping[str, Any]) -> list[PlacedFile]:
    """Return the files of a split of a saved set, in order; ``sealed`` is ``files`` of its manifest.

    Raises `DataRefused` for a file that is not among them.
    """
    placed: list[PlacedFile] = []
    for path in set_layout.find_row_files(folder).get(split, ()):
        entry: Mapping[str, Any] | None = sealed.get(f"{split}/{path.name}")
        if entry is None:
            raise DataRefused(
                f"{path}: not among the files of its {MANIFEST}; prepare or pull the set again"
            )
        known = {name: entry[name] for name in ("bytes", "sha256", "blocks") if name in entry}
        written = {"name": path.name, "rows": _count_rows(path), **known}
        placed.append(PlacedFile(path, WrittenFile.from_dict(written)))
    return placed


def _count_rows(path: Path) -> int:
    with pa.memory_map(str(path)) as mapped, pa.ipc.open_stream(mapped) as batches:
        return sum(batch.num_rows for batch in batches)


def link_or_copy(source: Path, target: Path) -> None:
    """Give a file a second name; copy it where the file system or the user's rights allow no link."""
    try:
        os.link(source, target)
    except FileExistsError:
        raise
    except OSError:
        shutil.copyfile(source, target)


def join_files(parts: Iterable[Path], target: Path) -> None:
    """Write ``parts`` one after the other to ``target``."""
    with target.open("wb") as joined:
        for part in parts:
            with part.open("rb") as file:
                shutil.copyfileobj(file, joined, 2**20)


def _write_empty_file(folder: Path, columns: str) -> PlacedFile:
    # Without a file datasets cannot open a split of no rows.
    path = folder / ".empty"
    with RowFile(path, row_schema(columns)) as file:
        pass
    return PlacedFile(path, file.written())


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")

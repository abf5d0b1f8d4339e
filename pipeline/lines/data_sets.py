"""Inputs that name a data set -> the paths of its files.

A folder that `datasets` saved, or ``hf://datasets/ORG/NAME`` on the Hub. The files are read as they
are (`pipeline.lines.tables`, `pipeline.lines.text`), never through `datasets`' own readers, which
infer types.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from pipeline.errors import UsageError, excerpt_of
from pipeline.lines.bounded_json import NotThatJson, read_object
from pipeline.lines.files import FOLDER_SUFFIXES, TABLE_SUFFIXES
from pipeline.lines.split_names import are_split_names, name_row_file

logger = logging.getLogger(__name__)

HUB_PREFIX: Final = "hf://datasets/"
READABLE_SUFFIXES: Final = (*TABLE_SUFFIXES, *FOLDER_SUFFIXES, ".json", ".json.gz", ".json.zst")

_TRAIN: Final = "train"


def expand_data_sets(inputs: Sequence[str]) -> list[str]:
    """Return the inputs, each data set among them replaced with the paths of its files.

    ``hf://datasets/ORG/NAME[@REVISION]`` stands for the files of the split ``train``, and
    ``.../PATH`` for a file, folder or glob of the repository; they are downloaded into the Hub's
    cache. A folder of a saved `datasets.DatasetDict` stands for its split ``train`` where it has one,
    and for its only split else.

    Raises:
        UsageError: a data set that cannot be had, has no such split, or is kept in files that cannot
            be read exactly (CSV, text, ...).

    >>> expand_data_sets(["logs.jsonl", "more/*.parquet"])
    ['logs.jsonl', 'more/*.parquet']
    """
    return [path for text in inputs for path in _expand(text)]


def _expand(text: str) -> list[str]:
    if text.startswith("hf://"):
        return _download(text)
    folder = Path(text).expanduser()
    if (folder / "dataset_dict.json").is_file():
        splits = _read_json(folder / "dataset_dict.json", "splits")
        if not are_split_names(splits):
            raise _not_saved(folder / "dataset_dict.json", f"found {excerpt_of(splits)}")
        folder /= _choose_split(text, splits)
    if (folder / "state.json").is_file():
        entries = _read_json(folder / "state.json", "_data_files")
        names = list(map(name_row_file, entries)) if isinstance(entries, list) else []
        if None in names or not names:
            raise _not_saved(folder / "state.json", f"found {excerpt_of(entries)}")
        return [str(folder / name) for name in names if name]
    return [text]


def _choose_split(text: str, splits: Sequence[str]) -> str:
    if _TRAIN in splits or len(splits) == 1:
        split = _TRAIN if _TRAIN in splits else splits[0]
        if len(splits) > 1:
            logger.info("input %s: the split %s of %s", text, split, ", ".join(splits))
        return split
    raise UsageError(
        f"input {text}: no split train among {', '.join(splits) or 'none'}; "
        "name a split's own folder or files"
    )


def _read_json(path: Path, key: str) -> Any:
    try:
        return read_object(path)[key]
    except (OSError, NotThatJson, KeyError) as error:
        raise _not_saved(path, excerpt_of(str(error))) from error


def _not_saved(path: Path, found: str) -> UsageError:
    return UsageError(f"input {path}: {found}; expected what save_to_disk wrote: save it again")


def _download(text: str) -> list[str]:
    """Return the paths in the Hub's cache of the files that an address names."""
    import huggingface_hub as hub

    # The class is of the HTTP library that the installed client was built on.
    from huggingface_hub.errors import HTTPError  # pyright: ignore[reportPrivateImportUsage]

    if not text.startswith(HUB_PREFIX):
        raise UsageError(f"input {text}: expected {HUB_PREFIX}ORG/NAME, or a path in it")
    files = hub.HfFileSystem()
    try:
        place: Any = files.resolve_path(text)
        found = _files_at(files, text) if place.path_in_repo else _train_files(text, place)
        unreadable = [name for name in found if not name.lower().endswith(READABLE_SUFFIXES)]
        if unreadable or not found:
            raise UsageError(
                f"input {text}: found {', '.join(unreadable[:3]) or 'no data file'}; "
                "expected Parquet, Arrow or JSONL files: name them by path"
            )
        return [_fetch(files.resolve_path(name)) for name in found]
    except (OSError, HTTPError, ValueError) as error:
        if isinstance(error, UsageError):
            raise
        raise UsageError(
            f"input {text}: {excerpt_of(str(error))}; expected a data set that this machine can "
            "reach and read: check its name, the network and HF_TOKEN"
        ) from error


def _fetch(place: Any) -> str:
    import huggingface_hub as hub

    return hub.hf_hub_download(
        place.repo_id, place.path_in_repo, repo_type="dataset", revision=place.revision
    )


def _files_at(files: Any, text: str) -> list[str]:
    """Return the addresses of a file, of the data files below a folder, or of those of a glob."""
    if any(mark in text for mark in "*?["):
        return sorted(files.glob(text))
    if files.isfile(text):
        return [text]
    return sorted(name for name in files.find(text) if name.lower().endswith(READABLE_SUFFIXES))


def _train_files(text: str, place: Any) -> list[str]:
    """Return the addresses of the split ``train``, as the data set's card or its file names say."""
    import datasets

    builder = datasets.load_dataset_builder(place.repo_id, revision=place.revision)
    by_split: dict[str, list[str]] = {
        str(split): list(found) for split, found in (builder.config.data_files or {}).items()
    }
    return by_split[_choose_split(text, list(by_split))]

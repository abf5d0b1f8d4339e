"""The folder of a saved `DatasetDict`: its splits and their files of rows, nothing outside of it.

`datasets` follows the names in ``dataset_dict.json`` and ``state.json`` to wherever they point, and
makes what ``dataset_info.json`` names: an image decodes a file, a format imports a library.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, cast

from pipeline.errors import DataRefused, UsageError, excerpt_of
from pipeline.lines.bounded_json import NotThatJson, read_object
from pipeline.lines.split_names import are_split_names, name_row_file
from pipeline.sets.manifest import lies_inside

_SPLITS, _STATE, _INFO = "dataset_dict.json", "state.json", "dataset_info.json"
_MOST_BYTES: Final = 2**25
# Numbers, text and lists of them: nothing that opens a file when a row is read.
_PLAIN_FEATURES: Final = frozenset({"Value", "List", "LargeList", "Sequence"})


def find_row_files(folder: Path) -> dict[str, list[Path]]:
    """Return the files of rows of each split, in order.

    Raises `UsageError` for a folder that is no `DatasetDict`, `DataRefused` where something in it
    points out of it, or is not what ``save_to_disk`` writes of plain columns.
    """
    if (folder / _STATE).is_file() and not (folder / _SPLITS).exists():
        raise UsageError(f"{folder}: a single Dataset; expected a DatasetDict with splits")
    splits: object = _read(folder, _SPLITS).get("splits")
    if not are_split_names(splits):
        raise _damaged(folder, _SPLITS, "expected names of splits, each once", splits)
    return {split: _find_files_of(folder, split) for split in splits}


def _find_files_of(folder: Path, split: str) -> list[Path]:
    name = f"{split}/{_STATE}"
    listed: object = _read(folder, name).get("_data_files")
    if not isinstance(listed, list):
        raise _damaged(folder, name, "expected the files of rows", listed)
    paths: list[Path] = []
    for each in cast("list[object]", listed):
        file = name_row_file(each)
        if file is None:
            raise _damaged(folder, name, "expected names of Arrow files in this folder", each)
        paths.append(_check_place(folder, f"{split}/{file}"))
    _check_features(folder, f"{split}/{_INFO}")
    return paths


def _check_features(folder: Path, name: str) -> None:
    features: object = _read(folder, name).get("features")
    if not isinstance(features, dict) or not features:
        raise _damaged(folder, name, "expected features", features)
    level = list(cast("dict[str, object]", features).values())
    while level:
        feature = level.pop()
        kind = cast("dict[str, Any]", feature).get("_type") if isinstance(feature, dict) else None
        if not isinstance(kind, str) or kind not in _PLAIN_FEATURES:
            raise _damaged(folder, name, "expected columns of values and lists of them", feature)
        if kind != "Value":
            level.append(cast("dict[str, Any]", feature).get("feature"))


def _read(folder: Path, name: str) -> dict[str, Any]:
    path = _check_place(folder, name)
    try:
        return read_object(path, _MOST_BYTES)
    except NotThatJson as error:
        raise DataRefused(f"{path}: {error}; prepare or pull the set again") from error
    except OSError as error:
        raise DataRefused(
            f"{path}: {error.strerror or error}; prepare or pull the set again"
        ) from error


def _check_place(folder: Path, name: str) -> Path:
    path = folder / name
    if not lies_inside(folder, path):
        raise DataRefused(
            f"{path}: a link to outside of the set; expected a file of the set: copy it with cp -rL"
        )
    if not path.is_file():
        raise DataRefused(f"{path}: is missing; prepare or pull the set again")
    return path


def _damaged(folder: Path, name: str, expected: str, found: object) -> DataRefused:
    return DataRefused(
        f"{folder / name}: {expected}, found {excerpt_of(found)}; prepare or pull the set again"
    )

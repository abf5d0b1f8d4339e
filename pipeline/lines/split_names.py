"""Names in a saved `DatasetDict`: of its splits, and of their files, which lie beside their list."""

from __future__ import annotations

import re
from typing import Final, TypeGuard, cast

_ROW_FILE: Final = re.compile(r"[\w.-]{1,200}\.arrow", re.ASCII)
_SPLIT: Final = re.compile(r"\w+(\.\w+)*", re.ASCII)
_LONGEST_NAME: Final = 1000


def is_split_name(name: str) -> bool:
    """Say whether a split can have this name, which is that of its folder."""
    return len(name) <= _LONGEST_NAME and _SPLIT.fullmatch(name) is not None


def are_split_names(value: object) -> TypeGuard[list[str]]:
    """Say whether a value of ``dataset_dict.json`` is a list of names of splits, each once."""
    if not isinstance(value, list):
        return False
    names = cast("list[object]", value)
    are_names = all(isinstance(name, str) and is_split_name(name) for name in names)
    return are_names and len({*map(str, names)}) == len(names) > 0


def name_row_file(entry: object) -> str | None:
    """Return the name of an entry of ``_data_files``, or nothing where it is none in the same folder."""
    name = cast("dict[str, object]", entry).get("filename") if isinstance(entry, dict) else None
    return name if isinstance(name, str) and _ROW_FILE.fullmatch(name) else None

"""Which shape the lines of each input file have, told by the first line that shows one."""

from __future__ import annotations

import datasets
import numpy as np

from pipeline.errors import Rejected, UsageError
from pipeline.formats import FORMATS, recognise_format
from pipeline.source.json_lines import parse_line

_LINES_LOOKED_AT = 100


def name_formats(lines: datasets.Dataset, format: str) -> dict[str, str]:
    """Return the format of each file of ``lines`` (columns ``file``, ``text``).

    ``format`` is the setting: a name for all, or ``auto``. A file none of whose first 100 lines
    shows a shape is read as ``own``, so that its rejects say what is missing. Raises `UsageError`
    for an unknown name.
    """
    if format not in ("auto", *FORMATS):
        raise UsageError(f"format: found {format!r}; expected auto or one of {', '.join(FORMATS)}")
    files, starts = np.unique(np.asarray(lines.data.column("file")), return_index=True)
    names = dict(zip(files.tolist(), starts.tolist(), strict=True))
    if format != "auto":
        return dict.fromkeys(sorted(names), format)
    return {file: _recognise(lines, file, start) for file, start in sorted(names.items())}


def _recognise(lines: datasets.Dataset, file: str, start: int) -> str:
    end = min(start + _LINES_LOOKED_AT, len(lines))
    columns = (lines.data.column(name).slice(start, end - start) for name in ("file", "text"))
    for other, text in zip(*(column.to_pylist() for column in columns), strict=True):
        if other != file:
            break
        try:
            return recognise_format(parse_line(text))
        except Rejected:
            continue
    return "own"

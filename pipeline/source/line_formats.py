"""Which shape the lines of each input file have, told by the first line that shows one."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

from pipeline.errors import Rejected, UsageError
from pipeline.formats import FORMATS, recognise_format
from pipeline.source.files import SourceFile
from pipeline.source.json_lines import parse_line
from pipeline.source.tables import read_file

_LINES_LOOKED_AT = 100


def name_formats(files: Iterable[SourceFile], format: str) -> dict[str, str]:
    """Return the format of each file, by its name.

    ``format`` is the setting: a name for all, or ``auto``. A file none of whose first 100 lines
    shows a shape is read as ``own``, so that its rejects say what is missing. Raises `UsageError`
    for an unknown name, `UnreadableFile` where the first lines cannot be read.
    """
    if format not in ("auto", *FORMATS):
        raise UsageError(f"format: found {format!r}; expected auto or one of {', '.join(FORMATS)}")
    return {file.name: _recognise(file) if format == "auto" else format for file in files}


def _recognise(file: SourceFile) -> str:
    texts = (line.text for line in read_file(file) if line.text is not None)
    for text in itertools.islice(texts, _LINES_LOOKED_AT):
        try:
            return recognise_format(parse_line(text))
        except Rejected:
            continue
    return "own"

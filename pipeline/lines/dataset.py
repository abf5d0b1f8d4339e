"""Input files -> a `datasets.Dataset` of lines: `load_lines`.

The readers of `datasets` give columns types and end lines where Python does; here a line stays the
text that the file has. Tables become the lines that a JSONL file of their rows would have.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from typing import Any, Final, NamedTuple, cast

import datasets
import pyarrow as pa
from datasets.exceptions import DatasetGenerationError

from pipeline.errors import ContextFrozenError, Rejected, UsageError
from pipeline.lines.data_sets import expand_data_sets
from pipeline.lines.files import SourceFile, find_files
from pipeline.lines.tables import read_file
from pipeline.lines.text import SourceLine
from pipeline.types import REJECT_CODES

LINE_SCHEMA: Final = pa.schema(
    [pa.field("file", pa.string()), pa.field("line", pa.int32()), pa.field("text", pa.string())]
)
"""Columns of a line: the file's name relative to the input root, its number from 1, and its text."""

BATCH_CHARACTERS: Final = 2**21
"""Text of the lines of one record batch; with the longest line it bounds the memory."""

_MOST_LINES: Final = 1024
# Before what a line is beside its text, and between both: no JSON begins with the one, no line
# holds the other.
_BESIDE: Final = "\0"
_END: Final = "\n"


def load_lines(
    inputs: str | PathLike[str] | Sequence[str | PathLike[str]],
    *,
    num_proc: int | None = None,
    cache_dir: str | PathLike[str] | None = None,
) -> datasets.Dataset:
    """Return the lines of JSONL files (plain, .gz, .zst), Parquet, Arrow or saved data sets.

    ``inputs`` are paths, globs, folders or ``hf://datasets/`` addresses. Lines come in input order
    (sorted path, then line), blank ones left out; columns are those of `LINE_SCHEMA`. A line that is
    no text (not UTF-8, over 64 MiB) has its fault in place of its text, so that a `RowMap` accounts
    for it. The lines are kept in the cache of `datasets` by the files' names, sizes and times.

    Raises `UnreadableFile` for a file that cannot be read to its end, `UsageError` where there is
    none.

    >>> load_lines("configs/data/examples.jsonl").column_names
    ['file', 'line', 'text']
    """
    # A `pathlib.Path` of this module would not be one: `datasets` changes what it means in the module
    # of a builder.
    paths = [inputs] if isinstance(inputs, str | PathLike) else list(inputs)
    files = find_files(expand_data_sets([str(path) for path in paths]))
    if any(file.is_stream for file in files):
        raise UsageError("load_lines: a stream, which can be read only once; give a file")
    builder = LinesBuilder(
        cache_dir=None if cache_dir is None else str(cache_dir),
        files=[_describe_file(file) for file in files],
    )
    try:
        builder.download_and_prepare(num_proc=num_proc)
    except DatasetGenerationError as error:
        if isinstance(error.__cause__, ContextFrozenError):
            raise error.__cause__ from None
        raise
    return cast("datasets.Dataset", builder.as_dataset(split="train"))


def batch_lines(lines: Iterable[tuple[str, SourceLine]]) -> Iterator[pa.Table]:
    """Yield lines, each with the name of its file, as tables of `LINE_SCHEMA` of bounded size."""
    held: list[tuple[str, int, str]] = []
    characters = 0
    for file, line in lines:
        text = spell_line(line)
        if held and (len(held) == _MOST_LINES or characters + len(text) > BATCH_CHARACTERS):
            yield _make_table(held)
            held, characters = [], 0
        held.append((file, line.line, text))
        characters += len(text)
    if held:
        yield _make_table(held)


def read_batch(lines: pa.Table) -> list[tuple[str, SourceLine]]:
    """Return the lines of a table of `LINE_SCHEMA`, each with the name of its file.

    >>> read_batch(next(batch_lines([("a.jsonl", SourceLine(3, "{}"))])))[0][1].text
    '{}'
    """
    files, numbers, texts = (lines.column(name).to_pylist() for name in LINE_SCHEMA.names)
    return [
        (file, restore_line(number, text))
        for file, number, text in zip(files, numbers, texts, strict=True)
    ]


def spell_line(line: SourceLine) -> str:
    """Return a line as a column of texts holds it: its text, behind what else there is to say of it."""
    beside: dict[str, Any] = {}
    if line.reject is not None:
        fault = line.reject
        beside["reject"] = [fault.code, fault.reason, fault.excerpt]
    if line.unread_columns:
        beside["unread"] = sorted(line.unread_columns)
    text = line.text or ""
    return f"{_BESIDE}{json.dumps(beside)}{_END}{text}" if beside else text


def restore_line(number: int, text: str) -> SourceLine:
    """Return the line that `spell_line` spelt.

    >>> fault = SourceLine(2, None, Rejected("bad_encoding", "byte 0xff is not UTF-8"))
    >>> restore_line(2, spell_line(fault)).reject.reason
    'byte 0xff is not UTF-8'
    """
    if not text.startswith(_BESIDE):
        return SourceLine(number, text)
    said, _, rest = text.removeprefix(_BESIDE).partition(_END)
    try:
        beside = json.loads(said)
        if "reject" in beside and beside["reject"][0] in REJECT_CODES:
            return SourceLine(number, None, Rejected(*map(str, beside["reject"])))
        return SourceLine(number, rest, None, frozenset(map(str, beside.get("unread", ()))))
    except (TypeError, ValueError, LookupError, AttributeError, RecursionError):
        # Somebody's own text, which is no JSON.
        return SourceLine(number, text)


def _make_table(lines: Sequence[tuple[str, int, str]]) -> pa.Table:
    columns = zip(*lines, strict=True)
    arrays = [
        pa.array(column, field.type) for column, field in zip(columns, LINE_SCHEMA, strict=True)
    ]
    return pa.Table.from_arrays(arrays, schema=LINE_SCHEMA)


class _FileFacts(NamedTuple):
    """A file, and what tells that it is still the one whose lines were kept."""

    file: SourceFile
    bytes: int
    time_ns: int


def _describe_file(file: SourceFile) -> _FileFacts:
    facts = file.path.stat()
    return _FileFacts(replace(file, path=file.path.absolute()), facts.st_size, facts.st_mtime_ns)


@dataclass
class _LinesConfig(datasets.BuilderConfig):
    files: list[_FileFacts] | None = None


class LinesBuilder(datasets.ArrowBasedBuilder):
    """The builder behind `load_lines`: `datasets` writes, shards and caches what it yields."""

    BUILDER_CONFIG_CLASS = _LinesConfig

    def _info(self) -> datasets.DatasetInfo:
        return datasets.DatasetInfo(features=datasets.Features.from_arrow_schema(LINE_SCHEMA))

    def _split_generators(self, dl_manager: Any) -> list[datasets.SplitGenerator]:
        del dl_manager
        files = cast("_LinesConfig", self.config).files or []
        return [datasets.SplitGenerator(name="train", gen_kwargs={"files": files})]

    def _generate_tables(self, **kwargs: Any) -> Iterator[tuple[Any, pa.Table]]:
        files: Sequence[_FileFacts] = kwargs["files"]
        for number, (file, *_) in enumerate(files):
            lines = (
                (file.name, line._replace(unread_columns=frozenset())) for line in read_file(file)
            )
            for at, table in enumerate(batch_lines(lines)):
                yield f"{number}-{at}", table

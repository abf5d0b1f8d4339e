"""The files of rows of a saved set: which they are, and that they can be looked at.

A set may come from others. Whoever opens one has its rows checked here first, in a process that may
die of them (`pipeline.lines.apart`): that each batch is what Arrow says it is, of the columns and types of a
row, without nulls, and that its numbers lead nobody out of it. The rest is for `verify`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa

from pipeline.errors import UnreadableFile, excerpt_of
from pipeline.lines.apart import EndedApart, run_apart
from pipeline.lines.archive import EXPANSION_LIMIT, FREE_BYTES
from pipeline.lines.arrow_files import read_batches
from pipeline.sets.layout import find_row_files
from pipeline.types import NUMERIC_COLUMNS, ROW_SCHEMA, TOKEN_COLUMNS

_NOT_NEGATIVE: Final = ("dropped_tokens", "dropped_messages")


def check_row_files(folder: Path, *, checks_numbers: bool = True) -> None:
    """Refuse a saved set whose files of rows cannot be looked at (`check_files_of_rows`).

    Raises `UnreadableFile`, and what `pipeline.sets.layout.find_row_files` raises.
    """
    paths = [path for each in find_row_files(folder).values() for path in each]
    check_files_of_rows(paths, checks_numbers=checks_numbers)


def check_files_of_rows(paths: Sequence[Path], *, checks_numbers: bool = True) -> None:
    """Refuse Arrow or Parquet files of rows that cannot be looked at. Raises `UnreadableFile`.

    Without ``checks_numbers`` a row's lengths and ids may contradict each other.
    """
    name = str(paths[0]) if paths else ""
    try:
        for path in run_apart(_check_files, [str(path) for path in paths], checks_numbers):
            name = path
    except EndedApart as error:
        reason = f"cannot be read ({error}); fetch or prepare the set again"
        raise UnreadableFile(name, 1, reason) from error


def _check_files(paths: Sequence[str], checks_numbers: bool) -> Iterator[str]:
    """Yield the path of each file before its first batch, and after each batch that is as it must be."""
    for path in paths:
        yield path
        for _ in _checked_batches(Path(path), checks_numbers):
            yield path


def _checked_batches(path: Path, checks_numbers: bool) -> Iterator[pa.RecordBatch]:
    rows = content = 0
    try:
        size = path.stat().st_size
        # What we write as Arrow is not compressed, so that it holds its own bytes at most.
        is_packed = path.suffix == ".parquet"
        most = max(FREE_BYTES, EXPANSION_LIMIT * size) if is_packed else size
        for batch in read_batches(path, _check_schema):
            content += batch.nbytes
            if content > most:
                raise pa.ArrowInvalid(f"{size} bytes hold over {content} bytes of rows")
            _check_texts(batch)
            if checks_numbers:
                _check_numbers(batch)
            yield batch
            rows += batch.num_rows
    except (OSError, ValueError, TypeError, pa.ArrowException) as error:
        found = excerpt_of(str(error))
        raise UnreadableFile(
            str(path), rows + 1, f"no rows of a set ({found}); fetch or prepare the set again"
        ) from error


def _check_schema(schema: pa.Schema) -> list[str]:
    """Refuse columns that no set has; return the names of all. Raises `TypeError`."""
    if len(set(schema.names)) != len(schema.names):
        raise TypeError("two columns have one name")
    if missing := set(NUMERIC_COLUMNS).difference(schema.names):
        raise TypeError(f"no column {min(missing)}")
    for name in set(ROW_SCHEMA.names).intersection(schema.names):
        found, expected = schema.field(name).type, ROW_SCHEMA.field(name).type
        if found != expected:
            raise TypeError(f"column {name} is {found}, expected {expected}")
    return schema.names


def _check_texts(batch: pa.RecordBatch) -> None:
    """Refuse nulls, and texts that are not UTF-8, in the columns of a row."""
    for name in set(ROW_SCHEMA.names).intersection(batch.schema.names):
        column: Any = batch.column(name)
        parts = [column, column.flatten()] if pa.types.is_list(column.type) else [column]
        if any(part.null_count for part in parts):
            raise ValueError(f"column {name} holds nulls")
        # Reading the batch lets these pass, for the sake of inputs that have one such text.
        column.validate(full=True)


def _check_numbers(batch: pa.RecordBatch) -> None:
    """Refuse rows whose numbers would lead who shows them out of the row."""
    columns: dict[str, Any] = {name: batch.column(name) for name in NUMERIC_COLUMNS}
    contexts, totals = (np.asarray(columns[name]) for name in ("context_len", "total_len"))
    for name in TOKEN_COLUMNS:
        if not np.array_equal(np.diff(np.asarray(columns[name].offsets)), totals):
            raise ValueError(f"{name} is not as long as total_len says")
    if ((contexts < 1) | (contexts >= totals)).any():
        raise ValueError("context_len is not within 1 and total_len - 1")
    ids = np.asarray(columns["input_ids"].flatten())
    if any(
        len(values) and values.min() < 0
        for values in (ids, *(np.asarray(columns[name]) for name in _NOT_NEGATIVE))
    ):
        raise ValueError("a number below 0 where none can be")

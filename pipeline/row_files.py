"""The files of rows of a saved set: which they are, and that they can be looked at.

A set may come from others. Whoever opens one has its rows checked here first, in a process that may
die of them (`pipeline.apart`): that each batch is what Arrow says it is, of the columns and types of a
row, without nulls. What the rows say is for `pipeline.saved.verify`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.apart import EndedApart, run_apart
from pipeline.arrow_file import read_batches
from pipeline.errors import UnreadableFile, excerpt_of
from pipeline.set_layout import find_row_files
from pipeline.source.archive import EXPANSION_LIMIT, FREE_BYTES
from pipeline.types import NUMERIC_COLUMNS, ROW_SCHEMA


def check_row_files(folder: Path) -> None:
    """Refuse a saved set whose files of rows cannot be looked at.

    Raises `UnreadableFile`, and what `pipeline.set_layout.find_row_files` raises.
    """
    check_files_of_rows([path for paths in find_row_files(folder).values() for path in paths])


def check_files_of_rows(paths: Sequence[Path]) -> None:
    """Refuse Arrow or Parquet files of rows that cannot be looked at. Raises `UnreadableFile`."""
    name = str(paths[0]) if paths else ""
    try:
        for path in run_apart(_check_files, [str(path) for path in paths]):
            name = path
    except EndedApart as error:
        reason = f"cannot be read ({error}); fetch or prepare the set again"
        raise UnreadableFile(name, 1, reason) from error


def _check_files(paths: Sequence[str]) -> Iterator[str]:
    """Yield the path of each file before its first batch, and after each batch that is as it must be."""
    for path in paths:
        yield path
        for _ in _checked_batches(Path(path)):
            yield path


def _checked_batches(path: Path) -> Iterator[pa.RecordBatch]:
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

"""Examples that stand in columns -> the line of JSON that a file of them would have.

What `datasets` hands over has typed columns: every object of one place has the same keys, and a key
that it lacks is null. Such a null is absent, so a row is the same as that of the file it came from.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, cast

import numpy as np
import pyarrow as pa

from pipeline.errors import Rejected
from pipeline.lines.cells import ARGUMENTS, Decoder, drop_nulls, find_decoder, write_json
from pipeline.lines.tables import choose_columns, values_of
from pipeline.lines.text import SourceLine


def read_records(batch: pa.Table | Mapping[str, Any]) -> list[SourceLine]:
    """Return each example of a batch as a line (0) of JSON, or why it has none.

    ``batch`` is a table, a dict of lists or a dict of arrays, the columns keys of a shape.

    >>> read_records({"id": ["a"], "context": ["2+2="], "reason": [None]})[0].text
    '{"id": "a", "context": "2+2="}'
    """
    table: Any = batch if isinstance(batch, pa.Table) else getattr(batch, "pa_table", None)
    if table is not None:
        names, unread = choose_columns(table.schema)
        rows = _read_table(table.select(names))
    else:
        rows, unread = _read_lists(cast("Mapping[str, Any]", batch)), frozenset[str]()
    return [_write(row, unread) for row in rows]


def _write(row: dict[str, Any] | Rejected, unread: frozenset[str]) -> SourceLine:
    try:
        if isinstance(row, Rejected):
            raise row
        return SourceLine(0, write_json(row), None, unread)
    except Rejected as error:
        return SourceLine(0, None, error.without_frames())


def _read_table(table: pa.Table) -> Iterator[dict[str, Any] | Rejected]:
    try:
        decode: Decoder | None = find_decoder(table.schema)
    except Rejected as error:
        # A type that has lost what its values were: true of every row.
        yield from [error.without_frames()] * table.num_rows
        return
    for batch in table.to_batches():
        for row in values_of(batch):
            if isinstance(row, Rejected) or decode is None:
                yield row
                continue
            try:
                yield decode(row)
            except Rejected as error:
                yield error.without_frames()


def _read_lists(columns: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    lists = {name: _as_python(column) for name, column in columns.items()}
    for values in zip(*lists.values(), strict=True):
        row = {name: value for name, value in zip(lists, values, strict=True) if value is not None}
        yield _drop_argument_nulls(row)


def _as_python(value: Any) -> Any:
    """Return arrays, whatever holds them, as lists of Python's own values."""
    if isinstance(value, np.ndarray | np.generic):
        return _as_python(cast("Any", value).tolist())
    if isinstance(value, list | tuple):
        return [_as_python(item) for item in cast("list[Any]", value)]
    if isinstance(value, dict):
        return {key: _as_python(item) for key, item in cast("dict[Any, Any]", value).items()}
    return value


def _drop_argument_nulls(value: Any) -> Any:
    """Return a row whose calls' arguments, where they are objects, have no key that is null."""
    if isinstance(value, list):
        return [_drop_argument_nulls(item) for item in cast("list[Any]", value)]
    if not isinstance(value, dict):
        return value
    return {
        key: drop_nulls(item)
        if key in ARGUMENTS and isinstance(item, dict)
        else _drop_argument_nulls(item)
        for key, item in cast("dict[str, Any]", value).items()
    }

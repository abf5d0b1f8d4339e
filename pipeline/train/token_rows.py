"""Saved rows as arrays: read from an Arrow table, a dict of columns or a list of rows, and checked.

Token arrays are views where the source allows it (Arrow buffers, numpy rows); nothing here loops
over tokens in Python.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, cast

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.errors import BadRow, excerpt_of
from pipeline.types import IGNORE_LABEL, REJECTED

IntArray = NDArray[np.integer[Any]]
RowSource = pa.Table | Mapping[str, Sequence[Any]] | Sequence[Mapping[str, Any]]
"""``dataset.with_format("arrow")[...]``, ``dataset[...]``, or a list of rows (any format)."""

_COLUMNS = (
    "input_ids",
    "labels",
    "attention_mask",
    "context_len",
    "total_len",
    "weight",
    "preference",
    "id",
    "source",
)
_ROWS_PER_READ = 256


@dataclass(frozen=True, slots=True)
class TokenRow:
    """One checked row.

    ``ids`` is context then continuation; ``labels`` the trained ids of the continuation
    (`IGNORE_LABEL` where a token is not trained), as long as ``ids[context_len:]``; ``name`` says
    which row it is, for errors.
    """

    ids: IntArray
    labels: IntArray
    context_len: int
    weight: float
    name: str

    @property
    def frozen_ids(self) -> IntArray:
        """All context tokens but the last: what runs forward without gradient."""
        return self.ids[: self.context_len - 1]

    @property
    def live_ids(self) -> IntArray:
        """The last context token, which predicts the first continuation token, and what follows."""
        return self.ids[self.context_len - 1 :]


def read_token_rows(source: RowSource, *, with_rejected: bool = False) -> list[TokenRow]:
    """Return the rows of ``source`` with their boundary, in order.

    A row needs ``input_ids`` and at least one of ``context_len`` and ``labels``. Without labels the
    whole continuation is trained; without ``context_len`` the boundary is the first trained label.
    Raises `BadRow`, naming the row, when a boundary, a length, a label or a weight is impossible,
    and for the worse continuation of a pair unless ``with_rejected``.
    """
    columns = _read_columns(source)
    if "input_ids" not in columns:
        raise BadRow(
            f"the rows have no input_ids column (found {excerpt_of(sorted(columns))}); "
            "expected rows of a saved set: keep its token columns"
        )
    count = len(columns["input_ids"])
    if count == 0:
        raise BadRow("no rows to collate; expected at least one: check the batch sampler")
    return [
        _check_row({name: column[index] for name, column in columns.items()}, index, with_rejected)
        for index in range(count)
    ]


def rows_as_id_pairs(rows: Any, *, with_rejected: bool = False) -> Iterator[dict[str, list[int]]]:
    """Yield ``{"context_ids", "continuation_ids"}`` of each row, for an endpoint of raw ids.

    ``rows`` is a loaded split (``datasets.Dataset``) or an iterable of rows; the worse continuation
    of a pair among them is an error unless ``with_rejected``.

    >>> next(rows_as_id_pairs([{"input_ids": [5, 6, 7], "context_len": 2}]))
    {'context_ids': [5, 6], 'continuation_ids': [7]}
    """
    for source in _read_slices(rows):
        for row in read_token_rows(source, with_rejected=with_rejected):
            yield {
                "context_ids": row.ids[: row.context_len].tolist(),
                "continuation_ids": row.ids[row.context_len :].tolist(),
            }


def _read_slices(rows: Any) -> Iterator[RowSource]:
    """Yield ``rows`` a few hundred at a time, as Arrow tables where they come from a dataset."""
    if hasattr(rows, "with_format"):
        yield from rows.with_format("arrow").iter(_ROWS_PER_READ)
    else:
        yield from ([row] for row in cast("Iterable[Mapping[str, Any]]", rows))


def _read_columns(source: RowSource) -> dict[str, Sequence[Any]]:
    if isinstance(source, pa.Table):
        table: Any = source
        return {
            name: _split_column(table.column(name))
            for name in _COLUMNS
            if name in table.column_names
        }
    if isinstance(source, Mapping):
        columns = cast("Mapping[str, Sequence[Any]]", source)
        return {name: columns[name] for name in _COLUMNS if name in columns}
    # A row may lack a column that another has: None then, which the checks name.
    names = [name for name in _COLUMNS if any(name in row for row in source)]
    if not source:
        names = ["input_ids"]
    return {name: [row.get(name) for row in source] for name in names}


def _split_column(column: pa.ChunkedArray) -> Sequence[Any]:
    """Return a column as one value per row: views into the flat token buffer for a list column."""
    if not pa.types.is_list(column.type) and not pa.types.is_large_list(column.type):
        return column.to_pylist()
    array = column.combine_chunks()
    chunks = array.chunks if isinstance(array, pa.ChunkedArray) else [array]
    rows: list[Any] = []
    for chunk in chunks:
        values = chunk.values.to_numpy(zero_copy_only=False)
        offsets = chunk.offsets.to_numpy()
        rows += [values[start:end] for start, end in pairwise(offsets)]
    return rows


def _check_row(row: dict[str, Any], index: int, with_rejected: bool) -> TokenRow:
    name = _name_row(row, index)
    if row.get("preference") == REJECTED and not with_rejected:
        raise BadRow(
            f"{name}: preference is {REJECTED}, the worse continuation of a pair, which is not to be "
            "trained; leave the split out (`pipeline.load` does), or say with_rejected=True"
        )
    ids = _read_ids(row["input_ids"], "input_ids", name)
    if ids.min() < 0:
        raise BadRow(f"{name}: input_ids holds {ids.min()}; expected token ids, 0 or more")
    total = _read_number(row, "total_len", name)
    if total is not None and total != len(ids):
        raise BadRow(
            f"{name}: total_len is {total}, but input_ids has {len(ids)} tokens; "
            "expected them equal: build the set again or do not cut its rows"
        )
    mask = row.get("attention_mask")
    if mask is not None and (len(mask) != len(ids) or not np.asarray(mask).all()):
        raise BadRow(
            f"{name}: attention_mask is not {len(ids)} ones; expected a row without padding: "
            "collate rows as they were saved"
        )
    full_labels = None
    if row.get("labels") is not None:
        full_labels = _read_ids(row["labels"], "labels", name)
        if len(full_labels) != len(ids):
            raise BadRow(
                f"{name}: {len(full_labels)} labels for {len(ids)} input_ids; expected as many"
            )
    context_len = _read_boundary(row, full_labels, len(ids), name)
    weight = _read_weight(row.get("weight"), name)
    labels = ids[context_len:]
    if full_labels is not None:
        labels = _check_labels(full_labels, ids, context_len, name)
    return TokenRow(ids, labels, context_len, weight, name)


def _name_row(row: dict[str, Any], index: int) -> str:
    where = ", ".join(f"{key} {excerpt_of(row[key])}" for key in ("id", "source") if row.get(key))
    return f"row {index} of the batch" + (f" ({where})" if where else "")


def _read_ids(value: Any, column: str, name: str) -> IntArray:
    ids = np.asarray(value)
    if ids.ndim != 1 or len(ids) == 0:
        raise BadRow(f"{name}: {column} is {excerpt_of(value)}; expected a list of token ids")
    if not np.issubdtype(ids.dtype, np.integer):
        raise BadRow(f"{name}: {column} holds {ids.dtype}; expected whole numbers (token ids)")
    return cast("IntArray", ids)


def _read_weight(value: Any, name: str) -> float:
    try:
        weight = 1.0 if value is None else float(value)
    except (TypeError, ValueError):
        weight = -1.0
    if not (0.0 <= weight < float("inf")):
        raise BadRow(f"{name}: weight is {excerpt_of(value)}; expected a finite number, 0 or more")
    return weight


def _read_number(row: dict[str, Any], column: str, name: str) -> int | None:
    """Return a whole number of tokens, or None where the row has none."""
    value = row.get(column)
    if value is None:
        return None
    number = np.asarray(value)
    if number.ndim or not np.issubdtype(number.dtype, np.integer):
        raise BadRow(f"{name}: {column} is {excerpt_of(value)}; expected a whole number of tokens")
    return int(number)


def _read_boundary(row: dict[str, Any], labels: IntArray | None, total: int, name: str) -> int:
    given = _read_number(row, "context_len", name)
    if given is not None:
        context_len = given
    elif labels is not None:
        trained = labels != IGNORE_LABEL
        if not trained.any():
            raise BadRow(
                f"{name}: every label is {IGNORE_LABEL}, so nothing is trained and the boundary "
                "cannot be recovered; expected a trained continuation: keep context_len or drop it"
            )
        context_len = int(trained.argmax())
    else:
        raise BadRow(
            f"{name}: neither context_len nor labels; expected one of them, "
            "without which the boundary is unknown: keep it when selecting columns"
        )
    if not 1 <= context_len < total:
        raise BadRow(
            f"{name}: context_len is {context_len} for {total} tokens; expected 1 to {total - 1}, "
            "since the first trained token is predicted by the last context token"
        )
    return context_len


def _check_labels(labels: IntArray, ids: IntArray, context_len: int, name: str) -> IntArray:
    if (labels[:context_len] != IGNORE_LABEL).any():
        place = int((labels[:context_len] != IGNORE_LABEL).argmax())
        raise BadRow(
            f"{name}: label {labels[place]} at token {place}, inside the context of {context_len} "
            f"tokens; expected {IGNORE_LABEL} there: only the continuation is trained"
        )
    trained, continuation = labels[context_len:], ids[context_len:]
    wrong = (trained != continuation) & (trained != IGNORE_LABEL)
    if wrong.any():
        place = context_len + int(wrong.argmax())
        raise BadRow(
            f"{name}: label {labels[place]} at token {place}, whose id is {ids[place]}; expected "
            f"the id or {IGNORE_LABEL}: labels are unshifted"
        )
    return trained

"""`RowMap`: the function of the one batched ``map`` from lines or examples to rows.

The command, `pipeline.prepare`, the tasks of Ray and Slurm and a ``map`` of your own all go through it.
"""

from __future__ import annotations

import dataclasses
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar, cast

import datasets
import pyarrow as pa
from datasets.formatting.formatting import LazyBatch

from pipeline.config import RowSettings, read_settings
from pipeline.errors import DataRefused, SealMismatch, UsageError
from pipeline.examples.shapes import check_format
from pipeline.lines.dataset import LINE_SCHEMA, read_batch
from pipeline.rows.line_mapper import ShapeCounts
from pipeline.rows.records import read_records
from pipeline.rows.seal import hash_json, make_row_seal
from pipeline.types import Reject, row_features

if TYPE_CHECKING:
    from pipeline.rows.line_mapper import LineMapper, MappedLines

logger = logging.getLogger(__name__)

OnReject = Literal["raise", "skip", "keep"]
_Batch = TypeVar("_Batch", pa.Table, Mapping[str, Any])
_Data = TypeVar("_Data")

VERDICT_SCHEMA: Final = pa.schema(
    [
        pa.field("split", pa.string()),
        pa.field("line_sha256", pa.binary(32)),
        pa.field("row_sha256", pa.binary(32)),
        pa.field("code", pa.string()),
        pa.field("reject_reason", pa.string()),
        pa.field("excerpt", pa.string()),
    ]
)
"""Columns beside those of a saved row under ``on_reject="keep"``. ``code``, ``reject_reason`` and
``excerpt`` are null for a row; of a reject these, ``id`` and ``source`` alone are set. ``row_sha256`` is
that of the row's canonical bytes, ``line_sha256`` tells one example from another."""


class RowMap:
    """Maps batches of lines (`pipeline.lines.dataset.LINE_SCHEMA`) or of examples to token rows.

    ``tokenizer`` (a folder or a Hub name) and ``changes`` are those of `pipeline.config.RowSettings`;
    ``on_reject`` says what becomes of what cannot be a row: ``raise`` (`DataRefused` at the first),
    ``skip`` (left out; the log says how many, by code), ``keep`` (a row with ``code`` and
    ``reject_reason``).

    A batch is a dict of lists, a dict of arrays or a `pyarrow.Table`, its columns ``file``, ``line`` and
    ``text``, or keys of any shape that a file may have; the answer is of its kind, and `Dataset.map`
    gets a table, which keeps the types. ``features`` is what comes back. The object pickles small: a
    process that gets it loads the tokenizer when it first needs it. What it pickles to, by which
    `datasets` caches, holds ``key``, the hash (hex) of all that determines a row but the input: the
    tokenizer's files, the template, the server's rules, the settings and the versions.

    Raises `UsageError` for a setting or a tokenizer that is wrong.

    >>> to_rows = RowMap("configs/tokenizer", max_len=512)
    >>> rows = to_rows({"id": ["a"], "context": ["2+2="], "continuation": ["4"]})
    >>> rows["labels"][0][0]
    -100
    """

    def __init__(
        self,
        tokenizer: str | None = None,
        *,
        settings: RowSettings | None = None,
        on_reject: OnReject = "raise",
        **changes: Any,
    ) -> None:
        if on_reject not in ("raise", "skip", "keep"):
            raise UsageError(f"on_reject: found {on_reject!r}; expected raise, skip or keep")
        given = {} if tokenizer is None else {"tokenizer": tokenizer}
        if settings is None:
            settings = read_settings(RowSettings, {**given, **changes}, "RowMap")
        elif given or changes:
            raise UsageError(
                "RowMap: settings and single ones beside them; expected one or the other"
            )
        check_format(settings.format)
        self.settings: RowSettings = settings
        self.on_reject: OnReject = on_reject
        self.row_seal: dict[str, Any] = make_row_seal(settings)
        self.key: str = hash_json(self.row_seal)
        self.shapes = ShapeCounts()

    @property
    def features(self) -> datasets.Features:
        """The columns that come back, with their types."""
        if self.on_reject != "keep":
            return row_features(self.settings.columns)
        verdict = datasets.Features.from_arrow_schema(VERDICT_SCHEMA)
        return datasets.Features({**row_features(), **verdict})

    def __reduce__(self) -> tuple[Any, ...]:
        names = (item.name for item in dataclasses.fields(RowSettings))
        values = {name: getattr(self.settings, name) for name in names}
        return _restore, (values, self.on_reject, self.key)

    @cached_property
    def mapper(self) -> LineMapper:
        """What makes the rows, its tokenizer loaded when first asked for."""
        from pipeline.rows.builder import RowBuilder
        from pipeline.rows.line_mapper import LineMapper

        return LineMapper(self.settings, RowBuilder(self.settings))

    def load(self) -> None:
        """Load the tokenizer now, which is done at the first batch otherwise."""
        _ = self.mapper

    def map(self, data: _Data, *, num_proc: int | None = None, **options: Any) -> _Data:
        """Return the rows of a `Dataset`, a `DatasetDict` or a streamed one, by its batched ``map``.

        The columns of the data are replaced by those of the rows; ``options`` go to ``map``.
        """
        given: Any = data
        if isinstance(given, dict):
            parts = cast("dict[str, Any]", given)
            mapped = {
                name: self.map(part, num_proc=num_proc, **options) for name, part in parts.items()
            }
            return cast("Any", type(given))(mapped)
        options = {"batched": True, "features": self.features, **options}
        if isinstance(given, datasets.Dataset):
            rows = given.with_format("arrow").map(
                self, remove_columns=given.column_names, num_proc=num_proc, **options
            )
            return cast("Any", rows.with_format(None))
        names = given.column_names or list(next(iter(given.take(1)), {}))
        return given.map(self, remove_columns=names, **options)

    def __call__(self, batch: _Batch) -> _Batch:
        """Return the rows of a batch. Raises `DataRefused` for a reject under ``on_reject="raise"``."""
        table = self._select(self.map_table(batch))
        if isinstance(batch, pa.Table):
            return table
        # `Dataset.map` hands over its lazy kind of a dict, and takes a table for an answer.
        return cast("_Batch", table if isinstance(batch, LazyBatch) else table.to_pydict())

    def map_table(self, batch: pa.Table | Mapping[str, Any]) -> pa.Table:
        """Return the rows and rejects of a batch, with the columns of ``on_reject="keep"``."""
        names: list[str] = (
            cast("Any", batch).column_names if isinstance(batch, pa.Table) else [*batch]
        )
        if set(LINE_SCHEMA.names) <= set(names):
            lines = read_batch(batch if isinstance(batch, pa.Table) else _table_of_lines(batch))
        else:
            lines = [("", line) for line in read_records(batch)]
        mapped = self.mapper(lines)
        self.shapes.merge(mapped.shapes)
        return _join(mapped)

    def _select(self, table: pa.Table) -> pa.Table:
        """Return what ``on_reject`` wants of rows and rejects."""
        if self.on_reject == "keep":
            return table
        codes = table.column("code")
        if codes.null_count < len(codes):
            (first,) = table.filter(codes.is_valid()).slice(0, 1).to_pylist()
            if self.on_reject == "raise":
                raise DataRefused(
                    f'{_describe_reject(first)}; mend it, or give on_reject="skip" or "keep"'
                )
            found = Counter(code for code in codes.to_pylist() if code)
            counts = ", ".join(f"{code} {number}" for code, number in found.most_common())
            logger.warning("left out: %s; the first: %s", counts, _describe_reject(first))
            table = table.filter(codes.is_null())
        return table.select(list(row_features(self.settings.columns)))


def _restore(values: dict[str, Any], on_reject: OnReject, key: str) -> RowMap:
    made = RowMap(settings=RowSettings(**values), on_reject=on_reject)
    if made.key != key:
        remedy = "the tokenizer or the template changed; make the RowMap again"
        raise SealMismatch("RowMap.key", key, made.key, remedy)
    return made


def _join(mapped: MappedLines) -> pa.Table:
    """Return rows and rejects as one table, in the order of the input."""
    rows, count = mapped.table, mapped.table.num_rows
    verdicts = {
        "split": mapped.splits,
        "line_sha256": mapped.line_digests,
        "row_sha256": mapped.row_digests,
    }
    for each in VERDICT_SCHEMA:
        values = verdicts.get(each.name)
        rows = rows.append_column(
            each, pa.nulls(count, each.type) if values is None else pa.array(values, each.type)
        )
    if not mapped.rejects:
        return rows
    joined = pa.concat_tables([rows, _table_of_rejects(mapped.rejects, rows.schema)])
    return joined.take(pa.array(mapped.order, pa.int64()))


def _table_of_lines(batch: Mapping[str, Any]) -> pa.Table:
    arrays = [pa.array(list(batch[each.name]), each.type) for each in LINE_SCHEMA]
    return pa.Table.from_arrays(arrays, schema=LINE_SCHEMA)


def _table_of_rejects(rejects: Sequence[Reject], schema: pa.Schema) -> pa.Table:
    values: dict[str, list[Any]] = {
        "id": [each.id for each in rejects],
        "source": [f"{each.file}:{each.line}" if each.file else "" for each in rejects],
        "code": [each.code for each in rejects],
        "reject_reason": [each.reason for each in rejects],
        "excerpt": [each.excerpt for each in rejects],
    }
    arrays = [
        pa.array(values[each.name], each.type)
        if each.name in values
        else pa.nulls(len(rejects), each.type)
        for each in schema
    ]
    return pa.Table.from_arrays(arrays, schema=schema)


def _describe_reject(row: Mapping[str, Any]) -> str:
    found = f" (found {row['excerpt']})" if row["excerpt"] else ""
    return f"{row['source'] or 'example'} (id {row['id']!r}): {row['code']}: {row['reject_reason']}{found}"

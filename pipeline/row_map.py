"""The function that the batched map runs: a table of lines in, a table of rows out.

Every line gives one entry. An entry is a row, or carries its reject as JSON, so nothing is lost
between processes; the job splits the two afterwards.
"""

from __future__ import annotations

import hashlib
import json
import os
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.boundary import BoundedRow
from pipeline.config import PrepareConfig
from pipeline.errors import Rejected
from pipeline.examples import TrainingExample, read_id
from pipeline.row_table import Provenance, build_table, digest_rows
from pipeline.rows import RowBuilder
from pipeline.source import parse_line
from pipeline.types import NUMERIC_COLUMNS, ROW_SCHEMA, Reject

REJECT, ROW_DIGEST, LINE_DIGEST = "reject", "row_digest", "line_digest"
"""Columns of an entry that the job reads and that are not saved."""

ENTRY_SCHEMA = pa.schema(
    [
        *ROW_SCHEMA,
        pa.field(REJECT, pa.string()),
        pa.field(ROW_DIGEST, pa.binary()),
        pa.field(LINE_DIGEST, pa.binary()),
    ]
)

_NO_ROW = BoundedRow(np.empty(0, np.int32), 0, 0, 0, ())


class RowMapper:
    """Maps batches of lines to batches of entries; pickles as its settings alone.

    Each process loads its own tokenizer at the first batch.
    """

    def __init__(self, config: PrepareConfig, builder: RowBuilder | None = None) -> None:
        self._config = config
        self._builder = builder

    def __getstate__(self) -> dict[str, Any]:
        return {"_config": self._config, "_builder": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        # Workers share the cores among themselves, so each encodes with one thread.
        os.environ["TOKENIZERS_PARALLELISM"] = "false"

    @property
    def builder(self) -> RowBuilder:
        """What turns examples into rows, loaded at the first use in this process."""
        if self._builder is None:
            self._builder = RowBuilder(self._config)
        return self._builder

    def __call__(self, lines: pa.Table) -> pa.Table:
        """Return one entry of `ENTRY_SCHEMA` per line of ``file``, ``line``, ``text``."""
        files: list[str] = lines.column("file").to_pylist()
        numbers: list[int] = lines.column("line").to_pylist()
        texts: list[str] = lines.column("text").to_pylist()
        parsed = [_read_example(text) for text in texts]
        examples = [item for item in parsed if isinstance(item, TrainingExample)]
        built = iter(self.builder.build(examples))
        rows: list[BoundedRow] = []
        provenance: list[Provenance] = []
        rejects: list[str | None] = []
        for file, number, item in zip(files, numbers, parsed, strict=True):
            result = next(built) if isinstance(item, TrainingExample) else item[1]
            id_ = item.id if isinstance(item, TrainingExample) else item[0]
            if isinstance(result, Rejected):
                reject = Reject(file, number, id_, result.code, result.reason, result.excerpt)
                rows.append(_NO_ROW)
                rejects.append(json.dumps(reject.to_dict()))
            else:
                rows.append(result)
                rejects.append(None)
            example = item if isinstance(item, TrainingExample) else TrainingExample(id_)
            provenance.append(_provenance_of(example, f"{file}:{number}"))
        table = build_table(rows, provenance)
        saved = table if self._config.columns == "full" else table.select(NUMERIC_COLUMNS)
        line_digests = [hashlib.sha256(text.encode()).digest() for text in texts]
        columns = [
            *table.columns,
            pa.array(rejects, pa.string()),
            pa.array(digest_rows(saved, split="train"), pa.binary()),
            pa.array(line_digests, pa.binary()),
        ]
        return pa.Table.from_arrays(columns, schema=ENTRY_SCHEMA)


def _read_example(text: str) -> TrainingExample | tuple[str, Rejected]:
    """Return the example of a line, or its id as far as it can be read and why it is refused."""
    try:
        return TrainingExample.from_dict(parse_line(text))
    except Rejected as error:
        return _peek_id(text), error


def _peek_id(text: str) -> str:
    """Return the id of a line that is no example, as text that UTF-8 can write, or nothing."""
    try:
        values: Any = json.loads(text)
        id_ = read_id(values) if isinstance(values, dict) else ""
    except (ValueError, RecursionError):
        return ""
    return id_.encode("utf-8", "backslashreplace").decode()


def _provenance_of(example: TrainingExample, source: str) -> Provenance:
    return Provenance(
        id=example.id,
        conversation=example.conversation or example.id,
        source=source,
        decision_idx=-1 if example.decision_idx is None else example.decision_idx,
        preference="",
        reason=example.reason,
        memories=tuple(example.memories),
        weight=example.weight,
    )

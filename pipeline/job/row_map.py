"""The function that the batched map runs: a table of lines in, a table of rows out.

Every decision point of a line gives one entry, and a line that is no example gives one as well. An
entry is a row, or carries its reject as JSON, so nothing is lost between processes; the job splits
the two afterwards.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.boundary import BoundedRow
from pipeline.config import PrepareConfig
from pipeline.decisions import DecisionPoint, assign_split, find_decision_points
from pipeline.errors import Rejected
from pipeline.examples import read_id
from pipeline.formats import read_example
from pipeline.row_table import Provenance, build_table, digest_rows
from pipeline.rows import RowBuilder
from pipeline.source.lines import parse_line
from pipeline.types import NUMERIC_COLUMNS, ROW_SCHEMA, Reject

REJECT, SPLIT, ROW_DIGEST, LINE_DIGEST = "reject", "split", "row_digest", "line_digest"
"""Columns of an entry that the job reads and that are not saved."""

ENTRY_SCHEMA = pa.schema(
    [
        *ROW_SCHEMA,
        pa.field(REJECT, pa.string()),
        pa.field(SPLIT, pa.string()),
        pa.field(ROW_DIGEST, pa.binary()),
        pa.field(LINE_DIGEST, pa.binary()),
    ]
)

_NO_ROW = BoundedRow(np.empty(0, np.int32), 0, 0, 0, ())


@dataclass(frozen=True, slots=True)
class _Draft:
    """An entry before rendering: where it comes from, and a decision point or why there is none."""

    file: str
    line: int
    line_digest: bytes
    split: str
    provenance: Provenance
    point: DecisionPoint | None = None
    error: Rejected | None = None

    def to_reject(self, error: Rejected) -> Reject:
        """Return the reject of this entry; where a line has several points it says which."""
        place = self.provenance.decision_idx
        where = f"at message {place}: " if place >= 0 else ""
        reason = where + error.reason
        return Reject(self.file, self.line, self.provenance.id, error.code, reason, error.excerpt)


class RowMapper:
    """Maps batches of lines to batches of entries; pickles as its settings alone.

    Each process loads its own tokenizer at the first batch.
    """

    def __init__(
        self,
        config: PrepareConfig,
        formats: Mapping[str, str],
        builder: RowBuilder | None = None,
    ) -> None:
        self._config = config
        self._formats = formats
        self._builder = builder

    def __getstate__(self) -> dict[str, Any]:
        return {"_config": self._config, "_formats": self._formats, "_builder": None}

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
        """Return the entries of `ENTRY_SCHEMA` for lines of ``file``, ``line``, ``text``, in order."""
        names = ("file", "line", "text")
        drafts = [
            draft
            for file, number, text in zip(
                *(lines.column(name).to_pylist() for name in names), strict=True
            )
            for draft in self._draft_line(file, number, text)
        ]
        built = iter(self.builder.build([draft.point for draft in drafts if draft.point]))
        rows: list[BoundedRow] = []
        rejects: list[str | None] = []
        for draft in drafts:
            result = next(built) if draft.point else draft.error
            if isinstance(result, BoundedRow):
                rows.append(result)
                rejects.append(None)
            else:
                assert result is not None, "a draft without a point has its error"
                rows.append(_NO_ROW)
                rejects.append(json.dumps(draft.to_reject(result).to_dict()))
        table = build_table(rows, [draft.provenance for draft in drafts])
        saved = table if self._config.columns == "full" else table.select(NUMERIC_COLUMNS)
        splits = [draft.split for draft in drafts]
        columns = [
            *table.columns,
            pa.array(rejects, pa.string()),
            pa.array(splits, pa.string()),
            pa.array(digest_rows(saved, splits), pa.binary()),
            pa.array([draft.line_digest for draft in drafts], pa.binary()),
        ]
        return pa.Table.from_arrays(columns, schema=ENTRY_SCHEMA)

    def _draft_line(self, file: str, number: int, text: str) -> list[_Draft]:
        """Return the entries of one line as far as they are known before rendering."""
        digest = hashlib.sha256(text.encode()).digest()
        source = f"{file}:{number}"
        try:
            points = find_decision_points(
                read_example(parse_line(text), self._formats[file], source),
                self._config.decisions,
                keep_rejected=self._config.rejected_continuations == "keep",
            )
        except Rejected as error:
            return [
                _Draft(file, number, digest, "train", _no_provenance(text, source), error=error)
            ]
        return [
            _Draft(
                file,
                number,
                digest,
                assign_split(point.example.conversation, self._config.validation_fraction),
                _provenance_of(point, source),
                point,
            )
            for point in points
        ]


def _no_provenance(text: str, source: str) -> Provenance:
    return Provenance(_peek_id(text), "", source, -1, "", "", (), 1.0)


def _peek_id(text: str) -> str:
    """Return the id of a line that is no example, as text that UTF-8 can write, or nothing."""
    try:
        values: Any = json.loads(text)
        id_ = read_id(values) if isinstance(values, dict) else ""
    except (ValueError, RecursionError):
        return ""
    return id_.encode("utf-8", "backslashreplace").decode()


def _provenance_of(point: DecisionPoint, source: str) -> Provenance:
    example = point.example
    return Provenance(
        id=example.id,
        conversation=example.conversation or example.id,
        source=source,
        decision_idx=-1 if point.decision_idx is None else point.decision_idx,
        preference=point.preference,
        reason=example.reason,
        memories=tuple(example.memories),
        weight=example.weight,
    )

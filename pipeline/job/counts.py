"""What a manifest counts, and the files that go with it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.types import Reject

_SUMMED = ("total_len", "context_len", "dropped_tokens", "dropped_messages")
COUNTED = ("flags", *_SUMMED)
"""The columns of rows that are counted."""


def count_rows(
    lines: int,
    rows_by_split: Mapping[str, int],
    rejects: Sequence[Reject],
    tables: Iterable[pa.Table],
) -> dict[str, Any]:
    """Return the counts of a set, by code and flag, and its tokens.

    ``tables`` hold the columns `COUNTED` of all rows. ``points`` = rows + rejects counts the decision
    points, a line that is no example as one; where each line has one, points = ``lines``.
    """
    flags: Counter[str] = Counter()
    sums: Counter[str] = Counter()
    rows = shortened = 0
    for table in tables:
        flags.update(flag for row in table.column("flags").to_pylist() for flag in row)
        for name in _SUMMED:
            sums[name] += int(np.asarray(table.column(name)).sum())
        shortened += int(np.count_nonzero(np.asarray(table.column("dropped_tokens"))))
        rows += table.num_rows
    return {
        "lines": lines,
        "points": rows + len(rejects),
        "rows": rows,
        "rows_by_split": dict(rows_by_split),
        "rejects": len(rejects),
        "by_code": dict(sorted(Counter(reject.code for reject in rejects).items())),
        "by_flag": dict(sorted(flags.items())),
        "rows_as_served": rows - shortened,
        "rows_shortened": shortened,
        "tokens": {
            "total": sums["total_len"],
            "context": sums["context_len"],
            "continuation": sums["total_len"] - sums["context_len"],
            "dropped": sums["dropped_tokens"],
        },
        "dropped_messages": sums["dropped_messages"],
    }


def write_rejects(path: Path, rejects: Sequence[Reject]) -> None:
    """Write one JSON line per reject, in the order of the input."""
    lines = [json.dumps(reject.to_dict(), ensure_ascii=False) + "\n" for reject in rejects]
    path.write_text("".join(lines), encoding="utf-8")

"""What a saved set says of its rows beside their tokens, small enough to hold for millions of rows.

Files are read one after the other and copied from: a mapped file counts as memory of the process for
as long as something of it is held.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute
from numpy.typing import NDArray

from pipeline.sets.layout import find_row_files
from pipeline.types import ROW_SCHEMA

# Its functions are made when it is imported, so that no type checker knows them.
_compute: Any = pyarrow.compute

_READ: Final = (
    "context_len",
    "total_len",
    "dropped_tokens",
    "flags",
    "context_hash",
    "source",
    "memories",
)


@dataclass(frozen=True, slots=True)
class RowPart:
    """One file of rows of a split: its first row is row ``start`` of the split."""

    split: str
    path: Path
    start: int
    rows: int


class RowColumns:
    """The columns of the rows of a set, those of all its splits in order.

    ``table`` has ``context_len``, ``total_len`` and ``dropped_tokens`` as int32. Where the set has
    them, ``flags`` and ``memories`` are lists of dictionary-encoded strings, ``context_hash`` is a
    uint64, equal for equal hashes, and ``source`` the name of the file without the line.
    """

    def __init__(self, folder: Path) -> None:
        """Read the columns of the set in ``folder``."""
        # `datasets` keeps what users made of a set beside it, in files of the same suffix.
        files = find_row_files(folder)
        self.rows_by_split = dict.fromkeys(files, 0)
        self._parts: list[RowPart] = []
        tables: list[pa.Table] = []
        for split, paths in files.items():
            for path in paths:
                tables.append(_read_file(path))
                start, rows = self.rows_by_split[split], tables[-1].num_rows
                self._parts.append(RowPart(split, path, start, rows))
                self.rows_by_split[split] += rows
        self.table: pa.Table = pa.concat_tables(tables).unify_dictionaries()

    def rows_at(self, numbers: Sequence[int]) -> list[tuple[str, int, dict[str, Any]]]:
        """Return rows by their number in all splits together: split, number in it, and row."""
        ends = np.cumsum([part.rows for part in self._parts])
        found: list[tuple[str, int, dict[str, Any]]] = []
        for number in numbers:
            place = int(np.searchsorted(ends, number, side="right"))
            part = self._parts[place]
            inside = number - int(ends[place]) + part.rows
            (row,) = read_table(part.path).slice(inside, 1).to_pylist()
            found.append((part.split, part.start + inside, row))
        return found


def read_table(path: Path) -> pa.Table:
    """Return the rows of an Arrow stream file, mapped and not copied."""
    with pa.memory_map(str(path)) as mapped:
        return pa.ipc.open_stream(mapped).read_all()


def _read_file(path: Path) -> pa.Table:
    table = read_table(path)
    table = table.select([name for name in _READ if name in table.column_names])
    return pa.table(dict(_make_columns(table.take(pa.array(np.arange(table.num_rows))))))


def _make_columns(table: pa.Table) -> Iterator[tuple[str, pa.Array]]:
    for name in table.column_names:
        column: Any = table.column(name)
        array = column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)
        if name == "context_hash":
            array = pa.array(key_ids(array.to_pylist()))
        elif name == "source":
            # `source` is file:line.
            files = _compute.replace_substring_regex(array, pattern=r":\d+$", replacement="")
            array = files.dictionary_encode()
        elif pa.types.is_list(ROW_SCHEMA.field(name).type):
            texts = array.flatten().cast(pa.string())
            array = pa.ListArray.from_arrays(array.offsets, texts.dictionary_encode())
        yield name, array


def key_ids(ids: Iterable[str]) -> NDArray[np.uint64]:
    """Return a hash of each id: the first eight bytes of its sha256, as a little-endian number."""
    keys = b"".join(hashlib.sha256(id_.encode()).digest()[:8] for id_ in ids)
    return np.frombuffer(keys, "<u8")

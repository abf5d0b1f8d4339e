"""Files that are hashed while they are written: rows as Arrow, the rest as lines of text.

The Arrow format is the one that ``Dataset.save_to_disk`` writes (a stream whose schema carries the
features), so the rows of a set are written once and never copied.
"""

from __future__ import annotations

import hashlib
import io
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pyarrow as pa

from pipeline.types import row_features


@dataclass(frozen=True, slots=True)
class WrittenFile:
    """A file that is whole: its name, its size in bytes, the sha256 of its bytes, its rows or lines.

    ``blocks`` are the parts that it was written in, one after the other: ``"ROWS BYTES CRC32"`` each
    (the checksum in hex), so that of a damaged file the rows can be named. See `pipeline.sets.damage`.
    """

    name: str
    bytes: int
    sha256: str
    rows: int
    blocks: tuple[str, ...] = ()

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Return the file of which `dataclasses.asdict` gave ``values``, as JSON keeps them."""
        fields: dict[str, Any] = {**values, "blocks": tuple(values.get("blocks", ()))}
        return cls(**fields)

    def to_entry(self) -> dict[str, Any]:
        """Return what the manifest says of the file."""
        return {"bytes": self.bytes, "sha256": self.sha256, "blocks": list(self.blocks)}


def row_schema(columns: str) -> pa.Schema:
    """Return the schema of the saved rows, the features in its metadata, for ``columns``."""
    return row_features(columns).arrow_schema


def read_table(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Return the rows of an Arrow stream file, mapped and not copied; of all columns or of some."""
    with pa.memory_map(str(path)) as mapped:
        table = pa.ipc.open_stream(mapped).read_all()
    return table if columns is None else table.select(columns)


class HashedFile(io.RawIOBase):
    """A binary file that knows the sha256 of what was written to it, and checksums of its parts."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path
        # Always a new file: one that a killed job left may be linked from a published set.
        path.unlink(missing_ok=True)
        self._file = path.open("xb")
        self._sha256 = hashlib.sha256()
        self._size = 0
        self.rows = 0
        self._blocks: list[str] = []
        # Of the block that is being written: where it starts, in bytes and rows, and its checksum.
        self._start, self._first_row, self._checksum = 0, 0, 0

    def writable(self) -> bool:
        """Return True: `pyarrow.PythonFile` asks."""
        return True

    def write(self, data: Any, /) -> int:
        """Write bytes or an Arrow buffer; return its size."""
        self._sha256.update(data)
        self._checksum = zlib.crc32(data, self._checksum)
        self._file.write(data)
        size = memoryview(data).nbytes
        self._size += size
        return size

    def write_lines(self, lines: list[str]) -> None:
        """Write lines, each with its line end, and count them."""
        self.write("".join(lines).encode())
        self.rows += len(lines)

    def end_block(self) -> None:
        """Let what comes next be a block of its own."""
        if self._size > self._start:
            rows, size = self.rows - self._first_row, self._size - self._start
            self._blocks.append(f"{rows} {size} {self._checksum:08x}")
        self._start, self._first_row, self._checksum = self._size, self.rows, 0

    def close(self) -> None:
        """Close the file; more than once does nothing."""
        if not self.closed:
            self._file.close()
        super().close()

    def written(self) -> WrittenFile:
        """Return what was written."""
        blocks = tuple(self._blocks)
        return WrittenFile(self._path.name, self._size, self._sha256.hexdigest(), self.rows, blocks)


class RowFile:
    """Writes tables of one schema to ``path``; use it in a ``with`` block, then ask `written`."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._file = HashedFile(path)
        self._schema = schema
        self._writer = pa.ipc.new_stream(pa.PythonFile(self._file, mode="w"), schema)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self._writer.close()
            self._file.end_block()
        self._file.close()

    def write(self, table: pa.Table) -> None:
        """Append the rows of a table, whose columns are taken by name."""
        columns = [table.column(name) for name in self._schema.names]
        self._writer.write_table(pa.Table.from_arrays(columns, schema=self._schema))
        self._file.rows += table.num_rows
        self._file.end_block()

    def written(self) -> WrittenFile:
        """Return what was written, after the block."""
        return self._file.written()

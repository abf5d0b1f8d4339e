"""Bounded rows to an Arrow table, and the canonical bytes that the content digest sums over."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.rows.boundary import BoundedRow
from pipeline.types import IGNORE_LABEL, NUMERIC_COLUMNS, ROW_SCHEMA, TOKEN_COLUMNS

DIGEST_MODULUS = 1 << 256
_SIZE: Final = struct.Struct("<q")
_NO_IDS: Final = np.empty(0, np.int32)


class Provenance(NamedTuple):
    """What a row says of the example it came from; none of it is tokens."""

    id: str
    conversation: str
    source: str
    decision_idx: int
    preference: str
    reason: str
    memories: tuple[str, ...]
    weight: float


def build_table(rows: Sequence[BoundedRow], provenance: Sequence[Provenance]) -> pa.Table:
    """Return the rows as a table of `ROW_SCHEMA`, token columns made from flat buffers."""
    lengths = np.array([row.total_len for row in rows], np.int32)
    offsets = np.zeros(len(rows) + 1, np.int32)
    np.cumsum(lengths, out=offsets[1:])
    flat = np.concatenate([_NO_IDS, *(row.input_ids for row in rows)])
    # Labels come from lengths and from nothing else.
    labels = flat.copy()
    for row, start in zip(rows, offsets.tolist(), strict=False):
        labels[start : start + row.context_len] = IGNORE_LABEL
    columns: dict[str, Any] = {
        "input_ids": pa.ListArray.from_arrays(offsets, flat),
        "labels": pa.ListArray.from_arrays(offsets, labels),
        "attention_mask": pa.ListArray.from_arrays(offsets, np.ones(len(flat), np.int8)),
        "context_len": [row.context_len for row in rows],
        "total_len": lengths,
        "context_hash": [row.context_hash for row in rows],
        "dropped_tokens": [row.dropped_tokens for row in rows],
        "dropped_messages": [row.dropped_messages for row in rows],
        "flags": [row.flags for row in rows],
        "id": [item.id for item in provenance],
        "conversation": [item.conversation for item in provenance],
        "source": [item.source for item in provenance],
        "decision_idx": [item.decision_idx for item in provenance],
        "preference": [item.preference for item in provenance],
        "reason": [item.reason for item in provenance],
        "memories": [item.memories for item in provenance],
        "weight": [item.weight for item in provenance],
    }
    arrays = [
        column if isinstance(column, pa.Array) else pa.array(column, field.type)
        for field, column in ((field, columns[field.name]) for field in ROW_SCHEMA)
    ]
    return pa.Table.from_arrays(arrays, schema=ROW_SCHEMA)


def digest_rows(table: pa.Table, splits: Sequence[str]) -> list[bytes]:
    """Return the sha256 of each row's canonical bytes; ``splits`` names the split of each row.

    Canonical bytes are, in the order of `NUMERIC_COLUMNS`: each token column as its length (int64)
    and its little-endian values, each number as int64 (``weight`` as float32), then id and split
    as length and UTF-8. A column that the table lacks (``columns: train``) counts as empty.
    """
    tokens = [_pack_lists(*split_lists(table, name)) for name in TOKEN_COLUMNS]
    has_ids = "id" in table.column_names
    ids: list[str] = table.column("id").to_pylist() if has_ids else [""] * table.num_rows
    texts = [_sized(id_) + _sized(split) for id_, split in zip(ids, splits, strict=True)]
    digests: list[bytes] = []
    for lists, numbers, text in zip(
        zip(*tokens, strict=True), _pack_numbers(table), texts, strict=True
    ):
        digest = hashlib.sha256()
        for size, values in lists:
            digest.update(size)
            digest.update(values)
        digest.update(numbers + text)
        digests.append(digest.digest())
    return digests


def sum_digests(digests: Iterable[bytes]) -> str:
    """Return the content digest: the sum modulo 2^256, in hex, free of the order of the rows."""
    total = sum(int.from_bytes(digest, "big") for digest in digests) % DIGEST_MODULUS
    return f"{total:064x}"


def split_lists(table: pa.Table, name: str) -> tuple[NDArray[np.generic], NDArray[np.int64]]:
    """Return the values and offsets of a list column as one block of little-endian numbers."""
    column = table.column(name).combine_chunks()
    array = column.chunk(0) if isinstance(column, pa.ChunkedArray) else column
    offsets = np.asarray(array.offsets).astype(np.int64)
    kind = "<i1" if name == "attention_mask" else "<i4"
    return np.asarray(array.values.to_numpy(zero_copy_only=False), kind), offsets


def _pack_lists(
    values: NDArray[np.generic], offsets: NDArray[np.int64]
) -> Iterator[tuple[bytes, memoryview]]:
    """Yield the size and the values of each list as canonical bytes."""
    packed = values.view(np.uint8).data
    for start, end in pairwise(offsets.tolist()):
        yield (
            _SIZE.pack(end - start),
            packed[start * values.itemsize : end * values.itemsize],
        )


def _pack_numbers(table: pa.Table) -> Iterator[bytes]:
    """Yield the numbers of each row as canonical bytes."""
    names = [name for name in NUMERIC_COLUMNS if name not in TOKEN_COLUMNS]
    row = np.dtype([(name, "<f4" if name == "weight" else "<i8") for name in names])
    packed = np.empty(table.num_rows, row)
    for name in names:
        packed[name] = table.column(name).to_numpy()
    content = packed.tobytes()
    for start in range(0, len(content), row.itemsize):
        yield content[start : start + row.itemsize]


def _sized(text: str) -> bytes:
    content = text.encode()
    return _SIZE.pack(len(content)) + content

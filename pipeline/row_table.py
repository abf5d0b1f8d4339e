"""Bounded rows to an Arrow table, and the canonical bytes that the content digest sums over."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.boundary import BoundedRow
from pipeline.types import IGNORE_LABEL, NUMERIC_COLUMNS, ROW_SCHEMA, TOKEN_COLUMNS

DIGEST_MODULUS = 1 << 256


@dataclass(frozen=True, slots=True)
class Provenance:
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
    lengths = np.array([row.total_len for row in rows], np.int64)
    contexts = np.array([row.context_len for row in rows], np.int64)
    offsets = np.zeros(len(rows) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    flat = (
        np.concatenate([row.input_ids for row in rows]) if rows else np.empty(0, np.int32)
    ).astype(np.int32, copy=False)
    # Position of each token in its own row, so that labels come from lengths and from nothing else.
    position = np.arange(len(flat)) - np.repeat(offsets[:-1], lengths)
    labels = np.where(position < np.repeat(contexts, lengths), np.int32(IGNORE_LABEL), flat)
    columns: dict[str, pa.Array | Sequence[object]] = {
        "input_ids": _list_array(offsets, flat),
        "labels": _list_array(offsets, labels),
        "attention_mask": _list_array(offsets, np.ones(len(flat), np.int8)),
        "context_len": contexts.astype(np.int32),
        "total_len": lengths.astype(np.int32),
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
    names = set(table.column_names)
    tokens = [_split_lists(table, name) for name in TOKEN_COLUMNS]
    numbers = [
        np.asarray(table.column(name).to_numpy(), "<f4" if name == "weight" else "<i8")
        for name in NUMERIC_COLUMNS
        if name not in TOKEN_COLUMNS
    ]
    ids: list[str] = table.column("id").to_pylist() if "id" in names else [""] * table.num_rows
    digests: list[bytes] = []
    for index in range(table.num_rows):
        digest = hashlib.sha256()
        for values, offsets in tokens:
            piece = values[offsets[index] : offsets[index + 1]]
            digest.update(struct.pack("<q", len(piece)))
            digest.update(piece.tobytes())
        for values in numbers:
            digest.update(values[index : index + 1].tobytes())
        digest.update(_sized(ids[index].encode()))
        digest.update(_sized(splits[index].encode()))
        digests.append(digest.digest())
    return digests


def sum_digests(digests: Iterable[bytes]) -> str:
    """Return the content digest: the sum modulo 2^256, in hex, free of the order of the rows."""
    total = sum(int.from_bytes(digest, "big") for digest in digests) % DIGEST_MODULUS
    return f"{total:064x}"


def _list_array(offsets: NDArray[np.int64], flat: NDArray[np.generic]) -> pa.ListArray:
    return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), pa.array(flat))


def _split_lists(table: pa.Table, name: str) -> tuple[NDArray[np.generic], NDArray[np.int64]]:
    """Return the values and offsets of a list column as one block of little-endian numbers."""
    column = table.column(name).combine_chunks()
    array = column.chunk(0) if isinstance(column, pa.ChunkedArray) else column
    offsets = np.asarray(array.offsets).astype(np.int64)
    kind = "<i1" if name == "attention_mask" else "<i4"
    return np.asarray(array.values.to_numpy(zero_copy_only=False), kind), offsets


def _sized(text: bytes) -> bytes:
    return struct.pack("<q", len(text)) + text

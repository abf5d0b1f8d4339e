"""Context ids and continuation ids become rows: the boundary, one Arrow table, and the bytes that the
content digest sums over.

The boundary is known by construction (the context's length), never searched for, and labels come
from lengths, never from comparing ids with pad or end-of-sequence tokens.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.tokens.ids import EncodedBatch, Ids
from pipeline.types import IGNORE_LABEL, NUMERIC_COLUMNS, ROW_SCHEMA, TOKEN_COLUMNS

DIGEST_MODULUS = 1 << 256
_SIZE: Final = struct.Struct("<q")
_NO_IDS: Final = np.empty(0, np.int32)


@dataclass(frozen=True, slots=True)
class LengthPolicy:
    """What may happen to a row that is longer than ``max_len`` tokens.

    ``overlong`` is for contexts (``drop_turns``, ``cut_left``, ``reject``), ``overlong_last_turn``
    for one that is too long without its droppable turns (``cut_left``, ``reject``),
    ``overlong_continuation`` for continuations (``reject``, ``cut_right``) that exceed
    ``max_continuation`` tokens or leave less than ``min_context`` tokens for the context.
    """

    max_len: int
    overlong: str = "drop_turns"
    overlong_last_turn: str = "cut_left"
    overlong_continuation: str = "reject"
    min_context: int = 1
    max_continuation: int | None = None
    bos_id: int | None = None

    def limit_continuation(self, context_len: int) -> int:
        """Return the most tokens of a continuation, its end of turn included.

        A context shorter than ``min_context`` tokens is whole, so it needs no more than itself.
        """
        room = self.max_len - min(self.min_context, context_len)
        return room if self.max_continuation is None else min(room, self.max_continuation)

    def takes(self, context_len: int, continuation_len: int) -> bool:
        """Say whether a context and a continuation of this many tokens fit as they are."""
        fits = 0 < context_len <= self.max_len - continuation_len
        return fits and (self.max_continuation is None or continuation_len <= self.max_continuation)


class FittedContext(NamedTuple):
    """A context that fits: its ids, the tokens removed from it, and the flags that say so."""

    ids: Ids
    dropped_tokens: int = 0
    dropped_messages: int = 0
    flags: tuple[str, ...] = ()


class BoundedRow(NamedTuple):
    """One row of tokens: ``input_ids`` int32 [total_len], of which ``context_len`` are context."""

    input_ids: Ids
    context_len: int
    dropped_tokens: int
    dropped_messages: int
    flags: tuple[str, ...]

    @property
    def total_len(self) -> int:
        """Length of the row in tokens."""
        return len(self.input_ids)

    @property
    def context_hash(self) -> str:
        """See `hash_context`."""
        return hash_context(self.input_ids[: self.context_len])


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


def hash_context(context_ids: Ids) -> str:
    """Return the first 16 bytes, in hex, of sha256 over the ids as little-endian int32.

    Rows with equal hashes have equal contexts, which a trainer may run once.
    """
    return hashlib.sha256(np.ascontiguousarray(context_ids, "<i4").data).hexdigest()[:32]


def close_continuations(batch: EncodedBatch, end_ids: Sequence[int | None]) -> list[Ids]:
    """Return the ids of each text, the one token that ends its turn behind them where it has one.

    >>> batch = EncodedBatch(np.array([5, 6, 7], np.int32), np.array([0, 2, 3]))
    >>> [ids.tolist() for ids in close_continuations(batch, [9, None])]
    [[5, 6, 9], [7]]
    """
    has_end = np.array([id_ is not None for id_ in end_ids], np.bool_)
    ends = np.array([id_ for id_ in end_ids if id_ is not None], np.int32)
    flat = np.insert(batch.flat, batch.offsets[1:][has_end], ends)
    offsets = batch.offsets.copy()
    offsets[1:] += np.cumsum(has_end)
    return [*EncodedBatch(flat, offsets)]


def join_row(context: FittedContext, continuation_ids: Ids, flags: tuple[str, ...]) -> BoundedRow:
    """Return the row of a context and its continuation; ``flags`` are those of both but the cut's."""
    flags += context.flags
    return BoundedRow(
        np.concatenate([context.ids, continuation_ids]),
        len(context.ids),
        context.dropped_tokens,
        context.dropped_messages,
        tuple(sorted({*flags})) if flags else (),
    )


def build_table(rows: Sequence[BoundedRow], provenance: Sequence[Provenance]) -> pa.Table:
    """Return the rows as a table of `ROW_SCHEMA`, token columns made from flat buffers."""
    ids, context_lens, dropped_tokens, dropped_messages, flags = _columns_of(rows, BoundedRow)
    lengths = np.fromiter(map(len, ids), np.int32, len(rows))
    offsets = np.zeros(len(rows) + 1, np.int32)
    np.cumsum(lengths, out=offsets[1:])
    flat = np.concatenate([_NO_IDS, *ids])
    # Labels come from lengths and from nothing else.
    labels = flat.copy()
    hashes: list[str] = []
    for start, context_len in zip(offsets.tolist(), context_lens, strict=False):
        labels[start : start + context_len] = IGNORE_LABEL
        hashes.append(hash_context(flat[start : start + context_len]))
    columns: dict[str, Any] = {
        "input_ids": pa.ListArray.from_arrays(offsets, flat),
        "labels": pa.ListArray.from_arrays(offsets, labels),
        "attention_mask": pa.ListArray.from_arrays(offsets, np.ones(len(flat), np.int8)),
        "context_len": context_lens,
        "total_len": lengths,
        "context_hash": hashes,
        "dropped_tokens": dropped_tokens,
        "dropped_messages": dropped_messages,
        "flags": flags,
    }
    columns |= zip(Provenance._fields, _columns_of(provenance, Provenance), strict=True)
    arrays: list[pa.Array] = []
    for field in ROW_SCHEMA:
        column = columns[field.name]
        is_made = isinstance(column, pa.Array)
        arrays.append(column if is_made else pa.array(column, field.type))
    return pa.Table.from_arrays(arrays, schema=ROW_SCHEMA)


def _columns_of(
    rows: Sequence[BoundedRow | Provenance], kind: type[BoundedRow | Provenance]
) -> Sequence[tuple[Any, ...]]:
    return [*zip(*rows, strict=True)] if rows else [()] * len(kind._fields)


def digest_rows(table: pa.Table, splits: Sequence[str]) -> list[bytes]:
    """Return the sha256 of each row's canonical bytes; ``splits`` names the split of each row.

    Canonical bytes are, in the order of `NUMERIC_COLUMNS`: each token column as its length (int64)
    and its little-endian values, each number as int64 (``weight`` as float32), then id and split
    as length and UTF-8. A column that the table lacks (``columns: train``) counts as empty.
    """
    lists = [_pack_lists(table, name) for name in TOKEN_COLUMNS]
    numbers = _pack_numbers(table)
    size = len(numbers) // max(table.num_rows, 1)
    has_ids = "id" in table.column_names
    ids: list[str] = table.column("id").to_pylist() if has_ids else [""] * table.num_rows
    digests: list[bytes] = []
    for row, texts in enumerate(zip(ids, splits, strict=True)):
        digest = hashlib.sha256()
        for packed, width, offsets in lists:
            start, end = offsets[row], offsets[row + 1]
            digest.update(_SIZE.pack(end - start))
            digest.update(packed[start * width : end * width])
        digest.update(numbers[row * size : (row + 1) * size])
        for content in map(str.encode, texts):
            digest.update(_SIZE.pack(len(content)))
            digest.update(content)
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


def _pack_lists(table: pa.Table, name: str) -> tuple[memoryview, int, list[int]]:
    """Return the values of a list column as canonical bytes, the bytes of one, and its offsets."""
    values, offsets = split_lists(table, name)
    return values.view(np.uint8).data, values.itemsize, offsets.tolist()


def _pack_numbers(table: pa.Table) -> bytes:
    """Return the numbers of all rows as canonical bytes."""
    names = [name for name in NUMERIC_COLUMNS if name not in TOKEN_COLUMNS]
    packed = np.empty(
        table.num_rows, [(name, "<f4" if name == "weight" else "<i8") for name in names]
    )
    for name in names:
        packed[name] = table.column(name).to_numpy()
    return packed.tobytes()

"""Ids of many texts in one block, as every encoder gives them, and their texts by a table of bytes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Ids = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class EncodedBatch:
    """Ids of a batch of texts in one block: text ``i`` is ``flat[offsets[i]:offsets[i + 1]]``.

    ``flat`` is int32 [tokens of all texts], ``offsets`` is int64 [texts + 1]. Both may be read-only.
    """

    flat: Ids
    offsets: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> Ids:
        return self.flat[self.offsets[index] : self.offsets[index + 1]]

    def __iter__(self) -> Iterator[Ids]:
        for start, end in pairwise(self.offsets.tolist()):
            yield self.flat[start:end]


def join_lists(rows: Sequence[Sequence[int]]) -> EncodedBatch:
    """Return the batch of rows that are lists of ids."""
    offsets = _offsets_of(rows)
    flat = np.fromiter(chain.from_iterable(rows), np.int32, int(offsets[-1]))
    return EncodedBatch(flat, offsets)


def join_rows(rows: Sequence[Ids]) -> EncodedBatch:
    """Return the batch of rows that are arrays of ids."""
    flat = np.concatenate(rows) if rows else np.empty(0, np.int32)
    return EncodedBatch(flat, _offsets_of(rows))


def join_batches(first: EncodedBatch, second: EncodedBatch) -> EncodedBatch:
    """Return the texts of ``first``, then those of ``second``."""
    return EncodedBatch(
        np.concatenate([first.flat, second.flat]),
        np.concatenate([first.offsets, second.offsets[1:] + first.offsets[-1]]),
    )


def _offsets_of(rows: Sequence[Sequence[int] | Ids]) -> NDArray[np.int64]:
    offsets = np.zeros(len(rows) + 1, np.int64)
    np.cumsum([len(row) for row in rows], out=offsets[1:])
    return offsets


# Ids of each sequence that is decoded both ways before the table is trusted.
_PROBE_LENGTH = 64


class ByteTable:
    """The bytes of every id of a tokenizer whose decoder is byte-level BPE's.

    >>> from tokenizers import Tokenizer
    >>> backend = Tokenizer.from_file("configs/tokenizer/tokenizer.json")
    >>> table = make_byte_table(backend)
    >>> ids = np.array(backend.encode("Hello").ids, np.int32)
    >>> table.decode(EncodedBatch(ids, np.array([0, len(ids)])))
    ['Hello']
    """

    def __init__(self, data: bytes, ends: NDArray[np.int64]) -> None:
        """Take the bytes of all ids, one after the other, and where those of each id end."""
        places = np.zeros(len(ends) + 1, np.int32)
        places[1:] = ends
        buffers = [None, pa.py_buffer(places), pa.py_buffer(data)]
        # From buffers, as `pa.array` imports pandas first (0.2 s).
        self._bytes = pa.BinaryArray.from_buffers(pa.binary(), len(ends), buffers)

    def covers(self, batch: EncodedBatch) -> bool:
        """Say whether every id of the batch is in the table."""
        return not len(batch.flat) or int(batch.flat.max()) < len(self._bytes)

    def decode(self, batch: EncodedBatch) -> list[str]:
        """Return the text of each row; bytes that are no UTF-8 become U+FFFD."""
        flat = np.ascontiguousarray(batch.flat)
        ids = pa.Int32Array.from_buffers(pa.int32(), len(flat), [None, pa.py_buffer(flat)])
        taken: Any = self._bytes.take(ids)
        _, places, data = taken.buffers()
        ends = np.frombuffer(places, np.int32)[taken.offset + batch.offsets].tolist()
        view = memoryview(data or b"")
        return [str(view[start:end], "utf-8", "replace") for start, end in pairwise(ends)]


def make_byte_table(backend: Tokenizer) -> ByteTable | None:
    """Return the table, or None where the backend's decoder is another or gives other text."""
    decoder: Any = backend.decoder
    if decoder is None or json.loads(decoder.__getstate__())["type"] != "ByteLevel":
        return None
    # An id without a token decodes to nothing.
    size = backend.get_vocab_size(with_added_tokens=True)
    table = ByteTable(*_bytes_of([backend.id_to_token(id_) or "" for id_ in range(size)]))
    probes = _probe_ids(backend, size)
    batch = EncodedBatch(
        np.array(probes, np.int32).reshape(-1),
        np.arange(len(probes) + 1, dtype=np.int64) * _PROBE_LENGTH,
    )
    expected = backend.decode_batch(probes, skip_special_tokens=False)
    return table if table.decode(batch) == expected else None


def _bytes_of(tokens: list[str]) -> tuple[bytes, NDArray[np.int64]]:
    """Return the bytes that the tokens stand for, one after the other, and where each ends.

    A token with a character that stands for no byte is kept as its own UTF-8, as an added token
    with a space in it: that is how `tokenizers` decodes it (ByteLevel, 0.23).
    """
    letters = np.frombuffer("".join(tokens).encode("utf-32-le"), np.uint32)
    byte_of_letter = number_letters()
    found = byte_of_letter[np.minimum(letters, len(byte_of_letter) - 1)]
    lengths = np.fromiter(map(len, tokens), np.int64, len(tokens))
    ends = np.cumsum(lengths)
    data, parts, done = found.astype(np.uint8).tobytes(), list[bytes](), 0
    for place in np.unique(np.searchsorted(ends, np.flatnonzero(found < 0), "right")).tolist():
        own = tokens[place].encode()
        parts += [data[done : ends[place] - lengths[place]], own]
        done, lengths[place] = int(ends[place]), len(own)
    return b"".join([*parts, data[done:]]), np.cumsum(lengths)


def number_letters() -> NDArray[np.int16]:
    """Return the byte that the letter of each code point stands for, or -1.

    Byte-level BPE (GPT-2) writes a printable byte of Latin-1 as itself and numbers the others, in
    order, from U+0100.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    table = np.full(0x100 + len(others) + 1, -1, np.int16)
    table[printable] = printable
    table[0x100 : 0x100 + len(others)] = others
    return table


def _probe_ids(backend: Tokenizer, size: int) -> list[list[int]]:
    """Return sequences that hold every added token, and ids in an order that breaks characters."""
    added = [id_ for id_ in backend.get_added_tokens_decoder() if id_ < size]
    # A stride that shares no factor with the size meets ids all over the vocabulary.
    spread = [place * 7919 % size for place in range(40 * _PROBE_LENGTH)]
    ids = [*added, *spread]
    whole = len(ids) // _PROBE_LENGTH * _PROBE_LENGTH
    return [ids[start : start + _PROBE_LENGTH] for start in range(0, whole, _PROBE_LENGTH)]

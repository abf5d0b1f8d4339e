"""Rows of a saved set to padded CPU batches, in the four layouts of `pipeline.train.batches`.

Each tensor is one numpy block that the rows are copied into once; no tokenizer is needed. Fastest
with ``dataset.with_format("arrow")[indices]``, then with rows of ``with_format("numpy")``; lists
work too. DataLoader workers make it slower (a batch costs less than sending it between processes).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import InitVar, dataclass
from typing import Any, Literal, cast, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.errors import BadRow, UsageError, excerpt_of
from pipeline.rows.chains import find_chains
from pipeline.train.batches import Batch
from pipeline.train.token_rows import IntArray, RowSource, TokenRow, read_token_rows
from pipeline.types import IGNORE_LABEL

Layout = Literal["joined", "split", "grouped", "conversation"]
Block = NDArray[np.int64]

_FALLBACK_PAD_ID = 0


@dataclass(frozen=True)
class ContextFrozenCollator:
    """Callable that makes one batch of a list of rows, an Arrow table or a dict of columns.

    Args:
        layout: ``joined`` [B, T] for any trainer, ``split`` [B, C] + [B, R] for
            `pipeline.train.step.context_frozen_loss`, ``grouped`` [G, C] + [K, R] to run equal contexts
            once (rows with the same frozen ids share a line of ``context_*``), ``conversation`` to
            run frozen parts that begin one another in one pass, with
            `pipeline.train.step.frozen_losses`; a row that fits no other is a pass by itself.
        pad_token_id: id in padded places; every one of them is masked and unlabelled. Default: the
            tokenizer's, else 0, which every vocabulary has.
        pad_to_multiple_of: C, R and T are rounded up to a multiple of this, in tokens.
        max_len: longest row allowed, in tokens; a longer one is an error, never cut.
        with_rejected: take the worse continuations of pairs too, to measure them or to train a
            loss of pairs; else such a row is an error.
        device: where the batch goes. Only in the main process: CUDA cannot be used in DataLoader
            workers, and `pipeline.train.feed.DeviceFeeder` moves batches ahead of time.
        tokenizer: only read for its pad id; not kept, so the collator stays small to pickle.

    Tokens that are not trained have the label -100, the one that every loss leaves out.

    Raises `BadRow` for a row with an impossible boundary, length, label or weight.

    >>> batch = ContextFrozenCollator("split")([{"input_ids": [5, 6, 7, 8], "context_len": 3}])
    >>> batch["context_input_ids"].tolist(), batch["input_ids"].tolist(), batch["labels"].tolist()
    ([[5, 6]], [[7, 8]], [[-100, 8]])
    """

    layout: Layout = "split"
    pad_token_id: int | None = None
    pad_to_multiple_of: int | None = None
    max_len: int | None = None
    with_rejected: bool = False
    device: str | torch.device | None = None
    tokenizer: InitVar[Any] = None

    def __post_init__(self, tokenizer: Any) -> None:
        if self.layout not in get_args(Layout):
            raise UsageError(
                f"layout is {excerpt_of(self.layout)}; expected {', '.join(get_args(Layout))}"
            )
        for name in ("pad_to_multiple_of", "max_len"):
            value = getattr(self, name)
            if value is not None and (not _is_whole(value) or value < 1):
                raise UsageError(f"{name} is {value}; expected 1 or more tokens, or none")
        if self.pad_token_id is None:
            pad_token_id = getattr(tokenizer, "pad_token_id", None)
            object.__setattr__(
                self, "pad_token_id", _FALLBACK_PAD_ID if pad_token_id is None else pad_token_id
            )
        if not _is_whole(self.pad_token_id) or cast("int", self.pad_token_id) < 0:
            raise UsageError(
                f"pad_token_id is {excerpt_of(self.pad_token_id)}; expected a token id, 0 or more"
            )

    def __call__(self, rows: RowSource) -> Batch:
        """Return the batch of ``rows``, in their order."""
        if self.device is not None and torch.utils.data.get_worker_info() is not None:
            raise UsageError(
                f"a collator with device={str(self.device)!r} runs in a DataLoader worker, where a "
                "device cannot be used; set num_workers=0, or leave device out and wrap the loader "
                "in DeviceFeeder"
            )
        checked = read_token_rows(rows, with_rejected=self.with_rejected)
        self._refuse_long_rows(checked)
        match self.layout:
            case "joined":
                batch = self._join(checked)
            case "conversation":
                batch = self._chain(checked)
            case _:
                batch = self._split(checked)
        moved = {name: self._to_tensor(value) for name, value in batch.items()}
        return cast("Batch", moved)

    def _refuse_long_rows(self, rows: Sequence[TokenRow]) -> None:
        if self.max_len is None:
            return
        for row in rows:
            if len(row.ids) > self.max_len:
                raise BadRow(
                    f"{row.name}: {len(row.ids)} tokens; expected at most max_len={self.max_len}: "
                    "prepare the set with that max_len, or raise it here"
                )

    def _join(self, rows: Sequence[TokenRow]) -> dict[str, Block]:
        lengths = _count([row.ids for row in rows])
        width = self._round_up(lengths.max())
        real = np.arange(width) < lengths[:, None]
        return {
            "input_ids": self._pad([row.ids for row in rows], width, side="right"),
            "attention_mask": real.astype(np.int64),
            "labels": self._pad_labels(rows, [row.context_len for row in rows], width),
            "position_ids": np.arange(width) * real,
        }

    def _split(self, rows: Sequence[TokenRow]) -> dict[str, Any]:
        contexts = [row.frozen_ids for row in rows]
        index = np.arange(len(rows))
        if self.layout == "grouped":
            contexts, index = _find_distinct(contexts)
        context_lens = _count(contexts)
        context_width = self._round_up(context_lens.max())
        offsets = np.arange(context_width) - (context_width - context_lens[:, None])
        context_mask = (offsets >= 0).astype(np.int64)

        live = self._block_live(rows)
        real = live["attention_mask"]
        starts = context_lens[index][:, None]
        batch: dict[str, Any] = live | {
            "context_input_ids": self._pad(contexts, context_width, side="left"),
            "context_attention_mask": context_mask,
            "context_position_ids": offsets * context_mask,
            "attention_mask": np.concatenate([context_mask[index], real], axis=1),
            "position_ids": (starts + np.arange(real.shape[1])) * real,
        }
        if self.layout == "grouped":
            batch["context_index"] = index
        return batch

    def _pad(self, pieces: Sequence[IntArray], width: int, side: Literal["left", "right"]) -> Block:
        block = np.full((len(pieces), width), self.pad_token_id, np.int64)
        for line, piece in zip(block, pieces, strict=True):
            start = width - len(piece) if side == "left" else 0
            line[start : start + len(piece)] = piece
        return block

    def _block_live(self, rows: Sequence[TokenRow]) -> dict[str, Any]:
        """Return what every layout of two phases says of the continuations."""
        lengths = _count([row.live_ids for row in rows])
        width = self._round_up(lengths.max())
        return {
            "input_ids": self._pad([row.live_ids for row in rows], width, side="right"),
            "attention_mask": (np.arange(width) < lengths[:, None]).astype(np.int64),
            "labels": self._pad_labels(rows, [1] * len(rows), width),
            "num_continuation_tokens": sum(int((row.labels != IGNORE_LABEL).sum()) for row in rows),
            "weights": np.array([row.weight for row in rows], np.float32),
        }

    def _chain(self, rows: Sequence[TokenRow]) -> dict[str, Any]:
        frozen = [row.frozen_ids for row in rows]
        chains = find_chains(frozen)
        index = np.empty(len(rows), np.int64)
        for place, chain in enumerate(chains):
            index[chain] = place
        contexts = [frozen[chain[-1]] for chain in chains]
        width = self._round_up(_count(contexts).max())
        return self._block_live(rows) | {
            "context_input_ids": self._pad(contexts, width, side="right"),
            "context_index": index,
            "branch_at": _count(frozen),
        }

    def _pad_labels(self, rows: Sequence[TokenRow], starts: Sequence[int], width: int) -> Block:
        """Return labels [B, width], those of row ``b`` from column ``starts[b]`` on."""
        block = np.full((len(rows), width), IGNORE_LABEL, np.int64)
        for line, row, start in zip(block, rows, starts, strict=True):
            line[start : start + len(row.labels)] = row.labels
        return block

    def _round_up(self, length: np.int64) -> int:
        multiple = self.pad_to_multiple_of or 1
        return -(-int(length) // multiple) * multiple

    def _to_tensor(self, value: Any) -> Any:
        if not isinstance(value, np.ndarray):
            return value
        tensor = torch.from_numpy(value)
        return tensor if self.device is None else tensor.to(self.device)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _count(pieces: Sequence[IntArray]) -> Block:
    return np.array([len(piece) for piece in pieces], np.int64)


def _find_distinct(pieces: Sequence[IntArray]) -> tuple[list[IntArray], Block]:
    """Return the distinct pieces in order of first sight, and each piece's place among them."""
    places: dict[bytes, int] = {}
    index = [
        places.setdefault(piece.astype(np.int64, copy=False).tobytes(), len(places))
        for piece in pieces
    ]
    firsts = [index.index(place) for place in range(len(places))]
    return [pieces[first] for first in firsts], np.array(index, np.int64)

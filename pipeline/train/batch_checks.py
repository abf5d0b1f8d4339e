"""What a two-phase batch must be before a model sees it, and how long its rows are.

A collator's batches are right by construction; these checks are for those made by hand. Values are
looked at where the batch is on the CPU alone: elsewhere each look would wait for the device.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pipeline.errors import BadRow, UsageError
from pipeline.types import IGNORE_LABEL

_SHAPES = {
    "context_input_ids": "GC",
    "context_attention_mask": "GC",
    "context_position_ids": "GC",
    "input_ids": "KR",
    "labels": "KR",
    "position_ids": "KR",
    "attention_mask": "KT",
    "weights": "K",
}
_MASKS = ("context_attention_mask", "attention_mask")
_REMEDY = 'collate with ContextFrozenCollator(layout="split")'


class RowLengths(NamedTuple):
    """Tokens of each row of a batch: those that are frozen, and all of them."""

    frozen: list[int]
    total: list[int]


def check_batch(batch: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a ``split`` or ``grouped`` batch, its ids, labels and positions as int64.

    Raises `UsageError` for another layout, for tensors that do not fit each other, and for ids,
    labels, masks or positions that are no integers; `BadRow` for values that no row can have.
    """
    missing = [name for name in _SHAPES if name not in batch]
    if missing:
        raise UsageError(
            f"the batch holds {', '.join(sorted(batch))}; expected the split or grouped layout, "
            f"with {', '.join(missing)}: {_REMEDY}"
        )
    whole: dict[str, Any] = dict(batch)
    for name in [*_SHAPES, *(["context_index"] if "context_index" in batch else [])]:
        whole[name] = _read_tensor(name, batch[name])
    _check_shapes(whole)
    if whole["input_ids"].device.type == "cpu" and whole["weights"].device.type == "cpu":
        _check_values(whole)
    return whole


def measure_rows(batch: Mapping[str, Any]) -> RowLengths:
    """Return the lengths of the rows of a batch; this waits for the device that it is on."""
    frozen: Tensor = batch["context_attention_mask"].sum(dim=1)
    if "context_index" in batch:
        frozen = frozen[batch["context_index"]]
    return RowLengths(frozen.tolist(), batch["attention_mask"].sum(dim=1).tolist())


def most_tokens(batch: Mapping[str, Any]) -> int:
    """Return a bound on the length of the rows that needs no look at the device."""
    return batch["attention_mask"].shape[1]


def name_rows(places: Sequence[int], lengths: RowLengths) -> str:
    """Return the rows of a batch at ``places`` in words, the first four of them."""
    named = ", ".join(
        f"row {place} ({lengths.total[place]} tokens, {lengths.frozen[place]} of them frozen)"
        for place in places[:4]
    )
    return f"{named} and {len(places) - 4} more" if len(places) > 4 else named


def _read_tensor(name: str, value: Any) -> Tensor:
    if not isinstance(value, Tensor):
        raise UsageError(f"{name} is {type(value).__name__}; expected a tensor: {_REMEDY}")
    if name == "weights":
        if value.dtype is torch.bool or value.is_complex():
            raise UsageError(f"weights are {value.dtype}; expected float32 numbers: {_REMEDY}")
        return value
    is_integer = not value.is_floating_point() and not value.is_complex()
    if not is_integer or (value.dtype is torch.bool and name not in _MASKS):
        raise UsageError(f"{name} is {value.dtype}; expected int64, whole numbers: {_REMEDY}")
    return value if name in _MASKS and value.dtype is torch.bool else value.to(torch.int64)


def _check_shapes(batch: Mapping[str, Any]) -> None:
    sizes: dict[str, int] = {}
    for name, axes in _SHAPES.items():
        shape: Sequence[int] = batch[name].shape
        if len(shape) != len(axes):
            raise UsageError(f"{name} has {len(shape)} axes; expected {len(axes)}: {_REMEDY}")
        for axis, size in zip(axes, shape, strict=True):
            if sizes.setdefault(axis, size) != size:
                raise UsageError(
                    f"{name} is {list(shape)}, which does not fit the others "
                    f"({axis} is {sizes[axis]} there): {_REMEDY}"
                )
    if not sizes["K"] or not sizes["R"]:
        raise UsageError("the batch has no rows; expected one or more: check the batch sampler")
    if sizes["T"] != sizes["C"] + sizes["R"]:
        raise UsageError(
            f"attention_mask spans {sizes['T']} columns; expected those of both phases, "
            f"{sizes['C']} + {sizes['R']}: {_REMEDY}"
        )
    index: Tensor | None = batch.get("context_index")
    if (index is None and sizes["G"] != sizes["K"]) or (
        index is not None and list(index.shape) != [sizes["K"]]
    ):
        raise UsageError(
            f"{sizes['K']} continuations for {sizes['G']} contexts; expected as many, or a "
            f"context_index for each continuation: {_REMEDY}"
        )


def _check_values(batch: Mapping[str, Any]) -> None:
    """Refuse values on the CPU that a model would take for something else, or crash on."""
    _refuse_rows(
        ~torch.isfinite(batch["weights"]) | (batch["weights"] < 0), "a weight below 0 or not finite"
    )
    width = batch["context_input_ids"].shape[1]
    is_padding = batch["attention_mask"][:, width:] == 0
    _refuse_rows((is_padding & (batch["labels"] != IGNORE_LABEL)).any(1), "a label on padding")
    _refuse_rows(is_padding[:, 0], "no last context token: its continuation is not right-padded")
    for name in ("input_ids", "context_input_ids", "position_ids", "context_position_ids"):
        _refuse_rows((batch[name] < 0).any(1), f"{name} below 0")
    index: Tensor | None = batch.get("context_index")
    if index is not None:
        contexts = len(batch["context_input_ids"])
        _refuse_rows((index < 0) | (index >= contexts), f"no context among the {contexts}")


def _refuse_rows(is_wrong: Tensor, what: str) -> None:
    if is_wrong.any():
        place = int(is_wrong.int().argmax())
        raise BadRow(f"row {place} of the batch has {what}; {_REMEDY}")

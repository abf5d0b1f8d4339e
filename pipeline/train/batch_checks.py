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
_CONVERSATION_SHAPES = {
    "context_input_ids": "GC",
    "context_index": "K",
    "branch_at": "K",
    "input_ids": "KR",
    "labels": "KR",
    "attention_mask": "KR",
    "weights": "K",
}
_MASKS = ("context_attention_mask", "attention_mask")
_REMEDY = 'collate with ContextFrozenCollator(layout="split"), "grouped" or "conversation"'


class RowLengths(NamedTuple):
    """Tokens of each row of a batch: those that are frozen, and all of them."""

    frozen: list[int]
    total: list[int]


def check_batch(batch: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a ``split`` or ``grouped`` batch, its ids, labels and positions as int64.

    Raises `UsageError` for another layout, for tensors that do not fit each other, and for ids,
    labels, masks or positions that are no integers; `BadRow` for values that no row can have.
    """
    if "branch_at" in batch:
        raise UsageError(
            "the batch has the conversation layout, whose losses come one by one; expected split or "
            "grouped: use frozen_losses, or another layout of ContextFrozenCollator"
        )
    shapes = _SHAPES | ({"context_index": "K"} if "context_index" in batch else {})
    whole = _read_tensors(batch, shapes, "split or grouped layout")
    sizes = _check_shapes(whole, shapes)
    if sizes["T"] != sizes["C"] + sizes["R"]:
        raise UsageError(
            f"attention_mask spans {sizes['T']} columns; expected those of both phases, "
            f"{sizes['C']} + {sizes['R']}: {_REMEDY}"
        )
    if "context_index" not in batch and sizes["G"] != sizes["K"]:
        raise UsageError(
            f"{sizes['K']} continuations for {sizes['G']} contexts; expected as many, or a "
            f"context_index for each continuation: {_REMEDY}"
        )
    if _is_on_cpu(whole):
        _check_values(whole, whole["attention_mask"][:, sizes["C"] :])
        for name in ("position_ids", "context_position_ids"):
            _refuse_rows((whole[name] < 0).any(1), f"{name} below 0")
    return whole


def check_conversation(batch: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a ``conversation`` batch, its integers as int64. Raises as `check_batch` does."""
    whole = _read_tensors(batch, _CONVERSATION_SHAPES, "conversation layout")
    width = _check_shapes(whole, _CONVERSATION_SHAPES)["C"]
    if _is_on_cpu(whole):
        _check_values(whole, whole["attention_mask"])
        is_outside = (whole["branch_at"] < 0) | (whole["branch_at"] > width)
        _refuse_rows(is_outside, f"branch_at outside the {width} tokens of the contexts")
    return whole


def measure_rows(batch: Mapping[str, Any]) -> RowLengths:
    """Return the lengths of the rows of a batch; this waits for the device that it is on."""
    total: Tensor = batch["attention_mask"].sum(dim=1)
    if "branch_at" in batch:
        frozen: Tensor = batch["branch_at"]
        return RowLengths(frozen.tolist(), (frozen + total).tolist())
    frozen = batch["context_attention_mask"].sum(dim=1)
    if "context_index" in batch:
        frozen = frozen[batch["context_index"]]
    return RowLengths(frozen.tolist(), total.tolist())


def most_tokens(batch: Mapping[str, Any]) -> int:
    """Return a bound on the length of the rows that needs no look at the device."""
    return batch["context_input_ids"].shape[1] + batch["input_ids"].shape[1]


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


def _read_tensors(
    batch: Mapping[str, Any], shapes: Mapping[str, str], layout: str
) -> dict[str, Any]:
    missing = [name for name in shapes if name not in batch]
    if missing:
        raise UsageError(
            f"the batch holds {', '.join(sorted(batch))}; expected the {layout}, "
            f"with {', '.join(missing)}: {_REMEDY}"
        )
    return dict(batch) | {name: _read_tensor(name, batch[name]) for name in shapes}


def _check_shapes(batch: Mapping[str, Any], shapes: Mapping[str, str]) -> dict[str, int]:
    """Return the size of each axis."""
    sizes: dict[str, int] = {}
    for name, axes in shapes.items():
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
    return sizes


def _is_on_cpu(batch: Mapping[str, Any]) -> bool:
    return batch["input_ids"].device.type == "cpu" and batch["weights"].device.type == "cpu"


def _check_values(batch: Mapping[str, Any], live_mask: Tensor) -> None:
    """Refuse values on the CPU that a model would take for something else, or crash on."""
    _refuse_rows(
        ~torch.isfinite(batch["weights"]) | (batch["weights"] < 0), "a weight below 0 or not finite"
    )
    is_padding = live_mask == 0
    _refuse_rows((is_padding & (batch["labels"] != IGNORE_LABEL)).any(1), "a label on padding")
    _refuse_rows(is_padding[:, 0], "no last context token: its continuation is not right-padded")
    for name in ("input_ids", "context_input_ids"):
        _refuse_rows((batch[name] < 0).any(1), f"{name} below 0")
    index: Tensor | None = batch.get("context_index")
    if index is not None:
        contexts = len(batch["context_input_ids"])
        _refuse_rows((index < 0) | (index >= contexts), f"no context among the {contexts}")


def _refuse_rows(is_wrong: Tensor, what: str) -> None:
    if is_wrong.any():
        place = int(is_wrong.int().argmax())
        raise BadRow(f"row {place} of the batch has {what}; {_REMEDY}")

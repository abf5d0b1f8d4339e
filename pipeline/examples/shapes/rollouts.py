"""Ids of trainers' rollouts and of tokenized sets -> ids of a context, and of what the model sampled.

``prompt_ids`` with ``response_ids`` and a mask (verl, SkyRL, RLinf, TRL), ``tokens`` with a
``response_length`` (slime), ``input_ids`` with ``labels`` or a mask (any trainer's tokenized set).
Sources: verl, ``experimental/agent_loop/agent_loop.py``: AgentLoopOutput; SkyRL,
``generators/skyrl_gym_generator.py``: TrajectoryOutput; slime, ``utils/types.py``: Sample.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, cast

from pipeline.errors import Rejected
from pipeline.examples.answers import is_mask
from pipeline.examples.fields import read_token_ids

_PROMPTS: Final = ("context_ids", "prompt_ids", "prompt_token_ids")
_RESPONSES: Final = (
    *("continuation_ids", "response_ids", "completion_ids", "response_token_ids"),
    *("completion_token_ids", "output_token_ids"),
)
_MASKS: Final = (
    *("response_mask", "loss_mask", "loss_masks", "completion_mask", "action_mask"),
    *("assistant_mask", "assistant_masks"),
)
_IGNORED: Final = -100
"""The label of a token that is not trained."""


def respell_rollout(values: Mapping[str, Any]) -> tuple[Mapping[str, Any], str] | None:
    """Return a row of ids in our own names, and the keys that told it; None where it is none.

    Raises `Rejected` (``bad_ids``) with the key.

    >>> respell_rollout({"prompt_ids": [1], "response_ids": [2, 3, 4], "response_mask": [1, 0, 1]})[0]
    {'context_ids': [1], 'continuation_ids': [2, 3, 4], 'continuation_mask': [1, 0, 1]}
    """
    prompt, response = _find(values, _PROMPTS), _find(values, _RESPONSES)
    mask = _find(values, _MASKS)
    if prompt and response and (mask or (prompt, response) != (_PROMPTS[0], _RESPONSES[0])):
        keys = (prompt, response)
        context, ids = (_read_list(values, key) for key in keys)
    elif values.get("tokens") is not None and values.get("response_length") is not None:
        keys = ("tokens", "response_length")
        context, ids = _split_tokens(values)
    elif values.get("input_ids") is not None and (mask or values.get("labels") is not None):
        return _read_labelled(values, mask)
    else:
        return None
    row = {key: value for key, value in values.items() if key not in (*keys, mask)}
    # slime keeps the prompt and the text of the response beside their ids.
    for name, ours in (("prompt", "context"), ("response", "continuation")):
        if row.get(name) is not None:
            row[ours] = row.pop(name)
    row |= {"context_ids": context, "continuation_ids": ids}
    if mask:
        row["continuation_mask"] = _read_mask(values, mask, context, ids)
    return row, "+".join((*keys, mask) if mask else keys)


def _read_labelled(
    values: Mapping[str, Any], mask: str | None
) -> tuple[Mapping[str, Any], str] | None:
    """Return the row of ``input_ids`` with the tokens that are trained: what goes before is context."""
    ids = read_token_ids(_read_list(values, "input_ids"), "input_ids")
    key = mask or "labels"
    marks = _read_list(values, key)
    if len(marks) != len(ids):
        raise Rejected("bad_ids", f"{key}: {len(marks)} for {len(ids)} input_ids; expected as many")
    if key == "labels":
        for index, (label, id_) in enumerate(zip(marks, ids, strict=True)):
            if label not in (_IGNORED, id_):
                raise Rejected(
                    "bad_ids",
                    f"labels[{index}]: expected {_IGNORED}, or the id at its place",
                    label,
                )
        marks = [int(label != _IGNORED) for label in marks]
    _check_mask(key, marks)
    begin = marks.index(1)
    row = {name: value for name, value in values.items() if name not in ("input_ids", key)}
    if mask and row.get("labels") is not None:
        return None
    attention = row.get("attention_mask")
    if isinstance(attention, list) and set(cast("list[Any]", attention)) == {1}:
        del row["attention_mask"]
    row |= {"context_ids": ids[:begin], "continuation_ids": ids[begin:]}
    return {**row, "continuation_mask": marks[begin:]}, f"input_ids+{key}"


def _find(values: Mapping[str, Any], names: tuple[str, ...]) -> str | None:
    """Return the one of these keys that the row has; None where it has none, or two of them."""
    found = [name for name in names if values.get(name) is not None]
    return found[0] if len(found) == 1 else None


def _read_list(values: Mapping[str, Any], key: str) -> list[Any]:
    """Return a list of numbers; a batch of one is what it holds."""
    value = values[key]
    if isinstance(value, list):
        listed = cast("list[Any]", value)
        if len(listed) == 1 and isinstance(listed[0], list):
            return cast("list[Any]", listed[0])
        if not any(isinstance(each, list) for each in listed):
            return listed
    raise Rejected("bad_ids", f"{key}: expected one list of numbers; write a row for each", value)


def _split_tokens(values: Mapping[str, Any]) -> tuple[list[Any], list[Any]]:
    tokens, length = _read_list(values, "tokens"), values["response_length"]
    if type(length) is not int or not 0 < length < len(tokens):
        expected = f"expected 1 to {len(tokens) - 1}, of {len(tokens)} tokens"
        raise Rejected("bad_ids", f"response_length: {expected}", length)
    return tokens[:-length], tokens[-length:]


def _check_mask(key: str, mask: list[Any]) -> None:
    if not is_mask(mask):
        raise Rejected("bad_ids", f"{key}: expected ones and zeros", mask)
    if 1 not in mask:
        raise Rejected("bad_ids", f"{key}: trains nothing; expected a token that is trained", mask)


def _read_mask(
    values: Mapping[str, Any], key: str, context: list[Any], ids: list[Any]
) -> list[Any]:
    """Return the mask of the response; one of the prompt too has zeros there."""
    mask = _read_list(values, key)
    _check_mask(key, mask)
    if len(mask) == len(context) + len(ids):
        if any(mask[: len(context)]):
            raise Rejected("bad_ids", f"{key}: trains a token of the prompt; expected zeros there")
        return mask[len(context) :]
    if len(mask) != len(ids):
        raise Rejected("bad_ids", f"{key}: {len(mask)} for {len(ids)} ids; expected as many", mask)
    return mask

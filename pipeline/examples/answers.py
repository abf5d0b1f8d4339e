"""What an example says the model should have emitted: one answer or several, as text, message or ids."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from pipeline.errors import Rejected
from pipeline.examples.fields import read_continuation, read_token_ids
from pipeline.types import Message

_Item = TypeVar("_Item")


@dataclass(frozen=True, slots=True)
class Answers:
    """What an example says the model should have emitted: ``first`` of it, and the other fields."""

    first: str | Message | None
    fields: dict[str, Any]

    @property
    def has_ids(self) -> bool:
        return self.fields.get("continuation_ids") is not None

    def expect_one(self) -> str | Message:
        """Return the continuation; empty where only its ids are given."""
        if self.first is None and not self.has_ids:
            raise Rejected(
                "missing_field", "continuation: missing; expected text or an assistant message"
            )
        return self.first or ""


def read_answers(values: Mapping[str, Any]) -> Answers:
    """Return the answers of an example in our own shape. Raises `Rejected`."""
    given = [
        name for name in ("continuation", "continuations", "chosen") if values.get(name) is not None
    ]
    if len(given) > 1:
        raise Rejected(
            "ambiguous_shape", f"found both {given[0]} and {given[1]}; expected one of them"
        )
    fields: dict[str, Any] = {
        name: read_token_ids(values[name], name)
        for name in ("context_ids", "continuation_ids")
        if values.get(name) is not None
    }
    if values.get("rejected") is not None:
        fields["rejected"] = read_continuation(values["rejected"], "rejected")
    if values.get("continuations_ids") is not None and given != ["continuations"]:
        raise Rejected(
            "ambiguous_shape", "continuations_ids: ids of several answers; expected continuations"
        )
    mask = read_mask(values, fields.get("continuation_ids"))
    if mask is not None:
        fields["continuation_mask"] = mask
    if not given:
        return Answers(None, fields)
    if given[0] != "continuations":
        answer = read_continuation(values[given[0]], given[0])
        if "rejected" in fields and _as_text(answer) == _as_text(fields["rejected"]):
            raise refuse_same_answers(answer)
        return Answers(answer, fields)
    several = _read_several(values, "continuations", read_continuation)
    if "rejected" in fields and _as_text(fields["rejected"]) in map(_as_text, several):
        raise refuse_same_answers(fields["rejected"])
    if values.get("continuations_ids") is not None:
        if "continuation_ids" in fields:
            raise Rejected("ambiguous_shape", "found both continuation_ids and continuations_ids")
        ids = _read_several(values, "continuations_ids", read_token_ids)
        if len(ids) != len(several):
            reason = f"continuations_ids: {len(ids)} lists for {len(several)} continuations"
            raise Rejected("bad_ids", f"{reason}; expected as many")
        fields["continuations_ids"] = ids
    return Answers(several[0], {**fields, "continuations": several})


def read_mask(values: Mapping[str, Any], ids: list[int] | None) -> list[int] | None:
    """Return the mask over the ids of a continuation; None where all of them are the model's.

    Raises `Rejected`: ``bad_ids``; ``ambiguous_shape`` beside text, which says the whole of it.
    """
    value = values.get("continuation_mask")
    if value is None:
        return None
    mask = cast("list[Any]", value) if isinstance(value, list) else []
    if ids is None or len(mask) != len(ids) or not is_mask(mask) or 1 not in mask:
        raise Rejected(
            "bad_ids",
            "continuation_mask: expected 1 or 0 for each of continuation_ids, and a 1 among them",
            value,
        )
    if 0 not in mask:
        return None
    texts = ("context", "messages", "continuation", "continuations", "chosen", "rejected")
    beside = next((name for name in texts if values.get(name) is not None), None)
    if beside is not None or values.get("context_ids") is None:
        raise Rejected(
            "ambiguous_shape",
            "continuation_mask: leaves some of continuation_ids out, so each run of ones has a "
            f"context of its own; expected context_ids and no {beside or 'text'} beside them",
        )
    return [int(each) for each in mask]


def is_mask(mask: list[Any]) -> bool:
    """Say whether a list has nothing but ones and zeros (or true and false)."""
    return all(isinstance(each, int) and each in (0, 1) for each in mask)


def _as_text(answer: str | Message) -> object:
    """Return the text of a plain answer in either form; any other as it is."""
    if isinstance(answer, dict) and answer.keys() == {"role", "content"}:
        return answer["content"]
    return answer


def _read_several(
    values: Mapping[str, Any], name: str, read: Callable[[Any, str], _Item]
) -> list[_Item]:
    """Return a list whose items ``read`` checks, each under its own name; at least one."""
    listed = values[name]
    if not isinstance(listed, list):
        raise Rejected("wrong_type", f"{name}: expected a list", listed)
    if not listed:
        raise Rejected("empty_continuation", f"{name}: the list is empty; expected at least one")
    items = cast("list[Any]", listed)
    return [read(item, f"{name}[{index}]") for index, item in enumerate(items)]


def refuse_same_answers(answer: object) -> Rejected:
    """Return the reject of an example whose two answers are one."""
    return Rejected(
        "ambiguous_shape",
        "rejected: the same as the better continuation, so that neither is to be trained; "
        "expected two answers, or one of them",
        answer,
    )

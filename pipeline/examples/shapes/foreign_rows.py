"""Rows that no shape reads as they stand -> the same rows in a spelling that one does.

A row is respelled only where it was refused as it stands, so that no other row changes. What it is
called then (``conversation as sharegpt``) is counted in the summary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple, cast

from pipeline.errors import Rejected
from pipeline.examples.fields import read_json
from pipeline.examples.foreign_turns import ENDINGS, name_spelling, respell_turn, respell_turns
from pipeline.examples.said import is_list_of_objects, looks_like_messages
from pipeline.examples.shapes.foreign_calls import read_contents, wrap_call
from pipeline.examples.shapes.rollouts import respell_rollout


class Respelled(NamedTuple):
    """A row in our spelling, and the keys by which it was told."""

    values: Mapping[str, Any]
    keys: str


_TURNS: Final = ("messages", "prompt", "context", "completion", "chosen", "rejected")
_TALKS: Final = ("chat", "dialog", "dialogue", "turns", "traj")
_HOLDERS: Final = ("request", "response", "body")
_CALLS: Final = frozenset({"request", "output", "answer"})
"""Keys by which a row that has a shape, but was refused, may be a call under other names."""


def respell_row(
    values: Mapping[str, Any], has_shape: Callable[[Mapping[str, Any]], object]
) -> Respelled | None:
    """Return a row that was refused in our spelling, or None where nothing of it is foreign.

    Raises `Rejected` for turns that are foreign and lossy.
    """
    keys = ""
    rollout = respell_rollout(values)
    if rollout is not None:
        return Respelled(*rollout)
    found = None if has_shape(values) else _rename_turns(values)
    if found is None and (not has_shape(values) or _CALLS.intersection(values)):
        call = wrap_call(values)
        found = None if call is None else Respelled(*call)
    if found is not None:
        values, keys = found
    turned = _respell_turns(values, "")
    if turned is not None:
        values, keys = turned.values, keys or turned.keys
    return Respelled(values, keys) if keys else None


def _rename_turns(values: Mapping[str, Any]) -> Respelled | None:
    """Return the row of a list of turns under another name.

    ``conversation`` (WildChat, LMSYS-Chat-1M); ``contents`` (Gemini's tuning files); a name of a talk,
    where what it has are messages as they stand.
    """
    talks = [key for key in _TALKS if looks_like_messages(values.get(key))]
    if len(talks) == 1:
        renamed = {key: value for key, value in values.items() if key != talks[0]}
        return Respelled({**renamed, "messages": values[talks[0]]}, talks[0])
    if is_list_of_objects(values.get("conversation")):
        renamed = {key: value for key, value in values.items() if key != "conversation"}
        return Respelled({**renamed, "conversations": values["conversation"]}, "conversation")
    messages = read_contents(values, "")
    return None if messages is None else Respelled(messages, "contents")


def _respell_turns(values: Mapping[str, Any], path: str) -> Respelled | None:
    """Return a row with its foreign messages in OpenAI's spelling, at each place that has messages."""
    changed: dict[str, Any] = {}
    spelling = ""
    for key in _TURNS:
        turns = _turns_in(values.get(key))
        told = next(filter(None, map(name_spelling, turns or ())), "")
        if turns is not None and told:
            spelling = spelling or told
            changed[key] = respell_turns(turns, f"{path}{key}")
    choices = values.get("choices")
    if is_list_of_objects(choices):
        messages = [dict.get(each, "message") for each in cast("list[dict[str, Any]]", choices)]
        told = next(filter(None, map(name_spelling, messages)), "")
        if told:
            spelling = spelling or told
            changed["choices"] = [
                _respell_choice(each, f"{path}choices[{index}].message")
                for index, each in enumerate(cast("list[dict[str, Any]]", choices))
            ]
    for key in _HOLDERS:
        held = values.get(key)
        if isinstance(held, dict):
            inner = _respell_turns(cast("dict[str, Any]", held), f"{path}{key}.")
            if inner is not None:
                changed[key] = inner.values
                spelling = spelling or inner.keys
    return Respelled({**values, **changed}, spelling) if changed else None


def _respell_choice(choice: dict[str, Any], name: str) -> dict[str, Any]:
    """Return a choice with its message in OpenAI's spelling, and how the answer ended beside it."""
    turn = dict.get(choice, "message")
    if not name_spelling(turn):
        return choice
    messages = respell_turn(turn, name)
    if len(messages) != 1:
        raise Rejected("unsupported_content", f"{name}: more than one message", turn)
    ended = {key: messages[0].pop(key) for key in ENDINGS if key in messages[0]}
    return {**ended, **choice, "message": messages[0]}


def _turns_in(value: Any) -> list[Any] | None:
    if isinstance(value, str):
        try:
            value = read_json(value, "")
        except Rejected:
            return None
    return cast("list[Any]", value) if is_list_of_objects(value) else None

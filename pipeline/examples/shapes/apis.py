"""Which API a call went to, where that is not chat completions: told by the forms that it alone has.

Logs keep the calls of every API under the same keys (``request`` and ``response``), so those of
OpenAI's Responses API are told by their items, and those of Anthropic's Messages API by their blocks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final, cast

from pipeline.errors import Rejected
from pipeline.examples.outcomes import refuse_outcome
from pipeline.examples.shapes.record import Row, is_list_of_objects

RESPONSES: Final = "items of the Responses API"
ANTHROPIC: Final = "blocks of the Messages API"
"""What stands among the keys of a row whose request or answer has one of these forms."""

# Where logs and files of batches keep what was sent and what came back; () is the row itself.
_REQUESTS: Final = (("request", "body"), ("request",), ("body",), ("params",), ())
_ANSWERS: Final = (("response", "body"), ("response",), ("result", "message"), ())

_ITEMS: Final = frozenset(
    {"message", "reasoning", "function_call", "function_call_output", "item_reference"}
)
_BLOCKS: Final = frozenset({"tool_use", "tool_result", "redacted_thinking"})


def name_api(values: Mapping[str, Any]) -> str:
    """Return `RESPONSES` or `ANTHROPIC` where the call of a row has that form, else empty text.

    A message that any chat API may have is no sign of Anthropic's: a thinking block is one with its
    signature, and tools are none.

    >>> name_api({"input": "2+2?", "output": [{"type": "message", "role": "assistant"}]})
    'items of the Responses API'
    >>> name_api({"request": {"messages": []}, "response": {"content": [], "stop_reason": "end_turn"}})
    'blocks of the Messages API'
    """
    for answer in _holders(values, _ANSWERS):
        if answer.get("choices") is not None:
            return ""
        if _is_list_of_items(answer.get("output")):
            return RESPONSES
        if answer is not values and answer.get("object") == "response":
            return RESPONSES
        is_message = answer.get("role") == "assistant" or answer.get("type") == "message"
        if isinstance(answer.get("content"), list) and (
            is_message or (answer is not values and "stop_reason" in answer)
        ):
            return ANTHROPIC
    for request in _holders(values, _REQUESTS):
        if _has_blocks(request.get("messages")):
            return ANTHROPIC
    items = values.get("input")
    return RESPONSES if _is_list_of_items(items) and values.get("output") is None else ""


def find_request(row: Row, name: str) -> Row:
    """Return the object that was sent: the first that has a ``name`` (``input``, ``messages``).

    Raises `Rejected` (``missing_field``) where none has.
    """
    for place in _REQUESTS:
        found = _follow(row, place)
        if found is not None and found.peek(name) is not None:
            return found
    raise Rejected(
        "missing_field",
        f"{name}: missing; expected the request beside its answer: a batch output line has none, "
        "join it with its input line by custom_id",
        sorted(row),
    )


def find_answer(row: Row, name: str) -> Row | None:
    """Return the object that came back: the first that has a ``name``; None for a conversation alone.

    Raises `Rejected` (``missing_field``) for a call that failed, and for one whose answer has none.
    """
    for name_ in ("error", "status_code"):
        refuse_outcome(name_, name_, row.get(name_))
    if isinstance(row.peek("result"), dict):
        kind = _part(row, "result").get("type")
        if kind not in (None, "succeeded"):
            raise Rejected(
                "missing_field", "result.type: the call failed, so there is no answer", kind
            )
    if isinstance(row.peek("response"), dict):
        response = _part(row, "response")
        for name_ in ("error", "status_code"):
            refuse_outcome(f"response.{name_}", name_, response.get(name_))
    for place in _ANSWERS:
        found = _follow(row, place)
        if found is not None and found.peek(name) is not None:
            refuse_outcome(f"{found.path}error", "error", found.get("error"))
            return found
    for key in ("response", "result"):
        if row.peek(key) is not None:
            raise Rejected(
                "missing_field", f"{key}.{name}: missing; expected what the model said", row[key]
            )
    return None


def _holders(
    values: Mapping[str, Any], places: tuple[tuple[str, ...], ...]
) -> Iterator[Mapping[str, Any]]:
    for place in places:
        value: Any = values
        for name in place:
            value = value.get(name) if isinstance(value, Mapping) else None
        if isinstance(value, Mapping):
            yield cast("Mapping[str, Any]", value)


def _follow(row: Row, place: tuple[str, ...]) -> Row | None:
    """Return the object at a place, tracked; one that a key leads to is tracked once."""
    found = row
    for name in place:
        if not isinstance(found.peek(name), dict):
            return None
        found = _part(found, name)
    return found


def _part(row: Row, name: str) -> Row:
    path = f"{row.path}{name}."
    known = next((part for part in row.parts if part.path == path), None)
    return known or row.part(row[name], path)


def _is_list_of_items(value: Any) -> bool:
    """Say whether a value is a list of items, at least one of a type that only items have."""
    if not is_list_of_objects(value):
        return False
    items = cast("list[dict[str, Any]]", value)
    kinds = [item.get("type") for item in items]
    return any(isinstance(kind, str) and kind in _ITEMS for kind in kinds) and all(
        isinstance(kind, str) or "role" in item for kind, item in zip(kinds, items, strict=True)
    )


def _has_blocks(messages: Any) -> bool:
    """Say whether a message has a block that only Anthropic's API has."""
    if not isinstance(messages, list):
        return False
    for message in cast("list[Any]", messages):
        content = dict.get(message, "content") if type(message) is dict else None
        if type(content) is not list:
            continue
        for block in cast("list[Any]", content):
            if type(block) is dict:
                kind = dict.get(block, "type")
                if isinstance(kind, str) and kind in _BLOCKS:
                    return True
                if kind == "thinking" and dict.get(block, "signature") is not None:
                    return True
    return False

"""Which message a template fails on, and why, where its own words are only Python's."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final, cast

from pipeline.answer.stage import ARGUMENT_FORMS, CONTENT_FORMS, USER, Stage
from pipeline.errors import Rejected
from pipeline.prompt.chat_template import ChatTemplates
from pipeline.prompt.request import ChatRequest, Dialect
from pipeline.types import Message

# Words of Python's errors; what a template raises by itself says what it wants.
_PYTHON: Final = re.compile(
    r"can only concatenate|has no (?:attribute|element|len)|object is not|object of type|"
    r"unsupported operand|must be str|\bNoneType\b|Can only get item pairs"
)
# A longer conversation is not searched: each message may cost a render.
_MOST_MESSAGES: Final = 64


def explain_refusal(
    error: Rejected, request: ChatRequest, dialect: Dialect, templates: ChatTemplates
) -> Rejected:
    """Return the refusal with the message and the field that the template fails on, and what to do.

    ``error`` is what `Dialect.render_prompt` raised for ``request``; it is returned as it is where
    it says enough, or where no message can be named.
    """
    if error.code != "template_refused" or not _PYTHON.search(error.reason):
        return error
    index = _find_message(error, request, dialect, templates)
    if index is None:
        return error
    place = _describe_fault(request.messages[index], f"messages[{index}]", dialect, templates)
    return Rejected(
        error.code,
        f"{error.reason}: at {place}; the server fails on it alike: give a chat_template that takes "
        "it, as it is served, or leave the row out",
        request.messages[index],
    )


def _find_message(
    error: Rejected, request: ChatRequest, dialect: Dialect, templates: ChatTemplates
) -> int | None:
    """Return the first message with which the conversation so far fails in the same words."""
    if len(request.messages) > _MOST_MESSAGES:
        return None
    for count in range(1, len(request.messages) + 1):
        try:
            dialect.render_turn(replace(request, messages=request.messages[:count]), templates)
        except Rejected as found:
            if found.reason == error.reason:
                return count - 1
    return None


def _describe_fault(
    message: Message, where: str, dialect: Dialect, templates: ChatTemplates
) -> str:
    calls: Any = message.get("tool_calls")
    if calls and _takes_text_arguments(dialect, templates):
        return (
            f"{where}.tool_calls[0].function.arguments, which the template takes as JSON text only, "
            "and gets as an object"
        )
    content = message.get("content")
    kind = "null" if content is None else "text" if isinstance(content, str) else "parts"
    more = [
        f"content {kind}",
        *(name for name in ("tool_calls", "reasoning_content") if message.get(name)),
    ]
    return f"{where} ({message.get('role')} with {', '.join(more)})"


def _takes_text_arguments(dialect: Dialect, templates: ChatTemplates) -> bool:
    """Say whether a call is rendered with its arguments as JSON text, and refused as an object."""
    from pipeline.prompt.plain import PlainDialect

    day: Any = getattr(cast("Any", dialect), "fixed_date", None)
    stage = Stage(PlainDialect(day), templates, {}, has_tools=True)
    user: Mapping[str, Any] = stage.say("user", USER)
    taken = [
        any(stage.turn(dict(user), stage.call(content, arguments)) for content in CONTENT_FORMS)
        for arguments in ARGUMENT_FORMS
    ]
    return taken == [False, True]

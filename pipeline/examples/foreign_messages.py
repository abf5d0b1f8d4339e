"""Messages of other frameworks: what a server would read as an empty turn, or as none, is refused.

A server takes ``role``, ``content``, ``tool_calls`` and reasoning from a message and passes over
the rest (vLLM 0.33.0, ``vllm/renderers/chat_utils/chat_message.py``:
``parse_chat_message_content``). The text of a message that keeps it under another name never
reaches the prompt, and that of a role that the template does not know may not either. Every shape
reads its messages through `check_message`; what only the template can tell is asked of
`check_roles`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from functools import lru_cache
from typing import Any, Final, cast

from pipeline.errors import Rejected
from pipeline.types import Message

SERVER_ROLES: Final = frozenset(
    {"system", "developer", "user", "assistant", "tool", "function", "ipython"}
)
"""Roles of OpenAI's API, and Llama's name for the role tool: what a template makes of one that it
does not know is the server's business, and flagged where the text is left out."""

REASONING_KEYS: Final = ("reasoning", "reasoning_content", "thinking")

# Names below that some public chat template asks for: whether the one in use does, it says itself.
_TEMPLATE_ROLES: Final = frozenset(
    {
        *("tool_results", "tool_result", "tool_calls", "tool_call", "tool_response", "tools"),
        *("assistant_tool_call", "environment", "observation", "model", "chatbot"),
    }
)
ROLE_NAMES: Final[Mapping[str, str]] = {
    **{role: role for role in ("system", "developer", "user", "assistant", "tool")},
    **dict.fromkeys(
        ("human", "humanmessage", "humanmessagechunk", "prompter", "usermessage"), "user"
    ),
    **dict.fromkeys(
        (
            *("gpt", "chatgpt", "gpt4", "bot", "ai", "aimessage", "aimessagechunk", "model"),
            *("chatbot", "llm", "modelmessage", "assistantmessage", "claude", "gemini", "bard"),
            *("bing", "toolcall", "functioncall"),
        ),
        "assistant",
    ),
    **dict.fromkeys(
        (
            *("toolresponse", "toolresult", "toolmessage", "tooloutput", "observation"),
            *("functionresponse", "functionresult", "functionoutput"),
        ),
        "tool",
    ),
    **dict.fromkeys(("systemmessage", "systemprompt"), "system"),
}
"""What others call the roles, bare of case, spaces and signs: names that mean one role alone."""

# Names that most likely mean a role, so that a refusal can name it.
_MEANT: Final[Mapping[str, str]] = {
    **{role: role for role in SERVER_ROLES},
    **ROLE_NAMES,
    **dict.fromkeys(
        (
            *("person", "customer", "client", "visitor", "userinput", "question", "enduser"),
            *("student", "users", "input", "prompt", "query", "instruction", "me", "you"),
        ),
        "user",
    ),
    **dict.fromkeys(
        (
            *("agent", "answer", "response", "output", "completion", "assistants", "lm"),
            *("toolcalls", "assistanttoolcall", "action", "tooluse"),
        ),
        "assistant",
    ),
    **dict.fromkeys(
        (
            *("toolresults", "tools", "obs", "environment", "functioncalloutput"),
            *("functionmessage", "result", "toolreturn"),
        ),
        "tool",
    ),
    **dict.fromkeys(
        (
            *("sys", "instructions", "systeminstruction", "developermessage", "preamble"),
            "systeminstructions",
        ),
        "system",
    ),
}
_COMMON_KEYS: Final = frozenset(
    {
        *("role", "content", "tool_calls", "tool_call_id", "name", "weight", "train", "loss"),
        *("task", "tools", *REASONING_KEYS),
    }
)
# OpenAI's own fields of an answer, which no server puts into a prompt.
_SAID_OTHERWISE: Final = frozenset({"refusal", "audio"})
# Beside an empty content these name, date and count a message; they say nothing.
_BOOKKEEPING: Final = frozenset(
    {
        *("id", "uuid", "_id", "message_id", "parent_id", "conversation_id", "tool_name", "model"),
        *("timestamp", "created_at", "createdAt", "created", "updated_at", "date", "time", "ts"),
        *("finish_reason", "stop_reason", "status", "state", "usage", "metadata", "annotations"),
        *("index", "type", "object", "cache_control", "phase", "logprobs", "lang", "language"),
        *("recipient", "channel", "source", "provider", "agent", *_SAID_OTHERWISE),
    }
)
# Calls and results under the names that other frameworks give them.
_FOREIGN_CALLS: Final = frozenset(
    {
        *("toolInvocations", "tool_invocations", "toolCalls", "toolCall", "tool_call", "tool_uses"),
        *("tool_use", "functionCall", "functionCalls", "function_calls", "function_response"),
        *("functionResponse", "toolResults", "tool_results", "toolResult", "tool_responses"),
        *("invalid_tool_calls",),
    }
)
TEXT_KEYS: Final = ("content", "value", "text", "message")
"""Keys under which one tool or another keeps what was said."""
_FOREIGN_PARTS: Final = frozenset(
    {"tool-call", "tool-result", "tool_call", "tool_call_response", "dynamic-tool"}
)
_TEXT_PARTS: Final = frozenset({"text", "input_text", "output_text"})
_PART_BOOKKEEPING: Final = frozenset(
    {"type", "text", "id", "cache_control", "annotations", "index"}
)


def check_message(message: Mapping[str, Any], where: str) -> None:
    """Refuse a message whose text or calls a server would not see.

    Raises `Rejected`: ``missing_field`` where neither content nor calls nor reasoning is there but
    other keys are, ``wrong_type`` for a role or for calls under another framework's name.

    >>> check_message({"role": "user", "content": "Hello"}, "messages[0]")
    """
    content = message.get("content")
    role = message.get("role")
    if role is None and content is not None:
        raise Rejected(
            "missing_field",
            f"{where} has no 'role', and no server reads its other keys ({_list_keys(sorted(message))}); "
            "expected system, user, assistant or tool",
            message,
        )
    if isinstance(role, str) and role not in SERVER_ROLES:
        _check_foreign_role(role, f"{where}.role")
    if isinstance(content, list):
        for index, part in enumerate(cast("list[Any]", content)):
            if isinstance(part, Mapping):
                _check_part(cast("Mapping[str, Any]", part), f"{where}.content[{index}]")
    if message.keys() <= _COMMON_KEYS:
        return
    calls = message.get("tool_calls")
    foreign = sorted(key for key in _FOREIGN_CALLS & message.keys() if _says(message[key]))
    foreign += ["parts"] if holds_foreign_part(message) else []
    if foreign and not calls:
        raise Rejected(
            "wrong_type",
            f"{where}.{foreign[0]}: calls or results of a tool under another framework's name, which "
            "no server reads; expected tool_calls, and results in messages of role tool",
            message[foreign[0]],
        )
    if calls or any(message.get(key) for key in REASONING_KEYS):
        return
    if content is None:
        passed = _COMMON_KEYS | _SAID_OTHERWISE
        said = sorted(key for key in message if key not in passed and _says(message[key]))
        kind = "missing"
    elif content == [] or (isinstance(content, str) and not content.strip()):
        passed = _COMMON_KEYS | _BOOKKEEPING
        said = sorted(key for key in message if key not in passed and _says(message[key]))
        kind = "empty"
    else:
        return
    if said:
        raise Rejected(
            "missing_field",
            f"{where}.content: {kind}, and no server reads its other keys ({_list_keys(said)}); "
            "expected what was said in content",
            message[said[0]],
        )


def is_foreign_part(part: Any) -> bool:
    """Say whether a part of a content is a call, or the result of one, in another framework's spelling."""
    if not isinstance(part, Mapping):
        return False
    fields = cast("Mapping[str, Any]", part)
    kind = fields.get("type")
    return isinstance(kind, str) and (kind in _FOREIGN_PARTS or kind.startswith("tool-"))


def holds_foreign_part(message: Mapping[str, Any]) -> bool:
    """Say whether the ``parts`` of a message hold a call or a result."""
    parts = message.get("parts")
    return isinstance(parts, list) and any(map(is_foreign_part, cast("list[Any]", parts)))


def knows_roles(messages: Sequence[object]) -> bool:
    """Say whether every message is an object with a role that servers know."""
    try:
        return {cast("Message", message)["role"] for message in messages} <= SERVER_ROLES
    except (KeyError, TypeError):
        # No object, no role, or a role that is no text: the dialect says it in its own words.
        return False


def check_roles(messages: Sequence[object], template: str) -> list[int]:
    """Refuse a role that stands for another and that ``template`` does not ask for by name.

    Returns the places of the other roles that no server and no template knows: they are right only
    where the template shows their text. Raises `Rejected` (``wrong_type``).
    """
    unknown: list[int] = []
    for index, message in enumerate(messages):
        role = (
            cast("Mapping[str, Any]", message).get("role") if isinstance(message, Mapping) else None
        )
        if not isinstance(role, str) or role in SERVER_ROLES:
            continue
        if role not in _named_roles(template):
            if bare_role(role) in _MEANT:
                raise refuse_role(role, f"messages[{index}].role")
            unknown.append(index)
    return unknown


def refuse_role(role: str, where: str) -> Rejected:
    """Return the refusal of a role, with the nearest one that a server knows."""
    known = sorted(SERVER_ROLES)
    near = _MEANT.get(bare_role(role)) or next(
        iter(get_close_matches(role.casefold(), known, 1)), ""
    )
    hint = f"; rename it to {near}" if near else f"; expected one of {', '.join(known)}"
    return Rejected(
        "wrong_type", f"{where}: a role that neither the server nor this template knows{hint}", role
    )


def _check_foreign_role(role: str, where: str) -> None:
    """Refuse a role that no template asks for and that clearly stands for a known one."""
    if role not in _TEMPLATE_ROLES and bare_role(role) in _MEANT:
        raise refuse_role(role, where)


def _check_part(part: Mapping[str, Any], where: str) -> None:
    """Refuse a part of text that keeps its text under another key, and a foreign call."""
    kind = part.get("type")
    if is_foreign_part(part):
        raise Rejected(
            "wrong_type",
            f"{where}: a call or a result as a part, which no server reads; expected tool_calls, and "
            "results in messages of role tool",
            part,
        )
    if not isinstance(kind, str) or kind not in _TEXT_PARTS or part.get("text"):
        return
    said = sorted(key for key in part if key not in _PART_BOOKKEEPING and _says(part[key]))
    if said:
        raise Rejected(
            "missing_field",
            f"{where}.text: missing, and no server reads its other keys ({_list_keys(said)}); "
            "expected what was said in text",
            part[said[0]],
        )


def _says(value: object) -> bool:
    """Say whether a value holds any text, at any depth."""
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, str):
            if item.strip():
                return True
        elif isinstance(item, Mapping):
            waiting += cast("Mapping[object, object]", item).values()
        elif isinstance(item, list):
            waiting += cast("list[object]", item)
    return False


def _list_keys(keys: Sequence[str]) -> str:
    shown = ", ".join(key[:40] for key in keys[:8])
    return f"{shown}, ..." if len(keys) > 8 else shown


def bare_role(role: str) -> str:
    """Return a role without case, spaces and signs.

    >>> bare_role("Tool-Response ")
    'toolresponse'
    """
    return re.sub(r"[\W_]+", "", role.casefold())


@lru_cache(maxsize=16)
def _named_roles(template: str) -> frozenset[str]:
    """Return the roles that a template compares a message's role with.

    >>> sorted(_named_roles("{% if message['role'] == 'critic' or m.role in ['a', 'b'] %}"))
    ['a', 'b', 'critic']
    """
    lists = re.findall(
        r"role['\"\]\)]*\s*(?:==|!=|in)\s*(\[[^\]]*\]|\([^)]*\)|'[^']*'|\"[^\"]*\")", template
    )
    return frozenset(name for each in lists for name in re.findall(r"['\"]([^'\"]*)['\"]", each))

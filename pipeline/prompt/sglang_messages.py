"""How SGLang 0.5.23 rewrites messages and tools before the template sees them.

Its request models (``entrypoints/openai/protocol.py``) write every field that they declare, in the
order in which they declare them, and drop the others.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pipeline.errors import Rejected
from pipeline.prompt.request import (
    expect_list,
    expect_object,
    expect_text,
    iterate_messages,
    optional_flag,
    optional_text,
    refuse_part,
    refuse_type,
    require,
)
from pipeline.prompt.sglang_schemas import rewrite_schema
from pipeline.prompt.template_facts import ContentForm

Conversation = list[dict[str, Any]]

_ROLES = ("system", "assistant", "tool", "function", "developer", "latest_reminder", "root")
# Roles whose messages may bring tools that the request is checked for.
_TOOL_BRINGERS = ("root", "system", "developer")
_MEDIA_PARTS = ("image_url", "video_url", "audio_url", "input_audio")


def rewrite_messages(messages: object, form: ContentForm) -> Conversation:
    """Return the conversation as the template gets it; ``messages`` stays as it is.

    A user message keeps its content alone. Other roles are put in lower case and keep the fields of
    SGLang's model that are not null: a ``name``, but no ``reasoning`` (only ``reasoning_content``).

    SGLang 0.5.23, ``entrypoints/openai/protocol.py``: ``ChatCompletionMessageGenericParam``,
    ``ChatCompletionMessageUserParam``.
    """
    return [
        _rewrite_user(message, where, form)
        if role == "user"
        else _rewrite_other(message, role.lower(), where, form)
        for where, role, message in iterate_messages(messages)
    ]


def _rewrite_user(message: Mapping[str, Any], where: str, form: ContentForm) -> dict[str, Any]:
    require(message, "content", where)
    return {"role": "user", "content": rewrite_content(message, "user", where, form)}


def _rewrite_other(
    message: Mapping[str, Any], role: str, where: str, form: ContentForm
) -> dict[str, Any]:
    if role not in _ROLES:
        raise Rejected("server_refused", f"{where}.role: SGLang knows no such role", role)
    if optional_flag(message, "prefix", where):
        raise Rejected(
            "server_refused", f"{where}: a prefix to be continued is not reproduced here"
        )
    calls, tools = message.get("tool_calls"), message.get("tools")
    fields: dict[str, Any] = {
        "role": role,
        "content": rewrite_content(message, role, where, form),
        "tool_call_id": optional_text(message, "tool_call_id", where),
        "name": optional_text(message, "name", where),
        "phase": optional_text(message, "phase", where),
        "reasoning_content": optional_text(message, "reasoning_content", where),
        "tool_calls": None
        if calls is None
        else dump_tool_calls(calls, role, f"{where}.tool_calls"),
        "tools": None
        if tools is None
        else _dump_tool_list(tools, f"{where}.tools", validated=role in _TOOL_BRINGERS),
        "prefix": message.get("prefix"),
    }
    if fields["phase"] not in (None, "commentary", "final_answer"):
        raise Rejected(
            "server_refused", f"{where}.phase: SGLang knows no such phase", fields["phase"]
        )
    kept = {key: value for key, value in fields.items() if value is not None}
    if isinstance(message.get("content"), list | tuple) and form == "openai":
        # SGLang builds this form's message from the other keys, then adds the content.
        kept["content"] = kept.pop("content")
    return kept


def rewrite_content(
    message: Mapping[str, Any], role: str, where: str, form: ContentForm
) -> str | list[dict[str, Any]]:
    """Return the content in the form that the template takes.

    Text stays text in both forms; null becomes empty text. ``string``: text parts joined by one
    space. ``openai``: a list of parts, but a tool's text parts are joined by one space.

    SGLang 0.5.23, ``parser/jinja_template_utils.py``: ``process_content_for_template_format``;
    ``entrypoints/openai/serving_chat.py``: ``normalize_tool_content``.
    """
    content = message.get("content")
    if content is None or isinstance(content, str):
        return content or ""
    items = expect_list(content, f"{where}.content")
    read = [read_part(item, role, f"{where}.content[{at}]") for at, item in enumerate(items)]
    parts = [part for part in read if part is not None]
    texts = [part["text"] for part in parts if part["type"] == "text"]
    if form == "string" or (role == "tool" and len(texts) == len(parts)):
        return " ".join(texts)
    return parts


def read_part(item: object, role: str, where: str) -> dict[str, Any] | None:
    """Return a text part or a tool reference; None for an assistant's thinking, which is dropped.

    SGLang 0.5.23, ``entrypoints/openai/protocol.py``: ``ChatCompletionMessageContentPart``.
    """
    part = expect_object(item, where)
    kind = expect_text(require(part, "type", where), f"{where}.type")
    if kind in _MEDIA_PARTS:
        refuse_part(kind, where)
    if kind == "text":
        return {"type": "text", "text": expect_text(require(part, "text", where), f"{where}.text")}
    if kind == "tool_reference":
        return {"type": kind, "name": expect_text(require(part, "name", where), f"{where}.name")}
    if kind in ("thinking", "reasoning") and role == "assistant":
        if (part.get("thinking") is None) == (part.get("text") is None):
            raise Rejected("server_refused", f"{where}: expected either 'thinking' or 'text'", part)
        return None
    raise Rejected("server_refused", f"{where}: SGLang takes no part of type {kind!r} here", part)


def dump_tool_calls(calls: object, role: str, where: str) -> list[dict[str, Any]]:
    """Return the calls as SGLang's model writes them: id, index, type, function {name, arguments}.

    What is absent is written as null. An assistant's arguments are parsed, and refused where they
    are no JSON object.

    SGLang 0.5.23, ``entrypoints/openai/protocol.py``: ``ToolCall``, ``FunctionResponse``;
    ``entrypoints/openai/serving_chat.py``: ``normalize_assistant_tool_call_arguments``.
    """
    dumped: list[dict[str, Any]] = []
    for index, item in enumerate(expect_list(calls, where)):
        at = f"{where}[{index}]"
        call = expect_object(item, at)
        kind = optional_text(call, "type", at) or "function"
        if kind != "function":
            raise Rejected(
                "server_refused", f"{at}: SGLang takes calls of type 'function' only", item
            )
        position = call.get("index")
        if position is not None and (isinstance(position, bool) or not isinstance(position, int)):
            refuse_type(position, f"{at}.index", "a whole number")
        function = expect_object(require(call, "function", at), f"{at}.function")
        arguments = function.get("arguments")
        if isinstance(arguments, str):
            if role == "assistant":
                arguments = parse_arguments(arguments, f"{at}.function.arguments")
        elif arguments is not None:
            arguments = dict(expect_object(arguments, f"{at}.function.arguments"))
        dumped.append(
            {
                "id": optional_text(call, "id", at),
                "index": position,
                "type": kind,
                "function": {
                    "name": optional_text(function, "name", f"{at}.function"),
                    "arguments": arguments,
                },
            }
        )
    return dumped


def parse_arguments(text: str, where: str) -> dict[str, Any]:
    """Return a call's arguments as an object; raises `Rejected` where they are none.

    SGLang parses with orjson: no NaN or Infinity, and integers beyond 64 bits become floats.

    SGLang 0.5.23, ``entrypoints/openai/serving_chat.py``: ``parse_tool_call_arguments``.
    """
    try:
        parsed = json.loads(text, parse_int=_read_int, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise Rejected("server_refused", f"{where} must be valid JSON", text) from error
    if not isinstance(parsed, dict):
        raise Rejected("server_refused", f"{where} must be a JSON object", text)
    return parsed


def _read_int(digits: str) -> int | float:
    as_float = float(digits)
    if abs(as_float) > 2**65:
        return as_float
    value = int(digits)
    return value if -(2**63) <= value < 2**64 else as_float


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON")


def dump_tools(tools: object) -> list[dict[str, Any]] | None:
    """Return the tools as SGLang's model writes them out; None for no tool.

    The client's order of keys inside ``function``; a missing description, then missing parameters,
    are appended as null; the schema's types by JSON Schema's names; ``strict`` and
    ``defer_loading`` only where given; every tool ends with ``defer_loading``, null where it was
    not given.

    SGLang 0.5.23, ``entrypoints/openai/protocol.py``: ``Function``, ``Tool``.
    """
    return None if tools is None else _dump_tool_list(tools, "tools", validated=True) or None


def _dump_tool_list(tools: object, where: str, *, validated: bool) -> list[dict[str, Any]]:
    return [
        _dump_tool(tool, f"{where}[{at}]", validated)
        for at, tool in enumerate(expect_list(tools, where))
    ]


def _dump_tool(item: object, where: str, validated: bool) -> dict[str, Any]:
    tool = expect_object(item, where)
    at = f"{where}.function"
    given = expect_object(require(tool, "function", where), at)
    deferred = optional_flag(tool, "defer_loading", where)
    own_deferred = optional_flag(given, "defer_loading", at)
    declared: dict[str, Any] = {
        "description": optional_text(given, "description", at),
        "name": expect_text(require(given, "name", at), f"{at}.name"),
        "parameters": given.get("parameters"),
        "strict": optional_flag(given, "strict", at),
        "defer_loading": deferred if own_deferred is None else own_deferred,
    }
    if declared["parameters"] is not None:
        schema = expect_object(declared["parameters"], f"{at}.parameters")
        if validated:
            declared["parameters"] = rewrite_schema(schema, f"{at}.parameters")
    for key in ("strict", "defer_loading"):
        if declared[key] is None:
            del declared[key]
    function = {key: declared[key] for key in (*given, *declared) if key in declared}
    return {
        "type": optional_text(tool, "type", where) or "function",
        "function": function,
        "defer_loading": deferred,
    }


def check_tool_names(conversation: Conversation, tools: list[dict[str, Any]] | None) -> None:
    """Refuse a tool name that stands twice, where a system or developer message brings tools.

    SGLang 0.5.23, ``entrypoints/openai/serving_chat.py``: ``_validate_request``.
    """
    brought = [
        tool
        for message in conversation
        if message["role"] in _TOOL_BRINGERS
        for tool in message.get("tools", [])
    ]
    names = [tool["function"]["name"] for tool in [*(tools or []), *brought]]
    if brought and len(set(names)) < len(names):
        raise Rejected("server_refused", "SGLang takes no two tools of one name", names)

"""How vLLM writes tools and calls out for the template."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, cast

from pipeline.errors import Rejected
from pipeline.prompt.request import (
    expect_list,
    expect_object,
    expect_text,
    in_field_order,
    optional_flag,
    optional_text,
    refuse_type,
    require,
)
from pipeline.prompt.vllm_versions import VllmRules

Conversation = list[dict[str, Any]]

# The order in which the request's schema writes the keys of a call.
_CALL_FIELDS = ("id", "function", "type")
_CALL_FUNCTION_FIELDS = ("arguments", "name")
# The order in which the request's schema writes the keys of a developer's tool.
_DEVELOPER_TOOL_FIELDS = ("function", "type")
_DEVELOPER_FUNCTION_FIELDS = ("name", "description", "parameters", "strict")


def dump_tools(tools: object, rules: VllmRules) -> list[dict[str, Any]] | None:
    """Return the tools as vLLM's request model writes them out; None for no tool.

    Fixed order of keys, unknown keys dropped, a missing description or missing parameters written
    as null, ``strict`` and ``defer_loading`` only where given. Older versions keep unknown keys, after
    their own.

    vLLM 0.33.0, ``vllm/entrypoints/openai/chat_completion/protocol.py``: ``ChatCompletionToolsParam``;
    ``vllm/entrypoints/generate/base/protocol.py``: ``FunctionDefinition``.
    """
    if tools is None:
        return None
    return [
        _dump_tool(tool, f"tools[{index}]", rules)
        for index, tool in enumerate(expect_list(tools, "tools"))
    ] or None


def _dump_tool(item: object, where: str, rules: VllmRules) -> dict[str, Any]:
    tool = expect_object(item, where)
    kind = optional_text(tool, "type", where) or "function"
    if kind != "function":
        raise Rejected("server_refused", f"{where}: vLLM takes tools of type 'function' only", item)
    at = f"{where}.function"
    given = expect_object(require(tool, "function", where), at)
    parameters = given.get("parameters")
    function: dict[str, Any] = {
        "name": expect_text(require(given, "name", at), f"{at}.name"),
        "description": optional_text(given, "description", at),
        "parameters": None
        if parameters is None
        else dict(expect_object(parameters, f"{at}.parameters")),
    }
    deferred = own_deferred = strict = None
    if rules.declares_defer_loading:
        deferred = optional_flag(tool, "defer_loading", where)
        own_deferred = optional_flag(given, "defer_loading", at)
    if rules.declares_strict:
        strict = optional_flag(given, "strict", at)
    if strict is not None:
        function["strict"] = strict
    if own_deferred is not None or deferred is not None:
        function["defer_loading"] = deferred if own_deferred is None else own_deferred
    dumped: dict[str, Any] = {"type": kind, "function": function}
    if deferred is not None:
        dumped["defer_loading"] = deferred
    if not rules.drops_tool_fields:
        declared = {"strict"} if rules.declares_strict else set[str]()
        declared |= {"defer_loading"} if rules.declares_defer_loading else set()
        for target, source in ((function, given), (dumped, tool)):
            target |= {key: source[key] for key in source if key not in {*target, *declared}}
    return dumped


def order_developer_tools(tools: object, where: str) -> list[dict[str, Any]] | None:
    """Return a developer message's tools in the order of keys that the schema gives them.

    vLLM 0.33.0, ``vllm/renderers/chat_utils/types.py``: ``CustomChatCompletionMessageParam``.
    """
    if tools is None:
        return None
    ordered: list[dict[str, Any]] = []
    for index, item in enumerate(expect_list(tools, where)):
        tool = dict(expect_object(item, f"{where}[{index}]"))
        function = tool.get("function")
        if isinstance(function, Mapping):
            tool["function"] = in_field_order(function, _DEVELOPER_FUNCTION_FIELDS)
        elif function is not None:
            refuse_type(function, f"{where}[{index}].function", "an object")
        ordered.append(in_field_order(tool, _DEVELOPER_TOOL_FIELDS))
    return ordered


def rewrite_tool_calls(
    calls: Sequence[Any], where: str, rules: VllmRules
) -> tuple[list[dict[str, Any]], bool]:
    """Return the calls with keys in the schema's order and arguments as objects.

    The second value is True where arguments were lost. A call without an id stays without one.

    vLLM 0.33.0, ``chat_message.py``: ``_postprocess_messages``.
    """
    rewritten: list[dict[str, Any]] = []
    coerced = False
    for index, item in enumerate(calls):
        at = f"{where}[{index}]"
        call = dict(expect_object(item, at))
        kind = optional_text(call, "type", at) or "function"
        if kind != "function":
            raise Rejected(
                "server_refused", f"{at}: vLLM takes calls of type 'function' only", item
            )
        function = dict(expect_object(require(call, "function", at), f"{at}.function"))
        expect_text(require(function, "name", f"{at}.function"), f"{at}.function.name")
        function["arguments"], lost = read_arguments(
            function.get("arguments"), f"{at}.function.arguments", rules
        )
        coerced |= lost
        call |= {"type": kind, "function": in_field_order(function, _CALL_FUNCTION_FIELDS)}
        if optional_text(call, "id", at) is None:
            call.pop("id", None)
        rewritten.append(in_field_order(call, _CALL_FIELDS))
    return rewritten, coerced


def read_arguments(arguments: object, where: str, rules: VllmRules) -> tuple[Any, bool]:
    """Return a call's arguments as the template gets them, and whether something was thrown away.

    Nothing given (null, empty text) is an empty object; so is, with a loss, what is no JSON object.
    Older versions refuse what they cannot parse and hand on what is no object.

    vLLM 0.33.0, ``chat_message.py``: ``_postprocess_messages``.
    """
    if isinstance(arguments, Mapping):
        return dict(cast("Mapping[str, Any]", arguments)), False
    if (arguments is None or arguments == "") and rules.fills_missing_arguments:
        return {}, False
    try:
        parsed = json.loads(arguments) if isinstance(arguments, str) else arguments
    except (RecursionError, ValueError) as error:
        # Nesting or integers without end: the server fails on them with an internal error.
        if isinstance(error, json.JSONDecodeError) and rules.fills_broken_arguments:
            return {}, True
        raise Rejected("server_refused", f"{where} cannot be parsed: {error}", arguments) from error
    if isinstance(parsed, dict):
        return cast("dict[str, Any]", parsed), False
    if rules.fills_broken_arguments or (parsed is None and rules.fills_null_arguments):
        return {}, True
    if arguments is None:
        raise Rejected("server_refused", f"{where}: vLLM {rules.release} needs text", arguments)
    return parsed, False


def fill_call_ids(conversation: Conversation, filler: str) -> Conversation:
    """Return the conversation with ids made from ``filler`` for the calls that have none.

    vLLM's schema demands an id, so a client had one; rendering with two fillers shows whether the
    template lets it through.
    """
    filled: Conversation = []
    count = 0
    for message in conversation:
        calls: list[dict[str, Any]] = []
        for call in message.get("tool_calls", []):
            count += "id" not in call
            calls.append(call if "id" in call else {"id": f"{filler}{count:05d}", **call})
        filled.append(message | {"tool_calls": calls} if calls else message)
    return filled

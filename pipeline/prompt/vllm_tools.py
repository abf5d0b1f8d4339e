"""How vLLM 0.33.0 writes tools out for the template."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

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

# The order in which the request's schema writes the keys of a developer's tool.
_DEVELOPER_TOOL_FIELDS = ("function", "type")
_DEVELOPER_FUNCTION_FIELDS = ("name", "description", "parameters", "strict")


def dump_tools(tools: object) -> list[dict[str, Any]] | None:
    """Return the tools as vLLM's request model writes them out; None for no tool.

    Fixed order of keys, unknown keys dropped, a missing description or missing parameters written
    as null, ``strict`` and ``defer_loading`` only where given.

    vLLM 0.33.0, ``vllm/entrypoints/openai/chat_completion/protocol.py``: ``ChatCompletionToolsParam``;
    ``vllm/entrypoints/generate/base/protocol.py``: ``FunctionDefinition``.
    """
    if tools is None:
        return None
    return [
        _dump_tool(tool, f"tools[{index}]")
        for index, tool in enumerate(expect_list(tools, "tools"))
    ] or None


def _dump_tool(item: object, where: str) -> dict[str, Any]:
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
    deferred = optional_flag(tool, "defer_loading", where)
    own_deferred = optional_flag(given, "defer_loading", at)
    strict = optional_flag(given, "strict", at)
    if strict is not None:
        function["strict"] = strict
    if own_deferred is not None or deferred is not None:
        function["defer_loading"] = deferred if own_deferred is None else own_deferred
    dumped: dict[str, Any] = {"type": kind, "function": function}
    return dumped if deferred is None else dumped | {"defer_loading": deferred}


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

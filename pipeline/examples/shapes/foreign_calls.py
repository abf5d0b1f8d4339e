"""Logs of calls under other names: what was sent and what came back -> ``request`` and ``response``.

Sources: MLflow's traces (``request`` and ``response`` as JSON text, ``inputs`` and ``outputs`` of a
span); Weave's calls (``inputs``, ``output``); Langfuse's generations (``input``, ``output``);
LangSmith's runs (``generations``); OpenTelemetry's semantic conventions for generative AI
(``gen_ai.*``); OpenInference's (``llm.*``); Gemini's ``generateContent``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, cast

from pipeline.errors import Rejected
from pipeline.examples.fields import read_json
from pipeline.examples.foreign_turns import find_role, name_spelling
from pipeline.examples.said import is_list_of_objects
from pipeline.examples.shapes.record import read_function_tools, read_response
from pipeline.lines.known_keys import ANSWERS, BETTER, WORSE

_REQUESTS: Final = (
    *("request", "inputs", "input", "kwargs", "messages", "prompt", "prompt_messages"),
)
_ANSWERS: Final = ("response", "outputs", "output", "answer", "completion_message")
_BARE: Final = frozenset({"messages", "prompt", "prompt_messages"})
"""Requests that no server's log vouches for."""
_BARE_ANSWERS: Final = frozenset({"answer", "completion_message"})
"""Answers to these alone: beside what a tracer logs they are what an answer is measured by."""
_OTHERS: Final = frozenset({*BETTER, *WORSE, *ANSWERS, "decision_idx"})
"""Keys beside which a row is no log of a call."""
_ITEMS: Final = ("message", "reasoning", "function_call", "function_call_output")
"""Types of the items of OpenAI's Responses API, which are no messages."""

# Attributes of a span that hold the messages of its call, and those that came back.
_SPANS: Final = (
    ("gen_ai.input.messages", "gen_ai.output.messages"),
    ("gen_ai.prompt", "gen_ai.completion"),
    ("llm.input_messages", "llm.output_messages"),
)
_SPAN_TOOLS: Final = ("gen_ai.tool.definitions", "llm.tools", "llm.request.functions")
_MOST_DOTS: Final = 16
"""A name with more dots is none of a tracer's."""
_SYSTEM: Final = "gen_ai.system_instructions"


def wrap_call(values: Mapping[str, Any]) -> tuple[Mapping[str, Any], str] | None:
    """Return a row with its call as ``request`` and ``response``, and the keys that told it.

    None where it is no call under other names, or may be read in two ways.

    >>> wrap_call({"input": [{"role": "user", "content": "2+2?"}], "output": "4"})[1]
    'input+output'
    """
    span = _read_span(values)
    if span is not None:
        return span
    sent = [key for key in _REQUESTS if values.get(key) is not None]
    answered = [key for key in _ANSWERS if values.get(key) is not None]
    others = _OTHERS.difference(answered).intersection(values)
    if len(sent) != 1 or len(answered) != 1 or any(values[key] is not None for key in others):
        return None
    (asked,), (said,) = sent, answered
    if (said in _BARE_ANSWERS) > (asked in _BARE):
        return None
    request = _read_request(values[asked], asked)
    if request is None or (asked in _BARE and _is_answered(request)):
        return None
    is_json = isinstance(values[asked], str) and asked not in _BARE
    answer = _read_answer(values[said], said, is_json=is_json)
    if answer is None:
        return None
    if (asked, said) == ("request", "response") and (request, answer) == (
        values[asked],
        values[said],
    ):
        return None
    if values.get("exception") or values.get("level") == "ERROR":
        key = "exception" if values.get("exception") else "level"
        raise Rejected(
            "missing_field", f"{key}: the call failed, so there is no answer", values[key]
        )
    left = {key: value for key, value in values.items() if key not in (asked, said)}
    return {**left, "request": request, "response": answer}, f"{asked}+{said}"


def _is_answered(request: Mapping[str, Any]) -> bool:
    """Say whether the messages end with an answer already, so that another one is no answer to them."""
    messages: Any = request.get("messages")
    return is_list_of_objects(messages) and find_role(messages[-1]) == "assistant"


def _read_request(value: Any, key: str) -> dict[str, Any] | None:
    """Return what was sent, as an object with ``messages`` or ``prompt``."""
    if key == "prompt" and isinstance(value, str):
        return {"prompt": value}
    value = _parse(value)
    if isinstance(value, list):
        listed = cast("list[Any]", value)
        if len(listed) == 1 and is_list_of_objects(listed[0]):
            listed = cast("list[Any]", listed[0])
        if not is_list_of_objects(listed) or any(map(_is_item, listed)):
            return None
        return {"messages": listed}
    if not isinstance(value, dict):
        return None
    fields = cast("dict[str, Any]", value)
    if isinstance(fields.get("kwargs"), dict) and not fields.get("messages"):
        return _read_request(fields["kwargs"], f"{key}.kwargs")
    if fields.get("contents") is not None:
        return read_contents(fields, f"{key}.")
    if fields.get("messages") is not None:
        messages = _read_request(fields["messages"], f"{key}.messages")
        return None if messages is None else {**fields, **messages}
    return fields if fields.get("prompt") is not None else None


def read_contents(fields: Mapping[str, Any], key: str) -> dict[str, Any] | None:
    """Return a request of Gemini's with its ``contents`` as messages, the system text first.

    ``key`` stands before its keys in messages. None where it has no ``contents``.
    """
    if not is_list_of_objects(fields.get("contents")):
        return None
    for name in ("tools", "config", "cachedContent"):
        if fields.get(name):
            raise Rejected(
                "unsupported_content",
                f"{key}{name}: may hold tools in Gemini's form; expected tools as OpenAI has them",
                fields[name],
            )
    system = fields.get("systemInstruction", fields.get("system_instruction"))
    first: list[Any] = [] if system is None else [{**_as_object(system), "role": "system"}]
    left = ("contents", "systemInstruction", "system_instruction")
    others = {name: value for name, value in fields.items() if name not in left}
    return {**others, "messages": [*first, *fields["contents"]]}


def _read_answer(value: Any, key: str, *, is_json: bool) -> dict[str, Any] | str | None:
    """Return what came back: text, or an object with ``choices``; JSON text where the request is that."""
    if isinstance(value, str):
        parsed = _parse(value) if is_json else read_response(value) or value
        if isinstance(parsed, str):
            return parsed
        answer = _read_answer(parsed, key, is_json=False)
        if answer is None:
            raise Rejected(
                "ambiguous_shape",
                f"{key}: JSON that is no answer of a chat API: what the model said, or what a program "
                "made of it, cannot be told; expected choices, a message, or a JSON text",
                value,
            )
        return answer
    if isinstance(value, list):
        listed = cast("list[Any]", value)
        if len(listed) != 1 or not _is_message(listed[0]):
            return None
        return {"choices": [_as_choice(listed[0])]}
    if not isinstance(value, dict):
        return None
    fields = cast("dict[str, Any]", value)
    if fields.get("choices") is not None:
        return fields
    if is_list_of_objects(fields.get("candidates")):
        found = [_as_object(each.get("content")) for each in fields["candidates"]]
        ends = [
            each.get("finishReason", each.get("finish_reason")) for each in fields["candidates"]
        ]
        turns = [{"role": "model", **each} for each in found]
        return {"choices": [_as_choice(turn, end) for turn, end in zip(turns, ends, strict=True)]}
    generations = fields.get("generations")
    if isinstance(generations, list) and len(cast("list[Any]", generations)) == 1:
        found = cast("list[Any]", generations)[0]
        if is_list_of_objects(found) and all(_is_message(each.get("message")) for each in found):
            infos = [_as_object(each.get("generation_info")) for each in found]
            ends = [info.get("finish_reason", info.get("stop_reason")) for info in infos]
            answers = [each["message"] for each in found]
            return {"choices": [_as_choice(*each) for each in zip(answers, ends, strict=True)]}
    return {"choices": [_as_choice(fields)]} if _is_message(fields) else None


def _is_item(value: Any) -> bool:
    return isinstance(value, dict) and cast("dict[str, Any]", value).get("type") in _ITEMS


def _is_message(value: Any) -> bool:
    """Say whether a value is a message, in any spelling."""
    return (
        isinstance(value, dict)
        and not _is_item(value)
        and ("role" in value or bool(name_spelling(value)))
    )


def _as_choice(message: dict[str, Any], end: Any = None) -> dict[str, Any]:
    """Return a choice of a message, with how the answer ended."""
    fields = {key: value for key, value in message.items() if key != "finish_reason"}
    end = message.get("finish_reason") if end is None else end
    return {"message": fields} if end is None else {"message": fields, "finish_reason": end}


def _as_object(value: Any) -> dict[str, Any]:
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {"parts": [value]}


def _parse(value: Any) -> Any:
    """Return what JSON text says; another text is itself."""
    try:
        return read_json(value, "")
    except Rejected:
        return value


# ---- spans


def _read_span(values: Mapping[str, Any]) -> tuple[Mapping[str, Any], str] | None:
    """Return the call of a span: its attributes lie in ``attributes`` or have dots in their names."""
    dotted = {key: value for key, value in values.items() if "." in key}
    held = values.get("attributes")
    if not dotted and not isinstance(held, dict):
        return None
    attributes = _nest({**_as_object(held or {}), **_strip(dotted)})
    for asked, said in _SPANS:
        messages, answers = _parse(_at(attributes, asked)), _parse(_at(attributes, said))
        if is_list_of_objects(messages) and is_list_of_objects(answers):
            break
    else:
        return None
    system = _parse(_at(attributes, _SYSTEM))
    first: list[Any] = []
    if system:
        parts = cast("list[Any]", system) if isinstance(system, list) else [system]
        first = [{"role": "system", "parts": parts}]
    request: dict[str, Any] = {"messages": [*first, *map(_read_span_message, messages)]}
    tools = _read_span_tools(attributes)
    if tools:
        request["tools"] = tools
    choices = [_as_choice(_read_span_message(each)) for each in answers]
    for path in (asked, said, _SYSTEM, *_SPAN_TOOLS):
        attributes = _without(attributes, path)
    others = {key: value for key, value in values.items() if "." not in key and key != "attributes"}
    left = {"attributes": attributes} if any(map(_holds, attributes.values())) else {}
    row = {**others, **left, "request": request, "response": {"choices": choices}}
    return row, f"{asked}+{said}"


def _holds(value: Any) -> bool:
    """Say whether anything but empty objects is in a value."""
    return any(map(_holds, value.values())) if isinstance(value, dict) else value is not None


def _strip(dotted: Mapping[str, Any]) -> dict[str, Any]:
    return {key.removeprefix("attributes."): value for key, value in dotted.items()}


def _read_span_message(message: dict[str, Any]) -> dict[str, Any]:
    """Return a message of a span without the names in which OpenInference wraps it and its calls."""
    fields = _nest_object(message)
    inner = fields.get("message")
    if isinstance(inner, dict):
        fields = cast("dict[str, Any]", inner)
    if isinstance(fields.get("contents"), list):
        parts = [
            each.get("message_content", each) for each in map(_nest_object, fields["contents"])
        ]
        fields = {
            **{key: each for key, each in fields.items() if key != "contents"},
            "parts": parts,
        }
    calls = fields.get("tool_calls")
    if isinstance(calls, list):
        unwrapped = [
            each.get("tool_call", each) for each in map(_nest_object, cast("list[Any]", calls))
        ]
        fields = {**fields, "tool_calls": [{"type": "function", **each} for each in unwrapped]}
    if is_list_of_objects(_parse(fields.get("content"))) and isinstance(fields["content"], str):
        raise Rejected(
            "ambiguous_shape",
            "content: JSON of a list, as a tracer writes parts; expected the parts, or text",
            fields["content"],
        )
    return fields


def _read_span_tools(attributes: dict[str, Any]) -> list[dict[str, Any]] | None:
    """Return the tools of a span, wherever its tracer keeps them."""
    found = next((each for path in _SPAN_TOOLS if (each := _at(attributes, path))), None)
    if found is None:
        parameters = _parse(_at(attributes, "llm.invocation_parameters"))
        found = _as_object(parameters).get("tools")
    listed = _parse(found)
    if not is_list_of_objects(listed):
        return None
    schemas = [_nest_object(each) for each in cast("list[dict[str, Any]]", listed)]
    bare = [_parse(_at(each, "tool.json_schema") or each) for each in schemas]
    return read_function_tools(bare)


def _nest_object(value: Any) -> dict[str, Any]:
    return _as_object(_nest(_as_object(value)))


def _nest(value: dict[str, Any]) -> Any:
    """Return an object with the dots in its names as objects within objects; numbered names are a list.

    What its values hold stays as it is: arguments of a call may have dots in their names.

    >>> _nest({"llm.calls.0.name": "f", "llm.calls.1.name": "g"})
    {'llm': {'calls': [{'name': 'f'}, {'name': 'g'}]}}
    """
    nested = _Made()
    for name, each in value.items():
        *path, last = name.split(".") if name.count(".") <= _MOST_DOTS else (name,)
        holder = nested
        for step in path:
            inner = holder.get(step)
            if not isinstance(inner, _Made):
                inner = holder[step] = _Made()
            holder = inner
        holder[last] = each
    return _list_numbered(nested)


class _Made(dict[str, Any]):
    """An object that dots in names made."""


def _list_numbered(value: Any) -> Any:
    if not isinstance(value, _Made):
        return value
    fields = {key: _list_numbered(each) for key, each in value.items()}
    if fields and sorted(fields) == sorted(map(str, range(len(fields)))):
        return [fields[str(index)] for index in range(len(fields))]
    return fields


def _at(value: Any, path: str) -> Any:
    for name in path.split("."):
        value = cast("dict[str, Any]", value).get(name) if isinstance(value, dict) else None
    return value


def _without(value: dict[str, Any], path: str) -> dict[str, Any]:
    """Return an object without what lies at a path; the object itself stays as it is."""
    name, _, rest = path.partition(".")
    held = value.get(name)
    if rest and isinstance(held, dict):
        return {**value, name: _without(cast("dict[str, Any]", held), rest)}
    return {key: each for key, each in value.items() if rest or key != name}

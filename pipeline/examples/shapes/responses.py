"""OpenAI's Responses API: a request of items, and the items that answered it.

Several items are one message (reasoning, text, calls); vLLM's ``/v1/responses`` says which, and its
rules are followed here. What a server would lose in silence is refused, or counted.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, cast

from pipeline.errors import Rejected
from pipeline.examples.example import TrainingExample
from pipeline.examples.outcomes import refuse_outcome
from pipeline.examples.shapes.apis import find_answer, find_request
from pipeline.examples.shapes.record import (
    Row,
    add_effort,
    read_name,
    read_shared,
    refuse_switches,
)
from pipeline.examples.shapes.turns import (
    RANKS,
    Turns,
    expect_words,
    list_objects,
    refuse_kind,
)
from pipeline.types import Message

_EXPECTED: Final = "a message, reasoning with its text, a function_call or its output"
_ROLES: Final = ("user", "system", "developer")
_READ_OF_ITEMS: Final = {
    "message": frozenset({"type", "role", "content", "status"}),
    "reasoning": frozenset({"type", "content", "summary", "status"}),
    "function_call": frozenset({"type", "call_id", "name", "arguments", "namespace", "status"}),
    "function_call_output": frozenset({"type", "call_id", "output", "status"}),
}
_UNENDED: Final = ("in_progress", "incomplete")
# What a request adds to its prompt from elsewhere: none of it is in the row.
_ELSEWHERE: Final = ("previous_response_id", "conversation", "prompt")


def read_responses(row: Row, position: str) -> TrainingExample:
    """Return the example of a call of ``/v1/responses``, or of a conversation as its items.

    The request is found as `pipeline.examples.shapes.openai.read_call` finds it, with ``input`` in
    place of ``messages``; the items of ``output`` end with the continuation, and those before it are
    context. Without an ``output`` the last answer of ``input`` is the continuation. An answer whose
    items no template writes in their order, or whose reasoning is a summary, is context and never a
    decision point.

    Raises `Rejected`: ``missing_field`` where a part of the prompt is not in the row
    (``previous_response_id``, ``conversation``, ``prompt``), ``unsupported_content`` for encrypted
    reasoning, built-in tools, pictures, refusals and items of other types, ``no_end_of_turn`` for an
    answer that was cut.

    Sources: OpenAI's API reference (the types of its Python client, ``openai/types/responses``); vLLM
    0.33.0, ``vllm/entrypoints/openai/responses/utils.py``: ``construct_input_messages``,
    ``construct_tool_dicts``; ``protocol.py``: ``build_chat_params``.
    """
    answer = find_answer(row, "output")
    request = find_request(row, "input")
    if answer is not None:
        _refuse_unended(answer)
    for holder in (request,) if answer is None or answer is request else (request, answer):
        _refuse_elsewhere(holder, is_row=holder is row)
    refuse_switches(request)
    values = read_shared(row, position, request)
    values["id"] = read_name(Row({"id": row.get("custom_id") or row.get("id")}), position)
    values["tools"] = _read_tools(values["tools"], f"{request.path}tools")
    effort = _read_effort(request)
    values["chat_template_kwargs"] = add_effort(values["chat_template_kwargs"], effort)
    if answer is not None and answer is not request:
        _settle_echo(answer, values["tools"])
    turns = Turns(_read_instructions(request))
    _read_input(request, turns, row)
    if answer is None:
        return TrainingExample.from_fields({**values, "messages": turns.as_context()})
    _refuse_begun(request)
    said = Turns()
    _read_items(answer["output"], f"{answer.path}output", said, row)
    before, continuation = said.split_answer(f"{answer.path}output")
    context = [*turns.as_context(), *before]
    return TrainingExample.from_fields({**values, "context": context, "continuation": continuation})


def _refuse_unended(answer: Row) -> None:
    """Raise `Rejected` for a response that the model did not end, or that failed."""
    refuse_outcome(
        f"{answer.path}incomplete_details", "incomplete_details", answer.get("incomplete_details")
    )
    status = answer.get("status")
    if isinstance(status, str) and status in (*_UNENDED, "queued"):
        raise Rejected(
            "no_end_of_turn",
            f"{answer.path}status: {status}, so the model did not end this answer; leave the call out",
        )
    refuse_outcome(f"{answer.path}status", "status", status)


def _refuse_elsewhere(holder: Row, *, is_row: bool) -> None:
    """Raise `Rejected` for a prompt of which a part is kept by the server."""
    for name in _ELSEWHERE:
        # A conversation of the row itself, as text, is its name.
        if name not in holder or (
            is_row and name == "conversation" and isinstance(holder.peek(name), str)
        ):
            continue
        value = holder.get(name)
        if value:
            raise Rejected(
                "missing_field",
                f"{holder.path}{name}: names a part of the prompt that is not in the row; "
                "expected all of it as items of input",
                value,
            )
    if holder.get("truncation") not in (None, "disabled"):
        raise Rejected(
            "not_renderable",
            f"{holder.path}truncation: the server may have left items out, and the row does not say "
            "which; expected disabled",
            holder["truncation"],
        )


def _refuse_begun(request: Row) -> None:
    """Raise `Rejected` where the last item of a request is an answer that the model was to go on with."""
    items = request["input"]
    last: Any = items[-1] if isinstance(items, list) and items else {}
    if last.get("type", "message") in ("message", "reasoning") and last.get("status") in _UNENDED:
        raise Rejected(
            "not_renderable",
            f"{request.path}input: its last item is the beginning of the answer "
            f"(status {last['status']}); expected a prompt that ends before it",
            last,
        )


def _read_effort(request: Row) -> Any:
    """Return the effort of ``reasoning``, the one part of it that reaches a template."""
    reasoning = request.get("reasoning")
    if reasoning is None:
        return None
    if not isinstance(reasoning, dict):
        raise Rejected("wrong_type", f"{request.path}reasoning: expected an object", reasoning)
    return cast("dict[str, Any]", reasoning).get("effort")


def _settle_echo(answer: Row, tools: list[dict[str, Any]] | None) -> None:
    """Pass over what a response repeats of its request in the server's own spelling.

    Tools under other names, and instructions that differ, are left for `settle_keys`.
    """
    answer.get("reasoning")
    echoed = answer.peek("tools")
    listed = cast("list[Any]", echoed) if isinstance(echoed, list) else []
    names = [each.get("name") if isinstance(each, Mapping) else each for each in listed]
    if names == [tool["function"]["name"] for tool in tools or []]:
        answer.get("tools")


def _read_tools(tools: Any, name: str) -> list[dict[str, Any]] | None:
    """Return flat tools as chat completions have them. Raises `Rejected` for built-in tools."""
    if not tools:
        return None
    wrapped: list[dict[str, Any]] = []
    for index, tool in enumerate(list_objects(tools, name)):
        inner = tool.get("function")
        flat = {**tool, **cast("dict[str, Any]", inner)} if isinstance(inner, dict) else tool
        if flat.get("type") != "function":
            raise refuse_kind(f"{name}[{index}]", flat.get("type"), "function")
        expect_words(flat, "name", f"{name}[{index}]")
        bare = {key: value for key, value in flat.items() if key not in ("type", "function")}
        wrapped.append({"type": "function", "function": bare})
    return wrapped


def _read_instructions(request: Row) -> list[Message]:
    text = request.get("instructions")
    if not text:
        return []
    if not isinstance(text, str):
        raise Rejected("wrong_type", f"{request.path}instructions: expected text", text)
    return [{"role": "system", "content": text}]


def _read_input(request: Row, turns: Turns, row: Row) -> None:
    given = request["input"]
    if isinstance(given, str):
        turns.add_message({"role": "user", "content": given})
    else:
        _read_items(given, f"{request.path}input", turns, row)


def _read_items(items: Any, name: str, turns: Turns, row: Row) -> None:
    """Add the messages of items, several of them together where a server puts them together."""
    for index, item in enumerate(list_objects(items, name)):
        where = f"{name}[{index}]"
        kind = item.get("type") or "message"
        if kind == "message":
            _read_message(item, where, turns)
        elif kind == "reasoning":
            _add_piece(turns, "reasoning", _read_reasoning(item, where, turns), where)
            _say_fault_of_reasoning(item, where, turns)
        elif kind == "function_call":
            _add_piece(turns, "tool_calls", _read_call(item, where), where)
        elif kind == "function_call_output":
            turns.add_message(_read_output(item, where))
        else:
            raise refuse_kind(where, kind, _EXPECTED)
        if item.get("status") in _UNENDED and turns.messages[-1].get("role") == "assistant":
            turns.add_fault(f"{where}.status: {item['status']}, so the model did not end it")
        row.note(f"{name}.", (key for key in item if key not in _READ_OF_ITEMS[kind] and item[key]))


def _add_piece(turns: Turns, key: str, value: Any, where: str) -> None:
    """Add a piece of an assistant's message to the last message, where that has none of its kind."""
    last = turns.messages[-1] if turns.messages else {}
    goes_on = last.get("role") == "assistant"
    if goes_on and key == "tool_calls":
        last.setdefault(key, []).append(value)
        return
    piece = [value] if key == "tool_calls" else value
    if goes_on and last.get(key) is None:
        is_late = any(RANKS[other] > RANKS[key] for other in RANKS if other in last)
        last[key] = piece
        if is_late:
            turns.add_fault(
                f"{where}: behind items that a template writes after it; expected before"
            )
        return
    reason = f"{where}: another answer follows with nothing between; expected one turn of the model"
    if goes_on:
        turns.add_fault(reason)
    turns.add_message({"role": "assistant", key: piece})
    if goes_on:
        turns.add_fault(reason)


def _read_message(item: dict[str, Any], where: str, turns: Turns) -> None:
    role, content = item.get("role"), item.get("content")
    if role == "assistant":
        if isinstance(content, list):
            content = _read_only_part(content, f"{where}.content")
        elif not isinstance(content, str):
            raise Rejected("wrong_type", f"{where}.content: expected text or parts", content)
        _add_piece(turns, "content", content, where)
        return
    if role not in _ROLES:
        expected = f"{where}.role: expected assistant, {', '.join(_ROLES)}"
        raise Rejected("wrong_type", expected, role)
    if not isinstance(content, str):
        content = _read_parts(content, f"{where}.content")
    turns.add_message({"role": role, "content": content})


def _read_only_part(parts: Any, name: str) -> str:
    """Return the text of an answer's one part; a server passes over all but the first."""
    listed = list_objects(parts, name)
    for index, part in enumerate(listed):
        if part.get("type") not in ("output_text", "input_text", "text"):
            raise refuse_kind(f"{name}[{index}]", part.get("type"), "output_text")
    if len(listed) != 1:
        raise Rejected(
            "unsupported_content",
            f"{name}: {len(listed)} parts, and a server reads the first alone; expected one",
            parts,
        )
    return expect_words(listed[0], "text", f"{name}[0]")


def _read_parts(parts: Any, name: str) -> list[dict[str, Any]]:
    """Return parts of text as chat completions have them."""
    read: list[dict[str, Any]] = []
    for index, part in enumerate(list_objects(parts, name)):
        if part.get("type") not in ("input_text", "output_text", "text"):
            raise refuse_kind(f"{name}[{index}]", part.get("type"), "input_text")
        read.append({"type": "text", "text": expect_words(part, "text", f"{name}[{index}]")})
    return read


def _read_reasoning(item: dict[str, Any], where: str, turns: Turns) -> str:
    """Return the text of reasoning: of its content, else of its summary; empty where it has neither."""
    if item.get("encrypted_content"):
        raise Rejected(
            "unsupported_content",
            f"{where}.encrypted_content: a thought that cannot be read; expected its text as content",
        )
    for key in ("content", "summary"):
        parts = list_objects(item.get(key) or [], f"{where}.{key}")
        if len(parts) > 1:
            raise Rejected(
                "unsupported_content",
                f"{where}.{key}: {len(parts)} parts, and a server reads the first alone; expected one",
                parts,
            )
        if parts:
            return expect_words(parts[0], "text", f"{where}.{key}[0]")
    return ""


def _say_fault_of_reasoning(item: dict[str, Any], where: str, turns: Turns) -> None:
    if not item.get("content"):
        found = "a summary" if item.get("summary") else "no text"
        turns.add_fault(
            f"{where}: {found} in place of what the model thought; expected its content"
        )


def _read_call(item: dict[str, Any], where: str) -> dict[str, Any]:
    name = expect_words(item, "name", where)
    if item.get("namespace"):
        name = f"{expect_words(item, 'namespace', where)}__{name}"
    call = {"name": name, "arguments": expect_words(item, "arguments", where)}
    return {"id": expect_words(item, "call_id", where), "type": "function", "function": call}


def _read_output(item: dict[str, Any], where: str) -> Message:
    output = item.get("output")
    if not isinstance(output, str):
        output = _read_parts(output, f"{where}.output")
    message: Message = {"role": "tool", "content": output}
    return message if item.get("call_id") is None else {**message, "tool_call_id": item["call_id"]}

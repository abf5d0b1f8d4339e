"""OpenAI's chat shapes: the lines of a fine-tuning file, and logs of calls with their answers."""

from __future__ import annotations

from typing import Any, cast

from pipeline.errors import Rejected
from pipeline.examples.example import TrainingExample
from pipeline.examples.fields import read_token_ids
from pipeline.examples.outcomes import refuse_outcome
from pipeline.examples.shapes.record import (
    Row,
    is_list_of_objects,
    read_chat,
    read_name,
    read_response,
    read_shared,
    refuse_switches,
    require,
    require_text,
)
from pipeline.types import Message

# Fields of an answer that belong in the next prompt; the rest is the server's bookkeeping.
_ANSWER_KEYS = (
    *("role", "content", "reasoning", "reasoning_content", "tool_calls"),
    *("thinking", "thinking_blocks", "reasoning_details"),
)


def read_openai(row: Row, position: str) -> TrainingExample:
    """Return the example of a line of a chat fine-tuning file: ``messages`` and perhaps ``tools``.

    The continuation is the last assistant message whose ``weight`` is not 0. ``parallel_tool_calls``
    never reaches a template. Source: OpenAI's supervised fine-tuning guide, "chat format" and
    "multi-turn examples".
    """
    values = read_shared(row, position)
    refuse_switches(row)
    return TrainingExample.from_fields(
        {**values, "messages": require(row, "messages", "a list of messages")}
    )


def read_call(row: Row, position: str) -> TrainingExample:
    """Return the example of one logged call: its request is the context, its choices the answers.

    The request is ``request``, the ``body`` of a batch input line, or the row itself, with
    ``messages`` or a ``prompt`` (text, or ids); the answer is ``response`` (its ``body`` in a batch
    output line), or the row itself. The id is ``custom_id``,
    else ``id``, else the position. Several choices are several continuations. vLLM's
    ``prompt_token_ids`` and ``token_ids`` (``return_token_ids``) are kept as the ids that were seen
    and sampled.

    Sources: OpenAI's API reference (Batch input and output objects, chat completion object,
    completion object); vLLM 0.33.0, ``vllm/entrypoints/openai/chat_completion/protocol.py`` and
    ``completion/protocol.py``.
    """
    answer = _find_answer(row)
    request = _find_request(row)
    choices = _read_choices(answer, row)
    prompt_ids = answer.get("prompt_token_ids") or choices[0].get("prompt_token_ids")
    values: dict[str, Any] = {
        **read_shared(row, position, request),
        "id": read_name(Row({"id": row.get("custom_id") or row.get("id")}), position),
        **_read_answers(choices, row),
    }
    if prompt_ids is not None:
        values["context_ids"] = read_token_ids(prompt_ids, "prompt_token_ids")
    else:
        refuse_switches(request)
        for body in (request.peek("extra_body"), row.peek("extra_body")):
            if isinstance(body, dict):
                refuse_switches(Row(cast("dict[str, Any]", body), "extra_body."))
    if request.get("messages") is not None:
        # Under this name all of them are context, whoever spoke last.
        values["context"] = read_chat(request["messages"], "request.messages")
    elif isinstance(request["prompt"], list) and is_list_of_objects(request["prompt"]):
        values["context"] = read_chat(request["prompt"], "request.prompt")
    elif isinstance(request["prompt"], list):
        values.setdefault("context_ids", read_token_ids(request["prompt"], "request.prompt"))
    else:
        values["context"] = require_text(request, "prompt", "the text of the prompt")
    return TrainingExample.from_fields(values)


def _find_answer(row: Row) -> Row:
    """Return the object that holds ``choices``."""
    _refuse_failure(row)
    text = row.peek("response")
    if isinstance(text, str) and (logged := read_response(text)):
        # A response as JSON text (LiteLLM's spend logs) is no text that the model said.
        row.take(frozenset({"response"}))
        row = row.part({"response": logged}, row.path)
    elif isinstance(text, str) and text:
        _refuse_answered(row, text)
        return row.part({"choices": [{"text": row["response"]}]}, "response.")
    response = _object_or_none(row, "response", row)
    if response is None:
        return row
    _refuse_failure(response)
    body = _object_or_none(response, "body", row)
    if body is not None:
        _refuse_failure(body)
    return response if body is None else body


def _refuse_answered(row: Row, answer: str) -> None:
    """Raise `Rejected` where a text stands beside messages that end with an answer already."""
    messages = row.peek("messages")
    last: Any = messages[-1] if is_list_of_objects(messages) else {}
    if last.get("role") == "assistant":
        raise Rejected(
            "ambiguous_shape",
            "response: the messages end with an answer already; expected decision_idx and "
            "continuation where it replaces that, or messages that stop at the prompt",
            answer,
        )


def _refuse_failure(answer: Row) -> None:
    """Raise `Rejected` where a call, or the server that answered it, says that it failed."""
    for name in ("error", "status", "status_code"):
        value = answer.get(name)
        if value is not None:
            refuse_outcome("response", name, value)


def _find_request(row: Row) -> Row:
    """Return the object that holds ``messages`` or ``prompt``."""
    request = _object_or_none(row, "request", row) or row
    if isinstance(request.peek("body"), dict):
        request = _object_or_none(request, "body", row) or request
    if request.peek("messages") is None and request.peek("prompt") is None:
        raise Rejected(
            "missing_field",
            "messages: missing; expected the request's messages beside its answer: "
            "a batch output line has none, join it with its input line by custom_id",
            sorted(row),
        )
    return request


def _object_or_none(holder: Row, name: str, row: Row) -> Row | None:
    value = holder.get(name)
    if value is None:
        return None
    if isinstance(value, dict):
        path = f"{holder.path}{name}."
        return row.part(cast("dict[str, Any]", value), path)
    raise Rejected("wrong_type", f"{name}: expected an object", value)


def _read_choices(answer: Row, row: Row) -> list[Row]:
    """Return the choices, each of a turn that the model ended itself; at least one."""
    choices = require(answer, "choices", "the answers of the call")
    if not isinstance(choices, list) or not choices:
        raise Rejected("wrong_type", "choices: expected a list with an answer", choices)
    read: list[Row] = []
    for index, choice in enumerate(cast("list[Any]", choices)):
        where = f"choices[{index}]"
        if not isinstance(choice, dict):
            raise Rejected("wrong_type", f"{where}: expected an object", choice)
        fields = row.part(cast("dict[str, Any]", choice), "choices.")
        if "finish_reason" in fields and fields["finish_reason"] is None:
            raise Rejected(
                "no_end_of_turn",
                f"{where}.finish_reason: null, so the answer had not ended when this was written; "
                "join the pieces of a stream, or leave the call out",
            )
        for name in ("finish_reason", "stop_reason"):
            refuse_outcome(f"{where}.{name}", name, fields.get(name))
        read.append(fields)
    return read


def _read_answers(choices: list[Row], row: Row) -> dict[str, Any]:
    """Return the fields of an example that hold the answers and their sampled ids."""
    answers = [
        _read_answer(choice, f"choices[{index}]", row) for index, choice in enumerate(choices)
    ]
    sampled = [choice.get("token_ids") for choice in choices]
    if len(answers) == 1:
        return {"continuation": answers[0], "continuation_ids": sampled[0]}
    ids = None if all(each is None for each in sampled) else sampled
    return {"continuations": answers, "continuations_ids": ids}


def _read_answer(choice: Row, name: str, row: Row) -> str | Message:
    """Return the message of a chat's choice, or the text of a completion's."""
    if choice.get("message") is None:
        return require_text(choice, "text", f"the message or the text of {name}")
    message = read_chat([choice["message"]], f"{name}.message")[0]
    if "audio" in message:
        raise Rejected("unsupported_content", f"{name}.message.audio: only text can be trained on")
    answer = {key: message[key] for key in _ANSWER_KEYS if key in message}
    if not any(value for key, value in answer.items() if key != "role"):
        raise Rejected(
            "empty_continuation",
            f"{name}.message: neither content nor reasoning nor tool_calls; "
            "expected what the model said",
            message,
        )
    row.note("choices.message.", (key for key in message if key not in answer))
    return answer

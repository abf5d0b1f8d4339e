"""OpenAI's chat shapes: the lines of a fine-tuning file, and logs of calls with their answers."""

from __future__ import annotations

from typing import Any, Final, cast

from pipeline.errors import Rejected
from pipeline.examples import TrainingExample
from pipeline.fields import read_kwargs, read_token_ids
from pipeline.formats.row import (
    MEDIA_KEYS,
    Row,
    read_chat,
    read_name,
    refuse_media,
    require,
    require_text,
)
from pipeline.server import Message

CHAT_KEYS: Final = ("id", "messages", "tools", "chat_template_kwargs", *MEDIA_KEYS)
LOG_KEYS: Final = (
    "id",
    "custom_id",
    "request",
    "body",
    "messages",
    "prompt",
    "tools",
    "chat_template_kwargs",
    "response",
    "choices",
    "error",
    "prompt_token_ids",
    "reasoning_effort",
    "documents",
    "add_generation_prompt",
    "continue_final_message",
    "add_special_tokens",
    "chat_template",
    "truncate_prompt_tokens",
)

# Fields of an answer that belong in the next prompt; the rest is the server's bookkeeping.
_ANSWER_KEYS = ("role", "content", "reasoning", "reasoning_content", "tool_calls")
# The answer ended before the model ended its turn (vLLM 0.33.0, vllm/v1/engine: FinishReason).
_CUT_SHORT = frozenset({"length", "content_filter", "abort", "error"})
# vllm/entrypoints/openai/chat_completion/protocol.py: request fields that change the prompt and
# have no place in an example, each with the value that changes nothing.
_PROMPT_SWITCHES: Final = {
    "add_generation_prompt": True,
    "continue_final_message": False,
    "add_special_tokens": False,
    "chat_template": None,
    "truncate_prompt_tokens": None,
}


def read_openai(row: Row, position: str) -> TrainingExample:
    """Return the example of a line of a chat fine-tuning file: ``messages`` and perhaps ``tools``.

    The continuation is the last assistant message whose ``weight`` is not 0. ``parallel_tool_calls``
    never reaches a template. Source: OpenAI's supervised fine-tuning guide, "chat format" and
    "multi-turn examples".
    """
    refuse_media(row)
    return TrainingExample.from_dict(
        {
            "id": read_name(row, position),
            "messages": read_chat(require(row, "messages", "a list of messages"), "messages"),
            "tools": row.get("tools"),
            "chat_template_kwargs": row.get("chat_template_kwargs"),
        }
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
    choices = _read_choices(answer)
    prompt_ids = answer.get("prompt_token_ids") or choices[0].get("prompt_token_ids")
    values: dict[str, Any] = {
        "id": read_name({"id": row.get("custom_id") or row.get("id")}, position),
        "tools": request.get("tools"),
        "chat_template_kwargs": _read_template_kwargs(request),
        **_read_answers(choices),
    }
    if prompt_ids is not None:
        values["context_ids"] = read_token_ids(prompt_ids, "prompt_token_ids")
    else:
        _refuse_switches(request)
    if request.get("messages") is not None:
        # Under this name all of them are context, whoever spoke last.
        values["context"] = read_chat(request["messages"], "request.messages")
    elif isinstance(request["prompt"], list):
        values.setdefault("context_ids", read_token_ids(request["prompt"], "request.prompt"))
    else:
        values["context"] = require_text(request, "prompt", "the text of the prompt")
    return TrainingExample.from_dict(values)


def _find_answer(row: Row) -> dict[str, Any]:
    """Return the object that holds ``choices``."""
    response = _object_or_none(row, "response")
    status = None if response is None else response.get("status_code")
    if row.get("error") is not None or status not in (None, 200):
        found = row.get("error") or status
        raise Rejected("missing_field", "response: the call failed, so there is no answer", found)
    if response is None:
        return dict(row)
    return _object_or_none(response, "body") or response


def _find_request(row: Row) -> dict[str, Any]:
    """Return the object that holds ``messages`` or ``prompt``."""
    request = _object_or_none(row, "request") or dict(row)
    request = _object_or_none(request, "body") or request
    if request.get("messages") is None and request.get("prompt") is None:
        raise Rejected(
            "missing_field",
            "request: missing; expected the call's messages beside its answer: "
            "a batch output line has none, join it with its input line by custom_id",
            sorted(row),
        )
    return request


def _object_or_none(row: Row, name: str) -> dict[str, Any] | None:
    value = row.get(name)
    if value is None or isinstance(value, dict):
        return cast("dict[str, Any] | None", value)
    raise Rejected("wrong_type", f"{name}: expected an object", value)


def _read_choices(answer: Row) -> list[dict[str, Any]]:
    """Return the choices, each of a turn that the model ended itself; at least one."""
    choices = require(answer, "choices", "the answers of the call")
    if not isinstance(choices, list) or not choices:
        raise Rejected("wrong_type", "choices: expected a list with an answer", choices)
    for index, choice in enumerate(cast("list[Any]", choices)):
        if not isinstance(choice, dict):
            raise Rejected("wrong_type", f"choices[{index}]: expected an object", choice)
        reason = cast("dict[str, Any]", choice).get("finish_reason")
        if reason in _CUT_SHORT:
            raise Rejected(
                "no_end_of_turn",
                f"choices[{index}].finish_reason: {reason}, so the model did not end this answer; "
                "leave the call out, or give the whole answer",
            )
    return cast("list[dict[str, Any]]", choices)


def _read_answers(choices: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the fields of an example that hold the answers and their sampled ids."""
    answers = [_read_answer(choice, f"choices[{index}]") for index, choice in enumerate(choices)]
    sampled = [choice.get("token_ids") for choice in choices]
    if len(answers) == 1:
        return {"continuation": answers[0], "continuation_ids": sampled[0]}
    ids = None if all(each is None for each in sampled) else sampled
    return {"continuations": answers, "continuations_ids": ids}


def _read_answer(choice: Row, name: str) -> str | Message:
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
    return answer


def _read_template_kwargs(request: Row) -> dict[str, Any]:
    """Return the template kwargs, with the request's fields that reach the template beside them.

    vLLM 0.33.0, ``protocol.py``: ``build_chat_params``.
    """
    kwargs = read_kwargs(request.get("chat_template_kwargs"))
    effort = request.get("reasoning_effort")
    if effort is not None:
        kwargs = {"enable_thinking": effort != "none", **kwargs, "reasoning_effort": effort}
    if request.get("documents") is not None:
        kwargs["documents"] = request["documents"]
    return kwargs


def _refuse_switches(request: Row) -> None:
    for name, harmless in _PROMPT_SWITCHES.items():
        if request.get(name) not in (None, harmless):
            raise Rejected(
                "not_renderable",
                f"request.{name}: it changed the prompt in a way that no example can say; "
                "expected the ids of the prompt (return_token_ids) beside it",
                request[name],
            )

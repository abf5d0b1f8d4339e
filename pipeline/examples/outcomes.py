"""How an answer ended, by what a log says of it: a failed call, a turn that the model did not end."""

from __future__ import annotations

from typing import Any, Final

from pipeline.errors import Rejected

CUT_SHORT: Final = frozenset(
    {
        *("length", "max_tokens", "model_length", "content_filter", "content-filter", "refusal"),
        *("abort", "aborted", "cancelled", "canceled", "interrupted", "timeout", "error"),
        *("pause_turn", "incomplete", "truncated", "insufficient_system_resource"),
    }
)
"""Reasons of an end that is not the model's own (vLLM 0.33.0, ``vllm/v1/engine``: FinishReason;
OpenAI's, Anthropic's and Mistral's API references)."""

_ENDED: Final = frozenset(
    {"stop", "end_turn", "tool_use", "tool_calls", "function_call", "eos", "eos_token", "completed"}
)
_FAILED: Final = CUT_SHORT | {"failed", "failure", "expired", "rate_limited"}


def refuse_outcome(path: str, name: str, value: Any) -> None:
    """Raise `Rejected` for a value that says that the answer is none, or was not ended by the model.

    ``path`` is the key as the row has it. ``no_end_of_turn`` for a cut answer, ``missing_field`` for a
    failed call. A ``stop_reason`` that is text and no known word is the stop string that cut the
    answer; a number is the stop token (vLLM).
    """
    if name in ("finish_reason", "stop_reason"):
        word = value.lower() if isinstance(value, str) else None
        is_stop_string = name == "stop_reason" and word is not None and word not in _ENDED
        if is_stop_string or word in CUT_SHORT:
            raise _unended(path, value)
    elif name == "stop_reasons":
        reasons = value if isinstance(value, list) else [value]
        if any(reason not in _ENDED for reason in reasons if isinstance(reason, str)):
            raise _unended(path, value)
    elif name in ("truncated", "is_truncated", "aborted"):
        if value is True:
            raise _unended(path, value)
    elif name == "status" or name == "status_code":
        is_number = isinstance(value, int) and not isinstance(value, bool)
        if (is_number and value >= 400) or (isinstance(value, str) and value.lower() in _FAILED):
            raise _failed(path, value)
    elif name == "error" and value not in (False, 0, "", [], {}):
        raise _failed(path, value)


def _unended(path: str, value: Any) -> Rejected:
    return Rejected(
        "no_end_of_turn",
        f"{path}: {value}, so the model did not end this answer; leave the call out, or give the "
        "whole answer",
    )


def _failed(path: str, value: Any) -> Rejected:
    return Rejected("missing_field", f"{path}: the call failed, so there is no answer", value)

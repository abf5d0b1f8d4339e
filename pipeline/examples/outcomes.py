"""How an answer ended, by what a log says of it: a failed call, a turn that the model did not end.

Names and words are compared without case and signs: ``finishReason: MAX_TOKENS`` is Gemini's
``finish_reason: length``.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any, Final, cast

from pipeline.errors import Rejected

CUT_SHORT: Final = frozenset(
    {
        *("length", "max_tokens", "model_length", "content_filter", "refusal", "max_output_tokens"),
        *("abort", "aborted", "cancelled", "canceled", "interrupted", "timeout", "error"),
        *("pause_turn", "incomplete", "truncated", "insufficient_system_resource"),
        *("stop_sequence", "max_new_tokens", "max_length", "context_length", "load"),
        *("safety", "recitation", "blocklist", "prohibited_content", "spii", "content_filtered"),
        *("malformed_function_call", "guardrail_intervened", "model_context_window_exceeded"),
    }
)
"""Reasons of an end that is not the model's own (vLLM 0.33.0, ``vllm/v1/engine``: FinishReason;
OpenAI's, Anthropic's, Mistral's, Gemini's and Bedrock's API references)."""

_ENDED: Final = frozenset(
    {
        *("stop", "end_turn", "tool_use", "tool_calls", "function_call", "eos", "eos_token"),
        *("completed", "complete", "endturn", "eos_found", "finish_reason_stop"),
    }
)
_FAILED: Final = CUT_SHORT | {"failed", "failure", "expired", "rate_limited"}
_KINDS: Final = {
    **dict.fromkeys(
        ("finishreason", "donereason", "nativefinishreason", "finishreasons", "endreason"), "reason"
    ),
    **dict.fromkeys(("stopreason", "stopreasons", "matchedstop", "stopsequence"), "stop"),
    **dict.fromkeys(
        (
            *("truncated", "istruncated", "aborted", "incomplete", "isincomplete", "interrupted"),
            *("partial", "ispartial", "unfinished", "prefill", "incompletedetails"),
        ),
        "cut",
    ),
    **dict.fromkeys(
        (
            "finished",
            "isfinished",
            "eos",
            "done",
            "isdone",
            "completed",
            "iscomplete",
            "terminated",
        ),
        "ended",
    ),
    **dict.fromkeys(("status", "statuscode", "exitstatus"), "status"),
    **dict.fromkeys(("error", "errormessage"), "error"),
}


@lru_cache(maxsize=4096)
def find_kind(name: str) -> str:
    """Return what a key says of how an answer ended; empty for any other key.

    >>> find_kind("finishReason"), find_kind("id")
    ('reason', '')
    """
    return _KINDS.get(re.sub(r"[\W_]", "", name).casefold(), "")


def refuse_outcome(path: str, name: str, value: Any) -> None:
    """Raise `Rejected` for a value that says that the answer is none, or was not ended by the model.

    ``path`` is the key as the row has it. ``no_end_of_turn`` for a cut answer, ``missing_field`` for a
    failed call. A ``stop_reason`` that is text and no known word is the stop string that cut the
    answer; a number is the stop token (vLLM).
    """
    kind = find_kind(name)
    if kind in ("reason", "stop"):
        if any(_is_cut(kind, word) for word in _words_in(value)):
            raise _unended(path, value)
    elif kind == "cut":
        is_said = value is True or value == 1 or (isinstance(value, dict) and bool(value))
        if is_said or (isinstance(value, str) and value.strip().lower() in ("true", "1", "yes")):
            raise _unended(path, value)
    elif kind == "ended":
        if value is False:
            raise _unended(path, value)
    elif kind == "status":
        if any(_is_failure(word) for word in _words_in(value)):
            raise _failed(path, value)
    elif kind == "error" and value not in (False, 0, "", [], {}, None):
        raise _failed(path, value)


def _words_in(value: Any) -> list[str]:
    """Return the words of a reason: of a text or a number itself, of SGLang's object its type."""
    if isinstance(value, dict):
        fields = cast("dict[str, Any]", value)
        return _words_in(fields.get("type") or fields.get("reason"))
    if isinstance(value, list):
        return [word for each in cast("list[Any]", value) for word in _words_in(each)]
    if isinstance(value, str) or type(value) is int:
        return [str(value)]
    return []


def _is_cut(kind: str, word: str) -> bool:
    bare = re.sub(r"[\s-]+", "_", word.strip()).lower()
    if bare in CUT_SHORT:
        return True
    # A number is the stop token.
    return kind == "stop" and bare not in _ENDED and bool(word) and not bare.lstrip("-").isdigit()


def _is_failure(word: str) -> bool:
    bare = word.strip().lower()
    return bare in _FAILED or (bare.isdigit() and int(bare) >= 400)


def says_unended(name: str, value: Any) -> bool:
    """Say whether a key says of an answer what `refuse_outcome` refuses."""
    try:
        refuse_outcome(name, name, value)
    except Rejected:
        return True
    return False


def _unended(path: str, value: Any) -> Rejected:
    return Rejected(
        "no_end_of_turn",
        f"{path}: {value}, so the model did not end this answer; leave the call out, or give the "
        "whole answer",
    )


def _failed(path: str, value: Any) -> Rejected:
    return Rejected("missing_field", f"{path}: the call failed, so there is no answer", value)

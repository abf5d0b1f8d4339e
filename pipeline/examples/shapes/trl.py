"""TRL's data set types: language modelling, prompt-completion and preference."""

from __future__ import annotations

from itertools import takewhile
from typing import Any

from pipeline.errors import Rejected
from pipeline.examples.example import TrainingExample
from pipeline.examples.shapes.openai import read_openai
from pipeline.examples.shapes.record import (
    Row,
    read_chat,
    read_shared,
    refuse_switches,
    require,
    require_text,
)
from pipeline.examples.shapes.transcript import is_transcript, read_transcript
from pipeline.types import Message


def read_trl(row: Row, position: str) -> TrainingExample:
    """Return the example of a row of TRL's: preference, else prompt-completion, else messages.

    A prompt that is text never meets a chat template, so it is a raw context. Source: TRL's
    documentation, "Dataset formats and types"; 1.16 for ``tools`` and ``chat_template_kwargs``.
    """
    values = read_shared(row, position)
    refuse_switches(row)
    if row.peek("chosen") is not None or row.peek("rejected") is not None:
        fields = _read_preference(row)
    elif row.peek("completion") is not None or row.peek("prompt") is not None:
        fields = _read_completion(row)
    elif row.peek("messages") is not None:
        return read_openai(row, position)
    else:
        expected = "prompt with completion, chosen with rejected, or messages"
        raise Rejected("missing_field", f"completion: missing; expected {expected}", sorted(row))
    return TrainingExample.from_fields({**values, **fields})


def _read_completion(row: Row) -> dict[str, Any]:
    """Return context and continuation; of several assistant turns the last is the continuation.

    Turns of the prompt are no decision points, as in TRL, which trains on the completion alone.
    """
    completion = require(row, "completion", "what the model should say after prompt")
    if not completion:
        raise Rejected("empty_continuation", "completion: empty; expected what the model says")
    prompt = _read_prompt(row)
    if isinstance(prompt, str) or isinstance(completion, str):
        return {"context": prompt, "continuation": _read_text_answer(row, "completion")}
    turns = read_chat(completion, "completion")
    if not any(turn.get("role") == "assistant" for turn in turns):
        raise Rejected("missing_field", "completion: none of its messages is the assistant's")
    return {"messages": [*map(_as_history, prompt), *turns]}


def _read_preference(row: Row) -> dict[str, Any]:
    """Return context, better and worse answer.

    Without a prompt in the same form, the messages with which both begin are the prompt, as in
    TRL's ``extract_prompt``; for texts that rule would cut inside a sentence, so it is not followed:
    of texts only transcripts are read.
    """
    expected = "the better and the worse answer of a pair"
    chosen, rejected = require(row, "chosen", expected), require(row, "rejected", expected)
    prompt = row.peek("prompt")
    if isinstance(chosen, list) and not isinstance(prompt, list):
        better, worse = read_chat(chosen, "chosen"), read_chat(rejected, "rejected")
        shared = _common_beginning(better, worse)
        if not shared:
            raise Rejected(
                "missing_field",
                "prompt: missing, and chosen and rejected do not begin with the same message",
            )
        return {
            "context": shared,
            "continuation": _expect_answer(better[len(shared) :], "chosen"),
            "rejected": _expect_answer(worse[len(shared) :], "rejected"),
        }
    if prompt is None and is_transcript(chosen) and is_transcript(rejected):
        return _read_transcripts(chosen, rejected)
    if prompt is None:
        raise Rejected(
            "missing_field",
            "prompt: missing; where it ends inside chosen and rejected cannot be told from texts",
        )
    context = _read_prompt(row)
    if isinstance(context, str) or isinstance(chosen, str):
        better, worse = _read_text_answer(row, "chosen"), _read_text_answer(row, "rejected")
    else:
        better = _expect_answer(read_chat(chosen, "chosen"), "chosen")
        worse = _expect_answer(read_chat(rejected, "rejected"), "rejected")
    return {"context": context, "continuation": better, "rejected": worse}


def _read_transcripts(chosen: str, rejected: str) -> dict[str, Any]:
    """Return context and answers of two transcripts that differ in their last turn alone."""
    better, worse = read_transcript(chosen, "chosen"), read_transcript(rejected, "rejected")
    if better[:-1] != worse[:-1]:
        raise Rejected(
            "missing_field",
            "prompt: missing, and chosen and rejected differ before their last turn; "
            "expected two answers to the same turns",
        )
    return {"context": better[:-1], "continuation": better[-1], "rejected": worse[-1]}


def _read_prompt(row: Row) -> str | list[Message]:
    prompt = require(row, "prompt", "text or messages before the completion")
    if not prompt:
        raise Rejected("empty_context", "prompt: empty; expected what the model answers")
    return prompt if isinstance(prompt, str) else read_chat(prompt, "prompt")


def _read_text_answer(row: Row, name: str) -> str:
    """Return an answer that is text, as it must be where the prompt is."""
    text = require_text(row, name, "text, as the prompt is text")
    if not text:
        raise Rejected("empty_continuation", f"{name}: empty text; expected what the model says")
    return text


def _expect_answer(turns: list[Message], name: str) -> Message:
    if len(turns) != 1 or turns[0].get("role") != "assistant":
        roles = [turn.get("role") for turn in turns]
        raise Rejected(
            "wrong_type", f"{name}: expected one message after the prompt, the assistant's", roles
        )
    return turns[0]


def _common_beginning(better: list[Message], worse: list[Message]) -> list[Message]:
    """Return the messages with which both begin; each keeps at least its last one for itself."""
    pairs = zip(better[:-1], worse[:-1], strict=False)
    return [first for first, _ in takewhile(lambda pair: pair[0] == pair[1], pairs)]


def _as_history(message: Message) -> Message:
    return {**message, "weight": 0} if message.get("role") == "assistant" else message

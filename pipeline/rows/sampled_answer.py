"""Sampled ids against the answer beside them: another answer's ids must not become the row."""

from __future__ import annotations

import json
import re
from typing import Final

from pipeline.answer.marks import THINK_MARKS
from pipeline.answer.pieces import ReadMessage, read_message
from pipeline.rows.shown import holds_text, read_call_values
from pipeline.tokens.encoder import TextEncoder
from pipeline.tokens.ids import Ids
from pipeline.types import Message

# Marks that stand before each call, and not in a text (Qwen, Hermes, GLM; Kimi; DeepSeek).
_CALL_MARKS: Final = ("<tool_call>", "<|tool_call_begin|>", "<｜tool▁call▁begin｜>")
_THINK_CLOSES: Final = tuple(close for _, close in THINK_MARKS)


def find_unsaid(continuation: Message, body: Ids, encoder: TextEncoder) -> str | None:
    """Return a piece of a message that its sampled ids do not say, None where they say it all.

    ``body`` are the ids without their end of turn. Content, reasoning, and names and arguments of
    calls must be in their text, as templates spell them. Of a message without calls the content is
    the end of the text, behind nothing but its thought or a mark (gpt-oss's channel header).
    """
    message = read_message(continuation)
    decoded = encoder.decode(body)
    for piece in (*message.texts, message.reasoning):
        if piece and not _says(decoded, piece, encoder):
            return piece
    for value in read_call_values(message.calls):
        if isinstance(value, str):
            if not _says(decoded, value, encoder):
                return value
        elif not _spells(decoded, value):
            return json.dumps(value)
    if message.calls:
        return _find_other_call(message, decoded)
    return _find_other_answer(message, decoded, encoder)


def _says(decoded: str, piece: str, encoder: TextEncoder) -> bool:
    return holds_text(decoded, piece) or holds_text(decoded, encoder.normalise(piece))


def _spells(decoded: str, value: object) -> bool:
    """Say whether a number, a truth value or null stands by itself, as JSON, Python or C write it."""
    spellings = {json.dumps(value), repr(value)}
    if isinstance(value, float):
        spellings |= {f"{value:g}", f"{value:.0f}"} if value.is_integer() else {f"{value:g}"}
    elif type(value) is int:
        spellings.add(f"{value}.0")  # Clients in JavaScript write 2.0 as 2.
    either = "|".join(map(re.escape, spellings))
    return re.search(rf"(?<![\w.+-])(?:{either})(?![\w.])", decoded) is not None


def _find_other_call(message: ReadMessage, decoded: str) -> str | None:
    """Return the first name of a message's calls where its ids open more calls than it has.

    A mark that opens each call (``<tool_call>``) tells how many there are; a text of the message may
    hold it too. Words before the calls that the message does not have are those that its ids say.
    """
    said = json.dumps([*message.texts, message.reasoning, *read_call_values(message.calls)])
    for mark in _CALL_MARKS:
        if decoded.count(mark) - said.count(mark) > len(message.calls):
            return next((v for v in read_call_values(message.calls) if isinstance(v, str)), "")
    before = min((decoded.find(mark) for mark in _CALL_MARKS if mark in decoded), default=0)
    shown = decoded[:before]
    for close in _THINK_CLOSES:
        shown = shown.rpartition(close)[2]
    if shown.strip() and not "".join(message.texts).strip() and not message.reasoning:
        return ""
    return None


def _find_other_answer(message: ReadMessage, decoded: str, encoder: TextEncoder) -> str | None:
    """Return the content of a message without calls whose ids say more than it and its thought."""
    content = "".join(message.texts).strip()
    shown = decoded.strip()
    marks = (*_THINK_CLOSES, *encoder.added_tokens)
    for spelling in {content, encoder.normalise(content)}:
        before = shown.removesuffix(spelling).rstrip()
        if shown.endswith(spelling) and (
            not before
            or before.endswith(marks)
            or (message.reasoning and holds_text(before, message.reasoning))
        ):
            return None
    return content

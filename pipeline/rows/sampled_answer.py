"""Sampled ids against the answer beside them: another answer's ids must not become the row."""

from __future__ import annotations

import json
import re
from typing import Final

from pipeline.answer.marks import THINK_MARKS
from pipeline.answer.pieces import ReadMessage, read_message
from pipeline.rows.shown import holds_text, read_call_values
from pipeline.tokens.encoder import Ids, TextEncoder
from pipeline.types import Message

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
    return None if message.calls else _find_other_answer(message, decoded, encoder)


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

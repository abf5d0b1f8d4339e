"""Ids that a server returned (``return_token_ids``): used as they are, once they were checked.

They win over text, because encoding the same text again can give other ids than were sampled; but
what stands beside them must be theirs: another conversation's prompt, or another answer, is refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Sequence
from typing import Final

import numpy as np

from pipeline.answer.marks import THINK_MARKS
from pipeline.answer.pieces import ReadMessage, read_message
from pipeline.errors import Rejected, excerpt_of
from pipeline.rows.shown import holds_text, read_call_values
from pipeline.tokens.encoder import TextEncoder
from pipeline.tokens.ids import Ids
from pipeline.types import Message

# Marks that stand before each call, and not in a text (Qwen, Hermes, GLM; Kimi; DeepSeek).
_CALL_MARKS: Final = ("<tool_call>", "<|tool_call_begin|>", "<｜tool▁call▁begin｜>")
_THINK_CLOSES: Final = tuple(close for _, close in THINK_MARKS)
_THINK_MARKS: Final = tuple(mark for pair in THINK_MARKS for mark in pair)


def check_context_ids(ids: Sequence[int], encoder: TextEncoder) -> Ids:
    """Return the ids of a prompt as int32. Raises `Rejected` (``empty_context``, ``bad_ids``)."""
    if not ids:
        raise Rejected("empty_context", "context_ids: empty; expected the ids of the served prompt")
    _refuse_padding("context_ids", ids, encoder, alone=encoder.pads_alone)
    return _check_range("context_ids", ids, encoder.vocabulary_size)


def _refuse_padding(name: str, ids: Sequence[int], encoder: TextEncoder, *, alone: bool) -> None:
    """Refuse ids that begin or end with padding: they are of a batch, not what a server saw.

    ``alone`` says whether one such id is padding already: in an answer it may be what was sampled.
    """
    pad = encoder.pad_id
    if pad is None or pad not in (ids[0], ids[-1]):
        return
    for place, edge in ((0, ids[:2]), (len(ids) - 1, ids[-2:])):
        if list(edge) == [pad, pad] or (alone and ids[place] == pad):
            raise Rejected(
                "bad_ids",
                f"{name}[{place}]: padding, which no server saw or sampled; "
                "expected the ids without it",
                pad,
            )


def check_continuation_ids(
    ids: Sequence[int],
    continuation: str | Message,
    encoder: TextEncoder,
    end_ids: Collection[int],
    *,
    needs_end: bool,
) -> Ids:
    """Return the sampled ids as int32, the token that ends their turn included.

    ``continuation`` is what the example says they stand for: a text (empty where it says nothing),
    or a message, see `find_unsaid`. A server leaves special tokens out of a text
    (``skip_special_tokens``). ``end_ids`` are those at which a turn can end. Raises `Rejected`
    (``empty_continuation``, ``bad_ids``) for ids outside the vocabulary, an end before the last id,
    none at the last where ``needs_end``, and ids that decode to another answer.
    """
    if not ids:
        raise Rejected("empty_continuation", "continuation_ids: empty; expected the sampled ids")
    _refuse_padding("continuation_ids", ids, encoder, alone=False)
    checked = _check_range("continuation_ids", ids, encoder.vocabulary_size)
    body = checked[:-1] if int(checked[-1]) in end_ids else checked
    if needs_end and end_ids and len(body) == len(checked):
        raise Rejected(
            "bad_ids",
            "continuation_ids: their last is no end of turn (a stop id of generation_config.json, or "
            "what the template writes), so the turn was cut; end_of_turn: none trains it as it is",
            ids[-1],
        )
    if not len(body):
        raise Rejected("empty_continuation", "continuation_ids: nothing but the end of turn")
    early = np.flatnonzero(np.isin(body, list(end_ids)))
    if len(early):
        raise Rejected(
            "bad_ids",
            f"continuation_ids[{early[0]}]: an end of turn before the last id",
            int(body[early[0]]),
        )
    decoded = encoder.decode(body)
    if not decoded or decoded.isspace():
        raise Rejected(
            "empty_continuation",
            "continuation_ids: nothing but white space; expected an answer",
            decoded,
        )
    if isinstance(continuation, str):
        _check_text(continuation, checked, body, encoder)
    elif (missing := find_unsaid(continuation, body, encoder)) is not None:
        raise Rejected(
            "bad_ids",
            "continuation_ids: decode to another answer than the message beside them, which says "
            f"{excerpt_of(missing)}",
            decoded,
        )
    return checked


def _check_text(text: str, checked: Ids, body: Ids, encoder: TextEncoder) -> None:
    if text and not {text, encoder.normalise(text)} & _spellings(checked, body, encoder):
        raise Rejected(
            "bad_ids",
            f"continuation_ids: decode to another text than continuation, {excerpt_of(text)}",
            encoder.decode(body),
        )


def _spellings(checked: Ids, body: Ids, encoder: TextEncoder) -> set[str]:
    """Return the texts that a log may give for these ids."""
    special = [encoder.added_tokens[token] for token in encoder.special_tokens]
    shown = body[~np.isin(body, special)]
    return {encoder.decode(ids) for ids in (body, checked, shown)}


def _check_range(name: str, ids: Sequence[int], vocabulary_size: int) -> Ids:
    for place, id_ in enumerate(ids):
        if not 0 <= id_ < vocabulary_size:
            raise Rejected(
                "bad_ids",
                f"{name}[{place}]: expected an id of this tokenizer, below {vocabulary_size}",
                id_,
            )
    return np.array(ids, np.int32)


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


def check_served_prompt(served: str, user_text: str, header: str) -> None:
    """Refuse a prompt that differs from the messages beside it in more than its spelling.

    ``served`` is what its ids decode to, ``user_text`` the last that a user says in the messages,
    ``header`` what the template writes behind them for the model to answer; an empty think block
    there is the request's choice. Raises `Rejected` (``bad_ids``).

    >>> check_served_prompt("<user>Hi<model><think></think>", "Hi", "<model>")
    """
    if user_text and not holds_text(served, user_text):
        raise Rejected(
            "bad_ids",
            "context_ids: decode to a prompt without the last text of the user in the messages, "
            f"{excerpt_of(user_text)}; expected the ids of the prompt of these messages",
            served[-200:],
        )
    if not _without_think_end(served).endswith(_without_think_end(header)):
        raise Rejected(
            "bad_ids",
            "context_ids: decode to a prompt that does not end as this template lets the model answer, "
            f"with {excerpt_of(header.strip())}; expected the ids up to the first sampled one",
            served[-60:],
        )


def check_served_text(served: str, text: str) -> None:
    """Refuse a prompt that does not hold the text beside it. Raises `Rejected` (``bad_ids``)."""
    if text.strip() not in served:
        raise Rejected(
            "bad_ids",
            f"context_ids: decode to another text than the context beside them, {excerpt_of(text)}",
            served,
        )


def find_header(prompt: str, turn: str, last_text: str) -> str:
    """Return what a template writes for the model to answer, empty where it cannot be told.

    ``turn`` is the rendering of the same messages without it; where that is no beginning of
    ``prompt``, what stands behind ``last_text``, the last of the messages' texts.

    >>> find_header("<user>Hi<end><model>", "<user>Hi<end>", "Hi")
    '<model>'
    """
    if turn and prompt.startswith(turn) and prompt[len(turn) :].strip():
        return prompt[len(turn) :]
    at = prompt.rfind(last_text) if last_text else -1
    return prompt[at + len(last_text) :] if at >= 0 else ""


def _without_think_end(text: str) -> str:
    """Return a prompt without the white space and the think marks at its end."""
    bare = text.rstrip()
    while mark := next((mark for mark in _THINK_MARKS if bare.endswith(mark)), ""):
        bare = bare.removesuffix(mark).rstrip()
    return bare

"""A message as continuation: the template's rendering of context and message, minus the prompt.

Where the prompt is no prefix of that rendering the message's turn is found in one of the named ways
of `_find_follow`, or the message is refused. What the template writes is checked to hold every piece
of the message, so that nothing is dropped in silence.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final, cast

from pipeline.answer.calls import is_read_back
from pipeline.answer.pieces import (
    ReadMessage,
    function_of,
    holds,
    leaves_of,
    name_pieces,
    parse_arguments,
    texts_in,
)
from pipeline.answer.refusals import explain_refusal
from pipeline.answer.seam import Seam, common_length, find_seam
from pipeline.answer.turn import Turn, TurnFacts, find_end
from pipeline.errors import Rejected, excerpt_of

# An answer that no context says, to see where the context ends in a rendering.
_NEUTRAL_ANSWER = "Quagga is the last."


@dataclass(frozen=True, slots=True)
class RenderedMessage:
    """``text`` up to its end of turn, the token that ends it (None: cannot be told), and flags."""

    text: str
    end_of_turn: str | None
    flags: tuple[str, ...]


def render_message(message: ReadMessage, turn: Turn) -> RenderedMessage:
    """Return what the model must emit to say ``message`` as this ``turn``.

    Raises `Rejected`: ``control_tokens`` where a text of the message holds an end of turn or a turn
    header, ``not_renderable`` where the template does not write the message as one turn after the
    prompt, and what the dialect or the template refuses.
    """
    if not turn.request.messages:
        raise _not_renderable("a message with more than text needs messages as its context")
    for text in (*message.texts, message.reasoning):
        stray = turn.facts.forbidden.search(text)
        if stray is not None:
            raise Rejected(
                "control_tokens",
                f"continuation: the message's text holds {excerpt_of(stray[0])}, which ends or opens a turn",
                text[stray.start() :],
            )
    first_refusal: Rejected | None = None
    for spelling in _spellings_of(message):
        try:
            return _render_spelling(spelling, turn)
        except Rejected as error:
            first_refusal = first_refusal or error
    assert first_refusal is not None
    said = turn.request_with(message.message)
    raise explain_refusal(first_refusal, said, turn.dialect, turn.templates)


def _spellings_of(message: ReadMessage) -> Iterator[ReadMessage]:
    """Yield the message as templates take it: null content as empty text (vLLM's rule), then as null.

    Some templates raise on null or print ``None``, some write a call only where content is null.
    """
    content = message.message.get("content")
    if content is None:
        yield replace(message, message={**message.message, "content": ""})
    yield message
    if content == "":
        yield replace(message, message={**message.message, "content": None})


def _render_spelling(message: ReadMessage, turn: Turn) -> RenderedMessage:
    facts = turn.facts
    rendering = turn.render(message.message)
    rest, way = _find_follow(rendering.text, turn)
    if not message.has_parts:
        rest = _unwrap_text(rest, message)
    flags = {*rendering.flags, *({"prompt_not_prefix"} if way != "prefix" else ())}
    if message.reasoning and not holds(rest, message.reasoning):
        rest = _think_first(message.reasoning, rest, turn)
        flags.add("prompt_not_prefix")
    elif message.reasoning:
        _refuse_thought_after_close(turn)
    text, end = _cut_at_end(rest, message, facts)
    printed = _find_python(text, message)
    if printed is not None:
        raise _not_renderable(
            f"the template prints {excerpt_of(printed)}, which is Python and no text of a model",
            text,
        )
    if message.calls and not is_read_back(message, text, facts.call_form, turn.request.tools):
        flags.add("call_not_read_back")
    if facts.forbidden.search(text):
        raise _not_renderable("the template spreads the message over several turns", text)
    return RenderedMessage(text, end, tuple(sorted(flags)))


def _not_renderable(reason: str, found: object = "") -> Rejected:
    return Rejected(
        "not_renderable",
        f"continuation: {reason}; write what the model must emit as text instead",
        found,
    )


def _find_follow(full: str, turn: Turn) -> tuple[str, str]:
    """Return what follows the prompt in ``full``, and by which way it was found.

    ``prefix``, ``white_space``, ``think``: see `Seam`. ``moved_context``: the template writes the
    context otherwise once the turn is there (Mistral moves the system text, gpt-oss drops earlier
    thought). Then the end of the context's last text is looked for, where a rendering with a neutral
    answer has it too, and what the prompt writes after that text must lead into the turn.
    """
    prompt, facts = turn.prompt, turn.facts
    seam = find_seam(prompt, full, facts.control, facts.think_pair)
    if seam is not None:
        return _follow(full, seam, facts), seam.way
    other = turn.render({"role": "assistant", "content": _NEUTRAL_ANSWER}).text
    last = next(
        (
            text
            for message in reversed(turn.request.messages)
            for text in texts_in(message.get("content"))
        ),
        "",
    ).strip()
    in_prompt, in_full = prompt.rfind(last), other.rfind(last)
    end = in_full + len(last)
    if last and in_prompt >= 0 and in_full >= 0 and end <= common_length(other, full):
        header, rest = prompt[in_prompt + len(last) :], full[end:]
        seam = find_seam(header, rest, facts.control, facts.think_pair)
        if seam is not None:
            return _follow(rest, seam, facts), "moved_context"
    at = common_length(prompt, full)
    raise _not_renderable(
        "the prompt is no prefix of the template's rendering with the message: where the prompt has "
        f"{excerpt_of(prompt[at : at + 30])} that has {excerpt_of(full[at : at + 30])}"
    )


def _follow(full: str, seam: Seam, facts: TurnFacts) -> str:
    rest = full[seam.at :]
    if seam.way == "think" and facts.think_close and facts.think_close in seam.lost:
        # The prompt has closed the block, so a closing mark of the rendering is not said again.
        at = len(rest) - len(rest.lstrip())
        rest = rest[:at] + rest[at:].removeprefix(facts.think_close)
    return rest


def _think_first(reasoning: str, rest: str, turn: Turn) -> str:
    """Return the turn with the reasoning that the template dropped, in its own think marks."""
    pair = turn.facts.think_pair
    if pair is None:
        raise _not_renderable("the template drops the reasoning and has no think marks", reasoning)
    _refuse_thought_after_close(turn)
    opening = "" if turn.think_state.kind == "open" else f"{pair[0]}\n"
    return f"{opening}{reasoning}{turn.facts.think_closing}{rest.lstrip()}"


def _refuse_thought_after_close(turn: Turn) -> None:
    if turn.think_state.kind == "closed":
        raise _not_renderable(
            "the message has reasoning, but the generation prompt has already closed the think block "
            "(chat_template_kwargs may switch thinking on)"
        )


def _cut_at_end(rest: str, message: ReadMessage, facts: TurnFacts) -> tuple[str, str | None]:
    """Return ``rest`` up to its end of turn, and that token: the first with every piece before it."""
    named = list(name_pieces(message))
    missing = next((piece for piece in named if not holds(rest, piece.text)), None)
    if missing is not None:
        raise _not_renderable(
            f"the template drops a part of the message, {missing.what}", missing.text
        )
    pieces = [piece.text for piece in named]
    found = find_end(rest, 0, facts.ends, facts.control)
    while found is not None:
        if all(holds(rest[: found[0]], piece) for piece in pieces):
            if facts.stop_tokens and found[1] not in facts.ends:
                break
            return rest[: found[0]], found[1]
        found = find_end(rest, found[0] + len(found[1]), facts.ends, facts.control)
    return rest, facts.tool_end if message.calls else facts.end_of_turn


# How Python prints what a template is given: parts, calls, messages, what is not there.
_PRINTED: Final = re.compile(
    r"\[\{'(?:type|text|id|function|name)':|\{'(?:role|function)':|\bUndefined\b|<generator object"
)


def _unwrap_text(text: str, message: ReadMessage) -> str:
    """Return ``text`` with the content in place of the printed part that a server wraps it in.

    vLLM gives a template that loops over parts a list also where the content is text; Kimi-K2's
    prints that list beside calls.
    """
    content = message.message.get("content") or ""
    return text.replace(repr([{"type": "text", "text": content}]), content)


def _find_python(text: str, message: ReadMessage) -> str | None:
    """Return what the template prints of Python's in ``text``, beyond what the message says itself."""
    said = [piece.text for piece in name_pieces(message)]
    arguments = [parse_arguments(function_of(call).get("arguments")) for call in message.calls]
    for each in arguments:
        printed = repr(each) if isinstance(each, dict) and each else ""
        if printed and text.count(printed) > sum(piece.count(printed) for piece in said):
            return printed
    keys = {key for each in arguments for key in leaves_of(each)}
    for match in _PRINTED.finditer(text):
        key = match[0].strip("[{':")
        if key not in keys and not any(match[0] in piece for piece in said):
            return text[match.start() : match.start() + 80]
    nulls = sum(map(_count_nulls, arguments)) + sum(piece.count("None") for piece in said)
    return "None" if text.count("None") > nulls else None


def _count_nulls(value: object) -> int:
    if isinstance(value, dict | list):
        items = cast("list[object]", list(value.values()) if isinstance(value, dict) else value)
        return sum(map(_count_nulls, items))
    return value is None

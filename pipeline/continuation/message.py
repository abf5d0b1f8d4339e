"""A message as continuation: the template's rendering of context and message, minus the prompt.

Where the prompt is no prefix of that rendering the message's turn is found in one of the named ways
of `_find_follow`, or the message is refused. What the template writes is checked to hold every piece
of the message, so that nothing is dropped in silence.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from pipeline.continuation.think import DEFAULT_PAIR, read_think_state
from pipeline.errors import Rejected, excerpt_of
from pipeline.server import ChatRequest, Dialect, Message
from pipeline.template.chat_template import ChatTemplates
from pipeline.template.seam import Seam, common_length, find_seam
from pipeline.template.turn_facts import TurnFacts, find_end

_REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")
# An answer that no context says, to see where the context ends in a rendering.
_NEUTRAL_ANSWER = "Quagga is the last."


@dataclass(frozen=True, slots=True)
class ReadMessage:
    """An assistant's message and its pieces: texts of its content, reasoning, and tool calls."""

    message: Message
    texts: tuple[str, ...]
    reasoning: str
    calls: tuple[Mapping[str, Any], ...]
    has_parts: bool

    @property
    def is_plain(self) -> bool:
        """True where the message is its text and nothing else."""
        return not (self.reasoning or self.calls or self.has_parts)


@dataclass(frozen=True, slots=True)
class RenderedMessage:
    """``text`` up to its end of turn, the token that ends it (None: cannot be told), and flags."""

    text: str
    end_of_turn: str | None
    flags: tuple[str, ...]


def read_message(message: Message) -> ReadMessage:
    """Return the pieces of ``message``; reasoning is read under each of the names in use.

    Raises `Rejected` (``wrong_type``) where a piece has another type than a chat client sends.
    """
    if message.get("role", "assistant") != "assistant":
        raise Rejected("wrong_type", "continuation.role: expected assistant", message.get("role"))
    content = message.get("content")
    if content is not None and not isinstance(content, str | list):
        raise Rejected("wrong_type", "continuation.content: expected text, parts or null", content)
    reasoning: object = next((message[key] for key in _REASONING_KEYS if message.get(key)), "")
    if not isinstance(reasoning, str):
        raise Rejected("wrong_type", "continuation.reasoning: expected text", reasoning)
    calls: object = message.get("tool_calls") or []
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        raise Rejected("wrong_type", "continuation.tool_calls: expected a list of objects", calls)
    complete: Message = {**message, "role": "assistant"}
    if isinstance(content, list) and len(content) == 1 and _text_of_part(content[0]) is not None:
        # One part of text is that text, whichever form the template takes.
        content = complete["content"] = _text_of_part(content[0])
    if reasoning:
        # vLLM 0.33 gives the template both names; a template reads the one it knows.
        complete |= {"reasoning": reasoning, "reasoning_content": reasoning}
    texts = tuple(text for text in _texts_in(content) if text)
    return ReadMessage(
        complete,
        texts,
        reasoning,
        tuple(cast("list[Mapping[str, Any]]", calls)),
        isinstance(content, list),
    )


def _texts_in(content: object) -> Iterator[str]:
    if isinstance(content, str):
        yield content
    elif isinstance(content, list):
        for part in cast("list[object]", content):
            yield _text_of_part(part) or ""


def _text_of_part(part: object) -> str | None:
    """Return the text of a part, None where it is no text."""
    if isinstance(part, Mapping):
        part = cast("Mapping[str, object]", part).get("text")
    return part if isinstance(part, str) else None


def render_message(
    message: ReadMessage,
    prompt: str,
    request: ChatRequest,
    dialect: Dialect,
    templates: ChatTemplates,
    facts: TurnFacts,
) -> RenderedMessage:
    """Return what the model must emit to say ``message`` after ``prompt``.

    Raises `Rejected`: ``control_tokens`` where a text of the message holds an end of turn or a turn
    header, ``not_renderable`` where the template does not write the message as one turn after the
    prompt, and what the dialect or the template refuses.
    """
    if not request.messages:
        raise _not_renderable("a message with more than text needs messages as its context")
    for text in (*message.texts, message.reasoning):
        stray = facts.forbidden.search(text)
        if stray is not None:
            raise Rejected(
                "control_tokens",
                f"continuation: the message's text holds {excerpt_of(stray[0])}, which ends or opens a turn",
                text[stray.start() :],
            )
    first_refusal: Rejected | None = None
    for spelling in _spellings_of(message):
        try:
            return _render_spelling(spelling, prompt, request, dialect, templates, facts)
        except Rejected as error:
            first_refusal = first_refusal or error
    assert first_refusal is not None
    raise first_refusal


def _spellings_of(message: ReadMessage) -> Iterator[ReadMessage]:
    """Yield the message as templates take it: null content as empty text (vLLM's rule), then as null.

    Some templates raise on null or print ``None``, some write a call only where content is null.
    """
    if message.message.get("content") is None:
        yield replace(message, message={**message.message, "content": ""})
    yield message


def _render_spelling(
    message: ReadMessage,
    prompt: str,
    request: ChatRequest,
    dialect: Dialect,
    templates: ChatTemplates,
    facts: TurnFacts,
) -> RenderedMessage:
    rendering = dialect.render_turn(_with_message(request, message.message), templates)
    rest, way = _find_follow(rendering.text, prompt, request, dialect, templates, facts)
    flags = {*rendering.flags, *({"prompt_not_prefix"} if way != "prefix" else ())}
    if message.reasoning and not _holds(rest, message.reasoning):
        rest = _think_first(message.reasoning, rest, prompt, facts)
        flags.add("prompt_not_prefix")
    elif message.reasoning:
        _refuse_thought_after_close(prompt, facts)
    text, end = _cut_at_end(rest, message, facts)
    if message.has_parts and repr(message.message["content"]) in text:
        raise _not_renderable(
            "the template prints the list of parts; give the content as text", text
        )
    if facts.forbidden.search(text):
        raise _not_renderable("the template spreads the message over several turns", text)
    return RenderedMessage(text, end, tuple(sorted(flags)))


def _with_message(request: ChatRequest, message: Message) -> ChatRequest:
    return replace(request, messages=[*request.messages, message])


def _not_renderable(reason: str, found: object = "") -> Rejected:
    return Rejected(
        "not_renderable",
        f"continuation: {reason}; write what the model must emit as text instead",
        found,
    )


def _find_follow(
    full: str,
    prompt: str,
    request: ChatRequest,
    dialect: Dialect,
    templates: ChatTemplates,
    facts: TurnFacts,
) -> tuple[str, str]:
    """Return what follows the prompt in ``full``, and by which way it was found.

    ``prefix``, ``white_space``, ``think``: see `Seam`. ``moved_context``: the template writes the
    context otherwise once the turn is there (Mistral moves the system text, gpt-oss drops earlier
    thought). Then the end of the context's last text is looked for, where a rendering with a neutral
    answer has it too, and what the prompt writes after that text must lead into the turn.
    """
    seam = find_seam(prompt, full, facts.control, facts.think_pair)
    if seam is not None:
        return _follow(full, seam, facts), seam.way
    neutral = {"role": "assistant", "content": _NEUTRAL_ANSWER}
    other = dialect.render_turn(_with_message(request, neutral), templates).text
    last = next(
        (
            text
            for message in reversed(request.messages)
            for text in _texts_in(message.get("content"))
        ),
        "",
    ).strip()
    in_prompt, in_full = prompt.rfind(last), other.rfind(last)
    end = in_full + len(last)
    if last and in_prompt >= 0 and in_full >= 0 and end <= common_length(other, full):
        header, turn = prompt[in_prompt + len(last) :], full[end:]
        seam = find_seam(header, turn, facts.control, facts.think_pair)
        if seam is not None:
            return _follow(turn, seam, facts), "moved_context"
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


def _think_first(reasoning: str, rest: str, prompt: str, facts: TurnFacts) -> str:
    """Return the turn with the reasoning that the template dropped, in its own think marks."""
    pair = facts.think_pair
    if pair is None:
        raise _not_renderable("the template drops the reasoning and has no think marks", reasoning)
    _refuse_thought_after_close(prompt, facts)
    is_open = read_think_state(prompt, pair, facts.last_turn).kind == "open"
    opening = "" if is_open else f"{pair[0]}\n"
    return f"{opening}{reasoning}{facts.think_closing}{rest.lstrip()}"


def _refuse_thought_after_close(prompt: str, facts: TurnFacts) -> None:
    pair = facts.think_pair or DEFAULT_PAIR
    if read_think_state(prompt, pair, facts.last_turn).kind == "closed":
        raise _not_renderable(
            "the message has reasoning, but the generation prompt has already closed the think block "
            "(chat_template_kwargs may switch thinking on)"
        )


def _cut_at_end(rest: str, message: ReadMessage, facts: TurnFacts) -> tuple[str, str | None]:
    """Return ``rest`` up to its end of turn, and that token: the first with every piece before it."""
    pieces = list(_pieces_of(message))
    missing = next((piece for piece in pieces if not _holds(rest, piece)), None)
    if missing is not None:
        raise _not_renderable("the template drops a part of the message", missing)
    found = find_end(rest, 0, facts.ends, facts.control)
    while found is not None:
        if all(_holds(rest[: found[0]], piece) for piece in pieces):
            if facts.stop_tokens and found[1] not in facts.ends:
                break
            return rest[: found[0]], found[1]
        found = find_end(rest, found[0] + len(found[1]), facts.ends, facts.control)
    return rest, facts.tool_end if message.calls else facts.end_of_turn


def _pieces_of(message: ReadMessage) -> Iterator[str]:
    """Yield every text of the message that its turn must hold, white space at the edges aside."""
    yield from message.texts
    yield message.reasoning
    for call in message.calls:
        function: object = call.get("function", call)
        if not isinstance(function, Mapping):
            raise Rejected(
                "wrong_type", "continuation.tool_calls.function: expected an object", call
            )
        named = cast("Mapping[str, Any]", function)
        yield str(named.get("name") or "")
        yield from _leaves_of(_parse_arguments(named.get("arguments")))


def _parse_arguments(arguments: object) -> object:
    if not isinstance(arguments, str) or not arguments.strip():
        return arguments
    try:
        return json.loads(arguments)
    except ValueError as error:
        raise _not_renderable("a tool call's arguments are no JSON", arguments) from error


def _leaves_of(value: object) -> Iterator[str]:
    """Yield the keys and the texts of tool arguments; numbers are spelt in too many ways to look for."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in cast("Mapping[object, object]", value).items():
            yield str(key)
            yield from _leaves_of(item)
    elif isinstance(value, Sequence):
        for item in cast("Sequence[object]", value):
            yield from _leaves_of(item)


def _holds(text: str, piece: str) -> bool:
    """Return True where ``text`` has ``piece``, plain or escaped as JSON or Python write it."""
    bare = piece.strip()
    if bare in text:
        return True
    spellings = (json.dumps(bare), json.dumps(bare, ensure_ascii=False), repr(bare))
    return any(spelling[1:-1] in text for spelling in spellings)

"""What the messages of a context say and its prompt does not show.

A template may leave a message out (a role that it does not know, content beside calls, calls without
tools), and the server then asks the model without it. Every text of a message needs a place of its
own in the prompt, in the order of the messages where the template keeps it. Texts are those of the
content, and names, keys and texts of tool calls; numbers are spelt in too many ways to look for.
Reasoning is no such text: most templates drop it from a history by design, inline think blocks too.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, cast

from pipeline.answer.marks import THINK_MARKS
from pipeline.answer.pieces import values_of
from pipeline.errors import Rejected

_HEAD: Final = 48  # characters by which a text is looked for before it is compared whole
_NEAR: Final = 2_000
_THINK_CLOSES: Final = tuple(close for _, close in THINK_MARKS)
_TEXT_KEYS: Final = ("text", "refusal", "content", "value")
_FEW: Final = 6  # messages of a context that costs less to read again than to remember


class _Said(NamedTuple):
    """The texts of a message, white space at the edges aside; each is replaced by its spelling."""

    source: Mapping[str, Any]
    texts: list[str]
    calls: list[str]


@dataclass(slots=True)
class _Reading:
    """How far a prompt was read: messages, the place after the last text found, what was found."""

    owner: object = None
    count: int = 0
    cursor: int = 0
    beginning: str = ""
    has_request: bool = False
    spans: list[tuple[int, int]] = field(default_factory=list[tuple[int, int]])
    ahead: list[tuple[int, int]] = field(default_factory=list[tuple[int, int]])
    """The places behind the cursor that are taken, once a text was found before the last one."""


@dataclass(frozen=True, slots=True)
class Unshown:
    """What a prompt does not show: ``place`` of the first message that it leaves out, None for none.

    ``has_request`` is False where it shows no text of a user, a system message or a tool.
    """

    place: int | None
    text: str
    has_request: bool


_ALL_SHOWN: Final = Unshown(None, "", has_request=True)


def find_unshown(
    messages: Sequence[Mapping[str, Any]],
    prompt: str,
    suspects: Sequence[int] = (),
    said: dict[int, Any] | None = None,
    readings: dict[int, Any] | None = None,
    owner: object = None,
) -> Unshown:
    """Return the first message with a text that ``prompt`` does not show.

    ``suspects`` are places of messages that must be shown: one that is not is returned before the
    others. ``said`` and ``readings`` keep what earlier calls found, of the messages by the id of
    each, and of the conversation ``owner`` whose contexts begin one another.

    >>> find_unshown([{"role": "user", "content": "Hi"}], "<user> Hi <assistant>").place is None
    True
    >>> find_unshown([{"role": "user", "content": "Hi"}], "<assistant>").has_request
    False
    """
    if len(messages) <= _FEW and _shows_all(messages, prompt):
        return _ALL_SHOWN
    said = {} if said is None else said
    reading = _resume(prompt, readings, owner, len(messages))
    first: tuple[int, str] | None = None
    for place in range(reading.count, len(messages)):
        message = messages[place]
        if first and reading.has_request and place > max(suspects, default=-1):
            break
        pieces = said.get(id(message))
        if pieces is None:
            pieces = said[id(message)] = _Said(message, *_texts_of(message))
        start = reading.cursor
        missing = _find_texts(prompt, pieces.texts, message, reading)
        if missing is None and pieces.calls:
            missing = _find_calls(prompt, pieces.calls, start)
        if missing is None:
            is_request = message.get("role") != "assistant"
            reading.has_request |= is_request and bool(pieces.texts)
        elif place in suspects:
            return Unshown(place, missing, reading.has_request)
        elif first is None:
            first = place, missing
    if first is not None:
        return Unshown(*first, reading.has_request)
    if readings is not None and all(end <= reading.cursor for _, end in reading.spans):
        reading.owner, reading.count = owner, len(messages)
        reading.beginning = prompt[: reading.cursor]
        readings[id(owner)] = reading
    return Unshown(None, "", reading.has_request)


def _shows_all(messages: Sequence[Mapping[str, Any]], prompt: str) -> bool:
    """Say whether a prompt shows plain texts one after the other, as most do, and a request among them."""
    cursor, has_request = 0, False
    for message in messages:
        content = message.get("content")
        if type(content) is not str or "tool_calls" in message or "refusal" in message:
            return False
        text = content.strip()
        if text:
            at = prompt.find(text[:_HEAD], cursor, cursor + _NEAR)
            if at < 0 or not prompt.startswith(text, at):
                return False
            cursor = at + len(text)
            has_request = has_request or message["role"] != "assistant"
    return has_request


def holds_text(prompt: str, text: str) -> bool:
    """Say whether ``prompt`` shows ``text`` in any of the spellings of templates."""
    return _spell_shown(prompt, text.strip(), "") is not None


def last_user_text(messages: Sequence[Mapping[str, Any]]) -> str:
    """Return the last text of the last user message that has one, empty without any."""
    for message in reversed(messages):
        if message.get("role") == "user":
            texts = [*_content_texts(message.get("content"))]
            if texts:
                return texts[-1]
    return ""


def last_text(messages: Sequence[Mapping[str, Any]]) -> str:
    """Return the last text of the last message, empty without any."""
    texts = [*_content_texts(messages[-1].get("content"))] if messages else []
    return texts[-1] if texts else ""


def refuse_empty(messages: Sequence[Mapping[str, Any]]) -> Rejected:
    """Return the refusal of a context whose prompt shows no text of a user, a system or a tool."""
    asking = [message for message in messages if message.get("role") != "assistant"]
    if not any(_texts_of(message)[0] for message in asking):
        return Rejected(
            "empty_context",
            "messages: no text of a user, a system message or a tool in them; "
            "expected what the model answers",
            [message.get("role") for message in messages],
        )
    return Rejected(
        "not_renderable",
        "messages: the prompt shows no text of a user, a system message or a tool; look at what the "
        "template does with their roles (context-frozen check)",
        [message.get("role") for message in messages],
    )


def _resume(prompt: str, readings: dict[int, Any] | None, owner: object, count: int) -> _Reading:
    """Return how far an earlier context of the same conversation was read, if this one begins so."""
    found: _Reading | None = None if readings is None else readings.get(id(owner))
    if found is None or found.owner is not owner or found.count > count:
        return _Reading()
    if not prompt.startswith(found.beginning):
        return _Reading()
    return _Reading(
        owner, found.count, found.cursor, found.beginning, found.has_request, [*found.spans]
    )


def _find_texts(
    prompt: str, texts: list[str], message: Mapping[str, Any], reading: _Reading
) -> str | None:
    """Return the first of ``texts`` that has no place in the prompt; move on behind those that have."""
    for index, text in enumerate(texts):
        at = _find_from(prompt, text, reading.cursor)
        if at >= 0 and reading.ahead:
            at = _find_free(prompt, text, at, reading.ahead)
        if at < 0:
            found = _find_spelling(prompt, text, message, reading)
            if found is None:
                return text
            at, text = found
            texts[index] = text
        end = at + len(text)
        if at < reading.cursor:
            reading.ahead = [span for span in reading.spans if span[1] > end]
        reading.cursor = end
        reading.spans.append((at, end))
    return None


def _find_from(prompt: str, text: str, start: int) -> int:
    """Return what ``str.find`` does, quickly where the text stands near ``start``."""
    at = prompt.find(text[:_HEAD], start, start + _NEAR)
    if at >= 0 and prompt.startswith(text, at):
        return at
    return prompt.find(text, start)


def _find_spelling(
    prompt: str, text: str, message: Mapping[str, Any], reading: _Reading
) -> tuple[int, str] | None:
    """Return the place and the spelling of a text that does not stand as it is behind the last one."""
    spellings = [*_spellings_of(text, str(message.get("role")))]
    for start, taken in ((reading.cursor, reading.ahead), (0, reading.spans)):
        # First behind the last text; but a template may move a message (Mistral's write the system
        # text into the last user turn).
        for spelling in spellings:
            at = _find_free(prompt, spelling, prompt.find(spelling, start), taken)
            if at >= 0:
                return at, spelling
    return (reading.cursor, "") if _holds_but_space(prompt, text, reading.cursor) else None


def _find_free(prompt: str, text: str, at: int, taken: Sequence[tuple[int, int]]) -> int:
    """Return the first place of ``text`` from ``at`` on, itself one, that no other text has."""
    while at >= 0 and text and any(at < end and start < at + len(text) for start, end in taken):
        at = prompt.find(text, at + 1)
    return at


def _find_calls(prompt: str, texts: list[str], start: int) -> str | None:
    """Return the first text of a message's calls that does not stand behind ``start``."""
    for index, text in enumerate(texts):
        if prompt.find(text, start) >= 0:
            continue
        spelling = _spell_shown(prompt, text, "", start)
        if spelling is None:
            return text
        texts[index] = spelling
    return None


def _spell_shown(prompt: str, text: str, role: str, start: int = 0) -> str | None:
    for spelling in _spellings_of(text, role):
        if prompt.find(spelling, start) >= 0:
            return spelling
    return "" if _holds_but_space(prompt, text, start) else None


def _spellings_of(text: str, role: str) -> Iterator[str]:
    """Yield a text as templates write it: without its thought, escaped as JSON, Python or XML do."""
    bare = _without_thought(text) if role == "assistant" else text
    for each in (text,) if bare == text else (text, bare):
        yield each
        yield json.dumps(each, ensure_ascii=False)[1:-1]
        yield json.dumps(each)[1:-1]
        yield repr(each)[1:-1]
        yield html.escape(each, quote=False)
        yield html.escape(each)


def _without_thought(text: str) -> str:
    """Return an answer behind the last mark that closes a think block.

    >>> _without_thought("<think>Hm.</think> Yes.")
    'Yes.'
    """
    ends = [at + len(mark) for mark in _THINK_CLOSES if (at := text.rfind(mark)) >= 0]
    return text[max(ends, default=0) :].strip()


def _holds_but_space(prompt: str, text: str, start: int) -> bool:
    """Say whether a text of several words is there but for its white space."""
    squeezed = "".join(text.split())
    return squeezed != text and squeezed in re.sub(r"\s+", "", prompt[start:])


def _texts_of(message: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Return the texts of a message's content, and those of its calls."""
    texts = [*_content_texts(message.get("content"))]
    refusal = message.get("refusal")
    if isinstance(refusal, str) and refusal.strip():
        texts.append(refusal.strip())
    calls = message.get("tool_calls")
    if not isinstance(calls, list):
        return texts, []
    return texts, [*_call_texts(cast("list[Any]", calls))]


def _content_texts(content: object) -> Iterator[str]:
    if isinstance(content, str):
        if bare := content.strip():
            yield bare
    elif isinstance(content, list):
        for part in cast("list[Any]", content):
            yield from _content_texts(_text_of_part(part))


def _text_of_part(part: object) -> object:
    if not isinstance(part, Mapping):
        return part
    fields = cast("Mapping[str, Any]", part)
    if fields.get("type") in ("thinking", "reasoning"):
        return None
    return next((fields[key] for key in _TEXT_KEYS if isinstance(fields.get(key), str)), None)


def _call_texts(calls: Sequence[Any]) -> Iterator[str]:
    for value in read_call_values(calls):
        if isinstance(value, str):
            yield from _content_texts(value)


def read_call_values(calls: Sequence[Any]) -> Iterator[object]:
    """Yield what tool calls say: names, and keys and values of their arguments, JSON text read."""
    for call in calls:
        if not isinstance(call, Mapping):
            continue
        fields = cast("Mapping[str, Any]", call)
        function = fields.get("function", fields)
        if not isinstance(function, Mapping):
            continue
        named = cast("Mapping[str, Any]", function)
        yield named.get("name") or ""
        arguments = named.get("arguments")
        if isinstance(arguments, str):
            try:
                arguments = json.loads(arguments)
            except (ValueError, RecursionError):
                continue
        if arguments is not None:
            yield from values_of(arguments)

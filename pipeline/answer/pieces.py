"""The pieces of an assistant's message: texts, reasoning and calls, each read as what it is."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, cast

from pipeline.answer.marks import THINK_MARKS
from pipeline.errors import Rejected, excerpt_of
from pipeline.types import Message

_REASONING_FIELDS: Final = ("reasoning_content", "reasoning", "thinking")
_PART_FIELDS: Final = ("thinking_blocks", "reasoning_details")
# The key that holds the text of a part, by the part's type.
_TEXT_PARTS: Final = {
    "text": "text",
    "input_text": "text",
    "output_text": "text",
    "refusal": "refusal",
}
# The keys under which the text of a part of thought is found, by the part's type.
_THOUGHT_PARTS: Final = {
    "thinking": ("thinking", "text"),
    "reasoning": ("reasoning", "text"),
    "reasoning.text": ("text",),
}


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


class Piece(NamedTuple):
    """A text that the turn must hold, and what it is of the message."""

    what: str
    text: str


def read_message(message: Message) -> ReadMessage:
    """Return the pieces of ``message``; reasoning is read under each of the names in use.

    Raises `Rejected`: ``wrong_type`` where a piece has another type than a chat client sends,
    ``unsupported_content`` for a part that is neither text nor thought, ``ambiguous_shape`` where the
    reasoning is given twice.
    """
    if message.get("role", "assistant") != "assistant":
        raise Rejected("wrong_type", "continuation.role: expected assistant", message.get("role"))
    content = message.get("content")
    if content is not None and not isinstance(content, str | list):
        raise Rejected("wrong_type", "continuation.content: expected text, parts or null", content)
    calls: object = message.get("tool_calls") or []
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        raise Rejected("wrong_type", "continuation.tool_calls: expected a list of objects", calls)
    complete: Message = {**message, "role": "assistant"}
    thoughts = dict(_read_reasoning_fields(message))
    if isinstance(content, list):
        parts, thought = _split_parts(cast("list[object]", content), "continuation.content")
        if thought:
            thoughts["content"] = thought
        # One part of text is that text, whichever form the template takes.
        text = _text_of_part(parts[0]) if len(parts) == 1 else None
        content = complete["content"] = (text if text is not None else parts) if parts else None
    texts = tuple(text for text in texts_in(content) if text)
    reasoning = _choose_reasoning(thoughts, texts)
    if reasoning:
        # vLLM 0.33 gives the template both names; a template reads the one it knows.
        complete |= {"reasoning": reasoning, "reasoning_content": reasoning}
    listed = tuple(cast("list[Mapping[str, Any]]", calls))
    return ReadMessage(complete, texts, reasoning, listed, isinstance(content, list))


def _read_reasoning_fields(message: Message) -> Iterator[tuple[str, str]]:
    """Yield each field that holds reasoning, with its text."""
    for name in _REASONING_FIELDS:
        value = message.get(name)
        if value and not isinstance(value, str):
            raise Rejected("wrong_type", f"continuation.{name}: expected text", value)
        if value:
            yield name, value
    for name in _PART_FIELDS:
        value = message.get(name)
        if not value:
            continue
        if not isinstance(value, list):
            raise Rejected("wrong_type", f"continuation.{name}: expected a list of parts", value)
        texts, thought = _split_parts(cast("list[object]", value), f"continuation.{name}")
        if texts:
            raise Rejected(
                "wrong_type", f"continuation.{name}: expected parts of thought", texts[0]
            )
        if thought:
            yield name, thought


def _choose_reasoning(thoughts: Mapping[str, str], texts: Sequence[str]) -> str:
    """Return the one reasoning of a message; two that differ, or one inside the text too, are refused."""
    distinct = {text.strip(): text for text in thoughts.values() if text.strip()}
    if len(distinct) > 1:
        raise Rejected(
            "ambiguous_shape",
            f"continuation: {' and '.join(thoughts)} hold different reasoning; expected one of them",
            list(distinct)[1],
        )
    reasoning = next(iter(distinct.values()), "")
    inline = next((text for text in texts if _begins_with_thought(text)), None)
    if reasoning and inline is not None:
        raise Rejected(
            "ambiguous_shape",
            f"continuation: reasoning is given twice, in {' and '.join(thoughts)} and in the content "
            f"({excerpt_of(inline)}); expected it in one of them",
            inline,
        )
    return reasoning


def _begins_with_thought(text: str) -> bool:
    bare = text.lstrip()
    return any(bare.startswith(opening) and closing in bare for opening, closing in THINK_MARKS)


def _split_parts(content: list[object], where: str) -> tuple[list[object], str]:
    """Return the parts of text, and the text of the parts of thought, which come first.

    Thought in several parts, or after text, has no one place in the turn.
    """
    parts: list[object] = []
    thoughts: list[str] = []
    for index, part in enumerate(content):
        at = f"{where}[{index}]"
        thought = _read_thought(part, at)
        if thought is None:
            _refuse_unknown_part(part, at)
            parts.append(part)
        elif thought.strip():
            thoughts.append(thought)
            if any(_text_of_part(text) for text in parts) or len(thoughts) > 1:
                raise Rejected(
                    "not_renderable",
                    f"{at}: thought after text or in several parts; expected one part of thought, "
                    "before the text",
                    thought,
                )
    return parts, thoughts[0] if thoughts else ""


def _read_thought(part: object, where: str) -> str | None:
    """Return the text of a part of thought, None for another part."""
    if not isinstance(part, Mapping):
        return None
    given = cast("Mapping[str, Any]", part)
    kind = given.get("type")
    # Gemini marks thought in a part of text.
    keys = ("text",) if given.get("thought") is True else _THOUGHT_PARTS.get(str(kind))
    if keys is None:
        return None
    text: Any = next((given[key] for key in keys if given.get(key) is not None), None)
    if isinstance(text, list):
        chunks = [_text_of_part(chunk) for chunk in cast("list[object]", text)]
        text = None if None in chunks else "".join(chunk or "" for chunk in chunks)
    if not isinstance(text, str):
        raise Rejected(
            "unsupported_content",
            f"{where}: a part of type {kind} without its text; expected the text that the model wrote",
            given,
        )
    return text


def _refuse_unknown_part(part: object, where: str) -> None:
    if isinstance(part, str):
        return
    kind = (
        cast("Mapping[str, Any]", part).get("type", "text") if isinstance(part, Mapping) else None
    )
    if not isinstance(kind, str) or kind not in _TEXT_PARTS:
        raise Rejected(
            "unsupported_content",
            f"{where}: a part of type {excerpt_of(kind)} cannot be trained on; expected text, thinking "
            "or reasoning (calls belong into tool_calls)",
            part,
        )
    text = cast("Mapping[str, Any]", part).get(_TEXT_PARTS[kind])
    if text is not None and not isinstance(text, str):
        raise Rejected("wrong_type", f"{where}.{_TEXT_PARTS[kind]}: expected text", text)


def _text_of_part(part: object) -> str | None:
    """Return the text of a part, None where it is no text."""
    if isinstance(part, Mapping):
        given = cast("Mapping[str, object]", part)
        part = given.get(_TEXT_PARTS.get(str(given.get("type", "text")), "text"))
    return part if isinstance(part, str) else None


def texts_in(content: object) -> Iterator[str]:
    """Yield the text of a content, or those of its parts."""
    if isinstance(content, str):
        yield content
    elif isinstance(content, list):
        for part in cast("list[object]", content):
            yield _text_of_part(part) or ""


def name_pieces(message: ReadMessage) -> Iterator[Piece]:
    """Yield every text of the message that its turn must hold, white space at the edges aside."""
    beside = " beside the calls" if message.calls else ""
    for text in message.texts:
        yield Piece(f"the content{beside}", text)
    yield Piece("the reasoning", message.reasoning)
    for index, call in enumerate(message.calls):
        function = function_of(call)
        yield Piece(f"the name of tool_calls[{index}]", str(function.get("name") or ""))
        for text in leaves_of(parse_arguments(function.get("arguments"))):
            yield Piece(f"an argument of tool_calls[{index}]", text)


def function_of(call: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the name and the arguments of a call."""
    function: object = call.get("function", call)
    if not isinstance(function, Mapping):
        raise Rejected("wrong_type", "continuation.tool_calls.function: expected an object", call)
    return cast("Mapping[str, Any]", function)


def parse_arguments(arguments: object) -> object:
    """Return the arguments of a call as JSON gives them. Raises `Rejected` where they are no JSON."""
    if not isinstance(arguments, str) or not arguments.strip():
        return arguments
    try:
        return json.loads(arguments)
    except ValueError as error:
        raise Rejected(
            "not_renderable",
            "continuation: a tool call's arguments are no JSON; write what the model must emit as "
            "text instead",
            arguments,
        ) from error


def leaves_of(value: object) -> Iterator[str]:
    """Yield the keys and the texts of tool arguments; numbers are spelt in too many ways to look for."""
    return (leaf for leaf in values_of(value) if isinstance(leaf, str))


def values_of(value: object) -> Iterator[object]:
    """Yield the keys of tool arguments, and their values but objects and lists, which are gone through."""
    if isinstance(value, Mapping):
        for key, item in cast("Mapping[object, object]", value).items():
            yield str(key)
            yield from values_of(item)
    elif isinstance(value, list | tuple):
        for item in cast("Sequence[object]", value):
            yield from values_of(item)
    else:
        yield value


def holds(text: str, piece: str) -> bool:
    """Return True where ``text`` has ``piece``, plain or escaped as JSON or Python write it."""
    return spelling_in(text, piece.strip()) is not None


def spelling_in(text: str, piece: str) -> str | None:
    """Return the spelling of ``piece`` that ``text`` has: plain, or escaped; None where it has none."""
    if piece in text:
        return piece
    spellings = (json.dumps(piece), json.dumps(piece, ensure_ascii=False), repr(piece))
    return next((spelling[1:-1] for spelling in spellings if spelling[1:-1] in text), None)

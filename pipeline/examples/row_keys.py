"""Which keys of a row its reader used, and what becomes of the others: nothing is ignored in silence.

A reader takes its fields out of a `TrackedRow`, which remembers what it was asked for. Once the
example is there, `settle_keys` looks at what is left. A key that some shape knows, or by which rows
name another answer, another prompt, ids, masks or a failed call, is refused, unless all that it says
was read elsewhere (UltraChat's ``prompt`` is the first message once more). The others are named, to be
counted.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final, cast

from pipeline.errors import Rejected
from pipeline.examples.key_names import (
    find_meaning,
    is_bad_verdict,
    is_mask,
    is_selection,
    is_strong,
)
from pipeline.examples.outcomes import refuse_outcome
from pipeline.examples.said import (
    Said,
    answers_in,
    holds_an_answer,
    is_list_of_numbers,
    is_list_of_objects,
    leaves_of,
    looks_like_messages,
    looks_like_tools,
    tools_in,
)
from pipeline.lines.known_keys import (
    ANSWERS,
    BETTER,
    KNOWN_KEYS,
    MASKS,
    NAMES,
    OPTION_NAMES,
    ORIGINALS,
    OUTCOMES,
    PROMPT_SWITCHES,
    PROMPTS,
    RECORDS,
    SWITCHES,
    SYSTEMS,
    THOUGHTS,
    TOOL_NAMES,
)

if TYPE_CHECKING:
    from pipeline.examples.example import TrainingExample


class TrackedRow(dict[str, Any]):
    """One JSON object that knows which of its keys were asked for; ``in`` does not count as asking.

    ``path`` stands before its keys in messages (``request.``). ``parts`` are objects inside it that a
    reader looked into, ``noted`` names of keys that a reader itself leaves out.
    """

    __slots__ = ("asked", "noted", "parts", "path")

    def __init__(self, values: Mapping[str, Any], path: str = "") -> None:
        super().__init__(values)
        self.path = path
        self.asked: set[str] = set()
        self.parts: list[TrackedRow] = []
        self.noted: set[str] = set()

    def get(self, key: str, default: Any = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return a value, and remember that it was asked for."""
        self.asked.add(key)
        return dict.get(self, key, default)

    def __getitem__(self, key: str) -> Any:
        self.asked.add(key)
        return dict.__getitem__(self, key)

    def take(self, names: frozenset[str]) -> dict[str, Any]:
        """Return the values of those of ``names`` that are there."""
        found = names & self.keys()
        self.asked |= found
        get = super().__getitem__
        return {name: get(name) for name in found}

    def peek(self, key: str) -> Any:
        """Return a value that decides how the row is read, and is not used itself."""
        return dict.get(self, key)

    def part(self, values: Mapping[str, Any], path: str) -> TrackedRow:
        """Return an object inside this one, its keys tracked too."""
        part = TrackedRow(values, path)
        self.parts.append(part)
        return part

    def note(self, prefix: str, names: Iterable[str]) -> None:
        """Name keys that were left out of a message."""
        self.noted.update(f"{prefix}{name}" for name in names)


_EMPTY: Final[tuple[Any, ...]] = (None, "", [], {})
_DEEPEST: Final = 8

_READ_OF_MESSAGES: Final = frozenset(
    {
        *("role", "content", "reasoning", "reasoning_content", "tool_calls", "tool_call_id"),
        *("name", "tools", "task", "phase"),
    }
)
_READ_OF_PARTS: Final = frozenset(
    {"type", "text", "thinking", "reasoning", "refusal", "name", "image_url", "uuid"}
)


def settle_keys(row: TrackedRow, example: TrainingExample) -> frozenset[str]:
    """Return the names of what the reader of ``row`` left: of the row, its messages, their parts.

    Raises `Rejected` (``ambiguous_shape``) for a known key whose value would be lost, and what
    `refuse_outcome` raises.
    """
    names = set(_name_message_keys(example)) | row.noted
    said: Said | None = None
    rows = [row]
    while rows:
        each = rows.pop()
        rows += each.parts
        names |= each.noted
        # In order, so that a row with two faults is refused for the same one anywhere.
        for name in sorted(each.keys() - each.asked):
            value = dict.get(each, name)
            if value in _EMPTY:
                continue
            if name in RECORDS and isinstance(value, dict):
                # A request that nobody looked into: each of its keys counts by itself.
                rows.append(TrackedRow(cast("dict[str, Any]", value), f"{each.path}{name}."))
                continue
            said = said or Said(example, is_logged=row.keys().isdisjoint(BETTER))
            _refuse_lost(each.path, name, value, said)
            if name not in NAMES:
                names.add(each.path + name)
    return frozenset(names)


def _refuse_lost(path: str, name: str, value: Any, said: Said) -> None:
    """Raise `Rejected` where the value of a key that nobody read would be lost."""
    lost = ""
    if not path.startswith("request."):
        refuse_outcome(path + name, name, value)
    if name in KNOWN_KEYS:
        lost = f"{path}{name}" if _is_lost(name, value, said) else ""
    elif _means_what_is_lost(name, value, said):
        lost = f"{path}{name}"
    elif isinstance(value, dict | list):
        lost = next(_find_request_keys(value, f"{path}{name}", said, 0), "")
    if lost:
        raise Rejected(
            "ambiguous_shape",
            f"{lost}: this reading of the row would not use it; expected keys of one shape: "
            "remove it, or name it as docs/formats.md does",
            value,
        )


def _is_lost(name: str, value: Any, said: Said) -> bool:
    """Say whether a known key holds what the example does not."""
    if name in OUTCOMES or name in NAMES:
        return False
    if name in SWITCHES:
        if isinstance(value, str):
            return is_bad_verdict("label", value)
        return value is False or (type(value) in (int, float) and value == 0)
    if name in MASKS:
        return not said.holds_mask(name, value)
    if name in BETTER:
        return not all(text in said.trained for text in answers_in(value))
    if name in ANSWERS:
        return not all(text in said.answers for text in answers_in(value))
    if name in ORIGINALS:
        return any(text in said.trained for text in answers_in(value))
    if name in TOOL_NAMES:
        return tools_in(value) is not None and not said.holds_tools(value)
    if name in OPTION_NAMES:
        return not said.holds_option(name, value)
    if name in (*PROMPTS, *SYSTEMS, *THOUGHTS, "history", "conversation"):
        return not all(text in said.texts for text in leaves_of(value))
    if name == "function_call":
        return value not in ("auto", "none")
    if name == "choices":
        return isinstance(value, dict) or is_list_of_objects(value)
    if name in RECORDS:
        return is_list_of_objects(value)
    if name in PROMPT_SWITCHES:
        return value != PROMPT_SWITCHES[name]
    return True


def _means_what_is_lost(name: str, value: Any, said: Said) -> bool:
    """Say whether a key that no shape knows holds, by its name or its form, what the example does not."""
    if looks_like_tools(value):
        return not said.holds_tools(value)
    if looks_like_messages(value) and find_meaning(name) not in ("ANSWER", "ORIGINAL"):
        return not all(said.holds_text(text) for text in leaves_of(value))
    if is_mask(name) and is_list_of_numbers(value):
        return 0 in value and not said.holds_mask(name, value)
    if said.is_logged and is_bad_verdict(name, value):
        return True
    if said.prefers_one(value) and is_selection(name, of_each=isinstance(value, list)):
        return True
    return _is_lost_by_name(name, value, said)


def _is_lost_by_name(name: str, value: Any, said: Said) -> bool:
    """Say whether the name of an unknown key means an answer, a prompt or a known key, and it is lost."""
    meaning = find_meaning(name)
    if meaning == "decision_idx":
        return type(value) is int
    if meaning in KNOWN_KEYS:
        return _is_lost(meaning, value, said)
    if not meaning or not holds_an_answer(value):
        return False
    if meaning == "ANSWER":
        return not all(text in said.answers for text in answers_in(value))
    if meaning == "ORIGINAL":
        return any(text in said.trained for text in answers_in(value))
    if meaning == "REFERENCE":
        return not all(said.trains_text(text) for text in answers_in(value))
    return not all(said.holds_text(text) for text in leaves_of(value))


def _name_message_keys(example: TrainingExample) -> Iterator[str]:
    """Yield the keys of messages and of their parts that no server reads, by name."""
    messages = example.messages or ()
    answers = (example.continuation, *example.continuations)
    for message in (*messages, *(each for each in answers if isinstance(each, dict))):
        if not _READ_OF_MESSAGES.issuperset(message):
            for name, value in message.items():
                if name not in _READ_OF_MESSAGES and value not in _EMPTY:
                    yield f"messages.{name}"
        content = message.get("content")
        if type(content) is list:
            for part in cast("list[Any]", content):
                if isinstance(part, dict) and not _READ_OF_PARTS.issuperset(part):
                    fields = cast("dict[str, Any]", part)
                    for name, value in fields.items():
                        if name not in _READ_OF_PARTS and value not in _EMPTY:
                            yield f"messages.content.{name}"


def _find_request_keys(value: Any, path: str, said: Said, depth: int) -> Iterator[str]:
    """Yield where an object that nobody read keeps tools or template options that would be lost."""
    if depth == _DEEPEST:
        return
    if isinstance(value, list):
        for index, each in enumerate(cast("list[Any]", value)):
            yield from _find_request_keys(each, f"{path}[{index}]", said, depth + 1)
    elif isinstance(value, dict):
        for name, each in cast("dict[str, Any]", value).items():
            at = f"{path}.{name}"
            if name in TOOL_NAMES and tools_in(each):
                if not said.holds_tools(each):
                    yield at
            elif name in OPTION_NAMES:
                if each not in _EMPTY and not said.holds_option(name, each):
                    yield at
            elif looks_like_tools(each):
                if not said.holds_tools(each):
                    yield at
            elif is_strong(name) and _is_lost_by_name(name, each, said):
                yield at
            elif isinstance(each, dict | list):
                yield from _find_request_keys(each, at, said, depth + 1)

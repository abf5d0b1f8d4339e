"""Which keys of a row its reader used, and what becomes of the others: nothing is ignored in silence.

A reader takes its fields out of a `TrackedRow`, which remembers what it was asked for. Once the
example is there, `settle_keys` looks at what is left. A key that some shape knows, or by which rows
name another answer, another prompt, ids, masks or a failed call, is refused, unless all that it says
was read elsewhere (UltraChat's ``prompt`` is the first message once more). The others are named, to be
counted.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, cast

from pipeline.errors import Rejected
from pipeline.examples.outcomes import refuse_outcome
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
    from pipeline.types import Message


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
    said: _Said | None = None
    rows = [row]
    while rows:
        each = rows.pop()
        rows += each.parts
        names |= each.noted
        for name in each.keys() - each.asked:
            value = dict.get(each, name)
            if value in _EMPTY:
                continue
            if name in RECORDS and isinstance(value, dict):
                # A request that nobody looked into: each of its keys counts by itself.
                rows.append(TrackedRow(cast("dict[str, Any]", value), f"{each.path}{name}."))
                continue
            said = said or _Said(example)
            _refuse_lost(each.path, name, value, said)
            if name not in NAMES:
                names.add(each.path + name)
    return frozenset(names)


def _refuse_lost(path: str, name: str, value: Any, said: _Said) -> None:
    """Raise `Rejected` where the value of a key that nobody read would be lost."""
    lost = ""
    if name in KNOWN_KEYS:
        refuse_outcome(path + name, name, value)
        lost = f"{path}{name}" if _is_lost(name, value, said) else ""
    elif isinstance(value, dict | list):
        lost = next(_find_request_keys(value, f"{path}{name}", said, 0), "")
    if lost:
        raise Rejected(
            "ambiguous_shape",
            f"{lost}: this reading of the row would not use it; expected keys of one shape: "
            "remove it, or name it as docs/formats.md does",
            value,
        )


def _is_lost(name: str, value: Any, said: _Said) -> bool:
    """Say whether a known key holds what the example does not."""
    if name in OUTCOMES or name in NAMES:
        return False
    if name in SWITCHES:
        return value is False or (type(value) in (int, float) and value == 0)
    if name in MASKS:
        return not said.holds_mask(name, value)
    if name in BETTER:
        return not all(text in said.trained for text in _answers_in(value))
    if name in ANSWERS:
        return not all(text in said.answers for text in _answers_in(value))
    if name in ORIGINALS:
        return any(text in said.trained for text in _answers_in(value))
    if name in TOOL_NAMES:
        return _tools_in(value) is not None and not said.holds_tools(value)
    if name in OPTION_NAMES:
        return not said.holds_option(name, value)
    if name in (*PROMPTS, *SYSTEMS, *THOUGHTS, "history", "conversation"):
        return not all(text in said.texts for text in _leaves(value))
    if name == "function_call":
        return value not in ("auto", "none")
    if name == "choices":
        return isinstance(value, dict) or is_list_of_objects(value)
    if name in RECORDS:
        return is_list_of_objects(value)
    if name in PROMPT_SWITCHES:
        return value != PROMPT_SWITCHES[name]
    return True


class _Said:
    """What an example says, to be compared with what a row says once more."""

    def __init__(self, example: TrainingExample) -> None:
        self._example = example

    @cached_property
    def trained(self) -> frozenset[str]:
        """The texts of the continuations."""
        example = self._example
        found = example.continuations or [example.continuation]
        return frozenset(text for each in found for text in _answers_in(each))

    @cached_property
    def answers(self) -> frozenset[str]:
        """The texts of the continuations and of the model's messages before them."""
        context = self._context
        answers = (each for each in context if each.get("role") == "assistant")
        return self.trained | {text for each in answers for text in _answers_in(each)}

    @cached_property
    def texts(self) -> frozenset[str]:
        """Every text of the context and of the continuations."""
        example = self._example
        parts: list[Any] = [*self._context, example.context, example.continuation]
        return frozenset(
            text for each in (*parts, *example.continuations) for text in _leaves(each)
        )

    @property
    def _context(self) -> list[Message]:
        return (self._example.messages or [])[: self._example.decision_idx]

    def holds_tools(self, value: Any) -> bool:
        """Say whether tools are those of the example, bare functions or wrapped."""
        own = [_bare_tool(tool) for tool in self._example.tools or []]
        return [_bare_tool(tool) for tool in _tools_in(value) or []] == own

    def holds_option(self, name: str, value: Any) -> bool:
        """Say whether an option is among those that the template gets."""
        kwargs = self._example.chat_template_kwargs
        given = value if name == "chat_template_kwargs" else {name: value}
        if not isinstance(given, dict):
            return False
        options = cast("dict[str, Any]", given)
        return all(each is None or kwargs.get(key) == each for key, each in options.items())

    def holds_mask(self, name: str, value: Any) -> bool:
        """Say whether a mask or labels train what is trained anyway: all of the continuation, no more."""
        example = self._example
        ids = example.continuation_ids
        if ids is None or not isinstance(value, list):
            # Names of classes, as data sets have them, mask nothing.
            return name == "labels" and not _is_list_of_numbers(value)
        context = example.context_ids or []
        listed = [
            int(each) if isinstance(each, bool) else each for each in cast("list[Any]", value)
        ]
        if name == "labels":
            return listed in (ids, [*[-100] * len(context), *ids])
        ones = [1] * len(ids)
        if name == "attention_mask":
            return listed in (ones, [1] * (len(context) + len(ids)), [1] * len(context))
        return listed in (ones, [*[0] * len(context), *ones])


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


def _find_request_keys(value: Any, path: str, said: _Said, depth: int) -> Iterator[str]:
    """Yield where an object that nobody read keeps tools or template options that would be lost."""
    if depth == _DEEPEST:
        return
    if isinstance(value, list):
        for index, each in enumerate(cast("list[Any]", value)):
            yield from _find_request_keys(each, f"{path}[{index}]", said, depth + 1)
    elif isinstance(value, dict):
        for name, each in cast("dict[str, Any]", value).items():
            at = f"{path}.{name}"
            if name in TOOL_NAMES and _tools_in(each):
                if not said.holds_tools(each):
                    yield at
            elif name in OPTION_NAMES:
                if each not in _EMPTY and not said.holds_option(name, each):
                    yield at
            elif isinstance(each, dict | list):
                yield from _find_request_keys(each, at, said, depth + 1)


def _tools_in(value: Any) -> list[dict[str, Any]] | None:
    """Return the value as tools, or None where it holds no objects that are named."""
    if not is_list_of_objects(value):
        return None
    tools = cast("list[dict[str, Any]]", value)
    return tools if any("name" in tool or "function" in tool for tool in tools) else None


def _bare_tool(tool: dict[str, Any]) -> dict[str, Any]:
    function = tool.get("function")
    bare = cast("dict[str, Any]", function) if isinstance(function, dict) else tool
    return {name: value for name, value in bare.items() if value is not None and name != "type"}


def _answers_in(value: Any) -> list[str]:
    """Return the text of an answer in any form: of several texts each, of a conversation the last."""
    if isinstance(value, list):
        listed = cast("list[Any]", value)
        if is_list_of_objects(listed):
            fields = cast("dict[str, Any]", listed[-1])
            # Parts of one content have no role.
            return _answers_in(fields) if {"role", "from"} & fields.keys() else [*_leaves(listed)]
        return [text for each in listed for text in _answers_in(each)]
    if isinstance(value, dict):
        fields = cast("dict[str, Any]", value)
        content = fields.get("content", fields.get("value"))
        # An object of another kind has no text that could be compared.
        return ["\0"] if content is None and not fields.get("tool_calls") else [*_leaves(content)]
    return [str(value).strip()]


def _leaves(value: Any) -> Iterator[str]:
    """Yield the texts in a value, without the names of roles and types."""
    if isinstance(value, str):
        if text := value.strip():
            yield text
    elif isinstance(value, dict):
        for name, each in cast("dict[str, Any]", value).items():
            if name not in ("role", "from", "type"):
                yield from _leaves(each)
    elif isinstance(value, list):
        for each in cast("list[Any]", value):
            yield from _leaves(each)


def is_list_of_objects(value: Any) -> bool:
    """Say whether a value is a list of objects, at least one."""
    listed = cast("list[Any]", value) if isinstance(value, list) else []
    return bool(listed) and all(isinstance(each, dict) for each in listed)


def _is_list_of_numbers(value: Any) -> bool:
    listed = cast("list[Any]", value) if isinstance(value, list) else []
    return any(isinstance(each, int | float | list) for each in listed)

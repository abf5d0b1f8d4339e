"""What an example says, to be compared with what its row says once more under other keys."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, cast

if TYPE_CHECKING:
    from pipeline.examples.example import TrainingExample
    from pipeline.types import Message

_SCHEMAS: Final = frozenset({"parameters", "input_schema", "inputSchema"})


class Said:
    """What an example says, to be compared with what a row says once more."""

    def __init__(self, example: TrainingExample, *, is_logged: bool) -> None:
        self._example = example
        self.is_logged = is_logged
        """Whether the answer is the log's own, which nobody named as better."""

    @cached_property
    def trained(self) -> frozenset[str]:
        """The texts of the continuations."""
        example = self._example
        found = example.continuations or [example.continuation]
        return frozenset(text for each in found for text in answers_in(each))

    @cached_property
    def answers(self) -> frozenset[str]:
        """The texts of the continuations and of the model's messages before them."""
        context = self._context
        answers = (each for each in context if each.get("role") == "assistant")
        return self.trained | {text for each in answers for text in answers_in(each)}

    @cached_property
    def texts(self) -> frozenset[str]:
        """Every text of the context and of the continuations."""
        example = self._example
        parts: list[Any] = [*self._context, example.context, example.continuation]
        return frozenset(
            text for each in (*parts, *example.continuations) for text in leaves_of(each)
        )

    def holds_text(self, text: str) -> bool:
        """Say whether a text of the context or of a continuation holds this one."""
        return text in self.texts or any(text in each for each in self.texts)

    def trains_text(self, text: str) -> bool:
        """Say whether a continuation holds this text, as a word of its own."""
        whole = re.compile(rf"(?<!\w){re.escape(text)}(?!\w)")
        return any(whole.search(each) for each in self.trained)

    def prefers_one(self, value: Any) -> bool:
        """Say whether numbers tell several continuations apart: one that is chosen, or one for each."""
        if len(self._example.continuations) < 2:
            return False
        if type(value) is int:
            return True
        return is_list_of_numbers(value) and any(each != value[0] for each in value)

    @property
    def _context(self) -> list[Message]:
        return (self._example.messages or [])[: self._example.decision_idx]

    def holds_tools(self, value: Any) -> bool:
        """Say whether tools are those of the example, bare functions or wrapped."""
        own = [_bare_tool(tool) for tool in self._example.tools or []]
        return [_bare_tool(tool) for tool in tools_in(value) or []] == own

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
            return name == "labels" and not is_list_of_numbers(value)
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


def tools_in(value: Any) -> list[dict[str, Any]] | None:
    """Return the value as tools, or None where it holds no objects that are named."""
    if not is_list_of_objects(value):
        return None
    tools = cast("list[dict[str, Any]]", value)
    return tools if any("name" in tool or "function" in tool for tool in tools) else None


def _bare_tool(tool: dict[str, Any]) -> dict[str, Any]:
    function = tool.get("function")
    bare = cast("dict[str, Any]", function) if isinstance(function, dict) else tool
    return {name: value for name, value in bare.items() if value is not None and name != "type"}


def answers_in(value: Any) -> list[str]:
    """Return the text of an answer in any form: of several texts each, of a conversation the last."""
    if isinstance(value, list):
        listed = cast("list[Any]", value)
        if is_list_of_objects(listed):
            fields = cast("dict[str, Any]", listed[-1])
            # Parts of one content have no role.
            return answers_in(fields) if {"role", "from"} & fields.keys() else [*leaves_of(listed)]
        return [text for each in listed for text in answers_in(each)]
    if isinstance(value, dict):
        fields = cast("dict[str, Any]", value)
        content = fields.get("content", fields.get("value"))
        # An object of another kind has no text that could be compared.
        return ["\0"] if content is None and not fields.get("tool_calls") else [*leaves_of(content)]
    return [str(value).strip()]


def leaves_of(value: Any) -> Iterator[str]:
    """Yield the texts in a value, without the names of roles and types."""
    if isinstance(value, str):
        if text := value.strip():
            yield text
    elif isinstance(value, dict):
        for name, each in cast("dict[str, Any]", value).items():
            if name not in ("role", "from", "type"):
                yield from leaves_of(each)
    elif isinstance(value, list):
        for each in cast("list[Any]", value):
            yield from leaves_of(each)


def looks_like_tools(value: Any) -> bool:
    """Say whether a value is a list of tools, by the schema that each has: OpenAI's form, or a bare one."""
    if not is_list_of_objects(value):
        return False
    bare = [_bare_tool(tool) for tool in cast("list[dict[str, Any]]", value)]
    return all("name" in tool and not _SCHEMAS.isdisjoint(tool) for tool in bare)


def looks_like_messages(value: Any) -> bool:
    """Say whether a value is a list of messages, OpenAI's or ShareGPT's."""
    return is_list_of_objects(value) and all(
        {"role", "content"} <= each.keys() or {"from", "value"} <= each.keys()
        for each in cast("list[dict[str, Any]]", value)
    )


def holds_an_answer(value: Any) -> bool:
    """Say whether a value can be an answer: text, a message, or a list of them; no number, no record."""
    if isinstance(value, str):
        return bool(value.strip())
    if isinstance(value, dict):
        fields = cast("dict[str, Any]", value)
        return bool(fields.get("content") or fields.get("value") or fields.get("tool_calls"))
    listed = cast("list[Any]", value) if isinstance(value, list) else []
    return bool(listed) and all(holds_an_answer(each) for each in listed)


def is_list_of_objects(value: Any) -> bool:
    """Say whether a value is a list of objects, at least one."""
    listed = cast("list[Any]", value) if isinstance(value, list) else []
    return bool(listed) and all(isinstance(each, dict) for each in listed)


def is_list_of_numbers(value: Any) -> bool:
    """Say whether a value is a list with numbers in it, or with lists."""
    listed = cast("list[Any]", value) if isinstance(value, list) else []
    return any(isinstance(each, int | float | list) for each in listed)

"""What the readers of items and of blocks ask of an answer: is it one turn, just as the model said it?

Both APIs cut a turn into typed pieces; a server puts them together as reasoning, text and calls, in
this order. Where the pieces stand in another order, or one of them is not what the model emitted, the
message is right as context and wrong as an answer.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

from pipeline.errors import Rejected
from pipeline.types import Message

RANKS: Final = {"reasoning": 0, "content": 1, "tool_calls": 2}
"""The fields of an assistant's message in the order in which a model says them."""


@dataclass(slots=True)
class Turns:
    """Messages made of pieces; ``faults`` says by index why an assistant's message is no answer."""

    messages: list[Message] = field(default_factory=list[Message])
    faults: dict[int, Rejected] = field(default_factory=dict[int, Rejected])

    def add_message(self, message: Message) -> None:
        """Add a message that no later piece completes."""
        self.messages.append(message)

    def add_fault(self, reason: str, found: Any = None) -> None:
        """Say why the last message is no answer; the first reason stays."""
        fault = Rejected("unsupported_content", reason, found)
        self.faults.setdefault(len(self.messages) - 1, fault)

    def as_context(self) -> list[Message]:
        """Return the messages, those that are no answer with a ``weight`` of 0."""
        return [
            {**message, "weight": 0} if index in self.faults else message
            for index, message in enumerate(self.messages)
        ]

    def split_answer(self, name: str) -> tuple[list[Message], Message]:
        """Return the messages before the answer, and the answer: the last message, the assistant's.

        Raises `Rejected` where it is another's, or no answer.
        """
        if not self.messages:
            raise Rejected("empty_continuation", f"{name}: empty; expected what the model said")
        last = len(self.messages) - 1
        if last in self.faults:
            raise self.faults[last]
        answer = self.messages[last]
        if answer.get("role") != "assistant":
            raise Rejected(
                "missing_field", f"{name}: ends with another's message; expected the model's answer"
            )
        if not any(answer.get(key) for key in RANKS):
            raise Rejected(
                "empty_continuation",
                f"{name}: neither text nor reasoning nor calls; expected what the model said",
                answer,
            )
        return self.as_context()[:last], answer


def refuse_kind(where: str, kind: Any, expected: str) -> Rejected:
    """Return the refusal of a piece of a type that has no place in a prompt of text."""
    return Rejected(
        "unsupported_content",
        f"{where}.type: its words are not in the log, or no server writes them into a prompt; "
        f"expected {expected}",
        kind,
    )


def list_objects(value: Any, name: str) -> list[dict[str, Any]]:
    """Return a list of objects; raises `Rejected` (``wrong_type``) for anything else."""
    if not isinstance(value, list):
        raise Rejected("wrong_type", f"{name}: expected a list of objects", value)
    listed: list[Any] = value
    for index, each in enumerate(listed):
        if not isinstance(each, dict):
            raise Rejected("wrong_type", f"{name}[{index}]: expected an object", each)
    return listed


def expect_words(holder: dict[str, Any], key: str, where: str) -> str:
    """Return a text that is there, empty or not; raises `Rejected` otherwise."""
    value = holder.get(key)
    if value is None:
        raise Rejected("missing_field", f"{where}.{key}: missing; expected text", sorted(holder))
    if not isinstance(value, str):
        raise Rejected("wrong_type", f"{where}.{key}: expected text", value)
    return value

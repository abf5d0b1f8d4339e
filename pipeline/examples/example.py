"""The training example: what a user writes on one line, checked field by field.

`TrainingExample` is the library face for one example at a time; the batch job builds the same
objects, so a notebook and ``prepare`` give the same ids.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pipeline.errors import DataRefused, Rejected
from pipeline.examples.answers import read_answers, refuse_same_answers
from pipeline.examples.fields import (
    read_id,
    read_json,
    read_kwargs,
    read_memories,
    read_messages,
    read_text,
    read_tools,
    read_weight,
    split_weights,
)
from pipeline.lines.json_text import parse_line
from pipeline.types import Message

if TYPE_CHECKING:
    import torch


class PreparesExamples(Protocol):
    """What `TrainingExample.tokenize` asks for: a `pipeline.ExampleTokenizer`."""

    def prepare_example(
        self,
        example: TrainingExample,
        max_len: int | None = None,
        device: str | torch.device | None = None,
    ) -> TrainingExample:
        """Fill ``input_ids``, ``context_len`` and ``total_len``, and return the example itself."""
        ...


@dataclass(slots=True)
class TrainingExample:
    """A context, the better continuation, and why.

    Give either ``context`` (text the server already rendered) or ``messages`` with ``decision_idx``
    (context is ``messages[:decision_idx]``). ``continuation`` is text, or an assistant message with
    reasoning or tool calls. ``tokenize`` fills ``input_ids`` (int64 tensor [total_len]),
    ``context_len`` (the boundary, in tokens) and ``total_len``.

    More than that, where the data have it: ``continuations``, all of several equally good ones (the
    first is also ``continuation``); ``rejected``, the worse one of a pair; ``message_weights``, one
    number per message, 0.0 for an assistant message that is no decision point; ``context_ids``,
    ``continuation_ids`` and ``continuations_ids``, the ids that a server saw and sampled, which win
    over text and may come without it; ``continuation_mask``, 1 for each of ``continuation_ids`` that
    the model sampled and 0 for what came between, where each run of ones is a row of its own.

    >>> example = TrainingExample("a", "Q: 2+2?\\nA:", " 4", reason="the model said 5")
    >>> example.to_dict()["continuation"]
    ' 4'
    """

    id: str
    context: str | None = None
    continuation: str | Message = ""
    reason: str = ""
    memories: list[str] = field(default_factory=list[str])
    # Tensors have no single truth value, so they take no part in ``==``.
    input_ids: torch.Tensor | None = field(default=None, compare=False)
    context_len: int | None = None
    total_len: int | None = None
    messages: list[Message] | None = None
    decision_idx: int | None = None
    tools: list[dict[str, Any]] | None = None
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict[str, Any])
    weight: float = 1.0
    conversation: str = ""
    continuations: list[str | Message] = field(default_factory=list[str | Message])
    rejected: str | Message | None = None
    message_weights: list[float] | None = None
    context_ids: list[int] | None = None
    continuation_ids: list[int] | None = None
    continuations_ids: list[list[int]] | None = None
    continuation_mask: list[int] | None = None

    def tokenize(
        self,
        tokenizer: PreparesExamples,
        max_len: int | None = None,
        device: str | torch.device | None = None,
    ) -> TrainingExample:
        """Fill ``input_ids``, ``context_len`` and ``total_len``, and return the example itself.

        ``device`` defaults to the CUDA card where there is one, else the CPU. Raises `Rejected`
        where the example cannot become a row.
        """
        return tokenizer.prepare_example(self, max_len=max_len, device=device)

    def to_dict(self) -> dict[str, Any]:
        """Return the example as one JSONL line holds it: fields that say nothing are left out."""
        values: dict[str, Any] = {"id": self.id}
        if self.messages is not None:
            values |= {"messages": self._weighted_messages(), "decision_idx": self.decision_idx}
        elif self.context is not None or self.context_ids is None:
            values["context"] = self.context
        if self.continuations:
            values["continuations"] = self.continuations
        elif self.continuation or self.continuation_ids is None:
            values["continuation"] = self.continuation
        values |= {"reason": self.reason, "memories": self.memories}
        optional: dict[str, tuple[Any, Any]] = {
            "tools": (self.tools, None),
            "chat_template_kwargs": (self.chat_template_kwargs, {}),
            "weight": (self.weight, 1.0),
            "conversation": (self.conversation, self.id),
            "rejected": (self.rejected, None),
            "context_ids": (self.context_ids, None),
            "continuation_ids": (self.continuation_ids, None),
            "continuations_ids": (self.continuations_ids, None),
            "continuation_mask": (self.continuation_mask, None),
        }
        return values | {
            name: value
            for name, (value, unsaid) in optional.items()
            if value not in (unsaid, "", [])
        }

    def _weighted_messages(self) -> list[Message]:
        messages = self.messages or []
        weights = self.message_weights or [1.0] * len(messages)
        return [
            message if weight else {**message, "weight": 0}
            for message, weight in zip(messages, weights, strict=True)
        ]

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainingExample:
        """Return the example of one JSON object in our own shape, which must have an id.

        Keys of messages and tools that are null are left out (`pipeline.examples.nulls`). Raises `Rejected`
        with the code and the field where the object is not an example, or says something that an
        example would lose.
        """
        # The shapes make examples, so they are looked up when one is read.
        from pipeline.examples.shapes import read_example

        return read_example(values, "own", read_id(values))

    @classmethod
    def from_fields(cls, values: Mapping[str, Any]) -> TrainingExample:
        """Return the example of checked and unchecked fields of our own, as the readers collect them.

        ``system`` is text that goes first, unless a system message says it. An id that is empty stays
        so, for who names the example. Raises `Rejected`.
        """
        id_ = "" if values.get("id") == "" else read_id(values)
        context, messages, weights = _read_context(values)
        answers = read_answers(values)
        common: dict[str, Any] = {
            "id": id_,
            "reason": read_text(values, "reason"),
            "memories": read_memories(values.get("memories")),
            "tools": read_tools(values.get("tools")),
            "chat_template_kwargs": read_kwargs(values.get("chat_template_kwargs")),
            "weight": read_weight(values.get("weight")),
            "conversation": read_text(values, "conversation") or id_,
            **answers.fields,
        }
        system = _find_system(values.get("system"), context, messages)
        if messages is None:
            if values.get("decision_idx") is not None:
                raise Rejected(
                    "ambiguous_shape",
                    "decision_idx: points into messages, but the context is text; expected one or the other",
                    values["decision_idx"],
                )
            return cls(context=context, continuation=answers.expect_one(), **common)
        says_nothing = answers.first is None and values.get("decision_idx") is None
        is_prompt = values.get("context") is not None or messages[-1].get("role") != "assistant"
        if says_nothing and not (answers.has_ids and is_prompt):
            decision_idx = find_last_assistant(messages, weights)
            continuation: str | Message = {"role": "assistant", **messages[decision_idx]}
            if continuation == answers.fields.get("rejected"):
                raise refuse_same_answers(continuation)
        else:
            continuation = answers.expect_one()
            decision_idx = _read_decision_idx(values, messages)
        if decision_idx == 0:
            raise Rejected(
                "empty_context", "decision_idx: 0 leaves no message as context; expected at least 1"
            )
        return cls(
            messages=[*system, *messages],
            decision_idx=len(system) + decision_idx,
            continuation=continuation,
            message_weights=weights and [*(1.0 for _ in system), *weights],
            **common,
        )


def _find_system(text: Any, context: str | None, messages: list[Message] | None) -> list[Message]:
    """Return the message that a system text beside the messages is; none where it is said already."""
    if not text:
        return []
    if messages is None:
        if isinstance(text, str) and text.strip() in (context or ""):
            return []
    else:
        said = [each for each in messages if each.get("role") in ("system", "developer")]
        if not said:
            return [{"role": "system", "content": text}]
        if any(each.get("content") == text for each in said):
            return []
    found = "the context is text or ids" if messages is None else "there is a system message"
    raise Rejected(
        "ambiguous_shape",
        f"system: a text beside the context that it does not hold, and {found}; "
        "expected the system text in one place",
        text,
    )


def load_examples(path: str | Path) -> list[TrainingExample]:
    """Return the examples of JSONL files (a path, glob or folder; .gz and .zst too), in order.

    Raises `DataRefused` at the first line that is not an example, with its file and line.
    """
    from pipeline.lines.files import find_files
    from pipeline.lines.text import read_lines

    examples: list[TrainingExample] = []
    for file in find_files(str(path)):
        for line in read_lines(file):
            try:
                if line.reject is not None:
                    raise line.reject
                examples.append(read_example(line.text or ""))
            except Rejected as error:
                raise DataRefused(
                    f"{file.name}:{line.line}: {error}; mend the line or remove it"
                ) from error
    return examples


def save_examples(examples: Iterable[TrainingExample], path: str | Path) -> None:
    """Write one JSON line per example (UTF-8, nothing escaped that JSON allows as it is).

    Raises `Rejected`, and writes nothing, where an example could not be loaded again.
    """
    lines: list[str] = []
    for example in examples:
        lines.append(json.dumps(example.to_dict(), ensure_ascii=False) + "\n")
        read_example(lines[-1])
    Path(path).write_text("".join(lines), encoding="utf-8", newline="\n")


def read_example(line: str) -> TrainingExample:
    """Return the example of one line of JSON. Raises `Rejected` where it is none."""
    return TrainingExample.from_dict(parse_line(line))


def find_last_assistant(messages: list[Message], weights: list[float] | None = None) -> int:
    """Return the index of the last assistant message, the decision point of a plain conversation.

    A message of weight 0 is passed over. Raises `Rejected` (``missing_field``) for no such message.
    """
    for index in range(len(messages) - 1, -1, -1):
        if messages[index].get("role") == "assistant" and (weights is None or weights[index]):
            return index
    counted = "" if weights is None else " with a weight other than 0"
    raise Rejected(
        "missing_field",
        f"continuation: missing, and no message is the assistant's{counted}; "
        "expected one of them to train on",
        sorted({str(message.get("role")) for message in messages}),
    )


def _read_context(
    values: Mapping[str, Any],
) -> tuple[str | None, list[Message] | None, list[float] | None]:
    """Return the context as text, or the messages and their weights; neither beside context ids."""
    context, messages = values.get("context"), read_json(values.get("messages"), "messages")
    if context is not None and messages is not None:
        raise Rejected("ambiguous_shape", "found both context and messages; expected one of them")
    if context is None and messages is None:
        if values.get("context_ids") is not None:
            return None, None, None
        raise Rejected(
            "missing_field", "context or messages: neither is there; expected one of them"
        )
    if isinstance(context, str):
        if not context:
            raise Rejected(
                "empty_context", "context: empty text; expected what the server had in the prompt"
            )
        return context, None, None
    name = "messages" if context is None else "context"
    if context is not None and not isinstance(context, list):
        raise Rejected("wrong_type", "context: expected text or a list of messages", context)
    found = messages if context is None else context
    return None, *split_weights(read_messages(found, name), name)


def _read_decision_idx(values: Mapping[str, Any], messages: list[Message]) -> int:
    value = values.get("decision_idx")
    if value is None:
        # Without an index only a log that stops at the prompt has one reading; a `context` list
        # says by its name that all of it is context.
        if values.get("context") is not None or messages[-1].get("role") != "assistant":
            return len(messages)
        raise Rejected(
            "missing_field",
            "decision_idx: missing, and the last message is the assistant's; "
            "expected the index of the message that the continuation replaces",
        )
    if not isinstance(value, int) or isinstance(value, bool):
        raise Rejected("bad_decision_idx", "decision_idx: expected a whole number", value)
    if not 0 <= value <= len(messages):
        raise Rejected(
            "bad_decision_idx",
            f"decision_idx: expected 0 to {len(messages)}, the number of messages",
            value,
        )
    if value < len(messages) and (role := messages[value].get("role")) != "assistant":
        raise Rejected(
            "bad_decision_idx",
            f"decision_idx: {value} is another's message; expected the assistant's, or the end",
            role,
        )
    return value

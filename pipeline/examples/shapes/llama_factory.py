"""The two shapes of LLaMA-Factory's data README: ShareGPT's conversations, Alpaca's instructions."""

from __future__ import annotations

from typing import Any, Final, cast

from pipeline.errors import Rejected
from pipeline.examples.example import TrainingExample
from pipeline.examples.fields import (
    PLAIN_KEYS,
    SAYS_WEIGHT,
    read_json,
    read_text,
    refuse_message_keys,
)
from pipeline.examples.foreign_turns import respell_turn
from pipeline.examples.shapes.record import (
    Row,
    read_function_tools,
    read_shared,
    refuse_switches,
    require,
    require_text,
)
from pipeline.types import Message

_KEPT: Final = frozenset({"role", "content", "tool_calls"})


def read_sharegpt(row: Row, position: str) -> TrainingExample:
    """Return the example of ``conversations``, a list of ``from`` and ``value``, or of messages.

    The continuation is ``chosen``, else the last turn of the model. A ``function_call`` is JSON of
    one call or a list of them; ``system`` stands first unless a turn says it; a turn's ``weight`` of
    0 takes it out as in OpenAI's files. Sources: ShareGPT's exports; LLaMA-Factory,
    ``data/README.md``, "Sharegpt Format".
    """
    values = _read_shared(row, position)
    turns = read_json(require(row, "conversations", "a list of turns"), "conversations")
    if not isinstance(turns, list) or not turns:
        raise Rejected("wrong_type", "conversations: expected a list of turns", turns)
    messages = [
        message
        for index, turn in enumerate(cast("list[Any]", turns))
        for message in _read_turn(turn, f"conversations[{index}]", row)
    ]
    if row.get("chosen") is None and row.get("rejected") is None:
        if not any(message["role"] == "assistant" for message in messages):
            raise Rejected("missing_field", "conversations: no turn is the model's; expected gpt")
        return TrainingExample.from_fields({**values, "messages": messages})
    expected = "the better and the worse turn of a pair"
    better, worse = (
        _read_model_turn(require(row, name, expected), name, row) for name in ("chosen", "rejected")
    )
    return TrainingExample.from_fields(
        {**values, "context": messages, "continuation": better, "rejected": worse}
    )


def read_alpaca(row: Row, position: str) -> TrainingExample:
    r"""Return the example of ``instruction``, ``input``, ``output``, ``system`` and ``history``.

    The user says ``instruction``, a newline and ``input``; the continuation is the text of
    ``output``, or of ``chosen`` with ``rejected``. The answers of ``history`` are decision points
    too, as LLaMA-Factory trains on them. Sources: Stanford Alpaca, ``README.md``, "Data Release";
    LLaMA-Factory, ``data/README.md``, "Alpaca Format".
    """
    values = _read_shared(row, position)
    question = [require_text(row, "instruction", "the user's request"), read_text(row, "input")]
    messages = [
        *_read_history(row.get("history")),
        {"role": "user", "content": "\n".join(part for part in question if part)},
    ]
    if row.get("chosen") is not None or row.get("rejected") is not None:
        better, worse = _read_answer(row, "chosen"), _read_answer(row, "rejected")
        return TrainingExample.from_fields(
            {**values, "context": messages, "continuation": better, "rejected": worse}
        )
    output = _read_answer(row, "output")
    answer = {"role": "assistant", "content": output}
    return TrainingExample.from_fields(
        {
            **values,
            "messages": [*messages, answer],
            "decision_idx": len(messages),
            "continuation": output,
        }
    )


def _read_shared(row: Row, position: str) -> dict[str, Any]:
    """Return what every shape says alike; here tools are bare functions."""
    values = read_shared(row, position)
    refuse_switches(row)
    return {**values, "tools": read_function_tools(values["tools"])}


def _read_turn(turn: Any, name: str, row: Row) -> list[Message]:
    """Return the messages of a turn: of ``from`` and ``value`` what they say and no more."""
    messages = respell_turn(turn, name)
    kept = PLAIN_KEYS if turn.get("from") is None else _KEPT
    for index, message in enumerate(messages):
        left = {key: value for key, value in message.items() if key not in kept | SAYS_WEIGHT}
        if left:
            refuse_message_keys(message, name)
            row.note("conversations.", (key for key in left if left[key]))
            messages[index] = {key: each for key, each in message.items() if key not in left}
    return messages


def _read_model_turn(turn: Any, name: str, row: Row) -> Message:
    messages = _read_turn(turn, name, row)
    if len(messages) != 1 or messages[0]["role"] != "assistant":
        raise Rejected("wrong_type", f"{name}.from: expected a turn of the model", turn)
    return messages[0]


def _read_history(history: Any) -> list[Message]:
    """Return the earlier rounds, pairs of what the user and the model said."""
    if history is None:
        return []
    if not isinstance(history, list):
        raise Rejected("wrong_type", "history: expected a list of pairs of texts", history)
    messages: list[Message] = []
    for index, pair in enumerate(cast("list[Any]", history)):
        if not _is_pair(pair):
            raise Rejected("wrong_type", f"history[{index}]: expected a pair of texts", pair)
        said, answered = pair
        messages += [
            {"role": "user", "content": said},
            {"role": "assistant", "content": answered},
        ]
    return messages


def _is_pair(value: Any) -> bool:
    items = cast("list[Any]", value) if isinstance(value, list) else []
    return len(items) == 2 and all(isinstance(item, str) for item in items)


def _read_answer(row: Row, name: str) -> str:
    answer = require_text(row, name, "what the model should answer")
    if not answer:
        raise Rejected("empty_continuation", f"{name}: empty text; expected what the model says")
    return answer

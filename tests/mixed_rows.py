"""Rows whose texts say of themselves what they are for, and rows merged of two such.

The tests draw the merged rows, ``scripts/fuzz_lines.py`` writes them by the thousand.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

Row = dict[str, Any]


def _turn(role: str, mark: str, **more: Any) -> Row:
    return {"role": role, "content": mark, **more}


_TOOLS = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}]

MARKED: tuple[Row, ...] = (
    {
        "id": "own",
        "messages": [_turn("user", "ask 1"), _turn("assistant", "ORIGINAL 1")],
        "decision_idx": 1,
        "continuation": "BETTER 1",
    },
    {"id": "raw", "context": "ask 2", "chosen": "BETTER 2", "rejected": "WORSE 2"},
    {
        "id": "several",
        "context": [_turn("user", "ask 3")],
        "continuations": ["BETTER 3", "BETTER 3b"],
        "weight": 0.5,
    },
    {"id": "pair", "context": [_turn("user", "ask 4")], "better": "BETTER 4", "worse": "WORSE 4"},
    {"messages": [_turn("user", "ask 5"), _turn("assistant", "ANSWER 5")], "tools": _TOOLS},
    {
        "messages": [_turn("user", "ask 6"), _turn("assistant", "ANSWER 6", reasoning="THOUGHT 6")],
        "system": "system 6",
    },
    {
        "request": {"messages": [_turn("user", "ask 7")], "tools": _TOOLS},
        "response": {"choices": [{"message": _turn("assistant", "BETTER 7")}]},
    },
    {
        "messages": [_turn("user", "ask 8")],
        "choices": [
            {"message": _turn("assistant", "BETTER 8", reasoning_content="THOUGHT 8")},
        ],
    },
    {"prompt": "ask 9", "completion": "BETTER 9"},
    {
        "prompt": [_turn("user", "ask 10")],
        "completion": [_turn("assistant", "BETTER 10")],
        "chat_template_kwargs": {"enable_thinking": False},
    },
    {"prompt": "ask 11", "chosen": "BETTER 11", "rejected": "WORSE 11"},
    {
        "chosen": [_turn("user", "ask 12"), _turn("assistant", "BETTER 12")],
        "rejected": [_turn("user", "ask 12"), _turn("assistant", "WORSE 12")],
    },
    {
        "conversations": [
            {"from": "human", "value": "ask 13"},
            {"from": "gpt", "value": "ANSWER 13"},
        ],
        "system": "system 13",
    },
    {
        "conversations": [{"from": "human", "value": "ask 14"}],
        "chosen": {"from": "gpt", "value": "BETTER 14"},
        "rejected": {"from": "gpt", "value": "WORSE 14"},
    },
    {"instruction": "ask 15", "input": "more 15", "output": "BETTER 15"},
    {"instruction": "ask 16", "chosen": "BETTER 16", "rejected": "WORSE 16"},
    {"prompt": [_turn("user", "ask 17")], "response": "BETTER 17"},
    {"context_ids": [5, 6], "continuation_ids": [7, 8], "loss_mask": [1, 0]},
    {"original_response": "WORSE 18", "answer": "BETTER 18", "reasoning": "THOUGHT 18"},
    {"messages": [_turn("user", "ask 19"), _turn("assistant", "WORSE 19", train=False)]},
)
"""A row of each shape; the capitals of a text are what the row says that it is."""


def merge_rows(left: Row, right: Row, chance: random.Random) -> Row:
    """Return a row with keys of both, some of them left out, in any order."""
    keys = [*dict.fromkeys((*left, *right))]
    chance.shuffle(keys)
    merged: Row = {}
    for key in keys:
        holders = [row for row in (left, right) if key in row]
        if chance.random() < 0.85:
            merged[key] = chance.choice(holders)[key]
    return merged


def texts_of(value: Any) -> Iterator[str]:
    """Yield every text in a value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for each in value.values():
            yield from texts_of(each)
    elif isinstance(value, list):
        for each in value:
            yield from texts_of(each)


def forbidden_in(row: Row) -> set[str]:
    """Return the texts that the row names as worse, as thought, or as what was to be replaced."""
    found = {text for text in texts_of(row) if text.startswith(("WORSE", "THOUGHT"))}
    index, messages = row.get("decision_idx"), row.get("messages")
    if isinstance(messages, list) and isinstance(index, int) and 0 <= index < len(messages):
        found.update(texts_of(messages[index].get("content")))
    return found


def wanted_in(row: Row) -> set[str]:
    """Return the texts that the row names as those to be trained."""
    return {text for text in texts_of(row) if text.startswith("BETTER")}

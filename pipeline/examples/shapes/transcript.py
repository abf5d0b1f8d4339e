r"""Conversations as one text: ``"\n\nHuman: ...\n\nAssistant: ..."`` (Anthropic's HH-RLHF pairs)."""

from __future__ import annotations

import re
from typing import Final, TypeGuard

from pipeline.errors import Rejected
from pipeline.types import Message

_BEGIN: Final = "\n\nHuman: "
_MARK: Final = re.compile(r"\n\n(Human|Assistant):")
_ROLES: Final = ("user", "assistant")


def is_transcript(value: object) -> TypeGuard[str]:
    """Say whether a value is text that begins as a transcript does."""
    return isinstance(value, str) and value.startswith(_BEGIN)


def read_transcript(text: str, name: str) -> list[Message]:
    r"""Return the messages of a transcript, their texts as they stand; the last is the assistant's.

    Raises `Rejected` (``missing_field``) unless Human and Assistant take turns, each says something, and
    the Assistant ends. Source: the data card of Anthropic's ``hh-rlhf``.

    >>> read_transcript("\n\nHuman: Add 1 and 1\n\nAssistant: 2", "chosen")[1]
    {'role': 'assistant', 'content': '2'}
    """
    before, *pieces = _MARK.split(text)
    speakers, said = pieces[::2], pieces[1::2]
    turns = ["Human", "Assistant"] * (len(speakers) // 2)
    if (
        before
        or not turns
        or speakers != turns
        or not all(each.startswith(" ") and each.strip() for each in said)
    ):
        raise Rejected(
            "missing_field",
            f"prompt: missing, and {name} is no transcript in which Human and Assistant take turns, "
            "each with a text, to an end of the Assistant's",
            text,
        )
    return [{"role": _ROLES[index % 2], "content": each[1:]} for index, each in enumerate(said)]

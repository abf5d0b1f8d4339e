"""Ids of a served prompt against what stands beside them: another conversation's must not pass."""

from __future__ import annotations

from typing import Final

from pipeline.answer.marks import THINK_MARKS
from pipeline.errors import Rejected, excerpt_of
from pipeline.rows.shown import holds_text

_THINK_MARKS: Final = tuple(mark for pair in THINK_MARKS for mark in pair)


def check_served_prompt(served: str, user_text: str, header: str) -> None:
    """Refuse a prompt that differs from the messages beside it in more than its spelling.

    ``served`` is what its ids decode to, ``user_text`` the last that a user says in the messages,
    ``header`` what the template writes behind them for the model to answer; an empty think block
    there is the request's choice. Raises `Rejected` (``bad_ids``).

    >>> check_served_prompt("<user>Hi<model><think></think>", "Hi", "<model>")
    """
    if user_text and not holds_text(served, user_text):
        raise Rejected(
            "bad_ids",
            "context_ids: decode to a prompt without the last text of the user in the messages, "
            f"{excerpt_of(user_text)}; expected the ids of the prompt of these messages",
            served[-200:],
        )
    if not _without_think_end(served).endswith(_without_think_end(header)):
        raise Rejected(
            "bad_ids",
            "context_ids: decode to a prompt that does not end as this template lets the model answer, "
            f"with {excerpt_of(header.strip())}; expected the ids up to the first sampled one",
            served[-60:],
        )


def check_served_text(served: str, text: str) -> None:
    """Refuse a prompt that does not hold the text beside it. Raises `Rejected` (``bad_ids``)."""
    if text.strip() not in served:
        raise Rejected(
            "bad_ids",
            f"context_ids: decode to another text than the context beside them, {excerpt_of(text)}",
            served,
        )


def find_header(prompt: str, turn: str, last_text: str) -> str:
    """Return what a template writes for the model to answer, empty where it cannot be told.

    ``turn`` is the rendering of the same messages without it; where that is no beginning of
    ``prompt``, what stands behind ``last_text``, the last of the messages' texts.

    >>> find_header("<user>Hi<end><model>", "<user>Hi<end>", "Hi")
    '<model>'
    """
    if turn and prompt.startswith(turn) and prompt[len(turn) :].strip():
        return prompt[len(turn) :]
    at = prompt.rfind(last_text) if last_text else -1
    return prompt[at + len(last_text) :] if at >= 0 else ""


def _without_think_end(text: str) -> str:
    """Return a prompt without the white space and the think marks at its end."""
    bare = text.rstrip()
    while mark := next((mark for mark in _THINK_MARKS if bare.endswith(mark)), ""):
        bare = bare.removesuffix(mark).rstrip()
    return bare

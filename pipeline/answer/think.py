"""Think blocks: whether a prompt leaves one open, and what closes it.

The think policy exists so that an answer is never trained as thought: under a prompt that ends
inside an open block, a continuation without a closing mark would be.
"""

from __future__ import annotations

import re
from typing import Final, Literal, NamedTuple

from pipeline.answer.marks import is_unbalanced, pattern_of
from pipeline.answer.seam import common_length

DEFAULT_PAIR = ("<think>", "</think>")
# Characters at a prompt's end that are looked at first.
_TAIL = 128


class ThinkState(NamedTuple):
    """How a prompt ends: ``open`` inside a think block, ``closed`` after one, or neither.

    ``supplied`` is what the prompt's last turn already holds from the opening mark on (from the
    closing mark where it writes no opening one), to the end of the prompt.
    """

    kind: Literal["none", "open", "closed"]
    supplied: str = ""


NO_BLOCK: Final = ThinkState("none")


def read_think_state(prompt: str, pair: tuple[str, str], later: re.Pattern[str]) -> ThinkState:
    """Return how ``prompt`` ends; a mark that ``later`` text follows belongs to another message.

    >>> read_think_state("a<think>\\n", ("<think>", "</think>"), re.compile("(?!)"))
    ThinkState(kind='open', supplied='<think>\\n')
    """
    start = _find_tail(prompt, pair, later)
    opened, closed = prompt.rfind(pair[0], start), prompt.rfind(pair[1], start)
    last = max(opened, closed)
    if last < 0 or later.search(prompt, last + len(pair[0 if opened > closed else 1])):
        return NO_BLOCK
    if opened > closed:
        return ThinkState("open", prompt[opened:])
    if prompt[closed + len(pair[1]) :].strip():
        return NO_BLOCK
    is_empty_block = opened >= 0 and not prompt[opened + len(pair[0]) : closed].strip()
    return ThinkState("closed", prompt[opened if is_empty_block else closed :])


def _find_tail(prompt: str, pair: tuple[str, str], later: re.Pattern[str]) -> int:
    """Return a place before which no mark can tell how ``prompt`` ends: ``later`` text follows it.

    Prompts are long and end with a turn's header, so the end is looked at first.
    """
    longest = max(len(pair[0]), len(pair[1]))
    start = len(prompt) - _TAIL
    while start > 0 and not later.search(prompt, start + longest):
        start -= 4 * (len(prompt) - start)
    return max(start, 0)


def drop_supplied(text: str, state: ThinkState, pair: tuple[str, str]) -> str:
    """Return ``text`` without the think block's start that the prompt already supplies.

    >>> pair = ("<think>", "</think>")
    >>> drop_supplied("<think>\\nso", ThinkState("open", "<think>\\n"), pair)
    'so'
    """
    if state.kind == "none":
        return text
    repeated = common_length(text, state.supplied)
    needed = len(state.supplied.rstrip())
    return text[repeated:] if repeated >= needed else text


def has_stray_mark(text: str, state: ThinkState, pair: tuple[str, str]) -> bool:
    """Return True where ``text`` opens or closes a block that it should not, given the prompt's end."""
    marks = pattern_of(pair).findall(text) if pair[0] in text or pair[1] in text else []
    if not marks:
        return False
    if state.kind == "closed" and pair[0] in marks:
        return True
    return is_unbalanced(marks, pair, is_open=state.kind == "open")


def split_closing(text: str, close: str) -> tuple[str, str] | None:
    """Return ``text`` up to its closing mark and the white space after it, and the rest.

    >>> split_closing("\\n</think>\\n\\n<answer>", "</think>")
    ('\\n</think>\\n\\n', '<answer>')
    """
    at = text.find(close)
    if at < 0:
        return None
    end = at + len(close)
    end += len(text[end:]) - len(text[end:].lstrip())
    return text[:end], text[end:]


def spell_closing(supplied: str, pair: tuple[str, str]) -> str:
    """Return a closing for a block of which no rendering shows one.

    The white space that the prompt writes after the opening mark stands before the closing mark, and
    twice after it: the form of the published R1 and Qwen3 templates.

    >>> spell_closing("<think>\\n", ("<think>", "</think>"))
    '\\n</think>\\n\\n'
    """
    space = supplied[len(pair[0]) :]
    space = space[: len(space) - len(space.lstrip())]
    return f"{space}{pair[1]}{space * 2}"


def without_empty_block(text: str, pair: tuple[str, str] | None) -> str:
    """Return ``text`` without a think block that holds nothing, or a lone closing mark."""
    if pair is None:
        return text
    opened, closed = re.escape(pair[0]), re.escape(pair[1])
    return re.sub(rf"\s*(?:{opened}\s*)?{closed}\s*", "", text, count=1)

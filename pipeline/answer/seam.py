"""Where a prompt ends inside the rendering of the same conversation with its last turn.

For most templates the prompt is a prefix of that rendering. For the others the place is found in
one of two named ways, or not at all: nothing here guesses.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

# No control mark of the templates seen is longer; a seam is never moved back further than this.
_LONGEST_MARK = 80


@dataclass(frozen=True, slots=True)
class Seam:
    """The text ``full[at:]`` follows the prompt; ``lost`` is what the prompt has and ``full`` has not.

    ``way`` says how the place was found:
    ``prefix``: the prompt is a prefix of the rendering, ``lost`` is empty;
    ``white_space``: it is one but for white space;
    ``think``: it is one but for a think block that the generation prompt alone writes.
    """

    way: Literal["prefix", "white_space", "think"]
    at: int
    lost: str


def find_seam(
    prompt: str, full: str, control: re.Pattern[str], think_pair: tuple[str, str] | None
) -> Seam | None:
    """Return where ``prompt`` ends in ``full``, or None where ``full`` writes the context otherwise.

    >>> find_seam("Q A:", "Q A: yes", re.compile("(?!)"), None)
    Seam(way='prefix', at=4, lost='')
    >>> find_seam("Q A:<think>", "Q A: yes", re.compile("(?!)"), ("<think>", "</think>"))
    Seam(way='think', at=4, lost='<think>')
    """
    common = common_length(prompt, full)
    if common == len(prompt):
        return Seam("prefix", common, "")
    after_spaces = _skip_equal_text(prompt[common:], full, common)
    if after_spaces is not None:
        return Seam("white_space", after_spaces, "")
    marks = think_pair or ()
    at = _leave_marks_whole(prompt, full, common, control, marks)
    lost = prompt[at:]
    bare = lost
    for mark in marks:
        bare = bare.replace(mark, "")
    return Seam("think", at, lost) if marks and not bare.strip() else None


def common_length(first: str, second: str) -> int:
    """Return how many characters the two texts share from the start.

    >>> common_length("abcd", "abx")
    2
    """
    low, high = 0, min(len(first), len(second))
    while low < high:
        middle = (low + high + 1) // 2
        if first[low:middle] == second[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _skip_equal_text(rest: str, full: str, start: int) -> int | None:
    """Return where ``rest`` and the white space after it end in ``full``, white space not counted."""
    at = start
    for character in "".join(rest.split()):
        while at < len(full) and full[at].isspace():
            at += 1
        if at == len(full) or full[at] != character:
            return None
        at += 1
    while at < len(full) and full[at].isspace():
        at += 1
    return at


def _leave_marks_whole(
    prompt: str, full: str, common: int, control: re.Pattern[str], marks: tuple[str, ...]
) -> int:
    """Return ``common`` moved back to the start of a mark that it would cut in two."""
    starts = [common]
    begin = max(0, common - _LONGEST_MARK)
    for text in (prompt, full):
        window = text[begin : common + _LONGEST_MARK]
        spans = [match.span() for match in control.finditer(window)]
        for mark in marks:
            spans += [match.span() for match in re.finditer(re.escape(mark), window)]
        starts += [begin + start for start, end in spans if begin + start < common < begin + end]
    return min(starts)

"""The opening, learnt: what a template writes between its generation prompt and a plain last answer.

Read off the text around a probe's answer. Where the generation prompt does not open the assistant's turn,
the opening is its header, which the model would have to write.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Final

from pipeline.answer.turn import (
    ThinkState,
    spell_closing,
    split_closing,
    without_empty_block,
)

# Names of the assistant in a header.
_ROLE_NAME: Final = re.compile(r"assistant|chatbot|\b(?:bot|model|gpt|ai)\b", re.IGNORECASE)


def read_openings(
    before: str, after_thought: str, state: ThinkState, pair: tuple[str, str] | None
) -> tuple[str, tuple[str, str]]:
    """Return what closes a think block, and the two openings of `TurnFacts`.

    ``before`` stands between the generation prompt and a plain answer, ``after_thought`` between
    reasoning and its answer; ``state`` is how the prompt ends.

    >>> read_openings("<t></t>A:", "</t>A:", ThinkState("none"), ("<t>", "</t>"))
    ('</t>', ('<t></t>A:', 'A:'))
    """
    bare = _unless_blank(without_empty_block(before, pair))
    if pair is None:
        return "", (bare, bare)
    # Where the prompt holds no think block the template's empty one is the model's to write.
    whole = _unless_blank(before) if state.kind == "none" else bare
    if state.kind == "open":
        # An answer without reasoning shows how the template itself leaves the block.
        split = split_closing(before, pair[1])
        if split is not None:
            rest = _unless_blank(split[1])
            return split[0], (rest, rest)
    split = split_closing(after_thought, pair[1])
    if split is not None:
        rest = bare or _unless_blank(split[1])
        return split[0], (whole if state.kind == "none" else rest, rest)
    supplied = state.supplied if state.kind == "open" else f"{pair[0]}\n"
    return spell_closing(supplied, pair), (whole, bare)


def spell_empty_block(
    before_thought: str, after_thought: str, unthinking: str, pair: tuple[str, str]
) -> str:
    """Return an empty think block where a model with a thinking budget has to write one itself.

    Seed-OSS: with a budget of 0 the generation prompt (its end is ``unthinking``) holds the closed
    block, with any other the model writes it, and the template shows none in an answer without
    thought.

    >>> spell_empty_block("<t>", "</t>\\n", "<t>Nothing.</t>", ("<t>", "</t>"))
    '<t></t>\\n'
    """
    split = split_closing(after_thought, pair[1])
    if pair[1] not in unthinking or split is None or before_thought.strip() != pair[0]:
        return ""
    return before_thought + split[0]


def _unless_blank(text: str) -> str:
    return text if text.strip() else ""


def find_role_header(
    opening: str,
    prompt: str,
    prompt_end: str,
    bare: str | None,
    openers: Collection[str],
    control: re.Pattern[str],
) -> str:
    """Return ``opening`` where it is the header of the assistant's turn, nothing where it is not.

    It can be one only where ``bare``, the conversation without a generation prompt, begins with
    ``prompt``: where the generation prompt writes nothing. Then it is one with a token that opens
    other turns too (``openers``), with the role's name, or with a word where ``prompt_end``, what the
    prompt has after the user's text, has no token that could be a header.

    >>> header = "<|start|>assistant\\n"
    >>> find_role_header(header, "Q<|end|>", "<|end|>", "Q<|end|>", ["<|start|>"], re.compile(r"<[^>]+>"))
    '<|start|>assistant\\n'
    >>> find_role_header("<|say|>", "Q<|bot|>", "<|bot|>", "Q<|bot|>", [], re.compile(r"<[^>]+>"))
    ''
    """
    if not opening.strip() or bare is None or not bare.startswith(prompt):
        return ""
    shares_token = any(token in openers for token in control.findall(opening))
    has_word = not control.search(prompt_end) and re.search(r"\w", control.sub("", opening))
    return opening if shares_token or has_word or _ROLE_NAME.search(opening) else ""

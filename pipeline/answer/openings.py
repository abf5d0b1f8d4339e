"""What a template writes before an answer, read off the text around a probe's answer."""

from __future__ import annotations

from pipeline.answer.think import (
    ThinkState,
    spell_closing,
    split_closing,
    without_empty_block,
)


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

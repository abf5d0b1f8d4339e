"""The opening: what a template writes between its generation prompt and a plain last answer.

A served model emits it before its answer, and the server's parser takes it away, so that neither a
log's text nor its message has it (gpt-oss's channel header; Qwen3's empty think block, without which
the parser takes the answer for thought).
"""

from __future__ import annotations

from pipeline.answer.think import DEFAULT_PAIR, ThinkState
from pipeline.answer.turn_facts import TurnFacts


def frame_answer(
    text: str, state: ThinkState, facts: TurnFacts, *, is_message: bool
) -> tuple[str, str]:
    """Return what goes before and after a plain answer's ``text``: nothing where it brings its own.

    ``state`` is how the prompt ends: where a think block is there already, none is written again. A
    text without an opening is verbatim; what closes an answer is the template's for a message.
    """
    opening = facts.opening if state.kind == "none" else facts.opening_after_thought
    if opening and _brings_opening(text, opening, facts):
        return "", ""
    has_closing = text.endswith(facts.closing) or not (opening or is_message)
    return opening, "" if has_closing else facts.closing


def _brings_opening(text: str, opening: str, facts: TurnFacts) -> bool:
    """Say whether a text begins with the opening, thinks for itself, or opens otherwise (a call)."""
    bare = text.lstrip()
    if bare.startswith(opening.strip()):
        return True
    pair = facts.think_pair or DEFAULT_PAIR
    if bare.startswith(pair[0]) or pair[1] in text:
        return True
    if any(token in text for token in facts.opening_tokens):
        return True
    return not facts.opens_calls and any(map(bare.startswith, facts.emitted_tokens))

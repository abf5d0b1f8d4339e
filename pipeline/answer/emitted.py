"""What the model must emit after a prompt: the text to encode, and the token that ends the turn.

A text and a plain message are kept verbatim, behind the opening that the template writes before an
answer (`Turn.frame`; most templates have none). A message with reasoning, tool
calls or parts is rendered by the template (`pipeline.answer.message`).
"""

from __future__ import annotations

from typing import Final, NamedTuple

from pipeline.answer.marks import MODEL_MARKS, foreign_pattern, has_stray_think_mark
from pipeline.answer.message import RenderedMessage, render_message
from pipeline.answer.pieces import ReadMessage, read_message
from pipeline.answer.turn import (
    NO_BLOCK,
    Turn,
    TurnFacts,
    drop_supplied,
    has_stray_mark,
    spell_closing,
    without_empty_block,
)
from pipeline.config import RowSettings
from pipeline.errors import Rejected, UsageError, excerpt_of
from pipeline.types import Message


class Continuation(NamedTuple):
    """``text`` is exactly what is encoded; ``end_of_turn`` is the token to append once, if any.

    ``flags`` is a sorted subset of `pipeline.types.FLAGS`.
    """

    text: str
    end_of_turn: str | None
    flags: tuple[str, ...]


class _Draft(NamedTuple):
    """A continuation before the prompt's end is looked at.

    ``said`` are the texts that the example brought, where they may hold marks; ``is_message`` tells a
    message from a text, ``is_rendered`` the template's rendering of one; ``has_reasoning`` is True
    where that message thinks.
    """

    text: str
    end_of_turn: str | None
    flags: frozenset[str]
    said: tuple[str, ...]
    is_message: bool = False
    is_rendered: bool = False
    has_reasoning: bool = False


def build_continuation(
    continuation: str | Message, turn: Turn, settings: RowSettings
) -> Continuation:
    """Return what the model must emit as this ``turn`` to say ``continuation``.

    Of the settings ``end_of_turn``, ``think``, ``opening`` and ``control_tokens`` count.

    A text costs no render, a message one (two where the prompt is no prefix of it).
    Raises `Rejected`: ``empty_continuation``, ``no_end_of_turn``, ``control_tokens``,
    ``not_renderable``, ``wrong_type``, and what the dialect or the template refuses.
    """
    facts = turn.facts
    adds_opening = settings.opening == "template" and bool(turn.request.messages)
    if adds_opening and facts.role_header:
        raise _lacks_header(facts.role_header)
    if isinstance(continuation, str):
        if _stands_as_it_is(continuation, turn, settings):
            end = _expected_end(facts, settings)
            if not (adds_opening and facts.opening):
                return Continuation(continuation, end, ())
            opening, closing = turn.frame(continuation, is_message=False)
            flags = _OPENED if opening else ()
            return Continuation(f"{opening}{continuation}{closing}", end, flags)
        draft = _draft_text(continuation, facts, settings)
    else:
        message = read_message(continuation)
        _refuse_empty("".join(message.texts), bool(message.calls or message.reasoning.strip()))
        if message.is_plain:
            draft = _draft_text("".join(message.texts), facts, settings)._replace(is_message=True)
        else:
            draft = _draft_rendered(render_message(message, turn), message, facts, settings)
    text, flags = _settle_think(draft, turn, settings, adds_opening=adds_opening)
    flags |= draft.flags | _mark_flags(draft.said, facts, settings)
    return Continuation(text, draft.end_of_turn, tuple(sorted(flags)))


_OPENED: Final = ("opening_added",)


def _lacks_header(header: str) -> UsageError:
    return UsageError(
        f"chat template: its generation prompt does not open the assistant's turn, so that each "
        f"continuation would have to begin with the header {excerpt_of(header)}; expected a template "
        "that writes it where add_generation_prompt is true: give chat_template: FILE.jinja, or "
        "opening: none to train the continuations without it"
    )


def _refuse_empty(text: str, says_more: bool = False) -> None:
    """Refuse an answer of nothing but white space."""
    if not says_more and (not text or text.isspace()):
        found = "nothing but white space" if text else "empty text"
        raise Rejected(
            "empty_continuation", f"continuation: {found}; expected what the model says", text
        )


def _expected_end(facts: TurnFacts, settings: RowSettings) -> str | None:
    return facts.end_of_turn if settings.end_of_turn == "auto" else _named_end(settings)


def _named_end(settings: RowSettings) -> str | None:
    return None if settings.end_of_turn == "none" else settings.end_of_turn


def _stands_as_it_is(text: str, turn: Turn, settings: RowSettings) -> bool:
    """Say whether a text is its own continuation, as most are: no mark in it, no think block before it."""
    facts, pair = turn.facts, turn.think_pair
    return (
        (settings.end_of_turn == "none" or _expected_end(facts, settings) is not None)
        and not text.isspace()
        and turn.think_state is NO_BLOCK
        and pair[0] not in text
        and pair[1] not in text
        and is_plain(text, facts, settings)
    )


def _no_end_of_turn(facts: TurnFacts) -> Rejected:
    return Rejected(
        "no_end_of_turn",
        f"the token that ends a turn cannot be learnt: {facts.evidence}; name it with end_of_turn:",
    )


def _draft_text(text: str, facts: TurnFacts, settings: RowSettings) -> _Draft:
    """Return a text as it is, its own end of turn taken off where it has one.

    Any stop token at the very end counts, since a server's raw output ends with the one that was
    sampled (Llama's ``<|eom_id|>``), and after the template's own also the white space that the
    template writes there.
    """
    expected = _expected_end(facts, settings)
    if is_plain(text, facts, settings):
        if expected is None and settings.end_of_turn != "none":
            raise _no_end_of_turn(facts)
        return _Draft(text, expected, frozenset(), said=())
    ends = [token for token in (expected, *facts.ends) if token]
    said_end = next((token for token in ends if text.endswith(token)), None)
    body = text.removesuffix(said_end) if said_end else text
    if said_end is None and expected and text.endswith(f"{expected}{facts.after_end}"):
        said_end, body = expected, text.removesuffix(f"{expected}{facts.after_end}")
    if not body and text:
        raise Rejected(
            "empty_continuation",
            "continuation: nothing but the end of turn; expected what the model says before it",
            text,
        )
    _refuse_empty(body)
    _refuse_second_turn(body, expected, facts)
    if settings.end_of_turn == "none":
        body, end = text, None
    else:
        end = said_end or expected
        if end is None:
            raise _no_end_of_turn(facts)
    flags = frozenset({"end_of_turn_in_text"} if said_end else ())
    return _Draft(body, end, flags, (body,))


def is_plain(text: str, facts: TurnFacts, settings: RowSettings) -> bool:
    """Say whether a text holds nothing that a rule for texts speaks of."""
    knows_end = settings.end_of_turn in ("auto", "none", *facts.ends)
    marks = facts.marks
    return (
        bool(text)
        and not text.isspace()
        and knows_end
        and marks is not None
        and marks.find_in(text) is None
    )


def _draft_rendered(
    rendered: RenderedMessage,
    message: ReadMessage,
    facts: TurnFacts,
    settings: RowSettings,
) -> _Draft:
    """Return a rendered message as a draft."""
    end = rendered.end_of_turn if settings.end_of_turn == "auto" else _named_end(settings)
    if end is None and settings.end_of_turn != "none":
        raise _no_end_of_turn(facts)
    is_opened = bool(facts.opening) and rendered.text.startswith(facts.opening)
    is_answer = not (message.calls or message.reasoning)
    return _Draft(
        rendered.text,
        end,
        frozenset((*rendered.flags, *(_OPENED if is_opened and is_answer else ()))),
        said=(*message.texts, message.reasoning),
        is_rendered=True,
        has_reasoning=bool(message.reasoning),
    )


def _refuse_second_turn(body: str, expected: str | None, facts: TurnFacts) -> None:
    match = facts.forbidden.search(body)
    at = match.start() if match is not None else body.find(expected) if expected else -1
    if at >= 0:
        token = match[0] if match is not None else expected
        raise Rejected(
            "control_tokens",
            f"continuation: {excerpt_of(token)} at character {at} ends or opens a turn; "
            "expected the model's one turn, with at most one end of turn, at its end",
            body[at:],
        )


def _mark_flags(said: tuple[str, ...], facts: TurnFacts, settings: RowSettings) -> frozenset[str]:
    """Return ``control_token_in_text`` where a text holds a mark that is not the model's to write."""
    foreign = foreign_pattern(facts.control_tokens or frozenset())
    for text in said:
        marks = [*facts.control.findall(text), *foreign.findall(text)]
        strange = [
            mark
            for mark in marks
            if mark not in facts.emitted_tokens
            and mark not in MODEL_MARKS
            and mark not in facts.ends
        ]
        if strange and settings.control_tokens == "reject":
            raise Rejected(
                "control_tokens",
                f"continuation: holds the control token {excerpt_of(strange[0])}; "
                "control_tokens: flag lets it pass",
                text,
            )
        if strange:
            return frozenset({"control_token_in_text"})
    return frozenset()


def _settle_think(
    draft: _Draft, turn: Turn, settings: RowSettings, *, adds_opening: bool
) -> tuple[str, frozenset[str]]:
    """Return the text as it goes on from the prompt's end, with the flags of what was added to it."""
    facts, pair, state = turn.facts, turn.think_pair, turn.think_state
    text = drop_supplied(draft.text, state, pair)
    if not text or (pair[1] in text and not without_empty_block(text, pair).strip()):
        raise Rejected(
            "empty_continuation",
            "continuation: nothing but what the generation prompt already says, or an empty think "
            "block; expected an answer",
            draft.text,
        )
    # In a rendering only the message's own words can be astray, not what the template writes.
    is_stray = (
        any(has_stray_think_mark(said) for said in draft.said)
        if draft.is_rendered
        else has_stray_mark(text, state, pair)
    )
    stray = frozenset({"think_in_text"} if is_stray else ())
    opening, closing = _find_frame(draft, text, turn) if adds_opening else ("", "")
    opened = frozenset(_OPENED if opening else ())
    closes = pair[1] in text
    if state.kind != "open" or (closes and not draft.is_rendered) or draft.has_reasoning:
        return f"{opening}{text}{closing}", stray | opened
    if settings.think == "reject":
        raise Rejected(
            "not_renderable",
            f"continuation: the prompt opens a think block with {excerpt_of(pair[0])} and the "
            f"continuation does not close it with {excerpt_of(pair[1])}; think: close would",
            draft.text,
        )
    if closes:
        return text, stray | {"think_closed"}
    if settings.think == "keep":
        return text, stray
    end = facts.think_closing if facts.think_pair else spell_closing(state.supplied, pair)
    return f"{end}{opening}{text}{closing}", stray | opened | {"think_closed"}


def _find_frame(draft: _Draft, text: str, turn: Turn) -> tuple[str, str]:
    """Return what goes before and after the text; a rendering has it but for what no template writes."""
    if not draft.is_rendered:
        return turn.frame(text, is_message=draft.is_message)
    facts = turn.facts
    is_bare = facts.opening_is_spelt and turn.think_state.kind == "none" and not draft.has_reasoning
    return (facts.opening if is_bare else ""), ""

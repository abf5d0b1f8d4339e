"""What a template writes around a turn: the facts that a continuation is built from."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, field
from functools import cached_property

from pipeline.answer.call_form import CallForm
from pipeline.answer.marks import (
    THINK_MARKS,
    WELL_KNOWN_MARKS,
    MarkSearch,
    control_marks,
    pattern_of,
)


@dataclass(frozen=True)
class TurnFacts:
    """What a template writes around a turn, under one set of template kwargs.

    ``end_of_turn`` is the text of the one token that ends an assistant's answer, None where it
    cannot be told; ``tool_end`` the one that ends a turn with tool calls. ``after_end`` is the white
    space that the template writes after it, which is never trained. ``opening`` stands between the
    generation prompt and a plain answer's content (gpt-oss: ``<|channel|>final<|message|>``; Qwen3:
    an empty think block), ``opening_after_thought`` is that of an answer whose think block is written
    already, and ``closing`` stands between the content and the end of turn. ``opening_is_spelt`` is
    True where the template itself never writes it (Seed-OSS's empty block), ``opens_calls`` where a
    call stands behind the same opening. ``role_header`` is the header of the assistant's
    turn where the generation prompt lacks it. ``call_form`` is how calls are spelt. ``think_open`` and
    ``think_close`` are the marks of a think block; ``think_closing`` is what closes one that the
    generation prompt leaves open. ``header_tokens`` open turns and are never the model's to emit,
    ``emitted_tokens`` are those it does emit, ``stop_tokens`` those of ``generation_config.json``,
    ``special_tokens`` those that the template may print.
    ``evidence`` says in words what was seen.
    """

    end_of_turn: str | None = None
    evidence: str = ""
    after_end: str = ""
    tool_end: str | None = None
    opening: str = ""
    opening_after_thought: str = ""
    opening_is_spelt: bool = False
    opens_calls: bool = False
    role_header: str = ""
    call_form: CallForm | None = None
    closing: str = ""
    think_open: str | None = None
    think_close: str | None = None
    think_closing: str = ""
    prompt_opens_think: bool = False
    header_tokens: frozenset[str] = frozenset()
    emitted_tokens: frozenset[str] = frozenset()
    stop_tokens: frozenset[str] = frozenset()
    control_tokens: frozenset[str] | None = field(default=None, repr=False)
    special_tokens: tuple[str, ...] = field(default=(), repr=False)
    control: re.Pattern[str] = field(default=re.compile("(?!)"), repr=False)

    @property
    def think_pair(self) -> tuple[str, str] | None:
        """The opening and the closing mark of a think block, or None where the template has none."""
        if self.think_open is None or self.think_close is None:
            return None
        return self.think_open, self.think_close

    @cached_property
    def opening_tokens(self) -> tuple[str, ...]:
        """The control tokens of the opening, think marks aside: a text with one brings its own."""
        marks = [mark for pair in THINK_MARKS for mark in pair]
        thought = {token for mark in marks for token in (mark, *self.control.findall(mark))}
        found = self.control.findall(self.opening_after_thought)
        return tuple(token for token in found if token not in thought)

    @cached_property
    def ends(self) -> tuple[str, ...]:
        """All tokens at which a turn can end, the one of an answer first."""
        learnt = [token for token in (self.end_of_turn, self.tool_end) if token]
        return tuple(dict.fromkeys([*learnt, *sorted(self.stop_tokens)]))

    @cached_property
    def forbidden(self) -> re.Pattern[str]:
        """What no continuation may hold before its end: ends of turn and turn headers."""
        return pattern_of([*self.ends, *self.header_tokens])

    @cached_property
    def marks(self) -> MarkSearch | None:
        """What finds any mark that a text may not hold, or may hold only in its place.

        Most continuations hold none: one look at such a text settles several rules. None where no
        tokenizer says which texts are marks.
        """
        if self.control_tokens is None:
            return None
        own = control_marks(self.control_tokens, self.special_tokens)
        return MarkSearch({*own, *WELL_KNOWN_MARKS, *self.ends, *self.header_tokens})

    @cached_property
    def last_turn(self) -> re.Pattern[str]:
        """What a think mark must not be followed by to belong to the last turn of a prompt.

        Any text where the template has no think block: there such a mark is somebody's words.
        """
        if self.think_pair is None:
            return re.compile(r"\S")
        marks = {token for mark in self.think_pair for token in self.control.findall(mark)}
        return pattern_of({*self.ends, *self.header_tokens, *self.emitted_tokens} - marks)


def find_end(
    text: str, start: int, ends: Collection[str], control: re.Pattern[str]
) -> tuple[int, str] | None:
    """Return the place and text of the token that ends the turn ``text``, looked for from ``start``.

    The first of ``ends``; without one, the control token with which ``text`` itself ends, unless
    that closes a frame which the turn opened (``</tool_call>``).

    >>> find_end("{}</tool_call><|call|>", 2, [], re.compile(r"<[^>]+>"))
    (14, '<|call|>')
    """
    match = pattern_of(ends).search(text, start)
    if match is not None:
        return match.start(), match[0]
    tokens = list(control.finditer(text, start))
    if not tokens or text[tokens[-1].end() :].strip() or closes_frame(tokens[-1][0], text):
        return None
    return tokens[-1].start(), tokens[-1][0]


_FRAME_NAMES = (("end", "begin"), ("end", "start"), ("suffix", "prefix"))


def closes_frame(token: str, turn: str) -> bool:
    """Return True where ``token`` closes what the turn opened, by its name.

    >>> closes_frame("<|call_end|>", "<|call_begin|>{}<|call_end|>")
    True
    """
    if token.startswith(("</", "[/")):
        return True
    return any(
        closing in token and token.replace(closing, opening) in turn
        for closing, opening in _FRAME_NAMES
    )

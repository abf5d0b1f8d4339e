"""The assistant's turn: how the prompt leaves it, and what a template writes around it.

The think policy exists so that an answer is never trained as thought: under a prompt that ends
inside an open block, a continuation without a closing mark would be.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Final, Literal, NamedTuple

from pipeline.answer.calls import CallForm
from pipeline.answer.marks import (
    THINK_MARKS,
    WELL_KNOWN_MARKS,
    MarkSearch,
    control_marks,
    is_unbalanced,
    pattern_of,
)
from pipeline.answer.seam import common_length
from pipeline.prompt.chat_template import ChatTemplates
from pipeline.prompt.request import ChatRequest, Dialect, Rendering
from pipeline.types import Message

DEFAULT_PAIR = ("<think>", "</think>")
TAIL = 128
"""Characters at a prompt's end that are looked at first."""


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
    start = len(prompt) - TAIL
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


@dataclass(frozen=True)
class Turn:
    """The turn that a continuation is to be.

    ``prompt`` is what stands before it, the dialect's rendering of ``request``; ``facts`` are what the
    template writes around it.
    """

    prompt: str
    request: ChatRequest
    dialect: Dialect
    templates: ChatTemplates
    facts: TurnFacts

    @cached_property
    def think_pair(self) -> tuple[str, str]:
        """The marks of a think block: the template's, or those of most."""
        return self.facts.think_pair or DEFAULT_PAIR

    @cached_property
    def think_state(self) -> ThinkState:
        """How the prompt ends."""
        return read_think_state(self.prompt, self.think_pair, self.facts.last_turn)

    def render(self, message: Message) -> Rendering:
        """Return the conversation with ``message`` as its last, as the server would write it."""
        return self.dialect.render_turn(self.request_with(message), self.templates)

    def request_with(self, message: Message) -> ChatRequest:
        """Return the request with one more message."""
        return replace(self.request, messages=[*self.request.messages, message])

    def frame(self, text: str, *, is_message: bool) -> tuple[str, str]:
        """Return what goes before and after a plain answer's ``text``: nothing where it brings its own.

        A served model emits the opening before its answer, and the server's parser takes it away, so
        that neither a log's text nor its message has it (gpt-oss's channel header; Qwen3's empty think
        block, without which the parser takes the answer for thought). Where the prompt has a think
        block already, none is written again. A text without an opening is verbatim; what closes an
        answer is the template's for a message.
        """
        facts = self.facts
        opening = facts.opening if self.think_state.kind == "none" else facts.opening_after_thought
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

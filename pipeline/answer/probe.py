"""What a chat template does with a turn, learnt by rendering probe conversations through a dialect.

The template's source is never read: what it writes around sentences that it cannot know is the
evidence, so a fact is true of the text that a server would see, its rewriting included.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import replace
from itertools import product
from typing import Any

from pipeline.answer.calls import read_call_form
from pipeline.answer.marks import THINK_MARKS, control_pattern
from pipeline.answer.opening import find_role_header, read_openings, spell_empty_block
from pipeline.answer.seam import find_seam
from pipeline.answer.stage import (
    ANSWER,
    ARGUMENT,
    ARGUMENT_FORMS,
    ARGUMENT_KEY,
    CONTENT_FORMS,
    REASONING,
    RESULT,
    SYSTEM,
    TOOL_NAME,
    USER,
    USER_AGAIN,
    Stage,
    find_stage,
    text_after,
    text_before,
    text_between,
)
from pipeline.answer.turn import (
    DEFAULT_PAIR,
    NO_BLOCK,
    ThinkState,
    TurnFacts,
    closes_frame,
    find_end,
    read_think_state,
)
from pipeline.errors import excerpt_of
from pipeline.prompt.chat_template import ChatTemplates
from pipeline.prompt.request import Dialect

_NO_BUDGET = {"thinking_budget": 0}
# Names by which templates switch thinking off or on; either setting may show the marks they use.
_THINK_SWITCHES = ({"enable_thinking": False}, {"enable_thinking": True}, {"thinking": True})


def probe_turns(
    dialect: Dialect,
    templates: ChatTemplates,
    kwargs: Mapping[str, Any],
    control_tokens: Collection[str] | None = None,
    stop_tokens: Collection[str] | None = None,
    *,
    has_tools: bool = False,
) -> TurnFacts:
    """Return what the template does with a turn; about twenty renders, so keep the answer.

    ``control_tokens`` are the tokenizer's added tokens; without them a control token is recognised
    by its shape. ``stop_tokens`` are the texts of the stop ids of ``generation_config.json``.
    ``has_tools`` probes the template that a request with tools gets.
    """
    stops = frozenset(stop_tokens or ())
    tokens = None if control_tokens is None else frozenset(control_tokens)
    if templates.is_empty:
        return TurnFacts(
            evidence="the tokenizer has no chat template", stop_tokens=stops, control_tokens=tokens
        )
    template = templates.for_request(has_tools)
    specials = tuple(template.special_tokens.values())
    control = control_pattern(tokens, specials)
    stage = find_stage(dialect, templates, kwargs, has_tools=has_tools)
    if isinstance(stage, str):
        facts = TurnFacts(evidence=stage, stop_tokens=stops, control_tokens=tokens, control=control)
    else:
        facts = _Probe(stage, control, stops).facts(tokens)
    return replace(facts, special_tokens=specials)


class _Probe:
    """The renderings of one stage, and what can be read off them."""

    def __init__(self, stage: Stage, control: re.Pattern[str], stops: frozenset[str]) -> None:
        self._control = control
        self._stops = stops
        self._stage = stage
        user, answer = stage.say("user", USER), stage.say("assistant", ANSWER)
        self._user = user
        self._prompt = stage.prompt(user) or ""
        self._turn = stage.turn(user, answer) or ""
        self._next = stage.prompt(user, answer, stage.say("user", USER_AGAIN)) or ""
        self._with_system = stage.prompt(stage.say("system", SYSTEM), user) or ""
        self._reasoned = stage.turn(user, stage.reason()) or ""
        self._probe_tools(stage.with_tools())

    def _probe_tools(self, stage: Stage) -> None:
        self._tool_prompt = stage.prompt(self._user) or ""
        self._called, self._answered, self._call_forms = "", "", list[str]()
        for arguments, content in product(ARGUMENT_FORMS, CONTENT_FORMS):
            call = stage.call(content, arguments)
            called = stage.turn(self._user, call) or ""
            if TOOL_NAME in called and called.rfind(ARGUMENT) > called.find(USER):
                self._called = called
                self._answered = stage.prompt(self._user, call, stage.result()) or ""
                said = [{**call, **stage.reason()}, {**call, "content": ANSWER}]
                self._call_forms = [stage.turn(self._user, message) or "" for message in said]
                return

    def facts(self, control_tokens: frozenset[str] | None) -> TurnFacts:
        """Return all that the renderings show."""
        pair = self._find_think_pair()
        end, at, evidence = self._find_end()
        last = text_after(self._turn, ANSWER)
        state = self._think_state(pair)
        closing, openings, is_spelt = self._read_openings(state, pair)
        call = self._read_call(pair)
        tool_end = self._find_tool_end(end)
        ends = [token for token in (end, tool_end, *self._stops) if token]
        emitted = self._emitted(ends, pair)
        marks = {token for known in THINK_MARKS for mark in known for token in self._tokens(mark)}
        headers = (self._around() | self._tool_opener(ends)) - emitted - marks - set(ends)
        source = last if end is not None and last[at : at + len(end)] == end else self._middle
        return TurnFacts(
            end_of_turn=end,
            evidence=evidence,
            after_end="" if end is None else _leading_space(source[at + len(end) :]),
            tool_end=tool_end,
            opening=openings[0],
            opening_after_thought=openings[1],
            opening_is_spelt=is_spelt,
            opens_calls=is_spelt or (bool(openings[0]) and call.startswith(openings[0])),
            role_header=find_role_header(
                openings[0],
                self._prompt,
                text_after(self._prompt, USER),
                self._stage.turn(self._user),
                set(self._tokens(self._middle)) - {end},
                self._control,
            ),
            call_form=read_call_form(call, TOOL_NAME, ARGUMENT_KEY, ARGUMENT),
            closing="" if end is None else source[:at].strip(),
            think_open=pair[0] if pair else None,
            think_close=pair[1] if pair else None,
            think_closing=closing,
            prompt_opens_think=state.kind == "open",
            header_tokens=frozenset(headers),
            emitted_tokens=frozenset(emitted),
            stop_tokens=self._stops,
            control_tokens=control_tokens,
            control=self._control,
        )

    @property
    def _middle(self) -> str:
        """The text between an answer and the next user's text, empty where either is dropped."""
        return text_between(self._next, ANSWER, USER_AGAIN)

    def _tokens(self, text: str) -> list[str]:
        return self._control.findall(text)

    def _find_end(self) -> tuple[str | None, int, str]:
        """Return the end of turn, its place after the answer, and what it was seen in.

        The first unbroken run of control tokens after the last answer, as far as the same run stands
        before the next turn too (so that cohere's ``<|END_RESPONSE|><|END_OF_TURN_TOKEN|>`` ends with
        its last and phi-3's ``<|end|>\\n<|endoftext|>`` with its first), and without the tokens that
        open turns. Where nothing but white space follows the last answer, the run before the next
        turn; there a token that opens a turn counts only where it is a stop token (GLM's
        ``<|user|>``).
        """
        last, middle = text_after(self._turn, ANSWER), self._middle
        run, next_run = self._run(last), self._run(middle)
        shared = [token for token, other in zip(run, next_run, strict=False) if token == other]
        openers = self._openers()
        if run:
            ends = shared or run
            if len(ends) < len(run):
                # The template goes on with a header of its own (command-a writes the next prompt).
                ends = _without_trailing(ends, openers) or ends[:1]
            stopping = [token for token in ends if token[1] in self._stops]
            at, end = (stopping or ends)[-1]
            evidence = f"the last answer is followed by {excerpt_of(last)}"
            if self._stops and end not in self._stops:
                evidence += f"; {excerpt_of(end)} is no stop token of generation_config.json"
            return end, at, evidence
        nothing = f"nothing but white space follows the last answer ({excerpt_of(last)})"
        if last.strip():
            nothing = (
                f"the last answer is followed by text, not by a control token ({excerpt_of(last)})"
            )
        ends = _without_trailing(next_run, openers) or [
            t for t in next_run[:1] if t[1] in self._stops
        ]
        if ends:
            at, end = ends[-1]
            return end, at, f"{nothing}; before the next turn stands {excerpt_of(middle)}"
        return None, 0, f"{nothing}, and before the next turn no end of turn ({excerpt_of(middle)})"

    def _run(self, text: str) -> list[tuple[int, str]]:
        """Return the control tokens that ``text`` begins with, up to the first white space among them."""
        tokens: list[tuple[int, str]] = []
        end = len(text) - len(text.lstrip())
        for match in self._control.finditer(text):
            gap = text[end : match.start()]
            if (gap and not tokens) or any(character.isspace() for character in gap):
                break
            tokens.append((match.start(), match[0]))
            end = match.end()
        return tokens

    def _openers(self) -> set[str]:
        """Return the tokens that open turns: those before the first text, and before each text."""
        before_user = text_before(self._prompt, USER)
        before_system = text_before(self._with_system, SYSTEM)
        after_system = text_between(self._with_system, SYSTEM, USER)
        after_user = text_after(self._prompt, USER)
        openers = {*self._tokens(before_user), *self._tokens(before_system)}
        openers -= {
            token for text in (after_user, after_system) for token in self._tokens(text)[:1]
        }
        before_answer = text_between(self._turn, USER, ANSWER)
        for text in (before_user, before_system, after_system, before_answer):
            openers |= set(self._tokens(text)[-1:])
        return openers | set(self._tokens(before_user)[:1]) | set(self._tokens(before_system)[:1])

    def _around(self) -> set[str]:
        """Return the tokens around the other roles' texts and in the generation prompt."""
        texts = [
            text_before(self._prompt, USER),
            text_before(self._with_system, SYSTEM),
            text_between(self._with_system, SYSTEM, USER),
            text_after(self._prompt, USER),
            self._middle,
        ]
        return {token for text in texts for token in self._tokens(text)}

    def _tool_opener(self, ends: list[str]) -> set[str]:
        """Return the token that opens a tool's turn: <tool_response> is only a frame inside it."""
        follow = text_after(text_before(self._answered, RESULT), ARGUMENT)
        tokens = self._tokens(follow)
        after_end = next(
            (tokens[at + 1 :] for at, token in enumerate(tokens) if token in ends), tokens
        )
        opening = [token for token in after_end if not closes_frame(token, self._called)]
        return set(opening[:1])

    def _emitted(self, ends: list[str], pair: tuple[str, str] | None) -> set[str]:
        """Return the tokens that assistant turns of every kind hold between prompt and end."""
        turns = [(self._prompt, self._turn), (self._prompt, self._reasoned)]
        turns += [(self._tool_prompt, form) for form in (self._called, *self._call_forms)]
        emitted: set[str] = set()
        for prompt, full in turns:
            seam = find_seam(text_after(prompt, USER), text_after(full, USER), self._control, pair)
            if seam is None or not full:
                continue
            said = text_after(full, USER)[seam.at :]
            last = max(said.rfind(text) for text in (ANSWER, ARGUMENT, TOOL_NAME, REASONING))
            found = find_end(said, max(last, 0), ends, self._control)
            tokens = set(self._tokens(said if found is None else said[: found[0]]))
            # Where an end stands inside, the template spread the message over several turns.
            emitted |= tokens if tokens.isdisjoint(ends) else set()
        return emitted

    def _find_tool_end(self, end: str | None) -> str | None:
        """Return the token that ends a turn with tool calls, None where none is seen."""
        if not self._called:
            return None
        ends = [token for token in (end, *self._stops) if token]
        turn = text_after(self._called, USER)
        found = find_end(turn, turn.rfind(ARGUMENT), ends, self._control)
        if found is not None and (not self._stops or found[1] in ends):
            return found[1]
        # Not in the call's own rendering: then before the tool's turn (GLM's <|observation|>).
        follow = text_after(text_before(self._answered, RESULT), ARGUMENT)
        return next((token for token in self._tokens(follow) if token in ends), None)

    def _think_state(self, pair: tuple[str, str] | None) -> ThinkState:
        if pair is None:
            return NO_BLOCK
        return read_think_state(text_after(self._prompt, USER), pair, re.compile("(?!)"))

    def _find_think_pair(self) -> tuple[str, str] | None:
        """Return the think marks that the template itself shows, in a prompt, a turn, or by taking
        them out of an answer that holds them."""
        after_reasoning = text_after(self._reasoned, REASONING).lstrip()
        for pair in THINK_MARKS:
            if after_reasoning.startswith(pair[1]):
                return pair
        texts = [text_after(self._prompt, USER), text_between(self._turn, USER, ANSWER)]
        for switch in _THINK_SWITCHES:
            stage = replace(self._stage, kwargs={**self._stage.kwargs, **switch})
            texts.append(text_after(stage.prompt(self._user) or "", USER))
        for text in texts:
            for opening, closing in THINK_MARKS:
                if opening in text or closing in text:
                    return opening, closing
        thought = f"{DEFAULT_PAIR[0]}\n{REASONING}\n{DEFAULT_PAIR[1]}\n\n{ANSWER}"
        inline = self._stage.say("assistant", thought)
        renderings = [
            self._stage.turn(self._user, inline),
            self._stage.prompt(self._user, inline, self._stage.say("user", USER_AGAIN)),
        ]
        seen = [text for text in renderings if text is not None and ANSWER in text]
        return DEFAULT_PAIR if any(REASONING not in text for text in seen) else None

    def _read_openings(
        self, state: ThinkState, pair: tuple[str, str] | None
    ) -> tuple[str, tuple[str, str], bool]:
        """Return what closes a think block, the two openings of `TurnFacts`, and whether the first is
        spelt here, as the template never writes it."""
        after_thought = text_between(self._reasoned, REASONING, ANSWER)
        prompt, turn = text_after(self._prompt, USER), text_after(self._turn, USER)
        seam = find_seam(prompt, turn, self._control, pair)
        before = "" if seam is None else turn[seam.at :]
        closing, openings = read_openings(text_before(before, ANSWER), after_thought, state, pair)
        if pair is None or state.kind != "none" or any(openings):
            return closing, openings, False
        seam = find_seam(self._prompt, self._reasoned, self._control, pair)
        before = "" if seam is None else text_before(self._reasoned[seam.at :], REASONING)
        stage = replace(self._stage, kwargs={**self._stage.kwargs, **_NO_BUDGET})
        unthinking = text_after(stage.prompt(self._user) or "", USER)
        spelt = spell_empty_block(before, after_thought, unthinking, pair)
        return closing, (spelt, ""), bool(spelt)

    def _read_call(self, pair: tuple[str, str] | None) -> str:
        """Return the probe's call as it follows the prompt, up to its end of turn."""
        full = text_after(self._called, USER)
        seam = find_seam(text_after(self._tool_prompt, USER), full, self._control, pair)
        said = full if seam is None else full[seam.at :]
        found = find_end(said, said.rfind(ARGUMENT), self._stops, self._control)
        return said if found is None else said[: found[0]]


def _without_trailing(tokens: list[tuple[int, str]], openers: set[str]) -> list[tuple[int, str]]:
    kept = list(tokens)
    while kept and kept[-1][1] in openers:
        kept.pop()
    return kept


def _leading_space(text: str) -> str:
    return text[: len(text) - len(text.lstrip())]

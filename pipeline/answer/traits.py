"""What ``context-frozen check`` says about a chat template: each trait with what was seen.

Like `pipeline.answer.probe` this renders conversations and reads the text; it asks about the messages that
people send rather than about the turn that is trained.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import Any, Final

from pipeline.answer.probe import probe_turns
from pipeline.answer.seam import common_length, find_seam
from pipeline.answer.stage import (
    ANSWER,
    ARGUMENT,
    ARGUMENT_FORMS,
    CONTENT_FORMS,
    REASONING,
    REFUSED,
    RESULT,
    SYSTEM,
    TOOL_NAME,
    USER,
    USER_AGAIN,
    Stage,
    find_stage,
    fix_clock,
)
from pipeline.answer.trait_meanings import MEANINGS
from pipeline.answer.turn import TurnFacts
from pipeline.errors import Rejected, excerpt_of
from pipeline.prompt.chat_template import ChatTemplates
from pipeline.prompt.request import Dialect
from pipeline.types import Message

_ARGUMENT_TRAITS: Final = ("tool_arguments_dict", "tool_arguments_text")
# From the best to the worst, to find the spelling of a call that a template takes.
_CALL_VALUES: Final = ("yes", "lost", "error")
_DAYS: Final = (datetime(2001, 2, 3), datetime(2029, 11, 30))


@dataclass(frozen=True, slots=True)
class Trait:
    """One thing that a template does: ``value`` is a word, ``evidence`` at most 80 characters of
    rendered text or the template's refusal, ``meaning`` what follows for training."""

    name: str
    value: str
    evidence: str
    meaning: str


@dataclass(frozen=True, slots=True)
class TemplateReport:
    """The traits of a template under one dialect, by name, and what it does with a turn."""

    traits: Mapping[str, Trait]
    turns: TurnFacts

    def to_dict(self) -> dict[str, dict[str, str]]:
        """Return the traits as JSON can hold them."""
        return {name: asdict(trait) for name, trait in self.traits.items()}


def probe_template(
    dialect: Dialect,
    templates: ChatTemplates,
    kwargs: Mapping[str, Any],
    control_tokens: Collection[str] | None = None,
    stop_tokens: Collection[str] | None = None,
) -> TemplateReport:
    """Return what the template does; arguments as of `pipeline.answer.probe.probe_turns`.

    Traits and their values: ``renders`` (yes, refused); ``content`` (text, parts, both);
    ``system`` (yes, moved, dropped, error); ``two_users``, ``assistant_first`` (ok, error);
    ``tools`` (yes, ignored, error); ``tool_arguments_dict``, ``tool_arguments_text``, ``tool_reply``
    (yes, lost, error); ``generation_prompt`` (yes, none); ``think_prompt`` (open, closed, none);
    ``reasoning``, ``inline_thought`` (each ``kept`` or ``dropped`` in the last turn, then in
    history, as ``kept>dropped``); ``prefix`` (prefix, white_space, think, no);
    ``history_prefix`` (yes, no); ``user_space``, ``assistant_space`` (kept, trimmed);
    ``clock`` (read, not read); ``end_of_turn`` (the token, or unknown).
    """
    facts = probe_turns(dialect, templates, kwargs, control_tokens, stop_tokens)
    stage = "the tokenizer has no chat template"
    if not templates.is_empty:
        stage = find_stage(dialect, templates, kwargs, has_tools=False)
    if isinstance(stage, str):
        return report_refusal(stage.removeprefix(REFUSED), facts)
    traits = list(_Inspection(stage, facts).traits(dialect))
    return TemplateReport({trait.name: trait for trait in traits}, facts)


def report_refusal(words: str, facts: TurnFacts | None = None) -> TemplateReport:
    """Return the report of a template that renders nothing, with why."""
    refusal = _trait("renders", "refused", words)
    return TemplateReport({refusal.name: refusal}, facts or TurnFacts(evidence=words))


def _trait(name: str, value: str, evidence: str) -> Trait:
    meaning = MEANINGS.get((name, value)) or MEANINGS[name, ""]
    return Trait(name, value, excerpt_of(evidence), meaning)


class _Inspection:
    """A stage and the conversations that traits are read off."""

    def __init__(self, stage: Stage, facts: TurnFacts) -> None:
        self._stage = stage
        self._facts = facts
        self._user = stage.say("user", USER)
        self._answer = stage.say("assistant", ANSWER)
        self._again = stage.say("user", USER_AGAIN)

    def traits(self, dialect: Dialect) -> Iterator[Trait]:
        prompt = self._render(self._user)
        yield _trait("renders", "yes", prompt)
        yield self._content()
        yield self._system()
        yield self._seen("two_users", USER_AGAIN, (self._user, self._again), found="ok")
        yield self._seen("assistant_first", ANSWER, (self._answer, self._user), found="ok")
        yield from self._tools()
        bare = self._stage.turn(self._user)
        added = prompt.removeprefix(bare or prompt)
        yield _trait("generation_prompt", "yes" if added else "none", added)
        yield self._think_prompt(prompt)
        yield self._kept("reasoning", self._stage.reason())
        thought = f"<think>\n{REASONING}\n</think>\n\n{ANSWER}"
        yield self._kept("inline_thought", self._stage.say("assistant", thought))
        yield from self._prefixes(prompt)
        yield from self._spaces()
        yield self._clock(dialect)
        end = self._facts.end_of_turn or "unknown"
        yield _trait("end_of_turn", end, self._facts.evidence)

    def _render(self, *messages: Message, stage: Stage | None = None) -> str:
        """Return the prompt of a conversation; raises `Rejected` with the template's words."""
        stage = stage or self._stage
        return stage.dialect.render_prompt(stage.request(*messages), stage.templates).text

    def _seen(
        self,
        name: str,
        text: str,
        messages: tuple[Message, ...],
        *,
        found: str = "yes",
        lost: str = "lost",
        stage: Stage | None = None,
    ) -> Trait:
        """Return whether ``text`` shows in the prompt of ``messages``, or that they are refused."""
        try:
            rendered = self._render(*messages, stage=stage)
        except Rejected as error:
            return _trait(name, "error", error.reason)
        at = rendered.find(text)
        return _trait(name, found if at >= 0 else lost, rendered[max(0, at - 20) :])

    def _content(self) -> Trait:
        """Return which forms of content are rendered; a printed Python list is none."""
        prompts = {
            "text": _prompt_of_user(replace(self._stage, as_parts=False)),
            "parts": _prompt_of_user(replace(self._stage, as_parts=True)),
        }
        forms = [name for name, text in prompts.items() if USER in text and "{'type'" not in text]
        value = forms[0] if len(forms) == 1 else "both"
        return _trait("content", value, prompts[forms[0]][-80:])

    def _system(self) -> Trait:
        system = self._stage.say("system", SYSTEM)
        trait = self._seen("system", SYSTEM, (system, self._user), lost="dropped")
        turn = self._stage.turn(system, self._user, self._answer)
        if trait.value == "yes" and turn is not None and SYSTEM not in turn:
            return _trait("system", "moved", trait.evidence)
        return trait

    def _tools(self) -> Iterator[Trait]:
        stage = self._stage.with_tools()
        yield self._seen("tools", TOOL_NAME, (self._user,), lost="ignored", stage=stage)
        best: tuple[int, Message] | None = None
        for name, arguments in zip(_ARGUMENT_TRAITS, ARGUMENT_FORMS, strict=True):
            calls = [stage.call(content, arguments) for content in CONTENT_FORMS]
            traits = [self._called(name, call, stage) for call in calls]
            ranks = [_CALL_VALUES.index(trait.value) for trait in traits]
            rank = min(ranks)
            yield traits[ranks.index(rank)]
            if best is None or rank < best[0]:
                best = rank, calls[ranks.index(rank)]
        assert best is not None
        replied = (self._user, best[1], stage.result())
        yield self._seen("tool_reply", RESULT, replied, stage=stage)

    def _called(self, name: str, call: Message, stage: Stage) -> Trait:
        """Return whether a call shows, as the last message or before its answer."""
        replied = self._seen(name, ARGUMENT, (self._user, call, stage.result()), stage=stage)
        turn = stage.turn(self._user, call)
        if turn is not None and ARGUMENT in turn:
            return _trait(name, "yes", turn[max(0, turn.rfind(ARGUMENT) - 40) :])
        return (
            _trait(name, "lost", turn) if turn is not None and replied.value != "yes" else replied
        )

    def _think_prompt(self, prompt: str) -> Trait:
        after = prompt.rpartition(USER)[2]
        pair = self._facts.think_pair
        if self._facts.prompt_opens_think:
            return _trait("think_prompt", "open", after)
        is_closed = pair is not None and pair[1] in after
        return _trait("think_prompt", "closed" if is_closed else "none", after)

    def _kept(self, name: str, message: Message) -> Trait:
        """Return whether reasoning shows in a last turn, and in a turn that another answer follows."""
        last = self._stage.turn(self._user, message) or ""
        history = self._stage.turn(self._user, message, self._again, self._answer) or ""
        words = ["kept" if REASONING in text else "dropped" for text in (last, history)]
        return _trait(name, ">".join(words), last.rpartition(USER)[2])

    def _prefixes(self, prompt: str) -> Iterator[Trait]:
        full = self._stage.turn(self._user, self._answer) or ""
        seam = find_seam(prompt, full, self._facts.control, self._facts.think_pair)
        follows = full[seam.at :] if seam else full.rpartition(USER)[2]
        yield _trait("prefix", seam.way if seam else "no", follows)
        longer = self._stage.turn(self._user, self._answer, self._again, self._answer)
        is_prefix = bool(full) and (longer or "").startswith(full)
        yield _trait("history_prefix", "yes" if is_prefix else "no", (longer or "")[-80:])

    def _spaces(self) -> Iterator[Trait]:
        user = self._stage.say("user", f"  {USER}  ")
        answer = self._stage.say("assistant", f"  {ANSWER}  ")
        rendered = self._stage.prompt(user, answer, self._again) or ""
        for name, text in (("user_space", USER), ("assistant_space", ANSWER)):
            at = rendered.find(text)
            value = "kept" if f"  {text}  " in rendered else "trimmed"
            yield _trait(name, value, rendered[max(0, at - 12) :])

    def _clock(self, dialect: Dialect) -> Trait:
        """Return whether the date is in a prompt, or asked for at all: undated, such a render fails."""
        texts = [self._prompts_on(fix_clock(dialect, day)) for day in _DAYS]
        if texts[0] != texts[1]:
            at = common_length(*texts)
            return _trait("clock", "read", texts[1][max(0, at - 20) :])
        asks = texts[0] != self._prompts_on(fix_clock(dialect, None))
        return _trait("clock", "read" if asks else "not read", "")

    def _prompts_on(self, dialect: Dialect) -> str:
        stage = replace(self._stage, dialect=dialect)
        prompts = [
            stage.prompt(self._user),
            stage.prompt(stage.say("system", SYSTEM), self._user),
            stage.with_tools().prompt(self._user),
        ]
        return "".join(prompt or "" for prompt in prompts)


def _prompt_of_user(stage: Stage) -> str:
    return stage.prompt(stage.say("user", USER)) or ""

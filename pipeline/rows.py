"""Decision points to bounded rows: render as the server does, encode apart, bound, prove.

The batch job and the library face both come through `RowBuilder.build`, so they give the same ids.
A context that several points share is rendered and encoded once.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import Any, NamedTuple

import numpy as np

from pipeline.boundary import (
    BoundedRow,
    FittedContext,
    FittedRow,
    LengthPolicy,
    close_continuations,
    fit_context,
    fit_continuation,
    join_rows,
)
from pipeline.config import PrepareConfig
from pipeline.continuation.emitted import ContinuationSettings, build_continuation
from pipeline.continuation.marks import find_text_flags
from pipeline.continuation.sampled import check_context_ids, check_continuation_ids
from pipeline.decisions import DecisionPoint
from pipeline.encode import Ids, TextEncoder
from pipeline.errors import Rejected, UsageError, excerpt_of
from pipeline.examples import TrainingExample
from pipeline.server import ChatRequest, Dialect, Message, Rendering, SharedWork, load_dialect
from pipeline.template.chat_template import ChatTemplates, resolve_templates
from pipeline.template.probe import probe_turns
from pipeline.template.turn_facts import TurnFacts
from pipeline.tokenizer_files import read_model_type, read_position_limit, read_stop_ids

_ContextKey = tuple[int, int | None]


class _Context(NamedTuple):
    """What the server had before a decision point: the request, its prompt, and its ids."""

    request: ChatRequest
    prompt: Rendering
    is_raw: bool
    flags: tuple[str, ...]
    ids: Ids


class _Answer(NamedTuple):
    """What the model must emit: text and the id that ends the turn, or the ids that a server sampled."""

    text: str
    end_id: int | None
    flags: tuple[str, ...]
    sampled: Ids | None = None


class RowBuilder:
    """Everything that turns decision points into rows, loaded once per process.

    >>> from pipeline.decisions import find_decision_points
    >>> from pipeline.examples import TrainingExample
    >>> builder = RowBuilder(PrepareConfig(input=("x",), tokenizer="configs/tokenizer", output="y"))
    >>> example = TrainingExample("a", "2+2=", "4")
    >>> row = builder.build(find_decision_points(example))[0]
    >>> row.context_len < row.total_len
    True
    """

    def __init__(self, config: PrepareConfig) -> None:
        self._config = config
        self.encoder = TextEncoder.from_path(
            config.tokenizer,
            trust_remote_code=config.trust_remote_code,
            encoder=config.encoder,
        )
        self.templates: ChatTemplates = resolve_templates(
            self.encoder.tokenizer, config.chat_template
        )
        self.dialect: Dialect = load_dialect(
            config.server,
            config.server_options,
            read_model_type(self.encoder.folder),
            self.encoder.folder,
        )
        self._settings = ContinuationSettings(
            end_of_turn=config.end_of_turn, think=config.think, control_tokens=config.control_tokens
        )
        if (
            config.end_of_turn not in ("auto", "none")
            and self.encoder.token_id(config.end_of_turn) is None
        ):
            raise UsageError(
                f"end_of_turn: {excerpt_of(config.end_of_turn)} is no single token of this tokenizer; "
                "expected auto, none, or the text of one of its added tokens"
            )
        self._control_tokens = frozenset(self.encoder.added_tokens)
        self._stop_ids = read_stop_ids(self.encoder.folder)
        self._facts_by_request: dict[str, TurnFacts] = {}

    @cached_property
    def stop_tokens(self) -> list[str]:
        """Texts of the tokens at which the server stops, from ``generation_config.json``."""
        return [text for text, id_ in self.encoder.added_tokens.items() if id_ in self._stop_ids]

    @cached_property
    def _bos_id(self) -> int | None:
        return self.encoder.bos_id

    @cached_property
    def _position_limit(self) -> int | None:
        return read_position_limit(self.encoder.folder)

    def settle(self, points: Sequence[DecisionPoint]) -> None:
        """Learn from a job's first points what holds for all of it, before workers are forked.

        The encoder is checked on their texts, and the template is probed for their kinds of request.
        """
        texts = [text for point in points for text in self._texts_of(point)]
        self.encoder.settle(texts)
        self.build(points)

    def _texts_of(self, point: DecisionPoint) -> Iterator[str]:
        try:
            yield self.render_context(point)[1].text
        except Rejected:
            return
        if isinstance(point.continuation, str):
            yield point.continuation

    def _make_policy(self, max_len: int | None) -> LengthPolicy:
        """Return the length policy, with ``max_len`` never above what the model can take."""
        config = self._config
        max_len = config.max_len if max_len is None else max_len
        return LengthPolicy(
            max_len=min(max_len, self._position_limit or max_len),
            overlong=config.overlong,
            overlong_last_turn=config.overlong_last_turn,
            overlong_continuation=config.overlong_continuation,
            min_context=config.min_context,
            max_continuation=config.max_continuation,
            bos_id=self._bos_id,
        )

    def build(
        self, points: Sequence[DecisionPoint], max_len: int | None = None
    ) -> list[BoundedRow | Rejected]:
        """Return one row, or the reason why there is none, for each point, in order.

        ``max_len`` (tokens) replaces the setting.
        """
        policy = self._make_policy(max_len)
        contexts = self._build_contexts(points)
        answers = [self._build_answer(point, contexts[_key_of(point)]) for point in points]
        texts = [answer.text if isinstance(answer, _Answer) else "" for answer in answers]
        ends = [answer.end_id if isinstance(answer, _Answer) else None for answer in answers]
        encoded = self.encoder.encode_continuations(texts)
        decoded = self.encoder.decode_after_context(encoded)
        closed = close_continuations(encoded, ends)
        fitted: list[FittedRow | Rejected] = []
        for point, answer, ids, text in zip(points, answers, closed, decoded, strict=True):
            context = contexts[_key_of(point)]
            try:
                if isinstance(answer, Rejected):
                    raise answer
                assert isinstance(context, _Context), "an answer is built on a context alone"
                fitted.append(self._fit(context, answer, ids, text, policy))
            except Rejected as error:
                fitted.append(error)
        rows = iter(join_rows([row for row in fitted if isinstance(row, FittedRow)]))
        return [next(rows) if isinstance(row, FittedRow) else row for row in fitted]

    def render_context(
        self, point: DecisionPoint, shared: SharedWork | None = None
    ) -> tuple[ChatRequest, Rendering]:
        """Return the request of a point, ``messages`` before it, and the prompt that the server makes.

        ``shared`` is what other points of the batch have in common with this one. Raises `Rejected`
        where the server or the template refuses it.
        """
        example = point.example
        shared = SharedWork() if shared is None else shared
        messages = (example.messages or [])[: point.decision_idx]
        request = ChatRequest(messages, example.tools, self._merge_kwargs(example, shared), shared)
        sampled = _sampled_context(point)
        if sampled is not None:
            return request, Rendering(self.encoder.decode(sampled))
        if example.messages is None:
            return request, Rendering(example.context or "")
        return request, self.dialect.render_prompt(request, self.templates)

    def _merge_kwargs(self, example: TrainingExample, shared: SharedWork) -> Mapping[str, Any]:
        """Return the template kwargs of the settings under the example's; for equal ones the same."""
        own = example.chat_template_kwargs
        if not own:
            return self._config.chat_template_kwargs
        return shared.once(f"kwargs {own}", lambda: {**self._config.chat_template_kwargs, **own})

    def _build_contexts(
        self, points: Sequence[DecisionPoint]
    ) -> dict[_ContextKey, _Context | Rejected]:
        """Return the context of each point, or why it is refused, each made once."""
        contexts: dict[_ContextKey, _Context | Rejected] = {}
        shared = SharedWork()
        rendered: list[tuple[DecisionPoint, ChatRequest, Rendering]] = []
        for key, point in {_key_of(point): point for point in points}.items():
            try:
                rendered.append((point, *self.render_context(point, shared)))
            except Rejected as error:
                contexts[key] = error
        batch = self.encoder.encode_contexts([prompt.text for *_, prompt in rendered])
        for place, (point, request, prompt) in enumerate(rendered):
            try:
                context = self._describe_context(point, request, prompt, batch[place])
            except Rejected as error:
                context = error
            contexts[_key_of(point)] = context
        return contexts

    def _describe_context(
        self, point: DecisionPoint, request: ChatRequest, prompt: Rendering, ids: Ids
    ) -> _Context:
        example = point.example
        is_raw = example.messages is None
        texts = find_text_flags(
            request.messages,
            self._control_tokens,
            raw_context=prompt.text if is_raw else "",
            known=request.shared.table("text flags"),
        )
        if self._settings.control_tokens == "reject" and "control_token_in_text" in texts:
            raise Rejected(
                "control_tokens",
                "a message's text holds a control token; control_tokens: flag lets it pass",
            )
        flags = (*prompt.flags, *texts)
        if (sampled := _sampled_context(point)) is not None:
            ids = check_context_ids(sampled, self.encoder.vocabulary_size)
            is_raw, flags = True, (*flags, "sampled_ids")
        elif prompt.ids is not None:
            ids = np.array(prompt.ids, np.int32)
        elif is_raw and self._config.raw_context == "completions":
            ids = self._encode_completion_prompt(prompt.text)
        return _Context(request, prompt, is_raw, (*flags, *self._bos_flags(ids)), ids)

    def _encode_completion_prompt(self, text: str) -> Ids:
        """Return the ids of a ``/v1/completions`` prompt; one that has its BOS gets no second one."""
        bos = self.encoder.tokenizer.bos_token
        starts_with_bos = isinstance(bos, str) and text.startswith(bos)
        return self.encoder.encode([text], add_special_tokens=not starts_with_bos)[0]

    def _build_answer(
        self, point: DecisionPoint, context: _Context | Rejected
    ) -> _Answer | Rejected:
        if isinstance(context, Rejected):
            return context
        try:
            facts = self._facts(context.request)
            if point.continuation_ids is not None:
                ids = check_continuation_ids(
                    point.continuation_ids,
                    point.continuation if isinstance(point.continuation, str) else "",
                    self.encoder,
                    self._end_ids(facts),
                    needs_end=self._settings.end_of_turn != "none",
                )
                return _Answer("", None, ("sampled_ids",), ids)
            text, end_of_turn, flags = build_continuation(
                point.continuation,
                context.prompt.text,
                context.request,
                self.dialect,
                self.templates,
                facts,
                self._settings,
            )
            return _Answer(text, self._find_end_id(end_of_turn), flags)
        except Rejected as error:
            return error

    def _fit(
        self, context: _Context, answer: _Answer, ids: Ids, decoded: str, policy: LengthPolicy
    ) -> FittedRow:
        """Return a context and its answer within the length; ``ids`` are proven to be the answer's.

        Ids that a server sampled were checked already, and their end of turn is among them.
        """
        proof: tuple[str, ...] = ()
        if answer.sampled is not None:
            ids = answer.sampled
        elif decoded != answer.text:
            proof = self._explain_difference(answer, ids, decoded)
        flags = context.flags + answer.flags + proof
        if policy.takes(len(context.ids), len(ids)):
            return FittedRow(FittedContext(context.ids), ids, flags)
        ids, cut = fit_continuation(ids, len(context.ids), policy)
        fitted = fit_context(
            context.ids,
            len(ids),
            policy,
            is_raw=context.is_raw,
            messages=context.request.messages,
            encode=partial(self._encode_messages, context.request),
        )
        return FittedRow(fitted, ids, flags + cut)

    def _encode_messages(self, request: ChatRequest, messages: Sequence[Message]) -> Ids:
        """Return the ids of the prompt of other messages under the same request."""
        prompt = self.dialect.render_prompt(replace(request, messages=messages), self.templates)
        if prompt.ids is not None:
            return np.array(prompt.ids, np.int32)
        return self.encoder.encode_contexts([prompt.text])[0]

    def _explain_difference(self, answer: _Answer, ids: Ids, decoded: str) -> tuple[str, ...]:
        """Return the flag of ids that decode to another text for a good reason, or refuse them."""
        if decoded == self.encoder.normalise(answer.text):
            return ("normalised_by_tokenizer",)
        count = len(ids) - (answer.end_id is not None)
        raise Rejected(
            "not_renderable",
            f"continuation: its {count} tokens decode to another text, so the tokenizer has no ids "
            "for it",
            decoded,
        )

    def _find_end_id(self, end_of_turn: str | None) -> int | None:
        """Return the id of the token that ends a turn, None where nothing is to end it."""
        if end_of_turn is None:
            return None
        id_ = self.encoder.token_id(end_of_turn)
        if id_ is None:
            raise Rejected(
                "no_end_of_turn",
                f"the template ends a turn with {excerpt_of(end_of_turn)}, which is no single token of "
                "this tokenizer; name its end of turn with end_of_turn:",
            )
        return id_

    def _end_ids(self, facts: TurnFacts) -> frozenset[int]:
        """Return the ids at which a turn can end: learnt, named by the settings, or the model's."""
        named = map(self.encoder.token_id, (*facts.ends, self._settings.end_of_turn))
        return self._stop_ids.union(id_ for id_ in named if id_ is not None)

    def _bos_flags(self, context_ids: Ids) -> tuple[str, ...]:
        bos_id = self._bos_id
        if bos_id is None:
            return ()
        starts = context_ids[:2].tolist()
        if starts == [bos_id, bos_id]:
            return ("double_bos",)
        return ("no_bos",) if self.encoder.adds_bos and starts[:1] != [bos_id] else ()

    def _facts(self, request: ChatRequest) -> TurnFacts:
        """Return what the template does with a turn of ``request``, probed once for each kind."""
        kwargs, has_tools = request.chat_template_kwargs, bool(request.tools)
        return request.shared.once(
            "turn facts", lambda: self._probe_turns(dict(kwargs), has_tools), kwargs, has_tools
        )

    def _probe_turns(self, kwargs: dict[str, Any], has_tools: bool) -> TurnFacts:
        key = json.dumps([has_tools, kwargs], sort_keys=True)
        if key not in self._facts_by_request:
            self._facts_by_request[key] = probe_turns(
                self.dialect,
                self.templates,
                kwargs,
                self._control_tokens,
                self.stop_tokens,
                has_tools=has_tools,
            )
        return self._facts_by_request[key]


def _key_of(point: DecisionPoint) -> _ContextKey:
    """Return what tells one context of a batch from another: the example and the place in it."""
    return id(point.example), point.decision_idx


def _sampled_context(point: DecisionPoint) -> list[int] | None:
    """Return the ids that the server had at this point, which it names for one place alone."""
    example = point.example
    return example.context_ids if point.decision_idx == example.decision_idx else None

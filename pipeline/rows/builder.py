"""Decision points to bounded rows: render as the server does, encode apart, bound, prove.

The batch job and the library face both come through `RowBuilder.build`, so they give the same ids.
A context that several points share is rendered and encoded once.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import cached_property, partial
from typing import Any, NamedTuple

from pipeline.answer.emitted import build_continuation
from pipeline.answer.probe import probe_turns
from pipeline.answer.turn import Turn, TurnFacts
from pipeline.config import RowSettings
from pipeline.errors import Rejected, UsageError, excerpt_of
from pipeline.examples.decisions import DecisionPoint
from pipeline.prompt.bounded import BOUNDED_RUNS, OverLimit
from pipeline.prompt.chat_template import ChatTemplates, resolve_templates
from pipeline.prompt.dialects import load_dialect
from pipeline.prompt.request import ChatRequest, Dialect, Rendering
from pipeline.rows.call_ids import CallIds
from pipeline.rows.context import Context, ContextBuilder
from pipeline.rows.lengths import fit_context, fit_continuation
from pipeline.rows.sampled import check_continuation_ids
from pipeline.rows.table import (
    BoundedRow,
    FittedContext,
    LengthPolicy,
    close_continuations,
    join_row,
)
from pipeline.tokens.encoder import TextEncoder
from pipeline.tokens.files import read_model_type, read_position_limit, read_stop_ids
from pipeline.tokens.ids import Ids


class _Answer(NamedTuple):
    """What the model must emit: text and the id that ends the turn, or the ids that a server sampled."""

    text: str
    end_id: int | None
    flags: tuple[str, ...]
    sampled: Ids | None = None


class RowBuilder:
    """Everything that turns decision points into rows, loaded once per process.

    >>> from pipeline.examples.decisions import find_decision_points
    >>> from pipeline.examples.example import TrainingExample
    >>> builder = RowBuilder(RowSettings(tokenizer="configs/tokenizer"))
    >>> example = TrainingExample("a", "2+2=", "4")
    >>> row = builder.build(find_decision_points(example))[0]
    >>> row.context_len < row.total_len
    True
    """

    def __init__(self, config: RowSettings) -> None:
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
            config.tokenizer if config.chat_template is None else None,
            self.encoder.has_token,
        )
        self.contexts = ContextBuilder(config, self.encoder, self.templates, self.dialect)
        self._call_ids = CallIds(config, self.dialect, self.templates)
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
        self._facts_by_request: dict[str, TurnFacts | OverLimit] = {}

    @cached_property
    def stop_tokens(self) -> list[str]:
        """Texts of the tokens at which the server stops, from ``generation_config.json``."""
        return [text for text, id_ in self.encoder.added_tokens.items() if id_ in self._stop_ids]

    @cached_property
    def _position_limit(self) -> int | None:
        return read_position_limit(self.encoder.folder)

    def settle(self, points: Sequence[DecisionPoint]) -> None:
        """Learn from a job's first points what holds for all of it, before workers are forked.

        The template is probed for their kinds of request, and the encoder is checked on their texts:
        last, because it may have to be waited for.
        """
        # A template that does not come to an end shows that in every point, and is waited for once.
        with suppress(OverLimit), BOUNDED_RUNS.limited():
            self.build(points)
            self.encoder.settle(text for point in points for text in self._texts_of(point))

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
            bos_id=self.encoder.bos_id,
        )

    def build(
        self, points: Sequence[DecisionPoint], max_len: int | None = None
    ) -> list[BoundedRow | Rejected]:
        """Return one row, or the reason why there is none, for each point, in order.

        ``max_len`` (tokens) replaces the setting.
        """
        policy = self._make_policy(max_len)
        points, renamed = zip(*self._call_ids.rename(points), strict=True) if points else ((), ())
        contexts = self.contexts.build(points)
        answers = list(map(self._build_answer, points, contexts))
        texts = [answer.text if isinstance(answer, _Answer) else "" for answer in answers]
        ends = [answer.end_id if isinstance(answer, _Answer) else None for answer in answers]
        encoded = self.encoder.encode_continuations(texts)
        decoded = self.encoder.decode_after_context(encoded)
        closed = close_continuations(encoded, ends)
        rows: list[BoundedRow | Rejected] = []
        for point, context, answer, ids, text, other_ids in zip(
            points, contexts, answers, closed, decoded, renamed, strict=True
        ):
            BOUNDED_RUNS.begin_point()
            try:
                if isinstance(answer, Rejected):
                    raise answer
                assert isinstance(context, Context), "an answer is built on a context alone"
                if other_ids:
                    answer = answer._replace(flags=(*answer.flags, "call_ids_renamed"))
                rows.append(self._fit(context, answer, ids, text, policy))
            except Rejected as error:
                rows.append(self._call_ids.explain(point, error).without_frames())
        return rows

    def render_context(self, point: DecisionPoint) -> tuple[ChatRequest, Rendering]:
        """Return the request of a point and its prompt. See `ContextBuilder.render`."""
        return self.contexts.render(self._call_ids.rename([point])[0][0])

    def _build_answer(
        self, point: DecisionPoint, context: Context | Rejected
    ) -> _Answer | Rejected:
        if isinstance(context, Rejected):
            return context
        BOUNDED_RUNS.begin_point()
        try:
            facts = self._facts(context.request)
            if point.continuation_ids is not None:
                ids = check_continuation_ids(
                    point.continuation_ids,
                    point.continuation,
                    self.encoder,
                    self._end_ids(facts),
                    needs_end=self._config.end_of_turn != "none",
                )
                return _Answer("", None, ("sampled_ids",), ids)
            text, end_of_turn, flags = build_continuation(
                point.continuation,
                Turn(context.prompt.text, context.request, self.dialect, self.templates, facts),
                self._config,
            )
            return _Answer(text, self._find_end_id(end_of_turn), flags)
        except Rejected as error:
            return error.without_frames()

    def _fit(
        self, context: Context, answer: _Answer, ids: Ids, decoded: str, policy: LengthPolicy
    ) -> BoundedRow:
        """Return the row of a context and its answer, within the length.

        ``ids`` are proven to be the answer's. Ids that a server sampled were checked
        already, and their end of turn is among them.
        """
        proof: tuple[str, ...] = ()
        if answer.sampled is not None:
            ids = answer.sampled
        elif decoded != answer.text:
            proof = self._explain_difference(answer, ids, decoded)
        flags = context.flags + answer.flags + proof
        if policy.takes(len(context.ids), len(ids)):
            return join_row(FittedContext(context.ids), ids, flags)
        ids, cut = fit_continuation(ids, len(context.ids), policy)
        fitted = fit_context(
            context.ids,
            len(ids),
            policy,
            is_raw=context.is_raw,
            messages=context.request.messages,
            encode=partial(self.contexts.encode_messages, context.request),
        )
        return join_row(fitted, ids, flags + cut)

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
        named = map(self.encoder.token_id, (*facts.ends, self._config.end_of_turn))
        return self._stop_ids.union(id_ for id_ in named if id_ is not None)

    def _facts(self, request: ChatRequest) -> TurnFacts:
        """Return what the template does with a turn of ``request``, probed once for each kind."""
        kwargs, has_tools = request.chat_template_kwargs, bool(request.tools)
        return request.shared.once(
            "turn facts", lambda: self._probe_turns(dict(kwargs), has_tools), kwargs, has_tools
        )

    def _probe_turns(self, kwargs: dict[str, Any], has_tools: bool) -> TurnFacts:
        key = json.dumps([has_tools, kwargs], sort_keys=True)
        if key not in self._facts_by_request:
            try:
                with BOUNDED_RUNS.limited():
                    self._facts_by_request[key] = probe_turns(
                        self.dialect,
                        self.templates,
                        kwargs,
                        self._control_tokens,
                        self.stop_tokens,
                        has_tools=has_tools,
                    )
            except OverLimit as error:
                self._facts_by_request[key] = error.without_frames()
        facts = self._facts_by_request[key]
        if isinstance(facts, OverLimit):
            raise facts.without_frames()
        return facts

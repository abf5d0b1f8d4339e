"""Examples to bounded rows: render as the server does, encode apart, bound, prove.

The batch job and the library face both come through `RowBuilder.build`, so they give the same ids.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from pipeline.boundary import BoundedRow, LengthPolicy, fit_context, join_row
from pipeline.config import PrepareConfig
from pipeline.continuation import (
    Continuation,
    ContinuationSettings,
    build_continuation,
)
from pipeline.encode import Ids, TextEncoder
from pipeline.errors import Rejected, UsageError, excerpt_of
from pipeline.examples import TrainingExample
from pipeline.marks import find_text_flags
from pipeline.probe import probe_turns
from pipeline.server import ChatRequest, Dialect, Rendering, load_dialect
from pipeline.template import ChatTemplates, resolve_templates
from pipeline.tokenizer_files import read_model_type, read_position_limit, read_stop_ids
from pipeline.turn_facts import TurnFacts


@dataclass(frozen=True, slots=True)
class _Written:
    """An example as text: the prompt and what the model must emit after it."""

    prompt: Rendering
    continuation: Continuation
    is_raw: bool
    flags: tuple[str, ...]


class RowBuilder:
    """Everything that turns examples into rows, loaded once per process.

    >>> config = PrepareConfig(input=("x",), tokenizer="configs/tokenizer", output="y")
    >>> row = RowBuilder(config).build([TrainingExample("a", "2+2=", "4")])[0]
    >>> row.context_len < row.total_len
    True
    """

    def __init__(self, config: PrepareConfig) -> None:
        self._config = config
        self.encoder = TextEncoder.from_path(
            config.tokenizer, trust_remote_code=config.trust_remote_code
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
        self._facts_by_request: dict[str, TurnFacts] = {}

    @cached_property
    def _position_limit(self) -> int | None:
        return read_position_limit(self.encoder.folder)

    def _make_policy(self, max_len: int) -> LengthPolicy:
        """Return the length policy, with ``max_len`` never above what the model can take."""
        limit = self._position_limit or max_len
        return LengthPolicy(min(max_len, limit), self._config.overlong, self.encoder.bos_id)

    def build(
        self, examples: Sequence[TrainingExample], max_len: int | None = None
    ) -> list[BoundedRow | Rejected]:
        """Return one row, or the reason why there is none, for each example, in order.

        ``max_len`` (tokens) replaces the setting.
        """
        policy = self._make_policy(self._config.max_len if max_len is None else max_len)
        results: list[BoundedRow | Rejected | None] = [None] * len(examples)
        written: list[_Written] = []
        places: list[int] = []
        for index, example in enumerate(examples):
            try:
                written.append(self._write(example))
                places.append(index)
            except Rejected as error:
                results[index] = error
        contexts = self._encode_contexts(written)
        continuations = self.encoder.encode_continuations(
            [item.continuation.text for item in written]
        )
        decoded = self.encoder.decode_after_context(continuations)
        for place, item, context_ids, at in zip(
            places, written, contexts, range(len(written)), strict=True
        ):
            try:
                proof = self._prove(item.continuation, continuations[at], decoded[at])
                ids = self._close(continuations[at], item.continuation.end_of_turn)
                fitted = fit_context(context_ids, len(ids), policy, is_raw=item.is_raw)
                bos = self._bos_flags(context_ids)
                results[place] = join_row(fitted, ids, (*item.flags, *proof, *bos))
            except Rejected as error:
                results[place] = error
        return [result for result in results if result is not None]

    def _write(self, example: TrainingExample) -> _Written:
        """Return the prompt and the continuation of one example as text."""
        kwargs = {**self._config.chat_template_kwargs, **example.chat_template_kwargs}
        if example.messages is None:
            request = ChatRequest([], example.tools, kwargs)
            prompt = Rendering(example.context or "")
            texts = find_text_flags([], self._control_tokens, raw_context=prompt.text)
        else:
            messages = example.messages[: example.decision_idx]
            request = ChatRequest(messages, example.tools, kwargs)
            prompt = self.dialect.render_prompt(request, self.templates)
            texts = find_text_flags(messages, self._control_tokens)
        if self._settings.control_tokens == "reject" and "control_token_in_text" in texts:
            raise Rejected(
                "control_tokens",
                "a message's text holds a control token; control_tokens: flag lets it pass",
            )
        continuation = build_continuation(
            example.continuation,
            prompt.text,
            request,
            self.dialect,
            self.templates,
            self._facts(kwargs, has_tools=bool(example.tools)),
            self._settings,
        )
        flags = (*prompt.flags, *texts, *continuation.flags)
        return _Written(prompt, continuation, example.messages is None, flags)

    def _encode_contexts(self, written: Sequence[_Written]) -> list[Ids]:
        """Return the ids of each prompt, as the server's endpoint encodes it."""
        plain = self.encoder.encode([item.prompt.text for item in written])
        rows: list[Ids] = []
        bos = self.encoder.tokenizer.bos_token
        for index, item in enumerate(written):
            if item.prompt.ids is not None:
                rows.append(np.array(item.prompt.ids, np.int32))
            elif item.is_raw and self._config.raw_context == "completions":
                text = item.prompt.text
                # A text that already starts with the BOS never gets a second one.
                starts_with_bos = isinstance(bos, str) and text.startswith(bos)
                rows.append(self.encoder.encode([text], add_special_tokens=not starts_with_bos)[0])
            else:
                rows.append(plain[index])
        return rows

    def _prove(self, continuation: Continuation, ids: Ids, decoded: str) -> tuple[str, ...]:
        """Prove that the ids decode to the continuation; return the flags where they cannot."""
        if decoded == continuation.text:
            return ()
        if self.encoder.normalise(continuation.text) == decoded:
            return ("normalised_by_tokenizer",)
        raise Rejected(
            "not_renderable",
            f"continuation: its {len(ids)} tokens decode to another text, so the tokenizer has no ids for it",
            decoded,
        )

    def _close(self, ids: Ids, end_of_turn: str | None) -> Ids:
        """Return the ids with the one end-of-turn token appended."""
        if end_of_turn is None:
            return ids
        id_ = self.encoder.token_id(end_of_turn)
        if id_ is None:
            raise Rejected(
                "no_end_of_turn",
                f"the template ends a turn with {excerpt_of(end_of_turn)}, which is no single token of this "
                "tokenizer; name its end of turn with end_of_turn:",
            )
        return np.append(ids, np.int32(id_))

    def _bos_flags(self, context_ids: Ids) -> tuple[str, ...]:
        bos_id = self.encoder.bos_id
        if bos_id is None:
            return ()
        starts = context_ids[:2] == bos_id
        if len(starts) == 2 and starts.all():
            return ("double_bos",)
        return ("no_bos",) if self.encoder.adds_bos and not starts[:1].any() else ()

    def _facts(self, kwargs: dict[str, Any], *, has_tools: bool) -> TurnFacts:
        """Return what the template does with a turn under ``kwargs``, probed once for each."""
        key = json.dumps([has_tools, kwargs], sort_keys=True)
        if key not in self._facts_by_request:
            stop_ids = read_stop_ids(self.encoder.folder)
            stops = [text for text, id_ in self.encoder.added_tokens.items() if id_ in stop_ids]
            self._facts_by_request[key] = probe_turns(
                self.dialect,
                self.templates,
                kwargs,
                self._control_tokens,
                stops,
                has_tools=has_tools,
            )
        return self._facts_by_request[key]

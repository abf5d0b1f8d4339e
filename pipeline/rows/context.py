"""Contexts of decision points: rendered as the server does, encoded, and told what is odd of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from pipeline.answer.marks import find_text_flags
from pipeline.answer.refusals import explain_refusal
from pipeline.config import RowSettings
from pipeline.errors import Rejected
from pipeline.examples.decisions import DecisionPoint
from pipeline.examples.example import TrainingExample
from pipeline.examples.foreign_messages import check_roles, knows_roles, refuse_role
from pipeline.prompt.bounded import BOUNDED_RUNS
from pipeline.prompt.chat_template import ChatTemplates
from pipeline.prompt.request import ChatRequest, Dialect, Rendering, SharedWork
from pipeline.rows.sampled import (
    check_context_ids,
    check_served_prompt,
    check_served_text,
    find_header,
)
from pipeline.rows.shown import find_unshown, last_text, last_user_text, refuse_empty
from pipeline.tokens.encoder import TextEncoder
from pipeline.tokens.ids import Ids
from pipeline.types import Message


class Context(NamedTuple):
    """What the server had before a decision point: the request, its prompt, and its ids."""

    request: ChatRequest
    prompt: Rendering
    is_raw: bool
    flags: tuple[str, ...]
    ids: Ids


class ContextBuilder:
    """Builds the contexts of a batch of decision points; what they have in common is done once."""

    def __init__(
        self,
        config: RowSettings,
        encoder: TextEncoder,
        templates: ChatTemplates,
        dialect: Dialect,
    ) -> None:
        self._config = config
        self._encoder = encoder
        self._templates = templates
        self._dialect = dialect
        self._control_tokens = frozenset(encoder.added_tokens)

    @cached_property
    def _bos_id(self) -> int | None:
        return self._encoder.bos_id

    def build(self, points: Sequence[DecisionPoint]) -> list[Context | Rejected]:
        """Return the context of each point, or why it is refused; points that share one have it once."""
        places: dict[tuple[int, int | None], int] = {}
        distinct: list[DecisionPoint] = []
        place_of: list[int] = []
        for point in points:
            key = id(point.example), point.decision_idx
            place = places.get(key)
            if place is None:
                place = places[key] = len(distinct)
                distinct.append(point)
            place_of.append(place)
        contexts = self._build_each(distinct)
        return [contexts[place] for place in place_of]

    def _build_each(self, points: Sequence[DecisionPoint]) -> list[Context | Rejected]:
        shared = SharedWork()
        rendered: list[tuple[ChatRequest, Rendering] | Rejected] = []
        for point in points:
            BOUNDED_RUNS.begin_point()
            try:
                rendered.append(self.render(point, shared))
            except Rejected as error:
                rendered.append(error.without_frames())
        texts = [each[1].text for each in rendered if not isinstance(each, Rejected)]
        encoded = iter(self._encoder.encode(texts))
        contexts: list[Context | Rejected] = []
        for point, each in zip(points, rendered, strict=True):
            if isinstance(each, Rejected):
                contexts.append(each)
                continue
            try:
                contexts.append(self._describe(point, *each, next(encoded)))
            except Rejected as error:
                contexts.append(error.without_frames())
        return contexts

    def render(
        self, point: DecisionPoint, shared: SharedWork | None = None
    ) -> tuple[ChatRequest, Rendering]:
        """Return the request of a point, ``messages`` before it, and the prompt that the server makes.

        ``shared`` is what other points of the batch have in common with this one. Raises `Rejected`
        where the server or the template refuses it, and for a role that neither knows.
        """
        example = point.example
        shared = SharedWork() if shared is None else shared
        messages = (example.messages or [])[: point.decision_idx]
        request = ChatRequest(messages, example.tools, self._merge_kwargs(example, shared), shared)
        sampled = _sampled_context(point)
        if sampled is not None:
            return request, Rendering(self._encoder.decode(sampled))
        if example.messages is None:
            return request, Rendering(example.context or "")
        if not knows_roles(messages):
            self._find_suspects(request)
        try:
            return request, self._dialect.render_prompt(request, self._templates)
        except Rejected as error:
            raise explain_refusal(error, request, self._dialect, self._templates) from error

    def encode_messages(self, request: ChatRequest, messages: Sequence[Message]) -> Ids:
        """Return the ids of the prompt of other messages under the same request."""
        return self._encode_rendering(
            self._dialect.render_prompt(replace(request, messages=messages), self._templates)
        )

    def _encode_rendering(self, prompt: Rendering) -> Ids:
        if prompt.ids is not None:
            return np.array(prompt.ids, np.int32)
        return self._encoder.encode([prompt.text])[0]

    def _merge_kwargs(self, example: TrainingExample, shared: SharedWork) -> Mapping[str, Any]:
        """Return the template kwargs of the settings under the example's; for equal ones the same."""
        own = example.chat_template_kwargs
        if not own:
            return self._config.chat_template_kwargs
        return shared.once(f"kwargs {own}", lambda: {**self._config.chat_template_kwargs, **own})

    def _describe(
        self, point: DecisionPoint, request: ChatRequest, prompt: Rendering, ids: Ids
    ) -> Context:
        is_raw = point.example.messages is None
        texts = find_text_flags(
            request.messages,
            self._control_tokens,
            raw_context=prompt.text if is_raw else "",
            known=request.shared.table("text flags"),
        )
        if self._config.control_tokens == "reject" and "control_token_in_text" in texts:
            raise Rejected(
                "control_tokens",
                "a message's text holds a control token; control_tokens: flag lets it pass",
            )
        flags = prompt.flags + texts
        if (sampled := _sampled_context(point)) is not None:
            ids = check_context_ids(sampled, self._encoder)
            is_raw, flags = True, (*flags, "sampled_ids", *self._compare(point, request, ids))
        elif prompt.ids is not None:
            ids = np.array(prompt.ids, np.int32)
        elif is_raw and self._config.raw_context == "completions":
            ids = self._encode_completion_prompt(prompt.text)
        if point.example.messages is not None:
            flags += self._find_unshown(point, request, prompt.text)
        return Context(request, prompt, is_raw, flags + self._find_bos_flags(ids), ids)

    def _find_suspects(self, request: ChatRequest) -> list[int]:
        """Return the places of roles that only the template can know; see `check_roles`."""
        source = ""
        if not self._templates.is_empty:
            source = self._templates.for_request(has_tools=bool(request.tools)).source
        return check_roles(request.messages, source)

    def _find_unshown(
        self, point: DecisionPoint, request: ChatRequest, prompt: str
    ) -> tuple[str, ...]:
        """Return the flag of a prompt that leaves out what a message says; refuse one without a request."""
        messages, shared = request.messages, request.shared
        suspects = () if knows_roles(messages) else self._find_suspects(request)
        found = find_unshown(
            messages,
            prompt,
            suspects,
            shared.table("texts of messages"),
            shared.table("readings of prompts"),
            point.example,
        )
        if found.place is not None and found.place in suspects:
            role = messages[found.place]["role"]
            raise refuse_role(role, f"messages[{found.place}].role")
        if not found.has_request:
            raise refuse_empty(messages)
        return () if found.place is None else ("message_dropped",)

    def _compare(self, point: DecisionPoint, request: ChatRequest, ids: Ids) -> tuple[str, ...]:
        """Return the flag of a served prompt that is not what its messages, or its text, give here.

        Raises `Rejected` (``bad_ids``) where it is another's. What cannot be rendered here (the
        server had a switch or a rule of its own) is taken for different.
        """
        if point.example.messages is None:
            return self._compare_text(point.example.context or "", ids)
        served = self._encoder.decode(ids)
        header = ""
        try:
            prompt = self._dialect.render_prompt(request, self._templates)
            rendered = self._encode_rendering(prompt)
            if np.array_equal(rendered, ids):
                return ()
            turn = self._dialect.render_turn(request, self._templates).text
            header = find_header(prompt.text, turn, last_text(request.messages))
        except Rejected:
            pass
        check_served_prompt(served, last_user_text(request.messages), header)
        return ("prompt_ids_differ",)

    def _compare_text(self, text: str, ids: Ids) -> tuple[str, ...]:
        if not text:
            return ()
        rendered = (
            self._encode_completion_prompt(text)
            if self._config.raw_context == "completions"
            else self._encoder.encode([text])[0]
        )
        if np.array_equal(rendered, ids):
            return ()
        check_served_text(self._encoder.decode(ids), text)
        return ("prompt_ids_differ",)

    def _encode_completion_prompt(self, text: str) -> Ids:
        """Return the ids of a ``/v1/completions`` prompt; one that has its BOS gets no second one."""
        bos = self._encoder.tokenizer.bos_token
        starts_with_bos = isinstance(bos, str) and text.startswith(bos)
        return self._encoder.encode([text], add_special_tokens=not starts_with_bos)[0]

    def _find_bos_flags(self, ids: Ids) -> tuple[str, ...]:
        bos_id = self._bos_id
        if bos_id is None:
            return ()
        starts = ids[:2].tolist()
        if starts == [bos_id, bos_id]:
            return ("double_bos",)
        return ("no_bos",) if self._encoder.adds_bos and starts[:1] != [bos_id] else ()


def _sampled_context(point: DecisionPoint) -> list[int] | None:
    """Return the ids that the server had at this point, which it names for one place alone."""
    example = point.example
    return example.context_ids if point.decision_idx == example.decision_idx else None

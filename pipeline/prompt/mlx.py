"""``server: mlx``: what ``POST /v1/chat/completions`` of ``mlx_lm.server`` 0.32.2 makes of a request.

Names in docstrings are those of the mlx-lm wheel. It joins text parts, parses arguments and hands the
rest of each message to ``apply_chat_template`` as it came.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from pipeline.errors import Rejected
from pipeline.prompt.chat_template import CLOCK_FUNCTION, ChatTemplates, FixedClock
from pipeline.prompt.options import (
    Reader,
    read_mapping,
    read_moment,
    read_options,
    refuse_renderer,
)
from pipeline.prompt.request import (
    SERVER_VERSIONS,
    ChatRequest,
    Rendering,
    TemplateDialect,
    expect_list,
    expect_object,
    expect_text,
    iterate_messages,
    read_passed_kwargs,
    refuse_part,
)

# ``tokenizer_utils.py``: ``_infer_thinking``; all tokens of one of these are in the vocabulary.
_THINK_TOKENS: Final = (
    ("<think>", "</think>"),
    ("<longcat_think>", "</longcat_think>"),
    ("<|think:start|>", "<|think:end|>"),
    ("<|channel>", "<channel|>"),
    ("<|open|>", "<|close|>", "<|sep|>", "<|end_of_msg|>"),
)
_REASONING: Final = ("reasoning_content", "thinking", "reasoning")
_RENDERERS: Final = {"muse_spark": "muse_spark renderer", "deepseek_v32": "deepseek_v32 renderer"}


@dataclass(frozen=True)
class MlxDialect(TemplateDialect):
    """``mlx_lm.server`` 0.32.2 with a text model.

    ``default_chat_template_kwargs`` are the server's ``--chat-template-args``; ``fixed_date`` is the
    day that templates read from the clock; ``knows_thinking`` says whether the vocabulary has think
    tokens, which the template is told as ``enable_thinking``.
    """

    default_chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict[str, Any])
    fixed_date: datetime | None = None
    knows_thinking: bool = False
    name: str = field(default="mlx", init=False)
    version: str = field(default=SERVER_VERSIONS["mlx"], init=False)

    @classmethod
    def from_options(
        cls, options: Mapping[str, Any], model_type: str | None, has_token: Callable[[str], bool]
    ) -> MlxDialect:
        """Return the dialect for a model; ``has_token`` says what its vocabulary holds.

        Raises `UsageError` for an unknown option, and for a model that mlx-lm renders without its
        template.
        """
        renderer = _RENDERERS.get(model_type or "")
        if renderer is not None:
            raise refuse_renderer("mlx", model_type, renderer)
        thinks = any(all(map(has_token, tokens)) for tokens in _THINK_TOKENS)
        return cls(**read_options("mlx", options, _OPTIONS), knows_thinking=thinks)

    def _render(
        self, request: ChatRequest, templates: ChatTemplates, *, add_generation_prompt: bool
    ) -> Rendering:
        tools = None if request.tools is None else list(expect_list(request.tools, "tools"))
        template = templates.for_request(has_tools=tools is not None)
        conversation = list(_rewrite_messages(request.messages))
        asked = expect_object(request.chat_template_kwargs, "chat_template_kwargs")
        call = read_passed_kwargs(
            {**self.default_chat_template_kwargs, **asked}, {"enable_thinking": self.knows_thinking}
        )
        variables = {CLOCK_FUNCTION: FixedClock(self.fixed_date), **call.variables}
        text = template.render(
            conversation,
            tools=tools,
            documents=call.documents,
            add_generation_prompt=add_generation_prompt,
            **variables,
        )
        if add_generation_prompt and not text:
            raise Rejected("empty_context", "the template renders nothing; a prompt needs a token")
        return Rendering(text)


_OPTIONS: Mapping[str, Reader] = {
    "default_chat_template_kwargs": read_mapping,
    "fixed_date": read_moment,
}


def _rewrite_messages(messages: object) -> Iterator[dict[str, Any]]:
    """Yield each message with content that is text and calls whose arguments are objects.

    ``server.py``: ``process_message_content``. Then ``apply_chat_template`` of transformers 5.24 drops
    nulls and gives reasoning all of its names (``_alias_reasoning_fields``).
    """
    for where, _, message in iterate_messages(messages):
        content, calls = message.get("content"), message.get("tool_calls")
        if isinstance(content, list | tuple):
            content = _join_parts(expect_list(content, where), where)
        rewritten = dict(message)
        rewritten["content"] = "" if content is None else expect_text(content, f"{where}.content")
        if calls:
            listed = expect_list(calls, f"{where}.tool_calls")
            rewritten["tool_calls"] = [
                _read_call(call, f"{where}.tool_calls[{at}]") for at, call in enumerate(listed)
            ]
        kept = {name: value for name, value in rewritten.items() if value is not None}
        reasoning = next((kept[name] for name in _REASONING if name in kept), None)
        if reasoning is not None:
            kept = {"thinking": reasoning, **kept, "reasoning_content": reasoning}
        yield kept


def _join_parts(parts: Sequence[Any], where: str) -> str:
    texts: list[str] = []
    for at, part in enumerate(parts):
        place = f"{where}.content[{at}]"
        fields = expect_object(part, place)
        if fields.get("type") != "text":
            refuse_part(str(fields.get("type")), place)
        texts.append(expect_text(fields.get("text"), f"{place}.text"))
    return "".join(texts)


def _read_call(call: object, where: str) -> dict[str, Any]:
    """Return a call whose arguments are parsed, unless they are empty. What is no JSON is refused."""
    fields = dict(expect_object(call, where))
    if not fields.get("function"):
        return fields
    function = dict(expect_object(fields["function"], f"{where}.function"))
    arguments = function.get("arguments")
    if isinstance(arguments, str) and arguments:
        try:
            function["arguments"] = json.loads(arguments)
        except ValueError as error:
            raise Rejected(
                "server_refused", f"{where}: mlx_lm.server fails at arguments: {error}", call
            ) from error
    return {**fields, "function": function}

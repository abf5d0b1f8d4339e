"""``server: sglang``: what ``POST /v1/chat/completions`` of SGLang 0.5.23 makes of a request.

File names in docstrings are those of the SGLang 0.5.23 wheel, below ``sglang/srt``. Where SGLang has
no rule of its own, transformers' ``apply_chat_template`` does the work.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from pipeline.errors import Rejected
from pipeline.prompt.bounded import read_source
from pipeline.prompt.chat_template import CLOCK_FUNCTION, ChatTemplates, FixedClock
from pipeline.prompt.options import (
    Reader,
    choice_of,
    read_mapping,
    read_moment,
    read_options,
    refuse_renderer,
)
from pipeline.prompt.request import (
    SERVER_VERSIONS,
    ChatRequest,
    Dialect,
    Rendering,
    TemplateDialect,
    expect_object,
    split_template_kwargs,
)
from pipeline.prompt.sglang_conversations import (
    find_conversation_template,
    refuse_conversation_template,
)
from pipeline.prompt.sglang_messages import (
    Conversation,
    check_tool_names,
    dump_tools,
    rewrite_messages,
)
from pipeline.prompt.template_facts import find_sglang_content_form

REASONING_EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "ultra", "max")
# SGLang 0.5.23, srt/entrypoints/openai/chat_encoding.py. gpt-oss goes through its template there.
_RENDERERS = {
    "deepseek_v32": "dsv32 encoder",
    "deepseek_v4": "dsv4 encoder",
    "deepseek_v41": "dsv41 encoder",
    "kimi_k3": "kimi_k3 encoder",
    "inkling_mm_model": "inkling renderer",
    "inkling_model": "inkling renderer",
}
# The server's own arguments of apply_chat_template: a kwarg of that name collides.
_TAKEN_KWARGS = frozenset({"tokenize", "add_generation_prompt", "tools", "return_dict"})


@dataclass(frozen=True)
class SglangDialect(TemplateDialect):
    """SGLang 0.5.23 with the flags of the server and the request fields that every client sent.

    ``default_chat_template_kwargs`` are the server's; ``tool_choice`` and ``reasoning_effort`` are
    the request's; ``fixed_date`` is the day that templates read from the clock.
    """

    tool_choice: Literal["auto", "required", "none"] = "auto"
    default_chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict[str, Any])
    reasoning_effort: str | None = None
    fixed_date: datetime | None = None
    name: str = field(default="sglang", init=False)
    version: str = field(default=SERVER_VERSIONS["sglang"], init=False)

    @classmethod
    def from_options(
        cls, options: Mapping[str, Any], model_type: str | None, model_path: str | None = None
    ) -> Dialect:
        """Return the dialect for a model; ``model_path`` is None where the server has a template.

        Raises `UsageError` for an unknown option and for a model that SGLang renders without its
        template.
        """
        dialect = cls(**read_options("sglang", options, _OPTIONS))
        renderer = _RENDERERS.get(model_type or "")
        if renderer is not None:
            raise refuse_renderer("sglang", model_type, renderer)
        if model_path is not None:
            conversation = find_conversation_template(model_path, model_type)
            if conversation is not None:
                raise refuse_conversation_template(model_path, conversation)
        return dialect

    def _render(
        self, request: ChatRequest, templates: ChatTemplates, *, add_generation_prompt: bool
    ) -> Rendering:
        # SGLang takes the first of several named templates, also where there are tools.
        template = templates.for_request(has_tools=False)
        conversation = rewrite_messages(
            request.messages, read_source(find_sglang_content_form, template.source)
        )
        tools = dump_tools(request.tools)
        check_tool_names(conversation, tools)
        if self.tool_choice == "none":
            tools = None
        if add_generation_prompt:
            conversation = hand_over_last_answer(conversation)
        kwargs = merge_template_kwargs(
            self.default_chat_template_kwargs,
            expect_object(request.chat_template_kwargs, "chat_template_kwargs"),
            self.reasoning_effort,
            template.source,
        )
        call = split_template_kwargs(kwargs, _TAKEN_KWARGS)
        variables = {CLOCK_FUNCTION: FixedClock(self.fixed_date), **call.variables}

        def render(given: list[dict[str, Any]] | None) -> str:
            return template.render(
                conversation,
                tools=given,
                documents=call.documents,
                add_generation_prompt=add_generation_prompt,
                **variables,
            )

        text = render_with_flat_retry(render, tools)
        if add_generation_prompt and not text:
            raise Rejected("empty_context", "the template renders nothing; a prompt needs a token")
        return Rendering(text)


_OPTIONS: Mapping[str, Reader] = {
    "tool_choice": choice_of("auto", "required", "none"),
    "default_chat_template_kwargs": read_mapping,
    "reasoning_effort": choice_of(*REASONING_EFFORTS),
    "fixed_date": read_moment,
}


def hand_over_last_answer(conversation: Conversation) -> Conversation:
    """Return the conversation with a final answer turned into a user message of the same text.

    SGLang wants a prompt to end with the user. An answer given as parts stays.

    ``entrypoints/openai/serving_chat.py``: ``_handle_last_assistant_message``.
    """
    last = conversation[-1]
    if last["role"] != "assistant" or not isinstance(last["content"], str):
        return conversation
    return [*conversation[:-1], {"role": "user", "content": last["content"]}]


def merge_template_kwargs(
    defaults: Mapping[str, Any],
    asked: Mapping[str, Any],
    reasoning_effort: str | None,
    source: str,
) -> dict[str, Any]:
    """Return the template kwargs: the request's over the server's defaults, none of them filtered.

    An effort in the request's own field also sets ``thinking`` and ``enable_thinking`` where they
    were not asked for; the effort in a server default wins over both of the request's.

    ``entrypoints/openai/protocol.py``: ``normalize_reasoning_inputs``;
    ``entrypoints/openai/serving_chat.py``: ``_process_messages``, ``_apply_jinja_template``.
    """
    if "chat_template" in asked:
        raise Rejected(
            "server_refused",
            "chat_template_kwargs: SGLang refuses a chat_template; give chat_template: FILE",
        )
    own = dict(asked)
    if reasoning_effort is not None:
        own = {
            "thinking": reasoning_effort != "none",
            "enable_thinking": reasoning_effort != "none",
        } | own
    effort = own.pop("reasoning_effort", None)
    effort = reasoning_effort if effort is None else effort
    if effort == "low" and "low_effort" in source and "truncate_history_thinking" in source:
        raise Rejected(
            "server_refused", "SGLang's low_effort switch of this template is not reproduced here"
        )
    merged = {**defaults, **own}
    return merged if effort is None else {"reasoning_effort": effort, **merged}


def render_with_flat_retry(
    render: Callable[[list[dict[str, Any]] | None], str], tools: list[dict[str, Any]] | None
) -> str:
    """Return the prompt; where the template fails, try again with the bare function descriptions.

    ``entrypoints/openai/serving_chat.py``: ``_apply_jinja_template``.
    """
    try:
        return render(tools)
    except Rejected:
        if tools is None:
            raise
        return render([tool["function"] for tool in tools])

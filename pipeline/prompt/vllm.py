"""``server: vllm``: what ``POST /v1/chat/completions`` of vLLM makes of a request.

The rules stand in the order in which they act: messages and tools (``vllm_messages``), the template
and its content form, the template kwargs, the developer role, the render. File names in docstrings
are those of the vLLM 0.33.0 wheel; what other versions do differently has a switch in
``vllm_versions``. ``tests/parity`` proves them against answers of the real server.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from pipeline.errors import Rejected, UsageError
from pipeline.prompt.bounded import read_source
from pipeline.prompt.chat_template import CLOCK_FUNCTION, ChatTemplate, ChatTemplates, FixedClock
from pipeline.prompt.options import (
    Reader,
    choice_of,
    read_flag,
    read_mapping,
    read_moment,
    read_options,
    refuse_renderer,
)
from pipeline.prompt.request import (
    CALL_PARAMETERS,
    ChatRequest,
    Dialect,
    Rendering,
    TemplateDialect,
    expect_list,
    expect_object,
    split_template_kwargs,
)
from pipeline.prompt.template_facts import ContentForm, TemplateFacts, find_template_facts
from pipeline.prompt.vllm_messages import rewrite_messages
from pipeline.prompt.vllm_tools import Conversation, dump_tools, fill_call_ids
from pipeline.prompt.vllm_versions import VllmRules, read_rules

# The server's own default template kwargs (vllm/entrypoints/common/cli_args.py: cohere_format).
_SERVER_KWARGS: Mapping[str, Any] = {"cohere_format": "cmd4"}
# vLLM 0.33.0, vllm/config/model.py (by architecture; these are the model types of those),
# vllm/renderers/registry.py, and for gpt-oss vllm/renderers/online_renderer.py.
_RENDERERS = {
    "gpt_oss": "Harmony encoder",
    "deepseek_v32": "deepseek_v32 renderer",
    "deepseek_v4": "deepseek_v4 renderer",
    "deepseek_v41": "deepseek_v41 renderer",
    "kimi_k3": "kimi_k3 renderer",
    "inkling_mm_model": "inkling renderer",
    "inkling_model": "inkling renderer",
    "kimi_audio": "kimi_audio tokenizer",
    "alpamayo2_super": "alpamayo2_super tokenizer",
}
# Two ids that pass Mistral's check (nine letters and digits) and cannot be told apart by length.
_ID_FILLERS = ("call", "turn")


@dataclass(frozen=True)
class VllmDialect(TemplateDialect):
    """vLLM with the flags of the server and the request fields that every client sent.

    ``server_version`` has the rules of its version; ``content_format``
    (``--chat-template-content-format``), ``default_chat_template_kwargs``,
    ``exclude_tools_when_tool_choice_none`` and ``tokenizer_mode`` are the server's;
    ``tool_choice`` and ``reasoning_effort`` are the request's; ``fixed_date`` is the day that
    templates read from the clock.
    """

    server_version: VllmRules = field(default_factory=VllmRules)
    content_format: Literal["auto", "string", "openai"] = "auto"
    exclude_tools_when_tool_choice_none: bool = False
    tool_choice: Literal["auto", "required", "none"] = "auto"
    default_chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict[str, Any])
    reasoning_effort: str | None = None
    fixed_date: datetime | None = None
    tokenizer_mode: Literal["auto", "hf"] = "auto"
    name: str = field(default="vllm", init=False)

    def __post_init__(self) -> None:
        known = self.server_version.efforts
        if known and self.reasoning_effort not in (None, *known):
            raise UsageError(
                f"server_options.reasoning_effort: found {self.reasoning_effort}; expected "
                f"{', '.join(known)}"
            )

    @property
    def version(self) -> str:
        """The release whose rules these are."""
        return self.server_version.release

    @classmethod
    def from_options(
        cls, options: Mapping[str, Any], model_type: str | None, folder: Path | None = None
    ) -> Dialect:
        """Return the dialect for a model: Harmony's for gpt-oss, the template's for the others.

        ``folder`` is the tokenizer's, whose files tell a Mistral repository and hold Harmony's
        vocabulary. Raises `UsageError` for an unknown option, and for a model that vLLM renders
        without its template.
        """
        dialect = cls(**read_options("vllm", options, _OPTIONS))
        if model_type == "gpt_oss":
            from pipeline.prompt.harmony import HarmonyDialect

            if dialect.server_version != VllmRules():
                raise UsageError(
                    f"server_options.server_version: {dialect.version} is not reproduced for gpt-oss, "
                    f"whose prompts are those of vLLM {VllmRules().release}; leave it out"
                )
            return HarmonyDialect(
                folder, dialect.reasoning_effort, dialect.fixed_date, dialect.hides_tools
            )
        renderer = find_renderer(model_type, folder)
        if renderer is not None and dialect.tokenizer_mode == "auto":
            raise refuse_renderer("vllm", model_type, renderer)
        return dialect

    @property
    def hides_tools(self) -> bool:
        """True where tools stay out of the prompt (``online_renderer.py``: ``render_chat``)."""
        return self.exclude_tools_when_tool_choice_none and self.tool_choice == "none"

    def _render(
        self, request: ChatRequest, templates: ChatTemplates, *, add_generation_prompt: bool
    ) -> Rendering:
        plan = request.shared.once(
            "vllm plan",
            lambda: self._plan(request, templates),
            self,
            templates,
            request.tools,
            request.chat_template_kwargs,
        )
        rules = self.server_version
        known = request.shared.table(f"vllm messages, {rules.release}, {plan.form}")
        rewritten = rewrite_messages(request.messages, plan.form, rules, known)

        def render(conversation: Conversation) -> str:
            return plan.template.render(
                conversation,
                tools=plan.tools,
                documents=plan.documents,
                add_generation_prompt=add_generation_prompt and plan.opens_turn,
                **plan.variables,
            )

        conversation = rewritten.conversation
        if rules.moves_developer:
            conversation = place_developer_messages(conversation, plan.facts)
        text = render_any_ids(render, conversation) if rewritten.lacks_ids else render(conversation)
        if add_generation_prompt and not text:
            raise Rejected(
                "empty_context", "the template renders nothing; vLLM refuses an empty prompt"
            )
        return Rendering(text, ("arguments_coerced",) if rewritten.arguments_coerced else ())

    def _plan(self, request: ChatRequest, templates: ChatTemplates) -> _RenderPlan:
        rules = self.server_version
        is_shown = request.tools is not None and not self.hides_tools
        kwargs = merge_template_kwargs(
            self.default_chat_template_kwargs,
            dump_tools(request.tools, rules) if is_shown else None,
            expect_object(request.chat_template_kwargs, "chat_template_kwargs"),
            self.reasoning_effort,
            rules,
        )
        opens_turn = kwargs.pop("add_generation_prompt", True)
        tools = read_tool_dicts(kwargs.pop("tools", None))
        template = templates.for_request(has_tools=tools is not None)
        facts = read_source(find_template_facts, template.source)
        if rules.filters_kwargs:
            kwargs = keep_accepted_kwargs(kwargs, facts)
        call = split_template_kwargs(kwargs)
        return _RenderPlan(
            template,
            facts,
            facts.content_form(rules) if self.content_format == "auto" else self.content_format,
            tools,
            call.documents,
            {CLOCK_FUNCTION: FixedClock(self.fixed_date), **call.variables},
            opens_turn,
        )


@dataclass(frozen=True, slots=True)
class _RenderPlan:
    """What a render needs beside its messages: requests with the same tools and kwargs share it."""

    template: ChatTemplate
    facts: TemplateFacts
    form: ContentForm
    tools: list[dict[str, Any]] | None
    documents: list[dict[str, Any]] | None
    variables: dict[str, Any]
    opens_turn: bool


_OPTIONS: Mapping[str, Reader] = {
    "content_format": choice_of("auto", "string", "openai"),
    "exclude_tools_when_tool_choice_none": read_flag,
    "tool_choice": choice_of("auto", "required", "none"),
    "default_chat_template_kwargs": read_mapping,
    "reasoning_effort": choice_of(*VllmRules().efforts),
    "server_version": read_rules,
    "fixed_date": read_moment,
    "tokenizer_mode": choice_of("auto", "hf"),
}


def find_renderer(model_type: str | None, folder: Path | None) -> str | None:
    """Return what vLLM renders this model with in place of its template, or None.

    vLLM knows a Mistral repository by its files: ``consolidated*.safetensors`` with ``tekken.json``
    or ``tokenizer.model.v*`` (vLLM 0.33.0, ``vllm/tokenizers/registry.py``). The folder may hold a
    tokenizer without weights, so only weights under other names speak against it.
    """
    if model_type in _RENDERERS:
        return _RENDERERS[model_type]
    if folder is None or not [*folder.glob("tekken.json"), *folder.glob("tokenizer.model.v*")]:
        return None
    weights = [path.name for path in folder.glob("*.safetensors")]
    if weights and not any(name.startswith("consolidated") for name in weights):
        return None
    return "mistral renderer (mistral-common)"


def merge_template_kwargs(
    defaults: Mapping[str, Any],
    tools: list[dict[str, Any]] | None,
    asked: Mapping[str, Any],
    reasoning_effort: str | None,
    rules: VllmRules,
) -> dict[str, Any]:
    """Return the template kwargs: the server's defaults, the tools, what the request asked for.

    Later ones win. A request's null and ``"auto"`` count as not asked. The request's
    ``reasoning_effort`` field wins over the kwarg and turns thinking on (off for ``none``) unless
    ``enable_thinking`` was asked for. Whether to add a generation prompt is not the kwargs' to say
    since 0.16.

    ``vllm/entrypoints/openai/chat_completion/protocol.py``: ``build_chat_params``;
    ``vllm/renderers/params.py``: ``merge_kwargs``, ``with_defaults``.
    """
    fields: dict[str, Any] = {}
    if rules.passes_effort and (reasoning_effort is not None or not rules.merges_kwargs):
        fields["reasoning_effort"] = reasoning_effort
    asks_thinking = rules.effort_sets_thinking and "enable_thinking" not in asked
    if asks_thinking and reasoning_effort is not None:
        fields["enable_thinking"] = reasoning_effort != "none"
    merged = {**(_SERVER_KWARGS if rules.sets_cohere_format else {}), **defaults}
    if tools is not None:
        merged["tools"] = tools
    unset = (None, "auto") if rules.merges_kwargs else ()
    merged |= {name: value for name, value in {**asked, **fields}.items() if value not in unset}
    if "chat_template" in merged:
        raise Rejected(
            "server_refused",
            "chat_template_kwargs: vLLM refuses a chat_template in a request; give chat_template: FILE",
        )
    merged.pop("tokenize", None)
    if rules.merges_kwargs:
        for name in ("add_generation_prompt", "continue_final_message"):
            merged.pop(name, None)
    return merged


def keep_accepted_kwargs(kwargs: Mapping[str, Any], facts: TemplateFacts) -> dict[str, Any]:
    """Return the kwargs that the template takes from outside or that transformers' call declares.

    ``vllm/renderers/hf.py``: ``resolve_chat_template_kwargs``.
    """
    accepted = facts.variables | CALL_PARAMETERS
    return {name: value for name, value in kwargs.items() if name in accepted}


def read_tool_dicts(tools: object) -> list[dict[str, Any]] | None:
    """Return the tools that reach the template; a ``tools`` kwarg comes here as it was given."""
    if tools is None:
        return None
    listed = expect_list(tools, "tools")
    return [dict(expect_object(tool, f"tools[{index}]")) for index, tool in enumerate(listed)]


def place_developer_messages(conversation: Conversation, facts: TemplateFacts) -> Conversation:
    """Return the conversation with developer messages as system messages, merged to the front.

    Only for a template that never names the role in quotes.

    ``vllm/renderers/hf.py``: ``_detect_developer_role_support``, ``_convert_developer_to_system``.
    """
    if facts.names_developer or "developer" not in [message["role"] for message in conversation]:
        return conversation
    return merge_system_messages(
        [
            {key: value for key, value in message.items() if key != "tools"} | {"role": "system"}
            if message["role"] == "developer"
            else message
            for message in conversation
        ]
    )


def merge_system_messages(conversation: Conversation) -> Conversation:
    """Return the conversation with one system message, first, where one stands further down.

    Their texts are joined by an empty line; the merged content is text in both content forms.

    ``vllm/renderers/hf.py``: ``_consolidate_system_messages``.
    """
    if all(message["role"] != "system" for message in conversation[1:]):
        return conversation
    systems = [message["content"] for message in conversation if message["role"] == "system"]
    texts = [
        content
        if isinstance(content, str)
        else "\n".join(part["text"] for part in content if "text" in part)
        for content in systems
    ]
    merged = {"role": "system", "content": "\n\n".join(text for text in texts if text)}
    return [merged, *(message for message in conversation if message["role"] != "system")]


def render_any_ids(render: Callable[[Conversation], str], conversation: Conversation) -> str:
    """Return the prompt of a conversation with calls that lack an id, if no id shows in it.

    vLLM demands an id, so the client had one that the log lost.
    """
    first, second = (render(fill_call_ids(conversation, filler)) for filler in _ID_FILLERS)
    if first != second:
        raise Rejected(
            "server_refused",
            "a tool call has no id, vLLM demands one, and this template prints it; give every call its id",
        )
    return first

"""gpt-oss under vLLM 0.33.0: prompts written by the Harmony encoder, not by a template.

Needs the extra ``harmony`` (``openai-harmony``). The encoder's vocabulary is rebuilt from the
model's ``tokenizer.json``, so nothing is downloaded. Rules from
``vllm/entrypoints/openai/parser/harmony_utils.py`` and ``vllm/renderers/online_renderer.py``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import Rejected, UsageError
from pipeline.prompt.harmony_vocabulary import load_encoding
from pipeline.prompt.request import (
    SERVER_VERSIONS,
    ChatRequest,
    Rendering,
    expect_list,
    expect_object,
    expect_text,
    iterate_messages,
    optional_text,
    require,
)
from pipeline.prompt.vllm_messages import find_reasoning, read_part
from pipeline.prompt.vllm_tools import dump_tools
from pipeline.prompt.vllm_versions import VllmRules

if TYPE_CHECKING:
    import openai_harmony as harmony

    from pipeline.prompt.chat_template import ChatTemplates

EFFORTS = ("low", "medium", "high")
_RULES = VllmRules()


@dataclass(frozen=True)
class HarmonyDialect:
    """vLLM's way with gpt-oss.

    ``folder`` holds the model's ``tokenizer.json``; ``fixed_date`` is the day in the system message
    (``VLLM_SYSTEM_START_DATE`` of a server). Raises `UsageError` without a date, for an effort that
    Harmony does not know, and where the vocabulary cannot be had.
    """

    folder: Path | None
    reasoning_effort: str | None = None
    fixed_date: datetime | None = None
    hides_tools: bool = False
    name: str = field(default="vllm", init=False)
    version: str = field(default=SERVER_VERSIONS["vllm"], init=False)

    def __post_init__(self) -> None:
        if self.fixed_date is None:
            raise UsageError(
                "server_options.fixed_date is missing: a gpt-oss prompt states the day; give the day "
                "that the served prompts had, as YYYY-MM-DD"
            )
        if self.reasoning_effort not in (None, *EFFORTS):
            raise UsageError(
                f"server_options.reasoning_effort: found {self.reasoning_effort}; "
                f"expected {', '.join(EFFORTS)} for gpt-oss"
            )
        load_encoding(self.folder)

    def render_prompt(self, request: ChatRequest, templates: ChatTemplates) -> Rendering:
        """Return the prompt up to ``<|start|>assistant``; the templates are not asked."""
        history = read_messages(request.messages)
        return self._encode(request, drop_old_analysis([*chain(*history)]), "<|start|>assistant")

    def render_turn(self, request: ChatRequest, templates: ChatTemplates) -> Rendering:
        """Return the finished conversation, ended by ``<|return|>`` or ``<|call|>``.

        The last turn keeps its analysis: it is what the model has just written.
        """
        *history, turn = read_messages(request.messages)
        return self._encode(request, [*drop_old_analysis([*chain(*history)]), *turn], "")

    def _open(self, request: ChatRequest) -> list[harmony.Message]:
        """Return the system message, and a developer message for instructions and tools.

        vLLM 0.33.0, ``harmony_utils.py``: ``build_harmony_preamble``.
        """
        import openai_harmony as harmony

        assert self.fixed_date is not None
        system = harmony.SystemContent.new().with_conversation_start_date(
            self.fixed_date.strftime("%Y-%m-%d")
        )
        if self.reasoning_effort is not None:
            system = system.with_reasoning_effort(
                harmony.ReasoningEffort(self.reasoning_effort.capitalize())
            )
        opening = [harmony.Message.from_role_and_content(harmony.Role.SYSTEM, system)]
        instructions = find_instructions(request.messages)
        tools = None if self.hides_tools else dump_tools(request.tools, _RULES)
        if instructions or tools:
            opening.append(_developer_message(instructions, tools))
        return opening

    def _encode(
        self, request: ChatRequest, messages: Sequence[harmony.Message], header: str
    ) -> Rendering:
        """Return the ids of the conversation; without a ``header`` to answer under, it is finished."""
        import openai_harmony as harmony

        encoding = load_encoding(self.folder)
        opening = self._open(request)
        has_tools = bool(request.tools) and not self.hides_tools
        options = harmony.RenderOptions(conversation_has_function_tools=has_tools)
        try:
            rendered = [_encode_message(encoding, item, options) for item in [*opening, *messages]]
            ids = [*chain(*rendered), *encoding.encode(header, allowed_special="all")]
            if not header and messages and messages[-1].channel == "final":
                ids[-1:] = encoding.encode("<|return|>", allowed_special="all")
            return Rendering(encoding.decode(ids), ids=tuple(ids))
        except (harmony.HarmonyError, ValueError) as error:
            raise Rejected("server_refused", f"the Harmony encoder refused: {error}") from error


def _encode_message(
    encoding: harmony.HarmonyEncoding, message: harmony.Message, options: harmony.RenderOptions
) -> list[int]:
    """Return the ids of one message, with vLLM's header where it has a recipient.

    A call names its recipient before the channel, a result after it. Releases of the encoder
    disagree on both, and vLLM mends the calls of its own (``harmony_utils.py``:
    ``_use_legacy_tool_call_headers``), so the header is written here.
    """
    ids = encoding.render(message, options)
    if message.recipient is None:
        return ids
    if message.author.name is None:
        header = (
            f"assistant to={message.recipient}<|channel|>{message.channel} {message.content_type}"
        )
    else:
        header = f"{message.author.name}<|channel|>{message.channel} to={message.recipient}"
    opening = encoding.encode(f"<|start|>{header}<|message|>", allowed_special="all")
    return [*opening, *ids[ids.index(opening[-1]) + 1 :]]


def read_messages(messages: object) -> list[list[harmony.Message]]:
    """Return, for each message, the Harmony messages that it becomes; none for the instructions.

    vLLM 0.33.0, ``harmony_utils.py``: ``parse_chat_inputs_to_harmony_messages``.
    """
    listed = list(iterate_messages(messages))
    call_names = {
        call["id"]: call["function"]["name"]
        for where, _, message in listed
        for call in read_calls(message, where)
    }
    return [
        []
        if index == 0 and role in ("system", "developer")
        else _read_message(message, role, where, call_names)
        for index, (where, role, message) in enumerate(listed)
    ]


def _read_message(
    message: Mapping[str, Any], role: str, where: str, call_names: Mapping[str, str]
) -> list[harmony.Message]:
    import openai_harmony as harmony

    optional_text(message, "name", where)
    if role == "assistant":
        return _read_answer(message, where)
    text = read_text(message, where)
    if role == "tool":
        name = call_names.get(optional_text(message, "tool_call_id", where) or "", "")
        author = harmony.Author.new(harmony.Role.TOOL, f"functions.{name}")
        result = harmony.Message.from_author_and_content(author, text or "")
        return [result.with_channel("commentary").with_recipient("assistant")]
    if role in ("system", "developer"):
        return [] if text is None else [_developer_message(text, None)]
    if role != "user":
        raise Rejected("server_refused", f"{where}.role: Harmony knows no such role", role)
    return [
        harmony.Message.from_role_and_contents(harmony.Role.USER, _read_contents(message, where))
    ]


def _read_contents(message: Mapping[str, Any], where: str) -> list[harmony.TextContent]:
    """Return one Harmony content per part; the encoder never joins two parts into one token."""
    import openai_harmony as harmony

    return [harmony.TextContent(text=text or "") for text in read_texts(message, where)]


def _read_answer(message: Mapping[str, Any], where: str) -> list[harmony.Message]:
    """Return an assistant's analysis, final answer, or comment and calls.

    An answer that starts with an empty text is not written at all.

    vLLM 0.33.0, ``harmony_utils.py``: ``parse_chat_input_to_harmony_message``.
    """
    import openai_harmony as harmony

    def say(text: str, channel: str) -> harmony.Message:
        return harmony.Message.from_role_and_content(harmony.Role.ASSISTANT, text).with_channel(
            channel
        )

    reasoning = find_reasoning(message, where, _RULES)
    analysis = [say(reasoning, "analysis")] if reasoning else []
    calls = read_calls(message, where)
    if not calls:
        contents = _read_contents(message, where)
        if not contents or not contents[0].text:
            return analysis
        answer = harmony.Message.from_role_and_contents(harmony.Role.ASSISTANT, contents)
        return [*analysis, answer.with_channel("final")]
    text = read_text(message, where)
    return [
        *([say(text, "commentary")] if text else []),
        *analysis,
        *(
            say(call["function"]["arguments"], "commentary")
            .with_recipient(f"functions.{call['function']['name']}")
            .with_content_type("json")
            for call in calls
        ),
    ]


def read_calls(message: Mapping[str, Any], where: str) -> list[dict[str, Any]]:
    """Return the calls of a message with their arguments as text: Harmony writes them verbatim.

    Arguments given as an object are written as ``json.dumps`` writes them. Each call needs its id,
    by which the result finds the function's name.
    """
    calls: list[dict[str, Any]] = []
    for index, item in enumerate(
        expect_list(message.get("tool_calls") or [], f"{where}.tool_calls")
    ):
        at = f"{where}.tool_calls[{index}]"
        call = expect_object(item, at)
        if optional_text(call, "type", at) not in (None, "function"):
            raise Rejected(
                "server_refused", f"{at}: only calls of type 'function' can be written", item
            )
        function = expect_object(require(call, "function", at), f"{at}.function")
        arguments = function.get("arguments")
        text = "" if arguments is None else arguments
        if not isinstance(text, str):
            text = json.dumps(text, ensure_ascii=False)
        name = expect_text(require(function, "name", f"{at}.function"), f"{at}.function.name")
        identity = expect_text(require(call, "id", at), f"{at}.id")
        calls.append({"id": identity, "function": {"name": name, "arguments": text}})
    return calls


def read_text(message: Mapping[str, Any], where: str) -> str | None:
    """Return the texts of a message's content in one, None where there is no text at all.

    vLLM 0.33.0, ``harmony_utils.py``: ``flatten_input_text_content``.
    """
    texts = [text for text in read_texts(message, where) if text is not None]
    return "".join(texts) if texts else None


def read_texts(message: Mapping[str, Any], where: str) -> list[str | None]:
    """Return the text of each part of a message's content, None for a part without that key."""
    content = message.get("content")
    if content is None or isinstance(content, str):
        return [] if content is None else [content]
    texts: list[str | None] = []
    for index, item in enumerate(expect_list(content, f"{where}.content")):
        read_part(item, f"{where}.content[{index}]", _RULES)
        texts.append(item if isinstance(item, str) else item.get("text"))
    return texts


def find_instructions(messages: object) -> str | None:
    """Return the text of a leading system or developer message.

    vLLM 0.33.0, ``harmony_utils.py``: ``extract_instructions_from_messages``.
    """
    where, role, message = next(iterate_messages(messages))
    return read_text(message, where) if role in ("system", "developer") else None


def drop_old_analysis(messages: Sequence[harmony.Message]) -> list[harmony.Message]:
    """Return the messages without the analysis that stands before the last final answer.

    vLLM 0.33.0, ``harmony_utils.py``: ``auto_drop_analysis_messages``.
    """
    finals = [index for index, message in enumerate(messages) if message.channel == "final"]
    last = finals[-1] if finals else -1
    return [
        message
        for index, message in enumerate(messages)
        if index >= last or message.channel != "analysis"
    ]


def _developer_message(
    instructions: str | None, tools: Sequence[Mapping[str, Any]] | None
) -> harmony.Message:
    import openai_harmony as harmony

    content = harmony.DeveloperContent.new()
    if instructions is not None:
        content = content.with_instructions(instructions)
    if tools:
        content = content.with_function_tools(
            [
                harmony.ToolDescription.new(
                    tool["function"]["name"],
                    tool["function"]["description"] or "",
                    tool["function"]["parameters"],
                )
                for tool in tools
            ]
        )
    return harmony.Message.from_role_and_content(harmony.Role.DEVELOPER, content)

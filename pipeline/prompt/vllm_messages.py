"""How vLLM rewrites messages before the template sees them, in the version whose rules are given.

Two layers of the server act on a request: the schema of its HTTP API, and the parser behind it. The
parser is followed to the letter. The schema's refusals of mere spelling are not: where a request
has one completion that the schema accepts (arguments as JSON text, a call's type, a part's type
object around plain text), that completion is rendered, because public data is often spelt so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from pipeline.errors import Rejected
from pipeline.prompt.request import (
    expect_list,
    expect_object,
    optional_text,
    read_role,
    refuse_part,
    require,
)
from pipeline.prompt.template_facts import ContentForm
from pipeline.prompt.vllm_tools import Conversation, order_developer_tools, rewrite_tool_calls
from pipeline.prompt.vllm_versions import VllmRules

# Part type -> the key that holds its text. vllm/renderers/chat_utils/chat_message.py: MM_PARSER_MAP.
TEXT_PARTS = {
    "text": "text",
    "input_text": "text",
    "output_text": "text",
    "refusal": "refusal",
    "thinking": "thinking",
}
MEDIA_PARTS = frozenset(
    [
        "image_url",
        "input_image",
        "image_pil",
        "image_embeds",
        "audio_url",
        "input_audio",
        "audio_embeds",
        "video_url",
        "video_embeds",
        "prompt_embeds",
        "file",
    ]
)
# Keys that the part types declare; any other key follows the text to the template.
# chat_message.py: _KNOWN_CONTENT_PART_FIELDS.
_PART_FIELDS = frozenset(
    [
        "audio_embeds",
        "audio_url",
        "closed",
        "data",
        "file",
        "image_embeds",
        "image_pil",
        "image_url",
        "input_audio",
        "name",
        "prompt_cache_breakpoint",
        "refusal",
        "text",
        "thinking",
        "type",
        "uuid",
        "video_embeds",
        "video_url",
    ]
)
_BILLING_HEADER = "x-anthropic-billing-header"


class RewrittenMessage(NamedTuple):
    """A message as the template gets it.

    ``arguments_coerced``: some call's arguments were no JSON object and became an empty one.
    ``lacks_ids``: some call has no id (see `fill_call_ids`). ``source`` is what it was made of.
    """

    source: Mapping[str, Any]
    fields: dict[str, Any]
    arguments_coerced: bool = False
    lacks_ids: bool = False


class Rewritten(NamedTuple):
    """A conversation as the template gets it; of the flags one is set where any message has it."""

    conversation: Conversation
    arguments_coerced: bool
    lacks_ids: bool


def rewrite_messages(
    messages: object,
    form: ContentForm,
    rules: VllmRules,
    known: dict[int, RewrittenMessage] | None = None,
) -> Rewritten:
    """Return the conversation as the template gets it; ``messages`` stays as it is.

    ``known`` is what earlier calls for the same ``form`` and ``rules`` made of the messages, by the
    id of each.
    """
    known = {} if known is None else known
    listed = expect_list(messages, "messages")
    if not listed:
        raise Rejected("empty_context", "messages is empty; the server needs at least one message")
    conversation: Conversation = []
    coerced = lacks_ids = False
    for index, message in enumerate(listed):
        found = known.get(id(message))
        if found is None:
            found = rewrite_text(message, form, rules) or rewrite_message(
                message, f"messages[{index}]", form, rules
            )
            known[id(message)] = found
        conversation.append(found.fields)
        coerced |= found.arguments_coerced
        lacks_ids |= found.lacks_ids
    return Rewritten(conversation, coerced, lacks_ids)


def rewrite_text(message: Any, form: ContentForm, rules: VllmRules) -> RewrittenMessage | None:
    """Return what `rewrite_message` does for the most frequent message: a role, a text, no more.

    None where there is more to it, or where a rule speaks of the role or the text.
    """
    if type(message) is not dict or len(message) != 2:
        return None
    role, content = message.get("role"), message.get("content")
    if type(content) is not str or role not in ("user", "assistant", "tool", "system"):
        return None
    if role == "system" and content.startswith(_BILLING_HEADER):
        return None
    if form == "openai" and not (role == "tool" and rules.joins_tool_parts):
        content = [{"type": "text", "text": content}]
    return RewrittenMessage(message, {"role": role, "content": content}, False, False)


def rewrite_message(
    item: object, where: str, form: ContentForm, rules: VllmRules
) -> RewrittenMessage:
    """Return a message as the template gets it.

    Only the keys that vLLM copies survive, in this order: role, content, then an assistant's
    tool_calls, reasoning and reasoning_content, a tool's tool_call_id, name, task, a developer's
    tools. An empty list of calls is dropped.

    vLLM 0.33.0, ``vllm/renderers/chat_utils/chat_message.py``: ``parse_chat_message_content``,
    ``_postprocess_messages``.
    """
    message, role = read_role(item, where)
    content = rewrite_content(message, role, where, form, rules)
    fields: dict[str, Any] = {"role": role, "content": content}
    coerced = lacks_ids = False
    calls = message.get("tool_calls")
    listed = [] if calls is None else expect_list(calls, f"{where}.tool_calls")
    if role == "assistant":
        if listed or (calls is not None and not rules.drops_empty_calls):
            fields["tool_calls"], coerced = rewrite_tool_calls(listed, f"{where}.tool_calls", rules)
            lacks_ids = any("id" not in call for call in fields["tool_calls"])
        reasoning = find_reasoning(message, where, rules)
        if reasoning is not None:
            fields |= {"reasoning": reasoning, "reasoning_content": reasoning}
    elif role == "tool" and "tool_call_id" in message:
        fields["tool_call_id"] = optional_text(message, "tool_call_id", where)
    name = optional_text(message, "name", where)
    if name is not None:
        fields["name"] = name
    if rules.passes_task and isinstance(message.get("task"), str):
        fields["task"] = message["task"]
    if role == "developer" and rules.passes_developer_tools:
        fields["tools"] = order_developer_tools(message.get("tools"), f"{where}.tools")
    return RewrittenMessage(message, fields, coerced, lacks_ids)


def rewrite_content(
    message: Mapping[str, Any], role: str, where: str, form: ContentForm, rules: VllmRules
) -> str | list[Any]:
    """Return the content in the form that the template takes.

    ``string``: the parts that are not empty, joined by one newline. ``openai``: a list of parts, for
    plain text too; null is an empty list. A tool's text parts are joined by newlines in both.

    vLLM 0.33.0, ``chat_message.py``: ``parse_chat_message_content``,
    ``parse_chat_message_content_parts``.
    """
    content = message.get("content")
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    items = [] if content is None else expect_list(content, f"{where}.content")
    if role == "system" and rules.strips_billing:
        items = strip_billing_header(items)
    read = [read_part(item, f"{where}.content[{at}]", rules) for at, item in enumerate(items)]
    parts = [part for part in read if part is not None]
    if form == "string":
        texts = [part["text"] if part["type"] == "text" else part["name"] for part in parts]
        return "\n".join(text for text in texts if text)
    if not rules.wraps_bare_text and any(isinstance(item, str) for item in items):
        return [
            item if isinstance(item, str) else part
            for item, part in zip(items, read, strict=True)
            if part is not None
        ]
    is_joined = role == "tool" and rules.joins_tool_parts
    if is_joined and all(part["type"] == "text" for part in parts):
        return "\n".join(part["text"] for part in parts)
    return parts


def read_part(item: object, where: str, rules: VllmRules) -> dict[str, Any] | None:
    """Return a text part (with its foreign keys) or a tool reference; None where its text is null.

    Media is refused: its tokens come from the model's processor, not from the template.

    vLLM 0.33.0, ``chat_message.py``: ``parse_chat_message_content_part``, ``_collect_extra_fields``.
    """
    if isinstance(item, str):
        return {"type": "text", "text": item}
    part = expect_object(item, where)
    kind = optional_text(part, "type", where)
    media = sorted(MEDIA_PARTS & {key for key, value in part.items() if value is not None})
    if kind in MEDIA_PARTS or (media and (kind is None or part.get("uuid") is not None)):
        refuse_part(media[0] if kind is None else kind, where)
    if kind is None:
        raise Rejected("missing_field", f"{where} has no 'type'", part)
    if rules.refuses_uuids and part.get("uuid") is not None:
        raise Rejected("server_refused", f"{where}: vLLM takes a uuid for a sign of media", part)
    if kind == "tool_reference" and rules.knows_tool_references:
        return {"type": kind, "name": optional_text(part, "name", where)}
    if kind not in TEXT_PARTS or not rules.knows_part(kind):
        raise Rejected("server_refused", f"{where}: vLLM knows no part of type {kind!r}", part)
    text = optional_text(part, TEXT_PARTS[kind], where)
    if text is None:
        if kind in ("text", "refusal"):
            return None
        require(part, TEXT_PARTS[kind], where)
    if not rules.keeps_part_fields:
        return {"type": "text", "text": text}
    extra = {key: value for key, value in part.items() if key not in _PART_FIELDS}
    return {"type": "text", "text": text, **extra}


def strip_billing_header(items: Sequence[Any]) -> list[Any]:
    """Return the parts of a system message without the line that Claude Code puts first.

    vLLM 0.33.0, ``chat_message.py``: ``_strip_claude_code_billing_header``.
    """
    kept: list[Any] = []
    for item in items:
        is_text_part = isinstance(item, Mapping) and item.get("type") == "text"
        text = item.get("text") if is_text_part else item
        if not (isinstance(text, str) and text.startswith(_BILLING_HEADER)):
            kept.append(item)
        elif rest := text.partition("\n")[2]:
            kept.append({**item, "text": rest} if is_text_part else rest)
    return kept


def find_reasoning(message: Mapping[str, Any], where: str, rules: VllmRules) -> str | None:
    """Return the reasoning of an assistant's message under a name that the version reads.

    vLLM 0.33.0, ``vllm/entrypoints/openai/chat_completion/protocol.py``:
    ``_normalize_messages_before``.
    """
    reasoning = optional_text(message, "reasoning", where) if rules.reads_reasoning else None
    is_absent = reasoning is None or (rules.skips_empty_reasoning and not reasoning)
    if is_absent and rules.reads_reasoning_content:
        return optional_text(message, "reasoning_content", where)
    return reasoning

"""How vLLM 0.33.0 rewrites messages before the template sees them.

Two layers of the server act on a request: the schema of its HTTP API, and the parser behind it. The
parser is followed to the letter. The schema's refusals of mere spelling are not: where a request
has one completion that the schema accepts (arguments as JSON text, a call's type, a part's type
object around plain text), that completion is rendered, because public data is often spelt so.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from pipeline.errors import Rejected
from pipeline.prompt.request import (
    expect_list,
    expect_object,
    expect_text,
    in_field_order,
    optional_text,
    read_role,
    refuse_part,
    require,
)
from pipeline.prompt.template_facts import ContentForm
from pipeline.prompt.vllm_tools import order_developer_tools

Conversation = list[dict[str, Any]]

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
# The order in which the request's schema writes the keys of a call.
_CALL_FIELDS = ("id", "function", "type")
_CALL_FUNCTION_FIELDS = ("arguments", "name")


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
    messages: object, form: ContentForm, known: dict[int, RewrittenMessage] | None = None
) -> Rewritten:
    """Return the conversation as the template gets it; ``messages`` stays as it is.

    ``known`` is what earlier calls for the same ``form`` made of the messages, by the id of each.
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
            found = rewrite_text(message, form) or rewrite_message(
                message, f"messages[{index}]", form
            )
            known[id(message)] = found
        conversation.append(found.fields)
        coerced |= found.arguments_coerced
        lacks_ids |= found.lacks_ids
    return Rewritten(conversation, coerced, lacks_ids)


def rewrite_text(message: Any, form: ContentForm) -> RewrittenMessage | None:
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
    if form == "openai" and role != "tool":
        content = [{"type": "text", "text": content}]
    return RewrittenMessage(message, {"role": role, "content": content}, False, False)


def rewrite_message(item: object, where: str, form: ContentForm) -> RewrittenMessage:
    """Return a message as the template gets it.

    Only the keys that vLLM copies survive, in this order: role, content, then an assistant's
    tool_calls, reasoning and reasoning_content, a tool's tool_call_id, name, task, a developer's
    tools. An empty list of calls is dropped.

    vLLM 0.33.0, ``vllm/renderers/chat_utils/chat_message.py``: ``parse_chat_message_content``,
    ``_postprocess_messages``.
    """
    message, role = read_role(item, where)
    fields: dict[str, Any] = {"role": role, "content": rewrite_content(message, role, where, form)}
    coerced = lacks_ids = False
    calls = message.get("tool_calls")
    listed = [] if calls is None else expect_list(calls, f"{where}.tool_calls")
    if role == "assistant":
        if listed:
            fields["tool_calls"], coerced = rewrite_tool_calls(listed, f"{where}.tool_calls")
            lacks_ids = any("id" not in call for call in fields["tool_calls"])
        reasoning = find_reasoning(message, where)
        if reasoning is not None:
            fields |= {"reasoning": reasoning, "reasoning_content": reasoning}
    elif role == "tool" and "tool_call_id" in message:
        fields["tool_call_id"] = optional_text(message, "tool_call_id", where)
    name = optional_text(message, "name", where)
    if name is not None:
        fields["name"] = name
    if isinstance(message.get("task"), str):
        fields["task"] = message["task"]
    if role == "developer":
        fields["tools"] = order_developer_tools(message.get("tools"), f"{where}.tools")
    return RewrittenMessage(message, fields, coerced, lacks_ids)


def rewrite_content(
    message: Mapping[str, Any], role: str, where: str, form: ContentForm
) -> str | list[dict[str, Any]]:
    """Return the content in the form that the template takes.

    ``string``: the parts that are not empty, joined by one newline. ``openai``: a list of parts, for
    plain text too; null is an empty list. A tool's text parts are joined by newlines in both.

    vLLM 0.33.0, ``chat_message.py``: ``parse_chat_message_content``,
    ``parse_chat_message_content_parts``.
    """
    content = message.get("content")
    if isinstance(content, str):
        content = [content]
    items = [] if content is None else expect_list(content, f"{where}.content")
    if role == "system":
        items = strip_billing_header(items)
    read = [read_part(item, f"{where}.content[{index}]") for index, item in enumerate(items)]
    parts = [part for part in read if part is not None]
    if form == "string":
        texts = [part["text"] if part["type"] == "text" else part["name"] for part in parts]
        return "\n".join(text for text in texts if text)
    if role == "tool" and all(part["type"] == "text" for part in parts):
        return "\n".join(part["text"] for part in parts)
    return parts


def read_part(item: object, where: str) -> dict[str, Any] | None:
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
    if part.get("uuid") is not None:
        raise Rejected("server_refused", f"{where}: vLLM takes a uuid for a sign of media", part)
    if kind == "tool_reference":
        return {"type": kind, "name": optional_text(part, "name", where)}
    if kind not in TEXT_PARTS:
        raise Rejected("server_refused", f"{where}: vLLM knows no part of type {kind!r}", part)
    text = optional_text(part, TEXT_PARTS[kind], where)
    if text is None:
        if kind in ("text", "refusal"):
            return None
        require(part, TEXT_PARTS[kind], where)
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


def find_reasoning(message: Mapping[str, Any], where: str) -> str | None:
    """Return the reasoning of an assistant's message under its new name or its old one.

    vLLM 0.33.0, ``vllm/entrypoints/openai/chat_completion/protocol.py``:
    ``_normalize_messages_before``.
    """
    reasoning = optional_text(message, "reasoning", where)
    return optional_text(message, "reasoning_content", where) if reasoning is None else reasoning


def rewrite_tool_calls(calls: Sequence[Any], where: str) -> tuple[list[dict[str, Any]], bool]:
    """Return the calls with keys in the schema's order and arguments as objects.

    The second value is True where arguments were lost. A call without an id stays without one.

    vLLM 0.33.0, ``chat_message.py``: ``_postprocess_messages``.
    """
    rewritten: list[dict[str, Any]] = []
    coerced = False
    for index, item in enumerate(calls):
        at = f"{where}[{index}]"
        call = dict(expect_object(item, at))
        kind = optional_text(call, "type", at) or "function"
        if kind != "function":
            raise Rejected(
                "server_refused", f"{at}: vLLM takes calls of type 'function' only", item
            )
        function = dict(expect_object(require(call, "function", at), f"{at}.function"))
        expect_text(require(function, "name", f"{at}.function"), f"{at}.function.name")
        function["arguments"], lost = read_arguments(
            function.get("arguments"), f"{at}.function.arguments"
        )
        coerced |= lost
        call |= {"type": kind, "function": in_field_order(function, _CALL_FUNCTION_FIELDS)}
        if optional_text(call, "id", at) is None:
            call.pop("id", None)
        rewritten.append(in_field_order(call, _CALL_FIELDS))
    return rewritten, coerced


def read_arguments(arguments: object, where: str) -> tuple[dict[str, Any], bool]:
    """Return a call's arguments as an object, and whether something was thrown away.

    Nothing given (null, empty text) is an empty object; so is, with a loss, what is no JSON object.

    vLLM 0.33.0, ``chat_message.py``: ``_postprocess_messages``.
    """
    if isinstance(arguments, Mapping):
        return dict(arguments), False
    if arguments is None or arguments == "":
        return {}, False
    if not isinstance(arguments, str):
        return {}, True
    try:
        parsed = json.loads(arguments)
    except json.JSONDecodeError:
        return {}, True
    except (RecursionError, ValueError) as error:
        # Nesting or integers without end: the server fails on them with an internal error.
        raise Rejected("server_refused", f"{where} cannot be parsed: {error}", arguments) from error
    return (parsed, False) if isinstance(parsed, dict) else ({}, True)


def fill_call_ids(conversation: Conversation, filler: str) -> Conversation:
    """Return the conversation with ids made from ``filler`` for the calls that have none.

    vLLM's schema demands an id, so a client had one; rendering with two fillers shows whether the
    template lets it through.
    """
    filled: Conversation = []
    count = 0
    for message in conversation:
        calls: list[dict[str, Any]] = []
        for call in message.get("tool_calls", []):
            count += "id" not in call
            calls.append(call if "id" in call else {"id": f"{filler}{count:05d}", **call})
        filled.append(message | {"tool_calls": calls} if calls else message)
    return filled

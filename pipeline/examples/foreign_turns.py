"""Turns as other tools write them -> messages as OpenAI's API has them.

One table of names serves every tool: who speaks (``role``, ``from``, LangChain's ``type``), what is
said (``content``, ``value``, ``parts``) and what is called. Sources: LLaMA-Factory, ``data/README.md``;
LangChain, ``langchain_core/messages`` and ``langchain_core/load``; OpenTelemetry's semantic conventions
for generative AI; Vercel's AI SDK, ``ui-messages.ts`` and ``convert-to-model-messages.ts``; Gemini's API
reference, ``Content``. What could be read in two ways is refused with its key.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, cast

from pipeline.errors import Rejected
from pipeline.examples.fields import read_json
from pipeline.examples.foreign_messages import (
    ROLE_NAMES,
    SERVER_ROLES,
    TEXT_KEYS,
    bare_role,
    holds_foreign_part,
    is_foreign_part,
)
from pipeline.examples.foreign_parts import read_call, read_parts
from pipeline.types import Message

_USUAL: Final = {"role": "content", "from": "value", "type": "content"}
"""Keys that name who speaks, each with the key of the text that goes with it."""
ENDINGS: Final = ("finish_reason", "stop_reason", "done_reason")
"""Keys of a message's metadata that say how it ended, as its server called it."""
_CALLS: Final = frozenset({"functioncall", "toolcall"})


def name_spelling(turn: Any) -> str:
    """Return the keys that tell a turn which no server reads as it is spelled; else empty text.

    >>> name_spelling({"type": "human", "content": "Hi"}), name_spelling({"role": "user"})
    ('type+content', '')
    """
    if not isinstance(turn, dict):
        return ""
    fields = cast("dict[str, Any]", turn)
    role, content = fields.get("role"), fields.get("content")
    if not isinstance(role, str):
        if _is_wrapped(fields):
            return "lc" if "lc" in fields else "type+data"
        key, speaker = _find_speaker(fields)
        return "" if speaker is None else f"{key}+{_find_text_key(fields, _USUAL[key])}"
    if holds_parts(fields) and (not content or holds_foreign_part(fields)):
        return "parts"
    if isinstance(content, list) and any(map(is_foreign_part, cast("list[Any]", content))):
        return "content parts"
    return "roles" if role not in SERVER_ROLES and bare_role(role) in ROLE_NAMES else ""


def holds_parts(turn: Mapping[str, Any]) -> bool:
    """Say whether a turn has a list of parts."""
    return isinstance(turn.get("parts"), list)


def find_role(turn: Mapping[str, Any]) -> str | None:
    """Return the role that a turn has in OpenAI's API, None where its name is none of that table."""
    return _role_of(_find_speaker(_unwrap(dict(turn), "turn"))[1])


def respell_turns(turns: list[Any], name: str) -> list[Message]:
    """Return the messages that turns in any known spelling are; more than one where results go along.

    Raises `Rejected` with the key: ``wrong_type``, ``missing_field``, ``unsupported_content``.

    >>> respell_turns([{"from": "human", "value": "2+2?"}, {"type": "ai", "content": "4"}], "turns")
    [{'role': 'user', 'content': '2+2?'}, {'role': 'assistant', 'content': '4'}]
    """
    messages: list[Message] = []
    for index, turn in enumerate(turns):
        # One that a server reads as it stands, in any role, is left alone.
        is_foreign = name_spelling(turn) or holds_parts(turn)
        messages += respell_turn(turn, f"{name}[{index}]") if is_foreign else [turn]
    return messages


def respell_turn(turn: Any, where: str) -> list[Message]:
    """Return the message of one turn, and those of the results that stand in it."""
    if not isinstance(turn, dict):
        raise Rejected("wrong_type", f"{where}: expected an object with from and value", turn)
    fields = _unwrap(cast("dict[str, Any]", turn), where)
    key, speaker = _find_speaker(fields)
    if speaker is None:
        raise Rejected("missing_field", f"{where}.{key}: missing; expected who speaks", fields)
    role = ROLE_NAMES.get(bare_role(speaker))
    if role is None:
        known = "human, user, gpt, assistant, system, tool, observation, function_call"
        raise Rejected("wrong_type", f"{where}.{key}: expected one of {known}", speaker)
    text_key = _find_text_key(fields, _USUAL[key])
    said = fields.get(text_key)
    rest = {
        name: value
        for name, value in fields.items()
        if name not in (key, text_key, "tool_calls") and value is not None
    }
    if isinstance(said, list) and (
        text_key == "parts" or any(is_foreign_part(part) for part in cast("list[Any]", said))
    ):
        messages = read_parts(cast("list[Any]", said), role, f"{where}.{text_key}")
        _drop_said_twice(rest, messages, where)
        messages[0] = {**messages[0], **rest, **messages[0]}
    elif bare_role(speaker) in _CALLS:
        calls = _read_spelled_calls(said, f"{where}.{text_key}")
        message: Message = {"role": role, "content": "", "tool_calls": calls}
        messages = [{**message, **rest, **message}]
    else:
        if said is None and not fields.get("tool_calls"):
            raise Rejected("missing_field", f"{where}.{text_key}: missing", fields)
        if said is not None and not isinstance(said, str | list):
            raise Rejected("wrong_type", f"{where}.{text_key}: expected text", said)
        messages = [{"role": role, **rest, "content": said}]
        messages[0]["role"] = role
    if fields.get("invalid_tool_calls"):
        raise Rejected(
            "unsupported_content",
            f"{where}.invalid_tool_calls: calls whose text the log does not have as the model said it",
            fields["invalid_tool_calls"],
        )
    if fields.get("tool_calls"):
        _add_calls(messages[0], fields["tool_calls"], f"{where}.tool_calls")
    return messages


def _is_wrapped(fields: dict[str, Any]) -> bool:
    return (fields.get("lc") is not None and isinstance(fields.get("kwargs"), dict)) or (
        isinstance(fields.get("type"), str) and isinstance(fields.get("data"), dict)
    )


def _unwrap(fields: dict[str, Any], where: str) -> dict[str, Any]:
    """Return the fields of a message out of what LangChain's and OpenInference's writers wrap it in."""
    if _is_wrapped(fields):
        inner_key = "data" if "data" in fields else "kwargs"
        path = fields.get("id")
        kind = fields["type"] if inner_key == "data" else path[-1] if path else None
        inner = cast("dict[str, Any]", fields[inner_key])
        own = inner.get("type")
        if own is not None and _role_of(own) != _role_of(kind):
            raise Rejected(
                "ambiguous_shape", f"{where}.type: another than that of {inner_key}", own
            )
        fields = {**{key: each for key, each in inner.items() if key != "type"}, "role": kind}
    more = fields.get("additional_kwargs")
    if isinstance(more, dict):
        fields = {key: each for key, each in fields.items() if key != "additional_kwargs"}
        for key, each in cast("dict[str, Any]", more).items():
            # The calls once more, as the server wrote them; those of the message were read from them.
            if key != "tool_calls" or not fields.get("tool_calls"):
                fields.setdefault(key, each)
    ending = fields.get("response_metadata")
    if isinstance(ending, dict):
        said = {key: ending[key] for key in ENDINGS if isinstance(ending.get(key), str)}
        fields = {**fields, **said}
    return fields


def _role_of(name: Any) -> str | None:
    return ROLE_NAMES.get(bare_role(name)) if isinstance(name, str) else None


def _find_speaker(fields: Mapping[str, Any]) -> tuple[str, str | None]:
    """Return the key that names the speaker, and the name; ``type`` only where it is a role's name."""
    for key in _USUAL:
        value = fields.get(key)
        if isinstance(value, str) and (key != "type" or (_role_of(value) and "content" in fields)):
            return key, value
    return "from" if "value" in fields else "role", None


def _find_text_key(fields: Mapping[str, Any], usual: str) -> str:
    """Return the key of what is said: parts, the usual one, or what holds something in its place."""
    if usual == "content" and fields.get("parts") and holds_parts(fields):
        return "parts"
    if fields.get(usual) is None or (usual == "content" and not fields[usual]):
        for key in TEXT_KEYS:
            if isinstance(fields.get(key), str | list) and fields[key]:
                return key
    return usual


def _drop_said_twice(rest: dict[str, Any], messages: list[Message], where: str) -> None:
    """Take out of ``rest`` what the parts of a turn say once more, as older writers have both.

    Raises `Rejected` (``ambiguous_shape``) where the text beside the parts is another.
    """
    content = rest.pop("content", None)
    texts = "".join(str(each["content"]) for each in messages if each["role"] != "tool")
    if content and content not in (texts, messages[-1]["content"]):
        raise Rejected("ambiguous_shape", f"{where}.content: another text than its parts", content)
    if rest.get("reasoning") == messages[0].get("reasoning_content"):
        rest.pop("reasoning", None)
    invoked = rest.get("toolInvocations")
    if isinstance(invoked, list):
        ids = {call.get("id") for each in messages for call in each.get("tool_calls", ())}
        named = [
            each.get("toolCallId") for each in cast("list[Any]", invoked) if isinstance(each, dict)
        ]
        if ids.issuperset(named):
            del rest["toolInvocations"]


def _add_calls(message: Message, calls: Any, where: str) -> None:
    if not isinstance(calls, list):
        raise Rejected("wrong_type", f"{where}: expected a list of calls", calls)
    listed = cast("list[Any]", calls)
    read = [read_call(call, f"{where}[{index}]") for index, call in enumerate(listed)]
    if message.get("tool_calls") not in (None, read):
        raise Rejected("ambiguous_shape", f"{where}: other calls than those of its parts", calls)
    message["tool_calls"] = read


def _read_spelled_calls(value: Any, where: str) -> list[dict[str, Any]]:
    """Return the calls that a turn spells as JSON: one of them, or a list."""
    if value is None:
        raise Rejected("missing_field", f"{where}: missing; expected the JSON of calls")
    parsed = read_json(value, where)
    calls: list[dict[str, Any]] = []
    for call in cast("list[Any]", parsed if isinstance(parsed, list) else [parsed]):
        if not isinstance(call, dict) or not {"name", "arguments"} <= call.keys():
            raise Rejected("wrong_type", f"{where}: expected JSON with name and arguments", value)
        function = {key: call[key] for key in ("name", "arguments")}
        calls.append({"type": "function", "function": function})
    return calls

"""The fields of an example, read from JSON values: the checked value, or a reject that names it.

``name`` is what the input calls the field, so that a refusal speaks the language of its file.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final, cast

from pipeline.errors import Rejected
from pipeline.examples.foreign_messages import check_message
from pipeline.examples.key_names import find_meaning, is_bad_verdict, is_begun, says_untrained
from pipeline.examples.nulls import drop_message_nulls, drop_tool_nulls
from pipeline.examples.outcomes import find_kind, refuse_outcome, says_unended
from pipeline.lines.json_text import parse_value
from pipeline.lines.known_keys import ANSWERS, ORIGINALS
from pipeline.types import Message

_ID_LIMIT: Final = 2**31
"""Token ids are saved as int32."""

PLAIN_KEYS: Final = frozenset(
    {
        *("role", "content", "reasoning", "reasoning_content", "tool_calls", "tool_call_id"),
        *("name", "weight"),
    }
)
"""Keys of a message that are read by whoever renders it, or by `split_weights`."""
_SAYS_NO_WEIGHT: Final = PLAIN_KEYS - {"weight"}
SAYS_WEIGHT: Final = frozenset({"weight", "train", "loss", "finish_reason"})
_LOST_IN_MESSAGES: Final = frozenset(
    {
        *("continuation", "continuations", "decision_idx", "chosen", "rejected", "better", "worse"),
        *("token_ids", "prompt_token_ids", "continuation_ids", "completion_token_ids"),
        *("loss_mask", "response_mask", "labels", "logprob_mask"),
    }
)
"""Keys of a message that name another answer, its ids or what of it is trained."""
_OTHER_ANSWERS: Final = frozenset({*ANSWERS, "alternatives", "alternates", "train_detail"})


def read_id(values: Mapping[str, Any]) -> str:
    """Return the id as text: text as it is, a whole number as its digits.

    Raises `Rejected` (``missing_field`` or ``wrong_type``).
    """
    value = values.get("id")
    if value is None or value == "":
        raise Rejected(
            "missing_field", "id: missing or empty; expected text that names the example"
        )
    if isinstance(value, str):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    raise Rejected("wrong_type", "id: expected text or a whole number", value)


def read_text(values: Mapping[str, Any], name: str) -> str:
    """Return a text; empty where there is none."""
    value = values.get(name)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise Rejected("wrong_type", f"{name}: expected text", value)
    return value


def read_json(value: Any, name: str) -> Any:
    """Return ``value``, read as JSON where it is text: how nested data is kept in a table's cell."""
    if not isinstance(value, str):
        return value
    try:
        return parse_value(value)
    except Rejected as error:
        raise Rejected(
            "wrong_type", f"{name}: its text is not JSON ({error.reason})", value
        ) from error


def read_messages(value: Any, name: str) -> list[Message]:
    """Return messages, without keys that are null (`pipeline.examples.nulls`); at least one.

    What a server would not see of a message is refused (`pipeline.examples.foreign_messages`).
    """
    if not isinstance(value, list):
        raise Rejected("wrong_type", f"{name}: expected a list of messages", value)
    messages: list[Message] = []
    listed: list[Any] = value
    for index, message in enumerate(listed):
        if not isinstance(message, dict):
            raise Rejected("wrong_type", f"{name}[{index}]: expected a message object", message)
        fields: Message = message
        bare = drop_message_nulls(fields)
        if not PLAIN_KEYS.issuperset(bare) or bare.get("role") == "function":
            refuse_message_keys(bare, f"{name}[{index}]")
        check_message(bare, f"{name}[{index}]")
        messages.append(bare)
    if not messages:
        raise Rejected("empty_context", f"{name}: the list is empty; expected at least one message")
    return messages


def refuse_message_keys(message: Message, where: str) -> None:
    """Raise `Rejected` for a key by which a message says more than its text, and nobody would hear it.

    The old form of ``tool_calls`` is left out of the prompt by servers without a word; an answer
    that was begun for the model (Mistral's ``prefix``, DeepSeek's and Moonshot's too, Qwen's
    ``partial``) is no turn that it ended; ids, masks and other answers of one message have no place
    in an example.
    """
    if message.get("function_call") or message.get("role") == "function":
        raise Rejected(
            "wrong_type",
            f"{where}: a function_call, the old form of tool_calls; "
            "expected tool_calls, and results in messages of role tool",
            message,
        )
    for key in message.keys() - PLAIN_KEYS:
        if message[key] is True and message.get("role") == "assistant" and is_begun(key):
            raise Rejected(
                "no_end_of_turn",
                f"{where}.{key}: the beginning of an answer, no turn that the model ended; expected "
                "the whole answer as one message, or the prompt as text with its ids",
                message.get("content"),
            )
    for key in message.keys() - PLAIN_KEYS:
        if _is_lost(message, key):
            raise Rejected(
                "ambiguous_shape",
                f"{where}.{key}: a message cannot say this; expected it as a key of the row "
                "(docs/formats.md), or without it",
                message[key],
            )


def _is_lost(message: Message, key: str) -> bool:
    """Say whether a key says of its message what nobody would hear.

    By its name, or, of an answer, because it holds another one or says that it is the worse.
    """
    value = message[key]
    if value in ("", [], {}):
        return False
    if key in _LOST_IN_MESSAGES:
        return True
    if message.get("role") != "assistant" or key in SAYS_WEIGHT:
        return False
    if isinstance(value, bool):
        return says_untrained(key, value)
    meaning = find_meaning(key)
    if meaning in _LOST_IN_MESSAGES or is_bad_verdict(key, value):
        return True
    if meaning == "ORIGINAL" or meaning in ORIGINALS:
        return value == message.get("content")
    if not message.get("content") and not message.get("tool_calls"):
        # It is what the message says, under another name: `check_message` tells it so.
        return False
    is_other_answer = meaning == "ANSWER" or not _OTHER_ANSWERS.isdisjoint((key, meaning))
    return (
        is_other_answer and isinstance(value, str | list | dict) and value != message.get("content")
    )


def split_weights(messages: list[Message], name: str) -> tuple[list[Message], list[float] | None]:
    """Return the messages without what says of them whether they are trained, and the weights.

    None where no turn is left out. ``weight: 0`` (OpenAI's fine-tuning guide: an assistant message
    of weight 0 is context, never trained), ``train: false`` (axolotl), ``loss: false`` (ms-swift),
    and a ``finish_reason`` that is not the model's own end mean the same.
    """
    if all(_SAYS_NO_WEIGHT.issuperset(message) for message in messages):
        return messages, None
    weights = [1.0] * len(messages)
    bare: list[Message] = []
    for index, message in enumerate(messages):
        said = SAYS_WEIGHT & message.keys()
        outcomes = {key for key in message.keys() - PLAIN_KEYS if find_kind(key)}
        if not said and not outcomes:
            bare.append(message)
            continue
        keys = sorted(said | outcomes)
        weight = min(_read_weight_of(message, key, f"{name}[{index}]") for key in keys)
        if message.get("role") == "assistant":
            weights[index] = weight
        bare.append({key: value for key, value in message.items() if key not in said})
    return bare, weights if 0.0 in weights else None


def _read_weight_of(message: Message, key: str, where: str) -> float:
    """Return 0.0 where ``key`` takes the message out of what is trained, else 1.0."""
    value = message[key]
    if find_kind(key):
        return 0.0 if says_unended(key, value) else 1.0
    is_number = type(value) in (int, float) or (type(value) is bool and key != "weight")
    if not is_number or value not in (0, 1):
        if key == "loss" and type(value) is float:
            # What a trainer measured, not what it is to do.
            return 1.0
        expected = "0 or 1" if key == "weight" else "true or false"
        raise Rejected("wrong_type", f"{where}.{key}: expected {expected}", value)
    return float(value)


def read_continuation(value: Any, name: str) -> str | Message:
    """Return a continuation: text, or an assistant message with its role said."""
    if isinstance(value, str):
        if not value:
            raise Rejected(
                "empty_continuation", f"{name}: empty text; expected what the model should say"
            )
        return value
    if isinstance(value, dict):
        message = cast("Message", value)
        if message.get("role", "assistant") != "assistant":
            raise Rejected("wrong_type", f"{name}.role: expected assistant", message.get("role"))
        bare = drop_message_nulls({"role": "assistant", **message})
        if not PLAIN_KEYS.issuperset(bare):
            refuse_message_keys(bare, name)
            for key in [key for key in bare if key not in PLAIN_KEYS and find_kind(key)]:
                refuse_outcome(f"{name}.{key}", key, bare[key])
                if key in ("finish_reason", "stop_reason"):
                    del bare[key]
        check_message(bare, name)
        return bare
    raise Rejected("wrong_type", f"{name}: expected text or an assistant message", value)


def read_token_ids(value: Any, name: str) -> list[int]:
    """Return token ids: whole numbers of at least 0 that an int32 holds.

    Raises `Rejected` (``bad_ids``).
    """
    if not isinstance(value, list):
        raise Rejected("bad_ids", f"{name}: expected a list of token ids", value)
    ids = cast("list[Any]", value)
    # `type`, not `isinstance`: true is an int, and both run over the list at the speed of C.
    if not ids or set(map(type, ids)) != {int} or min(ids) < 0 or max(ids) >= _ID_LIMIT:
        wrong = next((id_ for id_ in ids if type(id_) is not int or not 0 <= id_ < _ID_LIMIT), ids)
        raise Rejected(
            "bad_ids", f"{name}: expected whole numbers from 0 to {_ID_LIMIT - 1}", wrong
        )
    return ids


def read_memories(value: Any) -> list[str]:
    """Return the memories; one text is a list of one."""
    if value is None or value == []:
        return []
    if isinstance(value, str):
        return [value]
    if isinstance(value, list) and all(isinstance(item, str) for item in cast("list[Any]", value)):
        return cast("list[str]", value)
    raise Rejected("wrong_type", "memories: expected a list of texts", value)


def read_tools(value: Any, name: str = "tools") -> list[dict[str, Any]] | None:
    """Return the tools, from JSON text too, without nulls (`pipeline.examples.nulls`); None for no tool."""
    listed = read_json(value, name)
    if listed is None:
        return None
    if isinstance(listed, list):
        tools = cast("list[Any]", listed)
        if all(isinstance(item, dict) for item in tools):
            return drop_tool_nulls(tools) or None
    raise Rejected("wrong_type", f"{name}: expected a list of tool objects", value)


def read_kwargs(value: Any) -> dict[str, Any]:
    """Return the template kwargs; a null counts as not given."""
    if value is None:
        return {}
    if isinstance(value, dict):
        kwargs = cast("dict[str, Any]", value)
        return {name: each for name, each in kwargs.items() if each is not None}
    raise Rejected("wrong_type", "chat_template_kwargs: expected an object", value)


def read_weight(value: Any) -> float:
    """Return the example's weight, 1.0 where there is none."""
    if value is None:
        return 1.0
    # Stored as float32, so a number that overflows it is refused here rather than saved as inf.
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if is_number and 0 <= value <= 3.4e38 and math.isfinite(value):
        return float(value)
    raise Rejected("wrong_type", "weight: expected a number of at least 0", value)

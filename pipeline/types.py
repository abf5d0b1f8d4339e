"""Data that cross a border: the saved row, the reject, and the closed sets of codes and flags."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa

from pipeline.errors import shorten_middle

if TYPE_CHECKING:
    import datasets

IGNORE_LABEL: Final = -100
"""Label of a token that is not trained (the convention of torch's cross entropy)."""

Message = dict[str, Any]
"""One chat message as JSON gives it: ``role``, ``content`` and what the format adds."""

REJECT_CODES: Final = frozenset(
    {
        "bad_json",
        "not_an_object",
        "bad_encoding",
        "line_too_long",
        "missing_field",
        "wrong_type",
        "ambiguous_shape",
        "bad_decision_idx",
        "empty_context",
        "empty_continuation",
        "lone_surrogate",
        "duplicate_id",
        "template_refused",
        "server_refused",
        "unsupported_content",
        "no_end_of_turn",
        "not_renderable",
        "too_long",
        "continuation_too_long",
        "bad_ids",
        "control_tokens",
    }
)

FLAGS: Final = frozenset(
    {
        "truncated",
        "turns_dropped",
        "turn_cut",
        "raw_cut",
        "continuation_cut",
        "control_token_in_text",
        "end_of_turn_in_text",
        "double_bos",
        "no_bos",
        "prompt_not_prefix",
        "think_closed",
        "think_in_text",
        "arguments_coerced",
        "normalised_by_tokenizer",
        "sampled_ids",
        "opening_added",
        "message_dropped",
        "call_not_read_back",
        "call_ids_renamed",
        "prompt_ids_differ",
    }
)

ROW_SCHEMA: Final = pa.schema(
    [
        pa.field("input_ids", pa.list_(pa.int32())),
        pa.field("labels", pa.list_(pa.int32())),
        pa.field("attention_mask", pa.list_(pa.int8())),
        pa.field("context_len", pa.int32()),
        pa.field("total_len", pa.int32()),
        pa.field("context_hash", pa.string()),
        pa.field("dropped_tokens", pa.int32()),
        pa.field("dropped_messages", pa.int32()),
        pa.field("flags", pa.list_(pa.string())),
        pa.field("id", pa.string()),
        pa.field("conversation", pa.string()),
        pa.field("source", pa.string()),
        pa.field("decision_idx", pa.int32()),
        pa.field("preference", pa.string()),
        pa.field("reason", pa.string()),
        pa.field("memories", pa.list_(pa.string())),
        pa.field("weight", pa.float32()),
    ]
)
"""Columns of a saved row, in order (``docs/rows-and-batches.md`` describes each)."""

REJECTED: Final = "rejected"
"""The split of the worse continuations of pairs, and the preference of its rows. Never trained."""

SPLITS: Final = ("train", "validation", REJECTED)
"""The splits that a set can have, in order; one without a row is not saved."""

TOKEN_COLUMNS: Final = ("input_ids", "labels", "attention_mask")
NUMERIC_COLUMNS: Final = (
    *TOKEN_COLUMNS,
    "context_len",
    "total_len",
    "dropped_tokens",
    "dropped_messages",
    "decision_idx",
    "weight",
)
"""Columns that ``columns: train`` keeps and that the digest covers, in digest order."""


def row_features(columns: str = "full") -> datasets.Features:
    """Return the row schema as ``datasets.Features`` of ``Value`` and ``List`` only.

    datasets 4.0 opens these two kinds; ``Json`` and ``Sequence`` would lock older readers out.
    """
    import datasets

    names = ROW_SCHEMA.names if columns == "full" else NUMERIC_COLUMNS
    return datasets.Features({name: feature_of(ROW_SCHEMA.field(name).type) for name in names})


def feature_of(arrow_type: pa.DataType) -> Any:
    """Return the ``datasets`` feature of an Arrow type of ours: ``Value``, or ``List`` of one."""
    import datasets

    if pa.types.is_list(arrow_type):
        return datasets.List(datasets.Value(str(arrow_type.value_type)))
    return datasets.Value("float32" if pa.types.is_float32(arrow_type) else str(arrow_type))


@dataclass(frozen=True, slots=True)
class Reject:
    """An input line or example that could not become a row.

    ``file`` is relative to the input root, ``line`` counts from 1, ``id`` is empty where none was
    read, ``code`` is one of `REJECT_CODES`, ``excerpt`` is at most 80 characters of what was found.
    """

    file: str
    line: int
    id: str
    code: str
    reason: str
    excerpt: str

    def __post_init__(self) -> None:
        assert self.code in REJECT_CODES, self.code

    def to_dict(self) -> dict[str, Any]:
        """Return the six keys of a line of ``rejects.jsonl``, an endless id without its middle."""
        return {
            **asdict(self),
            "id": shorten_middle(self.id),
            "reason": shorten_middle(self.reason),
        }

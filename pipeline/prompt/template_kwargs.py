"""Template kwargs at the door of transformers' ``apply_chat_template``, which both servers call.

Some names are its own parameters: they act, or collide, before the template sees them.

transformers 5.20.2, ``tokenization_utils_base.py``: ``apply_chat_template``;
``utils/chat_template_utils.py``: ``render_jinja_template``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.errors import Rejected
from pipeline.prompt.shape import expect_list, expect_object

CALL_PARAMETERS = frozenset(
    [
        "self",
        "conversation",
        "tools",
        "documents",
        "chat_template",
        "add_generation_prompt",
        "continue_final_message",
        "tokenize",
        "sanitize_control_tokens",
        "padding",
        "truncation",
        "max_length",
        "return_tensors",
        "return_dict",
        "return_assistant_tokens_mask",
        "tokenizer_kwargs",
    ]
)
# Given twice, once by the server: a TypeError there.
_TAKEN = frozenset(["self", "conversation", "messages"])
# Refused by apply_chat_template when they are set and only text is asked for.
_REFUSED_WHEN_SET = frozenset(
    ["continue_final_message", "sanitize_control_tokens", "return_assistant_tokens_mask"]
)


@dataclass(frozen=True, slots=True)
class TemplateCall:
    """What of the template kwargs reaches the template: its documents and its variables."""

    documents: list[dict[str, Any]] | None
    variables: dict[str, Any]


def split_template_kwargs(
    kwargs: Mapping[str, Any], taken: frozenset[str] = _TAKEN
) -> TemplateCall:
    """Return what reaches the template.

    Raises `Rejected` (``server_refused``) for a name that the server's own call has ``taken``, and
    for a switch that fails there.
    """
    for name in sorted(kwargs.keys() & (taken | _TAKEN)):
        raise Rejected(
            "server_refused", f"chat_template_kwargs: {name!r} is set by the server itself", kwargs
        )
    for name in sorted(_REFUSED_WHEN_SET):
        if kwargs.get(name):
            raise Rejected(
                "server_refused", f"chat_template_kwargs: {name!r} fails in the server", kwargs
            )
    return TemplateCall(
        read_documents(kwargs.get("documents")),
        {name: value for name, value in kwargs.items() if name not in CALL_PARAMETERS},
    )


def read_documents(documents: object) -> list[dict[str, Any]] | None:
    """Return the documents; raises `Rejected` (``wrong_type``) where they are no list of objects."""
    if documents is None:
        return None
    where = "chat_template_kwargs.documents"
    listed = expect_list(documents, where)
    return [dict(expect_object(item, f"{where}[{at}]")) for at, item in enumerate(listed)]

"""What vLLM's releases do differently: one switch for each rule that came or went, with its dates.

The rules themselves stand in ``vllm``, ``vllm_messages``, ``vllm_tools`` and ``template_facts``; they
ask a `VllmRules` what holds. Measured with the last patch release of each version from 0.8 to 0.33,
whose own code was run (``tests/parity/vllm_versions.jsonl``). Files are those of the release in which
the rule came, below ``vllm/``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cache
from itertools import product
from typing import Any, Final

from pipeline.errors import UsageError, excerpt_of

# The release that was run for each version 0.N.
_RELEASES: Final = {
    8: "0.8.5.post1",
    9: "0.9.2",
    10: "0.10.2",
    11: "0.11.2",
    12: "0.12.0",
    13: "0.13.0",
    14: "0.14.1",
    15: "0.15.1",
    16: "0.16.0",
    17: "0.17.1",
    18: "0.18.1",
    19: "0.19.1",
    20: "0.20.2",
    21: "0.21.0",
    22: "0.22.1",
    23: "0.23.0",
    24: "0.24.0",
    25: "0.25.1",
    26: "0.26.0",
    27: "0.27.1",
    28: "0.28.0",
    29: "0.29.0",
    30: "0.30.0",
    31: "0.31.0",
    32: "0.32.0",
    33: "0.33.0",
}
_FIRST: Final = min(_RELEASES)
_LAST: Final = max(_RELEASES)


def _switch(says: str, where: str, *spans: tuple[int, int]) -> Any:
    """Return a field: in ``spans``, first and last 0.N, the server does what ``says`` says."""
    return field(
        default=any(first <= _LAST <= last for first, last in spans),
        metadata={"says": says, "where": where, "spans": spans},
    )


@dataclass(frozen=True)
class VllmRules:
    """The switches of one version; without arguments, those of the newest.

    >>> read_rules("server_options.server_version", "0.20").reads_reasoning_content
    False
    """

    minor: int = _LAST
    reads_reasoning: bool = _switch(
        "read an assistant's reasoning",
        "entrypoints/chat_utils.py: _parse_chat_message_content",
        (11, _LAST),
    )
    reads_reasoning_content: bool = _switch(
        "read an assistant's reasoning_content",
        "entrypoints/openai/chat_completion/protocol.py: _normalize_messages_before",
        (11, 15),
        (22, _LAST),
    )
    skips_empty_reasoning: bool = _switch(
        "take reasoning_content where reasoning is empty text",
        "entrypoints/chat_utils.py: _parse_chat_message_content",
        (11, 15),
    )
    drops_empty_calls: bool = _switch(
        "drop an empty list of calls",
        "entrypoints/chat_utils.py: _postprocess_messages",
        (13, _LAST),
    )
    fills_missing_arguments: bool = _switch(
        "take missing and empty arguments for {}",
        "entrypoints/chat_utils.py: _postprocess_messages",
        (11, _LAST),
    )
    fills_null_arguments: bool = _switch(
        "take the arguments null for {}",
        "entrypoints/chat_utils.py: _postprocess_messages",
        (23, _LAST),
    )
    fills_broken_arguments: bool = _switch(
        "take arguments that are no JSON object for {}",
        "entrypoints/chat_utils.py: _postprocess_messages",
        (29, _LAST),
    )
    knows_thinking_parts: bool = _switch(
        "know parts of type thinking and input_text",
        "entrypoints/chat_utils.py: _parse_chat_message_content_part",
        (10, _LAST),
    )
    knows_output_text: bool = _switch(
        "know parts of type output_text",
        "entrypoints/chat_utils.py: _parse_chat_message_content_part",
        (12, _LAST),
    )
    knows_tool_references: bool = _switch(
        "know parts of type tool_reference",
        "entrypoints/chat_utils.py: _parse_chat_message_content_part",
        (21, _LAST),
    )
    refuses_uuids: bool = _switch(
        "take a part's uuid for a sign of media",
        "entrypoints/chat_utils.py: _parse_chat_message_content_mm_part",
        (11, _LAST),
    )
    wraps_bare_text: bool = _switch(
        "wrap plain text among parts",
        "entrypoints/chat_utils.py: _parse_chat_message_content_part",
        (18, _LAST),
    )
    keeps_part_fields: bool = _switch(
        "hand foreign keys of a part on",
        "entrypoints/chat_utils.py: _collect_extra_fields",
        (26, _LAST),
    )
    joins_tool_parts: bool = _switch(
        "join the parts of a tool's result",
        "entrypoints/chat_utils.py: _parse_chat_message_content",
        (20, _LAST),
    )
    passes_task: bool = _switch(
        "hand a message's task on",
        "entrypoints/chat_utils.py: _parse_chat_message_content",
        (20, _LAST),
    )
    passes_developer_tools: bool = _switch(
        "hand a developer's tools on",
        "entrypoints/chat_utils.py: _parse_chat_message_content",
        (13, _LAST),
    )
    strips_billing: bool = _switch(
        "strip Claude Code's billing line",
        "renderers/chat_utils.py: _strip_claude_code_billing_header",
        (32, _LAST),
    )
    moves_developer: bool = _switch(
        "make a developer a system message",
        "renderers/hf.py: _convert_developer_to_system",
        (23, _LAST),
    )
    drops_tool_fields: bool = _switch(
        "drop foreign keys of a tool",
        "entrypoints/openai/engine/protocol.py: FunctionDefinition",
        (27, _LAST),
    )
    declares_strict: bool = _switch(
        "write a tool's strict before foreign keys, and not where null",
        "entrypoints/openai/engine/protocol.py: FunctionDefinition",
        (24, _LAST),
    )
    declares_defer_loading: bool = _switch(
        "write a tool's defer_loading in its function too",
        "entrypoints/openai/engine/protocol.py: FunctionDefinition",
        (21, _LAST),
    )
    sees_bare_content: bool = _switch(
        "take a loop over `content` for parts",
        "renderers/hf.py: _iter_nodes_assign_content_item",
        (22, _LAST),
    )
    follows_macros: bool = _switch(
        "follow content into macros",
        "renderers/hf.py: _iter_nodes_assign_content_item",
        (30, _LAST),
    )
    follows_namespaces: bool = _switch(
        "follow messages into namespaces",
        "renderers/hf.py: _iter_nodes_assign_var_or_elems",
        (33, _LAST),
    )
    filters_kwargs: bool = _switch(
        "drop template kwargs that the template does not take",
        "entrypoints/chat_utils.py: resolve_chat_template_kwargs",
        (11, _LAST),
    )
    merges_kwargs: bool = _switch(
        "take a null template kwarg for none",
        "renderers/params.py: merge_kwargs",
        (16, _LAST),
    )
    passes_effort: bool = _switch(
        "hand reasoning_effort to the template",
        "entrypoints/openai/serving_chat.py: create_chat_completion",
        (14, _LAST),
    )
    effort_sets_thinking: bool = _switch(
        "let reasoning_effort set enable_thinking",
        "entrypoints/openai/chat_completion/protocol.py: build_chat_params",
        (22, _LAST),
    )
    sets_cohere_format: bool = _switch(
        "set cohere_format", "entrypoints/openai/cli_args.py: cohere_format", (27, _LAST)
    )

    @property
    def release(self) -> str:
        """The release whose code was run: ``0.33.0``."""
        return _RELEASES[self.minor]

    @property
    def form_rules(self) -> tuple[bool, ...]:
        """What decides the content form of a template."""
        return self.sees_bare_content, self.follows_macros, self.follows_namespaces

    def knows_part(self, kind: str) -> bool:
        """Say whether a part of this type, text of some kind, is taken for one."""
        if kind == "output_text":
            return self.knows_output_text
        return self.knows_thinking_parts or kind not in ("thinking", "input_text")

    @property
    def efforts(self) -> tuple[str, ...]:
        """The values that the request's ``reasoning_effort`` may have; none before there was one."""
        if self.minor >= 21:
            return ("none", "minimal", "low", "medium", "high", "xhigh", "max")
        named = ("low", "medium", "high") if self.minor >= 10 else ()
        return ("none", *named) if self.minor >= 18 else named


def read_rules(name: str, value: object) -> VllmRules:
    """Return the rules of a version as ``server_options.server_version`` names it.

    ``0.20``, or one of its patch releases: ``0.20.1``. Raises `UsageError` for any other.
    """
    found = re.fullmatch(r"v?0\.(\d{1,3})([.+].*)?", value) if isinstance(value, str) else None
    if found is None or int(found[1]) not in _RELEASES:
        # YAML reads 0.20 without quotes as the number 0.2.
        hint = "; write it in quotes" if isinstance(value, int | float) else ""
        raise UsageError(
            f'{name}: found {excerpt_of(value)}; expected "0.{_FIRST}" to "0.{_LAST}"{hint}'
        )
    return _rules_of(int(found[1]))


@cache
def list_rules() -> tuple[VllmRules, ...]:
    """Return the rules of every version, the oldest first."""
    return tuple(map(_rules_of, _RELEASES))


@cache
def list_form_rules() -> tuple[VllmRules, ...]:
    """Return rules for each way to tell a template's content form, also those of no release.

    A release's way is one of them, and so is that of a single switch turned.
    """
    names = ("sees_bare_content", "follows_macros", "follows_namespaces")
    ways = product((True, False), repeat=len(names))
    return tuple(replace(VllmRules(), **dict(zip(names, way, strict=True))) for way in ways)


def find_changes(old: VllmRules, new: VllmRules) -> dict[str, str]:
    """Return what ``new`` does unlike ``old``, in words, by the switch.

    >>> find_changes(VllmRules(), read_rules("server_version", "0.31"))["strips_billing"]
    "does not strip Claude Code's billing line"
    """
    return {
        name: f"{'does' if getattr(new, name) else 'does not'} {metadata['says']}"
        for name, metadata in _iterate_switches()
        if getattr(new, name) != getattr(old, name)
    }


@cache
def _rules_of(minor: int) -> VllmRules:
    return VllmRules(
        minor,
        **{
            name: any(first <= minor <= last for first, last in metadata["spans"])
            for name, metadata in _iterate_switches()
        },
    )


def _iterate_switches() -> Iterator[tuple[str, Mapping[str, Any]]]:
    return ((each.name, each.metadata) for each in fields(VllmRules) if each.metadata)

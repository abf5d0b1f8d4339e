"""The rule by which a server may differ from the settings of a set: tried, not guessed.

A context is built again under other settings; those that give the server's ids are named.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import date
from typing import Any, Final

from pipeline.config import RowSettings
from pipeline.errors import Rejected, UsageError
from pipeline.examples.decisions import DecisionPoint
from pipeline.prompt.chat_template import CLOCK_FUNCTION
from pipeline.rows.builder import RowBuilder

UNKNOWN: Final = "unknown; compare the chat templates"
CHANGED: Final = "the line, the tokenizer or the template is another than when the set was made"
LOGGED: Final = (
    "the ids beside the messages (context_ids) were logged under another template, server or kwargs"
)

_OTHER_SETTINGS: Final[tuple[tuple[str, Mapping[str, Any]], ...]] = (
    ("server_options.content_format: openai", {"server_options": {"content_format": "openai"}}),
    ("server_options.content_format: string", {"server_options": {"content_format": "string"}}),
    (
        "chat_template_kwargs.enable_thinking: false",
        {"chat_template_kwargs": {"enable_thinking": False}},
    ),
    (
        "chat_template_kwargs.enable_thinking: true",
        {"chat_template_kwargs": {"enable_thinking": True}},
    ),
    (
        "server_options.exclude_tools_when_tool_choice_none: true",
        {"server_options": {"exclude_tools_when_tool_choice_none": True, "tool_choice": "none"}},
    ),
    ("server: vllm", {"server": "vllm", "server_options": {}}),
    ("server: sglang", {"server": "sglang", "server_options": {}}),
    ("server: plain", {"server": "plain", "server_options": {}}),
    ("server: transformers", {"server": "transformers", "server_options": {}}),
    ("server: mlx", {"server": "mlx", "server_options": {}}),
    ("raw_context: completions", {"raw_context": "completions"}),
    ("raw_context: chat", {"raw_context": "chat"}),
    ("chat_template: the tokenizer's own", {"chat_template": None}),
)
# More than any context: what is compared is never shortened.
_NO_LIMIT: Final = 2**31 - 1


class LikelyRules:
    """Names the rule for differences of one set; what it loads for a rule it keeps."""

    def __init__(self, config: RowSettings, builder: RowBuilder) -> None:
        self._config = config
        self._builder = builder
        self._builders: dict[str, RowBuilder | None] = {}

    def explain(self, point: DecisionPoint, ours: Sequence[int], found: Sequence[int]) -> str:
        """Return what would make ``found`` of the context of ``point``, whose row has ``ours``."""
        has_ids = point.example.context_ids is not None
        # What the messages give is looked at, not the ids that the log has beside them.
        point = point._replace(example=replace(point.example, context_ids=None))
        own = _context_ids(self._own(), point)
        if has_ids and own == list(found):
            return LOGGED
        if not has_ids and own != list(ours):
            return CHANGED
        bos = self._builder.encoder.bos_id
        if bos is not None and [bos, *ours] == list(found):
            return "add_special_tokens: true (the server adds a BOS)"
        if bos is not None and [bos, *found] == list(ours):
            return "the server's prompt has no BOS"
        for name, settings in self._other_settings():
            builder = self._load(name, settings)
            if builder is not None and _context_ids(builder, point) == list(found):
                return name
        return UNKNOWN

    def _own(self) -> RowBuilder:
        builder = self._load("", {})
        assert builder is not None, "the settings of the set were loaded before"
        return builder

    def _other_settings(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield each rule by its name, with the settings that it replaces."""
        for name, settings in (*_OTHER_SETTINGS, *self._clock_settings()):
            merged = {key: self._merge(key, value) for key, value in settings.items()}
            if any(getattr(self._config, key) != value for key, value in merged.items()):
                yield name, merged

    def _clock_settings(self) -> Iterator[tuple[str, dict[str, Any]]]:
        template = self._builder.templates
        if not template.is_empty and CLOCK_FUNCTION in template.for_request(has_tools=False).source:
            today = date.today().isoformat()
            yield f"server_options.fixed_date: {today}", {"server_options": {"fixed_date": today}}

    def _merge(self, key: str, value: Any) -> Any:
        return (
            {**getattr(self._config, key), **value} if isinstance(value, dict) and value else value
        )

    def _load(self, name: str, settings: Mapping[str, Any]) -> RowBuilder | None:
        """Return the builder under other settings, or nothing where they do not apply."""
        if name not in self._builders:
            try:
                self._builders[name] = RowBuilder(
                    replace(self._config, **settings, end_of_turn="none", overlong="reject")
                )
            except UsageError:
                self._builders[name] = None
        return self._builders[name]


def _context_ids(builder: RowBuilder, point: DecisionPoint) -> list[int] | None:
    """Return the ids of the context of ``point``, or nothing where it is refused."""
    built = builder.build([point._replace(continuation="x", continuation_ids=None)], _NO_LIMIT)[0]
    return None if isinstance(built, Rejected) else built.input_ids[: built.context_len].tolist()

"""Which versions of vLLM would have read the same rows otherwise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from pipeline.errors import Rejected, UsageError
from pipeline.prompt.bounded import BOUNDED_RUNS
from pipeline.prompt.chat_template import ChatTemplates
from pipeline.prompt.request import ChatRequest
from pipeline.prompt.vllm import VllmDialect
from pipeline.prompt.vllm_versions import VllmRules, find_changes, list_rules

MOST_REQUESTS: Final = 100
"""That are rendered under the rules of each version."""


@dataclass(frozen=True, slots=True)
class OtherVersions:
    """Adjoining versions with other prompts than ours for the same ``rows`` of those asked, and why."""

    first: str
    last: str
    rows: int
    causes: tuple[str, ...]

    def __str__(self) -> str:
        span = self.first if self.first == self.last else f"{self.first} to {self.last}"
        return f"vLLM {span}: {self.rows:,} with another prompt; it {'; it '.join(self.causes)}"


def find_other_versions(
    requests: Sequence[ChatRequest], dialect: VllmDialect, templates: ChatTemplates
) -> list[OtherVersions]:
    """Return the versions that make other prompts of ``requests`` than ``dialect``, the newest first.

    A cause is named where its switch alone changes the first prompt that differs.
    """
    own = dialect.server_version
    ours = [_render(request, dialect, own, templates) for request in requests]
    found: list[OtherVersions] = []
    spread: tuple[int, ...] = ()
    for rules in reversed(list_rules()):
        theirs = [_render(request, dialect, rules, templates) for request in requests]
        pairs = enumerate(zip(ours, theirs, strict=True))
        differing = tuple(place for place, (mine, its) in pairs if mine != its)
        if not differing:
            spread = ()
            continue
        version = f"0.{rules.minor}"
        causes = tuple(
            words
            for name, words in find_changes(own, rules).items()
            if _render(
                requests[differing[0]],
                dialect,
                replace(own, **{name: getattr(rules, name)}),
                templates,
            )
            != ours[differing[0]]
        ) or ("does so by several rules at once",)
        if found and spread == differing and found[-1].causes == causes:
            found[-1] = replace(found[-1], first=version)
        else:
            found.append(OtherVersions(version, version, len(differing), causes))
        spread = differing
    return found


def _render(
    request: ChatRequest, dialect: VllmDialect, rules: VllmRules, templates: ChatTemplates
) -> str | None:
    """Return the prompt of a request under other rules, None where it is refused."""
    alone = ChatRequest(request.messages, request.tools, request.chat_template_kwargs)
    BOUNDED_RUNS.begin_point()
    try:
        return replace(dialect, server_version=rules).render_prompt(alone, templates).text
    except (Rejected, UsageError):
        return None

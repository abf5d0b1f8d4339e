"""Compares our prompts with the answers of a server, line by line."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase

from pipeline.errors import Rejected
from pipeline.prompt.chat_template import ChatTemplates
from pipeline.prompt.request import ChatRequest, Dialect
from tests.parity import suite

Outcome = Literal["same", "refused alike", "refused here alone", "differing"]
OUTCOMES: tuple[Outcome, ...] = ("same", "refused alike", "refused here alone", "differing")


class Comparison:
    """Counts the outcomes of lines, and keeps in words what was refused here alone or differs.

    ``dialect_of`` returns our dialect for a request, ``find_request`` the request that a line answers.
    """

    def __init__(
        self,
        dialect_of: Callable[[Mapping[str, Any]], Dialect],
        find_request: Callable[[str], Mapping[str, Any]],
    ) -> None:
        self.counts: Counter[Outcome] = Counter()
        self.unlike: list[str] = []
        self._dialect_of = dialect_of
        self._find_request = find_request

    def add(
        self,
        lines: Iterable[Mapping[str, Any]],
        templates: ChatTemplates,
        tokenizer: PreTrainedTokenizerBase,
    ) -> None:
        """Compare the golden lines of one template."""
        answered = [(line, self._render(line["conversation"], templates)) for line in lines]
        texts = [text for _, text in answered if isinstance(text, str)]
        encoded = iter(tokenizer.backend_tokenizer.encode_batch(texts, add_special_tokens=False))
        for line, text in answered:
            ids = next(encoded).ids if isinstance(text, str) else None
            outcome = tell_outcome(line, ids)
            self.counts[outcome] += 1
            if outcome in ("refused here alone", "differing"):
                theirs = line.get("error", line.get("text", "ids"))
                self.unlike.append(
                    f"{line['conversation']}: {outcome}: here {text!s:.200}, there {theirs!s:.200}"
                )

    def _render(self, name: str, templates: ChatTemplates) -> str | Rejected:
        item = self._find_request(name)
        request = ChatRequest(
            item["messages"], item.get("tools"), item.get("chat_template_kwargs", {})
        )
        try:
            return self._dialect_of(item).render_prompt(request, templates).text
        except Rejected as refusal:
            return refusal

    def report(self) -> str:
        """Return the counts and the first ten lines that are unlike the server's."""
        return "\n".join([str(dict(self.counts)), *self.unlike[:10]])


def tell_outcome(line: Mapping[str, Any], ids: Sequence[int] | None) -> Outcome:
    """Return how our ids, None where we refused, compare with a line; both directions of a refusal.

    A prompt for a request that the server refuses counts as differing: nobody was ever served it.
    """
    if ids is None:
        return "refused alike" if "error" in line else "refused here alone"
    if "error" in line:
        return "differing"
    wanted = line["sha256"] if "sha256" in line else suite.hash_ids(line["token_ids"])
    return "same" if suite.hash_ids(ids) == wanted else "differing"

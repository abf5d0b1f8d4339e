"""``server: vllm`` against what a real vLLM 0.33.0 answered, on real tokenizers and templates.

Every line of both files of ``shared/parity`` (its README says how they were made). A failure names
the lines and says how many of each family agree.
"""

from __future__ import annotations

import gzip
import json
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from pipeline.errors import Rejected
from pipeline.prompt.chat_template import ChatTemplates, resolve_templates
from pipeline.prompt.request import ChatRequest
from pipeline.prompt.vllm import VllmDialect
from tests.conftest import SHARED, require_shared
from tests.parity import suite

TOKENIZERS = [
    *("deepseek-v3", "gemma-3", "llama-2", "llama-3.1", "mistral-nemo", "mistral-v0.1"),
    *("mistral-v0.3", "phi-3", "qwen2.5", "qwen3", "qwen3.5", "smollm2"),
]
NUM_TEMPLATE_GROUPS = 5


def read_golden(name: str) -> list[dict[str, Any]]:
    with gzip.open(require_shared(f"parity/{name}"), "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


@lru_cache
def load_made_up() -> dict[str, dict[str, Any]]:
    lines = suite.read_lines(require_shared("parity/conversations.jsonl"))
    return {item["name"]: item for item in lines}


@lru_cache
def load_real(file: str) -> dict[str, dict[str, Any]]:
    with gzip.open(require_shared(f"assets/data/{file}"), "rt", encoding="utf-8") as lines:
        return {item["id"]: item for item in map(json.loads, lines)}


def find_conversation(name: str) -> dict[str, Any]:
    """Return the request that a golden line answers; ``real:FILE:ID:IDX`` is a part of real data."""
    if not name.startswith("real:"):
        return load_made_up()[name]
    _, file, identity, length = name.split(":")
    item = load_real(file)[identity]
    return {
        "family": f"real {file}",
        "messages": item["messages"][: int(length)],
        "tools": item.get("tools"),
    }


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(require_shared(f"assets/tokenizers/{name}"))


class Comparison:
    """Counts agreement by family and keeps what differs."""

    def __init__(self) -> None:
        self.agreed: Counter[str] = Counter()
        self.asked: Counter[str] = Counter()
        self.differences: list[str] = []

    def add(
        self,
        lines: list[dict[str, Any]],
        templates: ChatTemplates,
        tokenizer: PreTrainedTokenizerBase,
    ) -> None:
        """Compare the golden lines of one template."""
        rendered = [(line, *self._render(line, templates)) for line in lines]
        texts = [text for _, _, text in rendered if isinstance(text, str)]
        encoded = iter(tokenizer.backend_tokenizer.encode_batch(texts, add_special_tokens=False))
        for line, family, text in rendered:
            self.asked[family] += 1
            ids = next(encoded).ids if isinstance(text, str) else None
            difference = compare(line, ids, text)
            if difference is None:
                self.agreed[family] += 1
            else:
                self.differences.append(f"{line['conversation']}: {difference}")

    def _render(self, line: dict[str, Any], templates: ChatTemplates) -> tuple[str, str | Rejected]:
        item = find_conversation(line["conversation"])
        request = ChatRequest(
            item["messages"], item.get("tools"), item.get("chat_template_kwargs", {})
        )
        try:
            return item["family"], VllmDialect().render_prompt(request, templates).text
        except Rejected as refusal:
            return item["family"], refusal

    def report(self) -> str:
        """Return pass counts by family and the first ten differences."""
        counts = [f"{family}: {self.agreed[family]}/{n}" for family, n in self.asked.items()]
        return "\n".join([*counts, *self.differences[:10]])


def compare(line: dict[str, Any], ids: list[int] | None, text: str | Rejected) -> str | None:
    """Return how our answer differs from the server's, or None."""
    if ids is None:
        return None if "error" in line else f"refused: {text}"
    if "error" in line:
        return f"the server refused ({line['error']}), we rendered {text!r:.200}"
    wanted = line["sha256"] if "sha256" in line else suite.hash_ids(line["token_ids"])
    return None if suite.hash_ids(ids) == wanted else f"other ids for {text!r:.200}"


@pytest.mark.parametrize("name", TOKENIZERS)
def test_each_real_tokenizer_and_its_template_give_the_ids_of_the_server(name: str) -> None:
    lines = [
        line for line in read_golden("golden_tokenizers.jsonl.gz") if line["tokenizer"] == name
    ]
    tokenizer = load_tokenizer(name)
    comparison = Comparison()
    comparison.add(lines, resolve_templates(tokenizer, None), tokenizer)
    assert comparison.asked.total() == 304
    assert not comparison.differences, comparison.report()


def iterate_templates(group: int) -> Iterator[tuple[Path, list[dict[str, Any]]]]:
    """Yield every fifth template with its golden lines."""
    lines_of: dict[str, list[dict[str, Any]]] = {}
    for line in read_golden("golden_templates.jsonl.gz"):
        lines_of.setdefault(line["template"], []).append(line)
    for name in sorted(lines_of)[group::NUM_TEMPLATE_GROUPS]:
        yield SHARED / "assets" / "templates" / f"{name}.jinja", lines_of[name]


@pytest.mark.parametrize("group", range(NUM_TEMPLATE_GROUPS))
def test_each_real_template_gives_the_ids_of_the_server(group: int) -> None:
    tokenizer = load_tokenizer("llama-3.1")
    special_tokens = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    comparison = Comparison()
    for path, lines in iterate_templates(group):
        source = path.read_bytes().decode("utf-8")
        comparison.add(lines, ChatTemplates({"default": source}, special_tokens), tokenizer)
    assert comparison.asked.total() == 25 * 45
    assert not comparison.differences, comparison.report()

"""The golden answers of each server: the requests they answer, and how ours compare with them.

Those of ``shared/parity`` (its README says how they were made) are large and lie beside the
repository, if anywhere: what needs them skips the test that asks.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from pipeline.prompt.chat_template import ChatTemplates, resolve_templates
from pipeline.prompt.mlx import MlxDialect
from pipeline.prompt.request import Dialect
from pipeline.prompt.sglang import SglangDialect
from pipeline.prompt.vllm import VllmDialect
from tests.conftest import ROOT, SHARED, require_shared
from tests.parity import suite
from tests.parity.comparison import Comparison

_SETS = {"vllm": "parity/golden_{}.jsonl.gz", "sglang": "parity/sglang/{}.jsonl.gz"}
_OWN = {"vllm": suite.GOLDEN, "sglang": suite.SGLANG_GOLDEN, "mlx": suite.MLX_GOLDEN}
# On whose ids the goldens of templates were made.
_TOKENIZER_OF_TEMPLATES = {"vllm": "llama-3.1", "sglang": "qwen2.5"}


def compare_tokenizers(server: str, names: Sequence[str] | None = None) -> Comparison:
    """Compare the lines of real tokenizers with their own templates, all of them or ``names``."""
    groups = group_lines(server, "tokenizers", "tokenizer")
    comparison = make_comparison(server)
    for name in groups if names is None else names:
        tokenizer = load_tokenizer(name)
        comparison.add(groups[name], resolve_templates(tokenizer, None), tokenizer)
    return comparison


def compare_templates(server: str, group: int = 0, num_groups: int = 1) -> Comparison:
    """Compare the lines of real templates, or every ``num_groups``-th from the ``group``-th on."""
    groups = group_lines(server, "templates", "template")
    tokenizer = load_tokenizer(_TOKENIZER_OF_TEMPLATES[server])
    comparison = make_comparison(server)
    for name in sorted(groups)[group::num_groups]:
        source = (SHARED / "assets" / "templates" / f"{name}.jinja").read_bytes().decode("utf-8")
        comparison.add(groups[name], templates_of(source, tokenizer), tokenizer)
    return comparison


def compare_own(server: str) -> Comparison:
    """Compare the lines of this project's own templates and requests, with its own tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "configs" / "tokenizer")
    comparison = Comparison(
        lambda item: load_dialect(server, item), load_own_requests().__getitem__
    )
    lines = suite.read_lines(_OWN[server])
    for name, source in suite.load_templates().items():
        answers = [line for line in lines if line["template"] == name]
        comparison.add(answers, templates_of(source, tokenizer), tokenizer)
    return comparison


def load_dialect(server: str, item: Mapping[str, Any]) -> Dialect:
    """Return the dialect for a request of `load_own_requests`, which may name an effort."""
    effort = item.get("reasoning_effort")
    if server == "sglang":
        return SglangDialect(reasoning_effort=effort)
    if server == "mlx":
        return MlxDialect(knows_thinking=True)
    return VllmDialect(reasoning_effort=effort)


def make_comparison(server: str) -> Comparison:
    """Return a comparison of lines of ``shared/parity``."""
    dialect = load_dialect(server, {})
    requests = load_sglang_requests() if server == "sglang" else {}
    return Comparison(lambda _: dialect, lambda name: requests.get(name) or find_vllm_request(name))


def templates_of(source: str, tokenizer: PreTrainedTokenizerBase) -> ChatTemplates:
    """Return the one template with the tokenizer's special tokens."""
    special_tokens = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    return ChatTemplates({"default": source}, special_tokens)


def group_lines(server: str, kind: str, key: str) -> dict[str, list[dict[str, Any]]]:
    """Return the golden lines of ``shared/parity`` by tokenizer or template."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for line in read_zipped(require_shared(_SETS[server].format(kind))):
        groups.setdefault(line[key], []).append(line)
    return groups


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """Return a real tokenizer of ``shared/assets``."""
    return AutoTokenizer.from_pretrained(require_shared(f"assets/tokenizers/{name}"))


def read_zipped(path: Path) -> list[dict[str, Any]]:
    """Return the objects of a gzipped JSONL file."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


@lru_cache
def load_own_requests() -> dict[str, dict[str, Any]]:
    """Return this project's requests by name, those that SGLang alone was asked among them."""
    more = {item["name"]: item for item in suite.read_lines(suite.SGLANG_CONVERSATIONS)}
    return suite.load_conversations() | more


@lru_cache
def load_sglang_requests() -> dict[str, dict[str, Any]]:
    """Return the requests that SGLang's lines of ``shared/parity`` answer, by name."""
    lines = read_zipped(require_shared("parity/sglang/requests.jsonl.gz"))
    return {item["name"]: item for item in lines}


def find_vllm_request(name: str) -> dict[str, Any]:
    """Return the request that a line answers; ``real:FILE:ID:IDX`` is a part of real data."""
    if not name.startswith("real:"):
        return _load_made_up()[name]
    _, file, identity, length = name.split(":")
    item = _load_real(file)[identity]
    return {"messages": item["messages"][: int(length)], "tools": item.get("tools")}


@lru_cache
def _load_made_up() -> dict[str, dict[str, Any]]:
    lines = suite.read_lines(require_shared("parity/conversations.jsonl"))
    return {item["name"]: item for item in lines}


@lru_cache
def _load_real(file: str) -> dict[str, dict[str, Any]]:
    return {item["id"]: item for item in read_zipped(require_shared(f"assets/data/{file}"))}

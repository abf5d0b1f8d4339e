"""``server: vllm`` against what a real vLLM 0.33.0 answered, on real tokenizers and templates."""

from __future__ import annotations

import pytest

from tests.parity.golden_sets import compare_templates, compare_tokenizers

TOKENIZERS = [
    *("deepseek-v3", "gemma-3", "llama-2", "llama-3.1", "mistral-nemo", "mistral-v0.1"),
    *("mistral-v0.3", "phi-3", "qwen2.5", "qwen3", "qwen3.5", "smollm2"),
]
NUM_TEMPLATE_GROUPS = 5


@pytest.mark.parametrize("name", TOKENIZERS)
def test_each_real_tokenizer_and_its_template_give_the_ids_of_the_server(name: str) -> None:
    comparison = compare_tokenizers("vllm", [name])
    assert comparison.counts.total() == 304
    assert not comparison.unlike, comparison.report()


@pytest.mark.parametrize("group", range(NUM_TEMPLATE_GROUPS))
def test_each_real_template_gives_the_ids_of_the_server(group: int) -> None:
    comparison = compare_templates("vllm", group, NUM_TEMPLATE_GROUPS)
    assert comparison.counts.total() == 25 * 45
    assert not comparison.unlike, comparison.report()

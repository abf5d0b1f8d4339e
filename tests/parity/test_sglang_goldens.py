"""``server: sglang`` against what SGLang 0.5.23's own request code answered, run on a CPU."""

from __future__ import annotations

import pytest

from tests.parity.golden_sets import compare_own, compare_templates, compare_tokenizers

TOKENIZERS = ["gemma-3", "llama-3.1", "mistral-nemo", "qwen2.5", "qwen3", "qwen3.5"]


def test_every_answer_to_our_own_requests_is_reproduced() -> None:
    comparison = compare_own("sglang")
    assert comparison.counts.total() == 11 * (84 + 9)
    assert comparison.counts["differing"] == 0, comparison.report()


@pytest.mark.parametrize("name", TOKENIZERS)
def test_each_real_tokenizer_and_its_template_give_the_ids_of_the_server(name: str) -> None:
    comparison = compare_tokenizers("sglang", [name])
    assert comparison.counts.total() == 112
    assert not comparison.unlike, comparison.report()


def test_each_real_template_gives_the_ids_of_the_server() -> None:
    comparison = compare_templates("sglang")
    assert comparison.counts.total() == 36 * 46
    assert comparison.counts["differing"] == 0, comparison.report()

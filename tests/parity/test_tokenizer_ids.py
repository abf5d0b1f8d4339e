"""The ids are those of the tokenizer that the server loads.

transformers 5 rebuilds the pre-tokenizer from the class that it finds in the tokenizer's config, so
two releases, or a fast encoder beside transformers, could disagree on the same folder.
"""

from __future__ import annotations

import json

import pytest
from transformers import AutoTokenizer

from pipeline.tokens.encoder import TextEncoder
from tests.conftest import name_tokenizers, require_shared
from tests.parity import suite

RECORDED = json.loads(suite.TOKENIZER_IDS.read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", name_tokenizers(RECORDED))
def test_ids_are_those_of_the_tokenizer_that_vllm_loads(name: str) -> None:
    folder = require_shared(f"assets/tokenizers/{name}")
    texts = suite.load_probe_texts()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    called = [id_ for ids in tokenizer(texts, add_special_tokens=False).input_ids for id_ in ids]
    assert len(called) == RECORDED[name]["n"]
    assert suite.hash_ids(called) == RECORDED[name]["sha256"]
    assert (
        suite.hash_ids(TextEncoder(tokenizer, folder).encode(texts).flat.tolist())
        == (RECORDED[name]["sha256"])
    )

"""``server: transformers`` against the code of ``transformers serve`` itself, which is installed."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import jinja2
import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.cli.serving.utils import BaseHandler, Modality

from pipeline.prompt.chat_template import resolve_templates
from pipeline.prompt.transformers_serve import TransformersDialect
from tests.conftest import ROOT
from tests.parity import suite
from tests.parity.comparison import Comparison
from tests.parity.golden_sets import (
    find_vllm_request,
    group_lines,
    load_own_requests,
    load_tokenizer,
    templates_of,
)

TOKENIZERS = ["llama-3.1", "mistral-nemo", "qwen3", "gemma-3"]


def answer(item: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Return what the server's own functions make of a request, as a golden line."""
    try:
        messages = BaseHandler.get_processor_inputs_from_messages(
            copy.deepcopy(item["messages"]), Modality.LLM
        )
        found = tokenizer.apply_chat_template(
            messages,
            add_generation_prompt=True,
            tools=item.get("tools"),
            return_dict=True,
            tokenize=True,
            load_audio_from_video=False,
            **item.get("chat_template_kwargs", {}),
        )
    except (jinja2.TemplateError, LookupError, TypeError, ValueError, AttributeError) as error:
        return {"conversation": item["name"], "error": str(error)}
    return {"conversation": item["name"], "token_ids": list(found["input_ids"])}


def compare(
    items: Iterable[Mapping[str, Any]],
    tokenizer: PreTrainedTokenizerBase,
    source: str | None = None,
) -> Comparison:
    """Compare our prompts with those of the server, of one template."""
    by_name = {item["name"]: item for item in items}
    comparison = Comparison(lambda _: TransformersDialect(), by_name.__getitem__)
    templates = resolve_templates(tokenizer, None)
    if source is not None:
        tokenizer.chat_template = source
        templates = templates_of(source, tokenizer)
    comparison.add([answer(item, tokenizer) for item in by_name.values()], templates, tokenizer)
    return comparison


@pytest.mark.parametrize("template", suite.load_templates())
def test_every_prompt_for_our_own_requests_is_the_servers(template: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "configs" / "tokenizer")
    source = suite.load_templates()[template]
    comparison = compare(load_own_requests().values(), tokenizer, source)
    assert comparison.counts["differing"] == 0, comparison.report()
    assert comparison.counts["same"] > 60
    # It drops parts that are no text, and takes a kwarg that only adds a mask.
    lossy = ("only text can be rendered", "'return_assistant_tokens_mask' is a parameter")
    assert all(any(words in line for words in lossy) for line in comparison.unlike)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_every_prompt_of_a_real_tokenizer_is_the_servers(name: str) -> None:
    lines = group_lines("vllm", "tokenizers", "tokenizer")[name]
    items = [
        {"name": line["conversation"], **find_vllm_request(line["conversation"])} for line in lines
    ]
    comparison = compare(items, load_tokenizer(name))
    assert comparison.counts["differing"] == 0, comparison.report()
    assert comparison.counts["same"] > 100

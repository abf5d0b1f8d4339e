"""Real conversations in 30 languages with real tokenizers: every line a row or a reject, every
continuation the text that the example gave, followed by one end of turn."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from typing import Any

import pytest
from datasets import load_from_disk
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from pipeline import prepare
from pipeline.config import PrepareConfig
from pipeline.tokens.files import read_stop_ids
from tests.conftest import require_shared

TOKENIZERS = ("qwen2.5", "llama-3.1", "gemma-3", "mistral-v0.3", "qwen3.5")
SMALL_FILES = ("chatterbot_27_languages", "reason_tool_use", "swe_agent_demos", "tau_airline_gpt4o")
ALL_FILES = (
    *SMALL_FILES,
    "adp_agents_mixed",
    "adp_swe_long",
    "bfcl_v4",
    "crosswoz_zh",
    "glaive_toolcall_en_zh",
    "llamafactory_chat_en_zh",
    "medical_zh_1k",
    "oasst_prompts_deepseek_v3",
    "openhands_feedback",
    "sgd_tools",
    "sharegpt_zh_1k",
    "swe_gym_openhands",
    "xpersona_fr_id_it_ja_ko_zh",
    "xquad_ar_hi_th_vi_tr_el_ru_zh",
)
# The template's and the server's own refusals, and what the data themselves lack.
REFUSALS = {
    "template_refused",
    "server_refused",
    "not_renderable",
    "no_end_of_turn",
    "empty_continuation",
    "missing_field",
    "control_tokens",
}


@pytest.mark.parametrize(
    ("name", "tokenizer"),
    [*((name, "qwen2.5") for name in SMALL_FILES), (SMALL_FILES[0], "mistral-v0.3")],
)
def test_a_continuation_decodes_to_its_text_and_one_end_of_turn(
    name: str, tokenizer: str, make_config: Callable[..., PrepareConfig]
) -> None:
    check_file(name, tokenizer, make_config)


@pytest.mark.nightly
@pytest.mark.parametrize("tokenizer", TOKENIZERS)
@pytest.mark.parametrize("name", ALL_FILES)
def test_every_real_file_is_accounted_for(
    name: str, tokenizer: str, make_config: Callable[..., PrepareConfig]
) -> None:
    check_file(name, tokenizer, make_config)


def check_file(name: str, tokenizer: str, make_config: Callable[..., PrepareConfig]) -> None:
    path = require_shared(f"assets/data/{name}.jsonl.gz")
    folder = require_shared(f"assets/tokenizers/{tokenizer}")
    options = {"server_options": {"fixed_date": "2026-11-25"}} if tokenizer == "gpt-oss" else {}
    config = make_config(
        path, tokenizer=str(folder), max_reject_rate=1.0, max_len=131_072, num_proc=2, **options
    )
    prepared = prepare(config)
    with gzip.open(path, "rt", encoding="utf-8") as file:
        examples = [json.loads(line) for line in file]
    counts = prepared.counts
    assert len(examples) == counts["lines"] == counts["rows"] + counts["rejects"]
    assert set(counts["by_code"]) <= REFUSALS
    backend: Tokenizer = AutoTokenizer.from_pretrained(folder).backend_tokenizer
    stop_ids = read_stop_ids(folder)
    checked = 0
    for row in load_from_disk(str(prepared.output))["train"]:
        text = text_continuation(examples[int(row["source"].rpartition(":")[2]) - 1])
        if text is None or "normalised_by_tokenizer" in row["flags"]:
            continue
        ids, context = row["input_ids"], row["input_ids"][: row["context_len"]]
        whole, head = (backend.decode(part, skip_special_tokens=False) for part in (ids, context))
        end = ids[-1]
        assert end in stop_ids
        supplied = "think_closed" in row["flags"]
        tail = whole.removeprefix(head).removesuffix(
            backend.decode([end], skip_special_tokens=False)
        )
        assert tail.endswith(text) if supplied else tail == text
        checked += 1
    assert checked or not counts["rows"] or name in ("bfcl_v4", "reason_tool_use")


def text_continuation(example: dict[str, Any]) -> str | None:
    """Return the content of the last assistant message, or None where it is more than a text."""
    message = [m for m in example["messages"] if m["role"] == "assistant"][-1]
    is_plain = not message.get("tool_calls") and not message.get("reasoning_content")
    return message["content"] if is_plain else None

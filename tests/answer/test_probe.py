"""What a template does with a turn is read off its renderings, for own and for real templates."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from pipeline.answer.probe import probe_turns
from pipeline.answer.turn import TurnFacts, closes_frame, find_end
from pipeline.prompt.chat_template import ChatTemplates, resolve_templates
from pipeline.prompt.dialects import load_dialect
from pipeline.tokens.encoder import TextEncoder
from pipeline.tokens.files import read_model_type, read_stop_ids
from scripts.table_of_turns import (
    MORE_VARIABLES,
    SPECIAL_TOKENS,
    count_answers,
    format_page,
    probe_folder,
)
from tests import own_templates as own
from tests.conftest import name_tokenizers, require_shared
from tests.own_templates import DIALECT, facts_of, templates_of

# Templates whose renderings show no end of turn, by my own reading of what they write.
CANNOT_TELL = {
    *("amberchat", "chatglm3", "chatqa", "cz-falcon-instruct", "cz-solar-instruct", "glm-4"),
    *("glm-4.5", "glm-4.6", "glm-4.7-flash", "ling-lite", "llamacpp-rwkv-world", "minicpm-3b"),
    *("oi-olmo-thinker-code-rlzero", "oi-olmo-thinker-rlzero", "vllm-alpaca", "vllm-chatglm"),
    *("vllm-chatglm2", "vllm-falcon", "vllm-falcon_180b", "vllm-inkbot", "vllm-teleflm"),
    *("vllm-tool-glm4", "yandexgpt-5-lite"),
    "command-r-tool_use",  # refuses every request with OpenAI's tools
}

# One of each family, and each that a simpler reading gets wrong.
END_BY_TEMPLATE = {
    "qwen3.5": "<|im_end|>",
    "llama-3.1": "<|eot_id|>",
    "llama-2": "<|eos_token|>",
    "gemma-3": "<end_of_turn>",
    "gemma-4": "<turn|>",
    "mistral-nemo": "<|eos_token|>",
    "deepseek-v3.1": "<｜end▁of▁sentence｜>",
    "phi-3": "<|end|>",
    "granite-3.3": "<|end_of_text|>",
    "command-r": "<|END_OF_TURN_TOKEN|>",
    "gpt-oss": "<|return|>",
    "kimi-k2": "<|im_end|>",
    "exaone-4": "[|endofturn|]",
    "minimax-m2": "[e~[",
    "seed-oss": "<seed:eos>",
    "poolside-laguna-xs.2": "</assistant>",
    "trl-glm4moe-training": "<|user|>",  # written after the last turn
    "cohere2": "<|END_OF_TURN_TOKEN|>",  # after <|END_RESPONSE|>
    "cohere2moe": "<|END_OF_TURN_TOKEN|>",  # after <|END_TEXT|>
    "command-a": "<|END_OF_TURN_TOKEN|>",  # before a generation prompt that is always written
    "command-r7b-tool_use": "<|END_OF_TURN_TOKEN|>",
    "kimi-k3": "<|end_of_msg|>",  # after two closing frames
    "lenml-llama3": "<|eot_id|>",  # before a generation prompt that is always written
    "vllm-tool-phi4_mini": "<|end|>",
    "apriel-1.5": "<|end|>",  # a newline before it, another token after it
    "nemotron-nano-v2": "<SPECIAL_12>",
    "smolvlm": "<end_of_utterance>",  # renders content in parts only
    "hermes-2-pro-tool_use": "<|im_end|>",  # renders with tools only
    "command-r-rag": "<|END_OF_TURN_TOKEN|>",  # renders with documents only
    "apertus": "<|assistant_end|>",  # written when the next turn follows
    "apriel-1.6": "<|end|>",
    "hunyuan-3": "<｜hy_eos:opensource｜>",
    "vllm-chatml": "<|im_end|>",
}


def test_the_end_of_turn_is_the_token_after_the_last_answer() -> None:
    facts = facts_of(own.CHATML)
    assert (facts.end_of_turn, facts.after_end) == ("<|im_end|>", "\n")
    assert facts.header_tokens == {"<|im_start|>"}
    assert facts.emitted_tokens == {"<tool_call>", "</tool_call>"}


def test_without_a_tokenizer_a_control_token_is_known_by_its_shape() -> None:
    facts = probe_turns(DIALECT, templates_of(own.CHATML), {})
    assert facts.end_of_turn == "<|im_end|>"
    assert facts.header_tokens == {"<|im_start|>"}


def test_a_mark_that_is_no_token_of_the_tokenizer_ends_no_turn() -> None:
    facts = probe_turns(DIALECT, templates_of(own.CHATML), {}, control_tokens={"<eos>"})
    assert facts.end_of_turn is None
    assert "followed by text, not by a control token (<|im_end|>" in facts.evidence


def test_runs_of_white_space_among_the_added_tokens_end_no_turn() -> None:
    tokens = {"\n", "\n\n", "▁▁", "<|im_end|>", "<|im_start|>"}
    assert probe_turns(DIALECT, templates_of(own.CHATML), {}, tokens).end_of_turn == "<|im_end|>"
    plain = probe_turns(DIALECT, templates_of(own.PLAIN_TEXT), {}, tokens)
    assert plain.end_of_turn is None


def test_a_turn_that_only_the_next_header_ends_cannot_be_told() -> None:
    facts = facts_of(own.NEXT_HEADER)
    assert facts.end_of_turn is None
    assert facts.tool_end is None
    assert "nothing but white space follows the last answer" in facts.evidence


def test_the_next_header_ends_a_turn_where_it_is_a_stop_token() -> None:
    facts = facts_of(own.NEXT_HEADER, "<|endoftext|>", "<|user|>", "<|observation|>")
    assert facts.end_of_turn == "<|user|>"
    assert facts.tool_end == "<|observation|>"
    assert "<|user|>" not in facts.header_tokens


def test_an_end_that_is_no_stop_token_is_named_in_the_evidence() -> None:
    facts = facts_of(own.CHATML, "<|endoftext|>")
    assert facts.end_of_turn == "<|im_end|>"
    assert "<|im_end|> is no stop token of generation_config.json" in facts.evidence


def test_the_last_of_adjoining_tokens_ends_the_turn_and_the_others_close_the_text() -> None:
    facts = facts_of(own.FRAMED)
    assert (facts.end_of_turn, facts.closing) == ("<|over|>", "<|said|>")
    assert "<|said|>" in facts.emitted_tokens
    assert facts.header_tokens == {"<bos>", "<|turn|>", "<|say|>"}


def test_the_generation_prompt_that_a_template_always_writes_ends_no_turn() -> None:
    always = own.FRAMED.replace("{% if add_generation_prompt %}", "{% if true %}")
    assert facts_of(always).end_of_turn == "<|over|>"


def test_a_header_before_an_answer_is_its_opening_and_no_turn_header() -> None:
    facts = facts_of(own.CHANNELS)
    assert facts.end_of_turn == "<|return|>"
    assert facts.tool_end == "<|call|>"
    assert facts.opening == " to=user<|message|>"
    assert facts.header_tokens == set()
    assert facts.emitted_tokens == {"<|start|>", "<|message|>", "<|end|>"}


def test_think_marks_and_their_closing_are_read_off_the_renderings() -> None:
    facts = facts_of(own.THINK_OPEN)
    assert facts.think_pair == ("<think>", "</think>")
    assert facts.prompt_opens_think
    assert facts.think_closing == "\n</think>\n\n"
    off = facts_of(own.THINK_OPEN, enable_thinking=False)
    assert off.think_pair == ("<think>", "</think>")
    assert not off.prompt_opens_think
    assert facts_of(own.CHATML).think_pair is None


def test_a_template_that_deletes_thought_is_closed_with_the_prompts_own_white_space() -> None:
    facts = facts_of(own.THOUGHT_DELETED)
    assert facts.think_closing == "\n</think>\n\n"
    no_newline = own.THOUGHT_DELETED.replace("<think>\\n", "<think>").replace(
        "<think>\n", "<think>"
    )
    assert facts_of(no_newline).think_closing == "</think>"


def test_a_tokenizer_without_a_template_has_no_end_of_turn() -> None:
    facts = probe_turns(DIALECT, ChatTemplates({}, {}), {}, frozenset(), ["<|endoftext|>"])
    assert facts.end_of_turn is None
    assert facts.evidence == "the tokenizer has no chat template"


def test_a_template_that_refuses_every_probe_says_why() -> None:
    facts = facts_of("{{ raise_exception('not today') }}")
    assert facts.end_of_turn is None
    assert facts.evidence.endswith("not today")


def test_a_template_that_reads_the_clock_is_probed_without_a_date_from_the_user() -> None:
    dated = "{{ strftime_now('%Y') }}" + own.CHATML
    undated = load_dialect("plain", {}, None)
    facts = probe_turns(undated, templates_of(dated), {}, own.TOKENS)
    assert facts.end_of_turn == "<|im_end|>"


def test_a_frame_that_the_turn_opened_is_closed_and_not_the_turn() -> None:
    assert closes_frame("<|call_end|>", "<|call_start|>x")
    assert not closes_frame("<|call_end|>", "x")
    control = facts_of(own.CHATML).control
    assert find_end("{}</tool_call>", 0, [], control) is None
    assert find_end("{}</tool_call><|call|>", 0, [], control) == (14, "<|call|>")
    assert find_end("{}<|im_end|>\n<|call|>", 0, ["<|im_end|>"], control) == (2, "<|im_end|>")


@pytest.fixture(scope="module")
def facts_by_template() -> dict[str, TurnFacts]:
    return probe_folder(require_shared("assets/templates"))


def test_the_end_of_turn_of_each_of_the_210_templates(
    facts_by_template: dict[str, TurnFacts],
) -> None:
    assert len(facts_by_template) == 210
    unknown = {name for name, facts in facts_by_template.items() if facts.end_of_turn is None}
    assert unknown == CANNOT_TELL
    found = {name: facts_by_template[name].end_of_turn for name in END_BY_TEMPLATE}
    assert found == END_BY_TEMPLATE


def test_cannot_tell_is_said_only_where_white_space_follows_the_last_answer(
    facts_by_template: dict[str, TurnFacts], shared: Path
) -> None:
    properties = json.loads((shared / "assets/templates/properties.json").read_text("utf-8"))
    for name in sorted(CANNOT_TELL):
        turn = properties[name].get("final_turn_text") or ""
        assert not turn.rpartition("AONE.")[2].strip(), name


def test_tool_calls_end_with_the_templates_own_token(
    facts_by_template: dict[str, TurnFacts],
) -> None:
    ends = {
        "functionary-3.1": "<|eom_id|>",
        "gemma-4": "<|tool_response>",
        "gpt-oss": "<|call|>",
        "qwen3": "<|im_end|>",
        "mistral-nemo": "<|eos_token|>",
        "trl-glm4moe-training": "<|observation|>",
        "glm-4.5": None,
    }
    assert {name: facts_by_template[name].tool_end for name in ends} == ends


def test_glm_stops_at_the_next_header_when_its_generation_config_says_so(shared: Path) -> None:
    source = (shared / "assets/templates/glm-4.5.jinja").read_text("utf-8")
    tokens = {
        *("[gMASK]", "<sop>", "<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>"),
        *("<|observation|>", "<think>", "</think>", "<tool_call>", "</tool_call>"),
    }
    stops = ["<|endoftext|>", "<|user|>", "<|observation|>"]
    facts = probe_turns(DIALECT, ChatTemplates({"default": source}, {}), {}, tokens, stops)
    assert (facts.end_of_turn, facts.tool_end) == ("<|user|>", "<|observation|>")


def test_the_lines_in_docs_are_those_that_the_script_prints(
    facts_by_template: dict[str, TurnFacts], repository: Path
) -> None:
    page = (repository / "docs/server-parity.md").read_text("utf-8")
    _, heading, shown = re.split(r"^(\| template \| end of turn \|.*\n)", page, flags=re.M)
    lines = [heading.rstrip("\n"), *shown.partition("\n\n")[0].splitlines()]
    printed = format_page(facts_by_template).splitlines()
    assert len(lines) > 6
    assert [line for line in lines if line not in printed] == []
    assert count_answers(facts_by_template) in page


def test_the_script_asks_again_with_more_variables_where_a_template_needs_them(
    tmp_path: Path,
) -> None:
    name = next(iter(MORE_VARIABLES))
    needy = "{{ additional_special_tokens[0] }}" + own.CHATML
    assert name == "additional_special_tokens"
    (tmp_path / "needy.jinja").write_text(needy, "utf-8")
    (tmp_path / "mute.jinja").write_text(own.PLAIN_TEXT, "utf-8")
    facts = probe_folder(tmp_path)
    assert facts["needy"].end_of_turn == "<|im_end|>"
    assert "2 templates: 1 known, 1 cannot tell." in format_page(facts)
    assert SPECIAL_TOKENS["eos_token"] == "<|eos_token|>"


TOKENIZER_ENDS = {
    "deepseek-v3": "<｜end▁of▁sentence｜>",
    "gemma-3": "<end_of_turn>",
    "gpt-oss": "<|return|>",
    "llama-2": "</s>",
    "llama-3.1": "<|eot_id|>",
    "mistral-nemo": "</s>",
    "mistral-v0.1": "</s>",
    "mistral-v0.3": "</s>",
    "phi-3": "<|end|>",
    "qwen2.5": "<|im_end|>",
    "qwen3": "<|im_end|>",
    "qwen3.5": "<|im_end|>",
    "smollm2": "<|im_end|>",
}


@pytest.mark.parametrize("name", name_tokenizers(sorted(TOKENIZER_ENDS)))
def test_the_end_of_turn_of_a_real_tokenizer_is_one_of_its_stop_tokens(name: str) -> None:
    encoder = TextEncoder.from_path(str(require_shared(f"assets/tokenizers/{name}")))
    stop_ids = read_stop_ids(encoder.folder)
    stops = [token for token, id_ in encoder.added_tokens.items() if id_ in stop_ids]
    templates = resolve_templates(encoder.tokenizer, None)
    for server in ("plain", "vllm"):
        if (name, server) == ("gpt-oss", "vllm"):
            pytest.importorskip("openai_harmony")
        dialect = load_dialect(
            server, {"fixed_date": "2024-07-26"}, read_model_type(encoder.folder), encoder.folder
        )
        facts = probe_turns(dialect, templates, {}, encoder.added_tokens, stops)
        assert facts.end_of_turn == TOKENIZER_ENDS[name]
        assert encoder.token_id(facts.end_of_turn) in stop_ids
        assert not facts.header_tokens & facts.emitted_tokens

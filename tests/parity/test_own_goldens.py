"""``server: vllm`` against answers that the real server gave to the project's own requests."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from pipeline.errors import Rejected
from pipeline.prompt.chat_template import ChatTemplates
from pipeline.prompt.request import ChatRequest, Rendering
from pipeline.prompt.vllm import VllmDialect
from tests.conftest import require_shared
from tests.parity import suite
from tests.parity.golden_sets import compare_own

CONVERSATIONS = suite.load_conversations()
TEMPLATES = suite.load_templates()
# The server writes these gpt-oss prompts and loses what it cannot write; a row is not made of that.
REFUSED_FOR_HARMONY = {"no-message", "custom-call", "file-part", "part-with-uuid"}
RESPELT = [name for name, item in CONVERSATIONS.items() if "same_as" in item]


@pytest.fixture(scope="module")
def tokenizer(repository: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(repository / "configs" / "tokenizer")


def render(name: str, source: str, tokenizer: PreTrainedTokenizerBase) -> Rendering | Rejected:
    item = CONVERSATIONS[name]
    special_tokens = {key: str(token) for key, token in tokenizer.special_tokens_map.items()}
    dialect = VllmDialect(reasoning_effort=item.get("reasoning_effort"))
    request = ChatRequest(item["messages"], item.get("tools"), item.get("chat_template_kwargs", {}))
    try:
        return dialect.render_prompt(request, ChatTemplates({"default": source}, special_tokens))
    except Rejected as refusal:
        return refusal


def test_every_answer_of_the_real_server_is_reproduced() -> None:
    comparison = compare_own("vllm")
    assert comparison.counts.total() == len(TEMPLATES) * (len(CONVERSATIONS) - len(RESPELT))
    assert not comparison.unlike, comparison.report()


@pytest.mark.parametrize("name", RESPELT)
def test_a_spelling_that_only_the_http_schema_refuses_renders_like_the_accepted_one(
    name: str, tokenizer: PreTrainedTokenizerBase
) -> None:
    for source in TEMPLATES.values():
        ours = render(name, source, tokenizer)
        accepted = render(CONVERSATIONS[name]["same_as"], source, tokenizer)
        if isinstance(accepted, Rejected):
            assert isinstance(ours, Rejected)
        else:
            assert ours == accepted


def test_a_request_is_never_changed(tokenizer: PreTrainedTokenizerBase) -> None:
    before = copy.deepcopy(CONVERSATIONS)
    for name in CONVERSATIONS:
        for source in TEMPLATES.values():
            render(name, source, tokenizer)
    assert before == CONVERSATIONS


def test_lost_arguments_are_flagged_and_only_they(tokenizer: PreTrainedTokenizerBase) -> None:
    flagged = set()
    for name in CONVERSATIONS:
        ours = render(name, TEMPLATES["everything_as_text"], tokenizer)
        if isinstance(ours, Rendering) and "arguments_coerced" in ours.flags:
            flagged.add(name)
    assert flagged == {name for name, item in CONVERSATIONS.items() if item.get("coerced")}


def test_gpt_oss_prompts_are_those_of_the_real_server() -> None:
    pytest.importorskip("openai_harmony", reason="the extra 'harmony' is not installed")
    folder = require_shared("assets/tokenizers/gpt-oss")
    differences: dict[str, str] = {}
    for answer in suite.read_lines(suite.HARMONY_GOLDEN):
        item = CONVERSATIONS[answer["conversation"]]
        if item.get("reasoning_effort") == "none":
            continue  # refused when the dialect is made
        options = {"fixed_date": suite.HARMONY_DATE}
        if "reasoning_effort" in item:
            options["reasoning_effort"] = item["reasoning_effort"]
        dialect = VllmDialect.from_options(options, "gpt_oss", folder)
        request = ChatRequest(
            item["messages"], item.get("tools"), item.get("chat_template_kwargs", {})
        )
        try:
            ours = dialect.render_prompt(request, ChatTemplates({}, {}))
        except Rejected as refusal:
            if "error" not in answer and item["name"] not in REFUSED_FOR_HARMONY:
                differences[item["name"]] = f"refused: {refusal}"
            continue
        assert ours.ids is not None
        if "error" in answer or suite.hash_ids(ours.ids) != answer["sha256"]:
            differences[item["name"]] = f"{ours.text!r} for {answer}"
    assert differences == {}

"""Examples to rows: the ids the server sees, the text the model must emit, one end of turn."""

from __future__ import annotations

import gc
import json
import shutil
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from pipeline.config import RowSettings, config_from_mapping
from pipeline.errors import Rejected, UsageError
from pipeline.examples.decisions import find_decision_points
from pipeline.examples.example import TrainingExample, load_examples
from pipeline.rows.builder import RowBuilder
from pipeline.rows.table import BoundedRow
from pipeline.types import FLAGS, REJECT_CODES
from tests.conftest import ROOT, name_tokenizers, require_shared

BUNDLED = ROOT / "configs" / "tokenizer"
END = "<|im_end|>"
USER = {"role": "user", "content": "Hi"}
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)


def make_builder(tokenizer: str | Path = BUNDLED, **settings: Any) -> RowBuilder:
    values = {"input": "-", "output": "-", "tokenizer": str(tokenizer), **settings}
    return RowBuilder(config_from_mapping(values, "test"))


@lru_cache
def bundled() -> RowBuilder:
    return make_builder()


def raw(context: str, continuation: Any = "4", **values: Any) -> TrainingExample:
    return TrainingExample("a", context, continuation, **values)


def chat(continuation: Any = "Hello", *messages: dict[str, Any], **values: Any) -> TrainingExample:
    """Return an example whose context is ``messages``, or one greeting."""
    listed = list(messages) or [USER]
    return TrainingExample(
        "a", continuation=continuation, messages=listed, decision_idx=len(listed), **values
    )


def build(
    builder: RowBuilder, examples: Sequence[TrainingExample], max_len: int | None = None
) -> list[BoundedRow | Rejected]:
    """Return one row, or why there is none, for each example."""
    return builder.build([find_decision_points(each)[0] for each in examples], max_len)


def row_of(builder: RowBuilder, example: TrainingExample, max_len: int | None = None) -> BoundedRow:
    (row,) = build(builder, [example], max_len)
    assert isinstance(row, BoundedRow), row
    return row


def refusal_of(
    builder: RowBuilder, example: TrainingExample, max_len: int | None = None
) -> Rejected:
    (refusal,) = build(builder, [example], max_len)
    assert isinstance(refusal, Rejected), refusal
    return refusal


def texts_of(builder: RowBuilder, row: BoundedRow) -> tuple[str, str]:
    """Return the text of the context, and what the continuation adds to it."""
    context = builder.encoder.decode(row.input_ids[: row.context_len])
    whole = builder.encoder.decode(row.input_ids)
    assert whole.startswith(context)
    return context, whole[len(context) :]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(BUNDLED, tmp_path / "tokenizer"))


def edit_json(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), **values}), "utf-8")


@pytest.fixture
def bos_folder(folder: Path) -> Path:
    """A tokenizer that puts <|endoftext|> in front, and whose template writes it too."""
    edit_json(folder / "tokenizer_config.json", bos_token="<|endoftext|>")
    id_ = bundled().encoder.added_tokens["<|endoftext|>"]
    processor = {
        "type": "TemplateProcessing",
        "single": [
            {"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
        ],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {
            "<|endoftext|>": {"id": "<|endoftext|>", "ids": [id_], "tokens": ["<|endoftext|>"]}
        },
    }
    edit_json(folder / "tokenizer.json", post_processor=processor)
    template = folder / "chat_template.jinja"
    template.write_text("{{- bos_token -}}" + template.read_text("utf-8"), "utf-8")
    return folder


# ---- the ids the server sees


def test_context_ids_are_those_of_apply_chat_template(bundled_examples: Path) -> None:
    tokenizer: Any = AutoTokenizer.from_pretrained(BUNDLED)
    builder = make_builder(server="plain")
    examples = [each for each in load_examples(bundled_examples) if each.messages is not None]
    rows = build(builder, examples)
    assert len(rows) == len(examples) > 40
    for example, row in zip(examples, rows, strict=True):
        assert isinstance(row, BoundedRow), row
        assert example.messages is not None
        expected = tokenizer.apply_chat_template(
            example.messages[: example.decision_idx],
            tools=example.tools,
            add_generation_prompt=True,
            return_dict=False,
            **example.chat_template_kwargs,
        )
        assert row.input_ids[: row.context_len].tolist() == expected


def test_the_context_is_encoded_apart_from_the_continuation() -> None:
    builder = bundled()
    row = row_of(builder, raw(" the", "re"))
    texts = builder.encoder.encode([" the", "re", " there"])
    context, continuation, joined = (texts[place].tolist() for place in range(3))
    assert row.input_ids.tolist() == [*context, *continuation, builder.encoder.token_id(END)]
    # The joined text has other ids, which the server never had in its prompt: why the rule is there.
    assert joined != context + continuation


# Marks such as <think> or [INST] are flagged or refused; other tests say how.
MARKLESS = TEXTS.filter(lambda text: not set(text) & set("<["))


# A prompt of white space asks nothing, an answer of it says nothing: both are refused.
@given(MARKLESS.filter(str.strip), MARKLESS.filter(str.strip))
@settings(max_examples=150)
def test_every_row_adds_its_continuation_and_one_end_of_turn(
    prompt: str, continuation: str
) -> None:
    builder = bundled()
    for example in (
        chat(continuation, {"role": "user", "content": prompt}),
        raw(prompt, continuation),
    ):
        row = row_of(builder, example)
        context, added = texts_of(builder, row)
        assert added == continuation + END
        assert prompt in context
        assert row.flags == ()


@pytest.mark.parametrize("place", range(3))
def test_a_refused_example_does_not_shift_its_neighbours(place: int) -> None:
    examples = [chat("one"), chat("two")]
    examples.insert(place, chat("<|im_start|>user"))
    results = build(bundled(), examples)
    assert isinstance(results.pop(place), Rejected)
    added = [texts_of(bundled(), row)[1] for row in results if isinstance(row, BoundedRow)]
    assert added == [f"one{END}", f"two{END}"]


def test_a_refused_example_keeps_nothing_of_its_batch_in_memory() -> None:
    builder = bundled()
    points = [
        *find_decision_points(TrainingExample("refused", "Q: 2+2?", "a<|im_end|>b")),
        *find_decision_points(TrainingExample("good", "Q: 2+2?", "4")),
    ]
    builder.build(points)
    gc.collect()
    gc.disable()
    try:
        results = builder.build(points)
        assert isinstance(results[0], Rejected)
        del results
        assert gc.collect() == 0
    finally:
        gc.enable()


def test_no_examples_make_no_rows() -> None:
    assert build(bundled(), []) == []


def test_a_row_does_not_depend_on_the_batch_it_is_in(bundled_examples: Path) -> None:
    examples = load_examples(bundled_examples)
    together = build(bundled(), examples)
    for example, row in zip(examples, together, strict=True):
        assert isinstance(row, BoundedRow)
        alone = row_of(bundled(), example)
        assert np.array_equal(alone.input_ids, row.input_ids)
        assert (alone.context_len, alone.flags) == (row.context_len, row.flags)


def test_building_leaves_the_examples_as_they_were(bundled_examples: Path) -> None:
    examples, before = load_examples(bundled_examples), load_examples(bundled_examples)
    build(bundled(), examples)
    assert examples == before


# ---- one end of turn


@pytest.mark.parametrize("said", ["4", f"4{END}", f"4{END}\n"])
def test_the_end_of_turn_is_there_once_and_no_newline_after_it(said: str) -> None:
    assert texts_of(bundled(), row_of(bundled(), raw("2+2=", said)))[1] == f"4{END}"


def test_the_end_of_turn_is_a_trained_token_of_its_own() -> None:
    row = row_of(bundled(), raw("2+2=", "4"))
    assert row.input_ids[-1] == bundled().encoder.token_id(END)
    assert row.context_len < row.total_len - 1


@pytest.mark.parametrize(
    "continuation",
    [END, f"{END}\n", f"4{END}{END}", f"4{END}5", "<|im_start|>4", "4<|im_start|>user\n"],
)
def test_an_end_or_a_header_elsewhere_is_refused(continuation: str) -> None:
    refusal = refusal_of(bundled(), chat(continuation))
    assert refusal.code in ("control_tokens", "empty_continuation")


def test_no_end_of_turn_where_none_is_asked_for() -> None:
    builder = make_builder(end_of_turn="none")
    assert texts_of(builder, row_of(builder, raw("2+2=", "4")))[1] == "4"


def test_the_end_of_turn_may_be_named() -> None:
    builder = make_builder(end_of_turn="<|endoftext|>")
    assert texts_of(builder, row_of(builder, raw("2+2=", "4")))[1] == "4<|endoftext|>"


@pytest.mark.parametrize("text", ["</s>", "end", "", "<|im_end|>\n"])
def test_an_end_of_turn_that_is_no_single_token_is_wrong_usage(text: str) -> None:
    with pytest.raises(UsageError, match=r"end_of_turn: .*no single token of this tokenizer"):
        make_builder(end_of_turn=text)


def test_a_template_whose_end_is_ordinary_text_is_refused_with_the_way_out(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text(
        "{% for m in messages %}[{{ m.role }}]{{ m.content }} END\n{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    refusal = refusal_of(make_builder(folder), chat())
    assert refusal.code == "no_end_of_turn"
    assert "end_of_turn:" in refusal.reason


def test_without_a_template_a_raw_context_needs_the_end_of_turn_named(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()
    refusal = refusal_of(make_builder(folder), raw("2+2="))
    assert refusal.code == "no_end_of_turn"
    builder = make_builder(folder, end_of_turn=END)
    assert texts_of(builder, row_of(builder, raw("2+2=")))[1] == f"4{END}"


def test_without_a_template_messages_are_wrong_usage(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(UsageError, match="no chat template"):
        build(make_builder(folder, end_of_turn=END), [chat()])


# ---- raw contexts and the BOS


@pytest.mark.parametrize(
    ("raw_context", "text", "starts", "flags"),
    [
        ("chat", "2+2=", 0, ("no_bos",)),
        ("chat", "<|endoftext|>2+2=", 1, ()),
        ("chat", "<|endoftext|><|endoftext|>2+2=", 2, ("double_bos",)),
        ("completions", "2+2=", 1, ()),
        ("completions", "<|endoftext|>2+2=", 1, ()),
        ("completions", "<|endoftext|><|endoftext|>2+2=", 2, ("double_bos",)),
    ],
)
def test_a_raw_context_never_gets_a_second_bos(
    bos_folder: Path, raw_context: str, text: str, starts: int, flags: tuple[str, ...]
) -> None:
    builder = make_builder(bos_folder, raw_context=raw_context)
    row = row_of(builder, raw(text))
    assert builder.encoder.bos_id is not None
    count = int((row.input_ids[:3] == builder.encoder.bos_id).sum())
    assert count == starts
    assert row.flags == flags
    context, _ = texts_of(builder, row)
    assert context.removeprefix("<|endoftext|>" * starts) == "2+2="


def test_a_template_that_writes_the_bos_gives_one(bos_folder: Path) -> None:
    builder = make_builder(bos_folder)
    row = row_of(builder, chat())
    assert row.input_ids[:2].tolist() != [builder.encoder.bos_id] * 2
    assert row.input_ids[0] == builder.encoder.bos_id
    assert row.flags == ()


def test_a_cut_keeps_the_bos(bos_folder: Path) -> None:
    builder = make_builder(bos_folder, overlong="cut_left")
    row = row_of(builder, chat("x", {"role": "user", "content": "word " * 50}), max_len=20)
    assert row.total_len == 20
    assert row.input_ids[0] == builder.encoder.bos_id
    assert "truncated" in row.flags


def test_a_tokenizer_without_bos_has_no_flags_about_it() -> None:
    assert row_of(bundled(), raw("<|endoftext|><|endoftext|>x")).flags == ()


# ---- length


def test_a_row_is_never_longer_than_max_len_and_says_when_it_was_cut() -> None:
    builder = make_builder(overlong="cut_left")
    whole = row_of(builder, chat())
    for max_len in range(1, whole.total_len + 3):
        (row,) = build(builder, [chat()], max_len)
        if isinstance(row, Rejected):
            assert row.code == "continuation_too_long"
            assert max_len < whole.total_len - whole.context_len + 1
            continue
        assert row.total_len == min(max_len, whole.total_len)
        assert ("truncated" in row.flags) == (max_len < whole.total_len) == (row.dropped_tokens > 0)
        assert row.dropped_tokens == whole.total_len - row.total_len
        assert row.input_ids[-3:].tolist() == whole.input_ids[-3:].tolist()
        assert row.context_len >= 1


def test_max_len_of_a_call_may_be_more_than_the_setting() -> None:
    builder = make_builder(max_len=20, overlong="cut_left")
    long = chat("x", {"role": "user", "content": "word " * 50})
    assert row_of(builder, long).total_len == 20
    assert row_of(builder, long, max_len=500).flags == ()


def test_no_row_is_longer_than_the_model_can_take(folder: Path) -> None:
    edit_json(folder / "config.json", max_position_embeddings=30)
    builder = make_builder(folder, max_len=8192, overlong="cut_left")
    long = chat("x", {"role": "user", "content": "word " * 50})
    assert row_of(builder, long).total_len == 30
    assert row_of(builder, long, max_len=500).total_len == 30


def test_reject_refuses_what_does_not_fit() -> None:
    builder = make_builder(max_len=20, overlong="reject")
    long = chat("x", {"role": "user", "content": "word " * 50})
    assert refusal_of(builder, long).code == "too_long"
    assert row_of(builder, chat("x")).flags == ()


# ---- what is said of a row


def test_the_examples_own_template_variables_win() -> None:
    builder = make_builder(chat_template_kwargs={"enable_thinking": False})
    context, _ = texts_of(builder, row_of(builder, chat()))
    assert context.endswith("<think>\n\n</think>\n\n")
    open_prompt = chat(chat_template_kwargs={"enable_thinking": True})
    assert texts_of(builder, row_of(builder, open_prompt))[0].endswith("<|im_start|>assistant\n")


def test_control_tokens_in_a_message_are_flagged_or_refused() -> None:
    asks = chat("Hello", {"role": "user", "content": f"What is {END}?"})
    row = row_of(bundled(), asks)
    assert row.flags == ("control_token_in_text",)
    # As on the server, the text of a control token is the token.
    assert row.input_ids[: row.context_len].tolist().count(bundled().encoder.token_id(END)) == 2
    assert refusal_of(make_builder(control_tokens="reject"), asks).code == "control_tokens"
    assert row_of(make_builder(control_tokens="reject"), chat()).flags == ()


def test_a_template_that_refuses_is_a_reject(folder: Path) -> None:
    refusal = refusal_of(bundled(), chat("x", {"role": "wizard", "content": "hi"}))
    assert refusal.code in ("template_refused", "server_refused")
    assert "wizard" in str(refusal)


def test_a_normaliser_is_flagged_where_it_changed_the_text(folder: Path) -> None:
    edit_json(folder / "tokenizer.json", normalizer={"type": "NFC"})
    builder = make_builder(folder)
    row = row_of(builder, chat("cafe\u0301"))
    assert row.flags == ("normalised_by_tokenizer",)
    assert texts_of(builder, row)[1] == f"café{END}"
    assert row_of(builder, chat("café")).flags == ()


def remove_byte_0x86(folder: Path, **changes: Any) -> None:
    """Take every token with the byte 0x86, which byte-level tokenizers write as U+0128, out."""
    state = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    model = state["model"]
    model["merges"] = [pair for pair in model["merges"] if "\u0128" not in "".join(pair)]
    model["vocab"] = {text: id_ for text, id_ in model["vocab"].items() if "\u0128" not in text}
    edit_json(folder / "tokenizer.json", model=model, **changes)


def test_a_text_that_the_tokenizer_cannot_write_is_refused(folder: Path) -> None:
    remove_byte_0x86(folder)
    builder = make_builder(folder)
    # C4 86 in UTF-8; its neighbour is C4 87.
    assert refusal_of(builder, chat("a\u0106b")).code == "not_renderable"
    assert texts_of(builder, row_of(builder, chat("a\u0107b")))[1] == f"a\u0107b{END}"


def test_a_normaliser_does_not_excuse_another_loss(folder: Path) -> None:
    remove_byte_0x86(folder, normalizer={"type": "NFC"})
    builder = make_builder(folder)
    assert refusal_of(builder, chat("cafe\u0301 \u0106")).code == "not_renderable"
    assert row_of(builder, chat("cafe\u0301")).flags == ("normalised_by_tokenizer",)


def test_flags_and_codes_stay_in_their_closed_sets(bundled_examples: Path) -> None:
    strange = [
        chat(continuation, {"role": role, "content": content})
        for role in ("user", "system", "assistant", "tool", "developer", "wizard", "")
        for content in ("x", "", None, [], [{"type": "text", "text": "x"}], 3)
        for continuation in ("y", {"content": None}, {"content": "", "reasoning_content": "r"})
    ]
    results = build(bundled(), [*load_examples(bundled_examples), *strange])
    assert len(results) > len(strange)
    for result in results:
        if isinstance(result, Rejected):
            assert result.code in REJECT_CODES
        else:
            assert set(result.flags) <= FLAGS
            assert 1 <= result.context_len < result.total_len


ENDS = {
    "qwen2.5": "<|im_end|>",
    "llama-3.1": "<|eot_id|>",
    "gemma-3": "<end_of_turn>",
    "mistral-v0.3": "</s>",
    "qwen3.5": "<|im_end|>",
}


@pytest.mark.parametrize("name", name_tokenizers(ENDS))
def test_rows_of_the_families_end_as_their_servers_stop(name: str) -> None:
    end = ENDS[name]
    builder = make_builder(require_shared(f"assets/tokenizers/{name}"))
    for text in ("Left.", " hello world", "\n\nx ", "你好 🙂", "1234"):
        row = row_of(builder, chat(text))
        context, added = texts_of(builder, row)
        assert added in (text + end, f"</think>\n\n{text}{end}", f"\n</think>\n\n{text}{end}")
        assert context
        bos = builder.encoder.bos_id
        assert bos is None or row.input_ids[:2].tolist().count(bos) == 1
        assert not {"double_bos", "no_bos"} & set(row.flags)


@pytest.mark.parametrize("server", ["vllm", "sglang", "plain"])
def test_building_rows_changes_no_example(server: str) -> None:
    """Messages are shared by the lines of a conversation and remembered by their identity."""
    builder = make_builder(server=server, max_len=120)
    text = (ROOT / "tests/parity/conversations.jsonl").read_text("utf-8")
    examples = [
        TrainingExample(
            case["name"],
            continuation={"role": "assistant", "content": "Line 7.", "reasoning": "Seven."},
            messages=case["messages"],
            decision_idx=len(case["messages"]),
            tools=case.get("tools"),
            chat_template_kwargs=case.get("chat_template_kwargs", {}),
        )
        for case in map(json.loads, text.rstrip().split("\n"))
    ]
    before = repr(examples)
    rows = build(builder, examples)
    assert any(isinstance(row, BoundedRow) for row in rows)
    assert repr(examples) == before


def test_examples_with_other_template_kwargs_are_rendered_each_with_its_own() -> None:
    kwargs = [{}, {"enable_thinking": True}, {"enable_thinking": False}, {"enable_thinking": 0}]
    kwargs += [{"enable_thinking": True}]
    examples = [chat("Hello", chat_template_kwargs=each) for each in kwargs]
    together = build(bundled(), examples)
    alone = [row_of(bundled(), example) for example in examples]
    for row, expected in zip(together, alone, strict=True):
        assert isinstance(row, BoundedRow)
        assert row.input_ids.tolist() == expected.input_ids.tolist()
    assert len({tuple(row.input_ids.tolist()) for row in alone}) > 1


def test_a_folder_that_sglang_tells_by_its_name_needs_a_chat_template(
    bundled_tokenizer: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "vicuna-7b"
    shutil.copytree(bundled_tokenizer, folder)
    with pytest.raises(UsageError, match=r"vicuna_v1\.1"):
        RowBuilder(RowSettings(tokenizer=str(folder), server="sglang"))
    template = tmp_path / "chat.jinja"
    template.write_text("{{ messages[0].content }}", encoding="utf-8")
    RowBuilder(RowSettings(tokenizer=str(folder), server="sglang", chat_template=str(template)))

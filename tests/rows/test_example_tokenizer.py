"""The library face for one example at a time gives the rows of the batch job."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline import ExampleTokenizer, TrainingExample, load, load_examples
from pipeline.errors import Rejected, UsageError

torch = pytest.importorskip("torch")
END = "<|im_end|>"
TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello, how can I help you today?"},
    {"role": "user", "content": "Bye"},
]


@pytest.fixture(scope="module")
def tokenizer(bundled_tokenizer: Path) -> ExampleTokenizer:
    return ExampleTokenizer(str(bundled_tokenizer))


def text_of(tokenizer: ExampleTokenizer, example: TrainingExample) -> tuple[str, str]:
    """Return the text of the context and of the continuation."""
    assert example.input_ids is not None
    ids = example.input_ids.tolist()
    encoder = tokenizer._builder.encoder
    return encoder.decode(ids[: example.context_len]), encoder.decode(ids[example.context_len :])


def test_every_example_has_the_row_of_the_batch_job(
    quickstart_set: Path, bundled_examples: Path, bundled_tokenizer: Path
) -> None:
    tokenizer = ExampleTokenizer(str(bundled_tokenizer), max_len=768, overlong="cut_left")
    rows = load(quickstart_set)["train"]
    examples = load_examples(bundled_examples)
    assert len(examples) == len(rows)
    for example, row in zip(examples, rows, strict=True):
        prepared = example.tokenize(tokenizer, device="cpu")
        assert prepared is example
        assert example.input_ids.tolist() == row["input_ids"]
        assert (example.context_len, example.total_len) == (row["context_len"], row["total_len"])


def test_the_tensor_is_int64_and_as_long_as_the_row(tokenizer: ExampleTokenizer) -> None:
    example = tokenizer.prepare_example(TrainingExample("a", "2+2=", "4"), device="cpu")
    assert example.input_ids is not None
    assert example.input_ids.dtype == torch.int64
    assert example.input_ids.shape == (example.total_len,)
    assert example.input_ids.device.type == "cpu"
    assert text_of(tokenizer, example) == ("2+2=", f"4{END}")


def test_the_device_is_the_card_where_there_is_one(
    tokenizer: ExampleTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved: list[Any] = []
    real = torch.Tensor.to

    def move(tensor: Any, device: Any, dtype: Any) -> Any:
        moved.append(device)
        return real(tensor, device="cpu", dtype=dtype)

    monkeypatch.setattr(torch.Tensor, "to", move)
    for has_card, named in ((True, None), (False, None), (True, "cpu"), (False, "meta")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda has_card=has_card: has_card)
        tokenizer.prepare_example(TrainingExample("a", "2+2=", "4"), device=named)
    assert moved == ["cuda", "cpu", "cpu", "meta"]


@pytest.mark.gpu
def test_the_tensor_is_on_the_card(tokenizer: ExampleTokenizer) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA card here")
    example = tokenizer.prepare_example(TrainingExample("a", "2+2=", "4"))
    assert example.input_ids is not None
    assert example.input_ids.is_cuda


def test_messages_and_a_decision_point_make_an_example(tokenizer: ExampleTokenizer) -> None:
    example = tokenizer.prepare_from_messages(
        "a", TALK, 2, "Hey.", reason="shorter", memories=["m"], device="cpu"
    )
    context, continuation = text_of(tokenizer, example)
    assert context.endswith(f"<|im_start|>user\nHi{END}\n<|im_start|>assistant\n")
    assert "Hello" not in context
    assert continuation == f"Hey.{END}"
    assert (example.id, example.reason, example.memories) == ("a", "shorter", ["m"])
    assert example.messages == TALK


def test_the_better_response_may_be_a_message(tokenizer: ExampleTokenizer) -> None:
    better = {"content": "Hey.", "reasoning_content": "Be short."}
    example = tokenizer.prepare_from_messages("a", TALK, 2, better, device="cpu")
    assert text_of(tokenizer, example)[1] == f"<think>\nBe short.\n</think>\n\nHey.{END}"


def test_the_decision_point_may_be_the_end(tokenizer: ExampleTokenizer) -> None:
    example = tokenizer.prepare_from_messages("a", TALK, len(TALK), "Bye.", device="cpu")
    assert "Bye" in text_of(tokenizer, example)[0]


@pytest.mark.parametrize("decision_idx", [0, 1, 3, 5, -1, True, 2.0, "2"])
def test_a_wrong_decision_point_is_refused(tokenizer: ExampleTokenizer, decision_idx: Any) -> None:
    with pytest.raises(Rejected) as caught:
        tokenizer.prepare_from_messages("a", TALK, decision_idx, "x", device="cpu")
    assert caught.value.code == "bad_decision_idx"


@pytest.mark.parametrize(
    ("example", "code"),
    [
        (TrainingExample("", "x", "y"), "missing_field"),
        (TrainingExample("a", "", "y"), "empty_context"),
        (TrainingExample("a", "x", ""), "empty_continuation"),
        (TrainingExample("a", "x", "<|im_start|>y"), "control_tokens"),
        (TrainingExample("a", "x\ud800", "y"), "lone_surrogate"),
        (TrainingExample("a", "x", "y\udfff"), "lone_surrogate"),
        (TrainingExample("a", "x", "y", weight=float("nan")), "bad_json"),
        (TrainingExample("a", "x", "y", weight=-1.0), "wrong_type"),
    ],
    ids=str,
)
def test_what_cannot_become_a_row_is_refused_as_in_the_job(
    tokenizer: ExampleTokenizer, example: TrainingExample, code: str
) -> None:
    with pytest.raises(Rejected) as caught:
        tokenizer.prepare_example(example, device="cpu")
    assert caught.value.code == code
    assert example.input_ids is None


def test_max_len_of_a_call_takes_the_place_of_the_setting(bundled_tokenizer: Path) -> None:
    tokenizer = ExampleTokenizer(str(bundled_tokenizer), max_len=20, overlong="cut_left")

    def prepare(max_len: int | None) -> TrainingExample:
        example = TrainingExample("a", "word " * 60, "x")
        return tokenizer.prepare_example(example, max_len=max_len, device="cpu")

    assert prepare(None).total_len == 20
    assert prepare(10).total_len == 10
    long = prepare(500)
    assert long.total_len is not None
    assert long.total_len > 60


def test_settings_are_those_of_prepare(bundled_tokenizer: Path) -> None:
    tokenizer = ExampleTokenizer(str(bundled_tokenizer), end_of_turn="none", server="plain")
    example = tokenizer.prepare_example(TrainingExample("a", "2+2=", "4"), device="cpu")
    assert text_of(tokenizer, example) == ("2+2=", "4")
    with pytest.raises(UsageError, match="ExampleTokenizer: unknown key 'max_length'"):
        ExampleTokenizer(str(bundled_tokenizer), max_length=5)
    with pytest.raises(UsageError, match="no such folder"):
        ExampleTokenizer("/no/such/folder")


def test_preparing_twice_gives_the_same_and_leaves_the_words(tokenizer: ExampleTokenizer) -> None:
    example = TrainingExample("a", "2+2=", "4", reason="r", memories=["m"])
    before = json.dumps(example.to_dict())
    first = tokenizer.prepare_example(example, device="cpu").input_ids
    second = tokenizer.prepare_example(example, device="cpu").input_ids
    assert first is not None
    assert second is not None
    assert first.tolist() == second.tolist()
    assert json.dumps(example.to_dict()) == before


def test_tools_and_template_kwargs_are_those_of_a_line_of_a_file(
    tmp_path: Path, tokenizer: ExampleTokenizer
) -> None:
    tool = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
    kwargs = {"enable_thinking": False, "greeting": None}
    request = {"messages": TALK, "tools": [tool], "chat_template_kwargs": kwargs}
    line = {"id": "a", **request, "decision_idx": 2, "continuation": "Hey."}
    (tmp_path / "in.jsonl").write_text(json.dumps(line) + "\n", encoding="utf-8")
    (of_file,) = load_examples(tmp_path / "in.jsonl")
    expected = of_file.tokenize(tokenizer, device="cpu").input_ids
    found = tokenizer.prepare_from_messages(
        "a", TALK, 2, "Hey.", device="cpu", tools=[tool], chat_template_kwargs=kwargs
    )
    assert expected is not None
    assert found.input_ids is not None
    assert found.input_ids.tolist() == expected.tolist()
    assert "look" in text_of(tokenizer, found)[0]
    without = tokenizer.prepare_from_messages("a", TALK, 2, "Hey.", device="cpu")
    assert "look" not in text_of(tokenizer, without)[0]

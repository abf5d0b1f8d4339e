"""What the frozen step refuses: batches made by hand, rows too long for a model, rope that turns."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from pipeline.errors import BadRow, UnsupportedModel, UsageError
from pipeline.train.rope import find_turning_ropes, fix_rope
from pipeline.train.step import (
    context_frozen_loss,
    continuation_logits,
    count_items,
    two_phase_error,
)
from tests.tiny_models import FAMILIES, SIZES, VOCABULARY, build_model, collate, make_rows


@pytest.fixture(autouse=True, scope="module")
def _one_thread(one_torch_thread: None) -> None:
    """Every test here runs a tiny model."""


@pytest.fixture(scope="module")
def llama() -> Any:
    return build_model("llama", num_hidden_layers=1)


# --- batches made by hand ---

_FLOAT = torch.float32
BAD_BATCHES: dict[str, tuple[dict[str, Any], str]] = {
    "positions as floats": ({"position_ids": _FLOAT}, "position_ids is torch.float32; expected in"),
    "context positions as floats": (
        {"context_position_ids": torch.float64},
        "context_position_ids is torch.float64; expected int64",
    ),
    "ids as floats": ({"input_ids": _FLOAT}, "input_ids is torch.float32; expected int64"),
    "context ids as half": ({"context_input_ids": torch.float16}, "context_input_ids is torch.fl"),
    "ids as bools": ({"input_ids": torch.bool}, "input_ids is torch.bool; expected int64"),
    "labels as floats": ({"labels": _FLOAT}, "labels is torch.float32; expected int64"),
    "mask as floats": ({"attention_mask": _FLOAT}, "attention_mask is torch.float32"),
    "weights as bools": ({"weights": torch.bool}, "weights are torch.bool; expected float32"),
}


@pytest.mark.parametrize(("kinds", "message"), BAD_BATCHES.values(), ids=BAD_BATCHES.keys())
def test_what_is_no_integer_is_refused_by_its_name(
    llama: Any, kinds: dict[str, Any], message: str
) -> None:
    batch = collate(make_rows())
    batch |= {name: batch[name].to(kind) for name, kind in kinds.items()}
    with pytest.raises(UsageError, match=message):
        context_frozen_loss(llama, batch)


def test_integers_of_another_size_train_like_int64(llama: Any) -> None:
    batch = collate(make_rows(), "grouped")
    small = {
        name: value.to(torch.int32) if torch.is_tensor(value) and name != "weights" else value
        for name, value in batch.items()
    }
    assert torch.equal(context_frozen_loss(llama, small), context_frozen_loss(llama, batch))


def spoil(name: str, place: tuple[int, int] | int, value: float) -> dict[str, Any]:
    batch = collate(make_rows())
    batch[name][place] = value
    return batch


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (spoil("weights", 2, float("nan")), "row 2 of the batch has a weight below 0 or not fin"),
        (spoil("weights", 1, -1.0), "row 1 of the batch has a weight below 0"),
        (spoil("weights", 1, float("inf")), "row 1 of the batch has a weight below 0 or not fin"),
        (spoil("labels", (0, 7), 5), "row 0 of the batch has a label on padding"),
        (spoil("input_ids", (1, 1), -3), "row 1 of the batch has input_ids below 0"),
        (spoil("position_ids", (3, 0), -1), "row 3 of the batch has position_ids below 0"),
        (spoil("input_ids", (1, 1), VOCABULARY), "input_ids holds the id 97, but Llama.* has 97"),
        (collate(make_rows(), pad_token_id=200), "input_ids holds the id 200.*pad_token_id"),
    ],
)
def test_values_that_no_row_has_are_refused(
    llama: Any, batch: dict[str, Any], message: str
) -> None:
    with pytest.raises(BadRow, match=message):
        context_frozen_loss(llama, batch)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": torch.zeros(4, 3, dtype=torch.int64)}, r"labels is \[4, 3\], which does not"),
        ({"weights": torch.ones(3)}, r"weights is \[3\], which does not fit"),
        ({"weights": [1.0] * 4}, "weights is list; expected a tensor"),
        ({"attention_mask": torch.ones(4, 8, dtype=torch.int64)}, "spans 8 columns; expected"),
        ({"context_index": torch.zeros(2, dtype=torch.int64)}, r"index is \[2\], which does not"),
    ],
)
def test_tensors_that_do_not_fit_each_other_are_refused(
    llama: Any, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        context_frozen_loss(llama, collate(make_rows()) | changes)


def test_a_batch_without_rows_or_weights_is_refused(llama: Any) -> None:
    batch = collate(make_rows())
    empty = {name: value[:0] for name, value in batch.items() if torch.is_tensor(value)}
    with pytest.raises(UsageError, match="the batch has no rows"):
        context_frozen_loss(llama, empty)
    del batch["weights"]
    with pytest.raises(UsageError, match="expected the split or grouped layout, with weights"):
        context_frozen_loss(llama, batch)


@pytest.mark.parametrize("num_items", [0.0, -2.0, float("nan"), float("inf")])
def test_an_item_count_in_a_tensor_that_cannot_divide_is_refused(
    llama: Any, num_items: float
) -> None:
    with pytest.raises(UsageError, match="expected the positive count_items"):
        context_frozen_loss(llama, collate(make_rows()), torch.tensor(num_items))


def test_the_last_context_token_is_neither_counted_nor_trained(llama: Any) -> None:
    batch = collate(make_rows())
    told = {**batch, "labels": batch["labels"].clone()}
    told["labels"][:, 0] = batch["input_ids"][:, 0]
    assert torch.equal(count_items(told), count_items(batch))
    assert torch.equal(context_frozen_loss(llama, told), context_frozen_loss(llama, batch))


# --- rows that a model has no positions for ---


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("layout", ["split", "grouped"])
def test_rows_longer_than_the_positions_are_named_before_the_forward(
    family: str, layout: str
) -> None:
    model = build_model(family)
    fitting = make_rows(((60, 4), (3, 2)))
    assert context_frozen_loss(model, collate(fitting, layout)).isfinite()
    long = make_rows(((3, 2), (60, 5)))
    with pytest.raises(
        BadRow, match=r"^row 1 \(65 tokens, 59 of them frozen\): longer than the 64"
    ):
        context_frozen_loss(model, collate(long, layout))


def test_padding_beyond_the_positions_is_no_row_that_is_too_long() -> None:
    batch = collate(make_rows(((60, 2), (3, 20))))
    assert batch["attention_mask"].shape[1] > 64
    assert context_frozen_loss(build_model("llama"), batch).isfinite()


def test_a_factor_of_the_rope_lifts_the_limit() -> None:
    rope = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}
    rope["original_max_position_embeddings"] = 32
    model = build_model("llama", rope_parameters=rope, max_position_embeddings=32)
    assert context_frozen_loss(model, collate(make_rows(((60, 4),)))).isfinite()
    with pytest.raises(BadRow, match="longer than the 64 positions"):
        context_frozen_loss(model, collate(make_rows(((60, 5),))))


# --- rope that depends on the length ---

LIMIT = 16
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "short_factor": [1.0] * 4,
    "long_factor": [4.0] * 4,
    "original_max_position_embeddings": LIMIT,
}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}


def build_longrope() -> Any:
    sizes = FAMILIES["llama"] | {"rope_parameters": LONGROPE}
    return _build("phi3", sizes | {"original_max_position_embeddings": LIMIT})


def build_dynamic() -> Any:
    return _build("llama", SIZES | {"rope_parameters": DYNAMIC, "max_position_embeddings": LIMIT})


def build_layered() -> Any:
    """A model whose layers have a rope of their own by type, one of which turns."""
    ropes = {"full_attention": DYNAMIC, "sliding_attention": {"rope_type": "default"}}
    ropes["sliding_attention"]["rope_theta"] = 1e4
    settings = FAMILIES["gemma3_text"] | {
        "rope_parameters": ropes,
        "max_position_embeddings": LIMIT,
    }
    return _build("gemma3_text", settings)


def _build(family: str, settings: dict[str, Any]) -> Any:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **settings))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.train()


TURNING = [build_longrope, build_dynamic, build_layered]
every_turning = pytest.mark.parametrize("build", TURNING, ids=lambda build: build.__name__[6:])


@every_turning
@pytest.mark.parametrize("shapes", [((12, 10),), ((3, 2), (12, 10)), ((3, 2), (30, 4), (2, 20))])
def test_rows_on_two_sides_of_the_limit_are_refused_by_name(build: Any, shapes: Any) -> None:
    place = next(at for at, shape in enumerate(shapes) if sum(shape) > LIMIT)
    with pytest.raises(UnsupportedModel, match=rf"beyond 16 tokens.*row {place} \(.*fix_rope"):
        context_frozen_loss(build(), collate(make_rows(shapes)))


@every_turning
@pytest.mark.parametrize("layout", ["split", "grouped"])
def test_rows_within_the_limit_are_exact(build: Any, layout: str) -> None:
    batch = collate(make_rows(((3, 2), (12, 4), (1, 6))), layout)
    assert two_phase_error(build(), batch) < 1e-5


def test_rows_that_are_all_beyond_the_limit_of_longrope_are_exact() -> None:
    assert two_phase_error(build_longrope(), collate(make_rows(((20, 4), (14, 9))))) < 1e-5


@every_turning
def test_a_fixed_rope_is_exact_on_both_sides_and_is_that_of_the_longest_row(build: Any) -> None:
    model, turning = build().eval(), build().eval()
    fix_rope(model, 40)
    assert not find_turning_ropes(model)
    assert two_phase_error(model, collate(make_rows(((12, 10), (3, 2), (30, 9))))) < 1e-5
    ids = torch.tensor(make_rows(((30, 10),))[0]["input_ids"])[None]
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids).logits, turning(input_ids=ids).logits)


def test_fixing_the_rope_of_a_model_that_does_not_turn_changes_nothing(llama: Any) -> None:
    batch = collate(make_rows())
    before = continuation_logits(llama, batch)
    fix_rope(llama, 64)
    assert torch.equal(continuation_logits(llama, batch), before)


# --- what both forward passes would share, and what a model adds ---


@pytest.mark.parametrize("family", ["camembert", "data2vec-text", "xlm-roberta"])
def test_positions_counted_from_the_padding_id_are_refused(family: str) -> None:
    sizes = {name: SIZES[name] for name in SIZES if name != "num_key_value_heads"}
    config = AutoConfig.for_model(family, **sizes, is_decoder=True)
    with pytest.raises(UnsupportedModel, match="counts positions from its padding id on"):
        context_frozen_loss(AutoModelForCausalLM.from_config(config), collate(make_rows()))


def test_two_phase_error_sees_what_is_wrong_with_the_positions_of_both_phases(llama: Any) -> None:
    gpt2, batch = build_model("gpt2"), collate(make_rows())
    assert two_phase_error(gpt2, batch) < 1e-5
    moved = {name: batch[name] + 2 for name in ("position_ids", "context_position_ids")}
    assert two_phase_error(gpt2, batch | moved) > 0.01
    # Relative positions alone matter to a plain rope.
    assert two_phase_error(llama, batch | moved) < 1e-5


def test_two_phase_error_of_logits_that_are_no_numbers_is_no_number() -> None:
    model = build_model("llama", num_hidden_layers=1)
    model.lm_head.weight.data.fill_(float("nan"))
    assert not two_phase_error(model, collate(make_rows())) < 1e-5


def test_a_balancing_loss_that_two_phases_do_not_give_is_refused() -> None:
    model = build_model("mixtral")
    model.config.output_router_logits = True
    with pytest.raises(UnsupportedModel, match=r"balancing loss.*output_router_logits = False"):
        context_frozen_loss(model, collate(make_rows()))
    model.config.output_router_logits = False
    assert context_frozen_loss(model, collate(make_rows())).isfinite()


def test_a_model_that_answers_in_a_tuple_is_refused(llama: Any) -> None:
    model = build_model("llama", num_hidden_layers=1)
    forward = model.forward
    model.forward = lambda **inputs: tuple(forward(**inputs).values())
    with pytest.raises(UnsupportedModel, match="returned tuple for its cache"):
        context_frozen_loss(model, collate(make_rows()))

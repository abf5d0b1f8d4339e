"""What `context-frozen check --model` says before training."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import datasets
import pytest

from pipeline.cli.command import main
from pipeline.errors import UsageError
from pipeline.train.model_check import check_model, load_model
from tests.tiny_models import VOCABULARY, build_model, every_family, make_rows


def traits_of(model: Any, rows: Any = None, **budgets: int) -> dict[str, Any]:
    return {trait.name: trait for trait in check_model(model, rows, **budgets).traits}


def as_split(rows: list[dict[str, Any]]) -> datasets.Dataset:
    lengths = [{**row, "total_len": len(row["input_ids"])} for row in rows]
    return datasets.Dataset.from_list(lengths)


@every_family
def test_a_model_whose_phases_are_right_is_told_so_and_keeps_no_gradient(family: str) -> None:
    model = build_model(family)
    checked = check_model(model, as_split(make_rows()))
    assert checked.is_right, checked.traits
    assert {"phases_longest", "phases_shortest", "phases_ragged"} <= {
        trait.name for trait in checked.traits
    }
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_model_that_reads_its_cache_wrongly_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build_model("llama")
    forward = type(model).forward

    def forgetful(self: Any, *args: Any, **inputs: Any) -> Any:
        if not {"cache", "past_key_values"}.isdisjoint(inputs):
            inputs["position_ids"] = inputs["position_ids"] * 0
        return forward(self, *args, **inputs)

    monkeypatch.setattr(type(model), "forward", functools.wraps(forward)(forgetful))
    checked = check_model(model, as_split(make_rows()))
    assert not checked.is_right
    assert "train with prompt masking instead" in checked.traits[-1].meaning


def test_rows_beyond_the_positions_are_refused_with_what_to_do() -> None:
    traits = traits_of(build_model("llama"), as_split(make_rows(((60, 9), (4, 4)))))
    assert traits["positions"].value == "64"
    assert traits["phases_longest"].value == "refused"
    assert "prepare the set with max_len 64" in traits["phases_longest"].meaning
    assert traits["phases_shortest"].value != "refused"
    assert "memory" not in traits


def test_gradient_checkpointing_and_a_rope_that_turns_are_told() -> None:
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10_000.0}
    turning = traits_of(build_model("llama", rope_parameters=rope))["rope"]
    assert turning.value == "turns at 64"
    assert "fix_rope" in turning.meaning
    assert traits_of(build_model("llama"))["rope"].value == "fixed"
    experts = build_model("mixtral", output_router_logits=True)
    assert "output_router_logits = False" in traits_of(experts)["phases_made_up"].meaning


def test_memory_is_that_of_the_cache_and_grows_with_each_budget() -> None:
    model = build_model("llama")
    # 4 layers x keys and values x 2 heads x 8 x 2 bytes, in GiB for 2 ** 30 context tokens.
    expected = 4 * 2 * 2 * 8 * 2
    seen = traits_of(model, context_tokens=2**30, continuation_tokens=1)["memory"].evidence
    assert f"cache {expected:.2g} GiB of 1,073,741,824 context tokens" in seen
    values = [
        float(traits_of(model, context_tokens=1, continuation_tokens=tokens)["memory"].value[:-4])
        for tokens in (2**24, 2**25)
    ]
    assert values[1] == pytest.approx(2 * values[0], rel=0.01)


def test_the_command_says_it_as_a_table_and_as_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    build_model("qwen3").save_pretrained(tmp_path / "model")
    assert main(["check", "--model", str(tmp_path / "model")]) == 0
    assert "phases_made_up" in capsys.readouterr().out
    assert main(["check", "--model", str(tmp_path / "model"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["ok"]
    assert told["traits"]["class"]["value"] == "Qwen3ForCausalLM"


def test_a_folder_without_a_model_and_a_set_without_rows_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="expected the folder or Hub name of a causal LM"):
        load_model(str(tmp_path))
    empty = as_split(make_rows()).select([])
    with pytest.raises(UsageError, match="has no rows in its split train"):
        check_model(build_model("llama"), empty)


def test_ids_of_another_tokenizer_are_refused() -> None:
    row = {"id": "far", "input_ids": [VOCABULARY + 5, 3, 4], "context_len": 2, "weight": 1.0}
    traits = traits_of(build_model("llama"), as_split([row]))
    assert "load the model that the set's tokenizer belongs to" in traits["phases_longest"].meaning

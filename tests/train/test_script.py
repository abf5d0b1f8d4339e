"""The training scripts: the loss falls, a step's loss is normalised as a whole, a run resumes."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset

from pipeline import ContextFrozenCollator
from pipeline.errors import SealMismatch, UsageError
from scripts import train_context_frozen as script
from scripts import train_context_frozen_hf as hf_script
from scripts.train_context_frozen import TrainConfig
from tests.conftest import ROOT

# Ragged, of unlike weights, so that a mean of means is not the mean.
PLACES = [3, 5, 30, 55]


@pytest.fixture(autouse=True, scope="module")
def _one_thread(one_torch_thread: None) -> None:
    """Every test here trains a tiny model."""


@pytest.fixture
def make_settings(quickstart_set: Path, tmp_path: Path) -> Callable[..., TrainConfig]:
    def make(**changes: Any) -> TrainConfig:
        settings: dict[str, Any] = {
            "data": quickstart_set,
            "output": tmp_path / "run",
            "context_tokens": 2048,
            "continuation_tokens": 512,
            "device": "cpu",
        }
        return TrainConfig(**(settings | changes))

    return make


@pytest.fixture
def settings(make_settings: Callable[..., TrainConfig]) -> TrainConfig:
    return make_settings()


@pytest.fixture
def rows(settings: TrainConfig) -> Dataset:
    return script.load_rows(settings)


def weights_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_close(
    found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], atol: float
) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=atol)


def step_on(
    rows: Dataset, settings: TrainConfig, micro_batches: list[list[int]]
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Return the record of one step of plain SGD, and the weights after it: the gradient, seen."""
    model = script.build_model(settings)
    collate = ContextFrozenCollator(settings.layout)
    batches: Any = [collate(rows.with_format("numpy")[places]) for places in micro_batches]
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    record = script.take_step(model, batches, optimizer, lr=1.0, max_grad_norm=1e9)
    return record, weights_of(model)


def test_the_loss_falls_in_twenty_steps(settings: TrainConfig) -> None:
    log = script.main(dataclasses.replace(settings, max_steps=20, save_every=100))
    losses = [record["loss"] for record in log]
    assert len(losses) == 20
    assert sum(losses[-3:]) / 3 < losses[0] - 1.0
    assert script.read_log(settings.output / "log.jsonl") == log
    assert (settings.output / "model" / "model.safetensors").exists()


def test_two_micro_batches_of_two_rows_are_one_batch_of_four(
    rows: Dataset, settings: TrainConfig
) -> None:
    assert {rows[place]["weight"] for place in PLACES} == {0.5, 1.0, 2.0}
    whole, expected = step_on(rows, settings, [PLACES])
    halves, found = step_on(rows, settings, [PLACES[:2], PLACES[2:]])
    assert halves["tokens"] == whole["tokens"]
    assert halves["loss"] == pytest.approx(whole["loss"], abs=1e-5)
    assert halves["grad_norm"] == pytest.approx(whole["grad_norm"], rel=1e-4)
    assert_close(found, expected, atol=1e-5)


def test_the_loss_of_a_step_is_not_the_mean_of_its_micro_batches(
    rows: Dataset, settings: TrainConfig
) -> None:
    whole, _ = step_on(rows, settings, [PLACES])
    parts = [step_on(rows, settings, [half])[0]["loss"] for half in (PLACES[:1], PLACES[1:])]
    assert abs(sum(parts) / 2 - whole["loss"]) > 1e-4


@pytest.mark.parametrize("layout", ["split", "grouped"])
def test_a_resumed_run_is_the_undisturbed_one(
    make_settings: Callable[..., TrainConfig], tmp_path: Path, layout: str
) -> None:
    common = {"layout": layout, "epochs": 2, "accumulation": 3, "save_every": 2}
    whole = script.main(make_settings(output=tmp_path / "whole", **common))
    cut = make_settings(output=tmp_path / "cut", max_steps=4, **common)
    script.main(cut)
    resumed = script.main(dataclasses.replace(cut, max_steps=None, resume=True))
    drop = {"seconds", "stall_seconds"}
    assert [{key: record[key] for key in record.keys() - drop} for record in resumed] == [
        {key: record[key] for key in record.keys() - drop} for record in whole
    ]
    states = [
        torch.load(tmp_path / name / "checkpoint.pt", weights_only=True)["model"]
        for name in ("whole", "cut")
    ]
    assert_close(states[1], states[0], atol=0.0)


def test_steps_after_the_checkpoint_are_trained_again_and_logged_once(
    settings: TrainConfig,
) -> None:
    run = dataclasses.replace(settings, max_steps=3, save_every=2)
    script.main(run)
    log_file = settings.output / "log.jsonl"
    lost = {"step": 4, "epoch": 0, "loss": -1.0}
    log_file.write_text(log_file.read_text() + json.dumps(lost) + "\n")
    log = script.main(dataclasses.replace(run, max_steps=5, resume=True))
    assert [record["step"] for record in log] == [1, 2, 3, 4, 5]
    assert min(record["loss"] for record in log) > 0


def test_a_checkpoint_of_other_batches_is_refused(settings: TrainConfig) -> None:
    script.main(dataclasses.replace(settings, max_steps=1))
    with pytest.raises(UsageError, match="expected the same rows, budgets, seed"):
        script.main(dataclasses.replace(settings, resume=True, context_tokens=1024))


def test_a_finished_run_is_not_overwritten(settings: TrainConfig) -> None:
    settings.output.mkdir()
    (settings.output / "log.jsonl").touch()
    with pytest.raises(UsageError, match="holds a run; give --resume"):
        script.main(settings)


def test_there_must_be_a_checkpoint_to_resume_from(settings: TrainConfig) -> None:
    with pytest.raises(UsageError, match=r"checkpoint\.pt: no checkpoint to resume from"):
        script.main(dataclasses.replace(settings, resume=True))


def test_a_model_with_another_tokenizer_is_refused(settings: TrainConfig, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    for file in script.BUNDLED_MODEL.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    (other / "chat_template.jinja").write_text("{{ messages[0].content }}")
    with pytest.raises(SealMismatch, match="template"):
        script.load_rows(dataclasses.replace(settings, model=str(other)))


def test_bfloat16_autocast_trains_float32_weights(rows: Dataset, settings: TrainConfig) -> None:
    model = script.build_model(settings)
    before = weights_of(model)
    batch: Any = ContextFrozenCollator("split")(rows.with_format("numpy")[PLACES])
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    record = script.take_step(model, [batch], optimizer, lr=1.0, bf16=True)
    exact, _ = step_on(rows, settings, [PLACES])
    assert record["loss"] != exact["loss"]
    assert record["loss"] == pytest.approx(exact["loss"], rel=1e-2)
    after = weights_of(model)
    assert {value.dtype for value in after.values()} == {torch.float32}
    assert all(not torch.equal(after[name], before[name]) for name in after)


def test_a_plot_is_drawn_where_matplotlib_is(settings: TrainConfig, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    assert script.plot_losses([{"step": 1, "loss": 2.0}], tmp_path / "loss.png")
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_there_is_no_plot_and_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert not script.plot_losses([{"step": 1, "loss": 2.0}], tmp_path / "loss.png")


def test_the_hf_trainer_takes_the_same_steps_as_the_loop(
    make_settings: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    common = {"epochs": 1, "max_steps": 4, "warmup_steps": 0, "save_every": 100}
    loop_log = script.main(make_settings(output=tmp_path / "loop", **common))
    hf_log = hf_script.main(make_settings(output=tmp_path / "hf", **common))
    assert [record["loss"] for record in hf_log] == pytest.approx(
        [record["loss"] for record in loop_log], abs=2e-3
    )


def test_the_hf_trainer_resumes_where_it_was(
    make_settings: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    common = {"epochs": 2, "accumulation": 3, "save_every": 3}
    whole = hf_script.main(make_settings(output=tmp_path / "whole", **common))
    cut = make_settings(output=tmp_path / "cut", max_steps=3, **common)
    hf_script.main(cut)
    resumed = hf_script.main(dataclasses.replace(cut, max_steps=None, resume=True))
    assert len(whole) > 6
    assert [record["loss"] for record in resumed] == [record["loss"] for record in whole]


def test_two_ranks_train_one_model_on_disjoint_batches(
    settings: TrainConfig, tmp_path: Path
) -> None:
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"),
        *("--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0"),
        str(ROOT / "scripts" / "train_context_frozen.py"),
        *("--data", str(settings.data), "--output", str(settings.output), "--device", "cpu"),
        *("--context-tokens", "2048", "--continuation-tokens", "512", "--epochs", "1"),
        *("--accumulation", "2", "--max-steps", "2", "--warmup-steps", "0"),
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    subprocess.run(command, env=environment, check=True, capture_output=True, timeout=240)
    log = script.read_log(settings.output / "log.jsonl")

    # The same steps on one rank: each rank's micro-batches, side by side.
    rows = script.load_rows(settings)
    samplers = [
        script.LengthBatchSampler(rows, 2048, 512, settings.seed, rank=rank, world_size=2)
        for rank in (0, 1)
    ]
    plans = [list(sampler) for sampler in samplers]
    model = script.build_model(settings).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.lr, weight_decay=0.0)
    collate = ContextFrozenCollator("split")
    for step, record in enumerate(log):
        places = [batch for plan in plans for batch in plan[2 * step : 2 * step + 2]]
        batches: Any = [collate(rows.with_format("numpy")[batch]) for batch in places]
        expected = script.take_step(model, batches, optimizer, lr=settings.lr)
        assert record["loss"] == pytest.approx(expected["loss"], abs=1e-4)
        assert record["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-3)
    assert len(log) == 2

"""Feeding: what arrives, in which order, what it costs, and how it ends."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pipeline.errors import UsageError
from pipeline.train import feed
from pipeline.train.feed import DeviceFeeder, pick_device

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA card")


def make_batches(count: int) -> list[dict[str, Any]]:
    return [
        {"input_ids": torch.full((2, 3), place), "num_continuation_tokens": place}
        for place in range(count)
    ]


def test_batches_pass_through_untouched_on_the_cpu() -> None:
    batches = make_batches(3)
    feeder = DeviceFeeder(batches, device="cpu")
    assert all(fed is made for fed, made in zip(feeder, batches, strict=True))
    assert len(feeder) == 3


def test_every_iteration_reads_the_loader_again_and_adds_to_the_stats() -> None:
    feeder = DeviceFeeder(make_batches(2), device="cpu")
    assert [len(list(feeder)), len(list(feeder))] == [2, 2]
    assert feeder.stats.batches == 4


def test_stats_hold_the_time_that_the_loop_waited_for_the_loader(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(feed.time, "perf_counter", lambda: clock.now)

    def load() -> Iterator[dict[str, Any]]:
        for batch in make_batches(4):
            clock.now += 0.5
            yield batch

    feeder = DeviceFeeder(load(), device="cpu")
    for _ in feeder:
        clock.now += 10.0  # the step itself
    assert feeder.stats.host_seconds == 2.0
    assert feeder.stats.stall_seconds == 0.5


def test_an_exception_of_the_loader_ends_the_loop_with_itself() -> None:
    def load() -> Iterator[dict[str, Any]]:
        yield from make_batches(1)
        raise OSError("the disk is gone")

    feeder = DeviceFeeder(load(), device="cpu")
    with pytest.raises(OSError, match="the disk is gone"):
        list(feeder)
    assert feeder.stats.batches == 1


def test_without_a_card_the_default_is_the_cpu_and_the_log_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with caplog.at_level(logging.INFO):
        assert pick_device() == torch.device("cpu")
    assert "no CUDA card: batches stay on the CPU" in caplog.text


@pytest.mark.parametrize(("local_rank", "index"), [(None, 0), ("3", 3)])
def test_with_cards_the_default_is_that_of_the_local_rank(
    local_rank: str | None, index: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if local_rank is not None:
        monkeypatch.setenv("LOCAL_RANK", local_rank)
    assert pick_device() == torch.device("cuda", index)


def test_another_kind_of_device_is_refused() -> None:
    with pytest.raises(UsageError, match="the device is meta; expected a CUDA device or the CPU"):
        DeviceFeeder([], device="meta")


class CudaDiary:
    """Stands in for ``torch.cuda`` where there is no card, and writes down what is asked of it."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.compute = self.Stream("compute")

    def Stream(self, name: Any) -> Any:
        label = name if name == "compute" else "copy"
        return SimpleNamespace(
            label=label, wait_event=lambda event: self.lines.append(f"{label} waits {event.label}")
        )

    def Event(self, enable_timing: bool = False) -> Any:
        event = SimpleNamespace(label="", query=lambda: True, elapsed_time=lambda end: 250.0)

        def record(stream: Any) -> None:
            if not enable_timing:
                event.label = f"copy {self.lines.count('copied on copy')}"
                self.lines.append(f"copied on {stream.label}")

        event.record = record
        return event

    def stream(self, stream: Any) -> Any:
        diary = self

        class Entered:
            def __enter__(self) -> None:
                diary.lines.append(f"on {stream.label}")

            def __exit__(self, *error: object) -> None:
                diary.lines.append("off")

        return Entered()

    def current_stream(self, device: Any) -> Any:
        return self.compute


@pytest.fixture
def diary(monkeypatch: pytest.MonkeyPatch) -> CudaDiary:
    diary = CudaDiary()
    for name in ("Stream", "Event", "stream", "current_stream"):
        monkeypatch.setattr(torch.cuda, name, getattr(diary, name))
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor.clone())
    monkeypatch.setattr(
        torch.Tensor,
        "record_stream",
        lambda tensor, stream: diary.lines.append(f"kept for {stream.label}"),
    )
    moved = torch.Tensor.to
    monkeypatch.setattr(
        torch.Tensor, "to", lambda tensor, device, **how: moved(tensor, "cpu", **how)
    )
    return diary


def test_the_next_batch_is_copied_before_this_one_is_waited_for(diary: CudaDiary) -> None:
    feeder = DeviceFeeder(make_batches(2), device="cuda:0")
    fed = []
    for batch in feeder:
        diary.lines.append(f"step {batch['num_continuation_tokens']}")
        fed.append(batch["input_ids"])
    copying = ["on copy", "copied on copy", "off"]
    assert diary.lines == [
        *copying,
        *copying,
        *["compute waits copy 0", "kept for compute", "step 0"],
        *["compute waits copy 1", "kept for compute", "step 1"],
    ]
    assert torch.equal(torch.stack(fed), torch.stack([b["input_ids"] for b in make_batches(2)]))
    assert feeder.stats.device_seconds == 0.5


def test_a_loop_that_stops_early_leaves_the_rest_of_the_loader_unread(diary: CudaDiary) -> None:
    source = iter(make_batches(5))
    for _ in DeviceFeeder(source, device="cuda:0"):
        break
    assert [batch["num_continuation_tokens"] for batch in source] == [2, 3, 4]


@pytest.mark.gpu
@needs_cuda
def test_batches_arrive_on_the_card_unchanged_while_it_computes() -> None:
    batches = [{"input_ids": torch.full((64, 8192), place), "count": place} for place in range(20)]
    weight = torch.randn(2048, 2048, device="cuda")
    feeder = DeviceFeeder(batches)
    sums = []
    for batch in feeder:
        assert batch["input_ids"].is_cuda
        for _ in range(5):
            weight = torch.nn.functional.normalize(weight @ weight)
        sums.append(batch["input_ids"].sum())
        del batch
    assert [int(total) for total in sums] == [64 * 8192 * place for place in range(20)]
    assert feeder.stats.batches == 20


@pytest.mark.gpu
@needs_cuda
def test_feeding_stalls_a_step_of_eight_times_8k_tokens_by_less_than_a_hundredth() -> None:
    batches = [{"input_ids": torch.zeros(8, 8192, dtype=torch.int64)} for _ in range(30)]
    weight = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    feeder = DeviceFeeder(batches)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in feeder:
        for _ in range(50):
            weight = weight @ weight * 1e-3
    end.record()
    torch.cuda.synchronize()
    step_seconds = start.elapsed_time(end) / 1000 / len(batches)
    assert feeder.stats.device_seconds / len(batches) < 0.01 * step_seconds

"""Train a causal LM on a prepared set with frozen contexts: a complete small trainer to copy from.

    python scripts/train_context_frozen.py             # bundled data, a tiny model, the CPU
    python scripts/train_context_frozen.py --resume    # go on from the last checkpoint
    torchrun --nproc-per-node 8 scripts/train_context_frozen.py --data out/set --model MODEL --bf16

Writes log.jsonl, model/, checkpoint.pt and, where matplotlib is installed, loss.png to ``output``.
``scripts/train_context_frozen_hf.py`` does the same with transformers' Trainer.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal, TextIO

import torch
import torch.distributed as dist
import tyro
from datasets import Dataset, DatasetDict
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from transformers import AutoConfig, AutoModelForCausalLM

from pipeline import (
    ContextFrozenCollator,
    ContextGroupSampler,
    DeviceFeeder,
    LengthBatchSampler,
    context_frozen_loss,
    load,
    prepare,
)
from pipeline.config import config_from_mapping
from pipeline.errors import UsageError
from pipeline.train.feed import pick_device
from pipeline.train.step import count_items

logger = logging.getLogger(__name__)

ROOT = Path(__file__).resolve().parents[1]
BUNDLED_EXAMPLES = ROOT / "configs" / "data" / "examples.jsonl"
BUNDLED_MODEL = ROOT / "configs" / "tokenizer"
Batch = Mapping[str, Any]
Record = dict[str, float]


@dataclass(frozen=True)
class TrainConfig:
    """Settings of a run. The defaults suit the bundled data; a real model wants a smaller lr."""

    data: Path | None = None
    """A prepared set; default: the bundled examples, prepared into OUTPUT/set."""
    model: str | None = None
    """A folder or a Hub name; default: a tiny random Llama for the bundled tokenizer."""
    output: Path = Path("out/train")
    """Folder of everything that is written."""
    layout: Literal["split", "grouped"] = "split"
    """grouped runs a context that several rows of a batch share once."""
    context_tokens: int = 4096
    """Most cells of a batch's frozen block, in tokens."""
    continuation_tokens: int = 1024
    """Most cells of a batch's block with gradients, in tokens."""
    accumulation: int = 2
    """Batches of an optimizer step, on each rank."""
    epochs: int = 8
    max_steps: int | None = None
    """Optimizer steps after which the run ends, if the epochs are not over before."""
    lr: float = 3e-3
    """Learning rate of AdamW."""
    warmup_steps: int = 4
    """Optimizer steps over which the learning rate rises to lr; it is constant from then on."""
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    bf16: bool = False
    """Run the model under bfloat16 autocast; weights and optimizer stay float32."""
    device: str | None = None
    """Default: cuda:LOCAL_RANK where there is a card, else the CPU."""
    save_every: int = 20
    """Optimizer steps between checkpoints; the end of the run always has one."""
    resume: bool = False
    """Go on from OUTPUT/checkpoint.pt."""
    seed: int = 0


def main(config: TrainConfig) -> list[Record]:
    """Train as ``config`` says and return the log, a record for each optimizer step."""
    if config.output.joinpath("log.jsonl").exists() and not config.resume:
        raise UsageError(f"{config.output} holds a run; give --resume, or another --output")
    with process_group(config):
        rows, model = load_rows(config), build_model(config)
        log = train(model, rows, config)
        if _rank() == 0:
            model.save_pretrained(config.output / "model")
            plot_losses(log, config.output / "loss.png")
    return log


def load_rows(config: TrainConfig) -> Dataset:
    """Return the rows to train on."""
    return load_splits(config)["train"]


def load_splits(config: TrainConfig) -> DatasetDict:
    """Return the splits of the set, their seal checked against the model's tokenizer."""
    folder = config.data or config.output / "set"
    if config.data is None and not folder.exists():
        if _world_size() > 1:
            raise UsageError("several ranks cannot prepare one set; prepare it first, give --data")
        settings = {
            "input": [str(BUNDLED_EXAMPLES)],
            "tokenizer": str(BUNDLED_MODEL),
            "output": str(folder),
            "max_len": 768,
        }
        prepare(config_from_mapping(settings, "the bundled examples"))
    return load(folder, tokenizer=config.model or str(BUNDLED_MODEL))


def build_model(config: TrainConfig) -> Any:
    """Return the model to train, in float32, on the CPU."""
    torch.manual_seed(config.seed)
    if config.model is not None:
        return AutoModelForCausalLM.from_pretrained(config.model, dtype=torch.float32)
    tiny = AutoConfig.from_pretrained(BUNDLED_MODEL)
    return AutoModelForCausalLM.from_config(tiny, dtype=torch.float32)


def build_sampler(rows: Dataset, config: TrainConfig) -> LengthBatchSampler | ContextGroupSampler:
    """Return the sampler of this rank's batches, of like lengths or of like contexts."""
    kind = ContextGroupSampler if config.layout == "grouped" else LengthBatchSampler
    return kind(rows, config.context_tokens, config.continuation_tokens, config.seed)


class Run:
    """A run in progress: what a checkpoint holds, and where it is."""

    def __init__(self, model: Any, rows: Dataset, config: TrainConfig) -> None:
        self.model = model
        self.optimizer = torch.optim.AdamW(
            model.parameters(), lr=config.lr, weight_decay=config.weight_decay
        )
        self.sampler = build_sampler(rows, config)
        self.epoch, self.batches_done, self.step = 0, 0, 0

    def save(self, path: Path) -> None:
        """Write a checkpoint; a run that is killed meanwhile keeps the one before."""
        # The loader reads ahead, so at an epoch's end the sampler may have begun the next.
        self.sampler.set_epoch(self.epoch)
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "sampler": self.sampler.state_dict(self.batches_done),
            "step": self.step,
        }
        partial = path.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(path)

    def restore(self, path: Path) -> None:
        """Go to where a checkpoint was written."""
        if not path.exists():
            raise UsageError(f"{path}: no checkpoint to resume from; leave --resume out")
        state = torch.load(path, map_location="cpu", weights_only=True)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.sampler.load_state_dict(state["sampler"])
        self.epoch = state["sampler"]["epoch"]
        self.batches_done, self.step = state["sampler"]["batches_done"], state["step"]


def train(model: Any, rows: Dataset, config: TrainConfig) -> list[Record]:
    """Train ``model`` in place with this script's own loop; return the whole run's log."""
    config.output.mkdir(parents=True, exist_ok=True)
    device = _device(config)
    run = Run(model.to(device).train(), rows, config)
    checkpoint, log_file = config.output / "checkpoint.pt", config.output / "log.jsonl"
    log: list[Record] = []
    if config.resume:
        run.restore(checkpoint)
        # Steps after the checkpoint are trained again.
        log = [record for record in read_log(log_file) if record["step"] <= run.step]
    wrapped = DistributedDataParallel(model) if _world_size() > 1 else model
    loader = DataLoader(
        rows.with_format("arrow"),  # type: ignore[arg-type]
        sampler=run.sampler,
        batch_size=None,
        collate_fn=ContextFrozenCollator(config.layout),
    )
    feeder = DeviceFeeder(loader, device)
    steps_left = None if config.max_steps is None else max(config.max_steps - run.step, 0)
    with (log_file if _rank() == 0 else Path(os.devnull)).open("w", encoding="utf-8") as lines:
        _write_records(log, lines)
        for micro_batches in islice(_read_steps(run, feeder, config), steps_left):
            # Of the seed and the step alone, so that dropout needs no state in the checkpoint.
            torch.manual_seed(config.seed + run.step * _world_size() + _rank())
            start = time.perf_counter()
            lr = config.lr * min(1.0, (run.step + 1) / max(config.warmup_steps, 1))
            result = take_step(
                wrapped, micro_batches, run.optimizer, lr, config.max_grad_norm, config.bf16
            )
            run.step += 1
            run.batches_done += len(micro_batches)
            record: Record = {
                "step": run.step,
                "epoch": run.epoch,
                **result,
                "lr": lr,
                "seconds": time.perf_counter() - start,
                "stall_seconds": feeder.stats.stall_seconds,
            }
            log.append(record)
            _write_records([record], lines)
            logger.info("step %d  epoch %d  loss %.4f", run.step, run.epoch, result["loss"])
            if run.step % config.save_every == 0 and _rank() == 0:
                run.save(checkpoint)
    if _rank() == 0:
        run.save(checkpoint)
    return log


def _read_steps(run: Run, feeder: DeviceFeeder, config: TrainConfig) -> Iterator[list[Batch]]:
    """Yield the batches of each optimizer step left; an epoch's last step may have fewer."""
    while run.epoch < config.epochs:
        run.sampler.set_epoch(run.epoch)
        batches = iter(feeder)
        while micro_batches := list(islice(batches, config.accumulation)):
            yield micro_batches
        run.epoch, run.batches_done = run.epoch + 1, 0


def take_step(
    model: nn.Module,
    micro_batches: Sequence[Batch],
    optimizer: torch.optim.Optimizer,
    lr: float,
    max_grad_norm: float = 1.0,
    bf16: bool = False,
) -> Record:
    """Take one optimizer step on ``micro_batches``, as on one batch of all their rows.

    Returns ``loss`` (mean over all trained tokens of the step and all ranks, by weight),
    ``grad_norm`` before clipping, and ``tokens``, the trained tokens of this rank.
    """
    # A mean of means would give tokens of short micro-batches more weight than their share.
    num_items = torch.stack([count_items(batch) for batch in micro_batches]).sum()
    if _world_size() > 1:
        dist.all_reduce(num_items)
    loss = torch.zeros((), device=num_items.device)
    for place, batch in enumerate(micro_batches):
        with contextlib.ExitStack() as stack:
            if isinstance(model, DistributedDataParallel) and place < len(micro_batches) - 1:
                stack.enter_context(model.no_sync())
            with torch.autocast(num_items.device.type, torch.bfloat16, enabled=bf16):
                part = context_frozen_loss(model, batch, num_items)
            # DDP averages gradients over the ranks, but the loss is a sum of their parts.
            (part * _world_size()).backward()
        loss += part.detach()
    if _world_size() > 1:
        dist.all_reduce(loss)
    grad_norm = nn.utils.clip_grad_norm_(model.parameters(), max_grad_norm)
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.step()
    optimizer.zero_grad()
    return {
        "loss": loss.item(),
        "grad_norm": grad_norm.item(),
        "tokens": sum(batch["num_continuation_tokens"] for batch in micro_batches),
    }


def read_log(path: Path) -> list[Record]:
    """Return the records of a log file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def plot_losses(log: Sequence[Record], path: Path) -> bool:
    """Draw the loss over the steps as a PNG; return whether matplotlib is there to do so."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        logger.info("no plot: matplotlib is not installed")
        return False
    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.add_subplot(xlabel="optimizer step", ylabel="loss per trained token (nats)")
    axes.plot([record["step"] for record in log], [record["loss"] for record in log])
    figure.savefig(path, dpi=150)
    return True


def _write_records(records: Sequence[Record], lines: TextIO) -> None:
    for record in records:
        print(json.dumps(record), file=lines, flush=True)


def _device(config: TrainConfig) -> torch.device:
    return torch.device(config.device) if config.device else pick_device()


@contextlib.contextmanager
def process_group(config: TrainConfig) -> Iterator[None]:
    """Be one of the ranks that torchrun started, if it did."""
    if "WORLD_SIZE" not in os.environ:
        yield
        return
    device = _device(config)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def _rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def _world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    main(tyro.cli(TrainConfig, description=__doc__))

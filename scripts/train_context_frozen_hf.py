"""The training of ``train_context_frozen.py`` with transformers' Trainer: its loss is overridden.

python scripts/train_context_frozen_hf.py             # bundled data, a tiny model, the CPU
python scripts/train_context_frozen_hf.py --resume    # go on from the Trainer's last checkpoint
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import tyro
from datasets import Dataset
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments

from pipeline import ContextFrozenCollator, context_frozen_loss
from pipeline.frozen.step import count_items
from scripts.train_context_frozen import (
    Record,
    TrainConfig,
    build_model,
    build_sampler,
    load_rows,
    process_group,
)

Batch = Mapping[str, Any]


def main(config: TrainConfig) -> list[Record]:
    """Train as ``config`` says, save OUTPUT/model, and return a record for each optimizer step."""
    with process_group(config):
        trainer = build_trainer(build_model(config), load_rows(config), config)
        trainer.train(resume_from_checkpoint=config.resume or None)
        trainer.save_model(str(config.output / "model"))
    return [record for record in trainer.state.log_history if "loss" in record]


class ContextFrozenTrainer(Trainer):
    """transformers' Trainer with the context-frozen loss.

    Args:
        plan: this rank's batches of the whole run, as places in the train dataset. To the Trainer
            it is one epoch, since the Trainer takes the first epoch's length for every epoch's.
    """

    loss_is_scaled_for_ga = True

    def __init__(self, *args: Any, plan: list[list[int]], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.plan = plan

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Return a plain loader: the plan is for one rank, and the Trainer moves the batches."""
        return DataLoader(
            self.train_dataset.with_format("numpy"),  # type: ignore[union-attr]
            batch_sampler=self.plan,
            collate_fn=self.data_collator,
        )

    def get_batch_samples(
        self, epoch_iterator: Iterator[Batch], num_batches: int, device: torch.device
    ) -> tuple[list[Batch], Tensor]:
        """Return a step's batches, and the weighted count of their trained tokens on all ranks."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        items = sum((count_items(batch) for batch in batches), torch.zeros(())).to(device)
        return batches, self.accelerator.reduce(items, reduction="sum")

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Batch,
        return_outputs: bool = False,
        num_items_in_batch: Tensor | None = None,
    ) -> Tensor:
        """Return this batch's part of the step's loss, for each rank, since DDP averages."""
        del return_outputs  # asked for by evaluation alone
        loss = context_frozen_loss(model, inputs, num_items_in_batch)
        return loss * self.accelerator.num_processes


def build_trainer(model: Any, rows: Dataset, config: TrainConfig) -> ContextFrozenTrainer:
    """Return a trainer with the settings of ``config``."""
    arguments = TrainingArguments(
        output_dir=str(config.output),
        remove_unused_columns=False,  # else the Trainer drops context_len and weight
        gradient_accumulation_steps=config.accumulation,
        num_train_epochs=1,
        max_steps=config.max_steps or -1,
        learning_rate=config.lr,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=config.warmup_steps,
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        bf16=config.bf16,
        use_cpu=config.device == "cpu",
        save_steps=config.save_every,
        logging_steps=1,
        report_to=[],
        seed=config.seed,
    )
    sampler = build_sampler(rows, config)
    return ContextFrozenTrainer(
        model,
        arguments,
        train_dataset=rows,
        data_collator=ContextFrozenCollator(config.layout),
        plan=[batch for _ in range(config.epochs) for batch in sampler],
    )


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    main(tyro.cli(TrainConfig, description=__doc__))

"""The training of ``train_context_frozen.py`` with `pipeline.train.trainer`.

python scripts/train_context_frozen_hf.py             # bundled data, a tiny model, the CPU
python scripts/train_context_frozen_hf.py --resume    # go on from the Trainer's last checkpoint
"""

from __future__ import annotations

import logging
from typing import Any

import tyro
from datasets import DatasetDict
from transformers import TrainingArguments

from pipeline import ContextFrozenCollator
from pipeline.train.trainer import ContextFrozenTrainer
from scripts.train_context_frozen import (
    Record,
    TrainConfig,
    build_model,
    build_sampler,
    load_splits,
    process_group,
)


def main(config: TrainConfig) -> list[Record]:
    """Train as ``config`` says, save OUTPUT/model, and return a record for each optimizer step."""
    with process_group(config):
        trainer = build_trainer(build_model(config), load_splits(config), config)
        trainer.train(resume_from_checkpoint=config.resume or None)
        trainer.save_model(str(config.output / "model"))
    return [record for record in trainer.state.log_history if "loss" in record]


def build_trainer(model: Any, splits: DatasetDict, config: TrainConfig) -> ContextFrozenTrainer:
    """Return a trainer with the settings of ``config``; it evaluates where it saves.

    That is on the split validation, where the set has one.
    """
    rows, held_out = splits["train"], splits.get("validation")
    arguments = TrainingArguments(
        output_dir=str(config.output),
        gradient_accumulation_steps=config.accumulation,
        num_train_epochs=1,  # to the Trainer: the plan has the batches of all epochs
        max_steps=config.max_steps or -1,
        learning_rate=config.lr,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=config.warmup_steps,
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        bf16=config.bf16,
        use_cpu=config.device == "cpu",
        save_steps=config.save_every,
        eval_strategy="no" if held_out is None else "steps",
        eval_steps=config.save_every,
        logging_steps=1,
        report_to=[],
        seed=config.seed,
    )
    sampler = build_sampler(rows, config)
    return ContextFrozenTrainer(
        model,
        arguments,
        train_dataset=rows,
        eval_dataset=held_out,
        data_collator=ContextFrozenCollator(config.layout),
        plan=[batch for _ in range(config.epochs) for batch in sampler],
    )


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    main(tyro.cli(TrainConfig, description=__doc__))

"""transformers' Trainer with the context-frozen loss, in training and in evaluation.

It deals the rows itself: accelerate gives ranks unequally many batches, so that DDP waits for ever,
or rows twice (accelerate 1.15, `BatchSamplerShard` with and without ``even_batches``).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback
from transformers.trainer_utils import EvalLoopOutput

from pipeline.errors import UsageError
from pipeline.train.collate import ContextFrozenCollator
from pipeline.train.step import context_frozen_loss, count_items

Batch = Mapping[str, Any]

# Settings of the Trainer that would have no effect on this loss or on these loaders, and the value
# that asks for none.
_WITHOUT_EFFECT: dict[str, Any] = {
    "label_smoothing_factor": 0.0,
    "dataloader_drop_last": False,
    "train_sampling_strategy": "random",
    "group_by_length": False,
}


class EvenBatches:
    """Batch sampler of one rank: each row in one batch of one rank, on all ranks equally many.

    Args:
        count: number of rows.
        batch_size: rows of a batch. Where the ranks do not come out even, some batches have one row
            less, or, where there are too few rows for that, one more.
        rank, world_size: this process among those that share the rows.
        seed: of the order, which is another in each epoch; None: the order of the rows.

    >>> [list(EvenBatches(5, 2, rank, 2, seed=None)) for rank in (0, 1)]
    [[[0, 1], [3]], [[2], [4]]]
    """

    def __init__(
        self, count: int, batch_size: int, rank: int, world_size: int, seed: int | None
    ) -> None:
        if count < world_size:
            raise UsageError(f"{count} rows for {world_size} ranks; expected at least one each")
        self.count, self.rank, self.world_size, self.seed = count, rank, world_size, seed
        self.steps = min(math.ceil(count / (batch_size * world_size)), count // world_size)
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Let the next iteration be that of ``epoch``."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Return this rank's batches of an epoch; every rank and every epoch has as many."""
        return self.steps

    def __iter__(self) -> Iterator[list[int]]:
        order = np.arange(self.count)
        if self.seed is not None:
            order = np.random.default_rng([self.seed, self.epoch]).permutation(self.count)
        batches = np.array_split(order, self.steps * self.world_size)
        yield from (batch.tolist() for batch in batches[self.rank :: self.world_size])


class _EpochTeller(TrainerCallback):
    """Tells a sampler which epoch begins, after a resume too."""

    def __init__(self, sampler: EvenBatches) -> None:
        self.sampler = sampler

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # An epoch that was ended may be short of a whole number by a rounding.
        self.sampler.set_epoch(int((state.epoch or 0) + 1e-6))


class ContextFrozenTrainer(Trainer):
    """transformers' Trainer with the context-frozen loss.

    Each row is trained once an epoch, on one rank, in batches of ``per_device_train_batch_size``
    rows. ``eval_loss`` is that of all evaluation rows as of one batch: the mean over trained tokens,
    by weight. The arguments are those of Trainer; ``data_collator`` is by default
    ``ContextFrozenCollator("split")``.

    Args:
        plan: this rank's batches of the whole run, as places in the train dataset, for batches of
            unlike numbers of rows (`pipeline.train.sampling`). To the Trainer it is one epoch, since that
            takes the first epoch's length for every epoch's: ``num_train_epochs`` is 1 then.

    Raises `UsageError` for settings that would have no effect.
    """

    loss_is_scaled_for_ga = True

    def __init__(
        self, *args: Any, plan: Sequence[Sequence[int]] | None = None, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        if len(args) < 3 and kwargs.get("data_collator") is None:
            self.data_collator = ContextFrozenCollator("split")
        self.plan = plan
        self._refuse_settings()

    def _refuse_settings(self) -> None:
        for name, usual in _WITHOUT_EFFECT.items():
            found = getattr(self.args, name, usual)
            if found != usual:
                raise UsageError(
                    f"{name} is {found!r}, which the context-frozen loss does not follow; "
                    f"expected {usual!r}: leave it out"
                )
        for name in ("compute_metrics", "compute_loss_func", "preprocess_logits_for_metrics"):
            if getattr(self, name, None) is not None:
                raise UsageError(
                    f"{name}: this trainer computes the context-frozen loss alone, in training and "
                    "in evaluation; leave it out"
                )
        if self.plan is not None and self.args.num_train_epochs != 1:
            raise UsageError(
                f"num_train_epochs is {self.args.num_train_epochs}, and plan has the batches of the "
                "whole run; set it to 1, or each would be trained as often"
            )

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Return the loader of this rank's batches; it is not prepared, the Trainer moves batches."""
        rows = self._read_rows(self.train_dataset, "train_dataset")
        if self.plan is not None:
            return self._make_loader(rows, list(self.plan))
        batch_size = self._train_batch_size or self.args.train_batch_size
        place = (self.args.process_index, self.args.world_size)
        sampler = EvenBatches(len(rows), batch_size, *place, self.args.data_seed or self.args.seed)
        self.remove_callback(_EpochTeller)
        self.add_callback(_EpochTeller(sampler))
        return self._make_loader(rows, sampler)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Any]:
        """Return the loader of this rank's share, which may be a row that another rank counts."""
        held: Any = self.eval_dataset if eval_dataset is None else eval_dataset
        if isinstance(held, str):
            held = self.eval_dataset[held]  # type: ignore[index,call-overload]
        rows = self._read_rows(held, "eval_dataset")
        place = (self.args.process_index, self.args.world_size)
        if len(rows) < self.args.world_size:
            # Every rank takes the step, without which FSDP would wait.
            return self._make_loader(rows, [[min(self.args.process_index, len(rows) - 1)]])
        sampler = EvenBatches(len(rows), self.args.eval_batch_size, *place, None)
        return self._make_loader(rows, sampler)

    def get_test_dataloader(self, test_dataset: Any) -> DataLoader[Any]:
        """Return the loader of this rank's share."""
        return self.get_eval_dataloader(test_dataset)

    def _read_rows(self, rows: Any, name: str) -> Any:
        if rows is None:
            raise UsageError(f"{name}: none given; expected a loaded split")
        if not hasattr(rows, "__len__") or not len(rows):
            raise UsageError(
                f"{name} is {type(rows).__name__} without rows that can be counted; "
                "expected a loaded split with some"
            )
        return rows.with_format("numpy") if hasattr(rows, "with_format") else rows

    def _make_loader(self, rows: Any, batches: Any) -> DataLoader[Any]:
        return DataLoader(
            rows,
            batch_sampler=batches,
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
        )

    def get_batch_samples(
        self, epoch_iterator: Iterator[Batch], num_batches: int, device: torch.device
    ) -> tuple[list[Batch], Tensor]:
        """Return a step's batches, and the weighted count of their trained tokens on all ranks."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        items = sum((count_items(batch) for batch in batches), torch.zeros(())).to(device)
        return batches, self._sum_over_ranks(items)

    def _sum_over_ranks(self, values: Tensor) -> Tensor:
        summed: Any = self.accelerator.reduce(values, reduction="sum")
        return summed

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: Batch,
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Return this batch's part of the step's loss, for each rank, since DDP averages."""
        if num_items_in_batch is None:
            loss = context_frozen_loss(model, inputs)
        else:
            loss = context_frozen_loss(model, inputs, num_items_in_batch)
            loss = loss * self.accelerator.num_processes
        return (loss, {}) if return_outputs else loss

    def evaluation_loop(
        self,
        dataloader: DataLoader[Any],
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Return the loss of all rows of all ranks as of one batch; there are no predictions."""
        del description, prediction_loss_only, ignore_keys
        count = len(dataloader.dataset)  # type: ignore[arg-type]
        inner: Any = self.model
        model: Any = self._wrap_model(inner, training=False)
        was_training = model.training
        model.eval()
        sums = torch.zeros(2, dtype=torch.float64, device=self.args.device)
        with torch.no_grad():
            for batch in dataloader:
                moved = self._prepare_inputs(batch)
                with self.compute_loss_context_manager():
                    loss = context_frozen_loss(model, moved, 1)
                if self.args.process_index < count:
                    sums += torch.stack([loss.double(), count_items(moved).double()])
                self.control = self.callback_handler.on_prediction_step(
                    self.args, self.state, self.control
                )
        model.train(was_training)
        total, items = self._sum_over_ranks(sums).tolist()
        metrics = {f"{metric_key_prefix}_loss": total / items}
        nothing: Any = ()
        return EvalLoopOutput(nothing, label_ids=None, metrics=metrics, num_samples=count)

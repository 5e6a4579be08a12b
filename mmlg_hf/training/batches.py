"""A Trainer whose batches are all of one size, of streams too, and whose evaluation leaves training as it was."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import IterableDataset
from transformers import Trainer, TrainingArguments
from transformers.trainer_utils import has_length

from ..errors import LearngeneError
from .resuming import last_checkpoint, output_of


class WholeBatches(IterableDataset):
    """The rows of a stream as far as they fill whole batches of all processes.

    accelerate then gives each process its part of every batch. It would fill up an odd last batch by rows of the
    first, and give a process whole shards of a `datasets` stream, so that one could end before the others.
    """

    def __init__(self, stream: Any, rows: int):
        self.stream, self.rows = stream, rows

    def __iter__(self) -> Iterator[Any]:
        batch = []
        for row in self.stream:
            batch.append(row)
            if len(batch) == self.rows:
                yield from batch
                batch = []

    def __len__(self) -> int:
        return len(self.stream) // self.rows * self.rows

    def __getattr__(self, name: str) -> Any:
        if name not in ("set_epoch", "generator"):  # what the epochs of streams are shuffled by
            raise AttributeError(name)
        return getattr(self.stream, name)


def too_few(told: str, purpose: str, batch_size: int, batches: int = 1) -> LearngeneError:
    """The error of data that fill no batch (or no update of several batches): `told` is "5 rows, fewer" or so."""
    needed = "one batch" if batches == 1 else f"one update's {batches} batches"
    return LearngeneError(
        f"the {purpose} data has {told} than {needed} of {batch_size} on each process: lower the batch size"
    )


def check_rows(dataset: Any, batch_size: int, processes: int, purpose: str) -> None:
    """Refuse data with fewer rows than one batch of all processes; a stream shows it when it is read."""
    if has_length(dataset) and len(dataset) < batch_size * processes:
        raise too_few(f"{len(dataset)} rows, fewer", purpose, batch_size)


def check_is_data(dataset: Any, purpose: str) -> None:
    """Refuse what is no dataset: several splits, a name."""
    if isinstance(dataset, Mapping):
        raise LearngeneError(
            f"the {purpose} data is a {type(dataset).__name__} with the splits {', '.join(map(repr, dataset))}: give "
            "one of them"
        )
    rows = hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__") and not isinstance(dataset, str)
    if not rows and not isinstance(dataset, IterableDataset):
        told = repr(dataset) if isinstance(dataset, str) else f"a {type(dataset).__name__}"
        raise LearngeneError(f"the {purpose} data is {told}: give a dataset or a stream, as load_dataset(...) returns")


class WholeBatchTrainer(Trainer):
    """A `Trainer` of losses that compare the rows of a batch, or are means over one.

    - `args.remove_unused_columns` is set to False, since collators need the raw columns, and
      `args.dataloader_drop_last` to True, since the loss of a smaller batch cannot be compared. Streams, too, give
      whole batches only, and every process reads the stream itself: a batch need not be of tensors alone.
    - Data without one complete batch are refused.
    - Pictures may come from the collator's workers as 8-bit pixels, which become floats on the device.
    - Evaluation neither changes nor depends on the random state of training.
    - Parts of the loss that a subclass notes are logged beside it, over the same steps.
    - A loss, or a weight to be saved, that is NaN or infinity stops the run: the last good checkpoint is kept.
    """

    # The loss is a mean over one batch: the Trainer must divide it by the accumulation steps.
    loss_is_scaled_for_ga = False

    def __init__(self, model: Any = None, args: Any = None, *others: Any, **kwargs: Any) -> None:
        args = TrainingArguments("tmp_trainer") if args is None else args  # as the stock Trainer has it
        args.remove_unused_columns = False
        args.dataloader_drop_last = True
        if not math.isfinite(args.learning_rate):
            raise LearngeneError(f"learning_rate is {args.learning_rate}: it takes a finite number")
        # The first process would send the others parts of its batches, whose texts have different lengths.
        args.accelerator_config.dispatch_batches = False  # before the accelerator is built from it
        self._parts: dict[str, list[Tensor]] = {}
        super().__init__(model, args, *others, **kwargs)
        # The same for releases that know no `loss_is_scaled_for_ga`, and take a model with **kwargs to scale its loss.
        self.model_accepts_loss_kwargs = False

    def _prepare_inputs(self, inputs: Any) -> Any:
        """Move a batch to the device, and make floats there of pixels that the collator left 8-bit."""
        inputs = super()._prepare_inputs(inputs)
        finish = getattr(self.data_collator, "finish", None)
        return inputs if finish is None else finish(inputs)

    def note_part(self, name: str, loss: Tensor) -> None:
        """Keep a part of a training step's loss, a scalar, to be logged as `loss_NAME`."""
        self._parts.setdefault(f"loss_{name}", []).append(loss.detach())

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add the mean of each part of the loss since the last log of `loss`, over all processes as that is."""
        if "loss" in logs:
            for name, values in self._parts.items():
                logs[name] = round(self.accelerator.gather(torch.stack(values).mean()).mean().item(), 4)
            self._parts = {}
        super().log(logs, *args, **kwargs)

    def contrasts_rows(self) -> bool:
        """Whether the loss contrasts the rows of a batch with each other, so that one row teaches nothing."""
        return True

    def _get_dataloader(self, dataset: Any, description: str, batch_size: int, *args: Any, **kwargs: Any) -> Any:
        """Return the stock dataloader of whole batches; training, evaluation and prediction come by here."""
        purpose = description.lower()
        check_is_data(dataset, purpose)
        processes = 1 if self.accelerator.dataloader_config.split_batches else self.args.world_size
        rows = batch_size * processes
        if rows < 2 and self.contrasts_rows():
            raise LearngeneError(
                f"a {purpose} batch of one pair has no negatives, so that there is nothing to tell it from: set the "
                "batch size to 2 or more (gradient accumulation adds no negatives)"
            )
        if isinstance(dataset, IterableDataset):
            if self.args.world_size > 1 and getattr(dataset, "_distributed", None) is not None:
                raise LearngeneError(
                    f"the {purpose} stream was already split by node: give the whole stream, which the trainer splits"
                )
            dataset = WholeBatches(dataset, rows)
        else:
            check_rows(dataset, batch_size, processes, purpose)
        return super()._get_dataloader(dataset, description, batch_size, *args, **kwargs)

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, *args: Any, **kwargs: Any) -> Any:
        """Return the batches of one update; those that a stream has too few of at its end are left out.

        The stock Trainer would add their gradients to the next epoch's first update.
        """
        batches, count = super().get_batch_samples(epoch_iterator, num_batches, *args, **kwargs)
        if len(batches) == num_batches:
            return batches, count
        if self.state.global_step == 0:
            raise too_few("fewer rows", "training", self._train_batch_size, num_batches)
        return [], count

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        """Take the stock step; a loss that is no number stops the run before the weights are changed by it."""
        loss = super().training_step(*args, **kwargs)
        if not torch.isfinite(loss).all():
            raise LearngeneError(
                f"the loss became {loss.item()} at step {self.state.global_step + 1}: look for values in the data "
                f"that are not finite, or lower the learning rate ({self._told_of_checkpoints()})"
            )
        return loss

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the model, unless a weight became NaN or infinity: then nothing is written."""
        model: Any = self.model
        for name, parameter in model.named_parameters():
            if not torch.isfinite(parameter.detach()).all():
                raise LearngeneError(
                    f"{name} is no longer finite after step {self.state.global_step}, so the model is not saved: "
                    f"lower the learning rate ({self._told_of_checkpoints()})"
                )
        super().save_model(output_dir, _internal_call)

    def _told_of_checkpoints(self) -> str:
        kept = last_checkpoint(output_of(self.args))
        return f"the last good checkpoint is {kept!r}" if kept else "there is no checkpoint yet"

    def evaluation_loop(self, dataloader: Any, *args: Any, **kwargs: Any) -> Any:
        """Run the stock loop from the seed of `args`, then put torch's random state back as it was."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self.args.seed)
            output = super().evaluation_loop(dataloader, *args, **kwargs)
        if not output.num_samples:  # a stream
            raise too_few("fewer rows", "evaluation", self.args.eval_batch_size)
        return output

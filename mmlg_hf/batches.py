"""A Trainer whose batches are all of one size, of streams too, and whose evaluation leaves training as it was."""

from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import IterableDataset
from transformers import Trainer, TrainingArguments
from transformers.trainer_utils import has_length

from .errors import LearngeneError


class WholeBatches(IterableDataset):
    """A stream cut to whole batches: rows that do not fill the last one of all processes are left out.

    Args:
        stream: rows, in the same order on every process.
        size: rows in one batch of all processes together.
        purpose: what the rows are for, such as "training", for the error.
    """

    def __init__(self, stream: Any, size: int, purpose: str) -> None:
        self.stream, self.size, self.purpose = stream, size, purpose

    def __iter__(self) -> Iterator[Any]:
        """Yield rows in whole batches; a stream without one is a `LearngeneError`."""
        rows: list[Any] = []
        found = 0
        for row in self.stream:
            rows.append(row)
            if len(rows) == self.size:
                yield from rows
                found, rows = found + 1, []
        # A worker sees some of the stream's shards only, and may well have less than a batch.
        if not found and torch.utils.data.get_worker_info() is None:
            raise _too_few(self.purpose, len(rows), self.size)

    def set_epoch(self, epoch: int) -> None:
        """Tell a shuffled stream which epoch it is."""
        if hasattr(self.stream, "set_epoch"):
            self.stream.set_epoch(epoch)


def _too_few(purpose: str, rows: int, size: int) -> LearngeneError:
    return LearngeneError(
        f"the {purpose} data has {rows} rows, fewer than one batch of {size} (all processes together): lower the "
        "batch size"
    )


def check_rows(dataset: Any, size: int, purpose: str) -> None:
    """Refuse data with fewer rows than one batch of all processes, `size`; a stream shows it when it is read."""
    if has_length(dataset) and len(dataset) < size:
        raise _too_few(purpose, len(dataset), size)


class WholeBatchTrainer(Trainer):
    """A `Trainer` of losses that compare the rows of a batch, or are means over one.

    - `args.remove_unused_columns` is set to False, since collators need the raw columns, and
      `args.dataloader_drop_last` to True, since the loss of a smaller batch cannot be compared. Streams, too, give
      whole batches only, and every process reads the stream itself: a batch need not be of tensors alone.
    - Data without one complete batch are refused.
    - Evaluation neither changes nor depends on the random state of training.
    """

    # The loss is a mean over one batch: the Trainer must divide it by the accumulation steps.
    loss_is_scaled_for_ga = False

    def __init__(self, model: Any = None, args: Any = None, *others: Any, **kwargs: Any) -> None:
        args = TrainingArguments("tmp_trainer") if args is None else args  # as the stock Trainer has it
        args.remove_unused_columns = False
        args.dataloader_drop_last = True
        args.accelerator_config.dispatch_batches = False  # before the accelerator is built from it
        super().__init__(model, args, *others, **kwargs)

    def contrasts_rows(self) -> bool:
        """Whether the loss contrasts the rows of a batch with each other, so that one row teaches nothing."""
        return True

    def _get_dataloader(self, dataset: Any, description: str, batch_size: int, *args: Any, **kwargs: Any) -> Any:
        size, purpose = batch_size * self.args.world_size, description.lower()
        if size == 1 and self.contrasts_rows():
            raise LearngeneError(
                f"the {purpose} batch is one pair (batch size 1 on one process), which has no negatives to be "
                "contrasted with, and accumulation adds none: raise the batch size"
            )
        check_rows(dataset, size, purpose)
        if not has_length(dataset):
            dataset = WholeBatches(dataset, size, purpose)
        return super()._get_dataloader(dataset, description, batch_size, *args, **kwargs)

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """Run the stock loop from the seed of `args`, then put torch's random state back as it was."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self.args.seed)
            return super().evaluation_loop(*args, **kwargs)

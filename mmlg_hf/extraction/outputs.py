"""An ancestor's outputs over all rows, computed once: in shards, by all processes side by side, gone on with."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.utils.data
from accelerate import PartialState
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import DataLoader, Subset
from tqdm.auto import tqdm

from ..data import processor_key
from ..data.identity import PROCESSING_VERSION, fingerprint_data, fingerprint_model
from ..errors import LearngeneError
from ..saving import whole_file
from .ancestors import ancestor_outputs

# Rows of a file: few enough that little is lost with a process that dies.
SHARD = 4096


class RowsWithOutputs(torch.utils.data.Dataset):
    """Rows, and with each what the ancestor says of it, from files that are mapped into memory."""

    def __init__(self, rows: Any, files: Sequence[Path], shard: int) -> None:
        self.rows, self.files, self.shard = rows, list(files), shard
        self._open: dict[int, dict[str, Tensor]] = {}

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {**self.rows[index], **self._outputs(index)}

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Return several rows at once."""
        together = getattr(self.rows, "__getitems__", None)
        rows = together(indices) if together else [self.rows[index] for index in indices]
        return [{**row, **self._outputs(index)} for row, index in zip(rows, indices, strict=True)]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[index] for index in range(len(self)))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}}  # a worker maps the files itself

    def _outputs(self, index: int) -> dict[str, Tensor]:
        number, row = divmod(int(index), self.shard)
        if number not in self._open:
            self._open[number] = load_file(self.files[number])
        return {name: values[row] for name, values in self._open[number].items()}


def folder_of(cache_dir: str | os.PathLike, prefix: str, *made_by: Any) -> Path:
    """The folder of outputs that are made by these, whose texts its name is a hash of."""
    key = hashlib.sha256(" ".join(map(str, made_by)).encode()).hexdigest()
    return Path(cache_dir, f"{prefix}-{key[:32]}")


def cache_ancestor_outputs(
    ancestor: Any,
    rows: Any,
    collator: Any,
    processor: Any,
    cache_dir: str | os.PathLike,
    *,
    batch_size: int = 256,
    num_workers: int = 0,
    shard: int = SHARD,
) -> RowsWithOutputs:
    """Add the ancestor's outputs to rows, computed once and kept in files of `shard` rows.

    The files are keyed by all that makes them: the ancestor's weights and config, the content of the rows, and the
    processor, which pads the texts. Those that are there are not made again, so that a pass that was cut off is gone
    on with; of several processes each makes its part of them.

    Args:
        rows: a `PictureRows`, or a `Dataset` as `process_pairs` leaves it.
        collator: makes a batch of rows; its `finish`, if it has one, is called on the ancestor's device.
        cache_dir: folder of the files; made if missing.
        batch_size: rows in one forward pass.
        num_workers: processes that read pictures.
        shard: rows of a file.
    """
    what = (fingerprint_model(ancestor), fingerprint_data(rows), processor_key(processor))
    folder = folder_of(cache_dir, "ancestor-outputs", *what, PROCESSING_VERSION, shard)
    files = [folder / f"{start // shard:06d}.safetensors" for start in range(0, len(rows), shard)]
    state = PartialState()
    local = int(os.environ.get("LOCAL_WORLD_SIZE", state.num_processes))
    # A second time for nodes that share no folder: what others made is not there.
    for first, count in ((state.process_index, state.num_processes), (state.local_process_index, local)):
        missing = [number for number, file in enumerate(files) if number % count == first and not _is_whole(file)]
        for number in tqdm(missing, desc="ancestor", disable=None if state.is_main_process else True):
            part = Subset(rows, range(number * shard, min((number + 1) * shard, len(rows))))
            loader = DataLoader(part, batch_size=batch_size, collate_fn=collator, num_workers=num_workers)
            outputs = [outputs_of_batch(ancestor, collator, batch) for batch in loader]
            with whole_file(files[number]) as path:
                save_file({name: torch.cat([batch[name] for batch in outputs]) for name in outputs[0]}, path)
        state.wait_for_everyone()
    absent = [file.name for file in files if not file.is_file()]
    if absent:
        raise LearngeneError(f"{str(folder)!r} lacks {', '.join(absent[:3])}, which another process should have made")
    return RowsWithOutputs(rows, files, shard)


def outputs_of_batch(ancestor: Any, collator: Any, batch: dict[str, Any]) -> dict[str, Tensor]:
    """Return `ancestor_outputs` of a batch on the ancestor's device, on the CPU; the collator's `finish` is called."""
    device = next(ancestor.parameters()).device
    batch = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in batch.items()}
    finish = getattr(collator, "finish", None)
    found = ancestor_outputs(ancestor, batch if finish is None else finish(batch))
    return {name: values.cpu().contiguous() for name, values in found.items()}


def _is_whole(file: Path) -> bool:
    """Whether a file is there and can be opened; one that is damaged is made again."""
    try:
        return file.is_file() and bool(load_file(file))
    except (SafetensorError, OSError):
        return False

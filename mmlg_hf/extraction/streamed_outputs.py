"""An ancestor's outputs over the rows of a stream: computed when a row is first met, and kept by what it holds."""

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import TrainerCallback

from ..data import processor_key
from ..data.identity import PROCESSING_VERSION, fingerprint_model
from ..saving import whole_file
from .outputs import SHARD, folder_of

ROW_KEY = "row_key"  # the column of what `key_of` returns
KEY_BYTES = 16


def key_of(row: Mapping[str, Any]) -> bytes:
    """Hash what the ancestor is given of a row: the pixels as they were read, and the tokens of the text."""
    found = hashlib.blake2b(digest_size=KEY_BYTES)
    for name in ("pixel_values", "input_ids"):
        if name in row:
            values = torch.as_tensor(row[name])
            found.update(f"{name} {values.dtype} {tuple(values.shape)}".encode())
            found.update(values.contiguous().numpy().tobytes())
    return found.digest()


def keys_of(rows: Sequence[Mapping[str, Any]]) -> Tensor:
    """The `key_of` of each row, [rows, KEY_BYTES] of uint8, as a batch carries them."""
    return torch.tensor([list(key_of(row)) for row in rows], dtype=torch.uint8)


class StreamedOutputs(TrainerCallback):
    """Outputs of one ancestor by `key_of` the rows, in files of a folder that runs on the same data share.

    A stream's rows have no number and may come in any order: the first pass computes, later passes and later runs
    read. Each process writes files of its own, and what others wrote meanwhile is found when the next run begins. As a
    callback of a Trainer it writes what is not yet a whole file when a checkpoint is saved and at the end. In memory
    it keeps a key and a place of each row, about 200 bytes.

    Args:
        ancestor, processor: what the outputs are of.
        cache_dir: folder of the files; made if missing.
        shard: rows of a file.
    """

    def __init__(self, ancestor: Any, processor: Any, cache_dir: str | os.PathLike, shard: int = SHARD) -> None:
        made_by = (fingerprint_model(ancestor), ancestor.dtype, processor_key(processor), PROCESSING_VERSION)
        self.folder, self.shard = folder_of(cache_dir, "streamed-outputs", *made_by), shard
        self._files: list[dict[str, Tensor]] = []
        self._places: dict[bytes, tuple[int, int]] = {}
        self._new: dict[bytes, dict[str, Tensor]] = {}
        for file in sorted(self.folder.glob("*.safetensors")):
            try:
                self._add(load_file(file))
            except (SafetensorError, OSError, KeyError):
                continue  # damaged: its rows are computed again

    def __len__(self) -> int:
        return len(self._places) + len(self._new)

    def of_batch(self, keys: Tensor, compute: Callable[[Tensor], dict[str, Tensor]]) -> dict[str, Tensor]:
        """Return the outputs of a batch, those that are not known by `compute`.

        Args:
            keys: `keys_of` the rows, [B, KEY_BYTES].
            compute: returns the outputs of the rows with the given numbers [rows], by name and each [rows, D].

        Returns:
            by name [B, D], on the device of the keys.
        """
        names = [bytes(key) for key in keys.tolist()]
        unknown = [row for row, key in enumerate(names) if key not in self._places and key not in self._new]
        if unknown:
            found = {name: values.cpu() for name, values in compute(torch.tensor(unknown, device=keys.device)).items()}
            for position, row in enumerate(unknown):
                self._new[names[row]] = {name: values[position].clone() for name, values in found.items()}
        rows = [self._row(key) for key in names]
        if len(self._new) >= self.shard:
            self.write()
        return {name: torch.stack([row[name] for row in rows]).to(keys.device) for name in rows[0]}

    def write(self) -> None:
        """Write the rows that are in memory alone, as one file."""
        if not self._new:
            return
        rows = list(self._new.values())
        content = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
        content[ROW_KEY] = torch.tensor([list(key) for key in self._new], dtype=torch.uint8)
        name = hashlib.sha256(b"".join(self._new)).hexdigest()
        file = self.folder / f"{name[:32]}.safetensors"
        with whole_file(file) as path:
            save_file(content, path)
        self._add(load_file(file))
        self._new = {}

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write what a run that goes on from this checkpoint should not compute again."""
        self.write()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write the rest."""
        self.write()

    def _add(self, content: dict[str, Tensor]) -> None:
        keys = content.pop(ROW_KEY)
        self._places |= {bytes(key): (len(self._files), row) for row, key in enumerate(keys.tolist())}
        self._files.append(content)

    def _row(self, key: bytes) -> dict[str, Tensor]:
        if key in self._new:
            return self._new[key]
        file, row = self._places[key]
        return {name: values[row] for name, values in self._files[file].items()}

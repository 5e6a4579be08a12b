"""Store a mixture as the gene its base grew from and the differences to it.

A base that is a gene's descendant needs no tensor of its own, and an expert differs from the base by a fine-tune of
its MLPs: kept as a difference, it may be rounded or reduced to low rank where the weights themselves may not.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..errors import LearngeneError
from ..modeling_learngene import LearngeneModel
from .configuration_clip_moe import CLIPMoEConfig
from .modeling_clip_moe import CLIPMoEModel
from .upcycling import expert_tensors

DELTAS, RECORD, GENE = "deltas.safetensors", "deltas.json", "gene"


@torch.no_grad()
def save_as_deltas(
    model: CLIPMoEModel,
    gene: LearngeneModel,
    folder: str | os.PathLike,
    *,
    depth: int | tuple[int, int] | None = None,
    width: int | tuple[int, int] | None = None,
    rank: int | None = None,
    dtype: torch.dtype = torch.float16,
    with_gene: bool = True,
) -> dict[str, int]:
    """Write a gene, the differences of the mixture's base to its descendant, and of each expert to the base.

    Tensors without a difference are left out: a base that is the descendant itself takes no space.

    Args:
        model: the mixture; expert 0 is its base.
        gene: the gene that the base grew from.
        folder: where to write; an earlier such folder is replaced.
        depth: of the descendant, as the base was grown with.
        width: of the descendant, likewise.
        rank: keep each expert's matrices as their best approximation of this rank; None keeps them whole.
        dtype: of the stored differences. Routers are kept as they are.
        with_gene: also write the gene; False where it is kept elsewhere, once for all that grew from it.

    Returns:
        Bytes: `gene` (0 without it) and `deltas` as written, and `mixture`, all parameters of the model in `dtype`.

    Raises:
        LearngeneError: if the descendant has other tensors than the base, or the rank is below 1.
    """
    if rank is not None and rank < 1:
        raise LearngeneError(f"rank is {rank}: give 1 or more, or None to keep the matrices whole")
    base = _grow(gene, depth, width)
    _check_same_shapes(model, base)
    stored: dict[str, Tensor] = {}
    tensors = model.state_dict()
    routed = expert_tensors(model.config)
    for name, grown in base.items():
        stack = tensors[routed[name]] if name in routed else None
        own = tensors[name] if stack is None else stack[0]
        _put(stored, name, own - grown.to(own), None, dtype)
        for index in range(1, 0 if stack is None else len(stack)):
            _put(stored, f"{name}.expert_{index}", stack[index] - own, rank, dtype)  # type: ignore[index]
    stored |= {name: value.cpu() for name, value in tensors.items() if ".mlp.router." in name}
    config = model.config.to_dict() | {"_name_or_path": ""}  # where the mixture lay is nothing to store
    record = {"depth": depth, "width": width, "rank": rank, "config": config}
    folder = Path(folder)
    _write(folder, stored, record, gene if with_gene else None)
    return {
        "gene": sum(file.stat().st_size for file in folder.glob(f"{GENE}/*")),
        "deltas": (folder / DELTAS).stat().st_size,
        "mixture": sum(value.numel() for value in tensors.values()) * dtype.itemsize,
    }


@torch.no_grad()
def load_from_deltas(folder: str | os.PathLike, gene: LearngeneModel | None = None) -> CLIPMoEModel:
    """Rebuild a mixture that `save_as_deltas` wrote, in float32 and evaluation mode.

    Args:
        folder: what was written.
        gene: the gene it was stored against; None takes the one in the folder.

    Raises:
        LearngeneError: if the folder holds no such mixture or no gene and none is given, or a tensor of the mixture
            is missing or unknown.
    """
    folder = Path(folder)
    if not (folder / RECORD).exists() or not (folder / DELTAS).exists():
        raise LearngeneError(f"{str(folder)!r} has no {RECORD} and {DELTAS}: `save_as_deltas` writes both")
    record = json.loads((folder / RECORD).read_text())
    stored = load_file(folder / DELTAS)
    if gene is None:
        if not (folder / GENE).is_dir():
            raise LearngeneError(f"{str(folder)!r} was stored without its gene: pass the gene that it grew from")
        gene = LearngeneModel.from_pretrained(folder / GENE)
    base = _grow(gene, record["depth"], record["width"])
    model = CLIPMoEModel(CLIPMoEConfig.from_dict(record["config"]))
    _check_same_shapes(model, base)
    tensors, routed = model.state_dict(), expert_tensors(model.config)
    for name, grown in base.items():
        grown = grown + _take(stored, name, grown)
        if name not in routed:
            tensors[name].copy_(grown)
            continue
        stack = tensors[routed[name]]
        stack[0].copy_(grown)
        for index in range(1, len(stack)):
            stack[index].copy_(grown + _take(stored, f"{name}.expert_{index}", grown))
    for name in [name for name in tensors if ".mlp.router." in name]:
        if name not in stored:
            raise LearngeneError(f"{str(folder / DELTAS)!r} lacks {name!r}: it is damaged, store the mixture again")
        tensors[name].copy_(stored.pop(name))
    if stored:
        raise LearngeneError(f"{str(folder / DELTAS)!r} holds tensors that the mixture lacks: {sorted(stored)}")
    return model.eval()


def _grow(gene: LearngeneModel, depth: Any, width: Any) -> dict[str, Tensor]:
    depth, width = (tuple(size) if isinstance(size, list) else size for size in (depth, width))
    return gene.descendant(depth, width, "multimodal", dtype=torch.float32).state_dict()


def _check_same_shapes(model: CLIPMoEModel, base: dict[str, Tensor]) -> None:
    tensors, routed = model.state_dict(), expert_tensors(model.config)
    for name, grown in base.items():
        own = tensors.get(routed.get(name, name))
        shape = None if own is None else list(own.shape[1:] if name in routed else own.shape)
        if shape != list(grown.shape):
            raise LearngeneError(
                f"the gene's descendant has {name!r} of shape {list(grown.shape)}, the mixture's base {shape}: give "
                "the gene, depth and width that the base was grown with"
            )


def _put(stored: dict[str, Tensor], name: str, delta: Tensor, rank: int | None, dtype: torch.dtype) -> None:
    """Store a difference, unless it is zero; a matrix as two factors if its rank is limited."""
    delta = delta.detach().float().cpu()
    if not delta.any():
        return
    if rank is None or delta.ndim != 2 or rank * sum(delta.shape) >= delta.numel():
        stored[name] = delta.to(dtype).contiguous()
        return
    left, scales, right = torch.linalg.svd(delta, full_matrices=False)  # [m, s], [s], [s, n]
    root = scales[:rank].sqrt()
    stored[f"{name}.left"] = (left[:, :rank] * root).to(dtype).contiguous()
    stored[f"{name}.right"] = (root[:, None] * right[:rank]).to(dtype).contiguous()


def _take(stored: dict[str, Tensor], name: str, like: Tensor) -> Tensor:
    """Remove a difference from what was stored and return it whole, zeros if it is not there."""
    if f"{name}.left" in stored:
        return stored.pop(f"{name}.left").float() @ stored.pop(f"{name}.right").float()
    return stored.pop(name).float() if name in stored else torch.zeros_like(like)


def _write(folder: Path, stored: dict[str, Tensor], record: dict[str, Any], gene: LearngeneModel | None) -> None:
    """Write everything beside the folder first, so that no half of it is ever found under its name."""
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    if gene is not None:
        gene.save_pretrained(part / GENE)
    save_file(stored, part / DELTAS, metadata={"format": "pt"})
    (part / RECORD).write_text(json.dumps(record, indent=1))
    if (folder / RECORD).exists():
        shutil.rmtree(folder)
    part.replace(folder)

"""Store a mixture as the gene its base grew from and the differences to it.

A base that is a gene's descendant needs no tensor of its own, and an expert differs from the base by a fine-tune of
its MLPs: kept as a difference, it may be rounded or reduced to low rank where the weights themselves may not.
"""

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from ..checkpoints import CONFIG_FAULTS, check_finite, read_tensors
from ..data.identity import fingerprint_gene
from ..errors import LearngeneError, first_line
from ..modeling_learngene import LearngeneModel
from ..saving import whole_folder, write_json
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
        LearngeneError: if the descendant has other tensors than the base, the rank is below 1, a weight is NaN, or a
            difference is too large for the dtype.
    """
    if rank is not None and rank < 1:
        raise LearngeneError(f"rank is {rank}: give 1 or more, or None to keep the matrices whole")
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise LearngeneError(f"dtype is {dtype!r}: differences are kept in torch.float16, bfloat16 or float32")
    check_finite(model, "the mixture")
    base = _grow(gene, depth, width)
    _check_same_shapes(model, base)
    stored: dict[str, Tensor] = {}
    tensors = model.state_dict()
    routed = expert_tensors(model.config)
    for name, grown in base.items():
        stack = tensors[routed[name]] if name in routed else None
        own = tensors[name] if stack is None else stack[0]
        _put(stored, name, own.float() - grown.to(own).float(), None, dtype)
        for index in range(1, 0 if stack is None else len(stack)):
            _put(stored, f"{name}.expert_{index}", stack[index].float() - own.float(), rank, dtype)  # type: ignore[index]
    stored |= {name: value.cpu() for name, value in tensors.items() if ".mlp.router." in name}
    config = model.config.to_dict() | {"_name_or_path": ""}  # where the mixture lay is nothing to store
    record: dict[str, Any] = {
        "depth": depth,
        "width": width,
        "rank": rank,
        "dtype": str(model.dtype).removeprefix("torch."),
    }
    record |= {"gene": fingerprint_gene(gene), "config": config}
    folder = Path(folder)
    _write(folder, stored, record, gene if with_gene else None)
    return {
        "gene": sum(file.stat().st_size for file in folder.glob(f"{GENE}/*")),
        "deltas": (folder / DELTAS).stat().st_size,
        "mixture": sum(value.numel() for value in tensors.values()) * dtype.itemsize,
    }


@torch.no_grad()
def load_from_deltas(folder: str | os.PathLike, gene: LearngeneModel | None = None) -> CLIPMoEModel:
    """Rebuild a mixture that `save_as_deltas` wrote, in its own data type and evaluation mode.

    Args:
        folder: what was written.
        gene: the gene it was stored against; None takes the one in the folder.

    Raises:
        LearngeneError: if the folder holds no such mixture, a file of it is damaged, it has no gene and none is given,
            the gene is another one, or a tensor of the mixture is missing, unknown or of another shape.
    """
    folder = Path(folder)
    if not (folder / RECORD).exists() or not (folder / DELTAS).exists():
        raise LearngeneError(f"{str(folder)!r} has no {RECORD} and {DELTAS}: `save_as_deltas` writes both")
    model: Any
    record, model, dtype = _read_record(folder / RECORD)
    stored = read_tensors(folder / DELTAS, repr(str(folder / DELTAS)))
    if gene is None:
        if not (folder / GENE).is_dir():
            raise LearngeneError(f"{str(folder)!r} was stored without its gene: pass the gene that it grew from")
        gene = LearngeneModel.from_pretrained(folder / GENE)
    wanted, found = record.get("gene"), fingerprint_gene(gene)
    if wanted not in (None, found):
        raise LearngeneError(
            f"{str(folder)!r} was stored against the gene with fingerprint {wanted}, and this gene has {found}: pass "
            "the gene that the mixture's base grew from"
        )
    base = _grow(gene, record["depth"], record["width"])
    _check_same_shapes(model, base)
    tensors, routed = model.state_dict(), expert_tensors(model.config)
    for name, grown in base.items():
        grown = grown.to(dtype).float() + _take(stored, name, grown)  # rounded as it was when it was subtracted
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
        tensors[name].copy_(_take(stored, name, tensors[name]))
    if stored:
        raise LearngeneError(f"{str(folder / DELTAS)!r} holds tensors that the mixture lacks: {sorted(stored)}")
    return model.to(dtype).eval()


def _read_record(path: Path) -> tuple[dict[str, Any], CLIPMoEModel, torch.dtype]:
    """Read what was written beside the differences; the mixture of its config, without its weights; its dtype."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        dtype = getattr(torch, record.get("dtype", "float32"))
        if not isinstance(dtype, torch.dtype) or not {"depth", "width"} <= record.keys() or not record["config"]:
            raise ValueError("it lacks the depth, the width, the data type or the config")
        return record, CLIPMoEModel(CLIPMoEConfig.from_dict(record["config"])).float(), dtype
    except (*CONFIG_FAULTS, RuntimeError, ArithmeticError) as error:
        raise LearngeneError(f"{str(path)!r} is damaged ({first_line(error)}): store the mixture again") from error


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
        stored[name] = _rounded(name, delta, dtype)
        return
    left, scales, right = torch.linalg.svd(delta, full_matrices=False)  # [m, s], [s], [s, n]
    root = scales[:rank].sqrt()
    stored[f"{name}.left"] = _rounded(name, left[:, :rank] * root, dtype)
    stored[f"{name}.right"] = _rounded(name, root[:, None] * right[:rank], dtype)


def _rounded(name: str, value: Tensor, dtype: torch.dtype) -> Tensor:
    rounded = value.to(dtype).contiguous()
    if not torch.isfinite(rounded.float()).all():
        raise LearngeneError(
            f"the difference of {name!r} goes up to {value.abs().max():.3g}, too large for {dtype}: give another dtype"
        )
    return rounded


def _take(stored: dict[str, Tensor], name: str, like: Tensor) -> Tensor:
    """Remove a difference from what was stored and return it whole, zeros if it is not there."""
    if name in stored:
        delta = stored.pop(name).float()
    elif f"{name}.left" in stored and f"{name}.right" in stored:
        left, right = stored.pop(f"{name}.left").float(), stored.pop(f"{name}.right").float()
        fits = left.ndim == right.ndim == 2 and left.shape[1] == right.shape[0]
        delta = left @ right if fits else left
    else:
        return torch.zeros_like(like, dtype=torch.float32)
    if delta.shape != like.shape:
        raise LearngeneError(
            f"the stored difference of {name!r} is of shape {list(delta.shape)}, the tensor of {list(like.shape)}: it "
            "is damaged, store the mixture again"
        )
    return delta


def _write(folder: Path, stored: dict[str, Tensor], record: dict[str, Any], gene: LearngeneModel | None) -> None:
    if folder.exists() and not (folder / RECORD).exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise LearngeneError(f"{str(folder)!r} holds other things than a mixture: they would go, so give a new folder")
    with whole_folder(folder) as ready:
        if gene is not None:
            gene.save_pretrained(ready / GENE)
        save_file(stored, ready / DELTAS, metadata={"format": "pt"})
        write_json(ready / RECORD, record, indent=1)

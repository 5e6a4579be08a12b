"""`from_learngene`: a stock CLIP model of any depth, width and modality from a gene on the Hub, on disk or bundled."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from .configuration_learngene import Size
from .gene_files import read_dtype
from .genes import bundled_learngenes, load_learngene, load_processor, locate_learngene, open_to_grow
from .modeling_learngene import LearngeneMixin

# The loading of genes is in `genes`; these names stay importable from here.
__all__ = ["bundled_learngenes", "from_learngene", "load_learngene", "load_processor", "locate_learngene"]


def from_learngene(
    learngene: str | os.PathLike | LearngeneMixin,
    depth: Size = None,
    width: Size = None,
    modality: str | None = None,
    *,
    num_labels: int | None = None,
    id2label: Mapping[int, str] | Sequence[str] | None = None,
    label2id: Mapping[str, int] | None = None,
    dtype: torch.dtype | str | None = None,
    torch_dtype: torch.dtype | str | None = None,
    device_map: Any = None,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike | None = None,
    local_files_only: bool = False,
    subfolder: str = "",
    attn_implementation: str | None = None,
    **config_overrides: Any,
) -> Any:
    """Grow a stock transformers CLIP model of any depth, width and modality from a learngene (arXiv 2506.16673).

    Args:
        learngene: a Hub id, a folder, a bundled name or a `LearngeneModel`.
        depth: layers, one number or a (vision, text) pair; None keeps the gene's own. May exceed the gene's.
        width: `hidden_size`, one number or a (vision, text) pair: multiples of the head size up to the gene's width;
            None keeps the gene's own. One number sets the wider encoder, the other keeps the gene's ratio.
        modality: "multimodal" gives `CLIPModel`, "image" `CLIPVisionModelWithProjection`, "text"
            `CLIPTextModelWithProjection`; None takes "multimodal", and "image" for an image gene.
        num_labels: "image" then gives `CLIPForImageClassification` and "text" `CLIPTextForSequenceClassification`,
            with a new head; None gives no head, except that an image gene brings its own. All these classes are stock
            ones but `CLIPTextForSequenceClassification`, which transformers lacks: it is saved with its code.
        id2label, label2id: names of the labels, by id from 0 or as a list; they imply `num_labels`.
        dtype: of the weights, from torch or by name; None gives float32, since a descendant is there to be
            fine-tuned, and "auto" the type the gene is stored in. The sums are formed in float32 in any case.
        torch_dtype: transformers' older name for `dtype`.
        device_map: where the descendant is put, as for transformers' `from_pretrained`; None takes the CPU.
        revision: branch, tag or commit on the Hub; None takes main.
        token: Hub token; None takes the one you are logged in with, and False sends none.
        cache_dir: where downloads are kept; None takes the Hub cache.
        local_files_only: load from the cache without asking the Hub.
        subfolder: folder inside the repository; "" is its root.
        attn_implementation: how attention is computed, e.g. "eager" or "sdpa"; None takes transformers' choice.
        config_overrides: other fields of the stock config, e.g. `attention_dropout=0.1`.

    Returns:
        the stock model in evaluation mode. It shares no tensor with the gene, says where it comes from in
        `config.learngene`, and saves the gene's processor along with itself. Its `name_or_path` is empty until it is
        saved and loaded: no name stands for its weights before.

    Raises:
        LearngeneError: for a gene that cannot be loaded, or a size, modality or label count it cannot grow.
    """
    dtype = read_dtype(dtype, torch_dtype)
    hub_kwargs = {"revision": revision, "token": token, "cache_dir": cache_dir}
    given: dict[str, Any] = {name: value for name, value in hub_kwargs.items() if value is not None}
    given |= {"local_files_only": local_files_only, "subfolder": subfolder}
    gene = open_to_grow(learngene, modality, **given)
    return gene.descendant(
        depth,
        width,
        modality,
        num_labels=num_labels,
        id2label=id2label,
        label2id=label2id,
        dtype=dtype,
        device_map=device_map,
        attn_implementation=attn_implementation,
        **config_overrides,
    )

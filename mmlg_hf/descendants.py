"""`from_learngene`: a stock CLIP model of any depth, width and modality from a gene on the Hub, on disk or bundled."""

import os
from pathlib import Path
from typing import Any

import torch
from transformers import AutoImageProcessor, AutoProcessor, AutoTokenizer

from .configuration_learngene import LearngeneConfig, Size
from .errors import LearngeneError
from .hub import check_subfolder, fetch_learngene
from .loading import check_folder
from .modeling_learngene import LearngeneForImageClassification, LearngeneMixin, LearngeneModel

ZOO = Path(__file__).parent / "zoo"


def bundled_learngenes() -> list[str]:
    """Name the genes that come with the package."""
    return sorted(path.parent.name for path in ZOO.glob("*/config.json"))


def locate_learngene(learngene: str | os.PathLike) -> str:
    """Return the folder of a bundled gene for its name; a folder or Hub id is returned as it is."""
    name = os.fspath(learngene)
    if not os.path.isdir(name) and name in bundled_learngenes():
        return str(ZOO / name)
    if os.path.exists(name) and not os.path.isdir(name):
        raise LearngeneError(f"{name!r} is a file: give the folder that a gene was saved to, or a Hub id")
    return name


def load_processor(learngene: str | os.PathLike, **hub_kwargs: Any) -> Any:
    """Load the processor stored with a gene (images and text, or the one side that is there).

    Args:
        learngene: a Hub id, a folder or a bundled name.
        hub_kwargs: `revision`, `token`, `cache_dir`, `local_files_only`, `subfolder`.

    Raises:
        LearngeneError: if the gene was stored without one.
    """
    name = locate_learngene(learngene)
    for auto in (AutoProcessor, AutoImageProcessor, AutoTokenizer):
        try:
            return auto.from_pretrained(name, **hub_kwargs)
        except (OSError, ValueError):
            continue
    raise LearngeneError(f"{name!r} has no processor stored with it: use its ancestor's")


def load_learngene(
    learngene: str | os.PathLike | LearngeneMixin,
    *,
    modality: str | None = None,
    dtype: torch.dtype | str = torch.float32,
    **hub_kwargs: Any,
) -> LearngeneMixin:
    """Load a gene of either kind, with its processor when one is stored with it.

    Args:
        learngene: a Hub id, a folder, a bundled name, or a gene in memory, which is returned as it is.
        modality: "image" or "text" fetches and loads only what descendants of that modality are made from.
        dtype: of the weights; "auto" keeps the stored one.
        hub_kwargs: `revision`, `token`, `cache_dir`, `local_files_only`, `subfolder`.

    Raises:
        LearngeneError: see `LearngeneModel.from_pretrained`.
    """
    if isinstance(learngene, LearngeneMixin):
        return learngene
    if not isinstance(learngene, (str, os.PathLike)):
        raise LearngeneError(
            f"the learngene is a {type(learngene).__name__}: give a Hub id, a folder, a bundled name "
            f"({', '.join(bundled_learngenes()) or 'none here'}) or a LearngeneModel"
        )
    name = locate_learngene(learngene)
    if os.path.isdir(name):
        folder = Path(name, check_subfolder(hub_kwargs.get("subfolder", "")))
    else:
        folder, commit = fetch_learngene(name, modality=modality, with_processor=True, **hub_kwargs)
        # What follows takes this commit's files from the cache: the Hub may have moved on meanwhile.
        hub_kwargs = {**hub_kwargs, "revision": commit, "local_files_only": True}
    check_folder(folder, name)
    config = LearngeneConfig.from_pretrained(folder)
    cls: Any = LearngeneForImageClassification if config.text_config is None else LearngeneModel
    if modality is not None:
        config.check_modality(modality)
    gene = cls.from_pretrained(name, modality=modality, dtype=dtype, **hub_kwargs)
    if name != os.fspath(learngene):  # where this package lies is nothing for descendants to record
        gene.config._name_or_path = gene.name_or_path = os.fspath(learngene)
    try:
        gene.processor = load_processor(folder)
    except LearngeneError:
        gene.processor = None  # a gene without one still grows; its descendants then come without one too
    return gene


def from_learngene(
    learngene: str | os.PathLike | LearngeneMixin,
    depth: Size = None,
    width: Size = None,
    modality: str = "multimodal",
    *,
    num_labels: int | None = None,
    id2label: dict[int, str] | None = None,
    label2id: dict[str, int] | None = None,
    dtype: torch.dtype | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike | None = None,
    local_files_only: bool = False,
    subfolder: str = "",
    **config_overrides: Any,
) -> Any:
    """Grow a stock transformers CLIP model of any depth, width and modality from a learngene (arXiv 2506.16673).

    Args:
        learngene: a Hub id, a folder, a bundled name or a `LearngeneModel`.
        depth: layers, one number or a (vision, text) pair; None keeps the gene's own. May exceed the gene's.
        width: `hidden_size`, one number or a (vision, text) pair: multiples of the head size up to the gene's width;
            None keeps the gene's own. One number sets the wider encoder, the other keeps the gene's ratio.
        modality: "multimodal" gives `CLIPModel`, "image" `CLIPVisionModelWithProjection`, "text"
            `CLIPTextModelWithProjection`.
        num_labels: "image" then gives `CLIPForImageClassification` and "text" `CLIPTextForSequenceClassification`,
            with a new head; None gives no head.
        id2label, label2id: names of the labels; they imply `num_labels`.
        dtype: of the weights; None gives float32, since a descendant is there to be fine-tuned.
        revision: branch, tag or commit on the Hub; None takes main.
        token: Hub token; None takes the one you are logged in with.
        cache_dir: where downloads are kept; None takes the Hub cache.
        local_files_only: load from the cache without asking the Hub.
        subfolder: folder inside the repository; "" is its root.
        config_overrides: other fields of the stock config, e.g. `attention_dropout=0.1`.

    Returns:
        the stock model in evaluation mode. It shares no tensor with the gene, says where it comes from in
        `config.learngene`, and saves the gene's processor along with itself.

    Raises:
        LearngeneError: for a gene that cannot be loaded, or a size, modality or label count it cannot grow.
    """
    hub_kwargs = {
        "revision": revision,
        "token": token,
        "cache_dir": cache_dir,
        "local_files_only": local_files_only,
        "subfolder": subfolder,
    }
    given = {name: value for name, value in hub_kwargs.items() if value}
    gene: Any = load_learngene(learngene, modality=modality, **given)
    return gene.descendant(
        depth,
        width,
        modality,
        num_labels=num_labels,
        id2label=id2label,
        label2id=label2id,
        dtype=dtype,
        **config_overrides,
    )

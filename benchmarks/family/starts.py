"""Every way to start a small CLIP that the study compares, with one signature: a size in, a model out.

Four kinds: nothing (scratch), a large model at hand (weight selection, TinyCLIP's inheritance, FRONT), that and a
training of each size (`controls.py`: CLIP-Map, students without a gene), and genes. A gene is extracted first, by
`genes` in settings.yaml; those of the earlier papers by their rules, but with our loss, feature distillation, which
does better than soft labels.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPModel, set_seed

from benchmarks.family.front import by_low_frequencies
from benchmarks.family.settings import SETTINGS
from mmlg_hf import ExtractionArguments, LearngeneModel, extract_learngene
from mmlg_hf.data import process_pairs
from mmlg_hf.expansion import slice_norm_scale
from mmlg_hf.extraction.ancestors import copy_outer_weights, gene_config
from mmlg_hf.extraction.fitting import order_units, stack_layers
from mmlg_hf.extraction.rotation import rotate_channels
from mmlg_hf.extraction.trainer import AncestorCollator, ExtractionTrainer
from mmlg_hf.modeling_encoders import StackedParameters
from mmlg_hf.training import ImageTextCollator

# How each gene is extracted; "SWS" has a block for each stage, see `StageWiseModel`.
GENES: dict[str, dict[str, Any]] = SETTINGS["genes"]
LONGER = tuple(name for name in GENES if "max_steps" in GENES[name])  # than the study's own extractions


class StageWiseModel(LearngeneModel):
    """A gene whose layers of one stage are all the same block (SWS): no weighted sum, one block for each stage."""

    def fixed_coefficients(self, depth: int) -> Tensor:
        stages = self.config.num_unimodal_blocks
        return F.one_hot(torch.arange(depth) * stages // depth, stages).float()

    def _init_weights(self, module: Any) -> None:
        super()._init_weights(module)
        if isinstance(module, StackedParameters) and module.is_norm:
            nn.init.ones_(module.weight)  # every block is a layer by itself


@dataclass
class Sources:
    """What the starts draw on: the ancestor, the genes extracted and what else is trained with one seed."""

    ancestor: CLIPModel
    turned: CLIPModel  # `turned_ancestor`
    genes: dict[str, LearngeneModel] = field(default_factory=dict)
    trained: Any = None  # `controls.Controls`: one of `TRAINED`, depth and width in, a model out

    def config(self, depth: int, width: int) -> Any:
        """The stock config of a descendant, the same for every method."""
        whole = gene_config(self.ancestor, num_multimodal_blocks=1, num_unimodal_blocks=1, mixing="linear")
        return whole.descendant_config(depth, width)


BUNDLED = "MM-LG, bundled"  # the gene that comes with the package: extracted as MM-LG is, but longer
FRONT = "FRONT"
STUDENTS = "students without a gene"
CLIP_MAP = "CLIP-Map"
TRAINED = (CLIP_MAP, STUDENTS)  # each size for itself, by imitation of the ancestor, before its first step
CONTROLS = (FRONT, *TRAINED)  # of 2026
BY_MUON = "scratch, by Muon"  # as gene extraction is trained; all but these two are fine-tuned by AdamW
DISTILLED = "MM-LG, bundled, distilled by Muon"  # by contrast and by imitation of the ancestor (`DistillationTrainer`)

Start = Callable[[Sources, int, int, int], CLIPModel]


def from_scratch(sources: Sources, depth: int, width: int, seed: int) -> CLIPModel:
    """transformers' own random initialisation."""
    set_seed(seed)
    return CLIPModel(sources.config(depth, width))


def by_weight_selection(sources: Sources, depth: int, width: int, seed: int) -> CLIPModel:
    """Evenly spaced indices along every axis, and the first layers (Weight selection, ICLR-24)."""
    spaced = lambda size, wanted: torch.linspace(0, size - 1, wanted).round().long()  # noqa: E731
    return _select(sources.ancestor, sources.config(depth, width), lambda layer: layer, spaced)


def by_inheritance(sources: Sources, depth: int, width: int, seed: int) -> CLIPModel:
    """Every (L / depth)-th layer, and leading slices, whole heads (TinyCLIP, ICCV-23)."""
    return _inherit(sources.ancestor, sources.config(depth, width))


def by_rotated_inheritance(sources: Sources, depth: int, width: int, seed: int) -> CLIPModel:
    """TinyCLIP's inheritance from the ancestor with its channels turned: our rotation without a gene."""
    model = _inherit(sources.turned, sources.config(depth, width))
    for name, weight in model.named_parameters():
        if name.endswith(("layer_norm1.weight", "layer_norm2.weight")):
            own = sources.turned.get_parameter(f"{name.split('.')[0]}.encoder.layers.0.layer_norm1.weight")
            weight.data.mul_(slice_norm_scale(len(weight), len(own)))
    return model


def by_front(sources: Sources, depth: int, width: int, seed: int) -> CLIPModel:
    """The low frequencies of the ancestor's weights (FRONT, arXiv 2603.07523)."""
    return by_low_frequencies(sources.ancestor, sources.config(depth, width))


@torch.no_grad()
def turned_ancestor(ancestor: CLIPModel, batches: Iterable[dict[str, Tensor]]) -> CLIPModel:
    """The ancestor turned (`mmlg_hf.extraction.rotation`), with its strongest heads and neurons first."""
    turned, _ = rotate_channels(ancestor, list(batches))
    for encoder in (turned.vision_model, turned.text_model):
        head_size = encoder.config.hidden_size // encoder.config.num_attention_heads
        ordered = order_units(stack_layers(encoder.encoder), head_size)
        for index, layer in enumerate(encoder.encoder.layers):
            for name, weight in layer.named_parameters():
                weight.copy_(ordered[name][index])
    return turned


def _inherit(large: CLIPModel, config: Any) -> CLIPModel:
    step = large.config.vision_config.num_hidden_layers // config.vision_config.num_hidden_layers
    return _select(large, config, lambda layer: layer * step, lambda size, wanted: torch.arange(wanted))


@torch.no_grad()
def _select(
    large: CLIPModel, config: Any, layer_of: Callable[[int], int], indices: Callable[[int, int], Tensor]
) -> CLIPModel:
    """Fill a small model from a large one: one rule for layers, one for the indices along an axis."""
    model, own = CLIPModel(config), dict(large.named_parameters())
    for name, weight in model.named_parameters():
        parts = name.split(".")
        if "layers" in parts:
            position = parts.index("layers") + 1
            parts[position] = str(layer_of(int(parts[position])))
        selected = own[".".join(parts)]
        for axis, (have, want) in enumerate(zip(selected.shape, weight.shape, strict=True)):
            if have != want:
                selected = selected.index_select(axis, indices(have, want))
        weight.copy_(selected)
    return model


def from_gene(name: str, sources: Sources, depth: int, width: int, seed: int) -> CLIPModel:
    """The descendant of one of the genes."""
    return sources.genes[name].descendant(depth, width)


def from_training(name: str, sources: Sources, depth: int, width: int, seed: int) -> CLIPModel:
    """One of the controls that are trained first."""
    return sources.trained(name, depth, width)


STARTS: dict[str, Start] = {
    "scratch": from_scratch,
    BY_MUON: from_scratch,
    "weight selection": by_weight_selection,
    "TinyCLIP inheritance": by_inheritance,
    "rotated inheritance": by_rotated_inheritance,
    FRONT: by_front,
    **{name: partial(from_training, name) for name in TRAINED},
    **{name: partial(from_gene, name) for name in (*GENES, BUNDLED)},
    DISTILLED: partial(from_gene, BUNDLED),
}


def folder_name(method: str) -> str:
    """Of what is extracted or trained for a method."""
    return method.replace(" ", "-").replace(",", "")


def extract_gene(
    name: str, ancestor: CLIPModel, rows: Dataset, processor: Any, arguments: dict[str, Any], folder: Path
) -> LearngeneModel:
    """Extract one of `GENES`, or load it where the folder holds it already."""
    cls: Any = StageWiseModel if name == "SWS" else LearngeneModel
    target = folder / folder_name(name)
    if (target / "config.json").exists():
        return cls.from_pretrained(target)
    args = ExtractionArguments(str(target), **(arguments | GENES[name]))
    if name != "SWS":
        return extract_learngene(ancestor, rows, args, processor=processor)
    blocks = {name: getattr(args, name) for name in ("num_multimodal_blocks", "num_unimodal_blocks", "mixing")}
    config = gene_config(ancestor, **blocks)
    set_seed(args.seed)
    gene = cls(config)
    copy_outer_weights(gene, ancestor)
    pairs = process_pairs(rows, processor, image_column=args.image_column, text_column=args.text_column)
    collator = AncestorCollator(ImageTextCollator(processor))
    trainer = ExtractionTrainer(gene, args, ancestor=ancestor, data_collator=collator, train_dataset=pairs)
    trainer.train()
    trainer.save_model(str(target))
    return gene.eval()

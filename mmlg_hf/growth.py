"""Growing a descendant from a gene that is in memory: the weights, the stock class, the provenance."""

import os
from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any, cast

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor
from transformers import initialization as init

from .checkpoints import quiet
from .configuration_learngene import MAX_LABELS, Size, check_size
from .errors import LearngeneError, first_line
from .expansion import LAYER_AXES, depth_of, fill_layers, join_table, sum_type
from .families import Family, encoders_of, stock_class
from .gene_files import read_dtype
from .hub import REPO_ID
from .modeling_text_classification import CLIPTextForSequenceClassification
from .saving import SavesWithProcessor

# The classes that transformers lacks.
_OWN_CLASSES: dict[str, Any] = {"CLIPTextForSequenceClassification": CLIPTextForSequenceClassification}

# What a descendant config may be given by the caller: anything that does not change a shape the gene decides.
_DECIDED_BY_THE_GENE = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "projection_dim", "vocab_size",
    "max_position_embeddings", "patch_size", "image_size", "num_channels", "vision_config", "text_config",
    "logit_scale_init_value", "projection_size", "vision_use_head", "qkv_bias", "pooler_output_size",
)  # fmt: skip


class DescendantMixin:
    """The method `descendant` of a gene."""

    config: Any
    processor: Any

    def descendant(
        self,
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
        attn_implementation: str | None = None,
        **config_overrides: Any,
    ):
        """Grow a stock transformers model of the given size from this gene.

        Args:
            depth: layers, one number or a (vision, text) pair; None keeps the gene's own. May exceed the gene's.
            width: `hidden_size`, one number or a (vision, text) pair: multiples of the head size up to the gene's
                width; None keeps the gene's own. One number sets the wider encoder, the other keeps the ratio.
            modality: "multimodal" (`CLIPModel`), "image" (`CLIPVisionModelWithProjection`) or "text"
                (`CLIPTextModelWithProjection`); None takes "multimodal", and "image" for an image gene. A gene of
                another family gives that family's classes, see `families.FAMILIES`.
            num_labels: with "image" gives `CLIPForImageClassification`, with "text"
                `CLIPTextForSequenceClassification`, each with a newly initialised head; None gives no head, except
                that an image gene of a classifier brings its own.
            id2label, label2id: names of the labels, by id from 0 or as a list; they imply `num_labels`.
            dtype: of the weights, from torch or by name; None gives float32, since a descendant is there to be
                fine-tuned, and "auto" the gene's own. The sums are formed in float32 in any case.
            torch_dtype: transformers' older name for `dtype`.
            device_map: where the descendant is put, as for transformers' `from_pretrained`; None takes the CPU.
            attn_implementation: how attention is computed, e.g. "eager" or "sdpa"; None takes transformers' choice.
        config_overrides: other fields of the stock config, e.g. `attention_dropout=0.1`.

        Returns:
            the model in evaluation mode; no tensor is shared with the gene. Its `name_or_path` is empty: no name
            stands for its weights before it is saved and loaded.

        Raises:
            LearngeneError: for a size, modality, type or label map that the gene cannot grow.
        """
        if modality is None:
            modality = "image" if self.config.text_config is None else "multimodal"
        wanted, own = read_dtype(dtype, torch_dtype), cast(Any, self)
        kept = own.dtype if wanted == "auto" else cast(torch.dtype, wanted or torch.float32)
        labels = _read_labels(num_labels, id2label, label2id)
        if labels is not None and modality == "multimodal":
            raise LearngeneError(
                f'num_labels is {len(labels)} with modality "multimodal", which has no head: use "image" or "text"'
            )
        own_head = self.config.text_config is None and labels is None and self.config.num_labels > 0
        config = self.config.descendant_config(depth, width, modality)
        descendant_class(self.config.kin, modality, labels is not None or own_head)  # refuses one that there is not
        if labels is not None or own_head:
            names = self.config.id2label if labels is None else labels
            for part in (config, encoders_of(config).get("text", config)):
                part.id2label, part.label2id = names, {name: index for index, name in names.items()}
        _override(config, modality, config_overrides)
        _record_provenance(config, self.config, modality)
        model = self._build(config, modality, labels is not None, own_head, kept, device_map)
        if attn_implementation is not None:
            try:
                model.set_attn_implementation(attn_implementation)
            except (ValueError, ImportError) as error:
                raise LearngeneError(f"attn_implementation is {attn_implementation!r}: {first_line(error)}") from error
        # Where it comes from, for what can grow it again. Not as `name_or_path`: an adapter and the stock Trainer's
        # card name that as their base, and whoever loads it gets other weights.
        model.config._name_or_path = model.name_or_path = ""  # from_pretrained(None) makes it "None"
        model.grown_from = {"name": self.config._name_or_path, "revision": getattr(self.config, "_commit_hash", None)}
        part = {"image": "image_processor", "text": "tokenizer"}.get(modality)
        processor = getattr(self.processor, part, self.processor) if part else self.processor
        model.save_pretrained = SavesWithProcessor(model, processor)
        return model

    @torch.no_grad()
    def _build(self, config: Any, modality: str, new_head: bool, own_head: bool, dtype: torch.dtype, device_map: Any):
        """Build the stock class and write each of its weights once; transformers initialises a new head alone."""
        encoders, kin = encoders_of(config), self.config.kin
        wanted = encoders if modality == "multimodal" else {modality: encoders[modality]}
        gene: Any = self
        outer, layers = gene.descendant_sources(wanted)
        if _is_partly_absent(outer, layers):
            raise LearngeneError(
                f'modality is "{modality}", but this gene was loaded without the weights for it: load it whole, or '
                f'with modality="{modality}"'
            )
        with_head = new_head or own_head
        cls: Any = descendant_class(kin, modality, with_head)
        config = config_of(cls, config)
        if with_head:
            outer = {name: weight for name, weight in outer.items() if name not in kin.without_head}
            if not own_head:
                outer = {name: weight for name, weight in outer.items() if not name.startswith("classifier.")}
        try:
            model = _build_empty(cls, config, dtype)
            _fill(model, kin, outer, layers)
            model = _place(model, device_map)
        except (ValueError, TypeError, KeyError, ImportError, RuntimeError) as error:
            if isinstance(error, LearngeneError):
                raise
            raise LearngeneError(f"no {cls.__name__} can be built so: {first_line(error)}") from error
        # transformers #47688: the stock classes ignore num_items_in_batch but are taken to accept it, which scales
        # their update by the number of accumulation steps.
        model.accepts_loss_kwargs = False
        return model


def _is_partly_absent(outer: dict[str, Any], layers: dict[str, tuple[Any, ...]]) -> bool:
    """Whether any of a descendant's sources was not loaded with the gene."""
    groups = [group for sources in layers.values() for group in sources[:2]]
    blocks = [block for group in groups for block in group.values()]
    weights = [weight for source in outer.values() for weight in (source if isinstance(source, tuple) else [source])]
    return any(weight.is_meta for weight in [*blocks, *weights])


def _build_empty(cls: Any, config: Any, dtype: torch.dtype) -> Any:
    """Build a stock class without memory for its weights, in evaluation mode, as `from_pretrained` begins."""
    with torch.device("meta"), init.no_init_weights():
        model = cls._from_config(deepcopy(config), dtype=dtype)  # a copy: the gene's own label names are part of it
    model._weight_conversions = []  # it is saved under the names it has
    return model.eval()


def _fill(model: Any, family: Family, outer: dict[str, Any], layers: dict[str, Any]) -> None:
    """Give an empty model memory and write each weight into it, straight from the gene.

    What `from_pretrained` leaves to transformers is left to it here: the classifier if the gene has none, and
    buffers that are not saved.
    """
    empty = dict(model.named_parameters())
    outer = {family.name_in(type(model), name): weight for name, weight in outer.items()}
    names = {
        family.name_in(type(model), family.layer_parameter(modality, layer, name)): (modality, name, layer)
        for modality, (_, _, coefficients, *_) in layers.items()
        for layer in range(depth_of(coefficients))
        for name in LAYER_AXES
    }
    given = outer.keys() | names.keys()
    new = {name for name in empty.keys() - given if name.startswith("classifier.")}
    missing, unexpected = empty.keys() - given - new, given - empty.keys()
    if missing or unexpected:
        raise LearngeneError(
            f"the gene does not fit {type(model).__name__}: missing {sorted(missing)}, unexpected {sorted(unexpected)}"
        )
    weights = _allocate(model)
    for name, source in outer.items():
        if isinstance(source, tuple):  # some rows at a time, so that there is no second table
            table, projection = (factor.to(sum_type(factor.dtype)) for factor in source)
            for rows, target in zip(table.split(4096), weights[name].split(4096), strict=True):
                join_table(rows, projection, target)
        else:
            weights[name].copy_(source)
    stacks: dict[str, dict[str, list[Tensor]]] = {modality: {name: [] for name in LAYER_AXES} for modality in layers}
    for full_name, (modality, name, _) in names.items():
        stacks[modality][name].append(weights[full_name])
    for modality, sources in layers.items():
        fill_layers(*(*sources, stacks[modality]))
    for name in given:
        weights[name]._is_hf_initialized = True  # which `initialize_weights` leaves as it is
    for module in model.modules():
        if not (new or module._buffers):  # nothing is left to initialise there, which it would find out slowly
            module._is_hf_initialized = True
    model.initialize_weights()


def _allocate(model: Any) -> dict[str, Any]:
    """Give the parameters and buffers of an empty model memory on the CPU, each its own; return the parameters."""
    weights = {}
    for prefix, module in model.named_modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                memory = torch.empty(parameter.shape, dtype=parameter.dtype, device="cpu")
                module._parameters[name] = torch.nn.Parameter(memory, requires_grad=parameter.requires_grad)
                weights[f"{prefix}.{name}" if prefix else name] = module._parameters[name]
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty_like(buffer, device="cpu")
    return weights


def _place(model: Any, device_map: Any) -> Any:
    """Put a model where `from_pretrained` would have put it by this `device_map`, or by torch's default device."""
    default = torch.get_default_device()
    if device_map is None and default.type == "cpu":
        return model
    with quiet():
        return type(model).from_pretrained(
            None, config=model.config, state_dict=model.state_dict(), dtype=model.dtype, device_map=device_map
        )


def descendant_class(family: Family, modality: str, with_head: bool) -> Any:
    """The class of a descendant; a `LearngeneError` where the family has none with a head."""
    name = family.descendants.get((modality, with_head))
    if name is None:
        raise LearngeneError(
            f'num_labels is given with modality "{modality}", but {family.title} has no {modality} classifier: leave '
            'num_labels out, or use modality "image"'
        )
    return _OWN_CLASSES.get(name) or stock_class(name)


def config_of(cls: Any, config: Any) -> Any:
    """The part of a whole config, such as `CLIPConfig`, that the class of a descendant is built by."""
    kind = cls.config_class.__name__
    if kind.endswith("VisionConfig"):
        return config.vision_config
    return config.text_config if kind.endswith("TextConfig") else config


def _read_labels(num_labels: int | None, id2label: Any, label2id: Any) -> dict[int, str] | None:
    """Read a number of labels and their names into one map from ids; None where none of the three is given."""
    if num_labels is not None:
        if isinstance(num_labels, bool) or not isinstance(num_labels, int) or num_labels < 1:
            raise LearngeneError(f"num_labels is {num_labels!r}: it takes a whole number of at least 1")
        check_size("num_labels", num_labels, MAX_LABELS)
    maps = [_read_map(id2label, "id2label"), _read_map(label2id, "label2id")]
    given = [labels for labels in maps if labels is not None]
    counts = {len(labels) for labels in given} | ({num_labels} if num_labels is not None else set())
    if len(counts) > 1:
        shown = ", ".join(map(str, sorted(counts)))
        raise LearngeneError(f"num_labels, id2label and label2id disagree on the number of labels: {shown}")
    if len(given) == 2:
        odd = [index for index, name in given[0].items() if given[1][index] != name]
        if odd:
            names = [labels[odd[0]] for labels in given]
            raise LearngeneError(f"label {odd[0]} is {names[0]!r} in id2label and {names[1]!r} in label2id")
    if given:
        return given[0]
    return None if num_labels is None else {index: f"LABEL_{index}" for index in range(num_labels)}


def _read_map(labels: Any, name: str) -> dict[int, str] | None:
    """Read `id2label` or `label2id`, or a list of names, into names by id from 0."""
    if labels is None:
        return None
    if isinstance(labels, Mapping):
        pairs = list(labels.items()) if name == "id2label" else [(index, label) for label, index in labels.items()]
    elif isinstance(labels, Sequence) and not isinstance(labels, str):
        pairs = list(enumerate(labels))
    else:
        raise LearngeneError(f"{name} is {labels!r}: it takes a mapping, or a list of names")
    read: dict[int, str] = {}
    for index, label in pairs:
        whole = isinstance(index, int) and not isinstance(index, bool)
        if not whole and not (isinstance(index, str) and index.isascii() and index.isdigit()):
            raise LearngeneError(f"{name} has the id {index!r}: ids are whole numbers from 0")
        if not isinstance(label, str):
            raise LearngeneError(f"{name} names label {index} {label!r}: a name is a string")
        if int(index) in read:
            raise LearngeneError(f"{name} has the id {index} twice")
        read[int(index)] = label
    if sorted(read) != list(range(len(read))) or not read:
        shown = ", ".join(map(str, sorted(read)[:8])) + (", ..." if len(read) > 8 else "")
        raise LearngeneError(
            f"{name} has the ids {shown}: they must run from 0 to {len(read) - 1} without a gap"
            if read
            else f"{name} is empty: name at least one label"
        )
    twice = sorted({label for label in read.values() if list(read.values()).count(label) > 1})
    if twice:
        raise LearngeneError(f"{name} has more than one label named {twice[0]!r}")
    return dict(sorted(read.items()))


def _override(config: Any, modality: str, overrides: dict[str, Any]) -> None:
    """Set config fields on the parts of the config that have them."""
    encoders = encoders_of(config)
    wanted = [*encoders.values()] if modality == "multimodal" else [encoders[modality]]
    parts = wanted if modality == "text" else [config, *wanted]
    for name, value in overrides.items():
        if name in _DECIDED_BY_THE_GENE:
            raise LearngeneError(f"{name} cannot be overridden ({value!r}): the gene, depth and width decide it")
        holders = [part for part in parts if name in part.__dataclass_fields__]
        if not holders:
            raise LearngeneError(f"the descendant's config has no field {name!r} (given {value!r})")
        for part in holders:
            try:
                setattr(part, name, value)
            except (StrictDataclassError, ValueError, TypeError) as error:
                raise LearngeneError(f"{name} cannot be {value!r}: {first_line(error.__cause__ or error)}") from error


def _record_provenance(config: Any, gene: Any, modality: str) -> None:
    """Record the source on the config, and on the sub-configs: one encoder's class reads only its own."""
    source = {
        "learngene": _public(gene._name_or_path),
        "revision": getattr(gene, "_commit_hash", None),
        "ancestor": gene.ancestor,
    }
    if gene.ancestor and gene.ancestor.get("id"):
        source["ancestor"] = {**gene.ancestor, "id": _public(gene.ancestor["id"])}
    for part in (config, *encoders_of(config).values()):
        part.learngene = {**source, "modality": modality}


def _public(name: Any) -> str | None:
    """A name that says something elsewhere too: a Hub id or a bundled gene's, no path on this machine."""
    name = str(name or "")
    return name if REPO_ID.fullmatch(name) and not os.path.isdir(name) else None

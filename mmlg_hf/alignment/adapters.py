"""LilT's layer-wise adapters as a peft method: `get_peft_model(model, LayerwiseAdapterConfig())`.

A small residual network beside each sub-layer (LilT, Khan and Fu, ICLR 2023, arXiv 2303.11866):

    A(x) = x + up(GELU(down(x))),    down: d -> d/4,  up: d/4 -> d

Where it stands follows from what it wraps. Before a LayerNorm, in a pre-norm encoder: x + Attn(LN(A(x))). After the
last linear map of a sub-layer, in a post-norm encoder: LN(A(dense(h)) + x).
"""

import enum
import re
from dataclasses import dataclass, field
from typing import Any

import torch
from peft import PeftConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from torch import Tensor, nn

from ..errors import LearngeneError

# The LayerNorm before each sub-layer, as transformers' pre-norm encoders name it (ViT, DeiT, Swin; CLIP, SigLIP;
# DINOv2; GPT-2).
_BEFORE_SUBLAYER = re.compile(r"(^|\.)(layernorm_before|layernorm_after|layer_norm[12]|norm[12]|ln_[12])$")
# The last linear map of each sub-layer, as its post-norm encoders name it (BERT, RoBERTa, XLM-R, MiniLM; DistilBERT;
# MPNet).
_END_OF_SUBLAYER = re.compile(
    r"\.\d+\.(attention\.output\.dense|output\.dense|attention\.attn\.o|attention\.out_lin|ffn\.lin2)$"
)


class _AdapterType(str, enum.Enum):
    """peft's own enumeration is closed; its tables take any string that hashes alike."""

    LAYERWISE_ADAPTER = "LAYERWISE_ADAPTER"


def adapter_targets(model: nn.Module) -> list[str]:
    """Name the modules that LilT's adapters wrap: two for each layer of an encoder.

    Raises:
        LearngeneError: if the layers are named like none of the encoders we know.
    """
    names = [name for name, _ in model.named_modules()]
    targets = [name for name in names if _BEFORE_SUBLAYER.search(name)]
    targets = targets or [name for name in names if _END_OF_SUBLAYER.search(name)]
    if not targets:
        raise LearngeneError(
            f"cannot tell where the adapters of {type(model).__name__} belong: its layers are named neither like a "
            "pre-norm encoder's (ViT, DeiT, Swin, CLIP, SigLIP, DINOv2) nor like a post-norm encoder's (BERT, "
            "RoBERTa, DistilBERT, MPNet). Name them with target_modules, or align with a recipe without adapters"
        )
    return targets


@dataclass
class LayerwiseAdapterConfig(PeftConfig):
    """LilT's layer-wise adapters.

    Args:
        reduction: the bottleneck is the width divided by this; 4 in the paper.
        init_std: standard deviation of the initial weights; 0.02 in the paper. Biases start at zero.
        target_modules: names (or endings of names, or one regular expression) of the modules to wrap: LayerNorms,
            which get the adapter at their input, or linear maps, which get it at their output. None finds both
            LayerNorms of each pre-norm layer, or the last linear map of both sub-layers of each post-norm layer.
        exclude_modules: names of modules to leave out.
        modules_to_save: further modules to train and save whole, such as a new head.
    """

    reduction: int = field(default=4, metadata={"help": "the bottleneck is the width divided by this"})
    init_std: float = field(default=0.02, metadata={"help": "standard deviation of the initial weights"})
    target_modules: list[str] | str | None = field(default=None, metadata={"help": "modules to wrap; None finds them"})
    exclude_modules: list[str] | str | None = field(default=None, metadata={"help": "modules to leave out"})
    modules_to_save: list[str] | None = field(default=None, metadata={"help": "further modules to train and save"})

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = _AdapterType.LAYERWISE_ADAPTER
        if self.reduction < 1:
            raise LearngeneError(f"reduction is {self.reduction}: give 1 or more (4 makes the bottleneck a quarter)")


class Adapter(nn.Sequential):
    """up(GELU(down(x))), without the residual: [..., width] to [..., width]."""

    def __init__(self, width: int, reduction: int, init_std: float) -> None:
        if width // reduction < 1:
            raise LearngeneError(f"reduction {reduction} leaves no bottleneck in width {width}: give at most {width}")
        super().__init__()
        self.down = nn.Linear(width, width // reduction)
        self.activation = nn.GELU()
        self.up = nn.Linear(width // reduction, width)
        for linear in (self.down, self.up):
            nn.init.normal_(linear.weight, std=init_std)
            nn.init.zeros_(linear.bias)


class LayerwiseAdapterLayer(nn.Module, BaseTunerLayer):
    """A module with an adapter at its output (a linear map) or at its input (anything else, that is, a LayerNorm)."""

    adapter_layer_names = ("layerwise_adapter_layers",)

    def __init__(self, base_layer: nn.Module, adapter_name: str, config: LayerwiseAdapterConfig) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.layerwise_adapter_layers = nn.ModuleDict()
        self.merged_adapters: list[str] = []
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, config)

    @property
    def _is_after(self) -> bool:
        return isinstance(self.get_base_layer(), nn.Linear)

    def update_layer(self, adapter_name: str, config: LayerwiseAdapterConfig) -> None:
        """Add an adapter under a new name, on the device and in the dtype of the wrapped module."""
        base: Any = self.get_base_layer()
        width = base.out_features if self._is_after else base.weight.shape[-1]
        self.layerwise_adapter_layers[adapter_name] = Adapter(width, config.reduction, config.init_std)
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Raise: see `LayerwiseAdapterModel`."""
        raise LearngeneError(CANNOT_MERGE)

    def unmerge(self) -> None:
        """Do nothing: nothing is ever merged."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        active = [] if self.disable_adapters else self.active_adapters
        adapters = [self.layerwise_adapter_layers[name] for name in active if name in self.layerwise_adapter_layers]
        if self._is_after:
            return _apply(adapters, self.base_layer(x, *args, **kwargs))
        return self.base_layer(_apply(adapters, x), *args, **kwargs)

    def __repr__(self) -> str:
        return "layerwise_adapter." + super().__repr__()


def _apply(adapters: list[nn.Module], x: Tensor) -> Tensor:
    for adapter in adapters:
        x = x + adapter(x)
    return x


CANNOT_MERGE = (
    "layer-wise adapters cannot be merged: a GELU stands between their two linear maps, so no weights of the base "
    'model compute the same. Keep them (they are a few per cent of the model), or align with "lora" or "layernorm", '
    "which merge"
)


class LayerwiseAdapterModel(BaseTuner):
    """Puts LilT's adapters into a model; made by `peft.get_peft_model`. `unload()` takes them out, merging raises."""

    prefix: str = "layerwise_adapter_"
    tuner_layer_cls = LayerwiseAdapterLayer
    target_module_mapping: dict[str, list[str]] = {}

    def _prepare_adapter_config(self, peft_config: Any, model_config: dict) -> Any:
        if peft_config.target_modules is None:
            peft_config.target_modules = set(adapter_targets(self.model))
        return peft_config

    def _create_and_replace(
        self,
        peft_config: Any,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        if isinstance(target, LayerwiseAdapterLayer):
            target.update_layer(adapter_name, peft_config)
            return
        if not isinstance(getattr(target, "weight", None), torch.Tensor):
            raise LearngeneError(
                f"an adapter cannot wrap {current_key!r}, a {type(target).__name__}: target_modules takes LayerNorms "
                "and linear maps"
            )
        self._replace_module(parent, target_name, LayerwiseAdapterLayer(target, adapter_name, peft_config), target)

    def _check_merge_allowed(self) -> None:
        raise LearngeneError(CANNOT_MERGE)


# peft.utils.register_peft_method admits members of peft's own enumeration alone; these are the tables it fills.
PEFT_TYPE_TO_CONFIG_MAPPING[_AdapterType.LAYERWISE_ADAPTER] = LayerwiseAdapterConfig  # type: ignore[index]
PEFT_TYPE_TO_TUNER_MAPPING[_AdapterType.LAYERWISE_ADAPTER] = LayerwiseAdapterModel  # type: ignore[index]
PEFT_TYPE_TO_PREFIX_MAPPING[_AdapterType.LAYERWISE_ADAPTER] = LayerwiseAdapterModel.prefix  # type: ignore[index]

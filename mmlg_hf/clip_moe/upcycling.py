"""Dense CLIPs that differ only in their MLPs -> one CLIP mixture of experts."""

import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, CLIPConfig, CLIPModel

from ..checkpoints import check_finite, load_config, load_model
from ..data.identity import computed_fields
from ..errors import LearngeneError
from .configuration_clip_moe import CLIPMoEConfig
from .modeling_clip_moe import CLIPMoEModel

# CLIP's name of each MLP tensor -> the name of the stack of all experts' such tensors.
EXPERT_TENSORS = {
    "fc1.weight": "experts.up_proj",
    "fc1.bias": "experts.up_proj_bias",
    "fc2.weight": "experts.down_proj",
    "fc2.bias": "experts.down_proj_bias",
}
SIDES = ("vision", "text")
# Fields of an encoder's config beside those that the identity leaves out that do not change what its tensors compute:
# where it comes from, labels, how tensors are drawn, dropped out in training or returned.
_NOT_COMPUTED = (
    "learngene", "id2label", "label2id", "problem_type", "initializer_factor", "initializer_range",
    "attention_dropout", "output_hidden_states", "output_attentions", "return_dict", "use_cache",
)  # fmt: skip


def load_dense_clip(model: str | os.PathLike | CLIPModel, **kwargs: Any) -> CLIPModel:
    """Return a dense CLIP given as a model, a folder or a Hub id.

    Args:
        kwargs: passed on to `CLIPModel.from_pretrained` (`revision`, `token`, `dtype`, ...).

    Raises:
        LearngeneError: if it is a mixture already, no CLIP, damaged, or holds NaN.
    """
    if isinstance(model, (str, os.PathLike)):
        name, model_type = repr(os.fspath(model)), model_type_of(model, **kwargs)
    elif hasattr(model, "config"):
        name, model_type = f"the {type(model).__name__}", str(model.config.model_type)
    else:
        raise LearngeneError(f"the CLIP is a {type(model).__name__}: give a Hub id, a folder or a CLIPModel")
    if model_type == CLIPMoEConfig.model_type:
        raise LearngeneError(f"{name} is a mixture of experts already: give the dense CLIP it was made from")
    if model_type != CLIPConfig.model_type:
        raise LearngeneError(f"{name} is of type {model_type!r}: upcycling takes a CLIPModel (type 'clip')")
    if isinstance(model, (str, os.PathLike)):
        return load_model(CLIPModel, model, "the CLIP", **kwargs)
    if not isinstance(model, CLIPModel):
        raise LearngeneError(f"{name} has no text encoder or no image encoder: upcycling takes a whole CLIPModel")
    check_finite(model, name)
    return model


def model_type_of(name: str | os.PathLike, **kwargs: Any) -> str:
    """Read the `model_type` of a folder or a Hub id.

    Raises:
        LearngeneError: if there is no readable configuration.
    """
    hub = {key: kwargs[key] for key in ("revision", "token", "cache_dir", "local_files_only") if key in kwargs}
    return load_config(AutoConfig, name, "the model", **hub).model_type


def moe_config(
    base: CLIPConfig,
    *,
    num_experts: int,
    num_experts_per_tok: int,
    vision_layers: Sequence[int] | None = None,
    text_layers: Sequence[int] | None = None,
    router_aux_loss_coef: float = 0.01,
    router_z_loss_coef: float = 0.0,
) -> CLIPMoEConfig:
    """Return the configuration of the mixture of `num_experts` copies of a dense CLIP's MLPs; see `upcycle`."""
    parts: dict[str, Any] = {}
    for encoder, layers in zip(SIDES, (vision_layers, text_layers), strict=True):
        part = {key: value for key, value in base.to_dict()[f"{encoder}_config"].items() if key != "model_type"}
        routing = {"num_experts": num_experts, "num_experts_per_tok": num_experts_per_tok}
        parts[f"{encoder}_config"] = part | routing | {"moe_layers": None if layers is None else list(layers)}
    rest = {
        key: value
        for key, value in base.to_dict().items()
        if key not in ("vision_config", "text_config", "model_type", "architectures")
    }
    losses: dict[str, Any] = {"router_aux_loss_coef": router_aux_loss_coef, "router_z_loss_coef": router_z_loss_coef}
    return CLIPMoEConfig(**rest, **parts, **losses)


def upcycle(
    base: str | os.PathLike | CLIPModel,
    experts: Sequence[str | os.PathLike | CLIPModel],
    *,
    num_experts_per_tok: int = 2,
    vision_layers: Sequence[int] | None = None,
    text_layers: Sequence[int] | None = None,
    router_aux_loss_coef: float = 0.01,
    router_z_loss_coef: float = 0.0,
    seed: int = 0,
) -> CLIPMoEModel:
    """Assemble a mixture from a base CLIP and fine-tunes of it that differ from it in the MLPs alone.

    Everything but the MLPs comes from the base. In each chosen layer expert 0 is the base's MLP and expert i the MLP
    of `experts[i - 1]`; a new router (normal, standard deviation 0.02) chooses among them. A router's top-k weights
    sum to 1, so experts that are all copies of the base give a mixture that computes what the base computes: that is
    plain (sparse) upcycling.

    Args:
        base: a Hub id, a folder or a `CLIPModel`.
        experts: E - 1 of the same, at least one.
        num_experts_per_tok: experts that process one token, k.
        vision_layers: image layers that become mixtures, from 0; None takes all, () none.
        text_layers: text layers likewise.
        router_aux_loss_coef: weight of the load-balancing loss, kept in the config.
        router_z_loss_coef: weight of the router z-loss, likewise.
        seed: seeds the routers; the global random state is left as it was.

    Returns:
        The mixture in evaluation mode, on the base's device and in its dtype, or in a wider one that holds all experts
        without rounding. It shares no tensor with what was given.

    Raises:
        LearngeneError: k above E, no expert, a base or an expert that is a mixture already, no CLIP or damaged,
            experts of other shapes, with other fields in their config that change what is computed (naming the first),
            or that differ outside the chosen MLPs (naming the first such tensor).
    """
    num_experts = len(experts) + 1
    if num_experts < 2:
        raise LearngeneError("no expert was given: a mixture needs at least one beside the base")
    if not 1 <= num_experts_per_tok <= num_experts:
        raise LearngeneError(
            f"num_experts_per_tok is {num_experts_per_tok}, but there are {num_experts} experts (the base and "
            f"{num_experts - 1} given): it lies between 1 and {num_experts}"
        )
    dense = load_dense_clip(base)
    for encoder, layers in zip(SIDES, (vision_layers, text_layers), strict=True):
        depth = getattr(dense.config, f"{encoder}_config").num_hidden_layers
        if any(not 0 <= layer < depth for layer in layers or ()):
            raise LearngeneError(f"{encoder}_layers is {list(layers or ())}: the base has layers 0 to {depth - 1}")
    config = moe_config(
        dense.config,
        num_experts=num_experts,
        num_experts_per_tok=num_experts_per_tok,
        vision_layers=vision_layers,
        text_layers=text_layers,
        router_aux_loss_coef=router_aux_loss_coef,
        router_z_loss_coef=router_z_loss_coef,
    )
    # The CPU's generator alone is seeded and put back: torch.manual_seed would seed the accelerator's too.
    with torch.device("cpu"), torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        mixture: Any = CLIPMoEModel(config)
    mixture.to(device=dense.device, dtype=dense.dtype)
    _fill(mixture, dense, experts)
    return mixture.eval()


def expert_tensors(config: CLIPMoEConfig) -> dict[str, str]:
    """Map the dense name of each MLP tensor that is routed to the name of its stack in the mixture."""
    names = {}
    for encoder in SIDES:
        encoder_config = getattr(config, f"{encoder}_config")
        for layer in filter(encoder_config.is_moe_layer, range(encoder_config.num_hidden_layers)):
            prefix = f"{encoder}_model.encoder.layers.{layer}.mlp"
            names.update({f"{prefix}.{dense}": f"{prefix}.{stack}" for dense, stack in EXPERT_TENSORS.items()})
    return names


@torch.no_grad()
def _fill(mixture: Any, dense: CLIPModel, experts: Sequence[str | os.PathLike | CLIPModel]) -> None:
    """Copy the base's and the experts' tensors into the mixture, holding one expert in memory at a time."""
    source = dense.state_dict()
    routed = expert_tensors(mixture.config)
    target = mixture.state_dict()
    for name, tensor in source.items():
        target[routed.get(name, name)].copy_(tensor)  # a stack takes it for every expert
    for index, given in enumerate(experts, start=1):
        label = repr(os.fspath(given)) if isinstance(given, (str, os.PathLike)) else f"number {index}"
        expert = load_dense_clip(given)
        _check_tensors(label, expert.state_dict(), source, routed)
        _check_config(label, expert.config, dense.config)
        mixture.to(torch.promote_types(mixture.dtype, expert.dtype))
        target, tensors = mixture.state_dict(), expert.state_dict()
        for name, stack in routed.items():
            target[stack][index].copy_(tensors[name])


def _check_config(label: str, expert: CLIPConfig, base: CLIPConfig) -> None:
    """Refuse an expert whose config makes the same tensors compute something else."""
    configs = [computed_fields(config.to_dict()) for config in (base, expert)]
    for part in ("vision_config", "text_config"):
        ours, theirs = (config[part] for config in configs)
        for name in sorted(ours.keys() | theirs.keys()):
            if name not in _NOT_COMPUTED and ours.get(name) != theirs.get(name):
                raise LearngeneError(
                    f"expert {label} has {part}.{name} {theirs.get(name)!r}, the base {ours.get(name)!r}: experts are "
                    "fine-tunes of the base itself"
                )


def _check_tensors(label: str, expert: dict[str, Tensor], base: dict[str, Tensor], routed: dict[str, str]) -> None:
    """Refuse an expert of other shapes, or one that differs from the base outside the routed MLPs."""
    odd = sorted(base.keys() ^ expert.keys())
    if odd:
        owner = "the base" if odd[0] in base else "the expert"
        raise LearngeneError(f"expert {label} is built differently from the base: only {owner} has {odd[0]!r}")
    for name, tensor in base.items():
        other = expert[name]
        if other.shape != tensor.shape:
            raise LearngeneError(
                f"expert {label} has {name!r} of shape {list(other.shape)}, the base {list(tensor.shape)}: experts "
                "are fine-tunes of the base itself"
            )
        wider = torch.promote_types(other.dtype, tensor.dtype)
        if name not in routed and not torch.equal(other.to(tensor.device, wider), tensor.to(wider)):
            raise LearngeneError(
                f"expert {label} ({_dtype(other)}) differs from the base ({_dtype(tensor)}) in {name!r}: experts may "
                "differ only in the MLPs of the chosen layers, so fine-tune them with everything else frozen (`mmlg "
                "moe diversify` does), and save them in a data type that does not round the base"
            )


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def count_parameters(model: Any) -> dict[str, int]:
    """Count a model's parameters: `total`, and `active`, those that process one token (k of E experts).

    For a dense model both are the same.
    """
    total = sum(parameter.numel() for parameter in model.parameters())
    idle = 0
    for module in model.modules():
        if hasattr(module, "experts") and hasattr(module, "router"):
            size = sum(parameter.numel() for parameter in module.experts.parameters())
            idle += (
                size * (module.experts.num_experts - module.router.num_experts_per_tok) // module.experts.num_experts
            )
    return {"total": total, "active": total - idle}

"""Configuration of a CLIP whose MLPs are mixtures of experts (CLIP-MoE, arXiv 2409.19291)."""

from huggingface_hub.dataclasses import strict
from transformers import CLIPConfig, CLIPTextConfig, CLIPVisionConfig, PreTrainedConfig


def _check_experts(config: "CLIPMoEVisionConfig | CLIPMoETextConfig") -> None:
    """Check the routing numbers of one encoder against each other and against its depth."""
    if config.num_experts < 1:
        raise ValueError(f"num_experts is {config.num_experts}: a mixture has at least 1 expert.")
    if not 1 <= config.num_experts_per_tok <= config.num_experts:
        raise ValueError(
            f"num_experts_per_tok ({config.num_experts_per_tok}) must lie between 1 and num_experts "
            f"({config.num_experts})."
        )
    if config.moe_layers is not None:
        wrong = [layer for layer in config.moe_layers if not 0 <= layer < config.num_hidden_layers]
        if wrong or len(set(config.moe_layers)) != len(config.moe_layers):
            raise ValueError(
                f"moe_layers is {config.moe_layers}: it must name distinct layers from 0 to "
                f"{config.num_hidden_layers - 1} (num_hidden_layers is {config.num_hidden_layers})."
            )


@strict
class RoutedConfig(PreTrainedConfig):
    """How the MLPs of an encoder are routed.

    Args:
        num_experts: experts in each mixture, E.
        num_experts_per_tok: experts that process one token, k (top-k of the router's softmax, renormalised to sum 1).
        moe_layers: layers whose MLP is a mixture, counted from 0; None means every layer, `[]` means none.
    """

    num_experts: int = 4
    num_experts_per_tok: int = 2
    moe_layers: list[int] | None = None

    def validate_architecture(self):
        """Part of `@strict`-powered validation: run at construction, at attribute assignment and at save."""
        super().validate_architecture()
        _check_experts(self)

    def is_moe_layer(self, layer: int) -> bool:
        """Tell whether the MLP of this layer (from 0) is a mixture."""
        return self.moe_layers is None or layer in self.moe_layers


@strict
class CLIPMoEVisionConfig(RoutedConfig, CLIPVisionConfig):
    """Image encoder of a CLIP-MoE: a `CLIPVisionConfig` and how its MLPs are routed, see `RoutedConfig`."""

    model_type = "clip_moe_vision_model"
    base_config_key = "vision_config"


@strict
class CLIPMoETextConfig(RoutedConfig, CLIPTextConfig):
    """Text encoder of a CLIP-MoE: a `CLIPTextConfig` and how its MLPs are routed, see `RoutedConfig`."""

    model_type = "clip_moe_text_model"
    base_config_key = "text_config"


@strict
class CLIPMoEConfig(CLIPConfig):
    """A CLIP whose MLPs, in the layers chosen, are top-k routed experts.

    `num_experts` and `num_experts_per_tok` are the same in both encoders. They are kept in the encoders' own configs,
    so that either encoder loads alone; here they are read and set for both, also as keyword arguments.

    Args:
        vision_config: a `CLIPMoEVisionConfig` or its dictionary; None takes the defaults.
        text_config: a `CLIPMoETextConfig` or its dictionary; None takes the defaults.
        router_aux_loss_coef: weight of the load-balancing loss beside the contrastive one. That loss is the image
            encoder's plus half the text encoder's, as in CLIP-MoE's training.
        router_z_loss_coef: weight of the router z-loss, summed over the encoders in the same way; 0 leaves it out.
            CLIP-UP (arXiv 2502.00965) has it in its upcycling, ST-MoE's value is 0.001.
    """

    model_type = "clip_moe"
    sub_configs = {"vision_config": CLIPMoEVisionConfig, "text_config": CLIPMoETextConfig}
    sub_configs_defaults = {"vision_config": CLIPMoEVisionConfig, "text_config": CLIPMoETextConfig}
    keys_to_ignore_at_inference = ["aux_loss"]

    text_config: dict | CLIPMoETextConfig | None = None
    vision_config: dict | CLIPMoEVisionConfig | None = None
    router_aux_loss_coef: float = 0.01
    router_z_loss_coef: float = 0.0

    def __post_init__(self, **kwargs):
        routing = {
            name: kwargs.pop(name) for name in ("num_experts", "num_experts_per_tok") if kwargs.get(name) is not None
        }
        for name, config_class in self.sub_configs.items():
            given = getattr(self, name)
            if given is None or isinstance(given, dict):
                setattr(self, name, config_class(**((given or {}) | routing)))
            elif routing:
                _set_routing(given, **routing)
        for legacy in ("text_config_dict", "vision_config_dict"):
            kwargs.pop(legacy, None)
        # Past `CLIPConfig`'s own, which in transformers 5.13 makes stock configs of both encoders' again.
        super(CLIPConfig, self).__post_init__(**kwargs)

    def validate_architecture(self):
        """Part of `@strict`-powered validation: both encoders route alike."""
        for name in ("num_experts", "num_experts_per_tok"):
            vision, text = getattr(self.vision_config, name), getattr(self.text_config, name)
            if vision != text:
                raise ValueError(
                    f"vision_config.{name} ({vision}) differs from text_config.{name} ({text}): both encoders have "
                    "the same; to keep an encoder dense give it moe_layers=[]."
                )
        for name in ("router_aux_loss_coef", "router_z_loss_coef"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be 0 or more.")

    @property
    def num_experts(self) -> int:
        """Experts in each mixture, E."""
        return self.vision_config.num_experts  # type: ignore[union-attr]

    @num_experts.setter
    def num_experts(self, value: int):
        for config in (self.vision_config, self.text_config):
            _set_routing(config, num_experts=value)

    @property
    def num_experts_per_tok(self) -> int:
        """Experts that process one token, k."""
        return self.vision_config.num_experts_per_tok  # type: ignore[union-attr]

    @num_experts_per_tok.setter
    def num_experts_per_tok(self, value: int):
        for config in (self.vision_config, self.text_config):
            _set_routing(config, num_experts_per_tok=value)


def _set_routing(config, **routing: int) -> None:
    """Set the routing numbers of one encoder in an order that is valid at every step."""
    # Raising E before k, and lowering k before E, keeps k <= E after each single assignment.
    order = sorted(routing, reverse=routing.get("num_experts", 0) < config.num_experts)
    for name in order:
        setattr(config, name, routing[name])


__all__ = ["CLIPMoEConfig", "CLIPMoETextConfig", "CLIPMoEVisionConfig"]

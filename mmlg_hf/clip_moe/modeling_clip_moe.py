"""A CLIP whose MLPs are top-k routed experts (CLIP-MoE, arXiv 2409.19291): stock CLIP in everything else.

Attention, embeddings, pooling and projections are transformers' own classes; only the chosen layers' MLPs differ.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForZeroShotImageClassification,
    CLIPForImageClassification,
    CLIPModel,
    CLIPPreTrainedModel,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPVisionModel,
    CLIPVisionModelWithProjection,
    PreTrainedModel,
)
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.integrations import use_experts_implementation
from transformers.modeling_outputs import ImageClassifierOutput
from transformers.models.clip.modeling_clip import (
    CLIPAttention,
    CLIPEncoder,
    CLIPEncoderLayer,
    CLIPOutput,
    CLIPTextEmbeddings,
    CLIPVisionEmbeddings,
)
from transformers.utils import logging
from transformers.utils.generic import can_return_tuple
from transformers.utils.output_capturing import OutputRecorder

from .configuration_clip_moe import CLIPMoEConfig, CLIPMoETextConfig, CLIPMoEVisionConfig
from .router_losses import balance_loss, router_z_loss

logger = logging.get_logger(__name__)


@dataclass
class CLIPMoEOutput(CLIPOutput):
    """What `CLIPModel` returns, and the loss of the routers.

    Args:
        aux_loss (`torch.Tensor`, *optional*): `router_aux_loss_coef` * balance + `router_z_loss_coef` * z-loss, of the
            images plus half of the texts', a scalar that is contained in `loss`. None unless router logits were
            recorded.
    """

    aux_loss: torch.Tensor | None = None


@dataclass
class CLIPMoEImageClassifierOutput(ImageClassifierOutput):
    """What `CLIPForImageClassification` returns, and the loss of the image encoder's routers.

    Args:
        aux_loss (`torch.Tensor`, *optional*): `router_aux_loss_coef` * balance + `router_z_loss_coef` * z-loss, a
            scalar that is contained in `loss`. None unless router logits were recorded.
    """

    aux_loss: torch.Tensor | None = None


class CLIPMoERouter(nn.Module):
    """Linear gate without bias; float32 softmax, top-k, renormalised to sum 1."""

    def __init__(self, config: CLIPMoEVisionConfig | CLIPMoETextConfig):
        super().__init__()
        self.num_experts_per_tok = config.num_experts_per_tok
        self.weight = nn.Parameter(torch.empty(config.num_experts, config.hidden_size))

    def forward(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Route tokens [N, H]: router logits [N, E], weights [N, k] that sum to 1, expert indices [N, k]."""
        router_logits = nn.functional.linear(hidden_states, self.weight)
        probabilities = nn.functional.softmax(router_logits, dim=-1, dtype=torch.float32)
        weights, indices = torch.topk(probabilities, self.num_experts_per_tok, dim=-1)
        weights = weights / weights.sum(dim=-1, keepdim=True)
        return router_logits, weights.to(hidden_states.dtype), indices


# transformers looks for this decorator's text in the module to learn that the experts implementation can be chosen.
@use_experts_implementation(has_gate=False, has_bias=True)
class CLIPMoEExperts(nn.Module):
    """The MLPs of all experts, stacked: CLIP's fc1 is `up_proj` and its fc2 `down_proj`."""

    def __init__(self, config: CLIPMoEVisionConfig | CLIPMoETextConfig):
        super().__init__()
        self.num_experts = config.num_experts
        experts, width, inner = config.num_experts, config.hidden_size, config.intermediate_size
        self.up_proj = nn.Parameter(torch.empty(experts, inner, width))
        self.up_proj_bias = nn.Parameter(torch.empty(experts, inner))
        self.down_proj = nn.Parameter(torch.empty(experts, width, inner))
        self.down_proj_bias = nn.Parameter(torch.empty(experts, width))
        self.act_fn = ACT2FN[config.hidden_act]

    def forward(
        self, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        """Process tokens [N, H] by experts [N, k] with weights [N, k], one expert after another ("eager")."""
        output = torch.zeros_like(hidden_states)
        for expert in range(self.num_experts):
            token, slot = torch.where(top_k_index == expert)
            inner = nn.functional.linear(hidden_states[token], self.up_proj[expert], self.up_proj_bias[expert])
            outer = nn.functional.linear(self.act_fn(inner), self.down_proj[expert], self.down_proj_bias[expert])
            output = output.index_add(0, token, outer * top_k_weights[token, slot, None])
        return output


class CLIPMoEMLP(nn.Module):
    """The mixture that takes the place of `CLIPMLP`. Dropless: no expert has a capacity."""

    def __init__(self, config: CLIPMoEVisionConfig | CLIPMoETextConfig):
        super().__init__()
        self.router = CLIPMoERouter(config)
        self.experts = CLIPMoEExperts(config)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Process [B, T, H] and return [B, T, H]."""
        tokens = hidden_states.reshape(-1, hidden_states.shape[-1])  # [B * T, H]
        _, weights, indices = self.router(tokens)
        return self.experts(tokens, indices, weights).view_as(hidden_states)


class CLIPMoEEncoderLayer(CLIPEncoderLayer):
    """`CLIPEncoderLayer` with a mixture for its MLP."""

    def __init__(self, config: CLIPMoEVisionConfig | CLIPMoETextConfig):
        super().__init__(config)
        self.mlp: Any = CLIPMoEMLP(config)


class CLIPMoEEncoder(CLIPEncoder):
    """`CLIPEncoder` with mixtures in the layers that `config.moe_layers` names."""

    def __init__(self, config: CLIPMoEVisionConfig | CLIPMoETextConfig):
        nn.Module.__init__(self)
        self.config = config
        kinds = (CLIPEncoderLayer, CLIPMoEEncoderLayer)
        self.layers = nn.ModuleList(
            [kinds[config.is_moe_layer(layer)](config) for layer in range(config.num_hidden_layers)]
        )
        self.gradient_checkpointing = False


class CLIPMoEPreTrainedModel(CLIPPreTrainedModel):
    """Initialisation, loading, and what can be recorded, for all CLIP-MoE classes."""

    config: CLIPMoEConfig
    base_model_prefix = "clip_moe"
    accepts_loss_kwargs = False  # losses are means over the batch: the Trainer divides them by accumulation steps
    auto_class = "AutoModel"  # the class of transformers that loads a model saved with its own code
    _no_split_modules = ["CLIPTextEmbeddings", "CLIPEncoderLayer", "CLIPMoEEncoderLayer", "CLIPVisionEmbeddings"]
    # Otherwise the answer is cached on CLIPPreTrainedModel by whichever model is built first, and inherited here.
    _can_set_experts_implementation_cached_value = True
    _can_record_outputs = {
        "router_logits": OutputRecorder(CLIPMoERouter, index=0),
        "hidden_states": CLIPEncoderLayer,
        "attentions": CLIPAttention,
    }

    def save_pretrained(self, save_directory, *args, with_code: bool = False, **kwargs):
        """Save as any transformers model.

        Args:
            with_code: also save the code that loads the model, with `trust_remote_code=True`, where this package is
                not installed.
        """
        # As `remote_code.code_saved_along` does, which code that goes along with a mixture cannot import.
        classes: tuple[Any, ...] = (type(self), type(self.config))
        before, auto_map = [cls._auto_class for cls in classes], self.config.__dict__.pop("auto_map", None)
        if with_code:
            self.register_for_auto_class(self.auto_class)
            self.config.register_for_auto_class()
        try:
            super().save_pretrained(save_directory, *args, **kwargs)
        finally:
            for cls, auto_class in zip(classes, before, strict=True):
                cls._auto_class = auto_class
            self.config.__dict__.pop("auto_map", None)
            if auto_map is not None:
                self.config.auto_map = auto_map

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, CLIPMoEExperts):
            config: Any = module.config  # the standard deviations of CLIP's own MLP
            factor: Any = self.config.initializer_factor
            in_proj_std = config.hidden_size**-0.5 * (2 * config.num_hidden_layers) ** -0.5 * factor
            init.normal_(module.up_proj, std=(2 * config.hidden_size) ** -0.5 * factor)
            init.normal_(module.down_proj, std=in_proj_std)
            init.zeros_(module.up_proj_bias)
            init.zeros_(module.down_proj_bias)
        elif isinstance(module, CLIPMoERouter):
            init.normal_(module.weight, std=0.02 * self.config.initializer_factor)


class CLIPMoETextModel(CLIPMoEPreTrainedModel, CLIPTextModel):
    """`CLIPTextModel` with mixtures of experts. Loads from a whole CLIP-MoE too."""

    config: CLIPMoETextConfig
    base_model_prefix = "text_model"
    input_modalities = ("text",)

    def __init__(self, config: CLIPMoETextConfig):
        PreTrainedModel.__init__(self, config)
        self.embeddings = CLIPTextEmbeddings(config)
        self.encoder = CLIPMoEEncoder(config)
        self.final_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.eos_token_id = config.eos_token_id
        self.post_init()


class CLIPMoEVisionModel(CLIPMoEPreTrainedModel, CLIPVisionModel):
    """`CLIPVisionModel` with mixtures of experts. Loads from a whole CLIP-MoE too."""

    config: CLIPMoEVisionConfig
    base_model_prefix = "vision_model"
    input_modalities = ("image",)

    def __init__(self, config: CLIPMoEVisionConfig):
        PreTrainedModel.__init__(self, config)
        self.embeddings = CLIPVisionEmbeddings(config)
        self.pre_layrnorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.encoder = CLIPMoEEncoder(config)
        self.post_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_init()


class CLIPMoEModel(CLIPMoEPreTrainedModel, CLIPModel):
    """`CLIPModel` with mixtures of experts: same inputs, same outputs, and `aux_loss` after them."""

    config: CLIPMoEConfig

    def __init__(self, config: CLIPMoEConfig):
        PreTrainedModel.__init__(self, config)
        vision_config: Any = config.vision_config
        text_config: Any = config.text_config
        self.projection_dim = config.projection_dim
        self.text_embed_dim = text_config.hidden_size
        self.vision_embed_dim = vision_config.hidden_size
        self.text_model = CLIPMoETextModel._from_config(text_config)
        self.vision_model = CLIPMoEVisionModel._from_config(vision_config)
        self.visual_projection = nn.Linear(self.vision_embed_dim, self.projection_dim, bias=False)
        self.text_projection = nn.Linear(self.text_embed_dim, self.projection_dim, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(config.logit_scale_init_value))
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        pixel_values: torch.FloatTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        return_loss: bool | None = None,
        interpolate_pos_encoding: bool = False,
        output_router_logits: bool | None = None,
        **kwargs,
    ) -> CLIPMoEOutput:
        """As `CLIPModel.forward`.

        Args:
            return_loss: also return the local contrastive loss; in training with the routers' loss added.
            output_router_logits: return `router_logits` in `vision_model_output` and `text_model_output`, one
                [B * T, E] for each mixture, and `aux_loss`. None means: in training when `return_loss`.
        """
        if output_router_logits is None:
            output_router_logits = bool(return_loss) and self.training
        outputs = super().forward(
            input_ids=input_ids,
            pixel_values=pixel_values,
            attention_mask=attention_mask,
            position_ids=position_ids,
            return_loss=return_loss,
            interpolate_pos_encoding=interpolate_pos_encoding,
            output_router_logits=output_router_logits,
            return_dict=True,
            **kwargs,
        )
        aux_loss = None
        if output_router_logits:
            image = _router_loss(self.config, self.vision_model, outputs.vision_model_output.router_logits)
            text = _router_loss(self.config, self.text_model, outputs.text_model_output.router_logits, attention_mask)
            aux_loss = image + text.to(image.device) / 2
        loss = outputs.loss
        if loss is not None and aux_loss is not None:
            loss = loss + aux_loss.to(loss.device)
        return CLIPMoEOutput(**{**outputs, "loss": loss, "aux_loss": aux_loss})


class CLIPMoETextModelWithProjection(CLIPMoEPreTrainedModel, CLIPTextModelWithProjection):
    """`CLIPTextModelWithProjection` with mixtures of experts."""

    config: CLIPMoETextConfig
    base_model_prefix = "text_model"
    input_modalities = ("text",)

    def __init__(self, config: CLIPMoETextConfig):
        PreTrainedModel.__init__(self, config)
        self.text_model = CLIPMoETextModel._from_config(config)
        self.text_projection = nn.Linear(config.hidden_size, config.projection_dim, bias=False)
        self.post_init()


class CLIPMoEVisionModelWithProjection(CLIPMoEPreTrainedModel, CLIPVisionModelWithProjection):
    """`CLIPVisionModelWithProjection` with mixtures of experts."""

    config: CLIPMoEVisionConfig
    base_model_prefix = "vision_model"
    input_modalities = ("image",)

    def __init__(self, config: CLIPMoEVisionConfig):
        PreTrainedModel.__init__(self, config)
        self.vision_model = CLIPMoEVisionModel._from_config(config)
        self.visual_projection = nn.Linear(config.hidden_size, config.projection_dim, bias=False)
        self.post_init()


class CLIPMoEForImageClassification(CLIPMoEPreTrainedModel, CLIPForImageClassification):
    """`CLIPForImageClassification` with mixtures of experts: a linear head on the mean of the patch tokens."""

    config: CLIPMoEConfig
    auto_class = "AutoModelForImageClassification"
    input_modalities = ("image",)

    def __init__(self, config: CLIPMoEConfig):
        PreTrainedModel.__init__(self, config)
        self.num_labels = config.num_labels
        vision_config: Any = config.vision_config
        self.vision_model = CLIPMoEVisionModel._from_config(vision_config)
        width = vision_config.hidden_size
        self.classifier = nn.Linear(width, config.num_labels) if config.num_labels > 0 else nn.Identity()
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        output_router_logits: bool | None = None,
        **kwargs,
    ) -> CLIPMoEImageClassifierOutput:
        """As `CLIPForImageClassification.forward`.

        Args:
            labels: class indices [B]; in training the routers' loss is added to theirs.
            output_router_logits: compute `aux_loss`. None means: in training when there are labels.
        """
        if output_router_logits is None:
            output_router_logits = labels is not None and self.training
        outputs = self.vision_model(
            pixel_values, output_router_logits=output_router_logits, return_dict=True, **kwargs
        )
        logits = self.classifier(outputs.last_hidden_state[:, 1:, :].mean(dim=1))  # [B, num_labels]
        loss = aux_loss = None
        if output_router_logits:
            aux_loss = _router_loss(self.config, self.vision_model, outputs.router_logits)
        if labels is not None:
            loss = self.loss_function(labels, logits, self.config)
            loss = loss if aux_loss is None else loss + aux_loss.to(loss.device)
        return CLIPMoEImageClassifierOutput(
            loss=loss,
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            aux_loss=aux_loss,
        )


def _router_loss(
    config: CLIPMoEConfig,
    encoder: CLIPMoEVisionModel | CLIPMoETextModel,
    router_logits: tuple[torch.Tensor, ...],
    attention_mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """The balance loss and the z-loss of one encoder by their weights in `config`; 0 without any mixture."""
    if not router_logits:
        return torch.zeros(())
    routers = [module for module in encoder.modules() if isinstance(module, CLIPMoERouter)]
    trained = any(router.weight.requires_grad for router in routers)
    if trained and torch.is_grad_enabled() and not router_logits[-1].requires_grad:
        logger.warning_once(
            "The load-balancing loss has no gradient: reentrant gradient checkpointing cuts router logits off. Pass "
            'gradient_checkpointing_kwargs={"use_reentrant": False}.'
        )
    own: Any = encoder.config
    balance = balance_loss(router_logits, own.num_experts, own.num_experts_per_tok, attention_mask)
    loss = config.router_aux_loss_coef * balance
    if config.router_z_loss_coef:
        loss = loss + config.router_z_loss_coef * router_z_loss(router_logits, attention_mask)
    return loss


for _config, _model in (
    (CLIPMoEConfig, CLIPMoEModel),
    (CLIPMoEVisionConfig, CLIPMoEVisionModel),
    (CLIPMoETextConfig, CLIPMoETextModel),
):
    AutoConfig.register(_config.model_type, _config, exist_ok=True)
    AutoModel.register(_config, _model, exist_ok=True)
AutoModelForZeroShotImageClassification.register(CLIPMoEConfig, CLIPMoEModel, exist_ok=True)
AutoModelForImageClassification.register(CLIPMoEConfig, CLIPMoEForImageClassification, exist_ok=True)

__all__ = [
    "CLIPMoEForImageClassification",
    "CLIPMoEModel",
    "CLIPMoEPreTrainedModel",
    "CLIPMoETextModel",
    "CLIPMoETextModelWithProjection",
    "CLIPMoEVisionModel",
    "CLIPMoEVisionModelWithProjection",
]

"""The aligned pair: any image encoder and any text encoder, on `VisionTextDualEncoderModel`'s contract."""

import os
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForZeroShotImageClassification,
    PreTrainedModel,
    VisionTextDualEncoderModel,
)
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.clip.modeling_clip import CLIPOutput
from transformers.utils import can_return_tuple

from ..checkpoints import check_finite, load_config
from ..data.texts import pads_to_one_length
from ..errors import LearngeneError
from ..training.losses import contrastive_loss
from .configuration import MAX_LOGIT_SCALE, MIN_LOGIT_SCALE, DualEncoderConfig
from .encoders import choose_dtype, encoder_class
from .heads import make_head
from .pooling import pad_to_one_length, pool_image, pool_text
from .recipes import add_trained_modules, frozen_names, mark_trainable, parts_of
from .report import count_trainable, trainable_table
from .saving import complete_weights, read_weights
from .structure import structure_loss

_HUB_ARGUMENTS = ("revision", "token", "cache_dir", "local_files_only", "force_download", "subfolder", "proxies")


@dataclass
class DualEncoderOutput(CLIPOutput):
    """What `CLIPModel` returns, and `aux_loss`, STRUCTURE's regulariser, in training with a `structure_weight`."""

    aux_loss: Tensor | None = None


class DualEncoderModel(VisionTextDualEncoderModel):
    """An image encoder and a text encoder with projections into one space and a temperature; made by `align`.

    Takes and returns what `VisionTextDualEncoderModel` does. The states that are projected are chosen by the config's
    poolings rather than always the encoder's `pooler_output`, and the loss counts the negatives of all processes.

    Saving writes the trained part alone, where both encoders can be found again (see `save_pretrained`).
    """

    config: DualEncoderConfig
    config_class = DualEncoderConfig
    supports_gradient_checkpointing = True
    # The loss is a mean over one batch, so the Trainer must divide it by its accumulation steps.
    accepts_loss_kwargs = False
    # What training holds the logit scale within; ContrastiveTrainer reads it.
    logit_scale_range = (MIN_LOGIT_SCALE, MAX_LOGIT_SCALE)

    def __init__(
        self,
        config: DualEncoderConfig | None = None,
        vision_model: PreTrainedModel | None = None,
        text_model: PreTrainedModel | None = None,
    ) -> None:
        if config is not None:
            vision_model = vision_model or encoder_class(config.vision_config)._from_config(config.vision_config)
            text_model = text_model or encoder_class(config.text_config)._from_config(config.text_config)
        super().__init__(config, vision_model, text_model)
        for modality, encoder in (("vision", self.vision_model), ("text", self.text_model)):
            # A pooler that nothing reads would be trained by no gradient, counted, and missed by distributed training.
            if getattr(self.config, f"{modality}_pooling") != "pooler" and hasattr(encoder, "pooler"):
                encoder.pooler = None
        for name, width in (("visual_projection", self.vision_embed_dim), ("text_projection", self.text_embed_dim)):
            setattr(self, name, self._make_head(width))
        add_trained_modules(self)
        mark_trainable(self)
        # What Trainer need not look for in a checkpoint when it resumes.
        self._keys_to_ignore_on_save = frozen_names(self) if self.can_be_rebuilt else set()

    def _make_head(self, width: int) -> nn.Module:
        config = self.config
        head = make_head(
            config.projection_head,
            width,
            config.projection_dim,
            bias=config.projection_bias,
            expansion=config.head_expansion,
        )
        for module in head.modules():
            self._init_weights(module)
        return head

    def encode_images(self, pixel_values: Tensor, **kwargs: Any) -> tuple[Tensor, Any]:
        """Return what the image head is given, the pooled states [B, D], and the image encoder's outputs.

        Args:
            pixel_values: [B, C, H, W].
        """
        outputs = self.vision_model(pixel_values=pixel_values, return_dict=True, **_given(kwargs))
        return pool_image(self.vision_model, outputs, self.config.vision_pooling, pixel_values), outputs

    def encode_texts(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, **kwargs: Any
    ) -> tuple[Tensor, Any]:
        """Return what the text head is given, the pooled states [B, D], and the text encoder's outputs.

        Args:
            input_ids: [B, T].
            attention_mask: [B, T]; None means that there is no padding.
        """
        own_mask = attention_mask
        if pads_to_one_length(self.config.text_config):
            input_ids, own_mask = pad_to_one_length(self.config.text_config, input_ids, attention_mask)
            attention_mask = None
            kwargs |= {"position_ids": None, "token_type_ids": None}
        outputs = self.text_model(
            input_ids=input_ids, attention_mask=attention_mask, return_dict=True, **_given(kwargs)
        )
        return pool_text(self.text_model, outputs, self.config.text_pooling, own_mask), outputs

    @can_return_tuple
    def get_image_features(self, pixel_values: Tensor, **kwargs: Any) -> BaseModelOutputWithPooling:
        """Return the image encoder's outputs, with the projected state [B, projection_dim] as `pooler_output`.

        Args:
            pixel_values: [B, C, H, W].
        """
        states, outputs = self.encode_images(pixel_values, **kwargs)
        return _with_pooled(outputs, self.visual_projection(states))

    @can_return_tuple
    def get_text_features(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, **kwargs: Any
    ) -> BaseModelOutputWithPooling:
        """Return the text encoder's outputs, with the projected state [B, projection_dim] as `pooler_output`.

        Args:
            input_ids: [B, T].
            attention_mask: [B, T]; None means that there is no padding.

        An encoder that reads the state of the last position (SigLIP's) was trained on texts of one length: shorter
        ones are padded to it here, so that a text's state does not depend on the rest of its batch.
        """
        states, outputs = self.encode_texts(input_ids, attention_mask, **kwargs)
        return _with_pooled(outputs, self.text_projection(states))

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        return_loss: bool | None = None,
        token_type_ids: Tensor | None = None,
        image_states: Tensor | None = None,
        text_states: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        **kwargs: Any,
    ) -> DualEncoderOutput:
        """Embed images and texts, and compare each with each.

        Args:
            input_ids: [B, T].
            pixel_values: [I, C, H, W]; I equals B where `return_loss` is set.
            return_loss: whether to return the contrastive loss with the negatives of all processes.
            image_states: [I, D], what `encode_images` gave, in place of `pixel_values`: see `keep_states`.
            text_states: [B, E], what `encode_texts` gave, in place of `input_ids`.
        """
        wanted = {"output_attentions": output_attentions, "output_hidden_states": output_hidden_states}
        images = {"pixel_values": pixel_values, "image_states": image_states}
        image_states, vision_outputs = _encoded(self.encode_images, images, wanted)
        texts = {"input_ids": input_ids, "text_states": text_states}
        others = {"attention_mask": attention_mask, "position_ids": position_ids, "token_type_ids": token_type_ids}
        text_states, text_outputs = _encoded(self.encode_texts, texts, wanted | others)
        image_embeds = F.normalize(self.visual_projection(image_states), dim=-1)
        text_embeds = F.normalize(self.text_projection(text_states), dim=-1)
        if self.training and self.logit_scale.requires_grad:
            with torch.no_grad():
                self.logit_scale.clamp_(*self.logit_scale_range)
        scale = self.logit_scale.exp()
        logits_per_text = text_embeds @ image_embeds.T * scale
        loss = contrastive_loss(image_embeds, text_embeds, scale) if return_loss else None
        aux_loss = self._structure_loss((image_states, image_embeds), (text_states, text_embeds))
        return DualEncoderOutput(
            loss=loss if loss is None or aux_loss is None else loss + aux_loss,
            logits_per_image=logits_per_text.T,
            logits_per_text=logits_per_text,
            text_embeds=text_embeds,
            image_embeds=image_embeds,
            text_model_output=text_outputs,
            vision_model_output=vision_outputs,
            aux_loss=aux_loss,
        )

    def _structure_loss(self, *sides: tuple[Tensor, Tensor]) -> Tensor | None:
        """STRUCTURE's regulariser of images and texts; None where it is off, and where nothing is trained."""
        config = self.config
        if not (self.training and config.structure_weight):
            return None
        temperature, levels = config.structure_temperature, config.structure_levels
        losses = [structure_loss(*side, temperature=temperature, levels=levels) for side in sides]
        return config.structure_weight * torch.stack(losses).sum()

    def get_nb_trainable_parameters(self) -> tuple[int, int]:
        """Return the numbers of trainable parameters and of all parameters, as peft's method of that name does.

        A LayerNorm under peft's LayerNorm tuning counts once, though its original is kept beside the trained copy.
        """
        return count_trainable(self)["all"]

    def print_trainable_parameters(self) -> None:
        """Print a table of trainable and of all parameters, for each encoder, the projections and the whole."""
        from rich.console import Console

        Console().print(trainable_table(self))

    def merge_and_unload(self) -> "DualEncoderModel":
        """Fold what was trained into plain weights and return the model, now of recipe "full".

        LoRA's updates are added to the weights and tuned LayerNorms take their originals' place. The other recipes
        without adapters have changed plain weights to begin with. The merged model is saved whole.

        Raises:
            LearngeneError: for layer-wise adapters, which are no linear maps; nothing is changed then.
        """
        if "adapters" in parts_of(self.config.recipe):
            from .adapters import CANNOT_MERGE

            raise LearngeneError(CANNOT_MERGE)
        for name, module in list(self.named_modules()):
            if hasattr(module, "get_base_layer"):  # a peft layer
                module.merge()
                self.set_submodule(name, module.get_base_layer())
        if hasattr(self, "peft_config"):
            del self.peft_config
        self.config.recipe = "full"
        mark_trainable(self)
        self._keys_to_ignore_on_save = set()
        return self

    @property
    def can_be_rebuilt(self) -> bool:
        """Whether every encoder with frozen weights can be found again, so that the trained part is enough to save."""
        frozen = frozen_names(self)
        return all(
            getattr(self.config, f"{modality}_base") is not None
            or not any(name.startswith(f"{modality}_model.") for name in frozen)
            for modality in ("vision", "text")
        )

    def save_pretrained(
        self, save_directory: str | os.PathLike, *args: Any, trained_only: bool | None = None, **kwargs: Any
    ) -> None:
        """Save the trained part and the config, which names the encoders by id and commit.

        The folder holds config.json and model.safetensors, as any model's does; frozen weights are left out of the
        latter. `from_pretrained` takes them from the encoders' own repositories.

        Args:
            save_directory: the folder, made if need be.
            trained_only: False saves the frozen weights too. None leaves them out where both encoders can be found
                again: they were given to `align` by name, or as models that were loaded by name.
            args, kwargs: as for `PreTrainedModel.save_pretrained`.

        Raises:
            LearngeneError: `trained_only` is True, and an encoder was made in memory.
        """
        if trained_only and not self.can_be_rebuilt:
            raise LearngeneError(
                "only the trained part was to be saved, but no name is recorded for an encoder, so nothing could load "
                "it again: save the encoders first and align them by folder or Hub id, or leave trained_only out"
            )
        leave_out = self.can_be_rebuilt if trained_only is None else trained_only
        self._keys_to_ignore_on_save = frozen_names(self) if leave_out else set()
        # Names as they are in memory: Trainer reads checkpoints so, and added modules have no other names.
        super().save_pretrained(save_directory, *args, **{"save_original_format": False, **kwargs})

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: Any = None, *args: Any, vision: Any = None, text: Any = None, **kwargs: Any
    ) -> Any:
        """Load an aligned pair, fetching the encoders it was saved without.

        Args:
            pretrained_model_name_or_path: a Hub id or a folder.
            vision: where the image encoder is now: a Hub id, a folder or a model; None takes the recorded place.
            text: the same for the text encoder.
            kwargs: as for `PreTrainedModel.from_pretrained`.

        Raises:
            LearngeneError: if a base encoder is missing or is another one than the pair was trained on, or if weights
                are missing, unexpected or of another shape.
        """
        if pretrained_model_name_or_path is None:
            return super().from_pretrained(None, *args, **kwargs)
        name = os.fspath(pretrained_model_name_or_path)
        hub = {key: kwargs.pop(key) for key in _HUB_ARGUMENTS if kwargs.get(key) is not None}
        config = kwargs.pop("config", None) or load_config(cls.config_class, name, "the aligned pair", **hub)
        weights = complete_weights(cls, config, read_weights(name, **hub), vision, text, hub)
        # The pair's own data type, whatever its encoders' files hold.
        given = kwargs.pop("torch_dtype", None)
        kwargs["dtype"] = choose_dtype(kwargs.pop("dtype", given)) or config.dtype or torch.float32
        model = super().from_pretrained(None, *args, config=config, state_dict=weights, **kwargs)
        loaded = model[0] if isinstance(model, tuple) else model
        check_finite(loaded, f"the aligned pair {name!r}")
        loaded.config._name_or_path = loaded.name_or_path = name
        mark_trainable(loaded)
        return model

    def push_to_hub(  # type: ignore[override]
        self,
        repo_id: str,
        *,
        processor: Any = None,
        results: Any = None,
        license: str | None = None,
        trained_only: bool | None = None,
        private: bool | None = None,
        token: str | bool | None = None,
        revision: str | None = None,
        commit_message: str = "Upload aligned image and text encoders",
        create_pr: bool = False,
        **kwargs: Any,
    ) -> str:
        """Push what `save_pretrained` writes, the processor, and a card.

        Args:
            repo_id: "namespace/name", made if need be.
            processor: the processor to push along; None pushes none.
            results: measured results for the card, see `mmlg_hf.create_model_card`; None leaves them out.
            license: licence of the trained part; None leaves it out of the card.
            trained_only: as for `save_pretrained`.
            private, token, revision, commit_message, create_pr: as for `PreTrainedModel.push_to_hub`.
            kwargs: further settings of `mmlg_hf.create_model_card`.

        Returns:
            the address of the commit.
        """
        from .saving import push

        settings = {"private": private, "token": token, "revision": revision, "create_pr": create_pr}
        card = {"results": results, "license": license, **kwargs}
        return push(self, repo_id, processor, card, trained_only, {**settings, "commit_message": commit_message})


def _given(arguments: dict[str, Any]) -> dict[str, Any]:
    """Leave out what is None: not every encoder takes every argument."""
    return {name: value for name, value in arguments.items() if value is not None}


def _encoded(encode: Any, given: dict[str, Tensor | None], others: dict[str, Any]) -> tuple[Tensor, Any]:
    """States and the encoder's outputs: of the inputs, or kept states as they are, of which there are no outputs.

    Args:
        encode: `encode_images` or `encode_texts`.
        given: the inputs and the kept states by their names, of which one is None.
        others: of the encoder.
    """
    (name, inputs), (kept, states) = given.items()
    if (states is None) == (inputs is None):
        raise LearngeneError(
            f"{name} is {'missing' if states is None else f'given beside {kept}'}: forward compares images with "
            f"texts, and takes {name} or what the encoder made of them, {kept}; embed one of them with "
            "get_image_features or get_text_features"
        )
    return encode(inputs, **others) if states is None else (states, None)


def _with_pooled(outputs: Any, pooled: Tensor) -> BaseModelOutputWithPooling:
    return BaseModelOutputWithPooling(
        last_hidden_state=outputs.last_hidden_state,
        pooler_output=pooled,
        hidden_states=getattr(outputs, "hidden_states", None),
        attentions=getattr(outputs, "attentions", None),
    )


AutoConfig.register(DualEncoderConfig.model_type, DualEncoderConfig, exist_ok=True)
AutoModel.register(DualEncoderConfig, DualEncoderModel, exist_ok=True)
AutoModelForZeroShotImageClassification.register(DualEncoderConfig, DualEncoderModel, exist_ok=True)

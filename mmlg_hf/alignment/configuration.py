"""The configuration of an aligned pair."""

from math import log
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import VisionTextDualEncoderConfig

from ..errors import LearngeneError
from .heads import check_head
from .pooling import check_pooling
from .recipes import parts_of
from .structure import check_structure

# LilT clamps its temperature to [0.001, 0.5]; the logit scale is ln(1 / temperature).
MIN_LOGIT_SCALE, MAX_LOGIT_SCALE = log(1 / 0.5), log(1 / 0.001)


@strict
class DualEncoderConfig(VisionTextDualEncoderConfig):
    """Configuration of a `DualEncoderModel`.

    Args:
        vision_config: the image encoder's own configuration.
        text_config: the text encoder's own configuration.
        projection_dim: size of the shared space; 256 in LilT.
        logit_scale_init_value: ln(1 / temperature) at the start; LilT's temperature is 0.07.
        vision_pooling: "class", "mean" (over patches) or "pooler" (the encoder's own).
        text_pooling: "class", "mean" (over tokens), "end" (the last token) or "pooler".
        projection_bias: whether the projections have a bias, as LilT's do.
        recipe: what trains, see `mmlg_hf.alignment.RECIPES`.
        projection_head: "linear", "mlp" or "glu", see `mmlg_hf.alignment.HEADS`.
        head_expansion: the inner layer of an MLP or a GLU has this many times the state's width; None takes 4 and 8.
        structure_weight: of STRUCTURE's regulariser in the training loss, `structure_loss` of images and of texts
            summed; 0 leaves it out, the paper (arXiv 2506.16895) has 10.
        structure_temperature: of its softmax.
        structure_levels: how many steps between neighbours it looks at.
        adapter_reduction: layer-wise adapters' bottleneck is the width divided by this.
        lora_rank: rank of LoRA's updates; None takes 1/24 of each encoder's width (32 at 768).
        vision_base: `name`, `revision` and `fingerprint` of the image encoder before alignment; None for one made in
            memory.
        text_base: the same of the text encoder.
    """

    model_type = "mmlg-dual-encoder"

    projection_dim: int = 256
    vision_pooling: str = "class"
    text_pooling: str = "class"
    projection_bias: bool = True
    recipe: str = "full"
    projection_head: str = "linear"
    head_expansion: int | None = None
    structure_weight: float = 0.0
    structure_temperature: float = 0.05
    structure_levels: int = 1
    adapter_reduction: int = 4
    lora_rank: int | None = None
    vision_base: dict | None = None
    text_base: dict | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        check_pooling("vision", self.vision_pooling)
        check_pooling("text", self.text_pooling)
        parts_of(self.recipe)
        check_head(self.projection_head, self.head_expansion)
        check_structure(self.structure_weight, self.structure_temperature, self.structure_levels)
        if self.projection_dim < 1 or (self.lora_rank is not None and self.lora_rank < 1):
            raise LearngeneError(
                f"projection_dim is {self.projection_dim} and lora_rank {self.lora_rank}: both take 1 or more"
            )
        super().__post_init__(**kwargs)

"""Pico encoders of several kinds, and what is done to aligned pairs of them."""

import torch
from pico import IMAGE_SIZE, pico_clip
from transformers import (
    BertConfig,
    BertModel,
    CLIPTextModelWithProjection,
    CLIPVisionModelWithProjection,
    DeiTConfig,
    DeiTModel,
    Dinov2Config,
    Dinov2Model,
    DistilBertConfig,
    DistilBertModel,
    GPT2Config,
    GPT2Model,
    PreTrainedModel,
    SiglipVisionConfig,
    SiglipVisionModel,
    ViTConfig,
    ViTModel,
    XLMRobertaConfig,
    XLMRobertaModel,
)

WIDTH = 32
_LAYERS = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
_IMAGES = {"image_size": IMAGE_SIZE, "patch_size": 8}
_TEXTS = {"vocab_size": 600, "max_position_embeddings": 40}


def make_encoder(kind: str, seed: int = 0) -> PreTrainedModel:
    """A pico encoder of a kind, its weights fixed by the seed."""
    makers = {
        "clip-vision": lambda: CLIPVisionModelWithProjection(pico_clip().config.vision_config),
        "vit": lambda: ViTModel(ViTConfig(**_LAYERS, **_IMAGES)),
        "deit": lambda: DeiTModel(DeiTConfig(**_LAYERS, **_IMAGES)),
        "dinov2": lambda: Dinov2Model(
            Dinov2Config(hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=2, mlp_ratio=2, **_IMAGES)
        ),
        "siglip-vision": lambda: SiglipVisionModel(SiglipVisionConfig(**_LAYERS, **_IMAGES)),
        "clip-text": lambda: CLIPTextModelWithProjection(pico_clip().config.text_config),
        "bert": lambda: BertModel(BertConfig(**_LAYERS, **_TEXTS)),
        "xlm-r": lambda: XLMRobertaModel(XLMRobertaConfig(**_LAYERS, **_TEXTS)),
        "distilbert": lambda: DistilBertModel(
            DistilBertConfig(dim=WIDTH, n_layers=2, n_heads=2, hidden_dim=64, **_TEXTS)
        ),
        "gpt2": lambda: GPT2Model(
            GPT2Config(
                n_embd=WIDTH, n_layer=2, n_head=2, vocab_size=600, n_positions=40, bos_token_id=1, eos_token_id=2
            )
        ),
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return makers[kind]().eval()


def perturb(model: torch.nn.Module, seed: int = 1) -> None:
    """Move every trainable parameter, so that one that is initialised anew cannot pass for a loaded one."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


def batch(size: int = 3, seed: int = 2) -> dict[str, torch.Tensor]:
    """Random images and random token ids that end with CLIP's end token, without padding."""
    generator = torch.Generator().manual_seed(seed)
    eos = pico_clip().config.text_config.eos_token_id
    ids = torch.randint(3, 100, (size, 7), generator=generator)
    ids[:, -1] = eos
    pixels = torch.randn(size, 3, IMAGE_SIZE, IMAGE_SIZE, generator=generator)
    return {"input_ids": ids, "pixel_values": pixels, "attention_mask": torch.ones_like(ids)}

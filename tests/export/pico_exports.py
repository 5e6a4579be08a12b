"""Pico models of every kind that is exported, saved with their processors."""

import copy

import torch
from pico import IMAGE_SIZE, MAX_LENGTH, pico_clip, pico_processor, pico_tokenizer
from pico_genes import multimodal_gene, perturb
from transformers import (
    BertConfig,
    BertModel,
    CLIPForImageClassification,
    CLIPTextModelWithProjection,
    CLIPVisionModelWithProjection,
    SiglipConfig,
    SiglipModel,
    ViTConfig,
    ViTModel,
)

from mmlg_hf import CLIPTextForSequenceClassification, align
from mmlg_hf.clip_moe import upcycle

LABELS = ["red", "green", "blue"]
_LAYERS = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}


def clip():
    return pico_clip(vision_depth=2, text_width=16)


def image_encoder():
    return CLIPVisionModelWithProjection(pico_clip().config.vision_config)


def text_encoder():
    return CLIPTextModelWithProjection(pico_clip().config.text_config)


def image_classifier():
    config = pico_clip().config
    config.num_labels, config.id2label = 3, dict(enumerate(LABELS))
    return CLIPForImageClassification(config)


def text_classifier():
    config = pico_clip().config.text_config
    config.num_labels, config.id2label = 3, dict(enumerate(LABELS))
    return CLIPTextForSequenceClassification(config)


def siglip():
    tokenizer = pico_tokenizer()
    text = {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": MAX_LENGTH,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {"image_size": IMAGE_SIZE, "patch_size": 8}
    return SiglipModel(SiglipConfig(text_config=_LAYERS | text, vision_config=_LAYERS | vision))


def pair():
    """ViT and BERT, aligned by layer-wise adapters."""
    tokenizer = pico_tokenizer()
    vision = ViTModel(ViTConfig(**_LAYERS, image_size=IMAGE_SIZE, patch_size=8))
    text = BertModel(BertConfig(**_LAYERS, vocab_size=len(tokenizer), max_position_embeddings=MAX_LENGTH))
    return align(vision, text, "adapters", projection_dim=16, text_pooling="mean")


def mixture():
    base = pico_clip(text_width=16)
    experts = [copy.deepcopy(base) for _ in range(2)]
    for seed, expert in enumerate(experts):
        for encoder in (expert.vision_model, expert.text_model):
            for layer in encoder.encoder.layers:
                perturb(layer.mlp, seed, 0.05)
    return upcycle(base, experts)


def gene():
    return multimodal_gene()


MAKERS = {
    maker.__name__: maker
    for maker in (
        clip,
        image_encoder,
        text_encoder,
        image_classifier,
        text_classifier,
        siglip,
        pair,
        mixture,
        gene,
    )
}


def save(kind, folder):
    """Save a model of a kind, every weight moved from its start, and return it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = perturb(MAKERS[kind](), seed=3, scale=0.05).eval()
    model.save_pretrained(folder)
    processor = pico_processor()
    if kind.startswith("image"):
        processor = processor.image_processor
    elif kind.startswith("text"):
        processor = processor.tokenizer
    processor.save_pretrained(folder)
    return model

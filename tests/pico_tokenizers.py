"""Small tokenizers of the kinds that web CLIPs have beside CLIP's own, trained on the spot, and models for them."""

import json
from collections.abc import Iterable
from functools import cache
from typing import Any

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import (
    CLIPConfig,
    CLIPModel,
    GemmaTokenizer,
    MetaClip2Config,
    MetaClip2Model,
    PreTrainedTokenizerFast,
    Siglip2Tokenizer,
    SiglipConfig,
    SiglipModel,
    T5Tokenizer,
    XLMRobertaTokenizer,
)

TRAINED_ON = (
    "a red square on blue", "photo of a pink square", "a yellow square on brown", "photos of black and white squares",
    "a green circle", "the quick brown fox jumps over the lazy dog", "two red, three blue: five!",
    "Über grünen Äpfeln",
)  # fmt: skip
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


@cache
def _pieces(specials: tuple[str, ...], size: int = 150) -> tuple[tuple[str, float], ...]:
    """Unigram pieces with their scores, the named ones first."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    settings: dict[str, Any] = {"special_tokens": [*specials], "unk_token": "<unk>", "show_progress": False}
    tokenizer.train_from_iterator(list(TRAINED_ON) * 4, trainers.UnigramTrainer(vocab_size=size, **settings))
    return tuple((piece, score) for piece, score in json.loads(tokenizer.to_str())["model"]["vocab"])


@cache
def _merges(specials: tuple[str, ...], size: int = 460) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """SentencePiece's kind of BPE: no words cut out first, spaces as U+2581, bytes to fall back on."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=[*specials, *BYTES], show_progress=False)
    tokenizer.train_from_iterator(list(TRAINED_ON) * 4, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return model["vocab"], [(first, second) for first, second in model["merges"]]


def t5_tokenizer() -> T5Tokenizer:
    """As T5 and mT5 (MetaCLIP 2's "mt5" sizes) cut texts."""
    return T5Tokenizer(vocab=list(_pieces(("<pad>", "</s>", "<unk>"))), extra_ids=3, model_max_length=16)


def xlm_roberta_tokenizer() -> XLMRobertaTokenizer:
    """As XLM-R and XLM-V (MetaCLIP 2) cut texts."""
    pieces = [*_pieces(("<s>", "<pad>", "</s>", "<unk>")), ("<mask>", 0.0)]
    return XLMRobertaTokenizer(vocab=pieces, model_max_length=16)


def gemma_tokenizer() -> GemmaTokenizer:
    """As Gemma (SigLIP 2) cuts texts, with an end token and none at the beginning, as SigLIP 2 has it."""
    vocab, merges = _merges(("<pad>", "<eos>", "<bos>", "<unk>", "<mask>"))
    settings: dict[str, Any] = {"add_bos_token": False, "add_eos_token": True, "model_max_length": 16}
    return GemmaTokenizer(vocab=dict(vocab), merges=list(merges), **settings)


def siglip2_tokenizer() -> Siglip2Tokenizer:
    """Gemma's with lower case."""
    vocab, merges = _merges(("<pad>", "<eos>", "<bos>", "<unk>", "<mask>"))
    settings: dict[str, Any] = {"add_bos_token": False, "add_eos_token": True, "model_max_length": 16}
    return Siglip2Tokenizer(vocab=dict(vocab), merges=list(merges), **settings)


def unigram_tokenizer(
    pieces: Iterable[tuple[str, float]], *, unk_id: int | None = 0, byte_fallback: bool = False
) -> PreTrainedTokenizerFast:
    """A bare Unigram model, without normalizer or marks."""
    model = models.Unigram(list(pieces), unk_id=unk_id, byte_fallback=byte_fallback)
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(model))


TOKENIZERS = {
    "T5": t5_tokenizer,
    "XLM-R": xlm_roberta_tokenizer,
    "Gemma": gemma_tokenizer,
    "SigLIP 2": siglip2_tokenizer,
}


def pico_family(kind: str, tokenizer: Any, *, positions: int = 16, seed: int = 0) -> Any:
    """A stock `CLIPModel`, `MetaClip2Model` or `SiglipModel` for a tokenizer, every tensor random."""
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    marks = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    text = sizes | marks | {"vocab_size": len(tokenizer), "max_position_embeddings": positions}
    vision = sizes | {"image_size": 16, "patch_size": 8}
    configs, model = {
        "clip": (CLIPConfig, CLIPModel),
        "metaclip2": (MetaClip2Config, MetaClip2Model),
        "siglip": (SiglipConfig, SiglipModel),
    }[kind]
    extra = {} if kind == "siglip" else {"projection_dim": 8}
    config = configs(text_config=text | extra, vision_config=vision | extra, **extra)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made: Any = model(config).eval()
        with torch.no_grad():
            for parameter in made.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return made

"""An image encoder and a text encoder that have never met: what the alignment study starts from.

The products are halved by a hash of their id. The image encoder learns to tell article types on the photos of one
half; the text encoder learns, from the titles of the other, to predict the next token and to tell titles apart. No
product is seen by both, no photo is seen with its title, and the text encoder sees no labels.
"""

import time
from pathlib import Path
from typing import Any

import torch
from datasets import DatasetDict
from torch import nn
from torch.nn import functional as F
from transformers import (
    CLIPConfig,
    CLIPForImageClassification,
    CLIPTextConfig,
    CLIPTextModel,
    Trainer,
    TrainingArguments,
    set_seed,
)

from benchmarks.common.fashion import ID, IMAGE_SIZE, MAX_TOKENS, TITLE, TYPE, processed
from benchmarks.common.training import Rows, photos, training
from mmlg_hf.alignment.pooling import pool_text
from mmlg_hf.data import split_of
from mmlg_hf.extraction.vocabulary import trim_tokenizer
from mmlg_hf.training.losses import contrastive_loss

SHAPE = {"num_hidden_layers": 3, "hidden_act": "gelu"}
IMAGE = SHAPE | {"hidden_size": 192, "intermediate_size": 768, "num_attention_heads": 6, "patch_size": 16}
TEXT = SHAPE | {"hidden_size": 128, "intermediate_size": 512, "num_attention_heads": 4}
TEMPERATURE, LEFT_OUT = 0.05, 0.25  # SimCSE's temperature; the share of tokens that a view leaves out


class TitleModel(nn.Module):
    """A CLIP text encoder that predicts the next token, and tells titles apart with some of their tokens left out.

    The first loss is a language model's, with the token embedding as the output layer; the second is that of SimCSE
    (arXiv 2104.08821), whose BERT is the text encoder of LilT: two views of a title are each other's only match in
    the batch. Its views differ by dropout; CLIP has none, so that ours leave out tokens.
    """

    def __init__(self, encoder: CLIPTextModel) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, **_: Any) -> dict[str, torch.Tensor]:
        states = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state  # [B, T, D]
        logits = states[:, :-1] @ self.encoder.embeddings.token_embedding.weight.T  # [B, T - 1, V]
        targets = input_ids[:, 1:].masked_fill(attention_mask[:, 1:] == 0, -100)
        next_token = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-100)
        views = [self._view(input_ids, attention_mask) for _ in range(2)]
        return {"loss": next_token + contrastive_loss(*views, torch.tensor(1 / TEMPERATURE))}

    def _view(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Mean state [B, D] of the tokens that are kept; the first one always is."""
        kept = attention_mask * (torch.rand(attention_mask.shape, device=attention_mask.device) >= LEFT_OUT)
        kept[:, 0] = 1
        outputs = self.encoder(input_ids=input_ids, attention_mask=kept)
        return F.normalize(pool_text(self.encoder, outputs, "mean", kept), dim=-1)


def make_encoders(
    splits: DatasetDict, processor: Any, folder: Path, steps: int, batch_size: int, seed: int = 0
) -> dict[str, Any]:
    """Train both encoders and save them with their processors in `folder`/image and `folder`/text.

    Returns:
        what was done, with the losses at the end; read from `folder` if the encoders are there already.
    """
    set_seed(seed)
    train = splits["train"]
    halves = ["image" if split_of(f"half {key}", 0.0, 0.5) == "test" else "text" for key in train[ID]]
    rows = {name: [row for row, half in enumerate(halves) if half == name] for name in ("image", "text")}
    settings = {"steps": steps, "batch_size": batch_size, "seed": seed}
    return {
        **settings,
        "products": {name: len(chosen) for name, chosen in rows.items()},
        "image": _make_image_encoder(train, rows["image"], processor, folder / "image", **settings),
        "text": _make_text_encoder(train, rows["text"], processor, folder / "text", **settings),
    }


def _make_image_encoder(train: Any, rows: list[int], processor: Any, folder: Path, **settings: int) -> dict[str, Any]:
    types = sorted(set(train[TYPE]))
    labels = [types.index(name) for name in train[TYPE]]
    config = CLIPConfig(vision_config=IMAGE | {"image_size": IMAGE_SIZE}, num_labels=len(types))
    model = CLIPForImageClassification(config)
    pairs = Rows(pixel_values=photos(processed(train, processor)), labels=labels)
    report = _train(model, torch.utils.data.Subset(pairs, rows), None, folder, **settings)
    model.save_pretrained(folder)
    processor.image_processor.save_pretrained(folder)
    return {**report, "task": f"{len(types)} article types", "parameters": model.vision_model.num_parameters()}


def _make_text_encoder(train: Any, rows: list[int], processor: Any, folder: Path, **settings: int) -> dict[str, Any]:
    titles = [train[TITLE][row] for row in rows]
    tokenizer, _ = trim_tokenizer(processor.tokenizer, titles)
    special = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    sizes = {"vocab_size": len(tokenizer), "max_position_embeddings": MAX_TOKENS}
    encoder = CLIPTextModel(CLIPTextConfig(**TEXT, **special, **sizes))

    def collate(batch: list[str]) -> dict[str, torch.Tensor]:
        return dict(tokenizer(batch, padding=True, truncation=True, return_tensors="pt"))

    report = _train(TitleModel(encoder), titles, collate, folder, **settings)
    encoder.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    about = {"task": "next token, and telling titles apart", "parameters": encoder.num_parameters()}
    return {**report, **about, "tokens": len(tokenizer)}


def _train(
    model: nn.Module, rows: Any, collator: Any, folder: Path, *, steps: int, batch_size: int, seed: int
) -> dict:
    changes = {"weight_decay": 0.05, "seed": seed, "remove_unused_columns": False}
    args = TrainingArguments(**training(folder, steps, batch_size, 1e-3, max(1, steps // 10), **changes))
    started = time.time()
    trainer = Trainer(model, args, train_dataset=rows, data_collator=collator)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return {"seconds": round(time.time() - started), "losses": losses}

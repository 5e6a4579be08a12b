"""What the speed study measures, in the shape of CLIP B/32: random weights, so that nothing is downloaded."""

import ctypes
import gc
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import psutil
import torch
from datasets import Dataset, Image
from PIL import Image as PILImage
from torch.utils.data import DataLoader
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel

from mmlg_hf import LearngeneModel, from_learngene
from mmlg_hf.data import PictureRows, Pixels
from mmlg_hf.expansion import TOKEN_EMBEDDING, TOKEN_PROJECTION, join_table
from mmlg_hf.extraction.ancestors import ancestor_outputs, gene_config
from mmlg_hf.extraction.fitting import fit_gene
from mmlg_hf.extraction.rotation import rotate_channels
from mmlg_hf.training.losses import contrastive_loss

PIXELS = 224
TOKENS = 77
ROTATED_ROWS = (64, 128)


def b32_config() -> CLIPConfig:
    """CLIP B/32: 12 layers x 768 for images, 12 x 512 for texts, 151 M parameters."""
    vision = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
    text = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 8}
    special = {"vocab_size": 49408, "bos_token_id": 49406, "eos_token_id": 49407}
    return CLIPConfig(
        vision_config=vision | {"patch_size": 32, "image_size": PIXELS},
        text_config=text | special | {"max_position_embeddings": TOKENS},
        projection_dim=512,
    )


class Models:
    """The ancestor and its gene, made once, and the gene in a folder."""

    def __init__(self, folder: Path) -> None:
        torch.manual_seed(0)
        self.ancestor = CLIPModel(b32_config()).eval()
        settings = {"num_multimodal_blocks": 1, "num_unimodal_blocks": 1, "mixing": "shared-slope"}
        config = gene_config(self.ancestor, token_embedding_rank=128, **settings)
        self.gene = LearngeneModel(config).eval()
        self.folder = folder / "gene"
        self.gene.save_pretrained(self.folder)

    def batch(self, rows: int) -> dict[str, torch.Tensor]:
        """A random batch of full texts."""
        generator = torch.Generator().manual_seed(rows)
        ids = torch.randint(0, 49406, (rows, TOKENS), generator=generator)
        ids[:, -1] = 49407
        pixels = torch.randn(rows, 3, PIXELS, PIXELS, generator=generator)
        return {"pixel_values": pixels, "input_ids": ids, "attention_mask": torch.ones_like(ids)}


def seconds(call: Callable[[], Any], fresh: bool = True) -> float:
    """How long a call takes, by default in memory that is fresh from the system; what it returns is freed after."""
    gc.collect()
    if fresh and sys.platform == "linux":  # the allocator gives back what it has kept for the next that asks
        ctypes.CDLL(None).malloc_trim(0)
    started = time.perf_counter()
    kept = call()
    took = time.perf_counter() - started
    del kept
    return took


def in_turn(calls: dict[str, Callable[[], Any]], repeats: int, fresh: bool = True) -> dict[str, float]:
    """Median seconds of each of several calls, made in turn so that what disturbs one disturbs all."""
    took: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            took[name].append(seconds(call, fresh))
    return {name: median(values) for name, values in took.items()}


def growth(models: Models, depth: int, width: int, folder: Path, repeats: int) -> dict[str, Any]:
    """Seconds of growing one size from memory and from the folder, of loading it, and of filling as many bytes.

    Also of filling memory that is there already, and of the one product that makes the token table, V x rank x width.
    """
    size = (depth, width)
    grown = models.gene.descendant(*size)
    shapes = [parameter.shape for parameter in grown.parameters()]
    saved = folder / f"{depth}x{width}"
    if not saved.is_dir():
        grown.save_pretrained(saved)
    parameters = grown.num_parameters()
    there = list(grown.parameters())
    table, projection = (models.gene.get_parameter(name) for name in (TOKEN_EMBEDDING, TOKEN_PROJECTION))
    projection = projection[: grown.config.text_config.hidden_size]
    del grown
    took = in_turn(
        {
            "fill": lambda: [torch.empty(shape).fill_(0.5) for shape in shapes],
            "fill_again": lambda: [parameter.detach().fill_(0.5) for parameter in there],
            "table": lambda: join_table(table.detach(), projection.detach()),
            "memory": lambda: models.gene.descendant(*size),
            "folder": lambda: from_learngene(models.folder, *size),
            "from_pretrained": lambda: CLIPModel.from_pretrained(saved),
            "loaded_and_read": lambda: [weight.sum() for weight in CLIPModel.from_pretrained(saved).parameters()],
        },
        repeats,
    )
    gflop = 2 * table.numel() * len(projection) / 1e9
    sizes = {"parameters": parameters, "table_gflop": round(gflop, 3)}
    return {**sizes, **{name: round(value, 5) for name, value in took.items()}}


def step(models: Models, rows: int, repeats: int) -> dict[str, float]:
    """Seconds of a step (forward, contrastive loss, backward) of a plain CLIP and of the gene, at one batch size.

    In memory that the steps before have left, as in training.
    """
    batch = models.batch(rows)

    def one(model: Any) -> None:
        model.train()
        outputs = model(**batch)
        contrastive_loss(outputs.image_embeds, outputs.text_embeds, model.logit_scale.exp()).backward()
        model.zero_grad(set_to_none=True)

    calls = {"clip": lambda: one(models.ancestor), "gene": lambda: one(models.gene)}
    in_turn(calls, 1, fresh=False)
    took = in_turn(calls, repeats, fresh=False)
    models.gene.eval()
    models.ancestor.eval()
    return {name: round(value, 4) for name, value in took.items()}


def start(models: Models) -> dict[str, float]:
    """Seconds of what an extraction does before its first step: turning, fitting, first outputs of the ancestor."""
    found = {}
    for rows in ROTATED_ROWS:
        batches = [models.batch(64) for _ in range(rows // 64)]
        found[f"turning_{rows}"] = seconds(lambda batches=batches: rotate_channels(models.ancestor, batches))
    gene = LearngeneModel(models.gene.config)
    found["fitting"] = seconds(lambda: fit_gene(gene, models.ancestor))
    found["outputs"] = seconds(lambda: ancestor_outputs(models.ancestor, models.batch(32)))
    return {name: round(value, 3) for name, value in found.items()}


@contextmanager
def photos(count: int, side: int = PIXELS) -> Iterator[Dataset]:
    """So many pictures of a side, generated as JPEG files."""
    base = PILImage.fromarray(np.random.default_rng(0).integers(0, 256, (14, 14, 3), dtype=np.uint8))
    with tempfile.TemporaryDirectory() as folder:
        files = [str(Path(folder, f"{row}.jpg")) for row in range(count)]
        for row, file in enumerate(files):
            base.rotate(row).resize((side, side)).save(file, quality=80)
        yield Dataset.from_dict({"image": files}).cast_column("image", Image(decode=False))


def reading(count: int, side: int = PIXELS) -> dict[str, Any]:
    """Read pictures as an extraction does; how far the process grew after the first fifth, in MiB, and how fast."""
    pixels, process = Pixels(CLIPImageProcessorPil()), psutil.Process()
    with photos(count, side) as rows:
        read = PictureRows(rows, "image", pixels, Dataset.from_dict({"row": list(range(count))}))
        early, started = 0, time.perf_counter()
        for number, batch in enumerate(DataLoader(read, batch_size=50, collate_fn=list)):
            pixels.finish(torch.stack([row["pixel_values"] for row in batch]))
            early = process.memory_info().rss if number == count // 250 else early
        took = time.perf_counter() - started
    return {
        "photos": count,
        "grown_mib": round((process.memory_info().rss - early) / 2**20, 1),
        "seconds": round(took, 2),
    }

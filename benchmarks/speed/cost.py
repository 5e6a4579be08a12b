"""What an extraction costs, by formula: FLOPs and seconds of a step, bytes over the network, pictures read.

A step's seconds are taken to be a sum of three parts, each proportional to what is known beforehand: its FLOPs, the
gene's parameters (expanded, and stepped by the optimizer) and the layers run (which PyTorch starts one after another).
The three prices are fitted to measured steps of small extractions, and checked on one that they were not fitted to.
"""

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.optimize import nnls
from transformers import CLIPConfig, CLIPModel, TrainerCallback, default_data_collator

from benchmarks.common.pages import table
from benchmarks.family.cost import muon_gflops
from mmlg_hf import ExtractionArguments, LearngeneConfig, LearngeneModel
from mmlg_hf.extraction.ancestors import gene_config
from mmlg_hf.extraction.trainer import ExtractionTrainer, size_grid
from mmlg_hf.families import encoders_of

# (layers, width, pairs of a batch) of small extractions: those fitted to, and the one checked on.
FITTED = ((2, 128, 8), (2, 128, 32), (4, 128, 16), (4, 256, 8), (4, 256, 32), (6, 256, 16))
CHECKED = (5, 192, 24)
STEPS, WARM = 6, 2
SAMPLES = ExtractionArguments.__dataclass_fields__["elastic_samples"].default


def encoder_flops(side: str, encoder: Any, projection_dim: int) -> tuple[int, int]:
    """One picture or text through a CLIP's encoder: FLOPs of a layer, and of all that is outside the layers.

    Matrix products and convolutions, a multiply-add two. A layer of width w and MLP size m over T tokens takes
    2T(4w^2 + 2wm) for its matrices and 4T^2 w for attention; patches take 2 * 3p^2 w each, the projection 2w times its
    size.
    """
    width, mlp = encoder.hidden_size, encoder.intermediate_size
    patches = (encoder.image_size // encoder.patch_size) ** 2 if side == "image" else 0
    tokens = patches + 1 if side == "image" else encoder.max_position_embeddings
    layer = 2 * tokens * (4 * width**2 + 2 * width * mlp) + 4 * tokens**2 * width
    outer = 2 * width * projection_dim
    return layer, outer + (2 * patches * encoder.num_channels * encoder.patch_size**2 * width if patches else 0)


def forward_gflops(config: Any) -> float:
    """One pair through a CLIP of this config, in gigaflops."""
    total = 0
    for side, encoder in encoders_of(config).items():
        layer, outer = encoder_flops(side, encoder, config.projection_dim)
        total += encoder.num_hidden_layers * layer + outer
    return total / 1e9


def smaller_gflops(config: LearngeneConfig) -> float:
    """One pair through a gene's smaller networks, the mean of those that an extraction draws from."""
    by_width: dict[int, list[tuple[int, int]]] = {}
    grid, total = size_grid(config), 0
    for depth, width in grid:
        if width not in by_width:  # a config for each size would take a hundred times as long
            sides = encoders_of(config.descendant_config(width=width)).items()
            by_width[width] = [encoder_flops(side, encoder, config.projection_dim) for side, encoder in sides]
        depths = depth if isinstance(depth, tuple) else (depth,) * len(by_width[width])
        total += sum(d * layer + outer for d, (layer, outer) in zip(depths, by_width[width], strict=True))
    return total / len(grid) / 1e9


def pair_gflops(config: LearngeneConfig, ancestor: bool = True) -> float:
    """Extracting from one pair: the gene and its smaller networks, backward twice forward; the ancestor forward.

    Args:
        ancestor: whether its outputs are computed in the step, and not kept from before.
    """
    own = forward_gflops(config.descendant_config())
    return 3 * (own + SAMPLES * smaller_gflops(config)) + (own if ancestor else 0)


def network_bytes(parameters: int, processes: int) -> float:
    """What each process sends in a step: a ring sums gradients of four bytes in 2(n - 1)/n of their size."""
    return 4 * parameters * 2 * (processes - 1) / processes


def step_work(gene: Any, batch: int) -> dict[str, float]:
    """What the seconds of a step are made of: gigaflops, millions of parameters, and layers of all networks run."""
    config = gene.config
    layers = sum(encoder.num_hidden_layers for encoder in config.encoder_configs.values())
    return {
        "gflops": round(batch * pair_gflops(config) + muon_gflops(config), 3),
        "parameters": round(gene.num_parameters() / 1e6, 3),
        "layers": layers,
    }


def small_extraction(depth: int, width: int, batch: int) -> dict[str, Any]:
    """Measure the median step of an extraction, all of it but reading: random pairs, 64 pixels and 16 tokens."""
    encoder = {"hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": depth}
    encoder["num_attention_heads"] = width // 32
    text = encoder | {"vocab_size": 1000, "max_position_embeddings": 16, "eos_token_id": 999, "bos_token_id": 998}
    torch.manual_seed(0)
    config = CLIPConfig(vision_config=encoder | {"image_size": 64, "patch_size": 8}, text_config=text)
    ancestor = CLIPModel(config).eval()
    gene = LearngeneModel(gene_config(ancestor, num_multimodal_blocks=1, num_unimodal_blocks=1, mixing="shared-slope"))
    ids = torch.randint(0, 998, (16,))
    ids[-1] = 999
    row = {"pixel_values": torch.randn(3, 64, 64), "input_ids": ids, "attention_mask": torch.ones_like(ids)}
    clock = _Clock()
    with tempfile.TemporaryDirectory() as folder:
        arguments = ExtractionArguments(
            folder, per_device_train_batch_size=batch, max_steps=STEPS, save_strategy="no", report_to="none",
            use_cpu=True, disable_tqdm=True, logging_strategy="no",
        )  # fmt: skip
        ExtractionTrainer(
            gene, arguments, ancestor=ancestor, train_dataset=[row] * (batch * STEPS), callbacks=[clock],
            data_collator=default_data_collator,
        ).train()  # fmt: skip
    return {**step_work(gene, batch), "seconds": round(float(np.median(clock.seconds[WARM:])), 5)}


class _Clock(TrainerCallback):
    """The seconds of each step."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._started = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seconds.append(time.perf_counter() - self._started)


@dataclass(frozen=True)
class Prices:
    """Seconds of a gigaflop, of a million parameters and of a layer."""

    gflops: float
    parameters: float
    layers: float

    def seconds(self, work: Mapping[str, float]) -> float:
        return sum(getattr(self, name) * work[name] for name in self.__dataclass_fields__)


def fit(runs: Sequence[Mapping[str, float]]) -> Prices:
    """The prices, none below zero, that come closest to measured steps, by least squares of relative errors."""
    names = tuple(Prices.__dataclass_fields__)
    design = np.array([[run[name] / run["seconds"] for name in names] for run in runs])
    return Prices(*nnls(design, np.ones(len(runs)))[0])


# A gene of ViT-L/14 by the default recipe, and what is assumed of the machines that extract it: not measured here.
PAIRS, BATCH, PARAMETERS = 400e6, 128, 44_829_697
SUSTAINED = 250e12  # FLOP/s of a GPU in bfloat16: a quarter of an H100's peak, since smaller networks fill it badly
LINK = 12.5e9  # bytes a second from each machine to the next: 100 Gb/s
# Measured on one core: photos of 640 px that a worker reads in a second.
READ = 124


def large_config() -> LearngeneConfig:
    """A gene of ViT-L/14 by the default recipe."""
    vision = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
    text = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
    blocks = {"num_multimodal_blocks": 1, "num_unimodal_blocks": 1, "mixing": "shared-slope", "weight_scales": True}
    return LearngeneConfig(
        vision_config=vision | {"patch_size": 14, "image_size": 224},
        text_config=text | {"vocab_size": 49408, "max_position_embeddings": 77},
        projection_dim=768,
        token_embedding_rank=192,
        **blocks,
    )


def predicted(machines: int, gpus: int = 8) -> dict[str, float]:
    """What extracting from `PAIRS` pairs takes on so many machines, if nothing waits for anything else.

    Returns:
        `step` and `exchange`, the seconds of a step and of its exchange between machines at `LINK`; `hours`;
        `bytes` that each process sends in a step; `pictures` a second and the `workers` that read them, of a machine.
    """
    config, processes = large_config(), machines * gpus
    step = (BATCH * pair_gflops(config) + muon_gflops(config)) * 1e9 / SUSTAINED
    sent = network_bytes(PARAMETERS, processes)
    pictures = gpus * BATCH / step
    return {
        "step": step,
        "exchange": sent / LINK if machines > 1 else 0.0,
        "hours": PAIRS / (processes * BATCH) * step / 3600,
        "bytes": sent,
        "pictures": pictures,
        "workers": pictures / READ,
    }


def predictions() -> str:
    """The table of docs/scale.md."""
    one, eight = predicted(1), predicted(8)
    rows = [
        ("seconds of a step", "step", "{:.2f}"),
        ("MB that each process sends in a step", "bytes", "{:.0f}"),
        ("seconds of that between machines, if nothing hides it", "exchange", "{:.3f}"),
        ("pictures a second that each machine reads", "pictures", "{:.0f}"),
        ("workers that read them", "workers", "{:.0f}"),
        ("hours for 400 million pairs", "hours", "{:.1f}"),
    ]
    scale = {"bytes": 1e-6}
    told = [[name, *(text.format(each[key] * scale.get(key, 1)) for each in (one, eight))] for name, key, text in rows]
    return table(["", "8 GPUs", "8 machines of 8 GPUs"], told)

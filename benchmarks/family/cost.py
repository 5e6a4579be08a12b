"""What a family costs, in FLOPs and seconds: one extraction and a little fine-tuning, or training each size."""

from typing import Any

import numpy as np

from benchmarks.family.arrays import Family
from benchmarks.family.starts import BUNDLED
from mmlg_hf import ExtractionArguments, LearngeneConfig
from mmlg_hf.expansion import LAYER_AXES
from mmlg_hf.extraction.trainer import size_grid
from mmlg_hf.inspection import ModelSize, measure_size
from mmlg_hf.modeling_encoders import encoder_sizes


def extraction_gflops(config: LearngeneConfig, ancestor: float) -> float:
    """Extracting from one pair: the ancestor forward, the gene and the mean of its smaller networks trained.

    Args:
        config: of the gene.
        ancestor: the ancestor's forward, in gigaflops a pair. The gene's own is as much.
    """
    smaller = float(np.mean([forward_gflops(config.descendant_config(*size)) for size in size_grid(config)]))
    samples = ExtractionArguments.__dataclass_fields__["elastic_samples"].default
    return ancestor + 3 * (ancestor + samples * smaller)


def muon_gflops(config: LearngeneConfig) -> float:
    """One step of Muon on a gene's blocks."""
    blocks = [(config.widest, config.num_multimodal_blocks)]
    blocks += [(encoder, config.num_unimodal_blocks) for encoder in config.encoder_configs.values()]
    return sum(count * _muon_gflops_of_layer(encoder) for encoder, count in blocks)


def muon_gflops_of_layers(config: Any) -> float:
    """One step of Muon on all layers of a CLIP."""
    encoders = (config.vision_config, config.text_config)
    return sum(encoder.num_hidden_layers * _muon_gflops_of_layer(encoder) for encoder in encoders)


def _muon_gflops_of_layer(encoder: Any) -> float:
    """Of one layer's matrices: five Newton-Schulz iterations of three matrix products each."""
    sizes, flops = encoder_sizes(encoder), 0
    for axes in (axes for axes in LAYER_AXES.values() if len(axes) == 2):
        short, long = sorted(sizes[axis] for axis in axes if axis)
        flops += 5 * (4 * short**2 * long + 2 * short**3)
    return flops / 1e9


def forward_gflops(config: Any) -> float:
    """One pair through a CLIP."""
    return gflops(measure_size(config))


def gflops(size: ModelSize) -> float:
    return (size.gflops_image or 0) + (size.gflops_text or 0)


def family_cost(family: Family, long: Family, scratch: str = "scratch", gene: str = BUNDLED) -> dict[str, Any]:
    """The price of the family at one accuracy: training each size, or extracting a gene and fine-tuning.

    The accuracy is what one size of the gene has after the family's fine-tuning, and scratch's steps to it are read
    off that size's long curve, straight between its points; its last point, if that is not as good. All sizes are
    charged as many. A step by Muon is charged the seconds that it takes, but only the FLOPs of one by AdamW.

    Args:
        scratch: "scratch" or `BY_MUON`.
        gene: `BUNDLED`, another that has a curve, or a control whose training is recorded beside the genes.

    Returns:
        `recall` in per cent, whether scratch `reached` it, `extraction` by unit and its steps, and by unit and for
        steps the prices of scratch and of ours.
    """
    results, settings = family.results, family.settings
    (steps, ours), (long_steps, theirs) = family.curve(gene), long.curve(scratch)
    wanted = ours.mean(0)[list(steps).index(settings["steps"])]
    best = np.maximum.accumulate(theirs.mean(0))
    needed, tuned = round(float(np.interp(wanted, best, long_steps))), settings["steps"]
    gflops = [results["sizes"][size]["gflops"] for size in family.sizes]
    each = 3 * settings["batch_size"] * sum(gflops) / 1e3  # teraflops of a step of every size, backward twice forward
    made = [record for key, record in results["genes"].items() if key.split("/")[1] == gene]  # of each seed
    per_step = made[0]["batch_size"] * results["extraction_gflops_per_pair"] + results["muon_gflops_per_step"]
    seconds = float(np.median([record["seconds"] for record in made]))
    teraflops = made[0].get("teraflops", made[0]["steps"] * per_step / 1e3)  # no gene, but controls, say theirs
    extraction = {"steps": made[0]["steps"], "teraflops": teraflops, "seconds": seconds}
    every = [np.median(family.values("seconds", "family", "scratch", size, scale=1)) for size in family.sizes]
    one_step = sum(every) / settings["steps"]
    slower = long.seconds(scratch) / long.seconds("scratch")
    return {
        "recall": float(wanted),
        "reached": bool(best[-1] >= wanted),
        "extraction": extraction,
        "teraflops": (needed * each, extraction["teraflops"] + tuned * each),
        "seconds": (needed * one_step * slower, extraction["seconds"] + tuned * one_step),
        "steps": (needed, tuned),
    }

"""An image gene of a real, deep ViT: its descendants against the same from scratch and against slices of the ancestor.

    python -m benchmarks.vit --clothing FOLDER [--ancestor facebook/dinov2-small]

The gene is extracted from product photos at 112 px; ten classes of clothes and handwritten digits are told by linear
classifiers of the frozen descendants. Extraction goes on from its last checkpoint, and runs that the results file
holds are not repeated. Some 15 minutes of one core.
"""

import json
import time
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch.nn import functional as F
from transformers import CLIPImageProcessorPil, set_seed
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from benchmarks.common.fashion import IMAGE, load_splits
from benchmarks.common.options import output_folder, parse, read_settings, settings_of
from benchmarks.common.pages import publish
from benchmarks.common.results import Results
from benchmarks.common.training import Rows
from benchmarks.vit import report
from benchmarks.vit.convert import as_folder
from mmlg_hf import ExtractionArguments, extract_learngene, load_learngene
from mmlg_hf.data import load_image_text, process_images
from mmlg_hf.demo.digits import digit_splits
from mmlg_hf.extraction.ancestors import copy_outer_weights, gene_config, load_ancestor
from mmlg_hf.extraction.fitting import order_units, stack_layers
from mmlg_hf.extraction.rotation import rotate_channels
from mmlg_hf.extraction.vit import stock_vit
from mmlg_hf.modeling_learngene import class_of_gene

SETTINGS = read_settings(__file__)
IMAGE_SIZE, TUNING_SEED = 112, 100
PROCESSOR = CLIPImageProcessorPil(
    size={"height": IMAGE_SIZE, "width": IMAGE_SIZE},
    do_center_crop=False,
    image_mean=IMAGENET_DEFAULT_MEAN,  # as DINOv2 takes them
    image_std=IMAGENET_DEFAULT_STD,
)


class Study:
    """The ancestor, the photos, the gene, and what descendants are compared with."""

    def __init__(self, options: Any, settings: dict[str, Any]) -> None:
        self.options, self.settings, self.work = options, settings, Path(options.work)

    @cache  # noqa: B019
    def ancestor(self) -> Any:
        """The ancestor as a stock model; one out of an ONNX file is kept as a folder."""
        return load_ancestor(as_folder(self.options.ancestor, self.work / "ancestor"))

    def vit(self) -> Any:
        """A new stock ViT of the ancestor at the study's image size, as extraction makes it."""
        return stock_vit(load_ancestor(self.ancestor()), IMAGE_SIZE)

    @cache  # noqa: B019
    def photos(self, split: str, count: int) -> Any:
        """So many product photos of a split."""
        rows = load_splits(self.options.data)[split].shuffle(seed=0)
        return rows.select(range(min(count, len(rows)))).select_columns([IMAGE])

    def pixels(self, split: str, count: int) -> torch.Tensor:
        rows = process_images(self.photos(split, count), PROCESSOR, image_column=IMAGE)
        return torch.stack([torch.as_tensor(row) for row in rows["pixel_values"]])

    @cache  # noqa: B019
    def gene(self) -> Any:
        """The gene, extracted, gone on with, or loaded where it is finished."""
        folder = self.work / "gene"
        if not (folder / "config.json").exists():
            args = ExtractionArguments(
                str(folder), report_to="none", disable_tqdm=True, use_cpu=True, **self.settings["extraction"]
            )
            resume = (folder / "extraction.json").exists()
            photos = self.photos("train", self.settings["photos"])
            extract_learngene(
                self.ancestor(), photos, args, processor=PROCESSOR, resume_from_checkpoint=resume or None
            )
        return load_learngene(folder)

    @cache  # noqa: B019
    def slices(self, turned: bool) -> Any:
        """The ancestor as a gene with a block for each layer: its descendants are every n-th layer, cut to width."""
        return slices_of(self.vit(), self.pixels("train", 128) if turned else None)

    def grow(self, start: str, seed: int) -> Any:
        """A model of the study's size, by where it starts from."""
        genes = {"gene": self.gene, "slices": partial(self.slices, False), "turned slices": partial(self.slices, True)}
        grown = genes["gene" if start == "scratch" else start]().descendant(*self.settings["size"])
        if start != "scratch":
            return grown
        set_seed(seed)
        return type(grown)(grown.config)


@torch.no_grad()
def slices_of(vit: Any, pixels: torch.Tensor | None) -> Any:
    """A gene with a ViT's own layers as its blocks, the strongest heads and neurons first; turned where there are
    pixels [N, C, H, W] to turn it on."""
    if pixels is not None:
        vit, _ = rotate_channels(vit, [{"pixel_values": batch} for batch in pixels.split(64)])
    depth = vit.config.num_hidden_layers
    config = gene_config(vit, num_multimodal_blocks=0, num_unimodal_blocks=depth, mixing="learned")
    config.scale_norms = ["image"] if pixels is not None else False
    gene = class_of_gene(config)(config).eval()
    copy_outer_weights(gene, vit)
    layers = order_units(stack_layers(vit, config.kin), config.head_size)
    for name, blocks in gene.vision_blocks.named_parameters():
        blocks.copy_(layers[name])
    gene.vision_coefficients.copy_(torch.eye(depth)[:, None].expand_as(gene.vision_coefficients))
    return gene


def extraction(study: Study) -> dict[str, Any]:
    """What the gene is, and what making it took."""
    started = time.perf_counter()
    gene = study.gene()
    recipe = gene.config.recipe
    return {
        "ancestor": gene.config.ancestor,
        "layers": gene.config.vision_config.num_hidden_layers,
        "width": gene.config.vision_config.hidden_size,
        "parameters": gene.num_parameters(),
        "blocks": gene.config.num_unimodal_blocks,
        "seconds": recipe["seconds"],
        "here": round(time.perf_counter() - started),
        **{name: recipe[name] for name in ("rows", "steps", "batch_size", "turned", "final_losses")},
    }


@torch.no_grad()
def nearness(study: Study, start: str) -> dict[str, Any]:
    """How near class tokens are to the ancestor's before any fine-tuning: the mean centred cosine on test photos."""
    pixels = study.pixels("test", study.settings["compared_photos"]).split(50)
    theirs = torch.cat([study.ancestor()(batch).last_hidden_state[:, 0] for batch in pixels])
    model = study.gene().descendant() if start == "gene, full size" else study.grow(start, 0)
    own = torch.cat([model.eval()(batch).pooler_output for batch in pixels])
    cosine = F.cosine_similarity(own - own.mean(0), theirs - theirs.mean(0)).mean().item()
    return {"cosine": round(cosine, 4), "parameters": model.num_parameters()}


def load_task(study: Study, name: str) -> tuple[dict[str, Rows], list[str]]:
    """The splits of a task as pictures and labels in memory, and its classes."""
    limits = study.settings["limits"]
    if name == "clothes":
        splits: Any = {split: load_image_text(study.options.clothing, split) for split in limits}
    else:
        splits = digit_splits(IMAGE_SIZE, 1000, 300)
    found = {}
    for split, count in limits.items():
        rows = splits[split].shuffle(seed=0)
        rows = rows.select(range(min(count, len(rows))))
        pixels = process_images(rows, PROCESSOR, image_column="image")["pixel_values"]
        pixels = torch.stack([torch.as_tensor(row).half() for row in pixels])
        found[split] = Rows(pixel_values=pixels, labels=list(rows["label"]))
    return found, splits["train"].features["label"].names


@torch.no_grad()
def features(study: Study, load: Callable, task: str, start: str, seed: int) -> dict[str, np.ndarray]:
    """What a frozen model gives of each split: the class token and the mean of the patches, [N, 2 D]."""
    model = study.ancestor() if start == "ancestor" else study.grow(start, seed).eval()
    found = {}
    for split, rows in load(task)[0].items():
        tokens = [model(batch.float()).last_hidden_state for batch in rows.columns["pixel_values"].split(50)]
        found[split] = torch.cat([torch.cat([t[:, 0], t[:, 1:].mean(1)], dim=1) for t in tokens]).numpy()
    return found


class Probes:
    """Linear classifiers of frozen features, of one task and start."""

    def __init__(self, study: Study, load: Callable, task: str, start: str) -> None:
        self.rows, self.drawn = load(task)[0], study.settings["drawn"]
        # Of all starts only scratch depends on the seed.
        self.features = cache(partial(features, study, load, task, start))
        self.seeded, self.strengths = start == "scratch", study.settings["strengths"]

    def accuracy(self, strength: float, seed: int, split: str) -> float:
        """Of a logistic regression on a draw of the training pictures."""
        found = self.features(seed if self.seeded else 0)
        drawn = np.random.default_rng(seed).permutation(len(found["train"]))[: self.drawn]
        labels = {name: np.array(rows.columns["labels"]) for name, rows in self.rows.items()}
        probe = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=500))
        probe.fit(found["train"][drawn], labels["train"][drawn])
        return float((probe.predict(found[split]) == labels[split]).mean())

    def choose(self) -> dict[str, Any]:
        """The strength that is best on validation, by a draw that no measurement uses."""
        tried = {strength: round(self.accuracy(strength, TUNING_SEED, "validation"), 4) for strength in self.strengths}
        return {"strength": max(tried, key=lambda strength: tried[strength]), "tried": [[*p] for p in tried.items()]}

    def measure(self, strength: float, seed: int) -> dict[str, Any]:
        """Test accuracy, looked at once."""
        return {"top1": round(self.accuracy(strength, seed, "test"), 4)}


def main() -> None:
    options = parse(__doc__, *("data", "clothing", "seeds", "output", "quick"), settings=SETTINGS)
    given = {name: value for name, value in SETTINGS.items() if name not in ("options", "quick", "quick_run")}
    if options.quick:
        given |= SETTINGS["quick_run"]
    study, folder = Study(options, given), output_folder(options, "vit")
    about = {"ancestor": Path(options.ancestor).name if Path(options.ancestor).exists() else options.ancestor}
    results = Results(folder / "results" / "vit.json", given | about | {"data": settings_of(options)["data"]})
    results.save(seeds=options.seeds)
    print(json.dumps(results.run("extraction", extraction, study)), flush=True)
    for start in ("gene, full size", *report.STARTS):
        if start not in ("scratch", "ancestor"):
            results.run(f"near/{start}", nearness, study, start)
    load = cache(partial(load_task, study))
    for task in (*(["clothes"] if options.clothing else []), "digits"):
        for start in report.STARTS:
            probes = Probes(study, load, task, start)
            strength = results.run(f"chosen/{task}/{start}", probes.choose)["strength"]
            for seed in options.seeds:
                results.run(f"run/{task}/{start}/{seed}", probes.measure, strength, seed)
    publish(folder, report)


if __name__ == "__main__":
    main()

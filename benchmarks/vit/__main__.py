"""An image gene of a real, deep ViT: its descendants against the same from scratch and against slices of the ancestor.

    python -m benchmarks.vit --clothing FOLDER [--ancestor facebook/dinov2-small]

The gene is extracted from product photos at 112 px; ten classes of clothes and handwritten digits are fine-tuned on.
Extraction goes on from its last checkpoint, and runs that the results file holds are not repeated. Half an hour on one
core.
"""

import json
import time
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F
from transformers import CLIPImageProcessorPil, Trainer, TrainingArguments, ViTForImageClassification, set_seed

from benchmarks.common.fashion import IMAGE, load_splits
from benchmarks.common.options import output_folder, parse, read_settings, settings_of
from benchmarks.common.pages import publish
from benchmarks.common.results import Results
from benchmarks.common.training import Rows, training
from benchmarks.vit import report
from benchmarks.vit.convert import dinov2_of_onnx
from mmlg_hf import ExtractionArguments, extract_learngene, load_learngene
from mmlg_hf.data import load_image_text, process_images
from mmlg_hf.demo.digits import digit_splits
from mmlg_hf.evaluation.classification import classification_metrics
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
    image_mean=[0.485, 0.456, 0.406],  # ImageNet's, as DINOv2 takes them
    image_std=[0.229, 0.224, 0.225],
)


class Study:
    """The ancestor, the photos, the gene, and what descendants are compared with."""

    def __init__(self, options: Any, settings: dict[str, Any]) -> None:
        self.options, self.settings, self.work = options, settings, Path(options.work)

    @cache  # noqa: B019
    def ancestor(self) -> Any:
        """The ancestor as a stock model; one out of an ONNX file is kept as a folder."""
        given = self.options.ancestor
        if not given.endswith(".onnx"):
            return load_ancestor(given)
        folder = self.work / "ancestor"
        if not (folder / "config.json").exists():
            dinov2_of_onnx(given).save_pretrained(folder)
        return load_ancestor(folder)

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

    def grow(self, start: str, seed: int, **labels: Any) -> Any:
        """A model of the study's size, by where it starts from."""
        genes = {"gene": self.gene, "slices": partial(self.slices, False), "turned slices": partial(self.slices, True)}
        set_seed(seed)
        grown = genes["gene" if start == "scratch" else start]().descendant(*self.settings["size"], **labels)
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
        columns = {"pixel_values": [torch.as_tensor(row).half() for row in pixels], "labels": list(rows["label"])}
        found[split] = Rows(**columns)
    return found, splits["train"].features["label"].names


def fine_tune(study: Study, task: str, start: str, rate: float, seed: int, split: str, load: Callable) -> dict:
    """Fine-tune a classifier by the stock Trainer; its accuracies on a split, and the seconds."""
    splits, names = load(task)
    model = study.grow(start, seed, id2label=dict(enumerate(names)))
    assert type(model) is ViTForImageClassification
    model.accepts_loss_kwargs = False
    settings = study.settings["fine_tuning"]
    arguments = training(study.work / "tuning", settings["steps"], settings["batch_size"], rate, seed=seed)
    data = {"train_dataset": splits["train"], "eval_dataset": splits[split]}
    args = TrainingArguments(**arguments, use_cpu=True)
    trainer = Trainer(model, args, compute_metrics=classification_metrics, **data)
    started = time.perf_counter()
    trainer.train()
    seconds = round(time.perf_counter() - started, 2)
    found = trainer.evaluate()
    return {"top1": round(found["eval_accuracy"], 4), "seconds": seconds}


def choose(study: Study, task: str, start: str, load: Callable) -> dict[str, Any]:
    """The rate that is best on validation, by a seed that no measurement uses."""
    tried = {
        rate: fine_tune(study, task, start, rate, TUNING_SEED, "validation", load)["top1"]
        for rate in study.settings["rates"]
    }
    return {"rate": max(tried, key=lambda rate: tried[rate]), "tried": [[*pair] for pair in tried.items()]}


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
        if start != "scratch":
            results.run(f"near/{start}", nearness, study, start)
    load = cache(partial(load_task, study))
    for task in (*(["clothes"] if options.clothing else []), "digits"):
        for start in report.STARTS:
            rate = results.run(f"chosen/{task}/{start}", choose, study, task, start, load)["rate"]
            for seed in options.seeds:
                run = (study, task, start, rate, seed, "test", load)
                results.run(f"run/{task}/{start}/{seed}", fine_tune, *run)
    publish(folder, report)


if __name__ == "__main__":
    main()

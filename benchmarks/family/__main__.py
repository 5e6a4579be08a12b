"""What a gene is worth: descendants of many sizes, started in every way a user could, before and after fine-tuning.

    python -m benchmarks.family --data FOLDER       the study (some 3 hours on one core)
    python -m benchmarks.family --quick --data FOLDER                 all of it, small, in under 20 minutes
    python -m benchmarks.family --configuration openai-flickr30k      another ancestor and data set

Methods: `starts.py`; sizes and steps: `settings.yaml`; how it is measured: README.md beside this. Parts:

    family      four depths x three widths: zero-shot and retrieval on test pairs before and after fine-tuning
    curves      one size, validation pairs, many steps: how long each start keeps its lead, and what scratch needs
                (with --long by Muon, too, since genes are extracted by it; of DISTILLED only with --methods)
    encoders    image-only descendants classify digits and other photos (--clothing), text-only ones titles into
                sub-categories
    heads       the same, the head probed first: what a probe alone has, and what the same steps make of it
    probes      linear probes after each layer of image encoders: the ancestor's, and one size of some starts

Runs that the results file holds are not repeated. Plots are drawn beside it; `python -m benchmarks` makes the page.
"""

import json
import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from functools import cache, partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch.nn import functional as F
from transformers import CLIPModel, CLIPProcessor, TrainerCallback, TrainingArguments

from benchmarks.common.fashion import CLIP_TOKENS, processed
from benchmarks.common.options import output_folder, parse, settings_of
from benchmarks.common.pages import save
from benchmarks.common.results import Results
from benchmarks.common.training import Rows, batches_of, figures, photos, training
from benchmarks.family.arrays import Family, probed_name
from benchmarks.family.classifiers import clothing_task, digit_task, text_task, train_classifier
from benchmarks.family.controls import Controls, records
from benchmarks.family.cost import extraction_gflops, forward_gflops, gflops, muon_gflops
from benchmarks.family.curves import Curve
from benchmarks.family.probes import probe_layers
from benchmarks.family.report import plots_of
from benchmarks.family.settings import CONFIGURATIONS, SETTINGS, known_rows, load_pairs, make_quick_ancestor
from benchmarks.family.starts import (
    BUNDLED,
    BY_MUON,
    DISTILLED,
    GENES,
    LONGER,
    STARTS,
    STUDENTS,
    TRAINED,
    Sources,
    extract_gene,
    turned_ancestor,
)
from mmlg_hf.checkpoints import quiet
from mmlg_hf.descendants import load_learngene
from mmlg_hf.extraction import DistillationTrainer
from mmlg_hf.extraction.ancestors import gene_config
from mmlg_hf.extraction.vocabulary import trim_embedding, trim_tokenizer
from mmlg_hf.inspection import measure_size
from mmlg_hf.training import ContrastiveTrainer, ImageTextCollator, with_muon

Size = Sequence[int]  # depth and width
TUNING_SEED = 100
FEATURE_WEIGHT = 30.0  # of distillation beside contrast; 10 and imitation alone were tried on validation (LOG.md)
ENCODERS = {"encoders": False, "heads": True}  # whether the head is probed before the first step
PARTS = ["family", "curves", *ENCODERS, "probes"]
PROBED = ("rotated inheritance", *TRAINED, BUNDLED)
CURVE_SHARES = (0.1, 0.2, 0.4, 0.6, 0.8, 1.0)  # of the steps, where curves are measured
MEASURED = ("image_to_text_R@1", "image_to_text_R@10", "mean_R@1")


def in_memory(rows: Dataset, processor: CLIPProcessor) -> Rows:
    pairs = processed(rows, processor, text_column="text")
    return Rows(pixel_values=photos(pairs), input_ids=list(pairs["input_ids"]))


class Study:
    """The data, the ancestor and the settings that all runs share, and the runs."""

    def __init__(self, options: Namespace, results: Results) -> None:
        self.options, self.results, self.work = options, results, Path(options.work)
        self.splits = load_pairs(options.configuration, options.data)
        options.ancestor = options.ancestor or make_quick_ancestor(options, self.splits)
        self.ancestor = CLIPModel.from_pretrained(options.ancestor, dtype=torch.float32)
        self.processor = self._trim(CLIPProcessor.from_pretrained(options.ancestor))
        self.collator = ImageTextCollator(self.processor, pad_to_multiple_of=8)
        counts = {"validation": options.validation_pairs, "test": options.test_pairs}
        self.measured = {name: known_rows(self.splits, name).select(range(count)) for name, count in counts.items()}
        self.pairs = {name: in_memory(split, self.processor) for name, split in self.measured.items()}
        calibration = in_memory(self.splits["train"].select(range(512)), self.processor)
        self.turned = turned_ancestor(self.ancestor, batches_of(calibration, self.collator, 128))
        limits = {"train": options.encoder_steps * options.batch_size, "validation": 300, "test": 600}
        self.tasks = {"digits": digit_task(self.processor, limits)}
        if options.clothing:
            self.tasks["clothes"] = clothing_task(options.clothing, self.processor, limits)
        label = CONFIGURATIONS[options.configuration]["text_label"]
        if label:
            texts = {"train": self.splits["train"], **self.measured}
            self.tasks["titles"] = text_task(texts, label, self.processor, limits)

    def _trim(self, processor: CLIPProcessor) -> CLIPProcessor:
        """Cut the ancestor's vocabulary to the data's tokens, so that every method has the same small embedding."""
        tokenizer, old_ids = trim_tokenizer(processor.tokenizer, self.splits["train"]["text"])
        trim_embedding(self.ancestor, tokenizer, old_ids)
        return CLIPProcessor(processor.image_processor, tokenizer)

    def train_rows(self, seed: int, count: int) -> Dataset:
        """The first `count` rows of the training split in the order of a seed: the same for every method."""
        order = np.random.default_rng(seed).permutation(len(self.splits["train"]))
        return self.splits["train"].select(order[:count])

    def train_pairs(self, seed: int) -> Rows:
        """The pairs of one seed's fine-tuning, those after its extraction's; kept until another seed asks."""
        if getattr(self, "_seed", None) != seed:
            count = min(self.options.curve_steps * self.options.batch_size, len(self.splits["train"]))
            self._seed, self._train_pairs = seed, in_memory(self.train_rows(seed + 1000, count), self.processor)
        return self._train_pairs

    @cache  # noqa: B019 one study a process
    def sources(self, seed: int) -> Sources:
        """The ancestor and the genes of one seed, extracted where they are not there yet."""
        options, sources = self.options, Sources(self.ancestor, self.turned)
        sources.trained = partial(self.train_control, seed)
        if {BUNDLED, DISTILLED} & set(options.methods):
            sources.genes[BUNDLED] = gene = load_learngene(options.learngene, dtype=torch.float32)
            have, want = gene.config.text_config.vocab_size, len(self.processor.tokenizer)
            if have != want:
                raise SystemExit(
                    f"{options.learngene} has {have} tokens, the data {want}: leave {BUNDLED!r} out of --methods"
                )
        for name in (name for name in GENES if name in options.methods):
            started = time.perf_counter()
            steps = GENES[name].get("max_steps", options.extraction_steps)
            batch = GENES[name].get("per_device_train_batch_size", options.extraction_batch_size)
            rows = self.train_rows(seed, steps * batch)
            arguments = {"max_steps": steps, "seed": seed, "per_device_train_batch_size": batch}
            folder = self.work / f"genes-{seed}"
            gene = extract_gene(name, self.ancestor, rows, self.processor, SETTINGS["extraction"] | arguments, folder)
            sources.genes[name] = gene
            record = folder / f"{name}.json"
            if not record.exists():
                about = {"seconds": time.perf_counter() - started, "parameters": gene.num_parameters()}
                record.write_text(json.dumps(about | {"steps": steps, "batch_size": batch}))
        return sources

    def train_control(self, seed: int, name: str, depth: int, width: int) -> CLIPModel:
        """A control that is trained first; there is one set of students, as there is one bundled gene."""
        return self.controls(0 if name == STUDENTS else seed)(name, depth, width)

    @cache  # noqa: B019 one study a process
    def controls(self, seed: int) -> Controls:
        options, sources = self.options, Sources(self.ancestor, self.turned)
        pairs = lambda count: in_memory(self.train_rows(seed, count), self.processor)  # noqa: E731
        short = (options.extraction_steps, options.extraction_batch_size)
        folder = self.work / f"controls-{seed}"
        return Controls(sources, options.sizes, self.collator, pairs, folder, seed, short)

    @torch.no_grad()
    def measure(self, model: CLIPModel, split: str) -> dict[str, float]:
        """Zero-shot accuracy over the classes and retrieval between photos and titles, from one pass over a split."""
        model.eval()
        batches = batches_of(self.pairs[split], self.collator, 250)
        outputs = [model(**(batch | {"return_loss": False})) for batch in batches]
        images, texts = (
            F.normalize(torch.cat([getattr(output, name) for output in outputs]), dim=-1)
            for name in ("image_embeds", "text_embeds")
        )
        rows = self.measured[split]
        names = list(rows["label"]) if "label" in rows.column_names else None
        found, zero_shot = figures(model, images, texts, names, self.processor, self.options.templates)
        kept = {name: found[name] for name in MEASURED}
        kept["mean_R@10"] = (found["image_to_text_R@10"] + found["text_to_image_R@10"]) / 2
        return kept | ({"top1": zero_shot["top1"]} if zero_shot else {})

    def arguments(self, steps: int, rate: float) -> dict[str, Any]:
        """What all fine-tuning shares."""
        changes = {"weight_decay": 0.05, "adam_beta2": 0.98}
        return training(self.work / "trainer", steps, self.options.batch_size, rate, **changes)

    def run(
        self, method: str, seed: int, genes_of: int, steps: int, split: str, at: Sequence[int], size: Size, rate: float
    ) -> dict[str, Any]:
        """Start a model and fine-tune it, measured on a split at some of the steps; seconds are those of training."""
        model = STARTS[method](self.sources(genes_of), *size, seed)
        curve = Curve(at, lambda: self.measure(model, split))
        found: dict[str, Any] = {}
        if steps:
            trainer = self.trainer(method, model, TrainingArguments(**self.arguments(steps, rate), seed=seed), curve)
            started, measuring = time.perf_counter(), curve.seconds
            trainer.train()
            seconds = time.perf_counter() - started - (curve.seconds - measuring)
            found = {"rate": rate, "seconds": round(seconds, 2), "parameters": model.num_parameters()}
        return found | {"curve": curve.points}

    def trainer(
        self, method: str, model: CLIPModel, args: TrainingArguments, curve: TrainerCallback
    ) -> ContrastiveTrainer:
        """What fine-tunes a start: by contrast and AdamW, if the method is not of another kind."""
        given: dict[str, Any] = {"callbacks": [curve]}
        if method in (BY_MUON, DISTILLED):
            given["optimizer_cls_and_kwargs"] = with_muon(args, args.learning_rate)
        rows = self.train_pairs(args.seed)
        if method == DISTILLED:
            given |= {"ancestor": self.ancestor, "feature_weight": FEATURE_WEIGHT}
            return DistillationTrainer(model, args, self.collator, rows, **given)
        return ContrastiveTrainer(model, args, self.collator, rows, **given)

    def classify(
        self, task: str, probed: bool, method: str, seed: int, genes_of: int, split: str, size: Size, rate: float
    ) -> dict[str, Any]:
        """An image-only or text-only descendant as a classifier."""
        model = STARTS[method](self.sources(genes_of), *size, seed)
        arguments = self.arguments(self.options.encoder_steps, rate)
        return {"rate": rate, **train_classifier(model, self.tasks[task], arguments, seed, split, probed)}

    def best_rate(self, key: str, rates: list[float], figure: str, make: Callable[..., dict]) -> float:
        """The rate with the best figure on validation, summed over the tuning sizes; `make` takes size and rate."""

        def total(rate: float) -> float:
            runs = {name_of(size): size for size in self.options.tuning_sizes}
            found = [self.results.run(f"{key}/{name}/{rate:g}", make, size, rate) for name, size in runs.items()]
            return sum(run["curve"][-1][figure] if "curve" in run else run[figure] for run in found)

        return max(rates, key=total)

    def run_all(self) -> None:
        """Do all runs that the results file does not hold yet."""
        options, steps, long = self.options, self.options.steps, self.options.long
        at = [0, *(max(round(options.curve_steps * share), 1) for share in CURVE_SHARES)]
        # Sizes, steps, split and measured steps of each part.
        parts = {
            "family": [(options.sizes, steps, "test", [0, steps]), (options.untrained_sizes, 0, "test", [0])],
            "curves": [(options.curve_sizes, options.curve_steps, "validation", at)],
        }
        tried = max(long // 10, min(long, 300)) if long else steps  # rates of long curves: a tenth of their steps
        rates: dict[str, float] = {}
        for seed in options.seeds:
            self.describe(self.sources(seed))
            for method in options.methods if not rates else ():
                make = partial(self.run, method, TUNING_SEED, seed, tried, "validation", [tried])
                rates[method] = self.best_rate(f"tuning/{method}", options.rates, "mean_R@10", make)
            for part, method in product(parts, options.methods):
                for sizes, *how in parts[part] if part in options.parts else ():
                    if method in TRAINED and not how[0]:  # the budget is that of the sizes that are fine-tuned
                        continue
                    make = partial(self.run, method, seed, seed, *how)
                    self.run_sizes(f"{part}/{method}", seed, sizes, make, rates[method])
        for probed in (ENCODERS[part] for part in ENCODERS if part in options.parts):
            self.classify_all(probed)
        if "probes" in options.parts:
            self.probe_all()
        self.results.save(genes=self.costs())

    def classify_all(self, probed: bool) -> None:
        """Fine-tune all classifiers, their heads probed first or not, each at the rate that is best for it."""
        options = self.options
        for seed, method, task in product(options.seeds, options.methods, self.tasks):
            name, run = probed_name(task) if probed else task, partial(self.classify, task, probed, method)
            make = partial(run, TUNING_SEED, seed, "validation")
            rate = self.best_rate(f"tuning-{name}/{method}", options.encoder_rates, "top1", make)
            make = partial(run, seed, seed, "test")
            self.run_sizes(f"{name}/{method}", seed, options.encoder_sizes, make, rate)

    def probe_all(self) -> None:
        """Probe the ancestor, the tuning sizes of some starts, and the bundled gene at its own size, too."""
        seed, own = self.options.seeds[0], self.ancestor.config.vision_config
        whole = (own.num_hidden_layers, own.hidden_size)
        sizes = {name: list(self.options.tuning_sizes) for name in PROBED if name in self.options.methods}
        if BUNDLED in sizes:
            sizes[BUNDLED].insert(0, whole)
        probed = [("ancestor", whole), *((name, size) for name in sizes for size in sizes[name])]
        tasks = {name: task for name, task in self.tasks.items() if task.modality == "image"}
        for (name, size), task in product(probed, tasks):

            def make(name: str = name, size: Size = size, task: str = task) -> dict[str, Any]:
                model = self.ancestor if name == "ancestor" else STARTS[name](self.sources(seed), *size, seed)
                return probe_layers(model, self.tasks[task])

            self.results.run(f"probes/{name}/{name_of(size)}/{task}", make)

    def run_sizes(self, key: str, seed: int, sizes: list[Size], make: Callable[..., dict], rate: float) -> None:
        for size in sizes:
            self.results.run(f"{key}/{name_of(size)}/{seed}", make, size, rate)

    def describe(self, sources: Sources) -> None:
        """What the figures are measured against: the ancestor's own, sizes in bytes and FLOPs, the genes' cost."""
        every = [*self.options.sizes, *self.options.untrained_sizes]
        found = {name_of(size): measure_size(sources.config(*size)) for size in every}
        sizes = {name: {"parameters": own.parameters, "gflops": gflops(own)} for name, own in found.items()}
        own_gflops = forward_gflops(self.ancestor.config)
        gene = gene_config(self.ancestor, num_multimodal_blocks=1, num_unimodal_blocks=1, mixing="linear")
        genes = self.costs()
        text, parameters = self.ancestor.config.text_config, self.ancestor.num_parameters()
        if BUNDLED in sources.genes:
            bundled, recipe = sources.genes[BUNDLED], sources.genes[BUNDLED].config.recipe
            kept = {name: recipe[name] for name in ("seconds", "steps", "batch_size")}
            genes[f"bundled/{BUNDLED}"] = {**kept, "parameters": bundled.num_parameters()}
        self.results.save(
            sizes=sizes,
            extraction_gflops_per_pair=extraction_gflops(gene, own_gflops),
            muon_gflops_per_step=muon_gflops(gene),
            ancestor={
                "parameters": parameters,
                "parameters_untrimmed": parameters + (CLIP_TOKENS - text.vocab_size) * text.hidden_size,
                "gflops": own_gflops,
                **{split: self.measure(self.ancestor, split) for split in ("test", "validation")},
            },
            genes=genes,
        )

    def costs(self) -> dict[str, Any]:
        """What genes and controls took to make; a run of some methods leaves what others recorded."""
        genes = dict(self.results.found.get("genes", {}))
        for path in self.work.glob("genes-*/*.json"):
            genes[f"{path.parent.name}/{path.stem}"] = json.loads(path.read_text())
        return genes | records(self.work)


def name_of(size: Size) -> str:
    return f"{size[0]}x{size[1]}"


def read_options() -> Namespace:
    """The command line, filled up with the settings of a configuration."""
    options = parse(
        __doc__,
        *("clothing", "output", "learngene", "seeds", "quick"),
        settings=SETTINGS,
        configuration=("fashion", "ancestor, data set, sizes and steps", CONFIGURATIONS),
        methods=(list, "all that are fine-tuned by AdamW, if the data is the gene's own", STARTS),
        parts=(PARTS, "what is measured", PARTS),
    )
    configuration = CONFIGURATIONS[options.configuration]
    for key, value in (configuration["settings"] | (configuration["quick"] if options.quick else {})).items():
        setattr(options, key, value)
    if not options.methods:  # another ancestor's descendants are no match for the bundled gene's
        foreign = options.quick or options.configuration != "fashion"
        left_out = {BY_MUON, DISTILLED} | ({BUNDLED, STUDENTS, *LONGER} if foreign else set())
        options.methods = [name for name in STARTS if name not in left_out]
        options.methods = ["scratch", BY_MUON] if options.long else options.methods
    if options.long:
        options.curve_steps, options.parts = options.long, ["curves"]
    options.data = options.data or configuration["data"]
    options.work = options.work or f"runs/{options.configuration}-initialisation{'-quick' if options.quick else ''}"
    if not (options.quick and options.configuration == "fashion"):
        options.ancestor = options.ancestor or configuration["ancestor"]
    return options


def main() -> None:
    options = read_options()
    name = "family" if options.configuration == "fashion" else options.configuration
    name = f"curves-{options.long}" if options.long and name == "family" else name
    name += f"-curves-{options.long}" if options.long and not name.startswith("curves") else ""
    left_out = ("data", "ancestor", "clothing", "parts", "seeds", "methods", "learngene", "long")
    path = output_folder(options, "family") / "results" / f"{name}.json"
    results = Results(path, settings_of(options, *left_out))
    with quiet():
        Study(options, results).run_all()
    if {"family", "curves"} <= set(options.parts):
        for plot, figure in plots_of(Family(results.found)).items():
            save(figure, path.with_name(plot + path.stem.removeprefix("family") + ".png"))
    print(path)


if __name__ == "__main__":
    main()

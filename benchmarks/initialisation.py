"""What a gene is worth: descendants of many sizes, started in every way a user could, before and after fine-tuning.

    python -m benchmarks.initialisation --ancestor FOLDER --data FOLDER       the study (1.5 hours on one core)
    python -m benchmarks.initialisation --quick --data FOLDER                 all of it, small, in under 20 minutes
    python -m benchmarks.initialisation --configuration openai-flickr30k      another ancestor and data set

Methods: `benchmarks.initialisers`. All see the same pairs in the same order, with the same batch, steps and schedule;
each has the best learning rate of a grid, chosen on validation pairs with a seed that is not used again. Parts:

    family      four depths x three widths: zero-shot and retrieval on test pairs before and after fine-tuning
    curves      some sizes, validation pairs, many steps: how long each start keeps its lead, and what scratch needs
                (with --long by Muon, too, since genes are extracted by it)
    encoders    image-only descendants classify digits and other photos (--clothing), text-only ones titles into
                sub-categories

Runs that the results file holds are not repeated. Plots are drawn beside it; `benchmarks.report` makes the tables.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch.nn import functional as F
from transformers import CLIPModel, CLIPProcessor, TrainerCallback, TrainingArguments

from benchmarks.cost import extraction_gflops, muon_gflops
from benchmarks.family import Family
from benchmarks.files import Results
from benchmarks.initialisers import BUNDLED, BY_MUON, GENES, INITIALISERS, Sources, extract_gene, turned_ancestor
from benchmarks.report_plots import plot_all
from benchmarks.settings import CONFIGURATIONS, Configuration, known_rows, make_quick_ancestor
from benchmarks.single_encoders import Task, clothing_task, digit_task, text_task, train_classifier
from mmlg_hf.data import process_pairs
from mmlg_hf.descendants import load_learngene
from mmlg_hf.evaluation import class_embeddings
from mmlg_hf.evaluation.loading import quiet
from mmlg_hf.evaluation.metrics import classification_results, label_ranks, retrieval_results
from mmlg_hf.extraction.ancestors import gene_config
from mmlg_hf.extraction.vocabulary import trim_embedding, trim_tokenizer
from mmlg_hf.inspection import measure_size
from mmlg_hf.training import ContrastiveTrainer, ImageTextCollator
from mmlg_hf.training.optimizers import MuonFactory

TUNING_SEED = 100
CURVE_SHARES = (0.1, 0.2, 0.4, 0.6, 0.8, 1.0)  # of the steps, where curves are measured
EXTRACTION = {
    "weight_decay": 0.05,  # the default is for long extractions; in one of 80 steps neither does anything
    "logging_steps": 20,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
    "cache_ancestor": False,
}


class Pairs(torch.utils.data.Dataset):
    """Processed pairs in memory."""

    def __init__(self, rows: Dataset, processor: CLIPProcessor):
        batches = list(process_pairs(rows, processor, image_column="image", text_column="text").iter(512))
        self.pixel_values = torch.cat([batch["pixel_values"].half() for batch in batches])  # [N, 3, H, W]
        self.input_ids = [ids for batch in batches for ids in batch["input_ids"]]

    def __len__(self) -> int:
        return len(self.input_ids)

    def __getitem__(self, row: int) -> dict[str, Any]:
        return {"pixel_values": self.pixel_values[row].float(), "input_ids": self.input_ids[row]}


class Study:
    """The data, the ancestor and the settings that all runs share."""

    def __init__(self, options: argparse.Namespace, configuration: Configuration) -> None:
        self.options = options
        self.work = Path(options.work)
        self.splits = configuration.load(options.data)
        options.ancestor = options.ancestor or make_quick_ancestor(options, self.splits)
        self.ancestor = CLIPModel.from_pretrained(options.ancestor, dtype=torch.float32)
        self.ancestor_parameters = self.ancestor.num_parameters()
        self.processor = self._trim(CLIPProcessor.from_pretrained(options.ancestor))
        self.collator = ImageTextCollator(self.processor, pad_to_multiple_of=8)
        rows = {"validation": options.validation_pairs, "test": options.test_pairs}
        self.measured = {name: known_rows(self.splits, name).select(range(count)) for name, count in rows.items()}
        self.pairs = {name: Pairs(split, self.processor) for name, split in self.measured.items()}
        calibration = Pairs(self.splits["train"].select(range(512)), self.processor)
        batches = [self.collator([calibration[row] for row in range(n, n + 128)]) for n in range(0, 512, 128)]
        self.turned = turned_ancestor(self.ancestor, batches)
        limits = {"train": options.encoder_steps * options.batch_size, "validation": 300, "test": 600}
        self.tasks = {"digits": digit_task(self.processor, limits)}
        if options.clothing:
            self.tasks["clothes"] = clothing_task(options.clothing, self.processor, limits)
        if configuration.text_label:
            texts = {"train": self.splits["train"], **self.measured}
            self.tasks["titles"] = text_task(texts, configuration.text_label, self.processor, limits)

    def _trim(self, processor: CLIPProcessor) -> CLIPProcessor:
        """Cut the ancestor's vocabulary to the data's tokens, so that every method has the same small embedding."""
        tokenizer, old_ids = trim_tokenizer(processor.tokenizer, self.splits["train"]["text"])
        trim_embedding(self.ancestor, tokenizer, old_ids)
        return CLIPProcessor(processor.image_processor, tokenizer)

    def train_rows(self, seed: int, count: int) -> Dataset:
        """The first `count` rows of the training split in the order of a seed: the same for every method."""
        order = np.random.default_rng(seed).permutation(len(self.splits["train"]))
        return self.splits["train"].select(order[:count])

    def train_pairs(self, seed: int) -> Pairs:
        """The pairs of one seed's fine-tuning, those after its extraction's; kept until another seed asks."""
        if getattr(self, "_seed", None) != seed:
            count = min(self.options.curve_steps * self.options.batch_size, len(self.splits["train"]))
            self._seed, self._train_pairs = seed, Pairs(self.train_rows(seed + 1000, count), self.processor)
        return self._train_pairs

    def sources(self, seed: int) -> Sources:
        """The ancestor and the genes of one seed, extracted where they are not there yet."""
        options, sources = self.options, Sources(self.ancestor, self.turned)
        if BUNDLED in options.methods:
            sources.genes[BUNDLED] = gene = load_learngene(options.gene, dtype=torch.float32)
            have, want = gene.config.text_config.vocab_size, len(self.processor.tokenizer)
            if have != want:
                raise SystemExit(
                    f"{options.gene} has {have} tokens, the data {want}: leave {BUNDLED!r} out of --methods"
                )
        for name in GENES:
            if name not in options.methods:
                continue
            started = time.perf_counter()
            rows = self.train_rows(seed, options.extraction_steps * options.extraction_batch_size)
            arguments = EXTRACTION | {"max_steps": options.extraction_steps, "seed": seed}
            arguments |= {"per_device_train_batch_size": options.extraction_batch_size}
            arguments |= {"image_column": "image", "text_column": "text"}
            folder = self.work / f"genes-{seed}"
            sources.genes[name] = extract_gene(name, self.ancestor, rows, self.processor, arguments, folder)
            record = folder / f"{name}.json"
            if not record.exists():
                own = sources.genes[name]
                about = {"seconds": time.perf_counter() - started, "parameters": own.num_parameters()}
                record.write_text(json.dumps(about | {"steps": options.extraction_steps}))
        return sources

    @torch.no_grad()
    def measure(self, model: CLIPModel, split: str) -> dict[str, float]:
        """Zero-shot accuracy over the classes and retrieval between photos and titles, from one pass over a split."""
        model.eval()
        images, texts = [], []
        pairs = self.pairs[split]
        for start in range(0, len(pairs), 250):
            batch = self.collator([pairs[row] for row in range(start, min(start + 250, len(pairs)))])
            outputs = model(**(batch | {"return_loss": False}))
            images.append(outputs.image_embeds), texts.append(outputs.text_embeds)
        image_embeds, text_embeds = F.normalize(torch.cat(images), dim=-1), F.normalize(torch.cat(texts), dim=-1)
        found = retrieval_results(image_embeds, text_embeds, torch.arange(len(pairs)))
        figures = {name: found[name] for name in ("image_to_text_R@1", "image_to_text_R@10", "mean_R@1")}
        figures["mean_R@10"] = (found["image_to_text_R@10"] + found["text_to_image_R@10"]) / 2
        rows = self.measured[split]
        if "label" in rows.column_names:
            names, classes = list(rows["label"]), sorted(set(rows["label"]))
            labels = torch.tensor([classes.index(name) for name in names])
            prompts = class_embeddings(model, classes, self.processor, templates=self.options.templates)
            figures["top1"] = classification_results(
                label_ranks(image_embeds @ prompts.T, labels), labels, len(classes)
            )["top1"]
        return figures

    def training_arguments(self, steps: int, rate: float) -> dict[str, Any]:
        """What all fine-tuning shares."""
        return {
            "output_dir": str(self.work / "trainer"),
            "max_steps": steps,
            "per_device_train_batch_size": self.options.batch_size,
            "per_device_eval_batch_size": 256,
            "learning_rate": rate,
            "weight_decay": 0.05,
            "adam_beta2": 0.98,
            "warmup_steps": 0.1,
            "lr_scheduler_type": "cosine",
            "logging_strategy": "no",
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
        }

    def fine_tune(
        self, method: str, model: CLIPModel, seed: int, rate: float, steps: int, measured: tuple[int, ...] = ()
    ) -> tuple[float, list[dict[str, Any]]]:
        """Fine-tune with `ContrastiveTrainer`; return the seconds of training, and the curve at the measured steps."""
        curve: list[dict[str, Any]] = []
        measuring = 0.0
        study = self

        class Curve(TrainerCallback):
            def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                nonlocal measuring
                if state.global_step in measured:
                    started = time.perf_counter()
                    curve.append({"step": state.global_step, **study.measure(model, "validation")})
                    model.train()
                    measuring += time.perf_counter() - started

        args = TrainingArguments(**self.training_arguments(steps, rate), seed=seed)
        trainer = ContrastiveTrainer(model, args, self.collator, self.train_pairs(seed), callbacks=[Curve()])
        if method == BY_MUON:
            decayed = set(trainer.get_decay_parameter_names(model))
            trainer.optimizer = MuonFactory()(
                model,
                is_stack=lambda name, parameter: ".layers." in name and parameter.dim() == 2,
                is_decayed=lambda name, parameter: name in decayed,
                muon_learning_rate=rate,
                weight_decay=args.weight_decay,
                rest=trainer.get_optimizer_cls_and_kwargs(args, model),
            )
        started = time.perf_counter()
        trainer.train()
        return time.perf_counter() - started - measuring, curve


def best_rate(options: argparse.Namespace, rates: list[float], score: Callable[[int, int, float], float]) -> float:
    """The rate with the best score (of depth, width and rate), summed over the tuning sizes."""
    return max(rates, key=lambda rate: sum(score(*size, rate) for size in options.tuning_sizes))


def tuned_steps(options: argparse.Namespace) -> int:
    """The steps that rates are chosen by: the family's, and for long curves a tenth of theirs, but not below 300."""
    return max(options.long // 10, min(options.long, 300)) if options.long else options.steps


def tuned_rate(study: Study, results: Results, sources: Sources, method: str) -> float:
    """The rate with the best recall on validation pairs after fine-tuning."""

    def score(depth: int, width: int, rate: float) -> float:
        def run() -> dict[str, Any]:
            model = INITIALISERS[method](sources, depth, width, TUNING_SEED)
            study.fine_tune(method, model, TUNING_SEED, rate, tuned_steps(study.options))
            return {"figures": study.measure(model, "validation")}

        return results.add(f"tuning/{method}/{depth}x{width}/{rate:g}", run)["figures"]["mean_R@10"]

    return best_rate(study.options, study.options.rates, score)


def run_family(study: Study, results: Results, sources: Sources, method: str, seed: int, rate: float) -> None:
    options = study.options
    for depth, width in options.sizes:

        def run(depth: int = depth, width: int = width) -> dict[str, Any]:
            model = INITIALISERS[method](sources, depth, width, seed)
            before = study.measure(model, "test")
            seconds, _ = study.fine_tune(method, model, seed, rate, options.steps)
            about = {"rate": rate, "seconds": round(seconds, 2), "parameters": model.num_parameters()}
            return about | {"before": before, "after": study.measure(model, "test")}

        results.add(f"family/{method}/{depth}x{width}/{seed}", run)
    for depth, width in options.untrained_sizes:
        model = lambda d=depth, w=width: INITIALISERS[method](sources, d, w, seed)  # noqa: E731
        results.add(
            f"family/{method}/{depth}x{width}/{seed}", lambda model=model: {"before": study.measure(model(), "test")}
        )


def run_curves(study: Study, results: Results, sources: Sources, method: str, seed: int, rate: float) -> None:
    for depth, width in study.options.curve_sizes:

        def run(depth: int = depth, width: int = width) -> dict[str, Any]:
            model = INITIALISERS[method](sources, depth, width, seed)
            start = {"step": 0, **study.measure(model, "validation")}
            steps = study.options.curve_steps
            measured = tuple(max(round(steps * share), 1) for share in CURVE_SHARES)
            seconds, curve = study.fine_tune(method, model, seed, rate, steps, measured)
            return {"rate": rate, "seconds": round(seconds, 2), "curve": [start, *curve]}

        results.add(f"curves/{method}/{depth}x{width}/{seed}", run)


def run_encoders(study: Study, results: Results, sources: Sources, method: str, seed: int) -> None:
    """The image-only and the text-only descendants, each on tasks of its own."""
    options = study.options
    for name, task in study.tasks.items():
        rate = tuned_encoder_rate(study, results, sources, method, name)
        for depth, width in options.encoder_sizes:

            def run(depth: int = depth, width: int = width, task: Task = task, rate: float = rate) -> dict[str, Any]:
                model = INITIALISERS[method](sources, depth, width, seed)
                arguments = study.training_arguments(options.encoder_steps, rate)
                return {"rate": rate, **train_classifier(model, task, arguments, seed)}

            results.add(f"{name}/{method}/{depth}x{width}/{seed}", run)


def tuned_encoder_rate(study: Study, results: Results, sources: Sources, method: str, name: str) -> float:
    """The rate with the best accuracy on a task's validation rows."""

    def score(depth: int, width: int, rate: float) -> float:
        def run() -> dict[str, Any]:
            model = INITIALISERS[method](sources, depth, width, TUNING_SEED)
            arguments = study.training_arguments(study.options.encoder_steps, rate)
            return train_classifier(model, study.tasks[name], arguments, TUNING_SEED, "validation")

        return results.add(f"tuning-{name}/{method}/{depth}x{width}/{rate:g}", run)["top1"]

    return best_rate(study.options, study.options.encoder_rates, score)


def describe(study: Study, results: Results, sources: Sources) -> None:
    """What the figures are measured against: the ancestor's own, sizes in bytes and FLOPs, the genes' cost."""
    options, config = study.options, study.ancestor.config
    about: dict[str, Any] = {}
    for depth, width in [*options.sizes, *options.untrained_sizes]:
        size = measure_size(Sources(study.ancestor, study.turned).config(depth, width))
        flops = (size.gflops_image or 0) + (size.gflops_text or 0)
        about[f"{depth}x{width}"] = {"parameters": size.parameters, "gflops": flops}
    own = measure_size(config)
    results.found["sizes"] = about
    own_gflops = (own.gflops_image or 0) + (own.gflops_text or 0)
    gene = gene_config(study.ancestor, num_multimodal_blocks=1, num_unimodal_blocks=1, mixing="linear")
    results.found["extraction_gflops_per_pair"] = extraction_gflops(gene, own_gflops)
    results.found["muon_gflops_per_step"] = muon_gflops(gene)
    results.found["ancestor"] = {
        "parameters": study.ancestor.num_parameters(),
        "parameters_untrimmed": study.ancestor_parameters,
        "gflops": own_gflops,
        "test": study.measure(study.ancestor, "test"),
        "validation": study.measure(study.ancestor, "validation"),
    }
    genes = results.found.setdefault("genes", {})  # a run of some methods leaves what others recorded
    for path in study.work.glob("genes-*/*.json"):
        genes[f"{path.parent.name}/{path.stem}"] = json.loads(path.read_text())
    if BUNDLED in sources.genes:
        bundled, recipe = sources.genes[BUNDLED], sources.genes[BUNDLED].config.recipe
        about = {"seconds": recipe["seconds"], "parameters": bundled.num_parameters(), "steps": recipe["steps"]}
        genes[f"bundled/{BUNDLED}"] = about | {"batch_size": recipe["batch_size"]}


def run_study(options: argparse.Namespace, configuration: Configuration) -> Path:
    """Do the runs that the results file does not hold yet; return the file."""
    name = "initialisation" + ("" if configuration.name == "fashion" else f"-{configuration.name}")
    name += "-quick" if options.quick else ""
    name += f"-{options.long}" if options.long else ""
    left_out = ("output", "work", "data", "ancestor", "clothing", "parts", "seeds", "methods", "gene", "long")
    settings = {key: value for key, value in vars(options).items() if key not in left_out}
    path = Path(options.output, f"{name}.json")
    results = Results(path, json.loads(json.dumps(settings)))
    with quiet():
        study = Study(options, configuration)
        rates: dict[str, float] = {}
        for seed in options.seeds:
            sources = study.sources(seed)
            describe(study, results, sources)
            for method in options.methods:
                if method not in rates:
                    rates[method] = tuned_rate(study, results, sources, method)
                if "family" in options.parts:
                    run_family(study, results, sources, method, seed, rates[method])
            for method in options.methods:
                if "curves" in options.parts:
                    run_curves(study, results, sources, method, seed, rates[method])
        for seed in options.seeds:
            sources = study.sources(seed)
            for method in options.methods:
                if "encoders" in options.parts:
                    run_encoders(study, results, sources, method, seed)
    results.save()
    if {"family", "curves"} <= set(options.parts):
        plot_all(Family(results.found), path)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--configuration", default="fashion", choices=CONFIGURATIONS)
    parser.add_argument("--ancestor", help="folder or Hub id; --quick trains a small one if this is left out")
    parser.add_argument("--data", help="Hub id or folder of the data set")
    parser.add_argument(
        "--clothing", help="folder of the clothing photos; image-only descendants are left out without"
    )
    parser.add_argument("--work", help="folder of genes; by default runs/initialisation, with --quick ...-quick")
    parser.add_argument("--output", default="benchmarks/results")
    parser.add_argument("--gene", default="mmlg-fashion-48", help=f"gene of {BUNDLED!r}: it must be this ancestor's")
    parser.add_argument(
        "--methods", nargs="+", choices=INITIALISERS, help="all but scratch by Muon, if the data is the bundled gene's"
    )
    parser.add_argument("--parts", nargs="+", default=["family", "curves", "encoders"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--long", type=int, metavar="STEPS", help="curves of so many steps; of scratch if no methods are given"
    )
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    configuration = CONFIGURATIONS[options.configuration]
    for key, value in (configuration.settings | (configuration.quick if options.quick else {})).items():
        setattr(options, key, value)
    if options.long:
        options.curve_steps, options.parts = options.long, ["curves"]
        options.methods = options.methods or ["scratch", BY_MUON]
    options.data = options.data or configuration.data
    options.work = options.work or f"runs/{configuration.name}-initialisation{'-quick' if options.quick else ''}"
    options.ancestor = options.ancestor or configuration.ancestor
    # Another ancestor's descendants are no match for the bundled gene's.
    foreign = options.quick or configuration.name != "fashion"
    left_out = {BY_MUON, BUNDLED} if foreign else {BY_MUON}
    options.methods = options.methods or [name for name in INITIALISERS if name not in left_out]
    if options.ancestor is None and not options.quick:
        parser.error("give --ancestor, e.g. the one that `python -m benchmarks.ancestor` trains")
    print(run_study(options, configuration))


if __name__ == "__main__":
    main()

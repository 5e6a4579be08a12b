"""One alignment study: the data, the two encoders, and a run of a recipe, trained and measured."""

import ctypes
import sys
import time
from argparse import Namespace
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch.nn import functional as F
from transformers import TrainingArguments, set_seed

from benchmarks.common.fashion import TEMPLATES, TITLE, TYPE, load_splits, processed
from benchmarks.common.results import Results
from benchmarks.common.training import Rows, batches_of, figures, photos, training
from mmlg_hf.alignment import DualEncoderModel, align, processor_of_pair
from mmlg_hf.training import ContrastiveTrainer, ImageTextCollator

# The image encoder's probe is the task it was made for; the text encoder's is one that titles do not simply name.
PROBES = {"image": TYPE, "text": "subCategory"}
PROBE_ROWS = 2000
QUICK_ROWS = 600


class Study:
    """The data, the two encoders and the settings that all runs share.

    Args:
        options: the command line.
        processor: of the photos.
        encoders: given the splits, makes or finds the two encoders: their folders, and what is said of them.
    """

    def __init__(self, options: Namespace, processor: Any, encoders: Callable[[Any], tuple[str, str, Any]]) -> None:
        self.options = options
        splits = load_splits(options.data)
        if options.quick:
            few = {name: range(min(QUICK_ROWS, len(split))) for name, split in splits.items()}
            splits = type(splits)({name: split.select(few[name]) for name, split in splits.items()})
        for name in ("validation", "test"):
            count = getattr(options, f"{name}_pairs", None) or len(splits[name])
            splits[name] = splits[name].select(range(min(count, len(splits[name]))))
        self.splits = splits
        self.vision, self.text, self.encoders = encoders(splits)
        # One image processor for all, so that the photos are processed once; the encoder's size is checked against it.
        self.processor = processor_of_pair(self.join("projections"), image_processor=processor.image_processor)
        self.pairs = {name: self._pairs(split, processor) for name, split in splits.items()}
        self.collator = ImageTextCollator(self.processor, pad_to_multiple_of=8)

    def _pairs(self, split: Dataset, processor: Any) -> Rows:
        tokens = self.processor.tokenizer(list(split[TITLE]), truncation=True)["input_ids"]
        return Rows(pixel_values=photos(processed(split, processor)), input_ids=tokens)

    def join(self, recipe: str) -> DualEncoderModel:
        """The two encoders, as they were before alignment, under a recipe."""
        return align(self.vision, self.text, recipe, **self.shape)

    @property
    def shape(self) -> dict[str, Any]:
        """What all pairs of the study have in common."""
        return {name: getattr(self.options, name) for name in ("vision_pooling", "text_pooling", "projection_dim")}

    def run(
        self, recipe: str, share: float, seed: int, rate: float, steps: int, split: str = "test", probed: bool = False
    ) -> dict[str, Any]:
        """Align on a share of the training pairs, and measure; a smaller share of a seed is part of a larger one."""
        set_seed(seed)
        model = self.join(recipe)
        found = self.train(model, self.pairs["train"], share, seed, rate, steps, self.options.batch_size)
        return {"recipe": recipe, **found, **self.measure(model, split, probed)}

    def train(
        self, model: DualEncoderModel, pairs: Any, share: float, seed: int, rate: float, steps: int, batch_size: int
    ) -> dict[str, Any]:
        """Align a model on the first rows of a seed's order of some pairs."""
        chosen = np.random.default_rng(seed).permutation(len(pairs))[: max(int(share * len(pairs)), 2)]
        folder = Path(self.options.work) / "trainer"
        settings = training(folder, steps, min(batch_size, len(chosen)), rate, weight_decay=0.02, seed=seed)
        subset = torch.utils.data.Subset(pairs, chosen.tolist())
        args = TrainingArguments(**settings)
        trainer = ContrastiveTrainer(model, args, train_dataset=subset, data_collator=self.collator)
        at_rest = reset_peak_memory()
        clock = time.perf_counter if torch.cuda.is_available() else time.process_time
        started = clock()
        trainer.train()
        seconds = clock() - started
        trainable, total = model.get_nb_trainable_parameters()
        return {
            "share": share,
            "seed": seed,
            "learning_rate": rate,
            "pairs": len(chosen),
            "steps": steps,
            "train_loss": trainer.state.log_history[-1]["train_loss"],
            "trainable": trainable,
            "parameters": total,
            "seconds_per_step": seconds / steps,
            "peak_megabytes": peak_megabytes() - at_rest,
        }

    def measure(self, model: DualEncoderModel, split: str, probed: bool) -> dict[str, float]:
        """Retrieval and zero-shot figures on one split, and the probes of both encoders' states."""
        embedded = self.embed(model, split)
        embeds = (embedded["image_embeds"], embedded["text_embeds"])
        probes = self.probe(self.embed(model, "train", PROBE_ROWS), embedded) if probed else {}
        return {**self.figures(model, embeds, split), **probes}

    def figures(self, model: DualEncoderModel, embeds: tuple[torch.Tensor, ...], split: str) -> dict[str, float]:
        """Retrieval and zero-shot figures of a split's normalised embeddings, of images and of texts."""
        retrieval, zero_shot = figures(model, *embeds, self.splits[split][TYPE], self.processor, TEMPLATES)
        return {**retrieval, **{f"zero_shot_{name}": value for name, value in zero_shot.items()}}

    def probe(self, train: dict[str, torch.Tensor], test: dict[str, torch.Tensor]) -> dict[str, float]:
        """Accuracy of a linear classifier on each encoder's own states, before the projection."""
        accuracies = {}
        for modality, column in PROBES.items():
            states = {"train": train[f"{modality}_states"], "test": test[f"{modality}_states"]}
            targets = {split: np.array(self.splits[split][column][: len(rows)]) for split, rows in states.items()}
            classifier = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, tol=1e-3, max_iter=500))
            classifier.fit(states["train"], targets["train"])
            accuracies[f"probe_{modality}"] = float(classifier.score(states["test"], targets["test"]))
        return accuracies

    @torch.no_grad()
    def embed(self, model: DualEncoderModel, split: str, rows: int | None = None) -> dict[str, torch.Tensor]:
        """States [N, D] and normalised embeddings [N, P] of both encoders, in float32 on the CPU."""
        model.eval()
        found: dict[str, list] = {name: [] for name in ("image_states", "text_states", "image_embeds", "text_embeds")}
        for batch in batches_of(self.pairs[split], self.collator, 256, rows):
            pixels, ids, mask = (
                batch[name].to(model.device) for name in ("pixel_values", "input_ids", "attention_mask")
            )
            image, text = model.encode_images(pixels)[0], model.encode_texts(ids, mask)[0]
            embeds = (
                F.normalize(model.visual_projection(image), dim=-1),
                F.normalize(model.text_projection(text), dim=-1),
            )
            for name, value in zip(found, (image, text, *embeds), strict=True):
                found[name].append(value.float().cpu())
        return {name: torch.cat(parts) for name, parts in found.items()}


def compare(
    study: Study, results: Results, tuning: dict[str, Any], steps: dict[float, int], probed: bool = True
) -> None:
    """Every recipe at every share and seed, at its best rate on validation; at the second if none is tried.

    Args:
        tuning: `seed`, `share` and `rates` of the runs that choose.
        steps: of each share; a share without steps is left out.
        probed: whether encoders are probed after runs on the largest share.
    """
    options, rates = study.options, tuning["rates"]
    best = dict.fromkeys(options.recipes, rates[1])
    steps_tried = {"steps": options.tuning_steps, "split": "validation"}
    for recipe in options.recipes if options.tune else ():
        run = partial(study.run, recipe, tuning["share"], tuning["seed"], **steps_tried)
        best[recipe] = best_rate(results, f"tuning/{recipe}", rates, run)
    shares = [share for share in options.shares if share in steps]
    for seed, share, recipe in product(options.seeds, shares, options.recipes):
        given = (recipe, share, seed, best[recipe], steps[share], "test", probed and share == max(options.shares))
        results.run(f"run/{recipe}/{share:g}/{seed}", study.run, *given)


def best_rate(results: Results, key: str, rates: list[float], run: Callable[[float], dict[str, Any]]) -> float:
    """The rate with the best R@1, of runs that the results keep."""
    tried = {rate: results.run(f"{key}/{rate:g}", run, rate)["mean_R@1"] for rate in rates}
    return max(tried, key=lambda rate: tried[rate])


def probes_before(study: Study) -> dict[str, float]:
    """What linear probes read off the encoders before they are aligned."""
    before = study.join("projections")
    return study.probe(study.embed(before, "train", PROBE_ROWS), study.embed(before, "test"))


def reset_peak_memory() -> float:
    """Begin to measure peak memory anew, and return what is in use now, in megabytes."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated() / 2**20
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)  # what earlier runs freed would hide what this one takes
        Path("/proc/self/clear_refs").write_text("5")
    return _resident("VmRSS")


def peak_megabytes() -> float:
    """Peak memory since the last reset: of the GPU, or else of the process."""
    return torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_available() else _resident("VmHWM")


def _resident(field: str) -> float:
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith(field)), float("nan"))

"""How much of two encoders must train to align them? Every recipe at 1, 10 and 100 per cent of the pairs.

    python -m benchmarks.alignment [--data FOLDER] [--tokenizer FOLDER] [--quick]

Two encoders that have never met (see `benchmarks.alignment.encoders`; or --vision and --text) are aligned on product
photos and titles: see README.md beside this. Runs that the results file holds are not repeated.

Cut to about 50 minutes of one slow core: batches of 64 and few steps, so that the runs on all pairs see a quarter of
them once. Longer or shorter: --step-factor, --encoder-steps, --batch-size, --test-pairs. Seconds a step are the
processor's, not the clock's, unless there is a GPU: other programs on the machine do not count.
"""

import ctypes
import json
import sys
import time
from argparse import Namespace
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

from benchmarks.alignment import report
from benchmarks.alignment.encoders import make_encoders
from benchmarks.common.fashion import TEMPLATES, TITLE, TYPE, load_splits, make_processor, processed
from benchmarks.common.options import output_folder, parse, read_settings, settings_of
from benchmarks.common.pages import publish
from benchmarks.common.results import Results
from benchmarks.common.training import Rows, batches_of, figures, photos, training
from mmlg_hf.alignment import DualEncoderModel, align, processor_of_pair
from mmlg_hf.alignment.pooling import pool_image, pool_text
from mmlg_hf.training import ContrastiveTrainer, ImageTextCollator

SETTINGS = read_settings(__file__)
# The image encoder's probe is the task it was made for; the text encoder's is one that titles do not simply name.
PROBES = {"image": TYPE, "text": "subCategory"}
PROBE_ROWS = 2000


class Study:
    """The data, the two encoders and the settings that all runs share."""

    def __init__(self, options: Namespace) -> None:
        self.options = options
        splits = load_splits(options.data)
        processor = make_processor(options.tokenizer)
        if options.quick:
            splits = type(splits)({name: split.select(range(min(600, len(split)))) for name, split in splits.items()})
        if options.test_pairs:
            splits["test"] = splits["test"].select(range(min(options.test_pairs, len(splits["test"]))))
        self.splits = splits
        self.vision, self.text, self.encoders = self._encoders(splits, processor)
        # One image processor for all, so that the photos are processed once; the encoder's size is checked against it.
        self.processor = processor_of_pair(self.join("projections"), image_processor=processor.image_processor)
        self.pairs = {name: self._pairs(split, processor) for name, split in splits.items()}
        self.collator = ImageTextCollator(self.processor, pad_to_multiple_of=8)

    def _encoders(self, splits: Any, processor: Any) -> tuple[str, str, Any]:
        options = self.options
        if options.vision and options.text:
            return options.vision, options.text, {"image": Path(options.vision).name, "text": Path(options.text).name}
        folder = Path(options.work)
        record = folder / "encoders.json"
        if not record.exists():
            made = make_encoders(splits, processor, folder, options.encoder_steps, options.batch_size)
            record.write_text(json.dumps(made, indent=1))
        return str(folder / "image"), str(folder / "text"), json.loads(record.read_text())

    def _pairs(self, split: Dataset, processor: Any) -> Rows:
        tokens = self.processor.tokenizer(list(split[TITLE]), truncation=True)["input_ids"]
        return Rows(pixel_values=photos(processed(split, processor)), input_ids=tokens)

    def join(self, recipe: str) -> DualEncoderModel:
        """The two encoders, as they were before alignment, under a recipe."""
        options = {name: getattr(self.options, name) for name in ("vision_pooling", "text_pooling", "projection_dim")}
        return align(self.vision, self.text, recipe, **options)

    def run(
        self, recipe: str, share: float, seed: int, rate: float, steps: int, split: str = "test", probed: bool = False
    ) -> dict[str, Any]:
        """Align on a share of the training pairs, and measure; a smaller share of a seed is part of a larger one."""
        set_seed(seed)
        model = self.join(recipe)
        pairs = self.pairs["train"]
        chosen = np.random.default_rng(seed).permutation(len(pairs))[: max(int(share * len(pairs)), 2)]
        batch_size = min(self.options.batch_size, len(chosen))
        folder = Path(self.options.work) / "trainer"
        args = TrainingArguments(**training(folder, steps, batch_size, rate, weight_decay=0.02, seed=seed))
        subset = torch.utils.data.Subset(pairs, chosen.tolist())
        trainer = ContrastiveTrainer(model, args, train_dataset=subset, data_collator=self.collator)
        at_rest = reset_peak_memory()
        clock = time.perf_counter if torch.cuda.is_available() else time.process_time
        started = clock()
        trainer.train()
        seconds = clock() - started
        trainable, total = model.get_nb_trainable_parameters()
        return {
            "recipe": recipe,
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
            **self.measure(model, split, probed),
        }

    def measure(self, model: DualEncoderModel, split: str, probed: bool) -> dict[str, float]:
        """Retrieval and zero-shot figures on one split, and the probes of both encoders' states."""
        embedded = self.embed(model, split)
        embeds = (embedded["image_embeds"], embedded["text_embeds"])
        retrieval, zero_shot = figures(model, *embeds, self.splits[split][TYPE], self.processor, TEMPLATES)
        probes = self.probe(self.embed(model, "train", PROBE_ROWS), embedded) if probed else {}
        return {**retrieval, **{f"zero_shot_{name}": value for name, value in zero_shot.items()}, **probes}

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
            outputs = model.vision_model(pixel_values=pixels)
            image = pool_image(model.vision_model, outputs, model.config.vision_pooling, pixels)
            outputs = model.text_model(input_ids=ids, attention_mask=mask)
            text = pool_text(model.text_model, outputs, model.config.text_pooling, mask)
            embeds = (
                F.normalize(model.visual_projection(image), dim=-1),
                F.normalize(model.text_projection(text), dim=-1),
            )
            for name, value in zip(found, (image, text, *embeds), strict=True):
                found[name].append(value.float().cpu())
        return {name: torch.cat(parts) for name, parts in found.items()}


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


def main() -> None:
    options = parse(__doc__, "data", "tokenizer", "seeds", "output", "quick", settings=SETTINGS)
    tuning, folder = SETTINGS["tuning"], output_folder(options, "alignment")
    results = Results(folder / "results" / "alignment.json", settings_of(options))
    study = Study(options)
    pairs = {name: len(rows) for name, rows in study.pairs.items()}
    if "before" not in results.found:
        before = study.join("projections")
        probes = study.probe(study.embed(before, "train", PROBE_ROWS), study.embed(before, "test"))
        results.save(encoders=study.encoders, pairs=pairs, before=probes)

    best = dict.fromkeys(options.recipes, tuning["rates"][1])
    for recipe in options.recipes if options.tune else ():
        tried = {}
        for rate in tuning["rates"]:
            run = (recipe, tuning["share"], tuning["seed"], rate, options.tuning_steps, "validation")
            tried[rate] = results.run(f"tuning/{recipe}/{rate:g}", study.run, *run)["mean_R@1"]
        best[recipe] = max(tried, key=lambda rate: tried[rate])
    for seed, share, recipe in product(options.seeds, options.shares, options.recipes):
        steps = options.steps or round(SETTINGS["steps"][share] * options.step_factor)
        run = (recipe, share, seed, best[recipe], steps, "test", share == max(options.shares))
        results.run(f"run/{recipe}/{share:g}/{seed}", study.run, *run)
    publish(folder, report)


if __name__ == "__main__":
    main()

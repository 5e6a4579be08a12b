"""How much of two encoders must train to align them? Every recipe at 1, 10 and 100 per cent of the pairs.

    python -m benchmarks.alignment --output benchmarks/results [--data FOLDER] [--tokenizer FOLDER] [--quick]

Two encoders that have never met (see `benchmarks.alignment_encoders`; or --vision and --text) are aligned on product
photos and titles with each recipe, three seeds each. Measured on the test split: retrieval, zero-shot classification
of article types, the trainable share, seconds a step, peak memory, and after the runs on most pairs what each encoder
forgot: a linear probe on its states before and after. Each recipe's learning rate is the best of four on the
validation split, with a seed that is not used again. Runs that the results file holds are not repeated.

Cut to about 50 minutes of one slow core: batches of 64 and few steps, so that the runs on all pairs see a quarter of
them once. Longer or shorter: --step-factor, --encoder-steps, --batch-size, --test-pairs. Seconds a step are the
processor's, not the clock's, unless there is a GPU: other programs on the machine do not count.
"""

import argparse
import ctypes
import json
import os
import sys
import time
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

from benchmarks.alignment_encoders import Columns, make_encoders
from benchmarks.alignment_report import write_report
from benchmarks.fashion import HUB_ID, TITLE, TOKENIZER_ID, TYPE, environment, load_splits, make_processor, processed
from benchmarks.files import write_json
from mmlg_hf.alignment import RECIPES, DualEncoderModel, align, load_processor
from mmlg_hf.alignment.pooling import pool_image, pool_text
from mmlg_hf.evaluation import class_embeddings
from mmlg_hf.metrics import classification_results, label_ranks, retrieval_results
from mmlg_hf.training import ContrastiveTrainer, ImageTextCollator

SEEDS, TUNING_SEED = (0, 1, 2), 100
# Steps for each share of the pairs: at 64 pairs a step about 5, 1 and 1/4 passes over them.
STEPS = {0.01: 30, 0.1: 60, 1.0: 150}
TUNING_SHARE, TUNING_STEPS = 0.1, 30
LEARNING_RATES = (3e-4, 1e-3, 3e-3, 1e-2)
# The image encoder's probe is the task it was made for; the text encoder's is one that titles do not simply name.
PROBES = {"image": TYPE, "text": "subCategory"}
PROBE_ROWS = 2000


class Study:
    """The data, the two encoders and the settings that all runs share."""

    def __init__(self, options: argparse.Namespace) -> None:
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
        self.processor = load_processor(self.join("projections"), image_processor=processor.image_processor)
        self.pairs = {name: self._pairs(split, processor) for name, split in splits.items()}
        self.collator = ImageTextCollator(self.processor, pad_to_multiple_of=8)

    def _encoders(self, splits: Any, processor: Any) -> tuple[str, str, Any]:
        options = self.options
        if options.vision and options.text:
            return options.vision, options.text, {"image": Path(options.vision).name, "text": Path(options.text).name}
        folder = Path(options.encoders)
        record = folder / "encoders.json"
        if not record.exists():
            steps, batch_size = options.encoder_steps, options.batch_size
            made = make_encoders(splits, processor, folder, steps=steps, batch_size=batch_size)
            record.write_text(json.dumps(made, indent=1))
        return str(folder / "image"), str(folder / "text"), json.loads(record.read_text())

    def _pairs(self, split: Dataset, processor: Any) -> Columns:
        tokens = self.processor.tokenizer(list(split[TITLE]), truncation=True)["input_ids"]
        return Columns(processed(split, processor), input_ids=tokens)

    def join(self, recipe: str) -> DualEncoderModel:
        """The two encoders, as they were before alignment, under a recipe."""
        return align(
            self.vision,
            self.text,
            recipe,
            vision_pooling=self.options.vision_pooling,
            text_pooling=self.options.text_pooling,
            projection_dim=self.options.projection_dim,
        )

    def train(self, recipe: str, share: float, seed: int, learning_rate: float, steps: int) -> tuple[Any, dict]:
        """Align on a share of the training pairs; a smaller share of a seed is part of a larger one."""
        set_seed(seed)
        model = self.join(recipe)
        pairs = self.pairs["train"]
        chosen = np.random.default_rng(seed).permutation(len(pairs))[: max(int(share * len(pairs)), 2)]
        batch_size = min(self.options.batch_size, len(chosen))
        args = TrainingArguments(
            output_dir=str(Path(self.options.encoders) / "trainer"),
            max_steps=steps,
            per_device_train_batch_size=batch_size,
            learning_rate=learning_rate,
            weight_decay=0.02,
            warmup_steps=max(1, steps // 10),
            lr_scheduler_type="cosine",
            logging_steps=steps,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            seed=seed,
        )
        trainer = ContrastiveTrainer(
            model, args, train_dataset=torch.utils.data.Subset(pairs, chosen.tolist()), data_collator=self.collator
        )
        at_rest = reset_peak_memory()
        clock = time.perf_counter if torch.cuda.is_available() else time.process_time
        started = clock()
        trainer.train()
        seconds = clock() - started
        trainable, total = model.get_nb_trainable_parameters()
        return model, {
            "pairs": len(chosen),
            "steps": steps,
            "learning_rate": learning_rate,
            "train_loss": trainer.state.log_history[-1]["train_loss"],
            "trainable": trainable,
            "parameters": total,
            "seconds_per_step": seconds / steps,
            "peak_megabytes": peak_megabytes() - at_rest,
        }

    def measure(self, model: DualEncoderModel, split: str, probed: bool = False) -> dict[str, float]:
        """Retrieval and zero-shot figures on one split, and the probes of both encoders' states."""
        embedded = self.embed(model, split)
        images, texts = embedded["image_embeds"], embedded["text_embeds"]
        retrieval = retrieval_results(images, texts, torch.arange(len(texts)))
        names = self.splits[split][TYPE]
        classes = sorted(set(names))
        scores = images @ class_embeddings(model, classes, self.processor, templates=("{}",)).T
        labels = torch.tensor([classes.index(name) for name in names])
        zero_shot = classification_results(label_ranks(scores, labels), labels, len(classes))
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
        pairs = self.pairs[split]
        found: dict[str, list] = {name: [] for name in ("image_states", "text_states", "image_embeds", "text_embeds")}
        for start in range(0, min(rows or len(pairs), len(pairs)), 256):
            end = min(start + 256, rows or len(pairs), len(pairs))
            batch = self.collator([pairs[row] for row in range(start, end)])
            pixels, mask = batch["pixel_values"].to(model.device), batch["attention_mask"].to(model.device)
            outputs = model.vision_model(pixel_values=pixels)
            image = pool_image(model.vision_model, outputs, model.config.vision_pooling, pixels)
            outputs = model.text_model(input_ids=batch["input_ids"].to(model.device), attention_mask=mask)
            text = pool_text(model.text_model, outputs, model.config.text_pooling, mask)
            values = (image, text, model.visual_projection(image), model.text_projection(text))
            for name, value in zip(found, values, strict=True):
                value = F.normalize(value, dim=-1) if name.endswith("embeds") else value
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
    found = [line for line in _lines("/proc/self/status") if line.startswith(field)]
    return int(found[0].split()[1]) / 1024 if found else float("nan")


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []


def key_of(run: dict[str, Any]) -> tuple:
    """What tells runs apart: the learning rate among those that choose it, the seed among the others."""
    return run["kind"], run["recipe"], run["share"], run["learning_rate"] if run["kind"] == "tuning" else run["seed"]


def run_study(options: argparse.Namespace) -> Path:
    """Do the runs that the results file does not hold yet, and write tables and plots."""
    path = Path(options.output) / ("alignment-quick.json" if options.quick else "alignment.json")
    results: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"runs": []}
    settings = {name: value for name, value in vars(options).items() if name not in ("output", "encoders")}
    for name in ("data", "tokenizer", "vision", "text"):
        if settings[name] and os.path.isdir(settings[name]):  # where it lies on this machine says nothing
            settings[name] = Path(settings[name]).name
    if results["runs"] and results["settings"] != settings:
        raise SystemExit(f"{path} holds runs of other settings ({results['settings']}): move it away to begin anew")
    study = Study(options)
    results.update(settings=settings, encoders=study.encoders, seeds=list(options.seeds))
    results.update(**environment(), date=time.strftime("%Y-%m-%d"))
    results["pairs"] = {name: len(pairs) for name, pairs in study.pairs.items()}
    if "before" not in results:
        before = study.join("projections")
        results["before"] = study.probe(study.embed(before, "train", PROBE_ROWS), study.embed(before, "test"))
    done = {key_of(run) for run in results["runs"]}

    def add(run: dict[str, Any]) -> None:
        results["runs"].append(run)
        done.add(key_of(run))
        write_json(path, results)

    for recipe in options.recipes:
        for rate in LEARNING_RATES if options.tune else ():
            run = {
                "kind": "tuning",
                "recipe": recipe,
                "share": TUNING_SHARE,
                "seed": TUNING_SEED,
                "learning_rate": rate,
            }
            if key_of(run) not in done:
                model, figures = study.train(recipe, TUNING_SHARE, TUNING_SEED, rate, options.tuning_steps)
                add({**run, **figures, **study.measure(model, "validation")})
                tell(results["runs"][-1])
    for seed in options.seeds:
        for share in options.shares:
            for recipe in options.recipes:
                run = {"kind": "run", "recipe": recipe, "share": share, "seed": seed}
                if key_of(run) in done:
                    continue
                rate = best_rate(results["runs"], recipe)
                steps = options.steps or round(STEPS[share] * options.step_factor)
                model, figures = study.train(recipe, share, seed, rate, steps)
                add({**run, **figures, **study.measure(model, "test", share == max(options.shares))})
                tell(results["runs"][-1])
    write_json(path, results)
    write_report(path)
    return path


def best_rate(runs: list[dict[str, Any]], recipe: str) -> float:
    """The learning rate with the best recall on the validation split; the second where none was tried."""
    tried = [run for run in runs if run["kind"] == "tuning" and run["recipe"] == recipe]
    return max(tried, key=lambda run: run["mean_R@1"])["learning_rate"] if tried else LEARNING_RATES[1]


def tell(run: dict[str, Any]) -> None:
    what = f"{run['kind']:6} {run['recipe']:11} {run['share']:5.0%} of pairs, seed {run['seed']}"
    speed = f"{run['seconds_per_step']:.3f} s a step"
    figures = f"R@1 {run['mean_R@1']:.4f}, zero-shot {run['zero_shot_top1']:.4f}, {speed}"
    print(f"{what}, rate {run['learning_rate']:g}: {figures}", flush=True)


def parse_options(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=HUB_ID, help="Hub id or folder of the product photos")
    parser.add_argument("--tokenizer", default=TOKENIZER_ID, help="Hub id or folder with CLIP's BPE vocabulary")
    parser.add_argument("--vision", help="image encoder to align, with its image processor; made here if left out")
    parser.add_argument("--text", help="text encoder to align, with its tokenizer; made here if left out")
    parser.add_argument("--vision-pooling", default="mean", help="as for align")
    parser.add_argument("--text-pooling", default="mean", help="as for align")
    parser.add_argument("--projection-dim", type=int, default=64)
    parser.add_argument("--encoder-steps", type=int, default=600, help="steps that make each encoder")
    parser.add_argument("--encoders", default="runs/alignment", help="folder of the encoders made here")
    parser.add_argument("--output", default="benchmarks/results")
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES))
    parser.add_argument("--shares", nargs="+", type=float, default=list(STEPS), help="shares of the training pairs")
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--steps", type=int, help="steps of every run; by default as many as the share has")
    parser.add_argument("--step-factor", type=float, default=1.0, help="of the steps that each share has by default")
    parser.add_argument("--tuning-steps", type=int, default=TUNING_STEPS)
    parser.add_argument("--test-pairs", type=int, help="measure on the first ones of the test split; all by default")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--no-tune", dest="tune", action="store_false", help="take the second learning rate")
    parser.add_argument("--quick", action="store_true", help="a few steps on a few rows, to see that everything runs")
    options = parser.parse_args(arguments)
    if options.quick:
        options.steps, options.tuning_steps, options.encoder_steps, options.batch_size = 3, 2, 4, 32
        options.seeds, options.shares = options.seeds[:2], [0.1, 1.0]
    return options


if __name__ == "__main__":
    print(run_study(parse_options()))

"""Is a mixture of diversified experts worth its compute? CLIP-MoE against its base and two controls, three seeds.

    python -m benchmarks.clip_moe --base FOLDER [--data FOLDER] [--clothing FOLDER] [--quick]
    python -m benchmarks.clip_moe --gene FOLDER --depth 4 --width 128 [--data FOLDER] [--clothing FOLDER]

The base is a CLIP with its processor, or a gene's descendant. With both --base and --gene the base is a fine-tuned
descendant of that size; with --gene the storage of the mixture as gene plus deltas is measured too. All arms start
from the same base and see the same pairs of each seed:

    base      as it is
    moe       CLIP-MoE: experts diversified stage by stage (MLPs alone), upcycled, then routers alone trained
    dense     the base fine-tuned as a whole for as many FLOPs as all of CLIP-MoE took
    plain     copies of the base upcycled, experts and routers trained for as many FLOPs

The learning rates of experts, dense and plain are each the best of three on the validation split, tried at half of the
length with a seed that is not used again. Measured on the test split: retrieval between photos and titles,
zero-shot classification of article types and, with --clothing, of ten kinds of clothes; throughput by experts
implementation. Runs that the work folder holds are not repeated.
"""

import argparse
import copy
import json
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPModel, CLIPProcessor, TrainingArguments, set_seed

from benchmarks.clip_moe_report import write_report
from benchmarks.fashion import HUB_ID, TEMPLATES, TYPE, environment, load_splits, measure, processed
from benchmarks.files import write_json
from mmlg_hf import LearngeneModel, from_learngene
from mmlg_hf.clip_moe import (
    CLIPMoEModel,
    DiversifyArguments,
    count_parameters,
    diversify,
    load_from_deltas,
    save_as_deltas,
    train_router,
    upcycle,
)
from mmlg_hf.clip_moe.router import RouterArguments
from mmlg_hf.data import load_image_text
from mmlg_hf.evaluation import evaluate_zero_shot
from mmlg_hf.training import ContrastiveTrainer, ImageTextCollator

SEEDS, TUNING_SEED = (0, 1, 2), 100
LEARNING_RATES = (1e-4, 3e-4, 1e-3)
TUNING_SHARE = 0.5
NUM_EXPERTS, TOP_K, NUM_CLUSTERS = 4, 2, 2
IMPLEMENTATIONS = ("grouped_mm", "batched_mm", "eager")
RANKS = (None, 64, 16, 4)


class Study:
    """The base, the data and the settings that all runs share."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.work = Path(options.work)
        self.work.mkdir(parents=True, exist_ok=True)
        self.base_folder = options.base or str(self._grow_base())
        self.base = CLIPModel.from_pretrained(self.base_folder, dtype=torch.float32)
        self.processor = CLIPProcessor.from_pretrained(self.base_folder)
        splits = load_splits(options.data)
        self.class_names = sorted(set(splits["train"][TYPE]))
        self.test = {name: self._test_rows(splits[name]) for name in ("validation", "test")}
        self.clothing = load_image_text(options.clothing, "test") if options.clothing else None
        train = splits["train"].select(range(600)) if options.quick else splits["train"]
        self.train_pairs = processed(train, self.processor)
        self.collator = ImageTextCollator(self.processor, pad_to_multiple_of=8)
        self.flops = self._flops()

    def _grow_base(self) -> Path:
        options, folder = self.options, self.work / "base"
        if not (folder / "config.json").exists():
            from_learngene(options.gene, options.depth, options.width).save_pretrained(folder)
            CLIPProcessor.from_pretrained(options.gene).save_pretrained(folder)
        return folder

    def _test_rows(self, split: Any) -> Any:
        known = set(self.class_names)
        split = split.select(range(200)) if self.options.quick else split
        return split.select([row for row, name in enumerate(split[TYPE]) if name in known])

    def _flops(self) -> dict[str, float]:
        """Forward FLOPs for one pair, dense and as a mixture (matrix products, counted by torch on a batch of 8)."""
        text, vision = self.base.config.text_config, self.base.config.vision_config
        inputs = {
            "input_ids": torch.full((8, 16), text.eos_token_id),
            "pixel_values": torch.zeros(8, 3, vision.image_size, vision.image_size),
        }
        mixture = upcycle(self.base, [self.base] * (NUM_EXPERTS - 1), num_experts_per_tok=TOP_K)
        mixture.set_experts_implementation("eager")
        counts = {}
        for name, model in (("dense", self.base), ("mixture", mixture)):
            with FlopCounterMode(display=False) as counter, torch.no_grad():
                model.eval()(**inputs)
            counts[name] = counter.get_total_flops() / 8
        return counts

    def pairs(self, seed: int, share: float = 1.0) -> Any:
        """The training pairs of one seed, in an order of its own."""
        chosen = np.random.default_rng(seed).permutation(len(self.train_pairs))
        return self.train_pairs.select(chosen[: max(int(share * self.options.pairs), 2)])

    def common(self, folder: Path, seed: int, learning_rate: float) -> dict[str, Any]:
        """Training arguments that all arms share."""
        batch_size = self.options.batch_size
        return {
            "output_dir": str(folder),
            "per_device_train_batch_size": batch_size,
            "per_device_eval_batch_size": 256,
            "learning_rate": learning_rate,
            "lr_scheduler_type": "cosine",
            "warmup_steps": 0.1,
            "weight_decay": 0.05,
            "seed": seed,
            "save_strategy": "no",
            "logging_steps": 10,
            "report_to": "none",
            "disable_tqdm": True,
        }

    def evaluate(self, model: Any, split: str = "test") -> dict[str, float]:
        """Measure a model on a split of the product photos, and on the clothes."""
        present = sorted(set(self.test[split][TYPE]))
        figures = measure(model, self.test[split], self.processor, present)
        if self.clothing is not None and split == "test":
            clothes = evaluate_zero_shot(model, self.clothing, self.processor, templates=TEMPLATES, batch_size=256)
            figures["clothing_top1"] = clothes["top1"]
        return figures


def make_experts(
    study: Study, seed: int, learning_rate: float, folder: Path, share: float = 1.0, stages: int = 3
) -> Any:
    """Diversify; return the experts, their stages' records, and the FLOPs of training and embedding."""
    pairs = study.pairs(seed, share)
    args = DiversifyArguments(
        num_experts=stages + 1,
        num_clusters=NUM_CLUSTERS,
        max_dropped=0.9,
        num_train_epochs=study.options.epochs,
        **study.common(folder, seed, learning_rate),
    )
    experts = diversify(study.base, pairs, args, processor=study.processor, data_collator=study.collator)
    records = [json.loads((expert.parent / "stage.json").read_text()) for expert in experts]
    trained = sum(record["steps"] for record in records) * study.options.batch_size
    return experts, records, study.flops["dense"] * (3 * trained + stages * len(pairs))


def train_dense(study: Study, seed: int, learning_rate: float, flops: float, folder: Path, share: float = 1.0) -> Any:
    """Fine-tune the whole base for a number of FLOPs; return the model and its steps."""
    steps = max(round(flops / (3 * study.flops["dense"] * study.options.batch_size)), 1)
    args = TrainingArguments(max_steps=steps, **study.common(folder, seed, learning_rate))
    model = copy.deepcopy(study.base)
    ContrastiveTrainer(model, args, study.collator, study.pairs(seed, share)).train()
    return model.eval(), steps


def train_plain(study: Study, seed: int, learning_rate: float, flops: float, folder: Path, share: float = 1.0) -> Any:
    """Train copies of the base as experts, and their routers, for a number of FLOPs; return model and steps."""
    steps = max(round(flops / (3 * study.flops["mixture"] * study.options.batch_size)), 1)
    model = upcycle(study.base, [study.base] * (NUM_EXPERTS - 1), num_experts_per_tok=TOP_K, seed=seed)
    args = RouterArguments(train_experts=True, max_steps=steps, **study.common(folder, seed, learning_rate))
    return train_router(model, study.pairs(seed, share), args, data_collator=study.collator), steps


def run_base(study: Study, seed: int) -> dict[str, Any]:
    return {"figures": study.evaluate(study.base), "parameters": count_parameters(study.base), "flops": 0.0}


def run_moe(study: Study, seed: int) -> dict[str, Any]:
    """CLIP-MoE: its figures, those of each expert alone, and all it cost."""
    folder = study.work / f"moe-{seed}"
    rate = tuned_rate(study, "experts")
    started = time.time()
    experts, records, flops = make_experts(study, seed, rate, folder / "experts")
    mixture = upcycle(study.base, experts, num_experts_per_tok=TOP_K, seed=seed)
    unrouted = study.evaluate(mixture)
    args = RouterArguments(
        num_train_epochs=study.options.router_epochs,
        **study.common(folder / "mixture", seed, study.options.router_learning_rate),
    )
    pairs = study.pairs(seed)
    train_router(mixture, pairs, args, data_collator=study.collator)
    steps = int(study.options.router_epochs * (len(pairs) // study.options.batch_size))
    flops += 3 * study.flops["mixture"] * steps * study.options.batch_size
    seconds = time.time() - started
    return {
        "figures": study.evaluate(mixture),
        "before_router_training": unrouted,
        "experts": [study.evaluate(CLIPModel.from_pretrained(expert)) for expert in experts],
        "stages": records,
        "usage": json.loads((folder / "mixture" / "expert_usage.json").read_text())[-1],
        "parameters": count_parameters(mixture),
        "learning_rate": rate,
        "steps": sum(record["steps"] for record in records) + steps,
        "flops": flops,
        "seconds": round(seconds),
    }


def run_control(study: Study, seed: int, arm: str) -> dict[str, Any]:
    """One of the two controls, for as many FLOPs as CLIP-MoE took with this seed."""
    flops = once(study, "moe", seed, run_moe)["flops"]
    rate = tuned_rate(study, arm)
    started = time.time()
    train = {"dense": train_dense, "plain": train_plain}[arm]
    model, steps = train(study, seed, rate, flops, study.work / f"{arm}-{seed}")
    seconds = time.time() - started
    return {
        "figures": study.evaluate(model),
        "parameters": count_parameters(model),
        "learning_rate": rate,
        "steps": steps,
        "flops": flops,
        "seconds": round(seconds),
    }


def tuned_rate(study: Study, arm: str) -> float:
    """The learning rate with the best mean R@1 on the validation split, after half of the length."""
    if study.options.quick:
        return LEARNING_RATES[1]
    epoch = study.options.pairs * TUNING_SHARE * study.flops["dense"]
    flops = (NUM_EXPERTS - 1) * epoch * (3 * study.options.epochs + 1)
    scores = {}
    for rate in LEARNING_RATES:

        def try_rate(study: Study, seed: int, rate: float = rate) -> dict[str, Any]:
            folder = study.work / f"tuning-{arm}-{rate:g}"
            if arm == "experts":
                experts, _, _ = make_experts(study, seed, rate, folder, TUNING_SHARE, stages=1)
                model: Any = CLIPModel.from_pretrained(experts[0])
            else:
                train = {"dense": train_dense, "plain": train_plain}[arm]
                model, _ = train(study, seed, rate, flops, folder, TUNING_SHARE)
            return {"figures": study.evaluate(model, "validation"), "learning_rate": rate}

        scores[rate] = once(study, f"tuning-{arm}-{rate:g}", TUNING_SEED, try_rate)["figures"]["mean_R@1"]
    return max(scores, key=lambda rate: scores[rate])


def run_throughput(study: Study, seed: int) -> dict[str, Any]:
    """Pairs per second, forward and forward with backward, dense and by experts implementation.

    At batch 256, but batched_mm at 16, since it copies the weights of k experts for every token.
    """
    quick = study.options.quick
    sizes = dict.fromkeys(("dense", *IMPLEMENTATIONS), 32 if quick else 256) | {"batched_mm": 4 if quick else 16}
    mixture = upcycle(study.base, [study.base] * (NUM_EXPERTS - 1), num_experts_per_tok=TOP_K)
    seconds: dict[str, dict[str, list[float]]] = {"forward": {}, "training": {}}
    for _ in range(2 if quick else 6):  # in turns, so that another load on the machine meets all alike
        for name, size in sizes.items():
            model: Any = study.base if name == "dense" else mixture
            if name != "dense":
                mixture.set_experts_implementation(name)
            inputs = random_inputs(study, size)
            for kind, times in seconds.items():
                started = time.perf_counter()
                with torch.set_grad_enabled(kind == "training"):
                    loss = model.train(kind == "training")(**inputs).loss
                if kind == "training":
                    loss.backward()
                times.setdefault(name, []).append(time.perf_counter() - started)
                model.zero_grad()
    speeds = {
        kind: {name: sizes[name] / statistics.median(values[1:]) for name, values in times.items()}  # 0 warms up
        for kind, times in seconds.items()
    }
    return {"batch_sizes": sizes, "pairs_per_second": speeds, "seconds": seconds}


def random_inputs(study: Study, size: int) -> dict[str, Any]:
    """A batch of noise of the shape that titles and photos have."""
    text, vision = study.base.config.text_config, study.base.config.vision_config
    inputs = {
        "input_ids": torch.randint(1, text.vocab_size - 2, (size, 16)),
        "attention_mask": torch.ones(size, 16, dtype=torch.long),
        "pixel_values": torch.randn(size, 3, vision.image_size, vision.image_size),
        "return_loss": True,
    }
    inputs["input_ids"][:, -1] = text.eos_token_id
    return inputs


def run_storage(study: Study, seed: int) -> dict[str, Any]:
    """What a mixture takes as a gene plus deltas, and what it can still do, by the rank of the deltas."""
    gene: Any = LearngeneModel.from_pretrained(study.options.gene, dtype=torch.float32)
    once(study, "moe", seed, run_moe)
    mixture = CLIPMoEModel.from_pretrained(study.work / f"moe-{seed}" / "mixture")
    rows = []
    for rank in RANKS:
        folder = study.work / f"deltas-{rank}"
        size = {"depth": study.options.depth, "width": study.options.width}
        sizes = save_as_deltas(mixture, gene.half(), folder, **size, rank=rank)
        rows.append({"rank": rank, "bytes": sizes, "figures": study.evaluate(load_from_deltas(folder))})
    return {"mixture_bytes_float16": rows[0]["bytes"]["mixture"], "rows": rows}


def once(study: Study, name: str, seed: int, run: Any) -> dict[str, Any]:
    """Do a run unless the work folder holds its result."""
    path = study.work / f"{name}-seed-{seed}.json"
    if not path.exists():
        set_seed(seed)
        result = {"name": name, "seed": seed, **run(study, seed), "environment": environment()}
        write_json(path, result)
        figures = result.get("figures", {})
        told = ", ".join(f"{key} {figures[key]:.4f}" for key in ("mean_R@1", "top1") if key in figures)
        print(f"{name}, seed {seed}: {told or 'done'}", flush=True)
    return json.loads(path.read_text())


def check_settings(path: Path, settings: dict[str, Any]) -> None:
    """Refuse to mix runs of different settings in one work folder."""
    if path.exists() and json.loads(path.read_text()) != settings:
        raise SystemExit(f"{path} was written by a study with other settings: give another --work folder")
    path.write_text(json.dumps(settings, indent=1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", help="folder of a dense CLIP with its processor")
    parser.add_argument("--gene", help="folder of the gene that the base grew from; without --base it is grown here")
    parser.add_argument("--depth", type=int, help="depth of the gene's descendant")
    parser.add_argument("--width", type=int, help="width of the gene's descendant")
    parser.add_argument("--data", default=HUB_ID, help="Hub id or folder of the product photos")
    parser.add_argument("--clothing", help="folder of the ten kinds of clothes; not measured if not given")
    parser.add_argument("--work", default="runs/clip_moe", help="folder of models and of finished runs")
    parser.add_argument("--output", default="benchmarks/results", help="folder of the results")
    parser.add_argument("--pairs", type=int, default=37500, help="training pairs of each seed")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--epochs", type=float, default=1.0, help="passes over the pairs in each expert's stage")
    parser.add_argument("--router-epochs", type=float, default=0.5, help="passes over the pairs in the router's stage")
    parser.add_argument("--router-learning-rate", type=float, default=1e-3)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--quick", action="store_true", help="a few steps on a few pairs, to see that it runs")
    options = parser.parse_args()
    if options.base is None and options.gene is None:
        parser.error("give --base or --gene")
    if options.quick:
        options.pairs, options.batch_size, options.seeds = 256, 16, options.seeds[:1]

    settings = {
        key: value for key, value in vars(options).items() if key not in ("data", "clothing", "work", "output")
    }
    study = Study(options)
    check_settings(study.work / "settings.json", {key: settings[key] for key in settings if key != "seeds"})
    runs = [once(study, "base", 0, run_base)]
    for seed in options.seeds:
        runs.append(once(study, "moe", seed, run_moe))
        for arm in ("dense", "plain"):
            runs.append(once(study, arm, seed, lambda study, seed, arm=arm: run_control(study, seed, arm)))
    results = {
        "settings": settings | {"num_experts": NUM_EXPERTS, "num_experts_per_tok": TOP_K, "clusters": NUM_CLUSTERS},
        **environment(),
        "test_pairs": len(study.test["test"]),
        "gflops_per_pair": {name: count / 1e9 for name, count in study.flops.items()},
        "runs": runs,
        "tuning": [json.loads(path.read_text()) for path in sorted(study.work.glob("tuning-*-seed-*.json"))],
        "throughput": once(study, "throughput", 0, run_throughput),
        "storage": once(study, "storage", options.seeds[0], run_storage) if options.gene else None,
    }
    write_report(results, Path(options.output), study.work / f"moe-{options.seeds[0]}")


if __name__ == "__main__":
    main()

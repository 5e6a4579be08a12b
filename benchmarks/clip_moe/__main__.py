"""Is a mixture of experts worth its compute? CLIP-MoE and two remedies against their base and controls, three seeds.

    python -m benchmarks.clip_moe --base FOLDER [--data FOLDER] [--clothing FOLDER] [--quick]
    python -m benchmarks.clip_moe --gene FOLDER --depth 4 --width 128 [--data FOLDER] [--clothing FOLDER]

The base is a CLIP with its processor, or a gene's descendant. With both --base and --gene the base is a fine-tuned
descendant of that size; with --gene the storage of the mixture as gene plus deltas is measured too. What the arms are
and how they are measured: README.md beside this. Runs that the results file holds are not repeated; models are in the
work folder.
"""

import copy
import json
import shutil
import statistics
import time
from argparse import Namespace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Subset
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPModel, CLIPProcessor, TrainingArguments, set_seed

from benchmarks.clip_moe import report
from benchmarks.common.fashion import TEMPLATES, known_types, load_splits, measure, processed
from benchmarks.common.options import output_folder, parse, read_settings, settings_of
from benchmarks.common.pages import publish
from benchmarks.common.results import Results
from benchmarks.common.training import training
from mmlg_hf import LearngeneModel, from_learngene
from mmlg_hf import clip_moe as moe
from mmlg_hf.clip_moe.router_training import RouterArguments
from mmlg_hf.data import load_image_text
from mmlg_hf.evaluation import evaluate_zero_shot
from mmlg_hf.extraction import DistillationTrainer
from mmlg_hf.extraction.ancestors import load_ancestor
from mmlg_hf.extraction.outputs import cache_ancestor_outputs
from mmlg_hf.extraction.trainer import AncestorCollator
from mmlg_hf.training import ContrastiveTrainer, ImageTextCollator

SETTINGS = read_settings(__file__)
TUNING, EXPERTS, REMEDIES = SETTINGS["tuning"], SETTINGS["experts"], SETTINGS["remedies"]
# Settings of a run, and not of the file that holds it.
LEFT_OUT = ("data", "clothing", "seeds", "ancestor", "arms")
IMPLEMENTATIONS = ("grouped_mm", "batched_mm", "eager")
RANKS = (None, 64, 16, 4)
CLUSTERED = 1024  # pairs whose tokens are clustered
FROM_CLUSTERS, IMITATING = ("clusters", "imitation"), ("imitation", "dense, imitation")  # arms


class Study:
    """The base, the data and the settings that all runs share."""

    def __init__(self, options: Namespace, results: Results) -> None:
        self.options, self.results = options, results
        self.work = Path(options.work)
        self.work.mkdir(parents=True, exist_ok=True)
        self.base_folder = options.base or str(self._grow_base())
        self.base = CLIPModel.from_pretrained(self.base_folder, dtype=torch.float32)
        self.processor = CLIPProcessor.from_pretrained(self.base_folder)
        splits = load_splits(options.data)
        if options.quick:
            splits |= {name: splits[name].select(range(200)) for name in ("validation", "test")}
        self.test = {name: known_types(splits, name) for name in ("validation", "test")}
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

    def _flops(self) -> dict[str, float]:
        """Forward FLOPs for one pair, dense and as a mixture."""
        mixture = self.mixture()
        mixture.set_experts_implementation("eager")
        return {"dense": self.forward_flops(self.base), "mixture": self.forward_flops(mixture)}

    def forward_flops(self, model: Any) -> float:
        """Of one pair: matrix products, counted by torch on a batch of 8."""
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model.eval()(**self.noise(8))
        return counter.get_total_flops() / 8

    def ancestor_flops(self) -> float:
        """What embedding every pair once with the ancestor takes."""
        return self.forward_flops(self.ancestor) * self.options.pairs

    def mixture(self, experts: Any = None, seed: int = 0) -> moe.CLIPMoEModel:
        """The base upcycled; with copies of itself for experts if none are given."""
        experts = experts or [self.base] * (EXPERTS["num_experts"] - 1)
        return moe.upcycle(self.base, experts, num_experts_per_tok=EXPERTS["num_experts_per_tok"], seed=seed)

    def clustered(self, pairs: Any, seed: int) -> moe.CLIPMoEModel:
        """The base upcycled by the clusters of its tokens."""
        settings = {name: REMEDIES[name] for name in ("expert_rank", "router_z_loss_coef")}
        routing = {name: EXPERTS[name] for name in ("num_experts", "num_experts_per_tok")}
        return moe.upcycle_by_clusters(
            self.base, pairs, data_collator=self.collator, num_pairs=CLUSTERED, seed=seed, **settings, **routing
        )

    def noise(self, size: int) -> dict[str, Any]:
        """A batch of the shape that titles and photos have."""
        text, vision = self.base.config.text_config, self.base.config.vision_config
        ids = torch.randint(1, text.vocab_size - 2, (size, 16))
        ids[:, -1] = text.eos_token_id
        pixels = torch.randn(size, 3, vision.image_size, vision.image_size)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels, "return_loss": True}

    def pairs(self, seed: int, share: float = 1.0) -> Any:
        """The training pairs of one seed, in an order of its own."""
        return self.train_pairs.select(self.chosen(seed, share))

    def chosen(self, seed: int, share: float) -> Any:
        """Their numbers."""
        order = np.random.default_rng(seed).permutation(len(self.train_pairs))
        return order[: max(int(share * self.options.pairs), 2)]

    @cached_property
    def ancestor(self) -> Any:
        """What the imitating arms imitate."""
        return load_ancestor(self.options.ancestor)

    @cached_property
    def outputs(self) -> Any:
        """All training pairs with what the ancestor says of them."""
        if len(self.processor.tokenizer) != self.ancestor.config.text_config.vocab_size:
            raise SystemExit(f"{self.options.ancestor} has another vocabulary than the base")
        kept = (self.train_pairs, AncestorCollator(self.collator), self.processor, self.work / "ancestor")
        return cache_ancestor_outputs(self.ancestor, *kept)

    def with_outputs(self, seed: int, share: float = 1.0) -> tuple[Any, Any]:
        """The pairs of one seed with the ancestor's outputs, and their collator."""
        return Subset(self.outputs, self.chosen(seed, share).tolist()), AncestorCollator(self.collator)

    def common(self, folder: Path, seed: int, rate: float, steps: int = -1) -> dict[str, Any]:
        """Training arguments that all arms share; -1 steps leaves the length to the epochs."""
        return training(folder, steps, self.options.batch_size, rate, 10, weight_decay=0.05, seed=seed)

    def evaluate(self, model: Any, split: str = "test") -> dict[str, float]:
        """Measure a model on a split of the product photos, and on the clothes."""
        figures = measure(model, self.test[split], self.processor)
        if self.clothing is not None and split == "test":
            clothes = evaluate_zero_shot(model, self.clothing, self.processor, templates=TEMPLATES, batch_size=256)
            figures["clothing_top1"] = clothes["top1"]
        return figures

    def run(self, make: Any, seed: int, name: str, *args: Any) -> dict[str, Any]:
        """One run, unless the results file holds it: `make(study, seed, *args)` from a seed set anew."""

        def seeded() -> dict[str, Any]:
            set_seed(seed)
            return make(self, seed, *args)

        return self.results.run(f"{name}/{seed}", seeded)


def make_experts(
    study: Study, seed: int, learning_rate: float, folder: Path, share: float = 1.0, stages: int = 3
) -> Any:
    """Diversify; return the experts, their stages' records, and the FLOPs of training and embedding."""
    pairs = study.pairs(seed, share)
    args = moe.DiversifyArguments(
        num_experts=stages + 1,
        num_clusters=EXPERTS["clusters"],
        max_dropped=0.9,
        num_train_epochs=study.options.epochs,
        **study.common(folder, seed, learning_rate),
    )
    experts = moe.diversify(study.base, pairs, args, processor=study.processor, data_collator=study.collator)
    records = [json.loads((expert.parent / "stage.json").read_text()) for expert in experts]
    trained = sum(record["steps"] for record in records) * study.options.batch_size
    return experts, records, study.flops["dense"] * (3 * trained + stages * len(pairs))


def train_control(
    study: Study, seed: int, arm: str, learning_rate: float, flops: float, folder: Path, share: float = 1.0
) -> tuple[Any, int]:
    """Train for a number of FLOPs; return the model and its steps.

    "dense" fine-tunes the whole base, "plain" copies of the base as experts, and their routers. "clusters" trains all
    of a mixture that starts from clusters, whose forward passes are among its FLOPs. The two arms that imitate are
    "clusters" and "dense" beside the ancestor.
    """
    pairs, dense = study.pairs(seed, share), arm.startswith("dense")
    rows, collator = study.with_outputs(seed, share) if arm in IMITATING else (pairs, study.collator)
    weight = {"feature_weight": REMEDIES["feature_weight"]} if arm in IMITATING else {}
    ancestor = {"ancestor": study.options.ancestor} if arm in IMITATING else {}
    flops -= CLUSTERED * study.flops["dense"] if arm in FROM_CLUSTERS else 0.0
    each = study.flops["dense" if dense else "mixture"]
    steps = max(round(flops / (3 * each * study.options.batch_size)), 1)
    arguments = study.common(folder, seed, learning_rate, steps)
    if dense:
        model = copy.deepcopy(study.base)
        trainer = DistillationTrainer if ancestor else ContrastiveTrainer
        trainer(model, TrainingArguments(**arguments), collator, rows, **ancestor, **weight).train()
        return model.eval(), steps
    from_clusters = arm in FROM_CLUSTERS
    mixture = study.clustered(pairs, seed) if from_clusters else study.mixture(seed=seed)
    args = RouterArguments(train_experts=True, train_all=from_clusters, **weight, **arguments)
    return moe.train_router(mixture, rows, args, data_collator=collator, **ancestor), steps


def run_base(study: Study, seed: int) -> dict[str, Any]:
    return {"figures": study.evaluate(study.base), "parameters": moe.count_parameters(study.base), "flops": 0.0}


def run_moe(study: Study, seed: int) -> dict[str, Any]:
    """CLIP-MoE: its figures, those of each expert alone, and all it cost."""
    folder = study.work / f"moe-{seed}"
    rate = tuned_rate(study, "experts")
    started = time.time()
    experts, records, flops = make_experts(study, seed, rate, folder / "experts")
    mixture = study.mixture(experts, seed)
    unrouted = study.evaluate(mixture)
    args = RouterArguments(
        num_train_epochs=study.options.router_epochs,
        **study.common(folder / "mixture", seed, study.options.router_learning_rate),
    )
    pairs = study.pairs(seed)
    moe.train_router(mixture, pairs, args, data_collator=study.collator)
    steps = int(study.options.router_epochs * (len(pairs) // study.options.batch_size))
    flops += 3 * study.flops["mixture"] * steps * study.options.batch_size
    seconds = time.time() - started
    return {
        "figures": study.evaluate(mixture),
        "before_router_training": unrouted,
        "experts": [study.evaluate(CLIPModel.from_pretrained(expert)) for expert in experts],
        "stages": records,
        "usage": json.loads((folder / "mixture" / "expert_usage.json").read_text())[-1],
        "parameters": moe.count_parameters(mixture),
        "learning_rate": rate,
        "steps": sum(record["steps"] for record in records) + steps,
        "flops": flops,
        "seconds": round(seconds),
    }


def run_control(study: Study, seed: int, arm: str) -> dict[str, Any]:
    """A control or a remedy, for as many FLOPs as CLIP-MoE took with this seed; the ancestor's are counted apart."""
    flops = study.run(run_moe, seed, "moe")["flops"]
    rate = tuned_rate(study, arm)
    started, folder = time.time(), study.work / f"{arm}-{seed}"
    model, steps = train_control(study, seed, arm, rate, flops, folder)
    found = {"learning_rate": rate, "steps": steps, "flops": flops, "seconds": round(time.time() - started)}
    if arm in FROM_CLUSTERS:
        found |= {"remedies": REMEDIES, "usage": json.loads((folder / "expert_usage.json").read_text())[-1]}
    if arm in IMITATING:
        found |= {"ancestor": Path(study.options.ancestor).name, "ancestor_flops": study.ancestor_flops()}
        found |= {"feature_weight": REMEDIES["feature_weight"]}
    return {"figures": study.evaluate(model), "parameters": moe.count_parameters(model), **found}


def try_rate(study: Study, seed: int, arm: str, rate: float) -> dict[str, Any]:
    """Half of the length at one rate, measured on the validation split."""
    folder = study.work / f"tuning-{arm}-{rate:g}"
    if arm == "experts":
        experts, _, _ = make_experts(study, seed, rate, folder, TUNING["share"], stages=1)
        model: Any = CLIPModel.from_pretrained(experts[0])
    else:
        epoch = study.options.pairs * TUNING["share"] * study.flops["dense"]
        flops = (EXPERTS["num_experts"] - 1) * epoch * (3 * study.options.epochs + 1)
        model, _ = train_control(study, seed, arm, rate, flops, folder, TUNING["share"])
    return {"figures": study.evaluate(model, "validation"), "learning_rate": rate}


def tuned_rate(study: Study, arm: str) -> float:
    """The learning rate with the best mean R@1 on the validation split, after half of the length."""
    rates = TUNING["lower_rates"].get(arm, TUNING["rates"])
    if study.options.quick:
        return rates[1]
    tried = {r: study.run(try_rate, TUNING["seed"], f"tuning/{arm}/{r:g}", arm, r) for r in rates}
    return max(tried, key=lambda rate: tried[rate]["figures"]["mean_R@1"])


def run_throughput(study: Study, seed: int) -> dict[str, Any]:
    """Pairs per second, forward and forward with backward, dense and by experts implementation.

    At batch 256, but batched_mm at 16, since it copies the weights of k experts for every token.
    """
    quick = study.options.quick
    sizes = dict.fromkeys(("dense", *IMPLEMENTATIONS), 32 if quick else 256) | {"batched_mm": 4 if quick else 16}
    mixture = study.mixture()
    seconds: dict[str, dict[str, list[float]]] = {"forward": {}, "training": {}}
    for _ in range(2 if quick else 6):  # in turns, so that another load on the machine meets all alike
        for name, size in sizes.items():
            model: Any = study.base if name == "dense" else mixture
            if name != "dense":
                mixture.set_experts_implementation(name)
            inputs = study.noise(size)
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


def run_storage(study: Study, seed: int) -> dict[str, Any]:
    """What a mixture takes as a gene plus deltas, and what it can still do, by the rank of the deltas."""
    gene: Any = LearngeneModel.from_pretrained(study.options.gene, dtype=torch.float32)
    study.run(run_moe, seed, "moe")
    mixture = moe.CLIPMoEModel.from_pretrained(study.work / f"moe-{seed}" / "mixture")
    rows = []
    for rank in RANKS:
        folder = study.work / f"deltas-{rank}"
        size = {"depth": study.options.depth, "width": study.options.width}
        sizes = moe.save_as_deltas(mixture, gene.half(), folder, **size, rank=rank)
        rows.append({"rank": rank, "bytes": sizes, "figures": study.evaluate(moe.load_from_deltas(folder))})
    return {"mixture_bytes_float16": rows[0]["bytes"]["mixture"], "rows": rows}


def main() -> None:
    options = parse(__doc__, "data", "clothing", "output", "seeds", "quick", settings=SETTINGS)
    if options.base is None and options.gene is None:
        raise SystemExit("give --base or --gene")
    unknown = set(options.arms) - set(SETTINGS["options"]["arms"]["default"])
    if unknown:
        raise SystemExit(f"--arms knows no {', '.join(map(repr, sorted(unknown)))}")
    folder = output_folder(options, "clip_moe")
    results = Results(folder / "results" / "clip_moe.json", settings_of(options, *LEFT_OUT) | EXPERTS)
    study = Study(options, results)
    results.save(
        test_pairs=len(study.test["test"]),
        gflops_per_pair={name: count / 1e9 for name, count in study.flops.items()},
    )
    study.run(run_base, 0, "base")
    for seed in options.seeds:
        for arm in options.arms:
            make, given = (run_moe, ()) if arm == "moe" else (run_control, (arm,))
            study.run(make, seed, arm, *given)
    study.run(run_throughput, 0, "throughput")
    first = options.seeds[0]
    if options.gene:
        study.run(run_storage, first, "storage")
    pictures = {"clusters": "experts/clusters.png", "usage": "mixture/expert_usage.png"}
    for name, picture in pictures.items():
        if (study.work / f"moe-{first}" / picture).exists():
            shutil.copy(study.work / f"moe-{first}" / picture, folder / "results" / f"{name}.png")
    publish(folder, report)


if __name__ == "__main__":
    main()

"""Controls that are trained before the study's first step, each size for itself; what they cost, kept beside them."""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import CLIPModel, set_seed

from benchmarks.common.training import Rows, batches_of
from benchmarks.family.cost import extraction_gflops, forward_gflops, muon_gflops, muon_gflops_of_layers
from benchmarks.family.mapping import MappedCLIP
from benchmarks.family.settings import SETTINGS
from benchmarks.family.starts import CLIP_MAP, STUDENTS, Sources, by_rotated_inheritance, folder_name
from mmlg_hf import ExtractionArguments
from mmlg_hf.extraction.ancestors import ancestor_outputs, gene_config
from mmlg_hf.extraction.trainer import AncestorCollator, ExtractionTrainer

Size = Sequence[int]


def student_steps(budget: float, batch_size: int, ancestor: float, students: list[float], muon: float) -> int:
    """Steps of every student, so that all of them cost as much as an extraction.

    Args:
        budget: gigaflops of the extraction.
        batch_size: pairs of a step of each student.
        ancestor: its forward in gigaflops a pair: its outputs are computed once for all students.
        students: the forward of each in gigaflops a pair; a backward is twice that.
        muon: gigaflops of one step of Muon for all students.
    """
    return round(budget / (batch_size * (ancestor + 3 * sum(students)) + muon))


@dataclass
class Controls:
    """Trains a control of one size by imitation of the ancestor, or loads it where the folder holds it already.

    Args:
        sources: the ancestor, turned and not.
        sizes: of the whole family, which share one budget.
        collator: of pairs.
        pairs: the first so many training pairs of this seed.
        folder: of what is trained, by method and size.
        seed: of the order of the pairs.
        short: steps and batch size of the study's own extractions.
    """

    sources: Sources
    sizes: Sequence[Size]
    collator: Any
    pairs: Callable[[int], Rows]
    folder: Path
    seed: int
    short: tuple[int, int]
    _rows: Rows | None = None

    def __call__(self, name: str, depth: int, width: int) -> CLIPModel:
        target = self.folder / folder_name(name) / f"{depth}x{width}"
        if not (target / "record.json").exists():  # written last
            started = time.perf_counter()
            model, record = {STUDENTS: self.student, CLIP_MAP: self.mapped}[name](depth, width)
            model.save_pretrained(target)
            about = {"method": name, "seconds": time.perf_counter() - started, "parameters": model.num_parameters()}
            (target / "record.json").write_text(json.dumps(about | record))
        return CLIPModel.from_pretrained(target)

    def student(self, depth: int, width: int) -> tuple[CLIPModel, dict[str, Any]]:
        """One teacher, many students, no gene: turned inheritance, trained as the bundled gene is for its FLOPs.

        All students learn from the same pairs and the same outputs of the ancestor (DINOv3, arXiv 2508.10104).
        """
        settings, config = dict(SETTINGS["controls"][STUDENTS]), self.sources.config(depth, width)
        del settings["extraction_steps"]  # of the budget
        batch_size = settings["per_device_train_batch_size"]
        model = by_rotated_inheritance(self.sources, depth, width, self.seed)
        self.distil(model, {**settings, "max_steps": self.student_steps})
        step = 3 * batch_size * forward_gflops(config) + muon_gflops_of_layers(config)
        return model, self.record(self.student_steps, batch_size, step)

    def mapped(self, depth: int, width: int) -> tuple[CLIPModel, dict[str, Any]]:
        """CLIP-Map, its maps trained for as many steps as the study's own extractions."""
        steps, batch_size = self.short
        model = MappedCLIP(self.sources.turned, self.sources.config(depth, width))
        settings = {"max_steps": steps, "per_device_train_batch_size": batch_size}
        self.distil(model, settings | SETTINGS["controls"][CLIP_MAP])
        step = 3 * batch_size * forward_gflops(model.config) + model.mapping_gflops()
        return model.plain(), self.record(steps, batch_size, step)

    @cached_property
    def student_steps(self) -> int:
        """Of each student of the family, for the FLOPs of one extraction."""
        settings, ancestor = SETTINGS["controls"][STUDENTS], self.sources.ancestor
        gene = gene_config(ancestor, num_multimodal_blocks=1, num_unimodal_blocks=1, mixing="linear")
        own, batch_size = forward_gflops(ancestor.config), settings["per_device_train_batch_size"]
        budget = settings["extraction_steps"] * (batch_size * extraction_gflops(gene, own) + muon_gflops(gene))
        configs = [self.sources.config(*size) for size in self.sizes]
        muon = sum(map(muon_gflops_of_layers, configs))
        return student_steps(budget, batch_size, own, list(map(forward_gflops, configs)), muon)

    def distil(self, model: Any, settings: dict[str, Any]) -> None:
        """Train by feature distillation alone, with the settings of an extraction, from kept outputs."""
        arguments = SETTINGS["extraction"] | {"seed": self.seed, "elastic": False} | settings
        args = ExtractionArguments(str(self.folder / "trainer"), **arguments)
        rows = self.rows(args.max_steps * args.per_device_train_batch_size)
        set_seed(self.seed)
        given = {"data_collator": AncestorCollator(self.collator), "train_dataset": rows}
        ExtractionTrainer(model, args, ancestor=self.sources.ancestor, **given).train()

    @torch.no_grad()
    def rows(self, count: int) -> Rows:
        """The first pairs with the ancestor's outputs, computed once for all sizes."""
        if self._rows is None or len(self._rows) != count:
            rows, ancestor = self.pairs(count), self.sources.ancestor.eval()
            outputs = [ancestor_outputs(ancestor, batch) for batch in batches_of(rows, self.collator, 256)]
            kept = {name: torch.cat([batch[name] for batch in outputs]) for name in outputs[0]}
            self._rows = Rows(**rows.columns, **kept)
        return self._rows

    def record(self, steps: int, batch_size: int, step: float) -> dict[str, Any]:
        """What one size cost: a step in gigaflops, the ancestor's outputs apart, since all sizes share them."""
        shared = steps * batch_size * forward_gflops(self.sources.ancestor.config) / 1e3
        return {"steps": steps, "batch_size": batch_size, "teraflops": steps * step / 1e3, "shared_teraflops": shared}


def records(work: Path) -> dict[str, dict[str, Any]]:
    """What the sizes trained so far cost together, as genes are recorded: "controls-SEED/METHOD"."""
    found: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(work.glob("controls-*/*/*/record.json")):
        record = json.loads(path.read_text())
        found.setdefault(f"{path.parents[2].name}/{record['method']}", []).append(record)
    return {key: together(sizes) for key, sizes in found.items()}


def together(sizes: list[dict[str, Any]]) -> dict[str, Any]:
    """Seconds, parameters and FLOPs of several sizes, the ancestor's outputs counted once."""
    summed = {name: sum(size[name] for size in sizes) for name in ("seconds", "parameters", "teraflops")}
    summed["teraflops"] += max(size["shared_teraflops"] for size in sizes)
    return {**summed, "steps": sizes[0]["steps"], "batch_size": sizes[0]["batch_size"], "sizes": len(sizes)}

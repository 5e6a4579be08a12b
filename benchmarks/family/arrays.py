"""The runs of the study as arrays, for its tables and plots."""

from collections.abc import Sequence
from typing import Any

import numpy as np

Array = Any
# What single encoders are measured on, by the modality of the descendants.
ENCODER_TASKS = {"clothes": "image-only", "digits": "image-only", "titles": "text-only"}


def size_names(sizes: Sequence[Sequence[int]]) -> list[str]:
    return [f"{depth}x{width}" for depth, width in sizes]


class Family:
    """The study's runs as arrays, one value for each seed that all runs of the part were made with.

    Attributes:
        seeds: by method, of the part "family".
        curve_seeds: by method, of the part "curves".
        tasks: of single encoders, those that all methods and seeds were measured on.
    """

    def __init__(self, results: dict[str, Any]) -> None:
        self.results, self.settings, self.runs = results, results["settings"], results["runs"]
        measured = [key.split("/") for key in self.runs if key.startswith(("family/", "curves/"))]
        self.methods = list(dict.fromkeys(key[1] for key in measured))
        self.sizes, self.curve_size = size_names(self.settings["sizes"]), size_names(self.settings["curve_sizes"])[0]
        everyone = sorted({int(key[-1]) for key in measured})

        def complete(part: str, sizes: list[str], method: str) -> list[int]:
            return [s for s in everyone if all(f"{part}/{method}/{size}/{s}" in self.runs for size in sizes)]

        self.seeds = {method: complete("family", self.sizes, method) for method in self.methods}
        self.curve_seeds = {method: complete("curves", [self.curve_size], method) for method in self.methods}
        encoders = size_names(self.settings["encoder_sizes"])
        self.tasks = [
            task for task in ENCODER_TASKS if all(complete(task, encoders, m) == self.seeds[m] for m in self.methods)
        ]

    def of(self, method: str, size: str, when: str, figure: str, seeds: list[int] | None = None) -> Array:
        """One figure of one descendant, in per cent, by seed: [seeds]; None takes all seeds of the method."""
        chosen = self.seeds[method] if seeds is None else seeds
        return 100 * np.array([self.runs[f"family/{method}/{size}/{seed}"][when][figure] for seed in chosen])

    def mean(self, method: str, when: str, figure: str, seeds: list[int] | None = None) -> Array:
        """The family's mean by seed: [seeds]."""
        return np.mean([self.of(method, size, when, figure, seeds) for size in self.sizes], axis=0)

    def margin(self, method: str, other: str, figure: str) -> Array:
        """The difference of the family's means after fine-tuning, by seed that both have: [seeds]."""
        seeds = [seed for seed in self.seeds[method] if seed in self.seeds[other]]
        return self.mean(method, "after", figure, seeds) - self.mean(other, "after", figure, seeds)

    def curve(self, method: str, figure: str = "mean_R@10") -> tuple[Array, Array]:
        """Steps [S] and the figure in per cent [seeds, S] of the size whose curve was measured."""
        curves = [run["curve"] for run in self._curves(method)]
        steps = np.array([point["step"] for point in curves[0]])
        return steps, 100 * np.array([[point[figure] for point in curve] for curve in curves])

    def seconds(self, method: str) -> float:
        """Seconds that a curve's training took, the median over seeds."""
        return float(np.median([run["seconds"] for run in self._curves(method)]))

    def _curves(self, method: str) -> list[dict[str, Any]]:
        return [self.runs[f"curves/{method}/{self.curve_size}/{seed}"] for seed in self.curve_seeds[method]]

    def classifier(self, task: str, method: str) -> Array:
        """Mean accuracy over the sizes of image-only or text-only descendants, in per cent, by seed."""
        sizes = size_names(self.settings["encoder_sizes"])
        runs = [[self.runs[f"{task}/{method}/{size}/{s}"]["top1"] for s in self.seeds[method]] for size in sizes]
        return 100 * np.mean(runs, axis=0)

    def stored_megabytes(self, method: str) -> float | None:
        """What has to be kept to start all sizes, in float16; None for what starts from nothing."""
        if method.startswith("scratch"):
            return None
        genes = {key.split("/")[1]: record for key, record in self.results["genes"].items()}
        return 2 * genes.get(method, self.results["ancestor"])["parameters"] / 1e6

"""The runs of the initialisation study as arrays, for its tables and plots."""

from typing import Any

import numpy as np

Array = Any
# What single encoders are measured on, by the modality of the descendants.
ENCODER_TASKS = {"clothes": "image-only", "digits": "image-only", "titles": "text-only"}


class Family:
    """The study's runs as arrays: figures[method][size] holds one value for each seed."""

    def __init__(self, results: dict[str, Any]) -> None:
        self.results, self.settings, runs = results, results["settings"], results["runs"]
        measured = [key.split("/") for key in runs if key.startswith(("family/", "curves/"))]
        self.methods = list(dict.fromkeys(key[1] for key in measured))
        self.sizes = [f"{depth}x{width}" for depth, width in self.settings["sizes"]]
        everyone = sorted({int(key[-1]) for key in measured})
        # By part and method: only seeds that all runs of the part were made with.
        self.complete = {
            (part, method): [seed for seed in everyone if self._complete(part, method, seed)]
            for part in ("family", "curves")
            for method in self.methods
        }
        self.seeds = {method: self.complete["family", method] for method in self.methods}

    def _complete(self, part: str, method: str, seed: int) -> bool:
        depth, width = self.settings["curve_sizes"][0]
        sizes = self.sizes if part == "family" else [f"{depth}x{width}"]
        return all(f"{part}/{method}/{size}/{seed}" in self.results["runs"] for size in sizes)

    def of(self, method: str, size: str, when: str, figure: str, seeds: list[int] | None = None) -> Array:
        """One figure of one descendant, in per cent, by seed: [seeds]; None takes all seeds of the method."""
        chosen = self.seeds[method] if seeds is None else seeds
        runs = [self.results["runs"][f"family/{method}/{size}/{seed}"] for seed in chosen]
        return 100 * np.array([run[when][figure] for run in runs])

    def mean(self, method: str, when: str, figure: str, seeds: list[int] | None = None) -> Array:
        """The family's mean by seed: [seeds]."""
        return np.mean([self.of(method, size, when, figure, seeds) for size in self.sizes], axis=0)

    def margin(self, method: str, other: str, figure: str) -> Array:
        """The difference of the family's means after fine-tuning, by seed that both have: [seeds]."""
        seeds = [seed for seed in self.seeds[method] if seed in self.seeds[other]]
        return self.mean(method, "after", figure, seeds) - self.mean(other, "after", figure, seeds)

    def curve(self, method: str, figure: str = "mean_R@10") -> tuple[Array, Array]:
        """Steps [S] and the figure in per cent [seeds, S] of the size that was trained on."""
        depth, width = self.settings["curve_sizes"][0]
        runs = [
            self.results["runs"][f"curves/{method}/{depth}x{width}/{seed}"]["curve"]
            for seed in self.complete["curves", method]
        ]
        return np.array([point["step"] for point in runs[0]]), 100 * np.array([[p[figure] for p in r] for r in runs])

    def seconds(self, method: str) -> float:
        """Seconds that a curve's training took, the median over seeds."""
        depth, width = self.settings["curve_sizes"][0]
        seeds = self.complete["curves", method]
        return float(
            np.median([self.results["runs"][f"curves/{method}/{depth}x{width}/{s}"]["seconds"] for s in seeds])
        )

    def classifier(self, task: str, method: str) -> Array:
        """Mean accuracy over the sizes of image-only or text-only descendants, in per cent, by seed."""
        runs = self.results["runs"]
        sizes = [f"{depth}x{width}" for depth, width in self.settings["encoder_sizes"]]
        return 100 * np.array(
            [
                np.mean([runs[f"{task}/{method}/{size}/{seed}"]["top1"] for size in sizes])
                for seed in self.seeds[method]
            ]
        )

    @property
    def tasks(self) -> list[str]:
        """The tasks of single encoders that all methods and seeds were measured on."""
        wanted = [
            f"{method}/{depth}x{width}/{seed}"
            for method in self.methods
            for depth, width in self.settings["encoder_sizes"]
            for seed in self.seeds[method]
        ]
        runs = self.results["runs"]
        return [name for name in ENCODER_TASKS if all(f"{name}/{key}" in runs for key in wanted)]

    def stored_megabytes(self, method: str) -> float | None:
        """What has to be kept to start all sizes, in float16; None for what starts from nothing."""
        if method == "scratch":
            return None
        genes = {key.split("/")[1]: record for key, record in self.results["genes"].items()}
        parameters = genes[method]["parameters"] if method in genes else self.results["ancestor"]["parameters"]
        return 2 * parameters / 1e6

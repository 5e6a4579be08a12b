"""The runs of the study as arrays, for its tables and plots."""

from typing import Any

import numpy as np

from benchmarks.common.results import Runs

Array = Any
# What single encoders are measured on, by the modality of the descendants.
ENCODER_TASKS = {"clothes": "image-only", "digits": "image-only", "titles": "text-only"}


def probed_name(task: str) -> str:
    """How a task's runs are named in which the head is probed before the first step."""
    return f"{task}-probed"


class Family(Runs):
    """The study's figures in per cent, one value for each seed.

    Attributes:
        methods: those that the family was measured with (curves, where there is no family).
        curve_methods: those of them that have a curve.
        tasks: of single encoders, those that any method was measured on.
        encoder_methods: the methods that were measured on any of them.
        probed_tasks: those that any method was measured on with its head probed first.
    """

    def __init__(self, results: dict[str, Any]) -> None:
        super().__init__(results)
        self.methods = self.names("family") or self.names("curves")
        self.sizes, (self.curve_size, *_) = (
            [f"{depth}x{width}" for depth, width in self.settings[name]] for name in ("sizes", "curve_sizes")
        )
        self.tasks, self.probed_tasks = (
            {task: kind for task, kind in ENCODER_TASKS.items() if self.measured_on(named(task))}
            for named in (str, probed_name)
        )
        measured = {name for task in self.tasks for name in self.measured_on(task)}
        self.encoder_methods = [name for name in self.methods if name in measured]
        self.curve_methods = [method for method in self.methods if self.all("curves", method, self.curve_size)]

    def of(self, method: str, size: str, when: str, figure: str) -> Array:
        """One figure of one descendant, by seed: [seeds]."""
        point = {"before": 0, "after": -1}[when]
        runs = self.all("family", method, size)
        return 100 * np.array([run["curve"][point][figure] for run in runs])

    def mean(self, method: str, when: str, figure: str) -> Array:
        """The family's mean by seed: [seeds]."""
        return np.mean([self.of(method, size, when, figure) for size in self.sizes], axis=0)

    def margin(self, method: str, other: str, figure: str) -> Array:
        """The difference of the family's means after fine-tuning, by seed that both have: [seeds]."""
        return difference(self.mean(method, "after", figure), self.mean(other, "after", figure))

    def curve(self, method: str, figure: str = "mean_R@10") -> tuple[Array, Array]:
        """Steps [S] and the figure [seeds, S] of the size whose curve was measured."""
        curves = [run["curve"] for run in self.all("curves", method, self.curve_size)]
        steps = np.array([point["step"] for point in curves[0]])
        return steps, 100 * np.array([[point[figure] for point in curve] for curve in curves])

    def seconds(self, method: str) -> float:
        """Seconds that a curve's training took, the median over seeds."""
        return float(np.median(self.values("seconds", "curves", method, self.curve_size, scale=1)))

    def measured_on(self, task: str) -> list[str]:
        """The methods whose single encoders were measured on a task."""
        return [method for method in self.methods if self.all(task, method)]

    def classifier(self, method: str, task: str, figure: str = "top1") -> Array:
        """Mean accuracy over the sizes of image-only or text-only descendants, by seed; empty if not measured."""
        sizes = [self.values(figure, task, method, size) for size in self.names(task, method)]
        return np.mean(sizes, axis=0) if sizes else np.array([])

    def probes(self, task: str) -> dict[str, dict[str, list[float]]]:
        """Accuracies in per cent by state and layer, of each encoder ("START, SIZE") that was probed on a task."""
        found = {}
        for name in self.names("probes"):
            for size in self.names("probes", name):
                for run in self.all("probes", name, size, task):
                    scaled = {state: [100 * value for value in values] for state, values in run.items()}
                    found[f"{name}, {size.replace('x', ' x ')}"] = scaled
        return found

    def made(self, method: str) -> list[dict[str, Any]]:
        """What making a gene, or training a control, took with each seed."""
        return [record for key, record in self.results["genes"].items() if key.split("/")[1] == method]

    def stored_megabytes(self, method: str) -> float | None:
        """What has to be kept to start all sizes, in float16; None for what starts from nothing."""
        if method.startswith("scratch"):
            return None
        genes = {key.split("/")[1]: record for key, record in self.results["genes"].items()}
        return 2 * genes.get(method, self.results["ancestor"])["parameters"] / 1e6


def difference(ours: Array, theirs: Array) -> Array:
    """By seed that both have."""
    seeds = min(len(ours), len(theirs))
    return ours[:seeds] - theirs[:seeds]

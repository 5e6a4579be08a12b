"""Figures of a model before and while it is trained."""

import time
from collections.abc import Callable, Sequence
from typing import Any

from transformers import TrainerCallback


class Curve(TrainerCallback):
    """Measures a model before and while it is trained.

    Attributes:
        points: the figures at each measured step.
        seconds: that measuring took.
    """

    def __init__(self, steps: Sequence[int], measure: Callable[[], dict[str, float]]) -> None:
        self.steps, self.measure, self.points, self.seconds = steps, measure, [], 0.0
        self._measure_at(0)

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self._measure_at(state.global_step)
        model.train()

    def _measure_at(self, step: int) -> None:
        if step in self.steps:
            started = time.perf_counter()
            self.points.append({"step": step, **self.measure()})
            self.seconds += time.perf_counter() - started

"""Verifying a file against its model, and timing both."""

import time
from collections.abc import Callable, Iterable
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .formats import Run
from .inputs import Inputs
from .parts import Part

FLOAT_TOLERANCE = 1e-5  # greatest difference, of the greatest value where that is above 1
INT8_COSINE = 0.999
# Pictures or texts at once, and the seed they are drawn with; None takes the fixed ones.
_PROBES: tuple[tuple[int, int | None], ...] = ((1, None), (4, None), (1, 0), (3, 1), (5, 2))
_TIMED_SECONDS, _MOST_RUNS, _LEAST_RUNS = 0.5, 60, 5


def verify(
    run: Run, part: Part, inputs: Inputs, dtype: str, batches: Iterable[dict[str, Tensor]] | None = None
) -> dict[str, Any]:
    """Run a file and its model on fixed and on random inputs, of several numbers and lengths.

    Args:
        batches: inputs to run in place of these: noise is not what static int8 was calibrated for.
        dtype: "float32" must be within `FLOAT_TOLERANCE`; "int8" of a cosine of at least `INT8_COSINE` in each row.

    Returns:
        `greatest_difference` (absolute), `relative_difference` (of the greatest value where that is above 1),
        `least_cosine` over all rows of embeddings or class logits, and `verified`.
    """
    greatest, relative, cosine = 0.0, 0.0, 1.0
    for made in batches or (inputs.make(part.takes, count, seed) for count, seed in _PROBES):
        with torch.no_grad():
            expected, found = part.module(**made), run(made)
        for name in part.outputs:
            a, b = expected[name].double(), found[name].double()
            difference = float("inf") if not torch.isfinite(b).all() else (a - b).abs().max().item()
            greatest = max(greatest, difference)
            relative = max(relative, difference / max(1.0, a.abs().max().item()))
            if not name.startswith("logits_per_"):  # products of the embeddings, which are judged themselves
                cosine = min(cosine, _least_cosine(a, b))
    passed = cosine >= INT8_COSINE if dtype == "int8" else relative <= FLOAT_TOLERANCE
    return {
        "greatest_difference": greatest,
        "relative_difference": relative,
        "least_cosine": cosine,
        "verified": bool(passed and greatest < float("inf")),
    }


def _least_cosine(a: Tensor, b: Tensor) -> float:
    """The least cosine of two rows [B, D]; equal rows of zeros count as alike."""
    alike = F.cosine_similarity(a, b, dim=-1)
    return torch.where((a == b).all(dim=-1), 1.0, torch.nan_to_num(alike, nan=-1.0)).min().item()


def milliseconds(call: Callable[[], Any], seconds: float | None = None) -> float:
    """The median time of a call, in milliseconds, after two calls that do not count.

    Args:
        seconds: to go on calling for, beyond the fewest calls; None takes half a second.
    """
    seconds = _TIMED_SECONDS if seconds is None else seconds
    times: list[float] = []
    with torch.no_grad():
        for _ in range(2):
            call()
        start = time.perf_counter()
        while len(times) < _LEAST_RUNS or (len(times) < _MOST_RUNS and time.perf_counter() - start < seconds):
            before = time.perf_counter()
            call()
            times.append(time.perf_counter() - before)
    return 1000 * median(times)


def time_part(run: Run, part: Part, inputs: Inputs) -> float:
    """Milliseconds for one picture, one text, or one of each for a whole pair."""
    made = inputs.make(part.takes, 1)
    return milliseconds(lambda: run(made))


def time_model(part: Part, inputs: Inputs, seconds: float | None = None) -> float:
    """The same of the model in torch; `seconds` as of `milliseconds`."""
    made = inputs.make(part.takes, 1)
    return milliseconds(lambda: part.module(**made), seconds)

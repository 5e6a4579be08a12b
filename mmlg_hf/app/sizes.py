"""The sizes that a gene grows: each grown, measured and kept, and what it says of a picture and labels."""

import os
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..checkpoints import quiet
from ..configuration_learngene import LearngeneConfig
from ..errors import LearngeneError
from ..evaluation.dual_encoders import class_embeddings, embed_images
from ..export.inputs import Inputs
from ..export.measures import time_model
from ..export.parts import PICTURES, TEXTS, parts_of_model
from ..genes import load_learngene

MOST_LABELS = 50
_KEPT = 16  # sizes that stay grown
_TIMED_SECONDS = 0.1  # for each encoder: the page shall answer at once


@dataclass(frozen=True)
class Grown:
    """A size as it was grown: the model, and what it costs on this machine.

    Attributes:
        depth, width: as they were asked for.
        model: a stock model in float32, in evaluation mode.
        parameters: their number.
        megabytes: millions of bytes of its weights.
        seconds: what growing it took.
        milliseconds_picture, milliseconds_text: for one, the median.
    """

    depth: int
    width: int
    model: Any
    parameters: int
    megabytes: float
    seconds: float
    milliseconds_picture: float
    milliseconds_text: float

    @property
    def title(self) -> str:
        return f"{self.depth} × {self.width}"


class Sizes:
    """A gene's sizes, each grown when it is asked for; one thread computes at a time, so that times are comparable.

    Args:
        gene: a Hub id, a folder or a bundled name.
        hub_kwargs: `revision`, `token`, `cache_dir`, `local_files_only`.

    Attributes:
        depths, widths: what the sliders snap to; one width sets the wider encoder, as for `from_learngene`.

    Raises:
        LearngeneError: it cannot be loaded, or does not embed both pictures and texts.
    """

    depths: range
    widths: range
    image_size: int

    def __init__(self, gene: str | os.PathLike, **hub_kwargs: Any):
        self.lock = threading.RLock()
        self._kept: OrderedDict[tuple[int, int], Grown] = OrderedDict()
        self.name = os.path.basename(os.fspath(gene).rstrip("/\\")) if os.path.isdir(gene) else os.fspath(gene)
        with quiet():
            self.gene: Any = load_learngene(gene, dtype="auto", **hub_kwargs)
        config: LearngeneConfig = self.gene.config
        if config.text_config is None:
            raise LearngeneError(f"{self.name!r} is an image gene: the page compares pictures with texts, so it takes "
                                 "a gene of a CLIP or a SigLIP")  # fmt: skip
        self.processor = self.gene.processor
        if self.processor is None:
            raise LearngeneError(f"{self.name!r} has no processor beside it, and pictures and texts need one")
        own = max(encoder.num_hidden_layers for encoder in config.encoder_configs.values())
        head = config.widest.hidden_size // config.widest.num_attention_heads
        self.depths = range(1, own + 1)
        self.widths = range(head, config.widest.hidden_size + 1, head)
        self.image_size = config.vision_config.image_size

    def snap(self, depth: Any, width: Any) -> tuple[int, int]:
        """Return the size nearest to what was asked; what is no number counts as the gene's own."""
        return _nearest(depth, self.depths), _nearest(width, self.widths)

    def grow(self, depth: int, width: int) -> Grown:
        """Grow a size and measure it, or return it as it was grown before.

        Raises:
            LearngeneError: the gene does not grow it.
        """
        with self.lock:
            if (depth, width) not in self._kept:
                self._kept[depth, width] = self._grow(depth, width)
                if len(self._kept) > _KEPT:
                    self._kept.popitem(last=False)
            self._kept.move_to_end((depth, width))
            return self._kept[depth, width]

    def _grow(self, depth: int, width: int) -> Grown:
        start = time.perf_counter()
        model = self.gene.descendant(depth, width, dtype=torch.float32).eval()
        seconds = time.perf_counter() - start
        inputs = Inputs(model, self.processor)
        times = {
            part.takes[0]: time_model(part, inputs, seconds=_TIMED_SECONDS) for part in parts_of_model(model, inputs)
        }
        count = model.num_parameters()
        return Grown(depth, width, model, count, 4 * count / 1e6, seconds, times[PICTURES], times[TEXTS])

    def shares(self, grown: Grown, picture: Any, labels: Sequence[str]) -> list[float]:
        """How likely each label is for a picture, from 0 to 1, in the labels' order.

        They sum to 1 for a CLIP; a SigLIP judges each label by itself.

        Args:
            picture: whatever `mmlg_hf.data.open_image` takes.
            labels: two or more.
        """
        with self.lock:
            image = embed_images(grown.model, [picture], self.processor)
            classes = class_embeddings(grown.model, labels, self.processor)
            return shares_of(grown.model, image, classes)[0].tolist()


def shares_of(model: Any, images: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """Probabilities [N, C] from a model's embeddings [N, D] and [C, D], as the stock zero-shot pipeline has them."""
    with torch.no_grad():
        logits = model.logit_scale.exp() * images @ classes.T
        bias = getattr(model, "logit_bias", None)
        return logits.softmax(dim=-1) if bias is None else (logits + bias).sigmoid()


def read_labels(text: str | None) -> list[str]:
    """Read labels from what was typed: between commas or line breaks, each once.

    Raises:
        LearngeneError: there are fewer than two, or more than `MOST_LABELS`.
    """
    parts = (text or "").replace("\n", ",").split(",")
    labels = list(dict.fromkeys(" ".join(part.split()) for part in parts if part.strip()))
    if not labels:
        raise LearngeneError("there are no labels: type two or more, with commas between them")
    if len(labels) == 1:
        raise LearngeneError(f"{labels[0]!r} is the only label, which any picture would be: type two or more")
    if len(labels) > MOST_LABELS:
        raise LearngeneError(f"these are {len(labels)} labels: type {MOST_LABELS} at most")
    return labels


def _nearest(value: Any, choices: range) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value:
        return choices[-1]
    return min(choices, key=lambda choice: abs(choice - value))

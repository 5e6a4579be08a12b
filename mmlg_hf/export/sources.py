"""Finding the model that is meant: any that this package makes, a stock one of transformers, or a gene to grow."""

import os
import re
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from transformers import AutoConfig

from ..alignment.dual_encoder import DualEncoderModel
from ..checkpoints import load_config, load_model, load_processor, locate_learngene, quiet
from ..clip_moe import modeling_clip_moe
from ..configuration_learngene import LearngeneConfig, Size
from ..descendants import from_learngene
from ..errors import LearngeneError
from ..modeling_text_classification import CLIPTextForSequenceClassification

_SIZE = re.compile(r"(?P<name>.+)@(?P<depth>\d+(,\d+)?)x(?P<width>\d+(,\d+)?)")
_OURS = {
    **{name: getattr(modeling_clip_moe, name) for name in modeling_clip_moe.__all__},
    **{cls.__name__: cls for cls in (DualEncoderModel, CLIPTextForSequenceClassification)},
}


@dataclass
class Source:
    """A model in evaluation mode, the processor stored with it, and where both come from.

    Args:
        name: as it was given: a Hub id, a folder, or a gene's name.
        model: in float32 on the CPU.
        processor: a processor, an image processor or a tokenizer.
        revision: commit on the Hub; None for a folder or main.
        grown: `depth`, `width` and `modality` asked of a gene; empty for a model that was loaded as it is.
    """

    name: str
    model: Any
    processor: Any
    revision: str | None = None
    grown: dict[str, Any] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """A short name, with the size where one was asked of a gene."""
        own = os.path.basename(self.name.rstrip("/\\")) if os.path.isdir(self.name) else self.name
        if self.grown.get("depth") is None and self.grown.get("width") is None:
            return own
        depth, width = (_shown(self.grown.get(key)) for key in ("depth", "width"))
        return f"{own}@{depth}x{width}"


def load_exportable(
    model: str | os.PathLike,
    depth: Size = None,
    width: Size = None,
    modality: str | None = None,
    **hub_kwargs: Any,
) -> Source:
    """Load a model with its processor, or grow one from a gene.

    Args:
        model: a Hub id, a folder, or a gene's; a gene's may be followed by its size, "mmlg-fashion-48@3x96".
        depth: layers to grow, one number or a (vision, text) pair; None keeps the gene's own.
        width: `hidden_size` to grow, the same.
        modality: "multimodal", "image" or "text", what a gene grows; None takes all that it can. Of any other model
            with two encoders it is the encoder that is exported.
        hub_kwargs: `revision`, `token`, `cache_dir`, `local_files_only`.

    Raises:
        LearngeneError: it cannot be loaded, a size is given for what is no gene, it has no processor beside it, or it
            is no model that embeds or classifies pictures or texts.
    """
    given = os.fspath(model)
    name, depth, width = _split_size(given, depth, width)
    located = locate_learngene(name)
    config = load_config(AutoConfig, located, "the model", **hub_kwargs)
    revision = hub_kwargs.get("revision")
    if isinstance(config, LearngeneConfig):
        with quiet():
            grown = from_learngene(located, depth, width, modality, **hub_kwargs)
        asked = {"depth": depth, "width": width, "modality": modality}
        return Source(name, grown.eval(), load_processor(located, **hub_kwargs), revision, asked)
    if depth is not None or width is not None:
        raise LearngeneError(
            f"{name!r} is a {config.model_type!r} model of one size: depth and width are for genes, which grow"
        )
    cls = _class_of(config, name)
    loaded = load_model(cls, located, "the model", dtype=torch.float32, **hub_kwargs)
    return Source(name, loaded, load_processor(located, **hub_kwargs), revision)


def _split_size(given: str, depth: Size, width: Size) -> tuple[str, Size, Size]:
    """Take "NAME@DEPTHxWIDTH" apart; a folder of just that name is a folder."""
    match = _SIZE.fullmatch(given)
    if match is None or os.path.isdir(given):
        if "@" in given and not os.path.isdir(given):
            raise LearngeneError(f"{given!r} has no size after its @: write NAME@DEPTHxWIDTH, such as a-gene@3x96")
        return given, depth, width
    if depth is not None or width is not None:
        raise LearngeneError(f"{given!r} has a size of its own: leave depth and width out")
    return match["name"], *(_size(match[key]) for key in ("depth", "width"))  # type: ignore[return-value]


def _size(text: str) -> Size:
    numbers = [int(number) for number in text.split(",")]
    return numbers[0] if len(numbers) == 1 else (numbers[0], numbers[1])


def _shown(size: Size) -> str:
    return "own" if size is None else ",".join(map(str, size)) if isinstance(size, tuple) else str(size)


def _class_of(config: Any, name: str) -> Any:
    """The class a model was saved as, ours or transformers'."""
    saved_as = getattr(config, "architectures", None)
    if not isinstance(saved_as, list) or not saved_as or not isinstance(saved_as[0], str):
        raise LearngeneError(f"the config of {name!r} has no architectures, so its class is unknown: save it again")
    cls = _OURS.get(saved_as[0]) or getattr(transformers, saved_as[0], None)
    if not (isinstance(cls, type) and issubclass(cls, transformers.PreTrainedModel)):
        raise LearngeneError(
            f"{name!r} was saved as {saved_as[0]}, which is no class of transformers or of this package"
        )
    return cls

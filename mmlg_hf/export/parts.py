"""What becomes a file of its own: an encoder, a classifier or a whole pair, with its inputs and outputs by name."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..data.texts import pads_to_one_length, text_config_of
from ..errors import LearngeneError
from .inputs import Inputs

# The name of each axis that may be of any length.
PICTURES, TEXTS, TOKENS = "pictures", "texts", "tokens"


@dataclass
class Part:
    """A module with tensors in and out, as it is exported.

    Args:
        kind: "image", "text", "image-classifier", "text-classifier" or "whole".
        stem: the file's name without its suffix, as transformers.js looks for it.
        module: takes its inputs by name and returns a dictionary of tensors.
        takes: "pictures", "texts" or both.
        axes: for each input and output the names of its axes; a number is a fixed length.
        about: what its outputs are, for the JSON.
    """

    kind: str
    stem: str
    module: nn.Module
    takes: tuple[str, ...]
    axes: dict[str, tuple[str | int, ...]]
    outputs: tuple[str, ...]
    about: dict[str, Any]

    @property
    def inputs(self) -> tuple[str, ...]:
        return tuple(name for name in self.axes if name not in self.outputs)


class Embedder(nn.Module):
    """An encoder alone: `image_embeds` or `text_embeds` [B, D]."""

    def __init__(self, model: Any, output: str, normalised: bool):
        super().__init__()
        self.model = model
        self.output = output
        self.normalised = normalised

    def forward(self, **inputs: Tensor) -> dict[str, Tensor]:
        pair = getattr(
            self.model, "get_image_features" if self.output == "image_embeds" else "get_text_features", None
        )
        outputs = self.model(**inputs) if pair is None else pair(**inputs)
        found = (getattr(outputs, name, None) for name in (self.output, "pooler_output"))
        embeds = next((tensor for tensor in found if tensor is not None), None)
        if embeds is None:
            raise LearngeneError(
                f"a {type(self.model).__name__} gives no embedding of the whole input, only its states"
            )
        return {self.output: F.normalize(embeds, dim=-1) if self.normalised else embeds}


class Outputs(nn.Module):
    """A model reduced to some of its outputs, by name."""

    def __init__(self, model: Any, outputs: tuple[str, ...]):
        super().__init__()
        self.model = model
        self.outputs = outputs

    def forward(self, **inputs: Tensor) -> dict[str, Tensor]:
        outputs = self.model(**inputs)
        return {name: getattr(outputs, name) for name in self.outputs}


def parts_of_model(
    model: Any, inputs: Inputs, *, modality: str | None = None, whole: bool = False, normalised: bool = True
) -> list[Part]:
    """Choose what of a model becomes files.

    Args:
        model: with both encoders, with one, or a classifier.
        inputs: makes inputs for it.
        modality: "image" or "text" takes this encoder alone; "multimodal" or None all that there is.
        whole: one part that compares pictures with texts, in place of one for each encoder.
        normalised: whether encoders alone return embeddings of length 1; False returns them as the model does.

    Raises:
        LearngeneError: the model has not what is asked for, or is none of these.
    """
    name = type(model).__name__
    both = hasattr(model, "get_image_features") and hasattr(model, "get_text_features")
    own = "multimodal" if both else "image" if model.main_input_name == "pixel_values" else "text"
    if modality not in (None, own) and not both:
        raise LearngeneError(f"a {name} is a model of the modality {own!r}, and {modality!r} was asked for")
    if whole and (not both or modality not in (None, own)):
        raise LearngeneError(
            "a whole pair in one file is of a model with both encoders, and of the modality multimodal"
        )
    model = model.eval()
    if name.endswith(("ForImageClassification", "ForSequenceClassification")):
        return [_classifier(model, inputs, own)]
    if whole:
        return [_whole(model, inputs)]
    if not both and not name.endswith(("Model", "WithProjection")):
        raise LearngeneError(f"a {name} neither embeds nor classifies pictures or texts: there is nothing to export")
    kinds = (modality,) if modality in ("image", "text") else ("image", "text") if both else (own,)
    return [_encoder(model, inputs, kind, normalised) for kind in kinds]


def _encoder(model: Any, inputs: Inputs, kind: str, normalised: bool) -> Part:
    taken, output = (PICTURES, "image_embeds") if kind == "image" else (TEXTS, "text_embeds")
    module = Embedder(model, output, normalised)
    projected = hasattr(model, "visual_projection" if kind == "image" else "text_projection")
    about = {"normalised": normalised, "projected": projected}
    stem = "vision_model" if kind == "image" else "text_model"
    axes = _axes(inputs, (taken,)) | _output_axes(module, inputs, {output: (taken,)})
    return Part(kind, stem, module, (taken,), axes, (output,), about)


def _classifier(model: Any, inputs: Inputs, kind: str) -> Part:
    taken = PICTURES if kind == "image" else TEXTS
    module = Outputs(model, ("logits",))
    axes = _axes(inputs, (taken,)) | _output_axes(module, inputs, {"logits": (taken,)})
    return Part(f"{kind}-classifier", "model", module, (taken,), axes, ("logits",), {})


def _whole(model: Any, inputs: Inputs) -> Part:
    first = {
        "logits_per_image": (PICTURES, TEXTS),
        "logits_per_text": (TEXTS, PICTURES),
        "image_embeds": (PICTURES,),
        "text_embeds": (TEXTS,),
    }
    module = Outputs(model, tuple(first))
    axes = _axes(inputs, (PICTURES, TEXTS)) | _output_axes(module, inputs, first)
    return Part("whole", "model", module, (PICTURES, TEXTS), axes, tuple(first), {"normalised": True})


def _axes(inputs: Inputs, taken: tuple[str, ...]) -> dict[str, tuple[str | int, ...]]:
    """The axes of what the processor makes: fixed but for how many there are, and the tokens of texts."""
    axes: dict[str, tuple[str | int, ...]] = {}
    if TEXTS in taken:
        one_length = pads_to_one_length(text_config_of(inputs.model))
        for name, tensor in inputs.texts(2).items():
            axes[name] = (TEXTS, tensor.shape[1] if one_length else TOKENS)
    if PICTURES in taken:
        axes["pixel_values"] = (PICTURES, *inputs.pictures(1)["pixel_values"].shape[1:])
    return axes


def _output_axes(module: nn.Module, inputs: Inputs, first: dict[str, tuple[str, ...]]) -> dict[str, Any]:
    """Run the module to see that it does, and how long the last axis of each output is."""
    taken = {axis for axes in first.values() for axis in axes}
    with torch.no_grad():
        outputs = module(**inputs.make(tuple(sorted(taken, reverse=True)), 2))
    return {name: (*axes, *outputs[name].shape[len(axes) :]) for name, axes in first.items()}

"""What all measuring needs: rows that can be read, a model in evaluation mode, inputs where and as it takes them."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from datasets import Dataset
from PIL import Image as PILImage
from torch import nn
from transformers import PreTrainedTokenizerBase
from transformers.image_processing_utils import BaseImageProcessor

from ..data import open_image, undecoded
from ..data.captions import check_length
from ..data.texts import check_tokenizer, text_config_of
from ..errors import LearngeneError, first_line
from ..training.modes import evaluating

_PARTS = {"image_processor": BaseImageProcessor, "tokenizer": PreTrainedTokenizerBase}


def measured_rows(dataset: Any) -> Dataset:
    """Return a dataset's rows as they are stored, whatever format was set on it; refuse what has none to measure."""
    if not isinstance(dataset, Dataset):
        raise LearngeneError(
            f"evaluation takes a datasets.Dataset, not a {type(dataset).__name__}: pick one split, and no stream"
        )
    if len(dataset) == 0:
        raise LearngeneError("the dataset is empty (0 rows): there is nothing to measure")
    return dataset.with_format(None)


def image_values(dataset: Dataset, column: str) -> Sequence[Any]:
    """Return a column's images undecoded, so that one that cannot be decoded is met by `read_image`, with its row."""
    return undecoded(dataset)[column]


def read_image(images: Sequence[Any], index: int) -> PILImage.Image:
    """Open one of several images, or name it in a `LearngeneError`."""
    try:
        return open_image(images[index])
    except OSError as error:
        raise LearngeneError(f"image {index} cannot be read ({error}): mend it or drop that row") from error


def read_text(texts: Sequence[Any], index: int) -> str:
    """Return one of several texts, or name it in a `LearngeneError`."""
    if not isinstance(texts[index], str):
        raise LearngeneError(f"text {index} is {texts[index]!r}: give a string")
    check_length(texts[index], f"text {index}")
    return texts[index]


def as_items(items: Any, kind: str) -> Sequence[Any]:
    """Return images or texts as a sequence; refuse a single one, which would be taken apart, and none."""
    if isinstance(items, (str, bytes, dict)) or not isinstance(items, Iterable):
        raise LearngeneError(f"the {kind} are one {type(items).__name__}: give a list")
    items = items if hasattr(items, "__len__") and hasattr(items, "__getitem__") else list(items)
    if len(items) == 0:
        raise LearngeneError(f"there are no {kind} to embed")
    return items


def check_batch_size(batch_size: Any) -> None:
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise LearngeneError(f"batch_size is {batch_size!r}: give a whole number above 0")


def part_of(processor: Any, name: str) -> Any:
    """Return a processor's "image_processor" or "tokenizer", or the processor itself where it is one."""
    part = processor if isinstance(processor, _PARTS[name]) else getattr(processor, name, None)
    if part is None:
        raise LearngeneError(
            f"the processor is a {type(processor).__name__}, without {name}: give a CLIPProcessor, or another with one"
        )
    return part


def image_inputs(image_processor: Any, images: Sequence[PILImage.Image], first: int) -> Any:
    """Make one batch of images, `pixel_values` [B, 3, H, W]; `first` is the row of the first, for the error."""
    sizes = sorted({f"{image.width}x{image.height}" for image in images})
    shown = ", ".join(sizes[:3]) + (", ..." if len(sizes) > 3 else "")
    with explained(
        f"the image processor (do_resize is {getattr(image_processor, 'do_resize', None)}) makes no batch of images "
        f"{first} to {first + len(images) - 1}, which are of {shown} pixels"
    ):
        return image_processor(images=list(images), return_tensors="pt")


def tokenizer_for(model: Any, processor: Any) -> Any:
    """Return a processor's tokenizer, after seeing that it can be that of the model's text encoder."""
    tokenizer = part_of(processor, "tokenizer")
    check_tokenizer(tokenizer, text_config_of(model))
    return tokenizer


def device_of(model: Any) -> torch.device:
    """Return where a model takes its inputs, also one whose weights accelerate keeps elsewhere."""
    placed = getattr(getattr(model, "_hf_hook", None), "execution_device", None)
    if placed is not None:
        return torch.device(placed)
    real = (tensor.device for tensor in model.parameters() if not tensor.is_meta)
    return next(real, torch.device("cpu"))


def to_model(inputs: Any, model: Any) -> dict[str, Any]:
    """Move tensors to where a model takes them, those of floats in its dtype."""
    device, dtype = device_of(model), getattr(model, "dtype", torch.float32)
    return {
        name: tensor.to(device, dtype) if tensor.is_floating_point() else tensor.to(device)
        for name, tensor in inputs.items()
    }


@contextmanager
def measuring(model: nn.Module, device: str | torch.device | None = None) -> Iterator[None]:
    """Have a model in evaluation mode, without gradient and on a device; it is left as it was found.

    Args:
        device: None leaves the model where it is.

    Raises:
        LearngeneError: if the model cannot be moved there.
    """
    before = device_of(model)
    moves = device is not None and not _is(before, device)
    if moves:
        with explained(f"the {type(model).__name__} cannot be moved to the device {str(device)!r}"):
            model.to(device)
    try:
        with evaluating(model), torch.no_grad():
            yield
    finally:
        if moves:
            model.to(before)


def _is(here: torch.device, device: str | torch.device) -> bool:
    with explained(f"the device is {device!r}"):
        wanted = torch.device(device)
    return here.type == wanted.type and wanted.index in (None, here.index or 0)


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Turn what torch and transformers raise of inputs and models that do not fit into one sentence."""
    try:
        yield
    except (LearngeneError, torch.OutOfMemoryError):
        raise
    except (RuntimeError, ValueError, TypeError, IndexError, AssertionError, ArithmeticError) as error:
        raise LearngeneError(f"{what}: {first_line(error)}") from error

"""Which layers of two encoders are aligned: their last ones, or the two that see the same neighbourhoods."""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from ..errors import LearngeneError, first_line
from .encoders import encoder_class
from .states import batches_of, pooled_states

if TYPE_CHECKING:
    from .dual_encoder import DualEncoderModel

# What a backbone's config says of each layer; it is made anew by their number.
_OF_ALL_LAYERS = ("stage_names", "out_features", "out_indices")


def cut_layers(encoder: PreTrainedModel, count: int | None, modality: str) -> PreTrainedModel:
    """Return the encoder with its first `count` layers, what comes after the last layer left in place.

    Args:
        encoder: a bare encoder; it stays as it is, and what is returned is a copy if layers are left out.
        count: of layers that are kept; None keeps all.
        modality: "vision" or "text", for errors.

    Raises:
        LearngeneError: if the encoder has fewer layers, or keeps them where they cannot be told.
    """
    if count is None:
        return encoder
    name, layers = _layers_of(encoder, modality)
    if not 1 <= count <= len(layers):
        raise LearngeneError(
            f"{modality}_layers is {count}: the {modality} encoder {type(encoder).__name__} has {len(layers)} layers, "
            f"so it takes 1 to {len(layers)}"
        )
    if count == len(layers):
        return encoder
    cut: Any = deepcopy(encoder)
    cut.set_submodule(name, nn.ModuleList(list(cut.get_submodule(name))[:count]))
    cut.config.num_hidden_layers = count  # for what is inside, which shares it
    cut.config = _config_again(cut, count, modality)
    return cut


def _layers_of(encoder: nn.Module, modality: str) -> tuple[str, nn.ModuleList]:
    """The name of the list that holds an encoder's layers, and the list."""
    count = getattr(encoder.config, "num_hidden_layers", None)
    for name, module in encoder.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == count and len({type(own) for own in module}) == 1:
            return name, module
    raise LearngeneError(
        f"the layers of the {modality} encoder {type(encoder).__name__} are not in one list of equal layers: leave "
        f"{modality}_layers out"
    )


def _config_again(cut: Any, count: int, modality: str) -> Any:
    """The config of a cut encoder. A saved pair is built again from it, so that it must give what was cut."""
    settings = {name: value for name, value in cut.config.to_dict().items() if name not in _OF_ALL_LAYERS}
    try:
        config = type(cut.config)(**{**settings, "num_hidden_layers": count})
        with torch.device("meta"):
            again = encoder_class(config)._from_config(config)
        have, want = ({name for name, _ in model.named_parameters() if "pooler" not in name} for model in (cut, again))
        reason = "" if have == want else "it has other weights than its config says, such as an earlier alignment's"
    except (ValueError, TypeError, AttributeError, IndexError, KeyError) as error:
        reason = first_line(error)
    if reason:
        raise LearngeneError(
            f"the {modality} encoder {type(cut).__name__} cannot have fewer layers than it was made with ({reason}): "
            f"leave {modality}_layers out"
        )
    return config


@torch.no_grad()
def layer_similarities(
    model: "DualEncoderModel", rows: Any, processor: Any, *, neighbours: int = 10, batch_size: int = 64, **columns: Any
) -> Tensor:
    """Mutual k-nearest neighbours of every pair of layers: how far both encoders agree who is near whom.

    For each pair of a picture and a text, the share of its k nearest by the image encoder's states (cosine, pooled as
    the pair is) that are its k nearest by the text encoder's, too; the mean over pairs (Huh et al., "The Platonic
    Representation Hypothesis", arXiv 2405.07987). States are those that encoders cut at a layer would give, from one
    pass over the pairs.

    Args:
        model: from `align`.
        rows: image-text pairs, raw or processed, such as a `datasets.Dataset`; 500 to 1,000 are enough.
        processor: of the pair.
        neighbours: k.
        batch_size: pairs at once.
        columns: `image_column`, `text_column`, ... as for `ImageTextCollator`.

    Returns:
        [layers of the image encoder, layers of the text encoder], each between 0 and 1; by chance it is about
        k / pairs.

    Raises:
        LearngeneError: if there are not more pairs than neighbours, or the layers of an encoder cannot be told.
    """
    if len(rows) <= neighbours:
        raise LearngeneError(f"there are {len(rows)} pairs for {neighbours} neighbours of each: give more pairs")
    near = {
        modality: [_nearest(states, neighbours) for states in layers]
        for modality, layers in _states_of_layers(model, rows, processor, batch_size, columns).items()
    }
    agree = [[(image & text).sum() / image.sum() for text in near["text"]] for image in near["vision"]]
    return torch.tensor(agree)


def choose_layers(model: "DualEncoderModel", rows: Any, processor: Any, **settings: Any) -> tuple[int, int]:
    """How many layers of the image and of the text encoder to align: the two that are most alike.

    STRUCTURE (arXiv 2506.16895) aligns these instead of the last ones. Give them to `align` as `vision_layers` and
    `text_layers`; the layers above are left out, and cost nothing.

    Args:
        model, rows, processor, settings: as for `layer_similarities`.
    """
    found = layer_similarities(model, rows, processor, **settings)
    vision, text = divmod(int(found.argmax()), found.shape[1])
    return vision + 1, text + 1


def _nearest(states: Tensor, count: int) -> Tensor:
    """Who is among the `count` nearest of each row [N, D] by cosine, itself left out: [N, N] of booleans."""
    rows = F.normalize(states.float(), dim=-1)
    cosines = (rows @ rows.T).fill_diagonal_(-float("inf"))
    return torch.zeros_like(cosines, dtype=torch.bool).scatter_(1, cosines.topk(count, dim=1).indices, True)


def _states_of_layers(
    model: "DualEncoderModel", rows: Any, processor: Any, batch_size: int, columns: dict[str, Any]
) -> dict[str, list[Tensor]]:
    """The pooled states [N, D] that each encoder would give if it ended with each of its layers."""
    encoders = {modality: getattr(model, f"{modality}_model") for modality in ("vision", "text")}
    found: dict[str, list[list[Tensor]]] = {
        modality: [[] for _ in _layers_of(encoder, modality)[1]] for modality, encoder in encoders.items()
    }
    for batch in batches_of(model, rows, processor, batch_size, columns):
        for modality, encoder in encoders.items():
            with _recorded(encoder, modality) as outputs:
                pooled_states(model, batch, modality)
            for layer, output in enumerate(outputs):
                with _ending_with(encoder, modality, output):
                    found[modality][layer].append(pooled_states(model, batch, modality).cpu())
    return {modality: [torch.cat(parts) for parts in layers] for modality, layers in found.items()}


@contextmanager
def _recorded(encoder: nn.Module, modality: str) -> Iterator[list[Any]]:
    """What each layer returns."""
    outputs: list[Any] = []
    hooks = [
        layer.register_forward_hook(lambda _, __, output: outputs.append(output))
        for layer in _layers_of(encoder, modality)[1]
    ]
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()


class _Given(nn.Module):
    """Stands for all layers up to one, whose output is known."""

    def __init__(self, output: Any) -> None:
        super().__init__()
        self.output = output

    def forward(self, *_: Any, **__: Any) -> Any:
        return self.output


@contextmanager
def _ending_with(encoder: nn.Module, modality: str, output: Any) -> Iterator[None]:
    """An encoder whose layers gave `output`: what comes after the last one is applied to it."""
    name, layers = _layers_of(encoder, modality)
    config: Any = encoder.config
    count = config.num_hidden_layers
    encoder.set_submodule(name, nn.ModuleList([_Given(output)]))
    config.num_hidden_layers = 1
    try:
        yield
    finally:
        encoder.set_submodule(name, layers)
        config.num_hidden_layers = count

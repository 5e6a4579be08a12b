"""A shorter context: fewer positions of a text encoder, since captions rarely fill those that it was made with."""

import copy
from typing import Any

import torch
from torch import nn

from ..data.texts import pads_to_one_length, text_config_of
from ..errors import LearngeneError


def shorten_context(model: Any, tokenizer: Any, length: int) -> Any:
    """Cut a text encoder's positions down to a length, and return a tokenizer that cuts texts to it.

    CLIP and MetaCLIP 2 read the end token, which cutting a text leaves at its end, and look at no later token: the
    first `length` rows of the position embedding stay, and a text of no more tokens is embedded as before.
    SigLIP reads its last position, whatever stands there, and fills texts up to it: the first `length - 1` rows stay,
    and the last one, which has learned to gather the text. What lay between is seen no more, so that all its texts are
    embedded a little differently.

    Args:
        model: CLIP, MetaCLIP 2 or SigLIP, or a text encoder of theirs; changed in place.
        tokenizer: the model's own; it is left as it is.
        length: tokens of the longest text, the tokenizer's marks among them. The model's own changes nothing.

    Raises:
        LearngeneError: if the length is above the model's positions, or too short for a text; nothing is changed then.
    """
    text_model, config = getattr(model, "text_model", model), text_config_of(model)
    positions, marks = config.max_position_embeddings, tokenizer.num_special_tokens_to_add()
    least = max(2, marks + 1)
    if isinstance(length, bool) or not isinstance(length, int) or not least <= length <= positions:
        raise LearngeneError(
            f"max_text_length is {length!r}: it takes {least} ({marks} tokens of each text are marks) up to "
            f"{positions}, the positions of the text encoder"
        )
    rows = [*range(length - 1), positions - 1 if pads_to_one_length(config) else length - 1]
    embeddings: Any = text_model.embeddings
    table = embeddings.position_embedding.weight
    kept = table.detach()[torch.tensor(rows, device=table.device)]
    embeddings.position_embedding = nn.Embedding.from_pretrained(kept, freeze=not table.requires_grad)
    embeddings.position_ids = embeddings.position_ids[:, :length].clone()
    for held in (config, text_model.config):  # mostly one object
        held.max_position_embeddings = length
    return _limited(tokenizer, length)


def _limited(tokenizer: Any, length: int) -> Any:
    """Return a copy of a tokenizer that cuts, and fills up, to no more than a length."""
    limited = copy.deepcopy(tokenizer)
    limited.model_max_length = min(limited.model_max_length, length)
    limited.init_kwargs.pop("max_length", None)  # of a tokenizer that was saved with another
    backend = getattr(limited, "backend_tokenizer", None)
    if backend is not None:  # what such a tokenizer has of its own, in tokenizer.json
        backend.no_truncation()
        backend.no_padding()
    return limited

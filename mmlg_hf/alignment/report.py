"""How much of an aligned pair trains: counts, and the table of them."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

_PARTS = {
    "image encoder": ("vision_model.",),
    "text encoder": ("text_model.",),
    "projections and temperature": ("visual_projection.", "text_projection.", "logit_scale"),
    "all": ("",),
}


def count_trainable(model: "nn.Module") -> dict[str, tuple[int, int]]:
    """Count (trainable, all) parameters of each encoder, of the projections with the temperature, and of the whole.

    A LayerNorm that peft's LayerNorm tuning keeps twice, as original and as trained copy, is counted once.
    """
    parameters = dict(model.named_parameters())
    originals = {
        name
        for name in parameters
        if ".base_layer." in name and name.replace(".base_layer.", ".ln_tuning_layers.default.") in parameters
    }
    counts = {}
    for part, prefixes in _PARTS.items():
        own = [value for name, value in parameters.items() if name.startswith(prefixes) and name not in originals]
        counts[part] = (
            sum(value.numel() for value in own if value.requires_grad),
            sum(value.numel() for value in own),
        )
    return counts


def trainable_table(model: Any) -> Any:
    """Return a rich table of `count_trainable`."""
    from rich.table import Table

    table = Table(title=f"recipe {model.config.recipe}")
    table.add_column("part")
    for title in ("trainable", "parameters", "per cent"):
        table.add_column(title, justify="right")
    for part, (trainable, total) in count_trainable(model).items():
        table.add_row(
            part,
            f"{trainable:,}",
            f"{total:,}",
            f"{100 * trainable / max(total, 1):.2f}",
            end_section=part.startswith("projections"),
        )
    return table

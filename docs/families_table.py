"""Work out what a gene of each public configuration weighs, and write the table of `docs/families.md`.

    python docs/families_table.py

Nothing is fetched and no weight is computed: the configurations are below, and all models lie on the meta device.
"""

from pathlib import Path
from typing import Any

import torch
from transformers import Dinov2Config, Dinov2Model

from mmlg_hf import ExtractionArguments
from mmlg_hf.extraction.extracting import config_of_gene
from mmlg_hf.extraction.vit import stock_vit
from mmlg_hf.families import FAMILIES
from mmlg_hf.inspection import learngene_parameters

PAGE = Path(__file__).with_name("families.md")
START, END = "<!-- table: python docs/families_table.py -->", "<!-- end of the table -->"


def encoder(width: int, depth: int, heads: int, mlp: int | None = None, **more: Any) -> dict[str, Any]:
    """The sizes of an encoder, with an MLP of four times the width unless another is given."""
    sizes = {"hidden_size": width, "num_hidden_layers": depth, "num_attention_heads": heads}
    return {**sizes, "intermediate_size": mlp or 4 * width, **more}


def clip(vision: dict[str, Any], text: dict[str, Any], projection_dim: int, vocab_size: int = 49408) -> dict[str, Any]:
    """The fields of a CLIP's or a MetaCLIP 2's config."""
    text = {"vocab_size": vocab_size, "max_position_embeddings": 77, **text}
    sides = {"vision_config": vision, "text_config": text}
    return {name: {**side, "projection_dim": projection_dim} for name, side in sides.items()} | {
        "projection_dim": projection_dim
    }


def siglip(vision: dict[str, Any], text: dict[str, Any], vocab_size: int) -> dict[str, Any]:
    """The fields of a SigLIP's config."""
    marks = {"bos_token_id": 1, "eos_token_id": 1}
    return {
        "vision_config": vision,
        "text_config": {"vocab_size": vocab_size, "max_position_embeddings": 64, **marks, **text},
    }


def dinov2(width: int, heads: int) -> dict[str, Any]:
    """The fields of a DINOv2's config."""
    sizes = {"hidden_size": width, "num_hidden_layers": 12, "num_attention_heads": heads, "mlp_ratio": 4}
    return sizes | {"image_size": 518, "patch_size": 14}


DEFAULTS = ExtractionArguments("gene")  # a name alone: nothing is written
XLM_V = 901_629  # tokens
DINOV2_PIXELS = 224  # a side of the pictures that its processor makes, at which its gene has its positions
CONFIGURATIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "OpenAI ViT-B/32": ("clip", clip(encoder(768, 12, 12, patch_size=32), encoder(512, 12, 8), 512)),
    "OpenAI ViT-L/14": ("clip", clip(encoder(1024, 24, 16, patch_size=14), encoder(768, 12, 12), 768)),
    "LAION ViT-B/32": (
        "clip",
        clip(encoder(768, 12, 12, patch_size=32, hidden_act="gelu"), encoder(512, 12, 8, hidden_act="gelu"), 512),
    ),
    "LAION ViT-H/14": (
        "clip",
        clip(encoder(1280, 32, 16, patch_size=14, hidden_act="gelu"), encoder(1024, 24, 16, hidden_act="gelu"), 1024),
    ),
    "TinyCLIP 8M+3M": ("clip", clip(encoder(256, 10, 4, patch_size=16), encoder(256, 3, 4), 512)),
    "MetaCLIP 2 S/16": (
        "metaclip_2",
        clip(encoder(384, 12, 6, patch_size=16), encoder(384, 12, 6, eos_token_id=2), 384, XLM_V),
    ),
    "MetaCLIP 2 B/32": (
        "metaclip_2",
        clip(encoder(768, 12, 12, patch_size=32), encoder(512, 12, 8, eos_token_id=2), 512, XLM_V),
    ),
    "SigLIP B/16": ("siglip", siglip(encoder(768, 12, 12, patch_size=16), encoder(768, 12, 12), 32_000)),
    "SigLIP so400m/14": (
        "siglip",
        siglip(encoder(1152, 27, 16, 4304, patch_size=14), encoder(1152, 27, 16, 4304), 32_000),
    ),
    "SigLIP 2 B/16": ("siglip", siglip(encoder(768, 12, 12, patch_size=16), encoder(768, 12, 12), 256_000)),
    "DINOv2 S/14": ("vit", dinov2(384, 6)),
    "DINOv2 B/14": ("vit", dinov2(768, 12)),
}


def build(name: str) -> tuple[Any, Any]:
    """The ancestor of a configuration and the config of the gene that extraction makes of it by default."""
    family, fields = CONFIGURATIONS[name]
    if family == "vit":
        with torch.device("meta"):
            dinov2_model = Dinov2Model(Dinov2Config(**fields))
            vit = stock_vit(dinov2_model, DINOV2_PIXELS)
        return dinov2_model, config_of_gene(vit, DEFAULTS)
    with torch.device("meta"):
        ancestor = FAMILIES[family].whole_class(FAMILIES[family].config_class(**fields))
    return ancestor, config_of_gene(ancestor, DEFAULTS)


def half(config: Any) -> Any:
    """The stock config of a descendant of half the gene's depth and half its width."""
    sides = config.encoder_configs.values()
    heads = [side.hidden_size // side.num_attention_heads for side in sides]
    widths = tuple(head * max(side.num_attention_heads // 2, 1) for head, side in zip(heads, sides, strict=True))
    depths = tuple(max(side.num_hidden_layers // 2, 1) for side in sides)
    if len(widths) == 1:
        return config.descendant_config(*depths, *widths, "image")
    return config.descendant_config(depths, widths)


def row(name: str) -> list[str]:
    """The cells of one configuration."""
    ancestor, config = build(name)
    with torch.device("meta"):
        smaller = config.kin.whole_class(half(config))
    whole, gene = ancestor.num_parameters(), learngene_parameters(config)
    tokens = config.text_config.vocab_size * config.token_embedding_rank if config.text_config else 0
    return [
        name,
        type(ancestor).__name__,
        f"{whole / 1e6:.1f}",
        f"{gene / 1e6:.1f}",
        f"{gene / whole:.0%}",
        f"{tokens / gene:.0%}" if tokens else "",
        f"{4 * gene / 1e6:.0f}",
        f"{4 * smaller.num_parameters() / 1e6:.0f}",
    ]


def table() -> str:
    """The table in Markdown."""
    head = [
        "configuration", "class", "ancestor, M", "gene, M", "share", "tokens in it", "gene, MB", "half of it, MB",
    ]  # fmt: skip
    rows = [head, ["---"] * 2 + ["---:"] * (len(head) - 2), *map(row, CONFIGURATIONS)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)


def rendered(page: str) -> str:
    """The page with its table worked out anew."""
    before, rest = page.split(START)
    return f"{before}{START}\n\n{table()}\n\n{END}{rest.split(END)[1]}"


if __name__ == "__main__":
    PAGE.write_text(rendered(PAGE.read_text(encoding="utf-8")), encoding="utf-8")

"""Model cards of genes and of what grows from them: the config and measured results, through the card templates."""

import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from ..errors import LearngeneError
from ..families import FAMILIES, Family
from ..saving import weight_files
from .results import (
    PLOT_FILE,
    RESULTS_FILE,
    eval_results,
    figure_names,
    plot_results,
    plotted_figures,
    read_results,
    results_table,
    seeds_sentence,
)

if TYPE_CHECKING:
    from huggingface_hub import ModelCard
    from transformers import PreTrainedModel

KINDS = ("ancestor", "gene", "descendant", "fine-tuned", "mixture", "aligned-pair")
# How a gene's blocks become layer l of L.
MIXING_WORDS = {
    "shared-slope": "each encoder's own block plus l/L times the shared one",
    "linear": "coefficients 1 and l/L",
    "chebyshev": "Chebyshev polynomials of l/L for coefficients",
    "learned": "learned coefficients, interpolated over l/L",
}
# The Hub shows and runs a model by this tag; a gene has none, since no stock pipeline takes it.
PIPELINE_TAGS = {
    "CLIPModel": "zero-shot-image-classification",
    "CLIPForImageClassification": "image-classification",
    "CLIPVisionModelWithProjection": "image-feature-extraction",
    "CLIPTextModelWithProjection": "feature-extraction",
    "CLIPTextForSequenceClassification": "text-classification",
    "MetaClip2Model": "zero-shot-image-classification",
    "MetaClip2ForImageClassification": "image-classification",
    "MetaClip2VisionModelWithProjection": "image-feature-extraction",
    "MetaClip2TextModelWithProjection": "feature-extraction",
    "SiglipModel": "zero-shot-image-classification",
    "SiglipForImageClassification": "image-classification",
    "SiglipVisionModel": "image-feature-extraction",
    "SiglipTextModel": "feature-extraction",
    "ViTModel": "image-feature-extraction",
    "ViTForImageClassification": "image-classification",
}
# Descendants that transformers has no class for.
SAVED_WITH_CODE = ("CLIPTextForSequenceClassification",)
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def create_model_card(
    model_or_folder: "PreTrainedModel | str | os.PathLike",
    results: Mapping[str, Any] | str | os.PathLike | None = None,
    *,
    repo_id: str | None = None,
    kind: str | None = None,
    row: str | None = None,
    license: str | None = None,
    data_license: str | None = None,
    language: str = "en",
    base_model: str | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> "ModelCard":
    """Write the card of a gene, of a descendant or of what was trained from one.

    Args:
        model_or_folder: the model, or the folder it was saved to.
        results: measured results, or the JSON file with them, as `mmlg_hf.cards.results.read_results` describes; None
            leaves the table and the plot out.
        repo_id: the Hub id the card's snippets load; None takes the folder, or the name the model was loaded by.
        kind: one of `KINDS`; None reads it off the config, which that of an ancestor does not tell.
        row: the name of this model's row in the results, whose figures' names become the card's `metrics`; None takes
            all of them.
        license: the licence of the weights, a Hub identifier; None leaves it out, which `upload lint` refuses.
        data_license: the licence of the data, in words.
        language: ISO 639 code of the texts the model was trained on.
        base_model: Hub id of what the model was made from; None reads it off the config.
        metadata: further metadata, such as `license_name` and `license_link` where the licence is "other".

    Returns:
        a `huggingface_hub.ModelCard`; `save` writes it, and `save_model_card` writes it with the files it shows.

    Raises:
        LearngeneError: the folder holds no model, the kind is unknown, or the results are malformed.
    """
    config, parameters = _read_model(model_or_folder)
    kind = kind or _kind_of(config)
    if kind not in KINDS:
        raise LearngeneError(f"kind is {kind!r}: it takes one of {', '.join(map(repr, KINDS))}")
    measured = None if results is None else read_results(results)
    repo_id = repo_id or _own_name(model_or_folder, config)
    base_model = base_model or _base_model(config, kind)
    facts = {
        **_architecture(config),
        "repo_id": repo_id,
        "title": repo_id.rstrip("/").rsplit("/", 1)[-1],
        "parameters": f"{parameters / 1e6:.2f} million",
        "facts": _made_of(config),
        "results": measured,
        "table": results_table(measured) if measured else None,
        "seeds": seeds_sentence(measured) if measured else None,
        "plot": PLOT_FILE if measured and plotted_figures(measured) else None,
        "license": license,
        "data_license": data_license or (measured or {}).get("dataset", {}).get("license"),
    }
    header = {
        "license": license,
        "language": language,
        "library_name": "transformers",
        "pipeline_tag": facts["pipeline_tag"],
        "base_model": base_model,
        "base_model_relation": "finetune" if base_model else None,
        "datasets": [measured["dataset"]["id"]] if measured and HUB_ID.fullmatch(measured["dataset"]["id"]) else None,
        "metrics": _metrics(measured, row) or None,
        "tags": ["vit" if _family(config).image_only else "clip", "learngene", "mmlg_hf", kind],
        **(metadata or {}),
    }
    return _to_card({key: value for key, value in header.items() if value is not None}, _render(kind, facts))


def save_model_card(
    folder: str | os.PathLike, results: Mapping[str, Any] | str | os.PathLike | None = None, **settings: Any
) -> "ModelCard":
    """Write the card of the model in `folder` there, with the results, their plot and the Hub's result entries.

    Args:
        folder: where the model was saved; gets README.md and, with results, results.json, results.png and
            .eval_results/*.yaml.
        results, settings: as for `create_model_card`; the entries are those of `row`, without which none are written.
    """
    card = create_model_card(folder, results, **settings)
    folder = Path(folder)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".card-") as temporary:
        ready = Path(temporary)
        (ready / "README.md").write_text(str(card), encoding="utf-8")
        if results is not None:
            measured = read_results(results)
            (ready / RESULTS_FILE).write_text(json.dumps(measured, indent=2) + "\n", encoding="utf-8")
            if plotted_figures(measured):
                plot_results(measured, ready / PLOT_FILE)
            entries = eval_results(measured, settings["row"]) if settings.get("row") else []
            if entries and HUB_ID.fullmatch(measured["dataset"]["id"]):
                (ready / ".eval_results").mkdir()
                entries_file = ready / ".eval_results" / (measured["dataset"]["id"].replace("/", "--") + ".yaml")
                entries_file.write_text(yaml.safe_dump(entries, sort_keys=False), encoding="utf-8")
        shutil.rmtree(folder / ".eval_results", ignore_errors=True)
        for path in ready.iterdir():
            os.replace(path, folder / path.name)
    return card


def _read_model(model_or_folder: Any) -> tuple[dict[str, Any], int]:
    """The config as a dictionary and the number of parameters, without loading weights from a folder."""
    if hasattr(model_or_folder, "config"):
        model = model_or_folder
        own = {"_name_or_path": model.config.name_or_path, "architectures": [type(model).__name__]}
        return {**model.config.to_dict(), **own}, model.num_parameters()
    folder = Path(model_or_folder)
    if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
        raise LearngeneError(f"{folder} holds no model: it needs a config.json and weights in safetensors files")
    return json.loads((folder / "config.json").read_text(encoding="utf-8")), stored_parameters(folder)


def stored_parameters(folder: str | os.PathLike) -> int:
    """The number of parameters of a folder's model, read off the headers of the files that it loads from."""
    from safetensors import safe_open

    parameters = 0
    for path in weight_files(folder) or sorted(Path(folder).glob("*.safetensors")):
        with safe_open(path, framework="np") as tensors:
            parameters += sum(math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118
    return parameters


def _kind_of(config: Mapping[str, Any]) -> str:
    if config.get("model_type") == "learngene":
        return "gene"
    if config.get("model_type") == "mmlg-dual-encoder":
        return "aligned-pair"
    if config.get("model_type") == "clip_moe":
        return "mixture"
    if _provenance(config):
        return "descendant"
    raise LearngeneError(
        f"Nothing in the config of this {config.get('model_type')!r} model says what kind of artifact it is: "
        f"pass kind, one of {', '.join(map(repr, KINDS))}"
    )


def _provenance(config: Mapping[str, Any]) -> dict[str, Any]:
    """What `from_learngene` wrote on a descendant's config, the gene's name as `id`; empty for other models."""
    written = config.get("learngene") or {}
    return {"id" if key == "learngene" else key: value for key, value in written.items()}


def _own_name(model_or_folder: Any, config: Mapping[str, Any]) -> str:
    return str(config.get("_name_or_path") or "model") if hasattr(model_or_folder, "config") else str(model_or_folder)


def _base_model(config: Mapping[str, Any], kind: str) -> str | None:
    source = config.get("ancestor") if config.get("model_type") == "learngene" else _provenance(config)
    name = str((source or {}).get("id") or "")
    return name if HUB_ID.fullmatch(name) and not os.path.isdir(name) else None


def _architecture(config: Mapping[str, Any]) -> dict[str, Any]:
    """What the templates say about depth, width, blocks and class."""
    encoders = [config[name] for name in ("vision_config", "text_config") if config.get(name)] or [config]
    widths = [encoder.get("hidden_size", 0) for encoder in encoders]
    depths = [encoder.get("num_hidden_layers", 0) for encoder in encoders]
    heads = max(encoders[0].get("num_attention_heads", 1), 1)
    model_class = (config.get("architectures") or ["model"])[0]
    provenance = _provenance(config)
    ancestor = config.get("ancestor") or {}
    head_size = widths[0] // heads
    multimodal, unimodal = config.get("num_multimodal_blocks", 0), config.get("num_unimodal_blocks", 0)
    image_only = config.get("model_type") == "learngene" and not config.get("text_config")
    family, classifies = _family(config), model_class.endswith("Classification")
    return {
        "model_class": model_class,
        "pipeline_tag": PIPELINE_TAGS.get(model_class),
        "drops_projection": model_class.endswith("WithProjection"),
        "new_head": classifies,
        "custom_code": bool(config.get("auto_map")) or model_class in SAVED_WITH_CODE,
        "image_only": image_only,
        "auto_class": "AutoModelForImageClassification" if classifies else "AutoModel",
        "grown_class": family.descendants["image", True] if classifies else family.whole_class.__name__,
        "size": f"depth {_pair(depths)} and width {_pair(widths)}",
        "widths": _pair(widths),
        "head_size": head_size,
        "example_depth": max(1, depths[0] // 2),
        "example_width": head_size * max(1, heads // 2),
        "blocks": f"{multimodal} shared by both encoders and {unimodal} of each encoder's own" if multimodal else
        f"{unimodal} of each encoder",
        "token_rank": config.get("token_embedding_rank"),
        "mixing": MIXING_WORDS.get(str(config.get("mixing"))),
        "weight_scales": config.get("weight_scales"),
        "experts": _experts(encoders[0]),
        "ancestor": f"`{ancestor['id']}`" if ancestor.get("id") else f"a `{ancestor.get('class', 'CLIPModel')}`",
        "gene": f"`{provenance['id']}`" if provenance.get("id") else "it was made from",
    }  # fmt: skip


def _family(config: Mapping[str, Any]) -> Family:
    """The family of a model; of one that is of none, CLIP."""
    return FAMILIES.get(str(config.get("family") or config.get("model_type")), FAMILIES["clip"])


def _experts(encoder: Mapping[str, Any]) -> str | None:
    """What a mixture's template says about routing; None for a dense model."""
    if not encoder.get("num_experts"):
        return None
    return f"{encoder.get('num_experts_per_tok')} of {encoder['num_experts']} experts process each token"


def _pair(values: list[int]) -> str:
    return str(values[0]) if len(set(values)) == 1 else f"{values[0]} (image) and {values[1]} (text)"


def _made_of(config: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Rows of the table "How it was made": where the model comes from and how, as far as its config says."""
    if config.get("model_type") == "learngene":
        sources = {"ancestor": config.get("ancestor"), **(config.get("recipe") or {})}
    elif config.get("model_type") == "mmlg-dual-encoder":
        sources = {name: config.get(name) for name in ("recipe", "vision_pooling", "text_pooling")}
        sources |= {f"{name} encoder": config.get(f"{name}_base") for name in ("vision", "text")}
    else:
        recipe = config.get("recipe")
        sources = {"gene": _provenance(config), **(recipe if isinstance(recipe, Mapping) else {})}
    return [(name.replace("_", " ").capitalize(), _in_words(value)) for name, value in sources.items() if value]


def _in_words(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(
            f"{key.replace('_', ' ')} {_in_words(item)}" for key, item in value.items() if item is not None
        )
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_in_words, value))
    return f"{value:g}" if isinstance(value, float) else str(value).replace("|", "\\|").replace("\n", " ")


def _metrics(results: Mapping[str, Any] | None, row: str | None) -> list[str]:
    if results is None:
        return []
    rows = [entry for entry in results["models"] if row in (None, entry["name"])]
    return figure_names({**results, "models": rows})


def _render(kind: str, facts: Mapping[str, Any]) -> str:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("mmlg_hf.cards", "templates"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
    text = environment.get_template(kind.replace("-", "_") + ".md.j2").render(facts)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def _to_card(header: Mapping[str, Any], text: str) -> "ModelCard":
    from huggingface_hub import ModelCard

    front_matter = yaml.safe_dump(dict(header), sort_keys=False, allow_unicode=True)
    return ModelCard(f"---\n{front_matter}---\n\n{text}", ignore_metadata_errors=False)

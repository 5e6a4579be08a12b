"""A pico zoo: a gene, two descendants, measured-looking results and a manifest, built on the spot."""

from __future__ import annotations

import json
from pathlib import Path

import torch
import yaml
from pico import pico_clip, pico_processor

from mmlg_hf import LearngeneConfig, LearngeneModel

RESULTS = {
    "dataset": {"id": "demo/squares", "split": "test", "license": "CC0-1.0"},
    "date": "2026-01-01",
    "models": [
        {
            "name": "gene",
            "role": "gene",
            "parameters": 40_000,
            "megabytes": 0.2,
            "figures": {
                "top1": {"mean": 0.4125, "std": 0.011, "seeds": 3},
                "image_to_text_R@1": 0.2,
            },
        },
        {
            "name": "depth 1, width 16",
            "role": "descendant",
            "parameters": 20_000,
            "megabytes": 0.1,
            "figures": {"top1": 0.3125, "image_to_text_R@1": 0.1},
        },
    ],
}


def save_pico_gene(folder: Path, *, seed: int = 0, **sizes: int) -> LearngeneModel:
    """Save a gene whose every weight is random, so that none can pass for an initial one, with its processor."""
    parts = pico_clip(**{"vision_width": 32, "text_width": 16, **sizes}).config
    config = LearngeneConfig(
        vision_config=parts.vision_config.to_dict(),
        # Room for the stock pipeline's prompt, whose words the pico tokenizer spells out.
        text_config=parts.text_config.to_dict() | {"max_position_embeddings": 48},
        projection_dim=16,
        ancestor={"id": "runs/ancestor", "parameters": 100_000},
        recipe={"data": "squares", "steps": 10, "seconds": 1.5},
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        gene = LearngeneModel(config).eval()
        with torch.no_grad():
            for parameter in gene.parameters():
                parameter.add_(0.02 * torch.randn_like(parameter))
    gene.save_pretrained(folder)
    pico_processor().save_pretrained(folder)
    return gene


def write_zoo(folder: Path, **changes) -> Path:
    """Write gene, results and manifest to `folder`; `changes` replace keys of the manifest. Returns the manifest."""
    save_pico_gene(folder / "gene")
    (folder / "results.json").write_text(json.dumps(RESULTS))
    common = {"license": "apache-2.0", "data_license": "CC0-1.0", "results": "results.json"}
    small = {"gene": "pico-gene", "depth": 1, "width": 16}
    artifacts = [
        {"name": "pico-gene", "kind": "gene", "source": "gene", "row": "gene", **common},
        {"name": "pico-clip", "kind": "descendant", "source": small, "row": "depth 1, width 16", **common},
        {
            "name": "pico-classifier",
            "kind": "descendant",
            "source": {**small, "modality": "image", "num_labels": 3},
            **common,
        },
    ]
    manifest = {"version": "1.0.0", "namespace": "demo", "artifacts": artifacts, **changes}
    path = folder / "zoo.yaml"
    path.write_text(yaml.safe_dump(manifest, sort_keys=False))
    return path

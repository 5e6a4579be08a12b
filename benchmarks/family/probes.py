"""What image encoders know of pictures unlike their own, layer by layer: linear probes of their states.

Extraction imitates the embeddings of photos that the study has. What these do not need may be gone before the last
layer, or there to the end and only not embedded: probes of the patches' mean and of the class token tell which.
"""

from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor
from transformers import CLIPModel

from benchmarks.common.training import Rows
from benchmarks.family.classifiers import Task

STRENGTHS = (0.001, 0.01, 0.1, 1.0)  # C of the regression, the best on validation pictures
STATES = ("patches", "class token")
BATCH = 256


@torch.no_grad()
def layer_states(model: CLIPModel, pictures: Rows) -> dict[str, Tensor]:
    """The mean of the patches and the class token, each [layers + 1, N, D]: of the embeddings and after each layer."""
    found: dict[str, list[Tensor]] = {name: [] for name in STATES}
    for at in range(0, len(pictures), BATCH):
        rows = range(at, min(at + BATCH, len(pictures)))
        pixels = torch.stack([pictures[row]["pixel_values"] for row in rows])
        outputs = model.vision_model(pixel_values=pixels.to(model.device), output_hidden_states=True)
        states = torch.stack(outputs.hidden_states).cpu()  # [layers + 1, B, 1 + patches, D]
        found["patches"].append(states[:, :, 1:].mean(2))
        found["class token"].append(states[:, :, 0])
    return {name: torch.cat(parts, dim=1) for name, parts in found.items()}


def probe(states: dict[str, Tensor], labels: dict[str, Any]) -> float:
    """Test accuracy of a logistic regression on one layer's states, by split; its strength is chosen on validation."""
    probes = []
    for strength in STRENGTHS:
        regression = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=300))
        regression.fit(states["train"].numpy(), labels["train"])
        probes.append((regression.score(states["validation"].numpy(), labels["validation"]), regression))
    best = max(probes, key=lambda tried: tried[0])[1]
    return float(best.score(states["test"].numpy(), labels["test"]))


def probe_layers(model: CLIPModel, task: Task) -> dict[str, list[float]]:
    """By state, accuracies after the embeddings and after each layer."""
    states = {split: layer_states(model.eval(), pictures) for split, pictures in task.splits.items()}
    labels = {split: np.asarray(pictures.columns["labels"]) for split, pictures in task.splits.items()}
    depth = model.config.vision_config.num_hidden_layers
    return {
        name: [probe({split: states[split][name][layer] for split in states}, labels) for layer in range(depth + 1)]
        for name in STATES
    }

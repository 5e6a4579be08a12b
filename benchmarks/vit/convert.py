"""A DINOv2 out of an ONNX file that an export left its parameter names in."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import Dinov2Config, Dinov2Model

# transformers 4's names of a layer's linear maps, which the exports have, and its own today.
_RENAMED = {
    "attention.attention.query": "attention.q_proj",
    "attention.attention.key": "attention.k_proj",
    "attention.attention.value": "attention.v_proj",
    "attention.output.dense": "attention.o_proj",
}
_LINEAR = re.compile(r".*encoder/layer\.(\d+)/(.+)/MatMul$")


def dinov2_of_onnx(path: str | Path, head_size: int = 64) -> Dinov2Model:
    """Read a Dinov2Model off an ONNX file.

    An export keeps the names of parameters, but for matrices of linear maps, which it transposes and names by number:
    the node that multiplies by one tells which it is. The positions of the class token and of the patches are two
    numbered tensors.

    Args:
        head_size: channels of an attention head, which no tensor tells: 64 in all public DINOv2.
    """
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(str(path)).graph
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    own = {name.partition("backbone.")[2]: value for name, value in tensors.items() if name.startswith("backbone.")}
    for node in graph.node:
        found = _LINEAR.match(node.name)
        if node.op_type == "MatMul" and found and node.input[1] in tensors:
            name = f"encoder.layer.{found[1]}.{found[2].replace('/', '.')}.weight"
            own[name] = tensors[node.input[1]].T
    positions = [value for name, value in tensors.items() if name.startswith(("onnx::Concat", "onnx::Reshape"))]
    of_class, of_patches = sorted((p for p in positions if p.ndim == 3), key=lambda position: position.shape[1])
    own["embeddings.position_embeddings"] = np.concatenate([of_class, of_patches], axis=1)
    return _model({_renamed(name): torch.tensor(value) for name, value in own.items()}, head_size)


def as_folder(ancestor: str, folder: Path) -> str:
    """The place of a model, after one out of an ONNX file was saved in `folder`, once."""
    if not ancestor.endswith(".onnx"):
        return ancestor
    if not (folder / "config.json").exists():
        dinov2_of_onnx(ancestor).save_pretrained(folder)
    return str(folder)


def _renamed(name: str) -> str:
    for old, new in _RENAMED.items():
        name = name.replace(f".{old}.", f".{new}.")
    return name


def _model(state: dict[str, Any], head_size: int) -> Dinov2Model:
    projection = state["embeddings.patch_embeddings.projection.weight"]
    width, patch = projection.shape[0], projection.shape[-1]
    config = Dinov2Config(
        hidden_size=width,
        num_hidden_layers=1 + max(int(name.split(".")[2]) for name in state if name.startswith("encoder.layer.")),
        num_attention_heads=width // head_size,
        mlp_ratio=state["encoder.layer.0.mlp.fc1.bias"].shape[0] // width,
        patch_size=patch,
        image_size=patch * round((state["embeddings.position_embeddings"].shape[1] - 1) ** 0.5),
        use_mask_token=False,
    )
    model = Dinov2Model(config)
    model.load_state_dict(state)
    return model.eval()

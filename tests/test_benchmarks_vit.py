"""The study of a real ViT: its ancestor out of an ONNX file, and slices of an ancestor as a gene of its own layers."""

import pytest
import torch
from pico_families import make_hostile
from transformers import Dinov2Config, Dinov2Model, ViTConfig, ViTModel

from benchmarks.vit.__main__ import slices_of
from benchmarks.vit.convert import dinov2_of_onnx
from mmlg_hf.extraction.ancestors import load_ancestor
from mmlg_hf.extraction.vit import stock_vit

onnx = pytest.importorskip("onnx")
helper, numpy_helper = onnx.helper, pytest.importorskip("onnx.numpy_helper")

OLD = {
    "attention.q_proj": "attention.attention.query",
    "attention.k_proj": "attention.attention.key",
    "attention.v_proj": "attention.attention.value",
    "attention.o_proj": "attention.output.dense",
}


def exported(model, path):
    """Write a DINOv2 as exports do: matrices transposed and numbered, told by the nodes that multiply by them."""
    tensors, nodes = {}, []
    for name, tensor in model.state_dict().items():
        part, _, kind = name.rpartition(".")
        for new, old in OLD.items():
            part = part.replace(new, old)
        if name == "embeddings.position_embeddings":
            tensors |= {"onnx::Concat_1": tensor[:, :1], "onnx::Reshape_2": tensor[:, 1:]}
        elif kind == "weight" and tensor.dim() == 2:
            number = f"onnx::MatMul_{len(nodes) + 10}"
            tensors[number] = tensor.T.contiguous()
            place = "/backbone/" + part.replace("encoder.layer.", "encoder/layer.", 1).replace(".", "/").replace(
                "layer/", "layer.", 1
            )
            nodes.append(helper.make_node("MatMul", ["x", number], [f"y{len(nodes)}"], name=f"{place}/MatMul"))
        else:
            tensors["backbone." + (f"{part}." if part else "") + kind] = tensor
    constants = [numpy_helper.from_array(tensor.numpy(), name) for name, tensor in tensors.items()]
    output = helper.make_tensor_value_info("y0", onnx.TensorProto.FLOAT, None)
    onnx.save(helper.make_model(helper.make_graph(nodes, "export", [], [output], constants)), path)


def test_a_dinov2_is_read_off_its_export(tmp_path):
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 21, "patch_size": 7}
    torch.manual_seed(0)
    model = make_hostile(Dinov2Model(Dinov2Config(**sizes, mlp_ratio=3, use_mask_token=False)))
    exported(model, str(tmp_path / "model.onnx"))
    read = dinov2_of_onnx(tmp_path / "model.onnx", head_size=8)
    assert type(read) is Dinov2Model
    assert read.config.image_size == 21
    pixels = torch.randn(2, 3, 21, 21)
    with torch.no_grad():
        torch.testing.assert_close(read(pixels).last_hidden_state, model(pixels).last_hidden_state)


@pytest.mark.parametrize("turned", [False, True])
def test_slices_are_every_second_layer_and_all_of_them_the_ancestor(turned):
    sizes = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 64}
    torch.manual_seed(0)
    ancestor = make_hostile(ViTModel(ViTConfig(**sizes, image_size=16, patch_size=8)))
    pixels = torch.randn(3, 3, 16, 16)
    gene = slices_of(stock_vit(load_ancestor(ancestor)), torch.randn(20, 3, 16, 16) if turned else None)
    with torch.no_grad():
        own, theirs = gene.descendant()(pixels).pooler_output, ancestor(pixels).last_hidden_state[:, 0]
    torch.testing.assert_close(own, theirs, rtol=0, atol=1e-4)
    whole, half = gene.descendant(), gene.descendant(2, 16)
    for layer in range(2):
        own, theirs = (model.layers[number].mlp.fc1.weight for model, number in ((half, layer), (whole, 2 * layer)))
        assert torch.equal(own, theirs[:32, :16])

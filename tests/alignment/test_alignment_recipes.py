"""What each recipe trains: the paper's shares, the right parameters, and clear refusals."""

import peft
import pytest
import torch
from pico_encoders import make_encoder
from transformers import BertConfig, BertModel, DeiTConfig, DeiTModel, ViTConfig, ViTModel

from mmlg_hf.alignment import RECIPES, align
from mmlg_hf.errors import LearngeneError

# LilT, arXiv 2303.11866, table 1; LoRA from the reproduction that tuned all attention maps at rank 32.
SHARES = {
    "projections": 0.20,
    "layernorm": 0.24,
    "bitfit": 0.31,
    "bitfit+layernorm": 0.33,
    "lora": 2.56,
    "adapters": 6.97,
    "lilt": 7.01,
    "lit": 56.01,
    "full": 100.0,
}
HEADS = ("visual_projection", "text_projection", "logit_scale")


def trained(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("vision", [(DeiTModel, DeiTConfig), (ViTModel, ViTConfig)])
@pytest.mark.parametrize(("recipe", "share"), SHARES.items())
def test_recipes_train_the_share_of_the_paper_at_base_and_base_shapes(vision, recipe, share):
    with torch.device("meta"):
        image_encoder = vision[0](vision[1](image_size=256))
        model = align(image_encoder, BertModel(BertConfig()), recipe, projection_dim=256)
    trainable, total = model.get_nb_trainable_parameters()
    assert round(100 * trainable / total, 2) == share


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_trains_both_projections_and_the_temperature(recipe):
    names = trained(align(make_encoder("vit"), make_encoder("bert"), recipe))
    assert {name.split(".")[0] for name in names} >= set(HEADS)


def test_what_each_recipe_trains_beside_the_projections_is_what_its_name_says():
    def encoder_names(recipe):
        model = align(make_encoder("vit"), make_encoder("bert"), recipe)
        return {name for name in trained(model) if not name.startswith(HEADS)}, model

    assert encoder_names("projections")[0] == set()
    lit, model = encoder_names("lit")
    assert lit == {name for name, _ in model.named_parameters() if name.startswith("text_model.")}
    bitfit, model = encoder_names("bitfit")
    assert bitfit == {
        name for name, _ in model.named_parameters() if name.endswith(".bias") and not name.startswith(HEADS)
    }
    lilt, _ = encoder_names("lilt")
    # Two layers, two adapters in each, four tensors in an adapter; 5 LayerNorms in each encoder, two tensors in each.
    assert sum(".layerwise_adapter_layers." in name for name in lilt) == 2 * 2 * 2 * 4
    assert len(lilt) == 2 * 2 * 2 * 4 + 2 * 5 * 2
    adapters, _ = encoder_names("adapters")
    assert adapters == {name for name in lilt if ".layerwise_adapter_layers." in name}
    both, _ = encoder_names("bitfit+layernorm")
    assert both == bitfit | {name for name, _ in model.named_parameters() if "norm" in name.lower()}


def test_lora_and_layer_norm_tuning_are_pefts_own():
    lora = align(make_encoder("vit"), make_encoder("bert"), "lora", lora_rank=3)
    layers = [module for module in lora.modules() if isinstance(module, peft.tuners.lora.LoraLayer)]
    assert len(layers) == 2 * 2 * 4
    assert {layer.r["default"] for layer in layers} == {3}
    assert {layer.scaling["default"] for layer in layers} == {1.0}
    tuned = align(make_encoder("vit"), make_encoder("bert"), "layernorm")
    assert sum(isinstance(module, peft.LNTuningModel.tuner_layer_cls) for module in tuned.modules()) == 2 * 5


def test_lora_ranks_follow_the_width_of_each_encoder():
    with torch.device("meta"):
        narrow = BertConfig(hidden_size=384, num_attention_heads=6, intermediate_size=512, num_hidden_layers=1)
        wide = ViTConfig(num_hidden_layers=1)
        model = align(ViTModel(wide), BertModel(narrow), "lora")
    ranks = {
        name.split(".")[0]: module.r["default"]
        for name, module in model.named_modules()
        if isinstance(module, peft.tuners.lora.LoraLayer)
    }
    assert ranks == {"vision_model": 32, "text_model": 16}


def test_a_new_pair_computes_the_same_under_every_recipe_that_starts_from_the_encoders():
    """All but the adapters, which start near the identity, start at it."""
    pixels = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    encoder = make_encoder("vit")
    expected = encoder(pixels).last_hidden_state
    for recipe in ("full", "lit", "projections", "layernorm", "bitfit", "lora", "lora+layernorm"):
        model = align(make_encoder("vit"), make_encoder("bert"), recipe).eval()
        torch.testing.assert_close(model.vision_model(pixels).last_hidden_state, expected)


@pytest.mark.parametrize(
    ("recipe", "told"),
    [
        (
            "litl",
            "there is no recipe 'litl': it takes one of full, lit, projections, layernorm, bitfit, adapters, lilt",
        ),
        ("", "there is no recipe ''"),
        ("lilt+full", "joins full with others"),
        ("adapters+lora", "a model takes one of the two"),
    ],
)
def test_an_unknown_or_impossible_recipe_is_refused_and_the_recipes_are_listed(recipe, told):
    with pytest.raises(LearngeneError) as error:
        align(make_encoder("vit"), make_encoder("bert"), recipe)
    assert told in str(error.value)


def test_the_printed_table_holds_counts_and_per_cent_of_each_part(capsys):
    model = align(make_encoder("vit"), make_encoder("bert"), "lit", projection_dim=8)
    model.print_trainable_parameters()
    rows = {
        line.split("│")[1].strip(): line.split("│")[2:5]
        for line in capsys.readouterr().out.splitlines()
        if "│" in line
    }
    text = sum(parameter.numel() for parameter in model.text_model.parameters())
    assert [cell.strip() for cell in rows["text encoder"]] == [f"{text:,}", f"{text:,}", "100.00"]
    assert rows["image encoder"][0].strip() == "0"
    # Two projections from 32 to 8 with bias, and the temperature.
    assert rows["projections and temperature"][1].strip() == str(2 * (32 * 8 + 8) + 1)
    trainable, total = model.get_nb_trainable_parameters()
    assert rows["all"][2].strip() == f"{100 * trainable / total:.2f}"

"""LearngeneConfig: what it holds, which descendants it describes, and what it refuses in which words."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pico_genes import gene_config
from transformers import CLIPConfig, CLIPTextConfig, CLIPVisionConfig

from mmlg_hf.configuration_learngene import MIXINGS, MODALITIES, LearngeneConfig
from mmlg_hf.errors import LearngeneError

B32_VISION = {"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072, "num_hidden_layers": 12}
B32_TEXT = {"hidden_size": 512, "num_attention_heads": 8, "intermediate_size": 2048, "num_hidden_layers": 12}


@pytest.fixture(scope="module")
def config():
    return LearngeneConfig(vision_config=B32_VISION, text_config=B32_TEXT)


@pytest.fixture(scope="module")
def image_config():
    return gene_config(image_only=True, num_multimodal_blocks=0, num_unimodal_blocks=2)


# --- what it holds ---------------------------------------------------------------------------------------------------


def test_encoders_are_stock_configs_with_the_joint_projection_size(config):
    assert type(config.vision_config) is CLIPVisionConfig
    assert type(config.text_config) is CLIPTextConfig
    assert config.vision_config.projection_dim == config.text_config.projection_dim == config.projection_dim == 512


def test_without_a_vision_config_the_image_encoder_is_clips_own_default():
    config = LearngeneConfig(text_config=B32_TEXT, num_multimodal_blocks=0)
    assert config.vision_config.to_dict() == CLIPVisionConfig().to_dict()


def test_config_objects_and_dictionaries_give_the_same_config():
    from_objects = LearngeneConfig(
        vision_config=CLIPVisionConfig(**B32_VISION), text_config=CLIPTextConfig(**B32_TEXT), projection_dim=64
    )
    from_dicts = LearngeneConfig(vision_config=B32_VISION, text_config=B32_TEXT, projection_dim=64)
    assert from_objects.to_dict() == from_dicts.to_dict()
    assert from_objects.vision_config.projection_dim == 64


def test_a_config_given_to_a_gene_is_not_changed_by_it():
    given = CLIPVisionConfig(**B32_VISION, projection_dim=512)
    LearngeneConfig(vision_config=given, text_config=B32_TEXT, projection_dim=64)
    assert given.projection_dim == 512


def test_the_widest_encoder_and_the_head_size_are_derived(config, image_config):
    assert config.widest is config.vision_config
    assert config.head_size == 64
    assert list(config.encoder_configs) == ["image", "text"]
    assert list(image_config.encoder_configs) == ["image"]
    assert gene_config(vision_width=16, text_width=32).widest.hidden_size == 32


def test_everything_survives_saving(tmp_path):
    config = gene_config(
        mixing="chebyshev",
        num_multimodal_blocks=3,
        num_unimodal_blocks=2,
        ancestor={"id": "someone/clip", "revision": "0" * 40, "class": "CLIPModel", "parameters": 123},
        recipe={"steps": 10, "losses": {"affinity": 1.0}, "seconds": 1.5},
        logit_scale_init_value=3.5,
    )
    config.save_pretrained(tmp_path)
    loaded = LearngeneConfig.from_pretrained(tmp_path)
    for field in (*LearngeneConfig.sub_configs, "projection_dim", "mixing", "ancestor", "recipe"):
        before, after = getattr(config, field), getattr(loaded, field)
        assert getattr(before, "to_dict", lambda b=before: b)() == getattr(after, "to_dict", lambda a=after: a)()
    assert (loaded.num_multimodal_blocks, loaded.num_unimodal_blocks) == (3, 2)
    assert loaded.logit_scale_init_value == 3.5


def test_an_image_gene_stays_one_when_saved(tmp_path, image_config):
    image_config.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["text_config"] is None
    assert LearngeneConfig.from_pretrained(tmp_path).text_config is None


# --- descendants -----------------------------------------------------------------------------------------------------


def test_by_default_a_descendant_has_the_genes_own_size(config):
    descendant = config.descendant_config()
    assert type(descendant) is CLIPConfig
    for name in ("hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers", "projection_dim"):
        for encoder in ("vision_config", "text_config"):
            assert getattr(getattr(descendant, encoder), name) == getattr(getattr(config, encoder), name)


@pytest.mark.parametrize(
    ("width", "vision", "text"),
    [
        (None, 768, 512),
        (768, 768, 512),
        (384, 384, 256),
        (192, 192, 128),
        (128, 128, 64),  # two thirds of 128 are 85.3, and the nearest multiple of 64 is 64
        (64, 64, 64),  # never less than one head
        ((384, 512), 384, 512),
        ((None, 64), 768, 64),
        ([64, None], 64, 512),
    ],
)
def test_one_width_sets_the_wider_encoder_and_a_pair_sets_both(config, width, vision, text):
    descendant = config.descendant_config(width=width)
    for encoder, expected in ((descendant.vision_config, vision), (descendant.text_config, text)):
        assert encoder.hidden_size == expected
        assert encoder.num_attention_heads == expected // 64
        assert encoder.intermediate_size == 4 * expected


@pytest.mark.parametrize(
    ("depth", "vision", "text"), [(None, 12, 12), (3, 3, 3), (20, 20, 20), ((2, 5), 2, 5), ((None, 5), 12, 5)]
)
def test_depth_is_one_number_or_a_pair_and_may_exceed_the_genes(config, depth, vision, text):
    descendant = config.descendant_config(depth=depth)
    assert descendant.vision_config.num_hidden_layers == vision
    assert descendant.text_config.num_hidden_layers == text


def test_one_modality_takes_the_width_as_its_own_and_leaves_the_other_side(config):
    text = config.descendant_config(depth=4, width=448, modality="text")
    assert (text.text_config.hidden_size, text.text_config.num_hidden_layers) == (448, 4)
    assert (text.vision_config.hidden_size, text.vision_config.num_hidden_layers) == (768, 12)
    image = config.descendant_config(depth=4, width=448, modality="image")
    assert (image.vision_config.hidden_size, image.vision_config.num_hidden_layers) == (448, 4)
    assert (image.text_config.hidden_size, image.text_config.num_hidden_layers) == (512, 12)


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_every_descendant_has_the_genes_head_size_and_mlp_ratio(data):
    head, ratio = data.draw(st.sampled_from([8, 16, 32])), data.draw(st.integers(1, 4))
    heads = [data.draw(st.integers(1, 8)) for _ in range(2)]
    vision, text = (
        {"hidden_size": n * head, "num_attention_heads": n, "intermediate_size": ratio * n * head} for n in heads
    )
    config = LearngeneConfig(vision_config=vision, text_config=text)
    width = head * data.draw(st.integers(1, max(heads)))
    descendant = config.descendant_config(data.draw(st.integers(1, 30)), width)
    for encoder, own in ((descendant.vision_config, heads[0]), (descendant.text_config, heads[1])):
        assert encoder.hidden_size == encoder.num_attention_heads * head
        assert encoder.intermediate_size == ratio * encoder.hidden_size
        assert head <= encoder.hidden_size <= own * head
    assert max(descendant.vision_config.hidden_size, descendant.text_config.hidden_size) == width


def test_other_fields_of_the_encoders_reach_the_descendant():
    config = LearngeneConfig(
        vision_config={**B32_VISION, "image_size": 384, "hidden_act": "gelu"},
        text_config={**B32_TEXT, "vocab_size": 99, "eos_token_id": 2, "hidden_act": "gelu"},
        logit_scale_init_value=4.0,
    )
    descendant = config.descendant_config(2, 256)
    assert descendant.vision_config.image_size == 384
    assert descendant.vision_config.hidden_act == descendant.text_config.hidden_act == "gelu"
    assert (descendant.text_config.vocab_size, descendant.text_config.eos_token_id) == (99, 2)
    assert descendant.logit_scale_init_value == 4.0


# --- what it refuses -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [0, -1, 2.5, "3", True, (2, 0), [1, 2, 3], (1,)])
def test_depth_is_refused_unless_it_is_a_positive_whole_number_or_a_pair(config, depth):
    with pytest.raises(LearngeneError, match=r"depth is .*(whole number of at least 1|one number or a)"):
        config.descendant_config(depth=depth)


@pytest.mark.parametrize("width", [0, -64, 64.0, "64", True, (64, 0), (64, 64, 64)])
def test_width_is_refused_unless_it_is_a_positive_whole_number_or_a_pair(config, width):
    with pytest.raises(LearngeneError, match=r"width is .*(whole number of at least 1|one number or a)"):
        config.descendant_config(width=width)


@pytest.mark.parametrize(
    ("width", "near"), [(100, "64 or 128"), (63, "64 or 128"), (767, "704 or 768"), ((64, 500), "448 or 512")]
)
def test_a_width_that_is_no_multiple_of_the_head_size_is_refused_with_the_nearest_that_are(config, width, near):
    with pytest.raises(LearngeneError, match=f"no multiple of the head size 64: take {near}"):
        config.descendant_config(width=width)


def test_one_width_is_refused_by_its_own_value_when_the_text_encoder_is_the_wider():
    config = gene_config(vision_width=16, text_width=32)
    with pytest.raises(LearngeneError, match="width 64 is above the text encoder's 32"):
        config.descendant_config(width=64)


@pytest.mark.parametrize(("width", "encoder"), [(1024, "image"), ((64, 576), "text"), ((1024, 64), "image")])
def test_a_width_above_the_genes_is_refused_saying_what_to_extract(config, width, encoder):
    too_wide = max(width) if isinstance(width, tuple) else width
    with pytest.raises(
        LearngeneError, match=f"width {too_wide} is above the {encoder} encoder's .*extract a gene from an ancestor"
    ):
        config.descendant_config(width=width)


def test_an_unknown_modality_is_refused_with_the_three_there_are(config):
    with pytest.raises(LearngeneError, match="'audio': it takes one of 'multimodal', 'image', 'text'"):
        config.descendant_config(modality="audio")
    assert MODALITIES == ("multimodal", "image", "text")


@pytest.mark.parametrize("modality", ["multimodal", "text"])
def test_an_image_gene_refuses_to_grow_text(image_config, modality):
    with pytest.raises(LearngeneError, match='this is an image gene: it grows modality "image" only'):
        image_config.descendant_config(modality=modality)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"mixing": "cubic"}, "mixing is 'cubic': it takes one of 'shared-slope', 'linear', 'chebyshev', 'learned'"),
        ({"num_multimodal_blocks": -1}, "num_multimodal_blocks is -1: it cannot be negative"),
        ({"num_unimodal_blocks": -2}, "num_unimodal_blocks is -2: it cannot be negative"),
        ({"num_multimodal_blocks": 0, "num_unimodal_blocks": 0}, "both 0: a gene needs one block"),
        (
            {"mixing": "shared-slope", "num_multimodal_blocks": 2},
            'num_multimodal_blocks is 2 and num_unimodal_blocks 1, but mixing "shared-slope" takes 1 and 1',
        ),
        ({"num_multimodal_blocks": 3}, 'num_multimodal_blocks is 3, but mixing "linear" has two basis functions'),
        ({"text_config": None}, "an image gene has num_multimodal_blocks=0"),
        (
            {"text_config": None, "num_multimodal_blocks": 0, "token_embedding_rank": 8},
            r"token_embedding_rank is 8, but an image gene \(text_config None\) has no tokens",
        ),
        ({"token_embedding_rank": 0}, "token_embedding_rank is 0: it takes 1 to 511"),
        ({"token_embedding_rank": 512}, "token_embedding_rank is 512: it takes 1 to 511, .*or None"),
    ],
)
def test_a_gene_that_cannot_be_is_refused_in_one_sentence(fields, sentence):
    with pytest.raises(LearngeneError, match=sentence) as caught:
        LearngeneConfig(**{"vision_config": B32_VISION, "text_config": B32_TEXT, **fields})
    assert "\n" not in str(caught.value)


def test_encoders_that_share_no_block_may_differ_in_head_size_and_mlp_ratio():
    text = {**B32_TEXT, "num_attention_heads": 16, "intermediate_size": 1024}
    config = LearngeneConfig(
        vision_config=B32_VISION, text_config=text, num_multimodal_blocks=0, num_unimodal_blocks=2
    )
    for width in ((64, 32), 64):  # of 64, the text encoder's share is 42.7, and its head size 32
        descendant = config.descendant_config(width=width)
        assert descendant.text_config.num_attention_heads == 1
        assert descendant.text_config.intermediate_size == 64


@pytest.mark.parametrize("mixing", [name for name in MIXINGS if name != "shared-slope"])
def test_every_other_mixing_takes_two_blocks_in_each_group(mixing):
    gene_config(mixing=mixing, num_multimodal_blocks=2, num_unimodal_blocks=2)


def test_an_assignment_that_breaks_the_gene_is_refused_at_saving(tmp_path):
    config = gene_config()
    config.mixing = "cubic"
    with pytest.raises(LearngeneError, match="^mixing is 'cubic'"):
        config.save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())

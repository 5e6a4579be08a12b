"""Genes of every family under transformers' `ModelTesterMixin` and `ConfigTester`; run by run.py beside this file."""

import unittest

import pytest
import torch
from transformers.testing_utils import torch_device

from mmlg_hf import LearngeneConfig, LearngeneError, LearngeneForImageClassification, LearngeneModel
from mmlg_hf.modeling_learngene import LearngeneSiglipModel, LearngeneViTForImageClassification, LearngeneViTModel

from ..test_configuration_common import ConfigTester
from ..test_modeling_common import ModelTesterMixin, floats_tensor, ids_tensor, random_attention_mask

ENCODER = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
VISION = ENCODER | {"image_size": 30, "patch_size": 2, "num_channels": 3}
TEXT = ENCODER | {"vocab_size": 99, "max_position_embeddings": 64}
FAMILY_TEXT = {"siglip": {"projection_size": 32}}


def pixels():
    return {"pixel_values": floats_tensor([12, 3, 30, 30])}


def texts():
    return {"input_ids": ids_tensor([12, 7], 99), "attention_mask": random_attention_mask([12, 7])}


class _Tester:
    """What transformers' mixins ask of a model tester, and of those of its encoders."""

    hidden_size = 32
    num_hidden_layers = 2
    num_attention_heads = 4
    batch_size = 12
    is_training = True

    family = "clip"

    def get_config(self):
        text = TEXT | FAMILY_TEXT.get(self.family, {})
        return LearngeneConfig(family=self.family, vision_config=VISION, text_config=text, projection_dim=64)

    def prepare_config_and_inputs_for_common(self):
        return self.get_config(), self.get_inputs()


class GeneConfigTester(ConfigTester):
    def check_config_can_be_init_without_params(self):
        with pytest.raises(LearngeneError):  # a gene by default shares blocks with a text encoder
            LearngeneConfig()


class VisionTester(_Tester):
    seq_length = 15 * 15 + 1
    get_inputs = staticmethod(pixels)


class TextTester(_Tester):
    seq_length = 7
    get_inputs = staticmethod(texts)


class GeneTester(_Tester):
    """A gene of an image and a text encoder."""

    seq_length = 7
    vision_model_tester, text_model_tester = VisionTester(), TextTester()

    def get_inputs(self):
        return pixels() | texts()


class MetaClip2GeneTester(GeneTester):
    """A gene of a MetaCLIP 2."""

    family = "metaclip_2"


class SiglipGeneTester(GeneTester):
    """A gene of a SigLIP."""

    family = "siglip"


class ImageGeneTester(VisionTester):
    """A gene of an image encoder alone."""

    def get_config(self):
        return LearngeneConfig(
            vision_config=VISION,
            text_config=None,
            projection_dim=64,
            num_multimodal_blocks=0,
            num_unimodal_blocks=2,
        )


class ViTGeneTester(VisionTester):
    """A gene of a ViT, of features or of a classifier."""

    def __init__(self, labels):
        self.is_training = bool(labels)  # ViTModel has no loss
        self.labels = {"id2label": labels, "label2id": {name: index for index, name in labels.items()}}

    def get_config(self):
        blocks = {"num_multimodal_blocks": 0, "num_unimodal_blocks": 2}
        return LearngeneConfig(family="vit", vision_config=VISION, text_config=None, **blocks, **self.labels)


class _GeneTest(ModelTesterMixin):
    """What is the same for both kinds of gene, and why what is skipped does not apply to either."""

    test_resize_embeddings = False
    test_attention_outputs = False
    _is_composite = True

    @unittest.skip("each encoder has its own hidden states, as stock CLIPModel")
    def test_hidden_states_output(self):
        pass

    @unittest.skip("each encoder has its own hidden states, as stock CLIPModel")
    def test_retain_grad_hidden_states_attentions(self):
        pass

    @unittest.skip("CLIP takes input_ids and pixels only, as stock CLIPModel")
    def test_inputs_embeds(self):
        pass

    @unittest.skip("the two encoders have their own embeddings, as stock CLIPModel")
    def test_model_get_set_embeddings(self):
        pass

    @unittest.skip("the layer around each stock layer is checkpointed, since that one has no weights of its own")
    def test_gradient_checkpointing_enable_disable(self):
        pass

    @unittest.skip("the layer around each stock layer is checkpointed, since that one has no weights of its own")
    def test_peft_gradient_checkpointing_enable_disable(self):
        pass

    @unittest.skip("a gene is saved in one file for each part, not in one model.safetensors")
    def test_load_save_without_tied_weights(self):
        pass

    @unittest.skip("a gene whose file lacks tensors is refused, not filled up at random")
    def test_model_weights_reload_no_missing_tied_weights(self):
        pass


class LearngeneModelTest(_GeneTest, unittest.TestCase):
    all_model_classes = (LearngeneModel,)
    additional_model_inputs = ["pixel_values"]

    def setUp(self):
        self.model_tester = GeneTester()
        self.config_tester = GeneConfigTester(
            self,
            config_class=LearngeneConfig,
            has_text_modality=False,
            common_properties=["projection_dim"],
            num_multimodal_blocks=0,  # what a gene without a text_config has
        )

    def test_config(self):
        self.config_tester.run_common_tests()

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        inputs = super()._prepare_for_class(inputs_dict, model_class, return_labels=return_labels)
        return inputs | {"return_loss": True} if return_labels else inputs

    # Compares `logits` or `last_hidden_state`, which CLIPOutput has not.
    for name in filter(lambda name: name.startswith("test_eager_matches_batched"), dir(ModelTesterMixin)):
        vars()[name] = unittest.skip("CLIPOutput has neither logits nor last_hidden_state")(lambda self: None)


class MetaClip2GeneTest(LearngeneModelTest):
    def setUp(self):
        self.model_tester = MetaClip2GeneTester()

    @unittest.skip("the config is that of LearngeneModelTest")
    def test_config(self):
        pass


class SiglipGeneTest(MetaClip2GeneTest):
    all_model_classes = (LearngeneSiglipModel,)

    def setUp(self):
        self.model_tester = SiglipGeneTester()


class LearngeneForImageClassificationTest(_GeneTest, unittest.TestCase):
    all_model_classes = (LearngeneForImageClassification,)
    test_all_params_have_gradient = False  # post_layernorm has none, as in stock CLIPForImageClassification

    def setUp(self):
        self.model_tester = ImageGeneTester()

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        inputs = super()._prepare_for_class(inputs_dict, model_class, return_labels=return_labels)
        labels = torch.zeros(self.model_tester.batch_size, dtype=torch.long, device=torch_device)
        return inputs | {"labels": labels} if return_labels else inputs


class LearngeneViTModelTest(_GeneTest, unittest.TestCase):
    all_model_classes = (LearngeneViTModel,)

    def setUp(self):
        self.model_tester = ViTGeneTester({})


class LearngeneViTForImageClassificationTest(LearngeneForImageClassificationTest):
    all_model_classes = (LearngeneViTForImageClassification,)
    test_all_params_have_gradient = True

    def setUp(self):
        self.model_tester = ViTGeneTester({0: "bag", 1: "shoe"})

"""CLIP-MoE's classes under transformers' `ModelTesterMixin` and `ConfigTester`; run by run.py beside this file."""

import unittest

import torch
from transformers.testing_utils import torch_device

from mmlg_hf.clip_moe import (
    CLIPMoEConfig,
    CLIPMoEForImageClassification,
    CLIPMoEModel,
    CLIPMoETextConfig,
    CLIPMoETextModel,
    CLIPMoETextModelWithProjection,
    CLIPMoEVisionConfig,
    CLIPMoEVisionModel,
    CLIPMoEVisionModelWithProjection,
)

from ..test_configuration_common import ConfigTester
from ..test_modeling_common import ModelTesterMixin, floats_tensor, ids_tensor, random_attention_mask

ENCODER = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,  # grouped_mm wants rows of whole 16 bytes
    "projection_dim": 32,
    "num_experts": 4,
    "num_experts_per_tok": 2,
}
VISION = ENCODER | {"image_size": 30, "patch_size": 2, "num_channels": 3}
TEXT = ENCODER | {"vocab_size": 99, "max_position_embeddings": 64}


class _Tester:
    """What transformers' mixins ask of a model tester."""

    hidden_size = 32
    num_hidden_layers = 2
    num_attention_heads = 4
    batch_size = 12
    is_training = False  # the encoders alone have no loss

    def __init__(self, parent):
        self.parent = parent

    def prepare_config_and_inputs_for_common(self):
        return self.get_config(), self.get_inputs()


class VisionTester(_Tester):
    seq_length = 15 * 15 + 1

    def get_config(self):
        return CLIPMoEVisionConfig(**VISION)

    def get_inputs(self):
        return {"pixel_values": floats_tensor([self.batch_size, 3, 30, 30])}


class TextTester(_Tester):
    seq_length = 7

    def get_config(self):
        return CLIPMoETextConfig(**TEXT)

    def get_inputs(self):
        input_ids = ids_tensor([self.batch_size, self.seq_length], 99)
        return {"input_ids": input_ids, "attention_mask": random_attention_mask([self.batch_size, self.seq_length])}


class ModelTester(_Tester):
    seq_length = 7
    is_training = True

    def __init__(self, parent):
        super().__init__(parent)
        self.vision_model_tester, self.text_model_tester = VisionTester(parent), TextTester(parent)

    def get_config(self):
        return CLIPMoEConfig(vision_config=VISION, text_config=TEXT, projection_dim=64)

    def get_inputs(self):
        return {**self.vision_model_tester.get_inputs(), **self.text_model_tester.get_inputs()}


class ClassifierTester(ModelTester):
    seq_length = VisionTester.seq_length

    def get_inputs(self):
        return self.vision_model_tester.get_inputs()


class CLIPMoEVisionModelTest(ModelTesterMixin, unittest.TestCase):
    all_model_classes = (CLIPMoEVisionModel, CLIPMoEVisionModelWithProjection)
    test_resize_embeddings = False
    test_all_params_have_gradient = False  # an expert that got no token has none

    def setUp(self):
        self.model_tester = VisionTester(self)
        self.config_tester = ConfigTester(
            self, config_class=CLIPMoEVisionConfig, has_text_modality=False, hidden_size=36
        )

    def test_config(self):
        self.config_tester.run_common_tests()

    @unittest.skip("the model takes pixels, as stock CLIPVisionModel")
    def test_inputs_embeds(self):
        pass

    def test_model_get_set_embeddings(self):
        for model_class in self.all_model_classes:
            assert model_class(self.model_tester.get_config()).get_input_embeddings() is not None


class CLIPMoETextModelTest(ModelTesterMixin, unittest.TestCase):
    all_model_classes = (CLIPMoETextModel, CLIPMoETextModelWithProjection)
    test_resize_embeddings = False
    test_all_params_have_gradient = False

    def setUp(self):
        self.model_tester = TextTester(self)
        self.config_tester = ConfigTester(self, config_class=CLIPMoETextConfig, hidden_size=40)

    def test_config(self):
        self.config_tester.run_common_tests()

    @unittest.skip("CLIP's text encoder takes input_ids only, as stock CLIPTextModel")
    def test_inputs_embeds(self):
        pass


class CLIPMoEModelTest(ModelTesterMixin, unittest.TestCase):
    all_model_classes = (CLIPMoEModel,)
    test_resize_embeddings = False
    test_attention_outputs = False
    test_all_params_have_gradient = False
    _is_composite = True
    additional_model_inputs = ["pixel_values"]

    def setUp(self):
        self.model_tester = ModelTester(self)
        self.config_tester = ConfigTester(
            self, config_class=CLIPMoEConfig, has_text_modality=False, common_properties=["projection_dim"]
        )

    def test_config(self):
        self.config_tester.run_common_tests()

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        inputs = super()._prepare_for_class(inputs_dict, model_class, return_labels=return_labels)
        return inputs | {"return_loss": True} if return_labels else inputs

    @unittest.skip("each encoder has its own hidden states, tested with the encoders, as stock CLIPModel")
    def test_hidden_states_output(self):
        pass

    @unittest.skip("each encoder has its own hidden states, tested with the encoders, as stock CLIPModel")
    def test_retain_grad_hidden_states_attentions(self):
        pass

    @unittest.skip("CLIP takes input_ids and pixels only, as stock CLIPModel")
    def test_inputs_embeds(self):
        pass

    @unittest.skip("reentrant checkpointing cuts the balance loss off, as in transformers' mixtures: the model warns")
    def test_training_gradient_checkpointing_use_reentrant_true(self):
        pass

    @unittest.skip("the two encoders have their own embeddings, as stock CLIPModel")
    def test_model_get_set_embeddings(self):
        pass

    def test_aux_loss_is_recorded_where_the_inputs_are(self):
        model = CLIPMoEModel(self.model_tester.get_config()).to(torch_device)
        outputs = model(**self.model_tester.get_inputs(), output_router_logits=True)
        assert outputs.aux_loss.ndim == 0

    # Compares `logits` or `last_hidden_state`, which CLIPOutput has not: both encoders are compared instead.
    for name in filter(lambda name: name.startswith("test_eager_matches_batched"), dir(ModelTesterMixin)):
        vars()[name] = unittest.skip("CLIPOutput has neither logits nor last_hidden_state")(lambda self: None)


class CLIPMoEForImageClassificationTest(ModelTesterMixin, unittest.TestCase):
    all_model_classes = (CLIPMoEForImageClassification,)
    test_resize_embeddings = False
    test_attention_outputs = False
    test_all_params_have_gradient = False
    _is_composite = True

    def setUp(self):
        self.model_tester = ClassifierTester(self)

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        inputs = super()._prepare_for_class(inputs_dict, model_class, return_labels=return_labels)
        labels = torch.zeros(self.model_tester.batch_size, dtype=torch.long, device=torch_device)
        return inputs | {"labels": labels} if return_labels else inputs

    @unittest.skip("the model takes pixels, as stock CLIPForImageClassification")
    def test_inputs_embeds(self):
        pass

    @unittest.skip("the model takes pixels, as stock CLIPForImageClassification")
    def test_model_get_set_embeddings(self):
        pass

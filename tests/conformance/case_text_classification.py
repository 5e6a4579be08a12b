"""`CLIPTextForSequenceClassification` under transformers' `ModelTesterMixin`; run by run.py beside this file."""

import unittest

import torch
from transformers import CLIPTextConfig
from transformers.testing_utils import torch_device

from mmlg_hf.modeling_text_classification import CLIPTextForSequenceClassification

from ..test_modeling_common import ModelTesterMixin, ids_tensor, random_attention_mask


class TextTester:
    """What transformers' mixin asks of a model tester."""

    hidden_size = 32
    num_hidden_layers = 2
    num_attention_heads = 4
    batch_size = 12
    seq_length = 7
    is_training = True

    def get_config(self):
        return CLIPTextConfig(
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=64,
            vocab_size=99,
            max_position_embeddings=64,
            num_labels=3,
        )

    def prepare_config_and_inputs_for_common(self):
        shape = [self.batch_size, self.seq_length]
        return self.get_config(), {
            "input_ids": ids_tensor(shape, 99),
            "attention_mask": random_attention_mask(shape),
        }


class CLIPTextForSequenceClassificationTest(ModelTesterMixin, unittest.TestCase):
    all_model_classes = (CLIPTextForSequenceClassification,)
    test_resize_embeddings = False  # as in transformers' own tests of CLIPTextModel

    def setUp(self):
        self.model_tester = TextTester()

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        inputs = super()._prepare_for_class(inputs_dict, model_class, return_labels=return_labels)
        labels = torch.zeros(self.model_tester.batch_size, dtype=torch.long, device=torch_device)
        return inputs | {"labels": labels} if return_labels else inputs

    @unittest.skip("CLIP's text encoder takes input_ids alone, as stock CLIPTextModel")
    def test_inputs_embeds(self):
        pass

"""Our own classes under the stock Trainer: accumulating small batches must make the update of one large batch."""

import copy

import pytest
import torch
from pico import pico_clip, pico_pairs, pico_processor
from pico_genes import image_gene, multimodal_gene, perturb
from transformers import Trainer, TrainingArguments

from mmlg_hf.clip_moe import CLIPMoEConfig
from mmlg_hf.clip_moe.modeling_clip_moe import CLIPMoEForImageClassification, CLIPMoEModel
from mmlg_hf.modeling_text_classification import CLIPTextForSequenceClassification
from mmlg_hf.training import ImageTextCollator

PROCESSOR = pico_processor()
LABELS = 3


def text_classifier():
    config = pico_clip().config.text_config
    config.num_labels = LABELS
    return perturb(CLIPTextForSequenceClassification(config))


def moe_config():
    # The balance loss is no mean over rows: it is left out, so that the sizes of batches do not matter.
    clip = pico_clip().config
    sides = {"vision_config": clip.vision_config.to_dict(), "text_config": clip.text_config.to_dict()}
    for side in sides.values():
        side.pop("model_type")
    return CLIPMoEConfig(**sides, projection_dim=16, router_aux_loss_coef=0.0, num_labels=LABELS)


CLASSIFIERS = {
    "image gene": lambda: image_gene(num_labels=LABELS),
    "text classifier": text_classifier,
    "mixture of experts": lambda: perturb(CLIPMoEForImageClassification(moe_config())),
}
PAIR_MODELS = {"gene": multimodal_gene, "mixture of experts": lambda: perturb(CLIPMoEModel(moe_config()))}


def collate(rows):
    batch = ImageTextCollator(PROCESSOR)([row["pair"] for row in rows])
    return {**batch, "labels": torch.tensor([row["label"] for row in rows])}


def collator_for(model):
    names = {"pixel_values": ["pixel_values"], "input_ids": ["input_ids", "attention_mask"]}[model.main_input_name]
    return lambda rows: {name: tensor for name, tensor in collate(rows).items() if name in [*names, "labels"]}


def update(model, folder, batch_size, accumulation, collator):
    """The change of every parameter by one step of SGD over the same 16 rows."""
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    rows = [{"pair": pair, "label": index % LABELS} for index, pair in enumerate(pico_pairs(16))]
    args = TrainingArguments(
        str(folder),
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=accumulation,
        max_steps=1,
        optim="sgd",
        learning_rate=0.1,
        lr_scheduler_type="constant",
        train_sampling_strategy="sequential",
        max_grad_norm=0.0,
        remove_unused_columns=False,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
    )
    Trainer(model, args, train_dataset=rows, data_collator=collator).train()
    return {name: parameter.detach() - before[name] for name, parameter in model.named_parameters()}


def assert_same_updates(found, expected):
    for name, change in expected.items():
        torch.testing.assert_close(found[name], change, atol=1e-5, rtol=1e-3, msg=lambda text, name=name: name + text)
    assert max(change.abs().max() for change in expected.values()) > 1e-3


@pytest.mark.parametrize("reloaded", [False, True])
@pytest.mark.parametrize("kind", CLASSIFIERS)
def test_four_accumulated_batches_update_a_classifier_as_one_large_batch(kind, reloaded, tmp_path):
    model = CLASSIFIERS[kind]()
    if reloaded:
        model.save_pretrained(tmp_path / "model")
        model = type(model).from_pretrained(tmp_path / "model")
    large = update(copy.deepcopy(model), tmp_path, 16, 1, collator_for(model))
    assert_same_updates(update(model, tmp_path, 4, 4, collator_for(model)), large)


@pytest.mark.parametrize("kind", PAIR_MODELS)
def test_labels_that_ride_along_do_not_scale_the_update_of_a_model_of_pairs(kind, tmp_path):
    def without_labels(rows):
        return {name: value for name, value in collate(rows).items() if name != "labels"}

    plain, labelled = (update(PAIR_MODELS[kind](), tmp_path, 4, 4, collator) for collator in (without_labels, collate))
    assert_same_updates(labelled, plain)

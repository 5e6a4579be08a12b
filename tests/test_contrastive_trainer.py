"""ContrastiveTrainer at its edges: what it refuses in one sentence, streams, wrappers, settings of the stock one."""

import copy
import math

import peft
import pytest
import torch
from datasets import Dataset, DatasetDict, Image, IterableDataset
from pico import pico_clip, pico_image, pico_pairs, pico_processor
from pico_genes import multimodal_gene
from torch import nn
from transformers import BertTokenizer, CLIPModel, TrainingArguments, VisionTextDualEncoderProcessor

from mmlg_hf.errors import LearngeneError
from mmlg_hf.evaluation import compute_retrieval
from mmlg_hf.training import ContrastiveTrainer, ImageTextCollator
from mmlg_hf.training.optimizers import is_decayed
from mmlg_hf.training.trainer import base_model_of

PROCESSOR = pico_processor()
# CLIP's text encoder reads one position of every text of this tokenizer, since none holds the token that it looks for.
OTHERS_TOKENIZER = BertTokenizer(vocab={"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": 4, "red": 5})
OTHERS = VisionTextDualEncoderProcessor(PROCESSOR.image_processor, OTHERS_TOKENIZER)


@pytest.fixture
def arguments(tmp_path):
    def make(**kwargs):
        settings = {
            "per_device_train_batch_size": 4,
            "per_device_eval_batch_size": 4,
            "max_steps": 2,
            "optim": "sgd",
            "learning_rate": 0.05,
            "lr_scheduler_type": "constant",
            "train_sampling_strategy": "sequential",
            "max_grad_norm": 0.0,
            "save_strategy": "no",
            "report_to": [],
            "disable_tqdm": True,
            "use_cpu": True,
            **kwargs,
        }
        return TrainingArguments(str(tmp_path), **settings)

    return make


def trainer_of(model, args, **kwargs):
    return ContrastiveTrainer(model, args, **{"processing_class": PROCESSOR, **kwargs})


def lora(model):
    return peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj"]))


def stream_of(rows, shards=1):
    return pico_pairs(rows).to_iterable_dataset(num_shards=shards)


# --------------------------------------------------------------------------------------------- tokenizers and models


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("wrap", [lambda model: model, lora, torch.compile], ids=["plain", "PEFT", "compiled"])
@pytest.mark.parametrize("place", ["processing_class", "data_collator", "bare tokenizer"])
def test_the_tokenizer_of_another_model_is_refused(arguments, wrap, place, legacy):
    model = pico_clip()
    if legacy:
        model.config.text_config.eos_token_id = model.text_model.eos_token_id = 2
    given = {
        "processing_class": {"processing_class": OTHERS},
        "data_collator": {"data_collator": ImageTextCollator(OTHERS), "processing_class": None},
        "bare tokenizer": {"data_collator": ImageTextCollator(PROCESSOR), "processing_class": OTHERS_TOKENIZER},
    }[place]
    with pytest.raises(LearngeneError, match="another model's tokenizer"):
        trainer_of(wrap(model), arguments(), **given)


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(arguments):
    processor = pico_processor()
    processor.tokenizer.add_tokens(["zebra"])
    with pytest.raises(LearngeneError, match="554 tokens and the text encoder embeddings for 553"):
        trainer_of(pico_clip(), arguments(), processing_class=processor)


def test_the_collator_is_told_of_the_text_encoder_and_keeps_what_it_was_told(arguments):
    model, collator, told = pico_clip(), ImageTextCollator(PROCESSOR), ImageTextCollator(PROCESSOR)
    told.text_config = "mine"
    wrapped = lora(model)
    for given in (collator, told):
        trainer_of(wrapped, arguments(), data_collator=given)
    assert collator.text_config is model.config.text_config
    assert told.text_config == "mine"
    assert trainer_of(model, arguments()).data_collator.text_config is model.config.text_config


def test_a_model_that_is_none_is_refused_in_one_sentence(arguments):
    with pytest.raises(LearngeneError, match="the model is 'openai/clip': give a model, such as CLIPModel"):
        trainer_of("openai/clip", arguments())
    with pytest.raises(LearngeneError, match="the model is None"):
        trainer_of(None, arguments())
    with pytest.raises(LearngeneError, match="CLIPVisionModel has none"):
        trainer_of(lora(pico_clip().vision_model), arguments())
    with torch.device("meta"):
        hollow = CLIPModel(pico_clip().config)
    with pytest.raises(LearngeneError, match="logit_scale is not in memory"):
        trainer_of(hollow, arguments())
    with pytest.raises(LearngeneError, match="this CLIPTokenizer has no image_processor"):
        trainer_of(pico_clip(), arguments(), processing_class=PROCESSOR.tokenizer)


def test_an_output_without_embeddings_is_refused(arguments):
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.logit_scale = nn.Parameter(torch.tensor(1.0))

        def forward(self, **inputs):
            return torch.zeros(4, 2), torch.zeros(4, 2)

    trainer = trainer_of(Pair(), arguments(), train_dataset=pico_pairs(8))
    with pytest.raises(LearngeneError, match="returned a tuple without image_embeds and text_embeds"):
        trainer.train()


def test_settings_that_do_not_go_with_the_loss_are_refused(arguments):
    with pytest.raises(LearngeneError, match="label_smoothing is 1.5: give a share from 0 to 1"):
        trainer_of(pico_clip(), arguments(label_smoothing_factor=1.5))
    with pytest.raises(LearngeneError, match="leave compute_loss_func out"):
        trainer_of(pico_clip(), arguments(), compute_loss_func=lambda *args, **kwargs: 0)
    with pytest.raises(LearngeneError, match="batch_eval_metrics is set.*leave the setting out"):
        trainer_of(pico_clip(), arguments(batch_eval_metrics=True), compute_metrics=compute_retrieval)
    with pytest.raises(LearngeneError, match="dispatch_batches=True"):
        trainer_of(pico_clip(), arguments(accelerator_config={"dispatch_batches": True}))
    with pytest.raises(LearngeneError, match="batch_rebalance.*different sizes"):
        trainer_of(pico_clip(), arguments(train_sampling_strategy="batch_rebalance"))


def test_lengths_to_group_by_must_be_there(arguments):
    pairs, args = pico_pairs(16), arguments(train_sampling_strategy="group_by_length")
    for call in (
        lambda: trainer_of(pico_clip(), args, train_dataset=pairs).train(),
        lambda: trainer_of(pico_clip(), args, eval_dataset=pairs).evaluate(),
    ):
        with pytest.raises(LearngeneError, match="no column 'length'"):
            call()
    pairs = pairs.add_column("length", [len(text) for text in pairs["caption"]])
    assert trainer_of(pico_clip(), args, train_dataset=pairs).train().global_step == 2


def test_a_model_with_nothing_to_train_is_refused(arguments):
    trainer = trainer_of(pico_clip().requires_grad_(False), arguments(), train_dataset=pico_pairs(8))
    with pytest.raises(LearngeneError, match="all of the model's parameters are frozen"):
        trainer.train()


def test_a_trainer_without_arguments_has_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trainer = trainer_of(pico_clip(), None, eval_dataset=pico_pairs(8))
    assert trainer.args.dataloader_drop_last
    assert not trainer.args.remove_unused_columns


def test_a_model_made_by_model_init_trains_and_its_scale_is_held(arguments):
    def model_init():
        model = pico_clip()
        nn.init.constant_(model.logit_scale, 5.0)
        return model

    args = arguments(learning_rate=1e-6)
    trainer = trainer_of(None, args, model_init=model_init, train_dataset=pico_pairs(8))
    trainer.train()
    assert trainer.model.logit_scale.item() == pytest.approx(math.log(100), abs=1e-4)


# --------------------------------------------------------------------------------------------------- batches of one


@pytest.mark.parametrize("data", [pico_pairs(4), stream_of(4)], ids=["dataset", "stream"])
def test_a_batch_of_one_pair_is_refused_in_training_evaluation_and_prediction(arguments, data):
    args = arguments(per_device_train_batch_size=1, per_device_eval_batch_size=1, gradient_accumulation_steps=4)
    trainer = trainer_of(pico_clip(), args, train_dataset=data, eval_dataset=data)
    message = "batch of one pair has no negatives.*gradient accumulation adds no negatives"
    for call in (trainer.train, trainer.evaluate, lambda: trainer.predict(data)):
        with pytest.raises(LearngeneError, match=message):
            call()


# ------------------------------------------------------------------------------------------------------------- data


@pytest.mark.parametrize("rows", [0, 3])
@pytest.mark.parametrize("streamed", [False, True])
def test_less_data_than_a_batch_is_refused_everywhere(arguments, rows, streamed):
    pairs = pico_pairs(4).select(range(rows))
    data = stream_of(4).take(rows) if streamed else pairs
    trainer = trainer_of(pico_clip(), arguments(), train_dataset=data, eval_dataset=data)
    told = "fewer rows than" if streamed else f"{rows} rows, fewer than"
    for call in (trainer.train, trainer.evaluate, lambda: trainer.predict(data)):
        with pytest.raises(LearngeneError, match=f"data has {told} one batch of 4 on each process"):
            call()


def test_a_dictionary_of_splits_is_no_training_data(arguments):
    splits = DatasetDict({"train": pico_pairs(8), "test": pico_pairs(4)})
    with pytest.raises(LearngeneError, match="training data is a DatasetDict with the splits 'train', 'test'"):
        trainer_of(pico_clip(), arguments(), train_dataset=splits)
    with pytest.raises(LearngeneError, match="training data is 'my/data': give a dataset"):
        trainer_of(pico_clip(), arguments(), train_dataset="my/data")
    with pytest.raises(LearngeneError, match="training data is a generator: give a dataset"):
        trainer_of(pico_clip(), arguments(), train_dataset=(row for row in pico_pairs(8)))
    trainer = trainer_of(pico_clip(), arguments())
    with pytest.raises(LearngeneError, match="test data is a DatasetDict"):
        trainer.predict(splits)


def test_each_of_several_evaluation_sets_is_measured(arguments):
    pairs = pico_pairs(12)
    parts = {"first": pairs.select(range(4)), "stream": pairs.select(range(4, 12)).to_iterable_dataset()}
    trainer = trainer_of(pico_clip(), arguments(), eval_dataset=parts)
    found = trainer.evaluate()
    for name, part in parts.items():
        alone = trainer.evaluate(part, metric_key_prefix=name)
        assert found[f"eval_{name}_loss"] == alone[f"{name}_loss"]
    whole = trainer.evaluate(pairs)["eval_loss"]
    assert (found["eval_first_loss"] + 2 * found["eval_stream_loss"]) / 3 == pytest.approx(whole)


@pytest.mark.parametrize(("shards", "accumulation"), [(1, 1), (3, 1), (1, 2)])
def test_a_streams_odd_last_batch_and_update_are_left_out(arguments, shards, accumulation):
    sizes, losses, models = [], [], []
    used = 12 if accumulation == 1 else 8
    for data in (pico_pairs(used), stream_of(13, shards)):
        collator = ImageTextCollator(PROCESSOR)

        def collate(rows, collator=collator):
            sizes.append(len(rows))
            return collator(rows)

        args = arguments(max_steps=4, gradient_accumulation_steps=accumulation, logging_steps=1)
        models.append(pico_clip())
        trainer = trainer_of(models[-1], args, data_collator=collate, train_dataset=data)
        trainer.train()
        losses.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
        assert len(trainer.predict(stream_of(13)).predictions[0]) == 12
        losses[-1].append(trainer.evaluate(stream_of(13))["eval_loss"])
    assert set(sizes) == {4}
    assert losses[0] == losses[1]
    for weight, expected in zip(models[1].parameters(), models[0].parameters(), strict=True):
        torch.testing.assert_close(weight, expected, rtol=0, atol=0)


def test_the_epochs_of_a_shuffled_stream_differ(arguments):
    seen = []

    def collate(rows):
        seen.append([row["caption"] for row in rows])
        return ImageTextCollator(PROCESSOR)(rows)

    data = stream_of(8).shuffle(seed=0, buffer_size=8)
    trainer_of(pico_clip(), arguments(max_steps=4), data_collator=collate, train_dataset=data).train()
    first, second = seen[0] + seen[1], seen[2] + seen[3]
    assert sorted(first) == sorted(second)
    assert first != second


@pytest.mark.slow
def test_a_stream_read_by_workers_gives_whole_batches(arguments):
    def rows(shards):
        for shard in shards:
            for index in range(5):
                yield {"image": pico_image("red", "blue"), "caption": f"{shard} {index}"}

    data = IterableDataset.from_generator(rows, gen_kwargs={"shards": [0, 1]})
    trainer = trainer_of(pico_clip(), arguments(dataloader_num_workers=2))
    # Each worker has 5 rows: one batch and an odd row.
    assert len(trainer.predict(data).predictions[0]) == 8
    trainer = trainer_of(pico_clip(), arguments(dataloader_num_workers=2, per_device_eval_batch_size=6))
    with pytest.raises(LearngeneError, match="fewer rows than one batch of 6"):
        trainer.predict(data)


# ------------------------------------------------------------------------------------------- logit scale, weight decay


@pytest.mark.parametrize(("start", "held"), [(500, 500), (5000, 1000), (1.5, 2)])
def test_the_range_of_the_logit_scale_is_the_models_own(arguments, start, held):
    model = pico_clip()
    model.logit_scale_range = (math.log(2), math.log(1000))
    nn.init.constant_(model.logit_scale, math.log(start))
    trainer_of(model, arguments(learning_rate=1e-7), train_dataset=pico_pairs(8)).train()
    assert model.logit_scale.exp().item() == pytest.approx(held, rel=1e-4)


@pytest.mark.parametrize(
    "wrap",
    [lora, lambda model: torch.compile(model, backend="eager"), lambda model: torch.compile(lora(model))],
    ids=["PEFT", "compiled", "compiled PEFT"],
)
def test_the_model_and_its_logit_scale_are_found_inside_wrappers(arguments, wrap):
    model = pico_clip()
    wrapped = wrap(model)
    assert base_model_of(wrapped) is model
    model.logit_scale.requires_grad_(True)
    nn.init.constant_(model.logit_scale, 5.0)
    trainer = trainer_of(wrapped, arguments())
    trainer.callback_handler.on_optimizer_step(trainer.args, trainer.state, trainer.control)
    assert model.logit_scale.item() == pytest.approx(math.log(100))


@pytest.mark.parametrize("kind", ["CLIP", "gene", "learned gene"])
def test_weight_decay_moves_matrices_alone(arguments, kind):
    mixing = "learned" if kind == "learned gene" else "shared-slope"
    model = pico_clip() if kind == "CLIP" else multimodal_gene(mixing=mixing)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    args = arguments(optim="adamw_torch", learning_rate=0.1, weight_decay=0.5)
    optimizer = trainer_of(model, args).create_optimizer()
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    still = {name for name, parameter in model.named_parameters() if torch.equal(parameter, before[name])}
    assert still == {name for name, parameter in model.named_parameters() if not is_decayed(name, parameter)}
    assert {"logit_scale", "vision_model.embeddings.class_embedding", "text_model.final_layer_norm.weight"} <= still
    if kind == "learned gene":
        assert {"vision_coefficients", "text_coefficients"} <= still
    if kind != "CLIP":
        assert {"multimodal_blocks.layer_norm1.weight", "text_blocks.mlp.fc1.bias"} <= still
    for name, parameter in model.named_parameters():
        if name not in still:
            torch.testing.assert_close(parameter.detach(), 0.95 * before[name])
            assert parameter.dim() >= 2
    assert any(name.endswith("fc1.weight") for name in before.keys() - still)


# ----------------------------------------------------------------------------------------------- precision and devices


def test_float16_weights_are_evaluated_but_not_trained(arguments):
    pairs, model = pico_pairs(8), pico_clip()
    expected = trainer_of(copy.deepcopy(model), arguments(), eval_dataset=pairs).evaluate()["eval_loss"]
    trainer = trainer_of(model.half(), arguments(), train_dataset=pairs, eval_dataset=pairs)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, rel=0.01)
    with pytest.raises(LearngeneError, match="logit_scale is float16.*load the model in float32"):
        trainer.train()


def test_bfloat16_weights_train(arguments):
    pairs, model = pico_pairs(8), pico_clip().bfloat16()
    args = arguments(max_steps=20, optim="adamw_torch", learning_rate=3e-3)
    trainer = trainer_of(model, args, train_dataset=pairs, eval_dataset=pairs)
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < before - 0.1
    assert model.dtype == torch.bfloat16


def test_a_model_on_a_device_map_trains(arguments, tmp_path):
    pico_clip().save_pretrained(tmp_path / "clip")
    models = [CLIPModel.from_pretrained(tmp_path / "clip", device_map=place) for place in ("cpu", {"": "cpu"}, None)]
    for model in models:
        trainer_of(model, arguments(), train_dataset=pico_pairs(8)).train()
    for model in models[:2]:
        for weight, expected in zip(model.parameters(), models[2].parameters(), strict=True):
            torch.testing.assert_close(weight, expected, rtol=0, atol=0)


# ------------------------------------------------------------------------------------------ evaluation and prediction


def embeddings_of(model, pairs):
    with torch.no_grad():
        output = model.eval()(**ImageTextCollator(PROCESSOR)(list(pairs)))
    return output.image_embeds, output.text_embeds


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"include_for_metrics": ["inputs", "loss"]},
        {"eval_accumulation_steps": 1},
        {"batch_eval_metrics": True},
        {"label_names": ["labels"]},
        {"prediction_loss_only": False},
    ],
    ids=str,
)
@pytest.mark.parametrize("hidden", [False, True])
def test_metrics_see_the_two_embeddings_whatever_else_the_model_returns(arguments, settings, hidden):
    pairs, model = pico_pairs(10), pico_clip(output_hidden_states=hidden, output_attentions=hidden)
    found = []

    def metrics(prediction, compute_result=True):
        found.append(prediction)
        return {"rows": len(prediction.predictions[0])} if compute_result else {}

    trainer = trainer_of(model, arguments(**settings), eval_dataset=pairs, compute_metrics=metrics)
    result = trainer.evaluate()
    for side, expected in enumerate(embeddings_of(model, pairs.select(range(8)))):
        rows = torch.cat([torch.as_tensor(prediction.predictions[side]) for prediction in found])
        torch.testing.assert_close(rows, expected, atol=1e-6, rtol=1e-5)
    assert result["eval_rows"] == (4 if "batch_eval_metrics" in settings else 8)
    assert result["eval_loss"] > 0


def test_batches_that_are_not_concatenated_come_as_a_list_of_pairs(arguments):
    pairs, model = pico_pairs(10), pico_clip()
    found = []

    def metrics(prediction):
        found.append(prediction.predictions)
        return {}

    args = arguments(eval_do_concat_batches=False)
    trainer_of(model, args, eval_dataset=pairs, compute_metrics=metrics).evaluate()
    expected = [embeddings_of(model, pairs.select(range(start, start + 4))) for start in (0, 4)]
    assert len(found[0]) == 2
    for batch, wanted in zip(found[0], expected, strict=True):
        for rows, side in zip(batch, wanted, strict=True):
            torch.testing.assert_close(torch.as_tensor(rows), side, atol=1e-6, rtol=1e-5)


def test_retrieval_is_the_same_with_batches_that_are_not_concatenated(arguments):
    found = []
    for concatenated in (True, False):
        args = arguments(eval_do_concat_batches=concatenated)
        trainer = trainer_of(pico_clip(), args, eval_dataset=pico_pairs(10), compute_metrics=compute_retrieval)
        found.append({name: value for name, value in trainer.evaluate().items() if "R@" in name or "rank" in name})
    assert found[0] == found[1]
    assert len(found[0]) == 9


def test_prediction_returns_the_embeddings_the_loss_and_the_metrics(arguments):
    pairs, model = pico_pairs(8), pico_clip()
    trainer = trainer_of(model, arguments(per_device_eval_batch_size=8), compute_metrics=compute_retrieval)
    output = trainer.predict(pairs)
    for rows, expected in zip(output.predictions, embeddings_of(model, pairs), strict=True):
        torch.testing.assert_close(torch.as_tensor(rows), expected, atol=1e-6, rtol=1e-5)
    with torch.no_grad():
        loss = model(**ImageTextCollator(PROCESSOR)(list(pairs))).loss.item()
    assert output.metrics["test_loss"] == pytest.approx(loss, rel=1e-5)
    assert 0 <= output.metrics["test_mean_R@1"] <= 1


def test_evaluation_and_prediction_leave_the_random_state_as_it_was(arguments):
    pairs = Dataset.from_dict({"image": pico_pairs(8)["image"], "captions": [["a", "red", "square"]] * 8})
    trainer = trainer_of(pico_clip(), arguments(), eval_dataset=pairs)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    losses = []
    for data in (pairs, pairs.to_iterable_dataset(), pairs):
        losses.append(trainer.evaluate(data)["eval_loss"])
        trainer.predict(data)
        assert torch.equal(torch.get_rng_state(), before)
    assert losses[0] == losses[1] == losses[2]


@pytest.mark.slow
def test_training_goes_on_from_a_checkpoint_as_if_it_had_not_stopped(arguments):
    pairs, whole, halves = stream_of(13), pico_clip(), [pico_clip(), pico_clip()]
    settings = {"save_strategy": "steps", "save_steps": 1, "optim": "adamw_torch"}
    trainer_of(whole, arguments(max_steps=4, **settings), train_dataset=pairs).train()
    args = arguments(max_steps=2, **settings)
    trainer_of(halves[0], args, train_dataset=pairs).train()
    args = arguments(max_steps=4, **settings)
    trainer_of(halves[1], args, train_dataset=pairs).train(resume_from_checkpoint=f"{args.output_dir}/checkpoint-2")
    for weight, expected in zip(halves[1].parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(weight, expected, rtol=0, atol=0)


def test_a_damaged_picture_of_a_dataset_is_named_with_its_row_of_the_batch(arguments):
    rows = pico_pairs(4).cast_column("image", Image(decode=False))
    broken = rows.map(lambda row, index: {"image": row["image"] if index else {"bytes": b"no", "path": None}},
                      with_indices=True, features=rows.features)  # fmt: skip
    decoding = broken.cast_column("image", Image())
    trainer = trainer_of(pico_clip(), arguments(per_device_train_batch_size=4), train_dataset=decoding)
    with pytest.raises(LearngeneError, match="the image of row . of the batch cannot be read"):
        trainer.train()


def test_the_contrastive_loss_is_computed_once_a_step(arguments):
    model = pico_clip()
    trainer = trainer_of(model, arguments())
    inputs = {**PROCESSOR.tokenizer(["a red square", "pink"], padding=True, return_tensors="pt"), "return_loss": True}
    inputs["pixel_values"] = torch.randn(2, 3, 16, 16)
    loss, outputs = trainer.compute_loss(model, inputs, return_outputs=True)
    assert outputs.loss is None
    torch.testing.assert_close(loss, model(**inputs).loss)
    assert inputs["return_loss"]  # the caller's are left as they are

"""One step of an extraction and what surrounds it: batches, sizes, optimizers, logged losses, evaluation, refusals."""

import json

import accelerate
import pytest
import torch
from datasets import DatasetDict, IterableDataset
from pico import pico_clip, pico_pairs, pico_processor, pico_tokenizer
from pico_genes import gene_config, image_gene, multimodal_gene
from transformers import CLIPForImageClassification, CLIPProcessor

from mmlg_hf import ExtractionArguments, extract_learngene
from mmlg_hf.data import process_images, process_pairs
from mmlg_hf.errors import LearngeneError
from mmlg_hf.extraction.ancestors import load_ancestor
from mmlg_hf.extraction.trainer import AncestorCollator, ExtractionTrainer, size_grid
from mmlg_hf.modeling_learngene import LearngeneModel
from mmlg_hf.training import ImageTextCollator
from mmlg_hf.training.optimizers import OptimizerPair, StackedMuon, is_decayed

QUICK = {
    "max_steps": 1,
    "per_device_train_batch_size": 4,
    "learning_rate": 1e-3,
    "warmup_steps": 0,
    "lr_scheduler_type": "constant",
    "save_strategy": "no",
    "rotate": False,
    "elastic": False,
    "initialisation": "random",
    "cache_ancestor": False,
    "report_to": "none",
    "disable_tqdm": True,
    "use_cpu": True,
}
PLAIN = {"muon_learning_rate": None, "optim": "sgd", "learning_rate": 0.05, "max_grad_norm": 0.0}


def arguments(folder, **changes):
    return ExtractionArguments(str(folder), **(QUICK | changes))


def classifier(num_labels=5):
    config = pico_clip().config
    config.num_labels = num_labels
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return CLIPForImageClassification(config)


def trainer_of(folder, kind="multimodal", rows=16, scales=False, **changes):
    """An ExtractionTrainer of a pico gene on `rows` rows, which may have `weight_scales`."""
    args, processor = arguments(folder, **changes), pico_processor()
    if kind == "image":
        gene, ancestor, collator = image_gene(), classifier(), AncestorCollator(None)
        data = process_images(pico_pairs(rows), processor.image_processor)
    else:
        gene, ancestor = multimodal_gene(projection_dim=16, weight_scales=scales), pico_clip()
        collator, data = AncestorCollator(ImageTextCollator(processor)), process_pairs(pico_pairs(rows), processor)
    return ExtractionTrainer(
        gene,
        args,
        ancestor=load_ancestor(ancestor),
        data_collator=collator,
        train_dataset=data,
        eval_dataset=data,
    )


def weights(trainer):
    return {name: tensor.detach().clone() for name, tensor in trainer.model.state_dict().items()}


@pytest.mark.parametrize("kind", ["multimodal", "image"])
@pytest.mark.parametrize("elastic", [False, True])
def test_accumulated_batches_update_as_one_large_batch(tmp_path, kind, elastic):
    whole = trainer_of(tmp_path, kind, per_device_train_batch_size=16, elastic=elastic, **PLAIN)
    whole.train()
    parts = trainer_of(tmp_path, kind, gradient_accumulation_steps=4, elastic=elastic, **PLAIN)
    before = weights(parts)
    parts.train()
    for name, weight in weights(whole).items():
        torch.testing.assert_close(weights(parts)[name], weight, rtol=1e-4, atol=1e-6)
    assert any(not torch.equal(before[name], weight) for name, weight in weights(parts).items())


def test_the_parts_of_the_loss_are_logged_over_the_steps_of_the_loss(tmp_path):
    trainer = trainer_of(
        tmp_path, max_steps=8, logging_steps=4, eval_strategy="steps", eval_steps=1, elastic=True, affinity_weight=1.0
    )
    steps = []  # of each training step: its parts
    losses = trainer._losses

    def recorded(model, outputs, targets):
        found = losses(model, outputs, targets)
        if model.training:
            steps.append({name: loss.item() for name, loss in found.items()})
        return found

    trainer._losses = recorded
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert [entry["step"] for entry in logs] == [4, 8]
    for position, entry in enumerate(logs):
        runs = steps[12 * position : 12 * (position + 1)]  # four steps of the gene and two smaller ones
        for name in ("feature", "affinity"):
            whole = [run[name] for run in runs[::3]]
            smaller = [run[name] for index, run in enumerate(runs) if index % 3]
            assert entry[f"loss_{name}"] == pytest.approx(sum(whole) / 4, abs=1e-4)
            assert entry[f"loss_{name}_smaller"] == pytest.approx(sum(smaller) / 8, abs=1e-4)
        parts = [entry[f"loss_{name}"] + 2 * entry[f"loss_{name}_smaller"] for name in ("feature", "affinity")]
        assert float(entry["loss"]) == pytest.approx(sum(parts) / 3, abs=1e-3)


@pytest.mark.parametrize("kind", ["multimodal", "image"])
def test_evaluation_gives_the_loss_and_the_outputs_of_both(tmp_path, kind):
    trainer = trainer_of(tmp_path, kind, per_device_eval_batch_size=8)
    output = trainer.predict(trainer.eval_dataset)
    batch = trainer.data_collator([trainer.eval_dataset[index] for index in range(16)])
    with torch.no_grad():
        own = trainer.model.eval()(**{name: value for name, value in batch.items() if name != "return_loss"})
        theirs = trainer.ancestor(**{name: value for name, value in batch.items() if name != "return_loss"})
    if kind == "image":
        pairs = [(output.predictions, own.logits), (output.label_ids, theirs.logits)]
        kl = torch.nn.functional.kl_div(
            own.logits.log_softmax(-1), theirs.logits.log_softmax(-1), reduction="batchmean", log_target=True
        )
        expected = kl.item()
    else:
        pairs = [(output.predictions[0], own.image_embeds), (output.label_ids[1], theirs.text_embeds)]
        distances = [own.image_embeds - theirs.image_embeds, own.text_embeds - theirs.text_embeds]
        expected = torch.stack([d.square().sum(-1).mean() for d in distances]).mean().item()
    for found, wanted in pairs:
        torch.testing.assert_close(torch.as_tensor(found), wanted, rtol=0, atol=1e-5)
    assert output.metrics["test_loss"] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("kind", ["multimodal", "image"])
def test_the_best_gene_by_its_evaluation_is_kept(tmp_path, kind):
    ancestor = classifier() if kind == "image" else pico_clip()
    args = arguments(
        tmp_path,
        max_steps=3,
        save_strategy="steps",
        save_steps=1,
        eval_strategy="steps",
        eval_steps=1,
        load_best_model_at_end=True,
        per_device_eval_batch_size=8,
        metric_for_best_model="eval_loss",
        greater_is_better=True,  # so that it is not the last
    )
    gene = extract_learngene(
        ancestor, pico_pairs(8), args, processor=pico_processor(), eval_dataset=DatasetDict(test=pico_pairs(8))
    )
    history = json.loads((tmp_path / "checkpoint-3" / "trainer_state.json").read_text())["log_history"]
    losses = {entry["step"]: entry["eval_loss"] for entry in history if "eval_loss" in entry}
    best = max(losses, key=losses.get)
    assert best != 3
    kept = type(gene).from_pretrained(tmp_path / f"checkpoint-{best}").state_dict()
    for name, weight in gene.state_dict().items():
        torch.testing.assert_close(weight, kept[name], rtol=0, atol=0)


# ---- sizes


def config_of(vision, text, **kwargs):
    """A gene's config from (depth, width, head size) of both encoders."""
    config = gene_config(vision_depth=vision[0], vision_width=vision[1], num_multimodal_blocks=0, **kwargs)
    for own, (depth, width, head) in ((config.vision_config, vision), (config.text_config, text)):
        own.num_hidden_layers, own.hidden_size, own.num_attention_heads = depth, width, width // head
        own.intermediate_size = 4 * width
    return config


def test_each_encoder_is_drawn_by_its_own_depth():
    grid = size_grid(config_of((8, 32, 8), (2, 32, 8)))
    depths = {depth for depth, _ in grid}
    assert min(depths) == (2, 1)
    assert max(depths) == (8, 2)
    assert {text for _, text in depths} == {1, 2}
    large = {depth for depth, _ in size_grid(config_of((24, 32, 8), (12, 32, 8)))}
    assert min(large) == (6, 3)
    assert max(large) == (24, 12)
    assert all(abs(vision - 2 * text) <= 1 for vision, text in large)


@pytest.mark.parametrize(
    ("vision", "text"),
    [((4, 32, 8), (4, 32, 16)), ((4, 32, 16), (4, 32, 8)), ((3, 32, 8), (5, 48, 16)), ((2, 80, 16), (6, 32, 8))],
)
def test_every_size_that_is_drawn_can_grow_down_to_a_quarter_each_way(vision, text):
    config = config_of(vision, text)
    grid = size_grid(config)
    assert len(set(grid)) == len(grid) > 1
    grown = [config.descendant_config(*size) for size in grid]
    for side, (depth, width, head) in (("vision_config", vision), ("text_config", text)):
        encoders = [getattr(one, side) for one in grown]
        assert min(encoder.num_hidden_layers for encoder in encoders) == -(-depth // 4)
        assert max(encoder.num_hidden_layers for encoder in encoders) == depth
        assert min(encoder.hidden_size for encoder in encoders) <= max(head, width // 2)
        assert max(encoder.hidden_size for encoder in encoders) == width


def test_a_gene_of_unequal_depths_trains_no_text_side_deeper_than_its_own(tmp_path):
    ancestor = pico_clip(vision_depth=4, text_depth=1)
    args = arguments(tmp_path, max_steps=3, elastic=True, elastic_samples=3)
    depths = []
    whole = LearngeneModel.forward

    def recorded(self, *args, depth=None, width=None, **kwargs):
        depths.append(depth)
        return whole(self, *args, depth=depth, width=width, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LearngeneModel, "forward", recorded)
        extract_learngene(ancestor, pico_pairs(8), args, processor=pico_processor())
    drawn = [depth for depth in depths if depth is not None]
    assert len(drawn) == 9
    assert {text for _, text in drawn} == {1}


# ---- optimizers


@pytest.mark.parametrize("muon", [0.004, None])
def test_vectors_and_learned_coefficients_are_not_decayed(tmp_path, muon):
    """With a gradient of zero a decayed parameter shrinks by lr * decay, another stays."""
    ancestor = pico_clip()
    gene = multimodal_gene(mixing="learned", token_embedding_rank=4, projection_dim=16)
    args = arguments(tmp_path, learning_rate=0.1, muon_learning_rate=muon and 0.1, weight_decay=0.5, optim="sgd")
    trainer = ExtractionTrainer(gene, args, ancestor=load_ancestor(ancestor), data_collator=lambda rows: rows)
    optimizer = trainer.create_optimizer()
    before = {name: parameter.detach().clone() for name, parameter in gene.named_parameters()}
    for parameter in gene.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    kept = {name for name, p in gene.named_parameters() if torch.equal(p.detach(), before[name])}
    for name, parameter in gene.named_parameters():
        if name not in kept:
            torch.testing.assert_close(parameter.detach(), before[name] * 0.95)
    for name in ("logit_scale", "vision_coefficients", "text_coefficients", "vision_model.embeddings.class_embedding"):
        assert name in kept
    decayed = set(before) - kept
    assert "vision_blocks.self_attn.q_proj.weight" in decayed
    assert "text_model.embeddings.token_embedding.weight" in decayed
    assert all(before[name].dim() - ("_blocks." in name) >= 2 for name in decayed)
    assert all(before[name].dim() - ("_blocks." in name) < 2 or "coefficients" in name for name in kept)
    assert kept == {name for name, p in gene.named_parameters() if not is_decayed(name, p)}


@pytest.mark.parametrize(
    ("changes", "cls", "setting"),
    [
        ({"optim": "sgd", "optim_args": "momentum=0.7"}, torch.optim.SGD, {"momentum": 0.7}),
        ({"optim": "adagrad"}, torch.optim.Adagrad, {}),
        ({"optim": "adamw_torch", "adam_beta1": 0.5}, torch.optim.AdamW, {"betas": (0.5, 0.98)}),
        ({}, torch.optim.AdamW, {"lr": 1e-3, "betas": (0.9, 0.98)}),
    ],
)
def test_the_optimizer_that_is_asked_for_trains_what_muon_leaves(tmp_path, changes, cls, setting):
    trainer = trainer_of(tmp_path, **changes)
    muon, rest = trainer.create_optimizer().pair
    assert isinstance(muon, StackedMuon)
    assert type(rest) is cls
    for group in rest.param_groups:
        assert {name: group[name] for name in setting} == setting
    stacks = {id(p) for group in muon.param_groups for p in group["params"]}
    others = {id(p) for group in rest.param_groups for p in group["params"]}
    assert stacks | others == {id(p) for p in trainer.model.parameters() if p.requires_grad}
    assert not stacks & others


@pytest.mark.parametrize("muon", [4e-3, 0.0])
def test_scales_are_trained_at_their_own_rate_without_decay(tmp_path, muon):
    trainer = trainer_of(tmp_path, scales=True, muon_learning_rate=muon, scale_learning_rate=0.07, weight_decay=0.3)
    scales = {id(p): name for name, p in trainer.model.named_parameters() if "_scales." in name}
    assert len(scales) == 2 * 12  # two encoders, six matrices, two sides
    optimizer = trainer.create_optimizer()
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    assert groups.keys() == {id(p) for p in trainer.model.parameters() if p.requires_grad}
    for key, group in groups.items():
        assert (group["lr"] == 0.07) == (key in scales)
        assert key not in scales or group["weight_decay"] == 0
    before = weights(trainer)
    trainer.train()
    moved = [name for name, weight in weights(trainer).items() if not torch.equal(weight, before[name])]
    assert set(scales.values()) <= set(moved)


def test_an_optimizer_that_the_trainer_is_given_is_heeded(tmp_path):
    trainer = trainer_of(tmp_path)
    settings = {"model": trainer.model, "args": trainer.args, "ancestor": trainer.ancestor, "data_collator": list}
    rest = ExtractionTrainer(**settings, optimizer_cls_and_kwargs=(torch.optim.RMSprop, {"lr": 0.1}))
    optimizer = rest.create_optimizer()
    assert isinstance(optimizer, OptimizerPair)
    assert type(optimizer.pair[1]) is torch.optim.RMSprop
    own = torch.optim.SGD(trainer.model.parameters(), lr=0.1)
    assert ExtractionTrainer(**settings, optimizers=(own, None)).create_optimizer() is own


def test_without_muon_the_optimizer_is_the_trainers(tmp_path):
    optimizer = trainer_of(tmp_path, muon_learning_rate=0.0, optim="sgd").create_optimizer()
    assert type(optimizer) is torch.optim.SGD


def test_sgd_trains_what_muon_leaves_as_sgd_does(tmp_path):
    muon = {"muon_learning_rate": 1e-12, "optim": "sgd", "learning_rate": 0.05, "weight_decay": 0.0}
    trainer = trainer_of(tmp_path, **muon, max_grad_norm=0.0)
    alone = trainer_of(tmp_path, **(PLAIN | {"weight_decay": 0.0}))
    before = weights(trainer)
    for one in (trainer, alone):
        one.train()
    for name, weight in weights(trainer).items():
        stacked = "_blocks." in name and weight.dim() == 3
        torch.testing.assert_close(weight, before[name] if stacked else weights(alone)[name], rtol=1e-5, atol=1e-7)


def place_anew(model):
    """As `.to("cpu:0")` does under torchrun: other memory, after the optimizer was made."""
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    return model


@pytest.mark.parametrize(
    ("place", "changes"),
    [
        (place_anew, {}),
        (lambda model: model.to("cpu:0"), {}),
        (lambda model: model.double().float(), {}),
        pytest.param(lambda model: torch.compile(model, backend="eager"), {}, marks=pytest.mark.slow),
    ],
)
def test_the_blocks_are_trained_wherever_accelerate_places_the_parameters(tmp_path, monkeypatch, place, changes):
    expected = trainer_of(tmp_path, max_steps=2, **changes)
    before = weights(expected)
    expected.train()
    prepare_model = accelerate.Accelerator.prepare_model
    monkeypatch.setattr(
        accelerate.Accelerator, "prepare_model", lambda self, model, **kw: place(prepare_model(self, model, **kw))
    )
    trainer = trainer_of(tmp_path, max_steps=2, **changes)
    trainer.train()
    moved = weights(trainer)
    for name, weight in weights(expected).items():
        torch.testing.assert_close(moved[name], weight, rtol=0, atol=1e-6)
        if "_blocks." in name and weight.dim() == 3:
            assert (moved[name] - before[name]).abs().max() > 1e-4


# ---- batches and streams


def test_a_streams_odd_last_batch_is_left_out(tmp_path):
    sizes = []

    def recorded(rows):
        sizes.append(len(rows))
        return collator(rows)

    trainer = trainer_of(tmp_path, rows=13, max_steps=7)
    collator = trainer.data_collator
    trainer.data_collator = recorded
    trainer.train_dataset = trainer.eval_dataset.to_iterable_dataset()
    trainer.train()
    assert set(sizes) == {4}


@pytest.mark.parametrize("kind", ["multimodal", "image"])
@pytest.mark.parametrize("stream", [False, True])
def test_fewer_rows_than_a_batch_are_refused(tmp_path, kind, stream):
    rows = pico_pairs(5).to_iterable_dataset() if stream else pico_pairs(5)
    ancestor = classifier() if kind == "image" else pico_clip()
    args = arguments(tmp_path, per_device_train_batch_size=32)
    told = "fewer rows" if stream else "5 rows, fewer"
    with pytest.raises(LearngeneError, match=f"the training data has {told} than one batch of 32"):
        extract_learngene(ancestor, rows, args, processor=pico_processor())
    assert not list(tmp_path.glob("*.safetensors"))


def test_an_evaluation_split_with_fewer_rows_than_a_batch_is_refused_before_training(tmp_path):
    args = arguments(tmp_path, eval_strategy="steps", eval_steps=1, per_device_eval_batch_size=8)
    with pytest.raises(LearngeneError, match="the evaluation data has 3 rows, fewer than one batch of 8"):
        extract_learngene(pico_clip(), pico_pairs(8), args, processor=pico_processor(), eval_dataset=pico_pairs(3))
    assert not list(tmp_path.glob("checkpoint-*"))


@pytest.mark.parametrize("loss", ["contrastive_weight", "affinity_weight"])
def test_a_batch_of_one_pair_is_refused_where_pairs_are_contrasted(tmp_path, loss):
    settings = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4}
    with pytest.raises(LearngeneError, match="training batch of one pair has no negatives"):
        trainer_of(tmp_path, **settings, **{loss: 1.0}).train()
    with pytest.raises(LearngeneError, match="evaluation batch of one pair has no negatives"):
        trainer_of(tmp_path, per_device_eval_batch_size=1, **{loss: 1.0}).evaluate()
    trainer_of(tmp_path, **settings).train()  # features are compared row by row
    trainer_of(tmp_path, "image", **settings, **{loss: 1.0}).train()  # an image gene contrasts nothing


def test_a_stream_without_length_or_rows_is_refused(tmp_path):
    stream = pico_pairs(8).to_iterable_dataset()
    with pytest.raises(LearngeneError, match="is a stream.* set max_steps"):
        extract_learngene(pico_clip(), stream, arguments(tmp_path, max_steps=-1), processor=pico_processor())
    empty = IterableDataset.from_generator(lambda: iter(()))
    with pytest.raises(LearngeneError, match="is empty"):
        extract_learngene(pico_clip(), empty, arguments(tmp_path), processor=pico_processor())


def test_dictionaries_of_splits_are_taken_by_their_split_or_refused_by_name(tmp_path):
    splits = DatasetDict(train=pico_pairs(8), test=pico_pairs(8))
    gene = extract_learngene(pico_clip(), splits, arguments(tmp_path / "a"), processor=pico_processor())
    assert gene.config.recipe["rows"] == 8
    with pytest.raises(LearngeneError, match="no split 'other': it has train, test"):
        extract_learngene(pico_clip(), splits, arguments(tmp_path / "b", split="other"), processor=pico_processor())
    args = arguments(tmp_path / "c", eval_strategy="steps")
    with pytest.raises(LearngeneError, match="eval_dataset has the splits train, test: give one"):
        extract_learngene(pico_clip(), splits, args, processor=pico_processor(), eval_dataset=splits)
    with pytest.raises(LearngeneError, match="eval_strategy is 'steps', but there is no eval_dataset"):
        extract_learngene(pico_clip(), splits, args, processor=pico_processor())


@pytest.mark.parametrize(("column", "kind"), [("image_column", "image"), ("text_column", "text")])
@pytest.mark.parametrize("stream", [False, True])
def test_unknown_columns_are_named(tmp_path, column, kind, stream):
    data = pico_pairs(8).to_iterable_dataset() if stream else pico_pairs(8)
    with pytest.raises(LearngeneError, match=f"no {kind} column 'other'"):
        extract_learngene(pico_clip(), data, arguments(tmp_path, **{column: "other"}), processor=pico_processor())


# ---- processors


def test_a_processor_of_another_model_is_refused(tmp_path):
    tokenizer = pico_tokenizer()
    tokenizer.add_tokens(["<another>"])
    other_texts = CLIPProcessor(image_processor=pico_processor().image_processor, tokenizer=tokenizer)
    for processor, match in (
        (other_texts, "another model's tokenizer"),
        (pico_processor(image_size=32), r"makes pictures \[3, 32, 32\], the ancestor takes \[3, 16, 16\]"),
        (pico_tokenizer(), "has no image_processor"),
        (pico_processor().image_processor, "has no image_processor"),
    ):
        with pytest.raises(LearngeneError, match=match):
            extract_learngene(pico_clip(), pico_pairs(8), arguments(tmp_path), processor=processor)
    for processor, match in ((pico_tokenizer(), "cannot process a picture"), (pico_processor(32), "makes pictures")):
        with pytest.raises(LearngeneError, match=match):
            extract_learngene(classifier(), pico_pairs(8), arguments(tmp_path), processor=processor)


def test_texts_beyond_the_positions_are_cut_where_the_tokenizer_has_no_limit(tmp_path):
    processor = pico_processor()
    pairs = pico_pairs(8).map(lambda row: {"caption": " ".join([row["caption"]] * 20)})
    whole = extract_learngene(pico_clip(), pairs, arguments(tmp_path / "a"), processor=processor)
    processor.tokenizer.model_max_length = int(1e30)
    cut = extract_learngene(pico_clip(), pairs, arguments(tmp_path / "b"), processor=processor)
    for name, weight in whole.state_dict().items():
        torch.testing.assert_close(cut.state_dict()[name], weight, rtol=0, atol=1e-6)
    with pytest.raises(LearngeneError, match="max_length is 2, but 2 tokens of each text are marks"):
        extract_learngene(pico_clip(), pairs, arguments(tmp_path / "c", max_length=2), processor=processor)


# ---- arguments


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rate": 0.0, "muon_learning_rate": None}, "learning_rate and muon_learning_rate are both 0"),
        ({"learning_rate": -1.0}, "learning_rate is -1.0: it cannot be negative"),
        ({"learning_rate": float("nan")}, "learning_rate is nan: it must be a number"),
        ({"learning_rate": "fast"}, "learning_rate is 'fast': it must be a number"),
        ({"muon_learning_rate": float("inf")}, "muon_learning_rate is inf"),
        ({"max_steps": 0}, "max_steps is 0: it takes 1 or more, or -1"),
        ({"max_steps": -1, "num_train_epochs": 0}, "num_train_epochs is 0: it must be above 0"),
        ({"max_steps": -1, "num_train_epochs": float("nan")}, "num_train_epochs is nan"),
        ({"per_device_train_batch_size": 0}, "per_device_train_batch_size is 0: it takes 1 or more"),
        ({"gradient_accumulation_steps": 0}, "gradient_accumulation_steps is 0: it takes 1 or more"),
        ({"rotation_rows": 0}, "rotation_rows is 0: it takes 1 or more"),
        ({"max_length": -3}, "max_length is -3: it takes 1 or more"),
        ({"weight_decay": float("nan")}, "weight_decay is nan"),
        ({"adam_beta2": 1.0}, "adam_beta2 is 1.0: it takes 0 up to, but not, 1"),
        ({"affinity_scale": 0.0}, "affinity_scale is 0.0: it must be above 0"),
        ({"optim": "schedule_free_adamw"}, "muon_learning_rate is 0.004 with optim='schedule_free_adamw'"),
        ({"optim": "lomo"}, "with optim='lomo', which cannot stand beside"),
        ({"optim": "nothing"}, "optim is 'nothing': nothing.* is not a valid"),
        ({"lr_scheduler_type": "steep"}, "lr_scheduler_type is 'steep': steep is not a valid"),
    ],
)
def test_numbers_that_cannot_be_are_refused_in_a_sentence(tmp_path, changes, message):
    with pytest.raises(LearngeneError, match=message):
        arguments(tmp_path, **changes)


def test_settings_of_an_optimizer_that_cannot_be_are_refused_in_a_sentence(tmp_path):
    with pytest.raises(LearngeneError, match="optim is 'sgd' with optim_args 'momentum'"):
        trainer_of(tmp_path, optim="sgd", optim_args="momentum")

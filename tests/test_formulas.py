"""Other formulas of a gene, which a study tries: their weights by algebra, and the default's runs as the package's."""

import pytest
import torch
from datasets import Value
from pico import pico_clip, pico_pairs, pico_processor
from test_extraction import arguments

from benchmarks.common.fashion import TITLE, TYPE, measure
from benchmarks.common.options import read_settings
from benchmarks.extraction import report
from benchmarks.extraction.formulas import FormulaModel
from benchmarks.extraction.runs import Measured, Source, extract, start
from mmlg_hf import LearngeneModel, extract_learngene
from mmlg_hf.extraction.ancestors import gene_config
from mmlg_hf.extraction.trainer import ExtractionTrainer

FC1, OUT = "mlp.fc1.weight", "self_attn.out_proj.weight"


def gene(multimodal=1, unimodal=1, mixing="shared-slope", **formula):
    """Of 4 layers x 32 and x 16, all weights drawn anew; and the names of its blocks' values."""
    ancestor = pico_clip(vision_depth=4, text_depth=4, vision_width=32, text_width=16)
    config = gene_config(ancestor, num_multimodal_blocks=multimodal, num_unimodal_blocks=unimodal, mixing=mixing)
    model = FormulaModel(config, **formula)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return model.eval()


def blocks(model, group, name):
    return dict(model.block_groups()[group].named_parameters())[name]


def layer(model, index, name=FC1, side="vision_model"):
    return model.get_parameter(f"{side}.encoder.layers.{index}.{name}")


def inputs(rows=4):
    generator = torch.Generator().manual_seed(1)
    return {
        "pixel_values": torch.randn(rows, 3, 16, 16, generator=generator),
        "input_ids": torch.randint(0, 300, (rows, 6), generator=generator),
    }


def test_a_side_without_scales_has_no_parameters_and_is_as_the_blocks_give_it():
    model = gene(scales=("rows",))
    rows = model.get_parameter("vision_scales.mlp.fc1.rows")
    assert not [name for name, _ in model.named_parameters() if name.endswith(".columns")]
    shared, own = blocks(model, "multimodal", FC1)[0], blocks(model, "image", FC1)[0]
    torch.testing.assert_close(layer(model.descendant(), 1), rows[1][:, None] * (own + shared / 4))


@pytest.mark.parametrize(
    "formula", [{"scales": ("rows", "columns")}, {"scales": ("columns",), "low_rank": 0.25}, {"smooth": 2}]
)
def test_a_formula_computes_what_its_descendants_compute_and_is_trained_through_slices(formula):
    model = gene(**formula)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.1)
    model.begin()
    for size in (None, (3, 16)):
        given = {} if size is None else {"depth": size[0], "width": size[1]}
        grown = model.descendant(*(size or ()))(**inputs())
        torch.testing.assert_close(model(**inputs(), **given).image_embeds, grown.image_embeds)
        model(**inputs(), **given).logits_per_image.square().sum().backward()
    trained = [p for name, p in model.named_parameters() if "scales." in name or name.startswith("smooth.")]
    assert trained
    assert all(p.grad.abs().sum() > 0 for p in trained)


def test_a_slope_of_low_rank_is_the_closest_one_and_begins_with_the_gene_of_full_rank():
    whole, low = gene(0, 2, "linear"), gene(0, 2, "linear", low_rank=0.25)
    base, slope = blocks(low, "image", FC1).detach().clone()
    low.begin()
    left, right = blocks(low, "image", "mlp.fc1.left")[0], blocks(low, "image", "mlp.fc1.right")[0]
    assert (left.shape, right.shape) == ((128, 8), (32, 8))  # a quarter of 32
    values = torch.linalg.svdvals(slope)
    torch.testing.assert_close((slope - left @ right.T).square().sum(), values[8:].square().sum(), rtol=1e-4, atol=0)
    torch.testing.assert_close(layer(low.descendant(2), 1), base + left @ right.T / 2)
    saved = sum(12 * d * d - 18 * d * (d // 4) for d in (32, 16))  # two factors in place of each slope
    assert whole.num_parameters() - low.num_parameters() == saved


def test_a_shared_block_of_low_rank_leaves_the_encoders_own_whole():
    model = gene(low_rank=0.5)
    model.begin()
    assert blocks(model, "multimodal", "mlp.fc1.left").shape == (1, 128, 16)
    assert blocks(model, "image", FC1).shape == (1, 128, 32)


def test_smooth_coefficients_start_fixed_and_add_polynomials_of_depth():
    model = gene(smooth=2)
    with torch.no_grad():
        model.smooth["image"].zero_()
        model.smooth["image"][12, :, 0] = torch.tensor([0.5, 1.0, 2.0])  # of fc1's weight and the shared block
    found = model.coefficients("image", 2)
    torch.testing.assert_close(found["mlp.fc1.weight"], torch.tensor([[0.0 + 0.5 - 2.0, 1.0], [0.5 + 1.0 - 1.0, 1.0]]))
    torch.testing.assert_close(found["mlp.fc2.weight"], model.fixed_coefficients(2))


def test_a_shared_block_beside_two_of_an_encoders_own_takes_the_quadratic_function():
    x = torch.arange(4) / 4
    wanted = torch.stack([2 * x**2 - 1, torch.ones(4), x], dim=1)
    torch.testing.assert_close(gene(1, 2, "linear").fixed_coefficients(4), wanted)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    pairs = pico_pairs(16).rename_column("caption", TITLE)
    return Source.load(pico_clip(), pairs, tmp_path_factory.mktemp("outputs"), pico_processor())


def settings(folder, **changes):
    columns = {"image_column": "image", "text_column": TITLE}
    return arguments(folder, max_steps=2, save_strategy="no", trim_vocabulary=True, **columns, **changes)


@pytest.mark.parametrize(
    "changes",
    [{}, {"rotate": False, "initialisation": "random", "num_multimodal_blocks": 0, "num_unimodal_blocks": 2}],
)
@pytest.mark.slow
def test_a_run_of_the_study_is_an_extraction_of_the_package(source, tmp_path, changes):
    ours, losses = extract(source, settings(tmp_path, **changes))
    pairs = pico_pairs(16).rename_column("caption", TITLE)
    args = settings(tmp_path, weight_scales=False, **changes)  # the study's own formula
    theirs = extract_learngene(pico_clip(), pairs, args, processor=pico_processor())
    assert len(losses) == 2
    found = dict(theirs.named_parameters())
    assert found.keys() == dict(ours.named_parameters()).keys()
    for name, parameter in ours.named_parameters():
        assert torch.equal(parameter, found[name]), name


def test_what_a_formula_has_of_its_own_is_trained_at_its_own_rate_without_decay(source, tmp_path):
    args = settings(tmp_path, weight_decay=0.3, warmup_steps=0, lr_scheduler_type="constant", max_grad_norm=0)
    before = start(source, args, {"scales": ["rows"]})
    after, _ = extract(source, args, formula={"scales": ["rows"]}, rate=0.05)
    for old, new in zip(before.own_parameters(), after.own_parameters(), strict=True):
        assert torch.equal(old, torch.ones_like(old))
        moved = (new - old).abs()
        assert moved.max() <= 0.1001  # AdamW: at most the rate a step
        assert moved.max() > 0.05


@pytest.mark.parametrize(
    ("first", "wanted"), [("full", [1, 1, 3, 3]), ("smaller", [2, 2, 3, 3]), (None, [3, 3, 3, 3])]
)
def test_sizes_are_trained_in_their_order(source, tmp_path, first, wanted, monkeypatch):
    seen = []
    run = ExtractionTrainer._distil

    def counting(self, *args):
        seen.append(len(self._sizes()))
        return run(self, *args)

    monkeypatch.setattr(ExtractionTrainer, "_distil", counting)
    args = settings(tmp_path)
    args.max_steps = 4
    extract(source, args, first=first)
    assert seen == wanted


def test_a_run_can_stop_before_its_schedule_ends(source, tmp_path):
    args = settings(tmp_path)
    args.max_steps = 4
    _, losses = extract(source, args, stop_after=0.5)
    assert len(losses) == 2


def test_the_default_is_the_formula_of_the_package():
    model = gene()
    plain = LearngeneModel(model.config)
    plain.load_state_dict(model.state_dict())
    torch.testing.assert_close(layer(model.descendant(3, 16), 2), layer(plain.descendant(3, 16), 2))


def test_a_descendant_is_measured_as_the_other_studies_do():
    rows = pico_pairs(16, labels=True).rename_columns({"caption": TITLE, "label": TYPE})
    rows = rows.cast_column(TYPE, Value("int64")).map(lambda row: {TYPE: f"type {row[TYPE]}"}, features=None)
    model = gene().descendant(2)
    processor = pico_processor()
    wanted = measure(model, rows, processor)
    assert Measured(rows, processor).figures(model) == pytest.approx(wanted)


def test_choices_are_compared_seed_by_seed_in_the_order_of_the_settings():
    run = lambda *values: {"sizes": [{"mean_R@1": value} for value in values]}  # noqa: E731
    keys = {"AdamW/1": run(0.5, 0.7), "AdamW/0": run(0.1, 0.3), "default/0": run(0.1, 0.1), "default/2": run(0, 0)}
    runs = report.by_name({"runs": keys})
    assert list(runs) == ["default", "AdamW"]
    assert list(runs["AdamW"]) == [0, 1]
    assert report.means(runs["AdamW"], "R@1") == pytest.approx([20, 60])
    assert report.ahead(runs["AdamW"], runs["default"], "R@1") == pytest.approx([10])


def test_every_choice_has_its_place_on_the_page_and_finalists_are_choices():
    settings = read_settings(report.__file__)
    placed = [name for names in settings["parts"].values() for name in names]
    assert sorted(placed) == sorted(settings["choices"])
    assert set(settings["finalists"]) <= set(placed)

"""A SigLIP all the way through `extract_learngene`: turned in stream and embeddings, grown whole and at half width."""

import pytest
import torch
from pico import pico_pairs, pico_processor
from pico_families import decaying_map, family_inputs, make_hostile, pico_ancestor
from torch.nn import functional as F
from transformers import SiglipModel, SiglipTextModel, SiglipVisionModel

from mmlg_hf import ExtractionArguments, extract_learngene, from_learngene, load_learngene

WIDTH = 32
# One step that changes nothing, of a gene that can be what its ancestor is.
STILL = {"max_steps": 1, "learning_rate": 1e-12, "muon_learning_rate": None, "elastic": False}
EXACTLY = {"mixing": "learned", "num_unimodal_blocks": 3, "token_embedding_rank": 999}


def extract(folder, ancestor, **changes):
    settings = {"per_device_train_batch_size": 8, "report_to": "none", "disable_tqdm": True, "use_cpu": True}
    args = ExtractionArguments(str(folder), **settings, logging_steps=1, **changes)
    return extract_learngene(ancestor, pico_pairs(48), args, processor=pico_processor())


def run(model, **inputs):
    with torch.no_grad():
        return model(**inputs)


@pytest.fixture(scope="module", params=["alike", "unlike"])
def extracted(request, tmp_path_factory):
    """An ancestor with hostile statistics, and the folder of the gene that was extracted from it without learning."""
    sizes = {"text_width": WIDTH} if request.param == "alike" else {"text_width": 16, "vision_depth": 3}
    ancestor = make_hostile(pico_ancestor("siglip", vision_width=WIDTH, **sizes))
    folder = tmp_path_factory.mktemp(request.param)
    return ancestor, extract(folder, ancestor, **STILL, **EXACTLY), folder


def test_a_full_size_descendant_of_an_extracted_gene_is_the_ancestor_turned(extracted):
    ancestor, gene, folder = extracted
    assert gene.config.recipe["turned"] == {side: pytest.approx(1, abs=1e-3) for side in ("image", "text")}
    assert gene.config.scale_norms is True
    grown = from_learngene(folder)
    assert type(grown) is SiglipModel
    own, theirs, genes = (run(model, **family_inputs("siglip")) for model in (grown, ancestor, load_learngene(folder)))
    torch.testing.assert_close(own.logits_per_text, theirs.logits_per_text, rtol=0, atol=1e-4)
    both = [torch.cat([out.image_embeds, out.text_embeds]) for out in (own, theirs)]
    torch.testing.assert_close(both[0] @ both[0].T, both[1] @ both[1].T, rtol=0, atol=1e-4)
    assert not torch.allclose(*both, atol=1e-2)  # of one rotation of all embeddings
    for name in ("image_embeds", "text_embeds"):
        torch.testing.assert_close(own[name], genes[name], rtol=0, atol=1e-5)


def test_the_loss_is_none_where_the_gene_is_its_turned_ancestor(extracted):
    assert extracted[1].config.recipe["final_losses"]["loss_feature"] < 1e-4


def test_each_side_of_an_extracted_gene_embeds_as_the_whole_does(extracted):
    _, gene, folder = extracted
    inputs = family_inputs("siglip")
    whole = run(gene, **inputs)
    image, text = (from_learngene(folder, modality=side) for side in ("image", "text"))
    assert (type(image), type(text)) == (SiglipVisionModel, SiglipTextModel)
    pooled = run(image, pixel_values=inputs["pixel_values"]).pooler_output
    torch.testing.assert_close(F.normalize(pooled, dim=-1), whole.image_embeds, rtol=0, atol=1e-5)
    pooled = run(text, input_ids=inputs["input_ids"]).pooler_output
    torch.testing.assert_close(F.normalize(pooled, dim=-1), whole.text_embeds, rtol=0, atol=1e-5)


def decaying():
    """A SigLIP whose streams and embeddings lie in directions of falling strength, none of them a channel."""
    model = pico_ancestor("siglip", vision_width=WIDTH, text_width=WIDTH)
    generator = torch.Generator().manual_seed(4)
    shrink = decaying_map(WIDTH, 0.75, generator)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if name.endswith(("out_proj.weight", "text_model.head.weight")):
                parameter.copy_(shrink @ noise)
            elif name.endswith("fc2.weight"):
                parameter.copy_(shrink @ noise * 0.1)
            elif "patch_embedding.weight" in name:
                parameter.copy_((shrink @ noise.flatten(1)).view_as(parameter) * 0.1)
            elif "position_embedding" in name or "token_embedding" in name:
                parameter.copy_(noise @ shrink)
    return model.eval()


def test_half_the_width_of_a_turned_siglip_keeps_more_of_it_in_its_leading_components(tmp_path):
    ancestor, generator = decaying(), torch.Generator().manual_seed(9)
    tokens = torch.randint(0, 500, (40, 16), generator=generator)
    inputs = {"pixel_values": torch.randn(40, 3, 16, 16, generator=generator), "input_ids": tokens}
    errors: dict[str, list] = {}

    def similarities(rows):
        rows = F.normalize(rows - rows.mean(0), dim=-1)
        return rows @ rows.T

    for rotate in (False, True):
        gene = extract(tmp_path / str(rotate), ancestor, **STILL, **EXACTLY, rotate=rotate)
        grown, whole, wanted = (run(model, **inputs) for model in (gene.descendant(width=16), gene, ancestor))
        for side in ("image_embeds", "text_embeds"):
            assert grown[side].shape == (40, 16)
            errors.setdefault(f"left out of {side}", []).append(1 - whole[side][:, :16].square().sum(1).mean().item())
            error = (similarities(grown[side]) - similarities(wanted[side])).square().mean().item()
            errors.setdefault(f"error of {side}", []).append(error)
    for name, (plain, turned) in errors.items():
        assert turned < plain, name
        assert turned < 0.1 < plain or name.startswith("error"), name


def test_narrow_siglips_learn_the_leading_components_of_the_turned_ancestor(tmp_path):
    gene = extract(tmp_path, decaying(), max_steps=8, muon_learning_rate=0.02, elastic_samples=1)
    losses = gene.config.recipe["final_losses"]
    still = extract(tmp_path / "still", decaying(), **{**STILL, "elastic": True, "elastic_samples": 1})
    before = still.config.recipe["final_losses"]
    assert losses["loss_feature"] < before["loss_feature"]
    assert losses["loss_feature_smaller"] < before["loss_feature_smaller"]

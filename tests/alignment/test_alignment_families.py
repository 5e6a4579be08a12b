"""What the systems built on genes do with those of other families: they take the descendants, or refuse by name."""

import pytest
import torch
from pico import pico_processor
from pico_encoders import batch, make_encoder, perturb
from pico_families import make_hostile, pico_ancestor
from transformers import ViTConfig, ViTModel

from mmlg_hf import align, from_learngene
from mmlg_hf.alignment import DualEncoderModel
from mmlg_hf.clip_moe import upcycle
from mmlg_hf.errors import LearngeneError
from mmlg_hf.extraction.ancestors import gene_config
from mmlg_hf.modeling_learngene import LearngeneModel


def gene_of(family):
    """A gene of pico size, every tensor away from where it starts."""
    if family == "vit":
        sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
        vit = ViTModel(ViTConfig(**sizes, image_size=16, patch_size=8))
        config = gene_config(vit, num_multimodal_blocks=0, num_unimodal_blocks=2, mixing="linear")
    else:
        config = gene_config(pico_ancestor(family), num_multimodal_blocks=1, num_unimodal_blocks=1, mixing="linear")
    return make_hostile(LearngeneModel(config))


@pytest.mark.parametrize("family", ["vit", "siglip", "metaclip_2"])
def test_image_descendants_of_every_family_are_aligned_and_found_again_by_their_gene(tmp_path, family):
    gene = gene_of(family)
    gene.processor = pico_processor()
    gene.save_pretrained(tmp_path / "gene")
    image = from_learngene(tmp_path / "gene", depth=1, width=16, modality="image")
    pair = align(image, make_encoder("bert"), "projections").eval()
    assert pair.config.vision_base["name"] == str(tmp_path / "gene")
    assert pair.config.vision_base["grown"] == {"depth": 1, "width": 16}
    perturb(pair)
    pair.save_pretrained(tmp_path / "pair")
    again = DualEncoderModel.from_pretrained(tmp_path / "pair").eval()
    with torch.no_grad():
        own, theirs = again(**batch()).image_embeds, pair(**batch()).image_embeds
    torch.testing.assert_close(own, theirs)


@pytest.mark.parametrize("family", ["siglip", "metaclip_2"])
def test_a_mixture_of_another_family_is_refused_by_name(tmp_path, family):
    grown = gene_of(family).descendant()
    with pytest.raises(LearngeneError, match=f"is of type '{family}': upcycling takes a CLIPModel"):
        upcycle(grown, [grown], num_experts_per_tok=1)


def test_a_mixture_of_a_vit_is_refused_by_name():
    grown = gene_of("vit").descendant()
    with pytest.raises(LearngeneError, match="is of type 'vit': upcycling takes a CLIPModel"):
        upcycle(grown, [grown], num_experts_per_tok=1)

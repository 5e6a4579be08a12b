"""An ancestor turned, a gene fitted to it, descendants grown: what is left of the ancestor at the end of all three."""

import pytest
import torch
from pico_families import decaying_map, family_inputs, make_hostile, pico_ancestor
from test_families import embeds, fitted_gene, outputs
from test_rotation import batch, centred_cosine

from mmlg_hf.extraction.rotation import rotate_channels

WIDTH = 128  # of the image encoder: averages over fewer channels tell less of a norm that varies


def inputs_of(family, rows=48):
    made = batch(rows)
    return {name: made[name] for name in family_inputs(family)}


def turned_gene(ancestor, inputs):
    turned, _ = rotate_channels(ancestor, [inputs])
    return fitted_gene(turned, blocks=(1, 2))


@pytest.mark.parametrize("family", ["clip", "metaclip_2", "siglip"])
def test_a_full_size_descendant_of_a_turned_ancestor_computes_what_the_ancestor_did(family):
    widths = {"vision_width": WIDTH, "text_width": WIDTH if family == "siglip" else 32}
    ancestor = make_hostile(pico_ancestor(family, vision_depth=2, text_depth=2, **widths))
    inputs = inputs_of(family)
    own, theirs = outputs(turned_gene(ancestor, inputs).descendant(), inputs), outputs(ancestor, inputs)
    if family == "siglip":  # its embeddings are turned, too: their products stay
        torch.testing.assert_close(own.logits_per_image, theirs.logits_per_image, rtol=0, atol=1e-4)
        return
    torch.testing.assert_close(own.text_embeds, theirs.text_embeds, rtol=0, atol=1e-4)
    # A norm that varies is folded into the embeddings, which is not exact.
    assert centred_cosine(own.image_embeds, theirs.image_embeds) >= 0.998


def decaying(family, seed=4):
    """An ancestor whose streams lie in directions of falling strength, none of them a channel."""
    model = pico_ancestor(family, vision_depth=2, text_depth=2, vision_width=32, text_width=32)
    generator = torch.Generator().manual_seed(seed)
    for encoder in (model.vision_model, model.text_model):
        shrink = decaying_map(32, 0.75, generator)
        with torch.no_grad():
            for name, parameter in encoder.named_parameters():
                noise = torch.randn(parameter.shape, generator=generator)
                if name.endswith("out_proj.weight"):
                    parameter.copy_(shrink @ noise * 0.3)
                elif name.endswith("fc2.weight"):
                    parameter.copy_(shrink @ noise * 0.1)
                elif "patch_embedding.weight" in name:
                    parameter.copy_((shrink @ noise.flatten(1)).view_as(parameter) * 0.1)
                elif "embedding" in name:
                    parameter.copy_(noise @ shrink)
    return model.eval()


@pytest.mark.parametrize("family", ["clip", "metaclip_2"])
def test_half_width_slices_of_a_turned_ancestor_keep_more_of_it(family):
    ancestor = decaying(family)
    inputs = inputs_of(family)
    wanted = embeds(outputs(ancestor, inputs))
    plain, turned = (
        embeds(outputs(gene.descendant(width=16), inputs))
        for gene in (fitted_gene(ancestor, blocks=(1, 2)), turned_gene(ancestor, inputs))
    )
    for side, whole in enumerate(wanted):
        kept, before = centred_cosine(turned[side], whole), centred_cosine(plain[side], whole)
        assert kept > before + 0.1, (side, kept, before)

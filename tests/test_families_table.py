"""Public configurations: a gene of each, without memory, and the table that the documentation shows of them."""

import importlib.util
from pathlib import Path

import pytest
import torch

from mmlg_hf.modeling_learngene import class_of_gene

PROGRAM = Path(__file__).resolve().parent.parent / "docs" / "families_table.py"
spec = importlib.util.spec_from_file_location("families_table", PROGRAM)
families_table = importlib.util.module_from_spec(spec)
spec.loader.exec_module(families_table)

# As the model cards and the files on the Hub have them.
PARAMETERS = {
    "OpenAI ViT-B/32": 151_277_313,
    "OpenAI ViT-L/14": 427_616_513,
    "LAION ViT-H/14": 986_109_441,
    "SigLIP B/16": 203_155_970,
    "SigLIP 2 B/16": 375_187_970,
    "DINOv2 S/14": 22_056_576,
    "DINOv2 B/14": 86_580_480,
}


@pytest.mark.parametrize("name", families_table.CONFIGURATIONS)
def test_a_public_configuration_gives_a_gene_on_the_meta_device(name):
    ancestor, config = families_table.build(name)
    assert ancestor.num_parameters() == PARAMETERS.get(name, ancestor.num_parameters())
    with torch.device("meta"):
        gene = class_of_gene(config)(config)
    assert all(parameter.is_meta for parameter in gene.parameters())
    assert gene.num_parameters() < ancestor.num_parameters() / 2
    assert (config.explain_unshared() is not None) == (name == "LAION ViT-H/14")


def test_the_page_shows_what_the_program_works_out():
    page = families_table.PAGE.read_text(encoding="utf-8")
    assert families_table.rendered(page) == page

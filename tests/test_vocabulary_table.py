"""The numbers about vocabulary and context that the documentation states."""

import json
from pathlib import Path

import pytest
from pico import pico_clip

from benchmarks.vocabulary import RESULTS, render, table_megabytes
from mmlg_hf.expansion import factor_table

ROOT = Path(__file__).resolve().parent.parent


def test_the_documentation_has_the_tables_that_were_measured():
    results = json.loads(RESULTS.read_text())
    text = (ROOT / "docs" / "extract.md").read_text(encoding="utf-8")
    assert render(results) in text
    assert f"{results['tokens_kept']:,} of its {results['tokens']:,} tokens" in text
    assert f"{results['mean_length']} tokens on average" in " ".join(text.split())


def test_megabytes_are_those_of_real_tables():
    table = pico_clip().text_model.embeddings.token_embedding.weight.detach()
    assert table_megabytes(*table.shape) == pytest.approx(table.numel() * 4 / 1e6)
    factors = factor_table(table, 8)
    assert table_megabytes(*table.shape, 8) == pytest.approx(sum(factor.numel() * 4 for factor in factors) / 1e6)

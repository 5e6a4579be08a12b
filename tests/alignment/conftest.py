"""Fixtures of the alignment tests."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]


@pytest.fixture
def saved(tmp_path: Path):
    """Give a function that saves a pico encoder of a kind, with CLIP's processor, and returns the folder."""

    from pico import pico_processor
    from pico_encoders import make_encoder

    def save(kind: str, seed: int = 0) -> str:
        folder = tmp_path / f"{kind}-{seed}"
        make_encoder(kind, seed).save_pretrained(folder)
        pico_processor().save_pretrained(folder)
        return str(folder)

    return save

"""Outputs of a stream's rows are computed when first met, known by what a row holds, and read from then on."""

from functools import partial

import pytest
import torch
from pico import pico_clip, pico_pairs, pico_processor

from mmlg_hf import ExtractionArguments, extract_learngene
from mmlg_hf.data import read_rows
from mmlg_hf.errors import LearngeneError
from mmlg_hf.extraction import trainer as module
from mmlg_hf.extraction.ancestors import EMBEDDING_COLUMNS, ancestor_outputs
from mmlg_hf.extraction.streamed_outputs import StreamedOutputs, key_of, keys_of
from mmlg_hf.training import ImageTextCollator

STEPS, BATCH = 6, 8  # three passes over 16 rows


@pytest.fixture
def asked(monkeypatch):
    """How many rows the ancestor was given in each step that it was asked in."""
    rows = []

    def counted(ancestor, inputs):
        rows.append(len(inputs["input_ids"]))
        return ancestor_outputs(ancestor, inputs)

    monkeypatch.setattr(module, "ancestor_outputs", counted)
    return rows


def extract(folder, pairs, **changes):
    settings = {"max_steps": STEPS, "per_device_train_batch_size": BATCH, "use_cpu": True, "report_to": []}
    settings |= {"disable_tqdm": True, "cache_stream": True, "ancestor_cache_dir": str(folder / "kept")}
    args = ExtractionArguments(str(folder / "gene"), **(settings | changes))
    return extract_learngene(pico_clip(), pairs.to_iterable_dataset(), args, processor=pico_processor())


def test_a_row_is_asked_for_once_and_the_gene_is_the_same(tmp_path, asked):
    kept = extract(tmp_path, pico_pairs(16)).state_dict()
    assert asked == [BATCH, BATCH]
    extract(tmp_path, pico_pairs(16).shuffle(seed=1), max_steps=2, seed=1)  # another run on the same rows
    assert asked == [BATCH, BATCH]
    plain = extract(tmp_path, pico_pairs(16), cache_stream=False).state_dict()
    assert asked == [BATCH] * (2 + STEPS)
    for name, weight in plain.items():
        torch.testing.assert_close(kept[name], weight, rtol=0, atol=1e-6)


def rows_of(count=6):
    return list(read_rows(pico_pairs(count).to_iterable_dataset(), pico_processor()))


def test_rows_are_known_by_their_pixels_and_tokens_alone():
    one, other = rows_of()[:2]
    assert key_of(one) == key_of({**one, "url": "elsewhere"}) != key_of(other)
    assert key_of(one) != key_of({**one, "input_ids": other["input_ids"]})
    changed = torch.as_tensor(one["pixel_values"]).clone()
    changed[0, 0, 0] ^= 1
    assert key_of(one) != key_of({**one, "pixel_values": changed})


def test_what_is_read_is_what_was_computed_whatever_the_order_and_damage_is_computed_anew(tmp_path):
    ancestor, processor = pico_clip().eval(), pico_processor()
    rows, collator = rows_of(), ImageTextCollator(processor)
    batch = collator(rows)
    expected, asked = ancestor_outputs(ancestor, batch), []

    def compute(numbers, first=0):
        asked.append(numbers.tolist())
        return {name: values[first + numbers] for name, values in expected.items()}

    kept = StreamedOutputs(ancestor, processor, tmp_path, shard=4)
    keys = keys_of(rows)
    kept.of_batch(keys[:5], compute)  # more than a file holds
    kept.of_batch(keys[3:], partial(compute, first=3))
    assert asked == [[0, 1, 2, 3, 4], [2]]
    kept.on_save(None, None, None)
    order = torch.tensor([5, 0, 3, 3, 1])
    for store in (kept, StreamedOutputs(ancestor, processor, tmp_path)):
        assert len(store) == 6
        found = store.of_batch(keys[order], compute)
        assert len(asked) == 2
        assert all(torch.equal(found[name], expected[name][order]) for name in EMBEDDING_COLUMNS)
    large = max(kept.folder.iterdir(), key=lambda file: file.stat().st_size)
    large.write_bytes(large.read_bytes()[:-1])
    assert len(StreamedOutputs(ancestor, processor, tmp_path)) == 1
    with torch.no_grad():
        ancestor.visual_projection.weight.mul_(2)
    assert len(StreamedOutputs(ancestor, processor, tmp_path)) == 0


def test_data_with_a_length_are_kept_by_the_other_setting(tmp_path):
    args = ExtractionArguments(str(tmp_path), max_steps=1, cache_stream=True, report_to=[], use_cpu=True)
    with pytest.raises(LearngeneError, match="cache_stream is True, but the data is no stream: cache_ancestor keeps"):
        extract_learngene(pico_clip(), pico_pairs(8), args, processor=pico_processor())

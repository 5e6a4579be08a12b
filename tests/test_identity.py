"""Whether two models or runs are the same: by every value and by what is computed, not by names and places."""

import numpy as np
import pytest
import torch
from datasets import Array3D, Dataset, Features, Image, Value
from pico import pico_clip, pico_pairs
from transformers import CLIPModel

from mmlg_hf.data.identity import check_same_run, fingerprint_data, fingerprint_model
from mmlg_hf.errors import LearngeneError


def test_a_model_is_the_same_after_saving_and_loading(tmp_path):
    pico_clip().save_pretrained(tmp_path)
    assert fingerprint_model(CLIPModel.from_pretrained(tmp_path)) == fingerprint_model(pico_clip())


@pytest.mark.parametrize("name", ["logit_scale", "visual_projection.weight", "text_model.final_layer_norm.bias"])
def test_any_value_of_the_weights_counts(name):
    model = pico_clip()
    with torch.no_grad():
        model.get_parameter(name).view(-1)[-1].add_(1e-3)
    assert fingerprint_model(model) != fingerprint_model(pico_clip())


def test_what_the_config_computes_with_counts():
    model = pico_clip()
    model.config.vision_config.hidden_act = "gelu"
    assert fingerprint_model(model) != fingerprint_model(pico_clip())
    named = pico_clip()
    named.config._name_or_path = "elsewhere"
    named.config.architectures = ["CLIPModel"]
    assert fingerprint_model(named) == fingerprint_model(pico_clip())


def test_the_class_counts():
    model, other = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    other.load_state_dict(model.state_dict())
    assert fingerprint_model(model) == fingerprint_model(other)
    other.__class__ = type("Another", (torch.nn.Linear,), {})
    assert fingerprint_model(model) != fingerprint_model(other)


def test_pixels_count_by_every_value():
    features = Features({"pixel_values": Array3D((3, 4, 4), "float32"), "input_ids": [Value("int64")]})
    pixels = np.arange(96, dtype="float32").reshape(2, 3, 4, 4)

    def rows(pixels, last_id=5):
        return Dataset.from_dict({"pixel_values": list(pixels), "input_ids": [[1], [2, last_id]]}, features=features)

    same = fingerprint_data(rows(pixels))
    assert fingerprint_data(rows(pixels).with_format("torch")) == same
    changed = pixels.copy()
    changed[1, 2, 3, 3] += 1
    assert fingerprint_data(rows(changed)) != same
    assert fingerprint_data(rows(pixels, last_id=6)) != same


def test_pictures_replaced_under_their_paths_are_other_data(tmp_path):
    paths = []
    for index, row in enumerate(pico_pairs(3)):
        paths.append(str(tmp_path / f"{index}.png"))
        row["image"].save(paths[-1])
    data = Dataset.from_dict({"image": paths}).cast_column("image", Image())
    before = fingerprint_data(data, ["image"])
    assert fingerprint_data(data, ["image"]) == before
    pico_pairs(8)[7]["image"].save(paths[1])
    assert fingerprint_data(data, ["image"]) != before


def test_the_first_setting_that_differs_is_named_with_both_values():
    begun = {"ancestor": "a", "batch_size": 8, "learning_rate": 0.1}
    check_same_run(begun, dict(begun), "folder")
    with pytest.raises(LearngeneError, match="'folder' holds a run with batch size 8, now it is 16"):
        check_same_run(begun, begun | {"batch_size": 16, "learning_rate": 0.2}, "folder")


def test_a_list_from_a_file_is_the_tuple_it_was_and_a_new_setting_is_no_difference():
    check_same_run({"columns": ["image", "text"]}, {"columns": ("image", "text"), "unknown": 1}, "folder")

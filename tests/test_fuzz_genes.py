"""Hundreds of damaged gene folders: each is refused in one sentence, or loads exactly what its files hold."""

import json
import math
import random
import shutil
import signal
import struct
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import torch
from pico_genes import image_gene, multimodal_gene
from safetensors import safe_open

from mmlg_hf.descendants import load_learngene
from mmlg_hf.errors import LearngeneError

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
SECONDS = 30
VALUES = (
    None, True, False, 0, 1, -1, 7, 10**12, 2**63, -(2**31), 10**400, 0.5, -0.5, 1e-300, 1e308, math.nan, math.inf,
    -math.inf, "", "x", "512", "auto", "int64", "x" * 5000, [], [1, 2], [[]], {}, {"a": 1}, {"0": "a"}, {"0": {}},
)  # fmt: skip
EXTRA_FIELDS = (
    "num_labels", "id2label", "label2id", "dtype", "torch_dtype", "problem_type", "architectures", "model_type",
    "attn_implementation", "_attn_implementation", "quantization_config", "output_attentions", "name_or_path",
    "auto_map", "tie_word_embeddings", "return_dict", "chunk_size_feed_forward", "projection_dim", "hidden_act",
)  # fmt: skip


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """Sound genes of every kind of mixing and layout, to be damaged in copies."""
    root = tmp_path_factory.mktemp("sound")
    multimodal_gene().save_pretrained(root / "split")
    multimodal_gene(mixing="learned", num_multimodal_blocks=2).save_pretrained(root / "shards", max_shard_size="40KB")
    multimodal_gene(token_embedding_rank=5).half().save_pretrained(root / "half")
    image_gene().save_pretrained(root / "image")
    return sorted(root.iterdir())


# --- damage ----------------------------------------------------------------------------------------------------------


def change_config(folder, draw):
    """Replace, remove or add one to three values of the config or a sub-config."""
    config = json.loads((folder / "config.json").read_text())
    for _ in range(draw.randint(1, 3)):
        parts = [config, *(part for part in (config.get("vision_config"), config.get("text_config")) if part)]
        part = draw.choice([part for part in parts if isinstance(part, dict)])
        field = draw.choice([*part, *EXTRA_FIELDS])
        if draw.random() < 0.1:
            part.pop(field, None)
        else:
            part[field] = draw.choice(VALUES)
    (folder / "config.json").write_text(json.dumps(config))


def change_number(folder, draw):
    """Change one number of the config to another that could be one."""
    config = json.loads((folder / "config.json").read_text())
    part = draw.choice([part for part in (config, config["vision_config"], config.get("text_config")) if part])
    field = draw.choice([name for name, value in part.items() if type(value) in (int, float)])
    part[field] = draw.choice([part[field] + 1, part[field] * 2, part[field] // 2, part[field] * 10**9, -part[field]])
    (folder / "config.json").write_text(json.dumps(config))


def change_json_text(folder, draw):
    """Cut, garble or replace the text of the config or of the index."""
    path = draw.choice([path for path in (folder / "config.json", folder / INDEX) if path.is_file()])
    text = path.read_bytes()
    at = draw.randrange(len(text))
    path.write_bytes(
        draw.choice(
            [
                text[:at],
                text[:at] + bytes([draw.randrange(256)]) + text[at + 1 :],
                text[:at] + text[at + draw.randint(1, 9) :],
                draw.choice([b"[]", b"null", b"7", b'"x"', b"[" * 100_000, b'{"a":' * 5000, b"\xff\xfe", b"NaN"]),
            ]
        )
    )


def change_index(folder, draw):
    """Name other files, files outside, files that are not there, or other tensors."""
    path = folder / INDEX
    if not path.is_file():
        return change_header(folder, draw)
    index = json.loads(path.read_text())
    tensors = sorted(index["weight_map"])
    files = [*sorted(set(index["weight_map"].values())), "x" * 5000 + ".safetensors", "../model.safetensors",
             "/etc/passwd", "config.json", "gone.safetensors", "", 7, None, ["a"], "..",
             "a/b.safetensors"]  # fmt: skip
    for tensor in draw.sample(tensors, draw.randint(1, 3)):
        draw.choice(
            [
                lambda tensor=tensor: index["weight_map"].update({tensor: draw.choice(files)}),
                lambda tensor=tensor: index["weight_map"].pop(tensor),
                lambda tensor=tensor: index["weight_map"].update({tensor + "x": index["weight_map"][tensor]}),
            ]
        )()
    return path.write_text(json.dumps(index))


def change_header(folder, draw):
    """Change a name, type, shape or place in the header of a file of weights, or the header's length."""
    path = draw.choice(sorted(folder.glob("*.safetensors")))
    content = path.read_bytes()
    size = struct.unpack("<Q", content[:8])[0]
    header, data = json.loads(content[8 : 8 + size]), content[8 + size :]
    names = [name for name in header if name != "__metadata__"]
    one, other = draw.choice(names), draw.choice(names)
    entry = header[one]
    case = draw.randrange(9)
    if case == 0:
        entry["dtype"] = draw.choice(
            ["F64", "F32", "F16", "BF16", "I32", "I16", "U8", "BOOL", "F8_E4M3", "C64", "X", 7]
        )
    elif case == 1:
        entry["shape"] = draw.choice([[], [1], [10**12], entry["shape"][::-1], [*entry["shape"], 1], [-1], "x", None])
    elif case == 2:
        header[one], header[other] = header[other], header[one]
    elif case == 3:
        header[one + "x"] = header.pop(one)
    elif case == 4:
        del header[one]
    elif case == 5:
        entry["data_offsets"] = draw.choice(
            [[0, 0], [0, 4], [10**15, 10**15], [-4, 0], None, header[other].get("data_offsets")]
        )
    elif case == 6:
        header["__metadata__"] = draw.choice([None, {}, {"format": "tf"}, {"format": 7}, [], "x"])
    text = json.dumps(header).encode()
    length = draw.choice([0, 1, len(text) - 1, len(text) + 1, 2**40, 2**63]) if case == 7 else len(text)
    if case == 8:
        at = draw.randrange(len(text))
        text = text[:at] + bytes([draw.randrange(256)]) + text[at + 1 :]
    path.write_bytes(struct.pack("<Q", length) + text + data)


def change_bytes(folder, draw):
    """Cut, garble, empty or lengthen a file of weights."""
    path = draw.choice(sorted(folder.glob("*.safetensors")))
    content = path.read_bytes()
    at = draw.randrange(len(content))
    garbled = content[:at] + bytes(draw.randrange(256) for _ in range(8)) + content[at + 8 :]
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 12345\n"
    path.write_bytes(
        draw.choice([content[:at], garbled, garbled, garbled, b"", pointer, content + b"\0" * 8, content[::-1]])
    )


def change_files(folder, draw):
    """Swap, copy, remove or replace whole files."""
    files = sorted(folder.glob("*.safetensors"))
    one, other = draw.choice(files), draw.choice(files)
    case = draw.randrange(5)
    if case == 0:
        content = one.read_bytes()
        one.write_bytes(other.read_bytes())
        other.write_bytes(content)
    elif case == 1:
        shutil.copy(one, folder / WEIGHTS) if one.name != WEIGHTS else one.unlink()
    elif case == 2:
        one.unlink()
        one.mkdir()
    elif case == 3:
        draw.choice([path for path in (folder / "config.json", folder / INDEX, one) if path.is_file()]).unlink()
    else:
        shutil.copy(other, folder / "model-00001-of-00009.safetensors")


DAMAGES = (
    change_config, change_config, change_number, change_json_text, change_index, change_header, change_bytes,
    change_files,
)  # fmt: skip


# --- what may come of it ---------------------------------------------------------------------------------------------


@contextmanager
def within(seconds):
    """Raise if the block takes longer."""

    def ring(*_):
        raise TimeoutError(f"not done after {seconds} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def stored_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """What the files say: the single file if there is one, else each tensor from the file that the index names."""
    single = folder / WEIGHTS
    places = None if single.is_file() else json.loads((folder / INDEX).read_text())["weight_map"]
    files = [single] if places is None else [folder / file for file in sorted(set(places.values()))]
    tensors = {}
    for path in files:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                if places is None or places.get(name) == path.name:
                    tensors[name] = file.get_tensor(name)
    return tensors


def check(folder: Path, damage: str) -> bool:
    """Load a folder; whether it loaded. Anything but one sentence, or the content of the files, is an error."""
    sentence = None
    try:
        with within(SECONDS):
            gene = load_learngene(folder)
    except LearngeneError as error:
        sentence = str(error)
    if sentence is not None:
        assert "\n" not in sentence, damage
        assert len(sentence) < 20_000, damage
        return False
    stored = stored_tensors(folder)
    assert set(gene.state_dict()) == set(stored), damage
    for name, tensor in gene.state_dict().items():
        assert torch.equal(tensor, stored[name].float()), f"{damage}: {name}"
    grown = gene.descendant(1)
    assert all(torch.isfinite(tensor).all() for tensor in grown.state_dict().values()), damage
    return True


def damaged(sound, seed, folder):
    """A copy of a sound gene with one or two damages; and what they were."""
    draw = random.Random(seed)
    source = draw.choice(sound)
    shutil.copytree(source, folder)
    chosen = draw.choices(DAMAGES, k=draw.choice([1, 1, 2]))
    for damage in chosen:
        # Nothing may be left that this one could damage.
        with suppress(OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
            damage(folder, draw)
    return f"seed {seed}, {source.name}: " + ", ".join(damage.__name__ for damage in chosen)


def run(sound, seeds, tmp_path):
    loaded = 0
    for seed in seeds:
        folder = tmp_path / str(seed)
        damage = damaged(sound, seed, folder)
        try:
            loaded += check(folder, damage)
        except Exception as error:
            raise AssertionError(f"{damage}: {type(error).__name__}: {error}") from error
        shutil.rmtree(folder)
    return loaded


def test_sound_genes_load_what_their_files_hold(sound):
    assert all(check(folder, folder.name) for folder in sound)


@pytest.mark.parametrize("part", range(3))
def test_a_damaged_gene_is_refused_in_one_sentence_or_loads_what_its_files_hold(part, sound, tmp_path):
    assert run(sound, range(20 * part, 20 * part + 20), tmp_path) < 20  # some are refused


@pytest.mark.slow
@pytest.mark.parametrize("part", range(8))
def test_hundreds_of_damaged_genes_are_refused_or_load_what_their_files_hold(part, sound, tmp_path):
    assert 0 < run(sound, range(100 + 50 * part, 150 + 50 * part), tmp_path) < 50

"""What a machine does to a run: full disks, folders that cannot be written, kills, Ctrl-C, two at once."""

import json
import os
import re
import resource
import shutil
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import pytest
import torch
from commands import WRITERS, commands, run, sentence, write_inputs
from pico import pico_clip, pico_pairs, pico_processor
from pico_genes import multimodal_gene
from pico_training import contrastive
from safetensors.torch import load_file
from transformers import CLIPModel, TrainerCallback, TrainingArguments

from mmlg_hf import ContrastiveTrainer, LearngeneError, from_learngene
from mmlg_hf.data import process_pairs
from mmlg_hf.data.pictures import read_image
from mmlg_hf.data.texts import encode_texts
from mmlg_hf.errors import OutputError
from mmlg_hf.evaluation import embed_texts
from mmlg_hf.saving import check_writable
from mmlg_hf.training.resuming import last_checkpoint

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return write_inputs(tmp_path_factory.mktemp("faults"))


# --- where it can be known, before the long work ---------------------------------------------------------------------


@pytest.mark.parametrize("command", WRITERS)
def test_an_output_under_a_file_is_refused_at_once(folders, tmp_path, command):
    (tmp_path / "mine.txt").write_text("mine")
    result = run(*commands(folders, tmp_path / "mine.txt" / "out")[command])
    assert f"{str(tmp_path / 'mine.txt')!r} is no folder" in sentence(result, 1)
    assert (tmp_path / "mine.txt").read_text() == "mine"


@pytest.mark.parametrize("command", WRITERS)
def test_a_folder_that_may_not_be_written_is_refused_at_once(folders, tmp_path, command, monkeypatch):
    def refuse(dir):
        raise PermissionError(13, "Permission denied", str(dir))

    monkeypatch.setattr("mmlg_hf.saving.tempfile.TemporaryFile", refuse)
    told = sentence(run(*commands(folders, tmp_path / "out")[command]), 1)
    assert told.endswith(f"cannot be written: Permission denied in {str(tmp_path)!r}")
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_left_by_the_look_at_an_output_that_can_be_written(tmp_path):
    check_writable(tmp_path / "a" / "b")
    check_writable(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_told_before_the_work(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError, match="Permission denied"):
        check_writable(tmp_path / "out")


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 256 KB, where this process may mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no file system can be mounted here")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.mark.parametrize("command", WRITERS)
def test_a_full_disk_is_told_before_the_work(folders, small_disk, command):
    (small_disk / "mine").write_bytes(bytes(220_000))
    told = sentence(run(*commands(folders, small_disk / "out")[command]), 1)
    assert f"No space left on device in {str(small_disk)!r}" in told
    assert [path.name for path in small_disk.iterdir()] == ["mine"]


def test_a_save_that_is_cut_off_shows_no_half_file_under_its_final_name(tmp_path, no_file_above):
    gene = multimodal_gene()
    gene.save_pretrained(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    no_file_above(20_000)
    with pytest.raises(Exception, match="File too large"):
        gene.save_pretrained(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_read_only_disk_is_told_before_the_work(small_disk):
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(OutputError, match="Read-only file system"):
        check_writable(small_disk / "out")


@pytest.fixture
def no_file_above():
    """Lets no file of this process become larger than so many bytes, as on a disk that fills up."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("command", ["descend", "upcycle"])
def test_a_disk_that_fills_while_a_model_is_saved_leaves_nothing_and_is_told(
    folders, tmp_path, no_file_above, command
):
    no_file_above(70_000)  # more than the look before the work, less than the weights
    result = run(*commands(folders, tmp_path / "out")[command])
    assert sentence(result, 1).startswith("Error: cannot write")
    assert "File too large" in sentence(result, 1)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_while_a_checkpoint_is_saved_keeps_the_one_before(tmp_path, no_file_above):
    trainer = contrastive(tmp_path, max_steps=2)
    trainer.train()
    kept = sum(path.stat().st_size for path in (tmp_path / "run" / "checkpoint-2").iterdir())
    no_file_above(70_000)
    trainer.args.max_steps = 4
    with pytest.raises(Exception, match="File too large|file write failed|PytorchStreamWriter"):
        trainer.train(resume_from_checkpoint=last_checkpoint(tmp_path / "run"))
    assert last_checkpoint(tmp_path / "run").endswith("checkpoint-2")
    assert sum(path.stat().st_size for path in (tmp_path / "run" / "checkpoint-2").iterdir()) == kept


# --- Ctrl-C ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "how", "target"),
    [
        ("extract", "the same command again with --resume", "mmlg_hf.extraction.extracting.extract_learngene"),
        ("descend", "nothing half-written was left", "mmlg_hf.descendants.from_learngene"),
        ("demo", "nothing half-written was left", "mmlg_hf.demo.demo.run_demo"),
        ("align", "the same command again, which goes on", "mmlg_hf.alignment.joining.align"),
        ("diversify", "the last finished stage", "mmlg_hf.clip_moe.diversification.diversify"),
    ],
)
def test_ctrl_c_says_how_to_go_on(folders, tmp_path, monkeypatch, command, how, target):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(target, interrupt)
    told = sentence(run(*commands(folders, tmp_path / "out")[command]), 130)
    assert told.startswith("Stopped")
    assert how in told


# --- half-written checkpoints ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", [None, "", '{"global_step": 3, "log_hi', "[]"])
def test_a_checkpoint_that_was_cut_off_is_passed_over(tmp_path, state):
    for step in (2, 3, 10):
        (tmp_path / f"checkpoint-{step}").mkdir()
    (tmp_path / "checkpoint-2" / "trainer_state.json").write_text('{"global_step": 2}')
    if state is not None:
        (tmp_path / "checkpoint-10" / "trainer_state.json").write_text(state)
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-2")
    assert last_checkpoint(tmp_path / "nothing") is None


# --- kills -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_ten_kills_leave_nothing_half_written_and_going_on_gives_the_same(tmp_path):
    jobs = "descend,extract,upcycle,align,publish,fetch"  # `make soak` has the longer ones, too
    command = [sys.executable, str(ROOT / "tests" / "soak" / "kills.py"), "--kills", "10", "--seed", "7"]
    done = subprocess.run([*command, "--jobs", jobs, "--work", tmp_path], capture_output=True, text=True, check=False)
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert done.returncode == 0, done.stderr[-3000:]
    assert sum(row["kills"] for row in rows) >= 10
    assert [row for row in rows if row["half_written"] or not row["same_result"]] == []


# --- memory ----------------------------------------------------------------------------------------------------------


def peak_growth(action):
    """How many bytes the most memory of this process grew by meanwhile."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    action()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024


def test_a_picture_of_50000_by_50000_is_refused_without_its_pixels():
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    picture = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(10_000)))

    def read():
        with pytest.raises(LearngeneError, match="row 3 cannot be read"):
            read_image({"bytes": picture, "path": None}, "row 3")

    assert peak_growth(read) < 200e6


def test_a_weight_file_that_names_terabytes_is_refused(tmp_path):
    gene = multimodal_gene()
    gene.save_pretrained(tmp_path)
    header = {"logit_scale": {"dtype": "F32", "shape": [10**12], "data_offsets": [0, 4 * 10**12]}}
    text = json.dumps(header).encode()
    for path in tmp_path.glob("model-*.safetensors"):
        path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(64))

    def load():
        with pytest.raises(LearngeneError):
            type(gene).from_pretrained(tmp_path)

    assert peak_growth(load) < 200e6


# --- two at once -----------------------------------------------------------------------------------------------------

EXTRACT = """
import sys
from mmlg_hf import ExtractionArguments, extract_learngene
root, output, cache = sys.argv[1:]
args = ExtractionArguments(output, ancestor_cache_dir=cache, max_steps=1, per_device_train_batch_size=4, use_cpu=True,
                           report_to="none")
extract_learngene(f"{root}/clip", f"{root}/pairs", args)
"""


@pytest.mark.slow
def test_two_processes_fill_one_cache_folder(folders, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    outputs = [tmp_path / "one", tmp_path / "two"]
    both = [
        subprocess.Popen(
            [sys.executable, "-c", EXTRACT, str(folders), str(output), str(tmp_path / "cache")],
            env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )
        for output in outputs
    ]  # fmt: skip
    for process in both:
        _, told = process.communicate()
        assert process.returncode == 0, told[-3000:]
    assert [path.name for path in (tmp_path / "cache").rglob("*.*")] == ["000000.safetensors"]
    for name in ("model-shared.safetensors", "model-image.safetensors", "model-text.safetensors"):
        one, two = (load_file(output / name) for output in outputs)
        assert all(torch.equal(tensor, two[key]) for key, tensor in one.items())


GROW = """
import sys
from mmlg_hf.cli import main
sys.argv = ["mmlg", "descend", f"{sys.argv[1]}/gene", "--depth", sys.argv[2], "--output", sys.argv[3]]
main()
"""


@pytest.mark.slow
def test_two_processes_that_write_one_folder_leave_the_whole_work_of_one(folders, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    for _ in range(3):
        both = [
            subprocess.Popen(
                [sys.executable, "-c", GROW, str(folders), depth, str(tmp_path / "grown")],
                env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
            )
            for depth in ("1", "2")
        ]  # fmt: skip
        for process in both:
            _, told = process.communicate()
            assert process.returncode == 0 or "Traceback" not in told, told[-3000:]
        model = CLIPModel.from_pretrained(tmp_path / "grown")  # config and weights of one of them
        depth = model.config.text_config.num_hidden_layers
        want = from_learngene(folders / "gene", depth=depth).state_dict()
        assert all(torch.equal(tensor, want[name]) for name, tensor in model.state_dict().items())
        assert [path.name for path in tmp_path.iterdir()] == ["grown"]


def test_a_folder_that_vanishes_during_a_run_is_told(tmp_path):
    trainer = ContrastiveTrainer(
        pico_clip(),
        TrainingArguments(
            str(tmp_path / "run"), max_steps=4, save_steps=2, per_device_train_batch_size=4, use_cpu=True,
            report_to="none", disable_tqdm=True,
        ),
        train_dataset=pico_pairs(8),
        processing_class=pico_processor(),
    )  # fmt: skip

    class Vanish(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            shutil.rmtree(args.output_dir, ignore_errors=True)
            Path(args.output_dir).write_text("no folder any more")

    trainer.add_callback(Vanish())
    with pytest.raises(OSError, match="run"):
        trainer.train()


def test_a_text_of_ten_megabytes_is_refused_wherever_texts_come_in(tmp_path):
    text = "a red square on a photo " * 420_000  # 10 MB
    processor = pico_processor()
    rows = pico_pairs(4).map(lambda row, index: {"text": text if index == 2 else "a square"}, with_indices=True)
    ways = {
        "row 0 of the texts": lambda: encode_texts(processor.tokenizer, [text]),
        "row 2": lambda: process_pairs(rows, processor),
        "text 1": lambda: embed_texts(pico_clip(), ["a square", text], processor),
    }
    for named, way in ways.items():

        def refused(named=named, way=way):
            started = time.process_time()
            with pytest.raises(LearngeneError, match=rf"{named} has a text of 10,080,000 characters \('a red square"):
                way()
            assert time.process_time() - started < 5

        assert peak_growth(refused) < 1e9


# --- the tables in the documentation ---------------------------------------------------------------------------------


def test_behind_each_line_of_the_tables_of_faults_stands_a_test():
    page = (ROOT / "docs" / "faults.md").read_text(encoding="utf-8")
    lines = [line for line in page.splitlines() if re.match(r"\| .* \|$", line) and "---" not in line]
    faults = [line for line in lines if not re.match(r"\| (code|fault|\d+) ", line)]
    named = [re.findall(r"`(test_\w+)`", line.rpartition(" | ")[2]) for line in faults]
    assert len(faults) >= 30
    assert [line for line, names in zip(faults, named, strict=True) if not names] == []
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py")]
    there = {name for source in sources for name in re.findall(r"^def (test_\w+)\(", source, re.MULTILINE)}
    assert {name for names in named for name in names} - there == set()

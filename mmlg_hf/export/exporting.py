"""`export_model`: a model's files in one format, its processor, `export.json` and a card, in one folder."""

import os
import platform
from pathlib import Path
from typing import Any

import torch

from ..configuration_learngene import Size
from ..errors import LearngeneError
from ..saving import check_writable, whole_folder, write_json
from .card import write_card
from .formats import check_format, open_file, versions_of, write_part, write_quantised
from .inputs import Inputs, Pictures
from .measures import time_model, time_part, verify
from .parts import PICTURES, TEXTS, Part, parts_of_model
from .sources import Source, load_exportable

EXPORT_FILE = "export.json"
_RESAMPLING = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}


def export_model(
    model: str | os.PathLike | Source,
    output: str | os.PathLike,
    to: str = "onnx",
    *,
    depth: Size = None,
    width: Size = None,
    modality: str | None = None,
    whole: bool = False,
    normalised: bool = True,
    int8: bool = False,
    calibration: str | os.PathLike | None = None,
    **hub_kwargs: Any,
) -> dict[str, Any]:
    """Export a model to a folder, run the files against it, and time both.

    Args:
        model: a Hub id, a folder, a gene's name, which may be followed by a size ("mmlg-fashion-48@3x96"), or what
            `load_exportable` returned.
        output: the folder, which must not exist or be empty. It appears whole or not at all.
        to: "onnx", "torch" (torch.export), "executorch" or "openvino".
        depth, width: of what a gene grows, as for `from_learngene`; None keeps the gene's own.
        modality: "image" or "text" exports this encoder alone; "multimodal" or None all that there is.
        whole: write one file that compares pictures with texts, in place of one for each encoder.
        normalised: whether encoders return embeddings of length 1; False returns them as the model does.
        int8: also write files quantised to int8 (ONNX only).
        calibration: with `int8`, a folder of 16 or more pictures like those that the model will meet: files that take
            pictures are then quantised statically, with ranges of activations found on three in four of them, and
            verified on the others. None, and files that take texts, quantise activations as they come.
        hub_kwargs: `revision`, `token`, `cache_dir`, `local_files_only`.

    Returns:
        what `export.json` holds. Its `verified` is False where a file does not agree with the model: float32 within
        1e-5 (of the greatest value where that is above 1), int8 with a cosine of 0.999 or more.

    Raises:
        LearngeneError: a package is missing, the model cannot be loaded or exported, or the folder is not empty.
    """
    chosen = check_format(to)
    if int8 and to != "onnx":
        raise LearngeneError(f"int8 is onnxruntime's quantisation: it takes the format 'onnx', not {to!r}")
    if calibration is not None and not int8:
        raise LearngeneError("calibration is of int8 files: ask for int8 as well, or leave it out")
    check_empty(output)
    source = model if isinstance(model, Source) else load_exportable(model, depth, width, modality, **hub_kwargs)
    inputs = Inputs(source.model, source.processor)
    parts = parts_of_model(source.model, inputs, modality=modality, whole=whole, normalised=normalised)
    pictures = None if calibration is None else _pictures(calibration, inputs, parts)
    with whole_folder(output) as folder:
        files = [record for part in parts for record in _write(to, part, inputs, folder, int8, pictures)]
        record = {
            "format": to,
            "library": chosen.library,
            "source": _about_source(source),
            "files": files,
            "verified": all(file["verified"] for file in files),
            **_about_inputs(source, inputs, parts),
            "machine": machine(),
            "versions": versions_of(to),
        }
        _save_processor(source.processor, parts, folder)
        write_json(folder / EXPORT_FILE, record)
        write_card(folder, record, source)
    return record


def check_empty(folder: str | os.PathLike) -> None:
    """Refuse a folder that holds something or cannot be written, before any work is done for it."""
    path = Path(folder)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise LearngeneError(f"{str(folder)!r} exists and is no empty folder: choose another, or remove it first")
    check_writable(path)


def _pictures(folder: str | os.PathLike, inputs: Inputs, parts: list[Part]) -> Pictures:
    """Find the pictures to calibrate with, before anything is written."""
    if not any(part.takes == (PICTURES,) for part in parts):
        raise LearngeneError(
            "calibration is of files that take pictures alone: "
            + ("this model takes texts" if parts[0].takes == (TEXTS,) else "export each encoder by itself, not whole")
        )
    return Pictures(folder, inputs)


def _write(
    to: str, part: Part, inputs: Inputs, folder: Path, int8: bool, pictures: Pictures | None
) -> list[dict[str, Any]]:
    """Write a part, and its int8 version if asked; return what `export.json` tells about each file."""
    sample = inputs.make(part.takes, 2)
    longest = inputs.longest_text if TEXTS in part.takes else None
    written = {"float32": write_part(to, part, sample, folder, longest)}
    if int8:
        pictures = pictures if part.takes == (PICTURES,) else None
        written["int8"] = write_quantised(part, sample, written["float32"][0], pictures)
    milliseconds_torch = time_model(part, inputs)
    records = []
    for dtype, files in written.items():
        run = open_file(to, files[0], part)
        own = pictures if dtype == "int8" else None
        activations = {} if dtype != "int8" else {"activations": "dynamic" if own is None else "static"}
        records.append(
            {
                "file": files[0].name,
                "beside": [file.name for file in files[1:]],
                "part": part.kind,
                "weights": dtype,
                **activations,
                "inputs": [_about_tensor(name, part, sample[name]) for name in part.inputs],
                "outputs": [_about_tensor(name, part, None) for name in part.outputs],
                **part.about,
                "megabytes": sum(file.stat().st_size for file in files) / 1e6,
                "milliseconds": time_part(run, part, inputs),
                "milliseconds_torch": milliseconds_torch,
                **verify(run, part, inputs, dtype, None if own is None else own.batches()),
            }
        )
    return records


def _about_tensor(name: str, part: Part, sample: torch.Tensor | None) -> dict[str, Any]:
    axes = part.axes[name]
    dtype = torch.float32 if sample is None else sample.dtype
    dynamic = {str(index): axis for index, axis in enumerate(axes) if isinstance(axis, str)}
    return {"name": name, "dtype": str(dtype).removeprefix("torch."), "shape": list(axes), "dynamic": dynamic}


def _about_source(source: Source) -> dict[str, Any]:
    model = source.model
    about = {
        "model": source.name,
        "revision": source.revision or getattr(model.config, "_commit_hash", None),
        "class": type(model).__name__,
        "parameters": model.num_parameters(),
        **{key: value for key, value in source.grown.items() if value is not None},
    }
    learngene = getattr(model.config, "learngene", None)
    return about | ({"learngene": learngene} if learngene else {})


def _about_inputs(source: Source, inputs: Inputs, parts: list[Part]) -> dict[str, Any]:
    """What it takes to make inputs without transformers, and to read outputs."""
    taken = {kind for part in parts for kind in part.takes}
    about: dict[str, Any] = {}
    if PICTURES in taken:
        about["pictures"] = normalisation(getattr(source.processor, "image_processor", source.processor))
    if TEXTS in taken:
        tokenizer = getattr(source.processor, "tokenizer", source.processor)
        about["texts"] = {
            "longest": inputs.longest_text,
            "pad_token_id": tokenizer.pad_token_id,
            "lower_case": bool(getattr(tokenizer, "do_lower_case", False)),
        }
    if any(part.kind.endswith("classifier") for part in parts):
        labels = getattr(source.model.config, "id2label", None) or {}
        about["labels"] = [labels[index] for index in sorted(labels)]
    for name in ("logit_scale", "logit_bias"):
        value = getattr(source.model, name, None)
        if isinstance(value, torch.Tensor) and {part.kind for part in parts} & {"image", "text"}:
            about[name] = value.exp().item() if name == "logit_scale" else value.item()
    return about


def normalisation(image_processor: Any) -> dict[str, Any]:
    """What is done to a picture, in order: to RGB, resized, cropped, rescaled, normalised; None is left out."""
    does = {step: bool(getattr(image_processor, f"do_{step}", False)) for step in _STEPS}
    resample = getattr(image_processor, "resample", None)
    resample = int(resample) if resample is not None else None
    return {
        "convert_rgb": does["convert_rgb"],
        "size": _plain(image_processor.size) if does["resize"] else None,
        "resample": _RESAMPLING.get(resample, resample) if does["resize"] and resample is not None else None,
        "crop_size": _plain(image_processor.crop_size) if does["center_crop"] else None,
        "rescale": image_processor.rescale_factor if does["rescale"] else None,
        "mean": list(image_processor.image_mean) if does["normalize"] else None,
        "std": list(image_processor.image_std) if does["normalize"] else None,
    }


_STEPS = ("convert_rgb", "resize", "center_crop", "rescale", "normalize")


def _plain(size: Any) -> dict[str, int]:
    return {name: value for name, value in dict(size).items() if value is not None}


def _save_processor(processor: Any, parts: list[Part], folder: Path) -> None:
    """Save what makes the parts' inputs: the tokenizer, the image processor, or both as they were."""
    taken = {kind for part in parts for kind in part.takes}
    part = processor
    if taken == {PICTURES}:
        part = getattr(processor, "image_processor", processor)
    elif taken == {TEXTS}:
        part = getattr(processor, "tokenizer", processor)
    part.save_pretrained(folder)


def machine() -> str:
    """Where something was timed: processor, threads, system."""
    names = [line.partition(":")[2].strip() for line in _cpuinfo() if line.startswith("model name")]
    name = names[0] if names else platform.processor() or platform.machine()
    return f"{name}, {torch.get_num_threads()} threads, {platform.system()}"


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text(encoding="utf-8").splitlines() if path.is_file() else []

"""`mmlg demo`: models of several sizes from one gene, fine-tuned on handwritten digits beside the same from scratch.

Runs offline on two CPU cores. The parts are those that a user has: `from_learngene`, the stock `Trainer`,
`ContrastiveTrainer`, `evaluate_zero_shot` and transformers' pipelines.
"""

import os
import platform
import tempfile
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from datasets import Dataset, DatasetDict
from rich.console import Console
from transformers import (
    AutoModelForImageClassification,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    pipeline,
    set_seed,
)

from .. import __version__
from ..checkpoints import AutoImageProcessor, quiet
from ..data import process_images
from ..descendants import bundled_learngenes, load_learngene
from ..errors import LearngeneError, require
from ..evaluation.classification import classification_metrics
from ..evaluation.dual_encoders import evaluate_zero_shot
from ..saving import check_writable, whole_folder, write_json
from ..training.trainer import ContrastiveTrainer
from .digits import CAPTION, DIGITS, digit_splits
from .report import DemoProgress, plot_curves, print_report

STARTS = ("gene", "scratch")


@dataclass(frozen=True)
class DemoSettings:
    """What the demo trains on and for how long.

    Attributes:
        train_images: labelled images that everything is fine-tuned on.
        validation_images: images of the curves, and of the choice of learning rates by `benchmarks.demo --tune`.
        steps: of each classifier, from the gene and from scratch alike.
        batch_size: images, or image-caption pairs, of a step.
        eval_every: steps between two points of a curve.
        learning_rates: peak learning rates of the classifiers by start, in the order of `classifier_sizes`: for each
            size and start the best of the grid on the validation images.
        contrastive_steps: of the multimodal descendant.
        contrastive_learning_rate: its peak learning rate.
        dark_on_white: how the digits are drawn.
    """

    train_images: int = 300
    validation_images: int = 300
    steps: int = 60
    batch_size: int = 32
    eval_every: int = 10
    learning_rates: dict[str, tuple[float, ...]] = field(
        default_factory=lambda: {"gene": (1e-3, 1e-3, 2e-3), "scratch": (2.5e-4, 2e-3, 4e-3)}
    )
    contrastive_steps: int = 100
    contrastive_learning_rate: float = 5e-4
    dark_on_white: bool = True


def classifier_sizes(config: Any) -> list[tuple[int, int]]:
    """Return the three (depth, width) of the demo: the gene's own, half its depth, and half its depth and width."""
    vision = config.vision_config
    half_depth = max(1, vision.num_hidden_layers // 2)
    half_width = max(1, vision.num_attention_heads // 2) * config.head_size
    own = (vision.num_hidden_layers, vision.hidden_size)
    return [own, (half_depth, own[1]), (half_depth, half_width)]


def size_name(depth: int, width: int) -> str:
    """Name a size as tables, plots and folders do, e.g. "6x192"."""
    return f"{depth}x{width}"


def load_digits_for(gene: Any, settings: DemoSettings) -> tuple[DatasetDict, DatasetDict]:
    """Return the digits at the gene's image size: as pictures with captions, and as `pixel_values` with labels."""
    pictures = digit_splits(
        gene.config.vision_config.image_size,
        settings.train_images,
        settings.validation_images,
        dark_on_white=settings.dark_on_white,
    )
    tensors = {
        name: process_images(split, gene.processor.image_processor, image_column="image", keep_columns=("label",))
        for name, split in pictures.items()
    }
    return pictures, DatasetDict(tensors)


def make_classifier(gene: Any, depth: int, width: int, start: str, seed: int) -> Any:
    """Make a digit classifier, grown from the gene or the same stock class and config with transformers' own init."""
    set_seed(seed)
    grown = gene.descendant(depth, width, "image", id2label=dict(enumerate(DIGITS)))
    if start == "gene":
        return grown
    config = deepcopy(grown.config)
    for part in (config, config.vision_config, config.text_config):
        del part.learngene
    set_seed(seed)
    return type(grown)(config)


def fine_tune_classifier(
    model: Any,
    tensors: DatasetDict,
    settings: DemoSettings,
    learning_rate: float,
    seed: int,
    callback: TrainerCallback | None = None,
) -> Trainer:
    """Fine-tune a classifier in place with the stock Trainer, which is returned with the curve in its log."""
    trainer = _trainer(
        Trainer,
        model,
        _arguments(settings, settings.steps, learning_rate, seed, settings.eval_every),
        callback,
        train_dataset=tensors["train"],
        eval_dataset=tensors["validation"],
        compute_metrics=classification_metrics,
    )
    trainer.train()
    return trainer


def curve(trainer: Trainer) -> dict[str, list]:
    """Return "steps" and "validation_accuracy" of a trainer's log."""
    points = [entry for entry in trainer.state.log_history if "eval_accuracy" in entry]
    return {
        "steps": [point["step"] for point in points],
        "validation_accuracy": [point["eval_accuracy"] for point in points],
    }


def fine_tune_clip(
    model: Any, pictures: Dataset, processor: Any, settings: DemoSettings, seed: int, callback: TrainerCallback | None
) -> None:
    """Fine-tune a CLIP in place on images and captions with ContrastiveTrainer."""
    rate, steps = settings.contrastive_learning_rate, settings.contrastive_steps
    arguments = _arguments(settings, steps, rate, seed, None)
    pairs = pictures.remove_columns("label")
    _trainer(ContrastiveTrainer, model, arguments, callback, train_dataset=pairs, processing_class=processor).train()


def _arguments(
    settings: DemoSettings, steps: int, learning_rate: float, seed: int, eval_every: int | None
) -> TrainingArguments:
    return TrainingArguments(
        output_dir=tempfile.gettempdir(),  # nothing is saved to it
        max_steps=steps,
        per_device_train_batch_size=settings.batch_size,
        per_device_eval_batch_size=128,
        learning_rate=learning_rate,
        warmup_steps=max(1, steps // 10),
        lr_scheduler_type="linear",
        weight_decay=0.01,
        eval_strategy="no" if eval_every is None else "steps",
        eval_steps=eval_every,
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=torch.cuda.is_available(),
        seed=seed,
    )


def _trainer(cls: type, model: Any, arguments: TrainingArguments, callback: Any, **kwargs: Any) -> Any:
    trainer = cls(model=model, args=arguments, callbacks=[callback] if callback else None, **kwargs)
    trainer.remove_callback(PrinterCallback)
    return trainer


def run_demo(
    output_dir: str | os.PathLike,
    learngene: Any = None,
    *,
    seed: int = 0,
    settings: DemoSettings | None = None,
    console: Console | None = None,
) -> dict[str, Any]:
    """Run the demo and write `results.json`, `accuracy.png` and `models/`.

    Args:
        output_dir: folder to write to; what an earlier run left there is replaced.
        learngene: a gene, its folder, Hub id or bundled name; None takes the bundled one.
        seed: of new heads, models from scratch, and the order of the images.
        settings: None takes the demo's own.
        console: where progress and the closing table go; None prints to stdout.

    Returns:
        what `results.json` holds.

    Raises:
        LearngeneError: if `output_dir` is a file or cannot be written, or the gene has no text side or no processor.
    """
    started = time.monotonic()
    output, settings, console = Path(output_dir), settings or DemoSettings(), console or Console()
    if output.exists() and not output.is_dir():
        raise LearngeneError(f"{str(output)!r} is a file: give a folder to write to")
    check_writable(output)
    with quiet():
        gene = load_gene(learngene)
    with quiet(), DemoProgress(console) as progress:
        progress.stage("digits")
        pictures, tensors = load_digits_for(gene, settings)
        classifiers, curves, grown = compare_classifiers(gene, tensors, settings, seed, progress)
        multimodal = _multimodal(gene, pictures, settings, seed, progress, output)
        for name, model in grown.items():
            with whole_folder(output / "models" / name) as folder:
                model.save_pretrained(folder)
        progress.stage("reloading one in a pipeline")
        predictions = _predict(output / "models" / classifiers[-1]["name"], pictures["test"])
    results = {
        "classifiers": classifiers,
        "curves": curves,
        "multimodal": multimodal,
        "predictions": predictions,
        "data": {name: len(split) for name, split in pictures.items()},
        "settings": asdict(settings),
        "seed": seed,
        "gene": gene.name_or_path or type(gene).__name__,
        **environment(),
    }
    plot_curves(results, output / "accuracy.png")
    results["seconds"] = round(time.monotonic() - started, 1)
    write_json(output / "results.json", results)
    print_report(results, output, console)
    return results


def load_gene(learngene: Any) -> Any:
    """Load a gene that the demo can use, with its processor; None takes the bundled one."""
    if learngene is None:
        bundled = bundled_learngenes()
        if not bundled:
            raise LearngeneError("no gene came with this installation: name one with --gene")
        learngene = bundled[0]
    gene: Any = load_learngene(learngene)
    if gene.config.text_config is None or gene.processor is None:
        lack = "text side" if gene.config.text_config is None else "processor stored with it"
        raise LearngeneError(
            f"{learngene!r} has no {lack}: the demo needs a gene of images and texts with a processor"
        )
    return gene


def compare_classifiers(
    gene: Any, tensors: DatasetDict, settings: DemoSettings, seed: int, progress: DemoProgress
) -> tuple[list[dict], list[dict], dict[str, Any]]:
    """Fine-tune each size from the gene and from scratch, with the same steps, images, order and seed.

    Returns:
        a row for each size with its test accuracies, a curve for each model, and the grown models by name.
    """
    rows, curves, grown = [], [], {}
    for index, (depth, width) in enumerate(classifier_sizes(gene.config)):
        name = size_name(depth, width)
        row: dict[str, Any] = {"name": name, "depth": depth, "width": width}
        for start in STARTS:
            model = make_classifier(gene, depth, width, start, seed)
            rate = settings.learning_rates[start][index]
            callback = progress.training(f"{name} from {'the gene' if start == 'gene' else start}", settings.steps)
            trainer = fine_tune_classifier(model, tensors, settings, rate, seed, callback)
            accuracy = trainer.evaluate(tensors["test"], metric_key_prefix="test")["test_accuracy"]
            callback.finish(accuracy)
            row |= {"parameters": model.num_parameters(), "steps": settings.steps, f"accuracy_{start}": accuracy}
            curves.append({"name": name, "start": start, "learning_rate": rate, **curve(trainer)})
            if start == "gene":
                grown[name] = model
        rows.append(row)
    return rows, curves, grown


def _multimodal(
    gene: Any, pictures: DatasetDict, settings: DemoSettings, seed: int, progress: DemoProgress, output: Path
) -> dict[str, Any]:
    """Grow a CLIP of half the gene's depth, fine-tune it contrastively, and classify the test images zero-shot."""
    depth = max(1, gene.config.vision_config.num_hidden_layers // 2)
    set_seed(seed)
    model = gene.descendant(depth)
    width = (model.config.vision_config.hidden_size, model.config.text_config.hidden_size)
    name = "clip-" + size_name(depth, width[0])
    callback = progress.training(f"{name} from the gene", settings.contrastive_steps)

    def zero_shot() -> float:
        return evaluate_zero_shot(model, pictures["test"], gene.processor, templates=[CAPTION])["top1"]

    before = zero_shot()
    fine_tune_clip(model, pictures["train"], gene.processor, settings, seed, callback)
    after = zero_shot()
    callback.finish(after)
    with whole_folder(output / "models" / name) as folder:
        model.save_pretrained(folder)
    return {
        "name": name,
        "depth": depth,
        "width": list(width),
        "parameters": model.num_parameters(),
        "steps": settings.contrastive_steps,
        "learning_rate": settings.contrastive_learning_rate,
        "zero_shot_before": before,
        "zero_shot_after": after,
    }


def _predict(folder: Path, test: Dataset) -> dict[str, Any]:
    """Reload a classifier in transformers' pipeline and classify the first test image of each digit."""
    classify: Callable = pipeline(
        "image-classification",
        model=AutoModelForImageClassification.from_pretrained(folder),
        image_processor=AutoImageProcessor.from_pretrained(folder),
    )
    labels = test["label"][:]
    images = [test[labels.index(digit)]["image"] for digit in range(len(DIGITS))]
    best = [ranking[0] for ranking in classify(images, top_k=1)]
    rows = [
        {"digit": digit, "predicted": found["label"], "score": round(found["score"], 4)}
        for digit, found in zip(DIGITS, best, strict=True)
    ]
    return {"model": folder.name, "rows": rows}


def environment() -> dict[str, Any]:
    """Describe the machine and the versions that figures were measured with."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {os.cpu_count()} cores"
    versions = {
        "mmlg_hf": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "scikit-learn": require("sklearn", "demo").__version__,
    }
    return {"hardware": device, "threads": torch.get_num_threads(), "versions": versions}

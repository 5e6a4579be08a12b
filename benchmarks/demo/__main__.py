"""The demo's comparison over three seeds: accuracy from the gene and from scratch, and the margins between them.

    python -m benchmarks.demo [--learngene GENE] [--seeds 0 1 2]
    python -m benchmarks.demo --tune

The learning rates are those that --tune chose: every size, from the gene and from scratch, is fine-tuned at every rate
of one grid, with the demo's own steps and with a seed that no measurement uses; each takes its own best on validation
images, so that neither start is held back. Test images are not looked at. Finished runs are not repeated.
"""

from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.common.options import output_folder, parse
from benchmarks.common.pages import publish
from benchmarks.common.results import Results
from benchmarks.demo import report
from mmlg_hf.checkpoints import quiet
from mmlg_hf.demo import demo
from mmlg_hf.demo.report import DemoProgress

GRID = (2.5e-4, 5e-4, 1e-3, 2e-3, 4e-3)
TUNING_SEED = 100


def try_rate(gene: Any, tensors: Any, size: tuple[int, int], start: str, rate: float) -> dict[str, Any]:
    model = demo.make_classifier(gene, *size, start, TUNING_SEED)
    trainer = demo.fine_tune_classifier(model, tensors, demo.DemoSettings(), rate, TUNING_SEED)
    return {"learning_rate": rate, "validation_accuracy": demo.curve(trainer)["validation_accuracy"][-1]}


def compare(gene: Any, tensors: Any, seed: int) -> dict[str, Any]:
    with DemoProgress(Console()) as progress:
        progress.stage(f"seed {seed}")
        rows, curves, _ = demo.compare_classifiers(gene, tensors, demo.DemoSettings(), seed, progress)
    return {"classifiers": rows, "curves": curves}


def main() -> None:
    options = parse(__doc__, *("learngene", "seeds", "output"), tune=(False, "choose the learning rates"))
    gene, folder = demo.load_gene(options.learngene), output_folder(options, "demo")
    with quiet():
        _, tensors = demo.load_digits_for(gene, demo.DemoSettings())
        if options.tune:
            results = Results(folder / "results" / "tuning.json", {"seed": TUNING_SEED})
            for size, start, rate in product(demo.classifier_sizes(gene.config), demo.STARTS, GRID):
                results.run(f"{demo.size_name(*size)}/{start}/{rate:g}", try_rate, gene, tensors, size, start, rate)
        else:
            # The recipe too: the bundled gene keeps its name when it is rebuilt.
            about = {"learngene": Path(gene.name_or_path).name, "recipe": gene.config.recipe}
            results = Results(folder / "results" / "seeds.json", about | asdict(demo.DemoSettings()))
            for seed in options.seeds:
                results.run(str(seed), compare, gene, tensors, seed)
    if (folder / "results" / "seeds.json").exists():
        publish(folder, report)


if __name__ == "__main__":
    main()

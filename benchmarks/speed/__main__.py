"""How fast genes grow, step and start, in the shape of CLIP B/32 with random weights: ratios within one run.

    python -m benchmarks.speed [--runs 5]

Growing is compared with filling as many bytes, and with loading what was grown; a step of a gene with one of a plain
CLIP; what is compared is timed in turn. Steps of small extractions give the prices of the cost model. Finished runs
are not repeated. Nothing else should run on the machine.
"""

import tempfile
from pathlib import Path

import torch

from benchmarks.common.options import output_folder, parse
from benchmarks.common.pages import publish
from benchmarks.common.results import Results
from benchmarks.speed import cost, measuring, report
from mmlg_hf.checkpoints import quiet

SIZES = ((12, 768), (12, 512), (6, 768), (6, 384), (3, 384), (3, 192), (1, 64))
BATCHES = (8, 32)
REPEATS, PHOTOS = 5, 2000
LARGE = 640  # pixels of a side of a photo as the web has them


def main() -> None:
    own = {"runs": (5, "runs of each measurement"), "threads": (2, "threads of torch")}
    options = parse(__doc__, "output", "quick", **own)
    torch.set_num_threads(options.threads)
    sizes, batches = (SIZES[-2:], (2,)) if options.quick else (SIZES, BATCHES)
    runs, repeats, count = (1, 1, 100) if options.quick else (options.runs, REPEATS, PHOTOS)
    folder = output_folder(options, "speed")
    results = Results(folder / "results" / "speed.json", {"threads": options.threads, "repeats": repeats})
    with tempfile.TemporaryDirectory() as work, quiet():
        models = measuring.Models(Path(work))
        for run in range(runs):
            for size in sizes:
                key = f"growth/{size[0]}x{size[1]}/{run}"
                results.run(key, measuring.growth, models, *size, Path(work), repeats)
            for batch in batches:
                results.run(f"step/{batch}/{run}", measuring.step, models, batch, 1 if batch > 8 else repeats)
            results.run(f"start/{run}", measuring.start, models)
            if not options.quick or not run:
                results.run(f"reading/{run}", measuring.reading, count)
                results.run(f"large/{run}", measuring.reading, count // 10, LARGE)
            for size in (*cost.FITTED, cost.CHECKED)[-2:] if options.quick else (*cost.FITTED, cost.CHECKED):
                results.run(f"cost/{'x'.join(map(str, size))}/{run}", cost.small_extraction, *size)
    publish(folder, report)


if __name__ == "__main__":
    main()

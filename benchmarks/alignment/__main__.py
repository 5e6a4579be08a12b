"""How much of two encoders must train to align them? Every recipe at 1, 10 and 100 per cent of the pairs.

    python -m benchmarks.alignment [--data FOLDER] [--tokenizer FOLDER] [--quick]

Two encoders that have never met (see `benchmarks.alignment.encoders`; or --vision and --text) are aligned on product
photos and titles: see README.md beside this. Runs that the results file holds are not repeated.

Cut to about 50 minutes of one slow core: batches of 64 and few steps, so that the runs on all pairs see a quarter of
them once. Longer or shorter: --step-factor, --encoder-steps, --batch-size, --test-pairs. Seconds a step are the
processor's, not the clock's, unless there is a GPU: other programs on the machine do not count.
"""

import json
from argparse import Namespace
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.alignment import report
from benchmarks.alignment.encoders import make_encoders
from benchmarks.alignment.study import Study, compare, probes_before
from benchmarks.common.fashion import make_processor
from benchmarks.common.options import output_folder, parse, read_settings, settings_of
from benchmarks.common.pages import publish
from benchmarks.common.results import Results

SETTINGS = read_settings(__file__)


def encoders_of(options: Namespace, processor: Any, splits: Any) -> tuple[str, str, Any]:
    """The encoders that are given, or those that are made here, once."""
    if options.vision and options.text:
        return options.vision, options.text, {"image": Path(options.vision).name, "text": Path(options.text).name}
    folder = Path(options.work)
    record = folder / "encoders.json"
    if not record.exists():
        made = make_encoders(splits, processor, folder, options.encoder_steps, options.batch_size)
        record.write_text(json.dumps(made, indent=1))
    return str(folder / "image"), str(folder / "text"), json.loads(record.read_text())


def main() -> None:
    options = parse(__doc__, "data", "tokenizer", "seeds", "output", "quick", settings=SETTINGS)
    folder = output_folder(options, "alignment")
    results = Results(folder / "results" / "alignment.json", settings_of(options))
    processor = make_processor(options.tokenizer)
    study = Study(options, processor, partial(encoders_of, options, processor))
    if "before" not in results.found:
        pairs = {name: len(rows) for name, rows in study.pairs.items()}
        results.save(encoders=study.encoders, pairs=pairs, before=probes_before(study))
    steps = {share: options.steps or round(SETTINGS["steps"][share] * options.step_factor) for share in options.shares}
    compare(study, results, SETTINGS["tuning"], steps)
    publish(folder, report)


if __name__ == "__main__":
    main()

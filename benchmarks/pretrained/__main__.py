"""Two pretrained encoders, aligned: the recipes step by step, and heads of the frozen encoders on states kept once.

    python -m benchmarks.pretrained --vision ENCODER --text ENCODER [--data FOLDER] [--tokenizer FOLDER]

The recipes as in `benchmarks.alignment`, from encoders that know much: any two of the Hub, or an image encoder in an
ONNX file. Beside them, on states computed once: linear, MLP and gated heads, with STRUCTURE's regulariser, and on the
layers that `choose_layers` finds. See README.md beside this. Some two hours of one slow core; runs that the results
file holds are not repeated.
"""

from argparse import Namespace
from collections.abc import Callable
from functools import cache, partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from datasets import load_from_disk
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoImageProcessor, CLIPImageProcessorPil, CLIPProcessor, CLIPTokenizer, set_seed
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from benchmarks.alignment.study import Study, best_rate, compare, probes_before
from benchmarks.common.options import output_folder, parse, read_settings, settings_of
from benchmarks.common.pages import publish
from benchmarks.common.results import Results
from benchmarks.common.training import Rows
from benchmarks.pretrained import report
from benchmarks.vit.convert import as_folder
from mmlg_hf.alignment import DualEncoderModel, align, choose_layers, keep_states
from mmlg_hf.alignment.states import STATES, pooled_states

SETTINGS = read_settings(__file__)
PARTS = ["kept", "recipes"]
LEFT_OUT = ("vision", "text", "arms", "recipes", "parts")  # of what a results file is known by
QUICK_STEPS = 3
COUNTED_PAIRS = 8  # that FLOPs are counted of


class PretrainedStudy(Study):
    """The recipes on two given encoders, and heads on their kept states."""

    @cache  # noqa: B019 one study a process
    def layers(self) -> dict[str, int]:
        """The layers of both encoders that are most alike, told on validation pairs."""
        vision, text = choose_layers(self.join("projections"), self.pairs["validation"], self.processor)
        return {"vision_layers": vision, "text_layers": text}

    def join_arm(self, arm: str) -> DualEncoderModel:
        """The frozen encoders under the head of an arm."""
        given = dict(SETTINGS["arms"][arm])
        layers = self.layers() if given.pop("layers", False) else {}
        return align(self.vision, self.text, "projections", **self.shape, **layers, **given)

    @cache  # noqa: B019
    def states(self, split: str, of_layers: bool) -> dict[str, torch.Tensor]:
        """The states of a split, computed once and kept in the folder of work."""
        folder = Path(self.options.work) / f"states-{split}{'-layers' if of_layers else ''}"
        if not (folder / "state.json").exists():  # written last
            model = self.join_arm("layers" if of_layers else "linear")
            keep_states(model, self.pairs[split], self.processor).save_to_disk(folder)
        return dict(load_from_disk(str(folder)).with_format("torch")[:])

    def run_kept(
        self, arm: str, share: float, seed: int, rate: float, steps: int, split: str = "test"
    ) -> dict[str, Any]:
        """Train the heads of an arm on kept states, and measure them on those of a split."""
        set_seed(seed)
        model, of_layers = self.join_arm(arm), "layers" in SETTINGS["arms"][arm]
        rows = Rows(**self.states("train", of_layers))
        found = self.train(model, rows, share, seed, rate, steps, SETTINGS["kept"]["batch_size"])
        with torch.no_grad():
            outputs = model.eval()(**self.states(split, of_layers))
        return {"arm": arm, **found, **self.figures(model, (outputs.image_embeds, outputs.text_embeds), split)}

    def compare_kept(self, results: Results, steps: dict[float, int]) -> None:
        """Every arm at every share and seed, at the rate that is best for it on validation."""
        options, tuning = self.options, SETTINGS["kept"]["tuning"]
        share, seed = tuning["share"], tuning["seed"]
        for arm in options.arms:
            rates = tuning["rates"]
            run = partial(self.run_kept, arm, share, seed, steps=steps[share], split="validation")
            rate = best_rate(results, f"tuning-kept/{arm}", rates, run) if options.tune else rates[1]
            for seed_of_run, own in product(options.seeds, options.shares):
                given = (arm, own, seed_of_run, rate, steps[own])
                results.run(f"kept/{arm}/{own:g}/{seed_of_run}", self.run_kept, *given)

    def gflops(self, known: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
        """What a pair takes, in gigaflops: a training step of each recipe and of each arm's heads, and its states.

        Args:
            known: what was counted before, which is not counted again.
        """
        rows = [self.pairs["train"][row] for row in range(COUNTED_PAIRS)]
        batch = {name: value for name, value in self.collator(rows).items() if isinstance(value, torch.Tensor)}
        found = {kind: dict(known.get(kind, {})) for kind in ("recipes", "states", "heads")}
        for recipe in (name for name in self.options.recipes if name not in found["recipes"]):
            found["recipes"][recipe] = counted(learn, self.join(recipe), batch)
        for arm in (name for name in self.options.arms if name not in found["heads"]):
            model = self.join_arm(arm)
            found["states"][arm] = counted(states_of, model, batch)
            found["heads"][arm] = counted(learn, model, states_of(model, batch))
        return found


def counted(run: Callable[..., Any], *given: Any) -> float:
    """Gigaflops a pair of what is run on `COUNTED_PAIRS` of them."""
    with FlopCounterMode(display=False) as counter:
        run(*given)
    return counter.get_total_flops() / COUNTED_PAIRS / 1e9


def learn(model: DualEncoderModel, inputs: dict[str, torch.Tensor]) -> None:
    """Forward and backward."""
    model(**inputs).logits_per_image.sum().backward()


@torch.no_grad()
def states_of(model: DualEncoderModel, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What frozen encoders say of a batch."""
    return {name: pooled_states(model, batch, modality) for modality, name in STATES.items()}


def encoders_of(options: Namespace) -> Callable[[Any], tuple[str, str, Any]]:
    """The two encoders; one out of an ONNX file is kept as a folder."""
    names = {"image": Path(options.vision).name, "text": Path(options.text).name}
    vision = as_folder(options.vision, Path(options.work) / "vision")
    return lambda splits: (vision, options.text, names)


def processor_of(options: Namespace) -> CLIPProcessor:
    """Whole photos, squeezed to a square of the study's size and normalised as the image encoder has it."""
    mean, std = IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD  # of DINOv2, which an ONNX file leaves out
    if not options.vision.endswith(".onnx"):
        own = AutoImageProcessor.from_pretrained(options.vision, use_fast=False)
        mean, std = own.image_mean, own.image_std
    size = {"height": options.image_size, "width": options.image_size}
    pictures = CLIPImageProcessorPil(size=size, do_center_crop=False, image_mean=mean, image_std=std)
    return CLIPProcessor(pictures, CLIPTokenizer.from_pretrained(options.tokenizer))


def main() -> None:
    parts = {"parts": (PARTS, "what is measured", PARTS)}
    options = parse(__doc__, "data", "tokenizer", "seeds", "output", "quick", settings=SETTINGS, **parts)
    if not (options.vision and options.text):
        raise SystemExit("give two pretrained encoders: --vision ENCODER --text ENCODER")
    folder = output_folder(options, "pretrained")
    results = Results(folder / "results" / "pretrained.json", settings_of(options, *LEFT_OUT))
    study = PretrainedStudy(options, processor_of(options), encoders_of(options))
    if "before" not in results.found:
        pairs = {name: len(rows) for name, rows in study.pairs.items()}
        about = {"encoders": study.encoders, "pairs": pairs, "layers": study.layers()}
        results.save(**about, before=probes_before(study))
    results.save(gflops=study.gflops(results.found.get("gflops", {})))
    own = {"recipes": SETTINGS["steps"], "kept": SETTINGS["kept"]["steps"]}
    steps = {part: {share: QUICK_STEPS if options.quick else own[part][share] for share in own[part]} for part in own}
    if "kept" in options.parts:
        study.compare_kept(results, steps["kept"])
    if "recipes" in options.parts:
        compare(study, results, SETTINGS["tuning"], steps["recipes"], probed=False)
    publish(folder, report)


if __name__ == "__main__":
    main()

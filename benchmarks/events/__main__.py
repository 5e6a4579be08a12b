"""How many events does a descendant need? Learning curves beside a regression, a forest and networks from scratch.

    python -m benchmarks.events --mg22 mg22_alpha_voxels.npz

Simulated events to train on and real-like ones to be tested on, and the public 22Mg + alpha voxels: see README.md
beside this. Runs that the results file holds are not repeated. Some 25 minutes on two cores.
"""

import sys
import time
from collections.abc import Callable
from functools import cache, partial
from itertools import product
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn
from transformers import CLIPForImageClassification

sys.path.insert(0, str(Path(__file__).parent.parent.parent / "examples" / "event_classification"))
from fine_tuning import examples, fine_tune, freeze_layers, image_processor, scores
from projections import charge_at, read_events, to_images
from simulate import CLASSES, REAL_LIKE, SIMULATED, simulate_events
from tasks import chamber_extent

from benchmarks.common.options import output_folder, parse, read_settings
from benchmarks.common.pages import publish
from benchmarks.common.results import Results
from benchmarks.events import report
from mmlg_hf import from_learngene
from mmlg_hf.training import probe_head

SETTINGS = read_settings(__file__)
SELECTION_SEED, IMAGE_SIZE = 100, 48


class Data:
    """Events of one question: a pool to draw training events from, validation events and named sets to test on."""

    def __init__(
        self, pool: Any, validation: Any, tests: dict, classes: tuple[str, ...], positive: int | None, drawing: dict
    ) -> None:
        self.sets = {"pool": pool, "validation": validation, **tests}
        self.tests, self.classes, self.positive, self.drawing = tuple(tests), classes, positive, drawing

    def labels(self, name: str) -> np.ndarray:
        return self.sets[name][1]

    def scores(self, name: str, logits: np.ndarray) -> dict:
        return scores(logits, self.labels(name), self.classes, self.positive)

    def draw(self, size: int, seed: int) -> np.ndarray:
        """The indices in the pool of `size` training events; smaller draws of a seed are part of the larger ones."""
        return np.random.default_rng(seed).permutation(len(self.labels("pool")))[:size]


drawn = itemgetter("drawing", "bins", "dark_tracks")  # what a setting says about pictures


@cache
def images(data: Data, name: str, drawing: int, bins: int, dark_tracks: bool) -> np.ndarray:
    """A set as pictures, uint8 [N, H, W, 3]; full brightness is measured on the pool."""
    how = data.drawing | SETTINGS["drawings"][drawing] | {"bins": bins, "dark_tracks": dark_tracks}
    measured = {key: how[key] for key in ("planes", "extent", "bins") if key in how}
    return to_images(data.sets[name][0], full_scale=charge_at(data.sets["pool"][0], **measured), **how)


@cache
def tensors(data: Data, name: str, *drawing: Any) -> list[dict]:
    return examples(images(data, name, *drawing), data.labels(name), image_processor(IMAGE_SIZE))


def pixels(data: Data, name: str, setting: dict) -> np.ndarray:
    """The pictures as rows of numbers in 0..1."""
    return images(data, name, *drawn(setting)).reshape(len(data.labels(name)), -1) / np.float32(255)


def patch_statistics(learngene: str, data: Data, name: str, setting: dict) -> np.ndarray:
    return _patch_statistics(learngene, data, name, setting["depth"], *drawn(setting))


@cache
@torch.no_grad()
def _patch_statistics(learngene: str, data: Data, name: str, depth: int, *drawing: Any) -> np.ndarray:
    """A frozen descendant's patch states: their mean, maximum and deviation over patches.

    The classifier of transformers sees the mean alone. A track is a few bright patches among dark ones, so how far the
    patches reach and spread says more of it than of a photo.
    """
    model = descendant(learngene, len(data.classes), {"depth": depth}).eval()
    found = torch.stack([example["pixel_values"] for example in tensors(data, name, *drawing)]).split(128)
    states = [model.vision_model(batch).last_hidden_state[:, 1:] for batch in found]  # [B, patches, D]
    pooled = [torch.cat([s.mean(dim=1), s.amax(dim=1), s.std(dim=1)], dim=1) for s in states]
    return torch.cat(pooled).numpy()


def transfer_data() -> Data:
    """Simulated events to train on, real-like ones to choose by and to test on, and simulated ones for comparison."""
    tests = {
        "real_like": simulate_events(1000, detector=REAL_LIKE, seed=42),
        "simulated": simulate_events(300, seed=43),
    }
    validation = simulate_events(200, detector=REAL_LIKE, seed=41)
    drawing = {"extent": chamber_extent(SIMULATED)}
    return Data(simulate_events(1600, seed=40), validation, tests, CLASSES, None, drawing)


def mg22_data(path: str) -> Data:
    """1,000 of the training voxels as the pool, 200 to choose by; the rest and the test voxels to test on."""
    train, test = (read_events(path, split=split) for split in ("train", "test"))
    order = np.random.default_rng(22).permutation(len(train[1]))
    pool, validation, rest = ((train[0][part], train[1][part]) for part in np.split(order, [1000, 1200]))
    tests = {"mg22": tuple(np.concatenate(pair) for pair in zip(rest, test, strict=True))}
    # The voxels' first axis is the beam: its projection goes first, as xy does for the chamber above.
    return Data(pool, validation, tests, ("beam", "reaction"), 1, {"planes": ("yz", "xy", "xz")})


class SmallCNN(nn.Module):
    """Three convolutions of 16, 32 and 64 channels with batch normalisation, pooled to one vector and classified."""

    def __init__(self, classes: int):
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in ((3, 16), (16, 32), (32, 64)):
            layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU(), nn.MaxPool2d(2)]
        self.features = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.classifier = nn.Linear(64, classes)

    def forward(self, pixel_values, labels=None):
        return {"logits": self.classifier(self.features(pixel_values))}


# A fit takes the data, the indices of its training events, its setting and a seed, and gives set name -> logits.
Predict = Callable[[str], np.ndarray]
Features = Callable[[Data, str, dict], np.ndarray]  # of a set of events, [N, D]


def fit_sklearn(
    make: Callable[[dict, int], Any], features: Features, data: Data, chosen: np.ndarray, setting: dict, seed: int
) -> Predict:
    model = make(setting, seed).fit(features(data, "pool", setting)[chosen], data.labels("pool")[chosen])

    def predict(name: str) -> np.ndarray:
        logits = np.full((len(data.labels(name)), len(data.classes)), -np.inf)
        logits[:, model.classes_] = model.predict_proba(features(data, name, setting))
        return logits

    return predict


def logistic(setting: dict, seed: int, steps: int = 500) -> LogisticRegression:
    return LogisticRegression(C=setting["strength"], class_weight="balanced", max_iter=steps)


def scaled_logistic(setting: dict, seed: int) -> Any:
    return make_pipeline(StandardScaler(), logistic(setting, seed, 1000))


def forest(setting: dict, seed: int) -> RandomForestClassifier:
    features = setting["max_features"]
    return RandomForestClassifier(300, max_features=features, class_weight="balanced", random_state=seed)


def fit_network(
    make: Callable[[int, dict], nn.Module], probed: bool, data: Data, chosen: np.ndarray, setting: dict, seed: int
) -> Predict:
    torch.manual_seed(seed)
    train = [tensors(data, "pool", *drawn(setting))[index] for index in chosen]
    model = make(len(data.classes), setting)
    if probed:
        probe_head(model, train, strength=setting["strength"], balanced=True)
        freeze_layers(model, setting["frozen_layers"])
    length = {name: setting[name] for name in ("steps", "learning_rate")}
    trainer = fine_tune(model, train, data.classes, output_dir="runs/events", seed=seed, quiet=True, **length)
    return lambda name: trainer.predict(tensors(data, name, *drawn(setting))).predictions


def descendant(learngene: str, classes: int, setting: dict) -> nn.Module:
    return from_learngene(learngene, setting["depth"], None, "image", num_labels=classes)


def from_scratch(learngene: str, classes: int, setting: dict) -> nn.Module:
    """The descendant's own architecture with transformers' random initialisation."""
    model = CLIPForImageClassification(descendant(learngene, classes, setting).config)
    model.accepts_loss_kwargs = False
    return model


def methods(learngene: str) -> dict[str, Callable]:
    """How each method of `settings.yaml` is fitted."""
    statistics = partial(patch_statistics, learngene)
    return {
        "descendant": partial(fit_network, partial(descendant, learngene), True),
        "descendant, richer pooling": partial(fit_sklearn, scaled_logistic, statistics),
        "same model from scratch": partial(fit_network, partial(from_scratch, learngene), False),
        "small CNN": partial(fit_network, lambda classes, setting: SmallCNN(classes), False),
        "random forest": partial(fit_sklearn, forest, pixels),
        "logistic regression": partial(fit_sklearn, logistic, pixels),
    }


def choose(fit: Any, load: Callable[[], Data], size: int, method: str) -> dict[str, Any]:
    """Vary one thing after the other and keep what has the best F1 on the validation events; ties keep the earlier."""
    data = load()
    chosen = data.draw(size, SELECTION_SEED)

    def validate(candidate: dict) -> float:
        return data.scores("validation", fit(data, chosen, candidate, SELECTION_SEED)("validation"))["f1"]

    setting = {"drawing": 0, "bins": IMAGE_SIZE, "dark_tracks": False} | SETTINGS["methods"][method]["first"]
    best = validate(setting)
    tried = [{"setting": setting, "f1": best}]
    for name, values in SETTINGS["methods"][method]["varied"].items():
        start = setting
        for value in values:
            candidate = start | (value if isinstance(value, dict) else {name: value})
            if candidate == start or ("bins" in candidate and name == "bins" and "extent" not in data.drawing):
                continue  # tried already; voxels have the pixels that they have
            f1 = validate(candidate)
            tried.append({"setting": candidate, "f1": f1})
            if f1 > best:
                setting, best = candidate, f1
    return {"setting": setting, "tried": tried}


def measure(fit: Any, load: Callable[[], Data], size: int, setting: dict, seed: int) -> dict[str, Any]:
    """One run: trained on one draw, tested once."""
    data, started = load(), time.perf_counter()
    predict = fit(data, data.draw(size, seed), setting, seed)
    seconds = round(time.perf_counter() - started, 2)
    return {"seconds_to_train": seconds, "tests": {name: data.scores(name, predict(name)) for name in data.tests}}


def main() -> None:
    options = parse(
        __doc__,
        *("learngene", "seeds", "output"),
        settings=SETTINGS,
        methods=(list(SETTINGS["methods"]), "some of the methods", SETTINGS["methods"]),
    )
    data_sets: dict[str, Callable[[], Data]] = {"simulated to real-like": cache(transfer_data)}
    if options.mg22:
        data_sets["22Mg + alpha"] = cache(partial(mg22_data, options.mg22))
    fits, folder = methods(options.learngene), output_folder(options, "events")
    results = Results(folder / "results" / "events.json", {})
    results.save(sizes=options.sizes, seeds=options.seeds, methods=list(fits))
    for (data, load), size, method in product(data_sets.items(), options.sizes, options.methods):
        cell, fit = f"{data}/{method}/{size}", fits[method]
        setting = results.run(f"chosen/{cell}", choose, fit, load, size, method)["setting"]
        for seed in options.seeds:
            results.run(f"run/{cell}/{seed}", measure, fit, load, size, setting, seed)
    publish(folder, report)


if __name__ == "__main__":
    main()

"""What a folder must satisfy before it is published: a complete card that runs and shows measured figures only."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from mmlg_hf.cards import HUB_ID
from mmlg_hf.cards.cards import PIPELINE_TAGS, stored_parameters
from mmlg_hf.cards.results import PLOT_FILE, RESULTS_FILE, read_results
from mmlg_hf.errors import LearngeneError

from .space import check_space

# Identifiers the Hub knows and this zoo has a use for; anything else is "other" with license_name and license_link.
LICENSES = {
    "apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0",
    "cc-by-nc-sa-4.0", "cdla-permissive-2.0", "gpl-3.0", "lgpl-3.0", "mpl-2.0", "openrail", "unlicense", "other",
}  # fmt: skip
RELATIONS = {"finetune", "adapter", "merge", "quantized"}
REQUIRED = ("license", "language", "library_name", "tags")
SECTIONS = ("Use it", "How it was made", "Intended use and limits", "Licence", "Citation")
PLACEHOLDER = re.compile(
    r"\[?more information needed\]?|\bTODO\b|\bFIXME\b|\bTBD\b|\bXXX\b|lorem ipsum|\{\{|\}\}|\{%|<your[^>]*>"
    r"|\byour-(?:user)?name\b",
    re.IGNORECASE,
)
PICKLED = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
SNIPPET_SECONDS = 300
OTHER_LIBRARY = "sentence_transformers"


def lint_folder(folder: str | os.PathLike, *, weights: str | os.PathLike | None = None, run: bool = True) -> list[str]:
    """Everything wrong with a staged artifact, one sentence each; an empty list when it may be published.

    Args:
        folder: what would be published.
        weights: folder whose model the card's snippets load in place of the repository; None takes `folder`.
        run: execute the snippets, each in a process of its own without network. False only compiles them.
    """
    folder = Path(folder)
    if not (folder / "README.md").is_file():
        return [f"{folder} has no README.md"]
    text = (folder / "README.md").read_text(encoding="utf-8")
    try:
        metadata, body = split_card(text)
    except LearngeneError as error:
        return [str(error)]
    if "sdk" in metadata:
        return [*_check_files(folder), *check_space(metadata, folder), *_check_placeholders(text)]
    weights = Path(weights or folder)
    config = _read_json(weights / "config.json") or {}
    problems = [*_check_files(folder), *_check_metadata(metadata, config, folder), *_check_text(text, body, folder)]
    problems += _check_figures(body, folder, config, weights)
    problems += _check_snippets(body)
    if run and not problems and (failure := run_snippets(snippets_of(folder, weights))):
        problems.append(f"A snippet of README.md does not run: {failure}")
    return problems


def split_card(text: str) -> tuple[dict[str, Any], str]:
    """A card's metadata and what follows it."""
    match = re.match(r"\A---\n(.*?)\n---\n", text, re.DOTALL)
    if match is None:
        raise LearngeneError("README.md does not begin with a metadata block between two lines of ---")
    try:
        metadata = yaml.safe_load(match[1])
    except yaml.YAMLError as error:
        raise LearngeneError(f"The metadata of README.md is not YAML: {error}") from None
    if not isinstance(metadata, dict):
        raise LearngeneError("The metadata of README.md is not a mapping")
    return metadata, text[match.end() :]


def python_snippets(text: str) -> list[str]:
    """The content of every fenced Python block."""
    return re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _check_files(folder: Path) -> Iterable[str]:
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in PICKLED:
            yield f"{path.relative_to(folder)} is a pickled file: weights are published as safetensors only"
        if path.is_symlink():
            yield f"{path.relative_to(folder)} is a link: publish the file itself"


def _check_metadata(metadata: Mapping[str, Any], config: Mapping[str, Any], folder: Path) -> Iterable[str]:
    required = list(REQUIRED)
    if (folder / RESULTS_FILE).is_file():
        required += ["datasets", "metrics"]
    if config.get("learngene"):
        required += ["base_model", "base_model_relation"]
    expected_tag = PIPELINE_TAGS.get((config.get("architectures") or [""])[0])
    if expected_tag:
        required.append("pipeline_tag")
    for key in required:
        if not metadata.get(key):
            yield f"The metadata has no {key}"
    license = metadata.get("license")
    if license is not None and license not in LICENSES:
        yield f"The licence {license!r} is not one of {', '.join(sorted(LICENSES))}"
    if license == "other" and not (metadata.get("license_name") and metadata.get("license_link")):
        yield "The licence is 'other': license_name and license_link must say which"
    tag = metadata.get("pipeline_tag")
    if tag is not None and tag not in PIPELINE_TAGS.values():
        yield f"The pipeline tag {tag!r} is not one of {', '.join(sorted(PIPELINE_TAGS.values()))}"
    elif tag is not None and expected_tag and tag != expected_tag:
        yield f"The pipeline tag is {tag!r}, but a {config['architectures'][0]} is for {expected_tag!r}"
    relation = metadata.get("base_model_relation")
    if relation is not None and relation not in RELATIONS:
        yield f"The base_model_relation {relation!r} is not one of {', '.join(sorted(RELATIONS))}"
    base_model = metadata.get("base_model")
    if base_model is not None and not HUB_ID.fullmatch(str(base_model)):
        yield f"The base_model {base_model!r} is not a Hub id"


def _check_placeholders(text: str) -> Iterable[str]:
    for match in PLACEHOLDER.finditer(text):
        yield f"README.md has the placeholder {match[0]!r}"


def _check_text(text: str, body: str, folder: Path) -> Iterable[str]:
    yield from _check_placeholders(text)
    headings = re.findall(r"^## (.+)$", body, re.MULTILINE)
    for section in SECTIONS:
        if section not in headings:
            yield f"README.md has no section {section!r}"
    for target in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", body):
        if "://" not in target and not (folder / target).is_file():
            yield f"README.md shows {target}, which is not in the folder"
    if (folder / PLOT_FILE).is_file() and PLOT_FILE not in body:
        yield f"README.md does not show {PLOT_FILE}"


def _check_figures(body: str, folder: Path, config: Mapping[str, Any], weights: Path) -> Iterable[str]:
    """Each row of the table of figures against its row in the results, other decimals against results and config."""
    results: dict[str, Any] = {"models": []}
    if (folder / RESULTS_FILE).is_file():
        try:
            results = read_results(folder / RESULTS_FILE)
        except LearngeneError as error:
            yield str(error)
            return
    rows = {row["name"]: list(_numbers(row)) for row in results["models"]}
    known = [*_numbers(results), *_numbers(config), *_parameter_count(weights)]
    prose = re.sub(r"^```.*?^```|`[^`]*`|\]\([^)]*\)|https?://\S+", "", body, flags=re.DOTALL | re.MULTILINE)
    section = ""
    for line in prose.splitlines():
        section = line[3:] if line.startswith("## ") else section
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")] if line.startswith("|") else []
        if section == "Figures" and cells and cells[0] != "Model" and not set(line) <= set("|-: "):
            if cells[0] not in rows:
                yield f"The table has a row {cells[0]!r}, which {RESULTS_FILE} does not have"
                continue
            allowed, found = rows[cells[0]], re.findall(r"\d[\d,]*(?:\.\d+)?", " ".join(cells[1:]))
        else:
            allowed, found = known, re.findall(r"(?<![\w.-])\d+\.\d+(?![\w.])|\d+(?=\s?%)", line)
        for number in found:
            if not _is_among(number, allowed):
                yield f"The figure {number} in {line.strip()[:60]!r} is not in {RESULTS_FILE}"
    for path in sorted((folder / ".eval_results").glob("*.yaml")):
        for entry in yaml.safe_load(path.read_text(encoding="utf-8")) or []:
            if not any(entry.get("value") == number for number in known):
                yield f"The figure {entry.get('value')} in .eval_results/{path.name} is not in {RESULTS_FILE}"


def _numbers(value: Any) -> Iterable[float]:
    """Every number in nested mappings and lists."""
    if isinstance(value, Mapping):
        for item in value.values():
            yield from _numbers(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _numbers(item)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield value


def _parameter_count(weights: Path) -> list[float]:
    return [stored_parameters(weights)] if any(weights.glob("*.safetensors")) else []


def _is_among(number: str, values: Iterable[float]) -> bool:
    """Whether a printed number is one of the values, as it is, in percent or in millions, to the printed decimals."""
    decimals = len(number.partition(".")[2])
    shown = float(number.replace(",", ""))
    return any(abs(value * scale - shown) <= 0.5000001 * 10**-decimals for value in values for scale in (1, 100, 1e-6))


def _check_snippets(body: str) -> Iterable[str]:
    snippets = python_snippets(body)
    if not snippets:
        yield "README.md has no Python snippet"
    for number, snippet in enumerate(snippets, start=1):
        try:
            compile(snippet, f"snippet {number}", "exec")
        except SyntaxError as error:
            yield f"Snippet {number} of README.md is not Python: {error}"


def snippets_of(folder: Path, weights: Path) -> dict[str, str]:
    """The Python snippets of a folder's card by a name to report, loading `weights` in place of the repository.

    Those for another library than this package's own are left out where it is not installed.
    """
    _, body = split_card((folder / "README.md").read_text(encoding="utf-8"))
    return {
        f"{folder.name} snippet {number}": localised(snippet, weights)
        for number, snippet in enumerate(python_snippets(body), start=1)
        if not (OTHER_LIBRARY in snippet and find_spec(OTHER_LIBRARY) is None)
    }


def localised(snippet: str, weights: Path) -> str:
    """The snippet with the Hub id that it loads replaced by a local folder."""
    loads = r'((?:from_learngene\(|from_pretrained\(|SentenceTransformer\(|model=))"[\w.-]+/[\w.-]+"'
    return re.sub(loads, lambda match: match[1] + repr(str(weights.resolve())), snippet)


def run_snippets(snippets: Mapping[str, str]) -> str | None:
    """Run snippets, given by name, in a process and a folder of their own, each by itself, without network.

    Returns:
        the first error, after the name of its snippet; None when all of them run.
    """
    program = (
        "import json, sys\n"
        "for name, snippet in json.load(sys.stdin).items():\n"
        "    code = compile(snippet, name, 'exec')\n"
        "    try:\n"
        "        exec(code, {'__name__': '__main__'})\n"
        "    except BaseException as error:\n"
        "        sys.exit(f'{name}: {type(error).__name__}: {error}')\n"
    )
    package = str(Path(__file__).resolve().parents[1])
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
    with tempfile.TemporaryDirectory() as folder:
        try:
            done = subprocess.run(
                [sys.executable, "-c", program],
                cwd=folder,
                env=environment,
                input=json.dumps(dict(snippets)),
                text=True,
                capture_output=True,
                timeout=SNIPPET_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return f"not done after {SNIPPET_SECONDS} seconds"
    return None if done.returncode == 0 else (done.stderr.strip().splitlines() or ["no message"])[-1]

"""The command line: `python -m upload publish | verify | lint | render`."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from mmlg_hf.errors import LearngeneError
from mmlg_hf.shell.failing import ErrorsInOneSentence

from .manifest import MANIFEST, Manifest, check_name, read_manifest

app = typer.Typer(
    help="Publish the zoo to the Hub, and check what is published.",
    cls=ErrorsInOneSentence,
    no_args_is_help=True,
    add_completion=False,
)
console, problems_console = Console(soft_wrap=True), Console(stderr=True, soft_wrap=True)
ManifestOption = Annotated[Path, typer.Option("--manifest", help="The zoo's manifest.")]


def main() -> None:
    """Run the command line."""
    app(prog_name="python -m upload")


@app.command()
def publish(
    names: Annotated[
        list[str] | None, typer.Argument(help="Artifacts of the manifest; all of them by default.")
    ] = None,
    namespace: Annotated[str | None, typer.Option(help="User or organisation; the manifest's by default.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Write; without it only the plan is shown.")] = False,
    revision: Annotated[str | None, typer.Option(help="Branch to write to, made if missing.")] = None,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Open a pull request instead of writing.")] = False,
    private: Annotated[bool, typer.Option("--private", help="Make new repositories private.")] = False,
    manifest_path: ManifestOption = MANIFEST,
) -> None:
    """Build, check and publish artifacts, one commit for each; a dry run without --yes.

    Example: python -m upload publish mmlg-fashion-gene --namespace my-org --yes
    """
    if revision is not None and create_pr:
        raise LearngeneError("--revision and --create-pr exclude each other: a pull request is made against main")
    manifest = read_manifest(manifest_path)
    namespace = check_name(namespace or manifest.namespace, "the namespace")
    selected = manifest.select(names)
    from huggingface_hub import HfApi

    from .publishing import Plan, check_login

    api = HfApi(library_name="mmlg_hf")
    if yes:
        check_login(api, namespace)
    with tempfile.TemporaryDirectory() as temporary:
        folders = _stage_checked(manifest, [artifact.name for artifact in selected], namespace, Path(temporary))
        plans = [
            Plan(f"{namespace}/{name}", folder, f"Publish {name} {manifest.version}", manifest[name].repo_type)
            for name, folder in folders.items()
        ]
        for plan in plans:
            if yes:
                settings: dict[str, Any] = {"revision": revision, "create_pr": create_pr, "private": private or None}
                _write(api, plan, manifest, settings)
            else:
                _show(plan)
    if not yes:
        console.print("Dry run: nothing was written. Add --yes to publish.", style="bold")


def _stage_checked(manifest: Manifest, names: list[str], namespace: str, temporary: Path) -> dict[str, Path]:
    """Build the artifacts and lint all of them, so that nothing is written unless everything is fit."""
    from .lint import lint_folder, run_snippets, snippets_of
    from .staging import stage

    folders = {}
    for name in names:
        with console.status(f"Building {name}"):
            folders[name] = stage(manifest[name], manifest, temporary / name, namespace)
        if problems := lint_folder(folders[name], run=False):
            raise LearngeneError(f"{name} is not fit to be published: " + "; ".join(problems))
    with console.status("Running the snippets of the cards"):
        # In one process for all: most of the time goes into starting it.
        snippets = {key: code for folder in folders.values() for key, code in snippets_of(folder, folder).items()}
        if failure := run_snippets(snippets):
            raise LearngeneError(f"A snippet of a card does not run: {failure}")
    return folders


def _show(plan: Any) -> None:
    table = Table("File", "Bytes", title=plan.repo_id, title_justify="left")
    table.columns[1].justify = "right"
    for name in plan.files:
        table.add_row(name, f"{(plan.folder / name).stat().st_size:,}")
    console.print(table)
    console.print(f"Commit message: {plan.message}", markup=False, highlight=False)
    console.print((plan.folder / "README.md").read_text(encoding="utf-8"), markup=False, highlight=False)


def _write(api: Any, plan: Any, manifest: Manifest, settings: dict[str, Any]) -> None:
    from .publishing import publish as write
    from .publishing import verify as check

    with console.status(f"Publishing {plan.repo_id}"):
        outcome = write(api, plan, tag=f"v{manifest.version}", **settings)
    if outcome.pull_request:
        console.print(f"{plan.repo_id}: pull request {outcome.pull_request}", markup=False, highlight=False)
    elif outcome.changed:
        console.print(f"{plan.repo_id}: published as {outcome.commit}", markup=False, highlight=False)
    else:
        console.print(f"{plan.repo_id}: nothing changed, no commit ({outcome.commit})", markup=False, highlight=False)
    with console.status(f"Downloading {plan.repo_id} to compare"):
        compared = check(plan.repo_id, outcome.commit, plan.folder, api.token, plan.repo_type)
    console.print(f"{plan.repo_id}: verified, {compared}", markup=False, highlight=False)


@app.command()
def verify(
    repo_id: Annotated[str, typer.Argument(help="Published artifact, ORG/NAME with NAME of the manifest.")],
    revision: Annotated[str, typer.Option(help="Branch, tag or commit to compare.")] = "main",
    manifest_path: ManifestOption = MANIFEST,
) -> None:
    """Download a published artifact into a fresh cache and compare files and outputs with the local one.

    Example: python -m upload verify my-org/mmlg-fashion-gene
    """
    namespace, _, name = repo_id.partition("/")
    check_name(namespace, "the namespace")
    manifest = read_manifest(manifest_path)
    from .publishing import verify as check
    from .staging import stage

    with tempfile.TemporaryDirectory() as temporary:
        artifact = manifest[check_name(name, "the name")]
        folder = stage(artifact, manifest, Path(temporary) / name, namespace)
        compared = check(repo_id, revision, folder, repo_type=artifact.repo_type)
    console.print(f"{repo_id}: verified, {compared}", markup=False, highlight=False)


@app.command()
def lint(
    folders: Annotated[list[Path], typer.Argument(help="Folders as they would be published.")],
    run: Annotated[bool, typer.Option(help="Execute the card's snippets: this runs code from the folder.")] = True,
    manifest_path: ManifestOption = MANIFEST,
) -> None:
    """Check cards: metadata, placeholders, snippets, and that each figure is in the results file.

    A folder of model_cards/ has no weights: its snippets run on the artifact of that name, built for the purpose.

    Example: python -m upload lint model_cards/*/
    """
    from .lint import lint_folder, run_snippets, snippets_of

    snippets: dict[str, str] = {}
    fit: list[Path] = []
    with tempfile.TemporaryDirectory() as temporary:
        for folder in folders:
            if not folder.is_dir():
                raise LearngeneError(f"{folder} is not a folder")
            with console.status(f"Checking {folder}"):
                weights = _weights_of(folder, manifest_path, temporary)
                problems = lint_folder(folder, weights=weights, run=False)
            for problem in problems:
                problems_console.print(f"{folder}: {problem}", markup=False, highlight=False)
            if not problems:
                fit.append(folder)
                own = snippets_of(folder, weights) if run else {}
                snippets |= {f"{folder.parent}/{name}": snippet for name, snippet in own.items()}
        with console.status("Running the snippets of the cards"):  # in one process for all, as in publishing
            failure = run_snippets(snippets) if snippets else None
    if failure:
        problems_console.print(f"A snippet of a card does not run: {failure}", markup=False, highlight=False)
        raise typer.Exit(1)
    for folder in fit:
        console.print(f"{folder}: fit to be published", markup=False, highlight=False)
    if len(fit) < len(folders):
        raise typer.Exit(1)


def _weights_of(folder: Path, manifest_path: Path, temporary: str) -> Path:
    """The folder itself, or the artifact of its name, built in a folder of its own, if it holds no weights."""
    from .staging import stage

    if any(folder.glob("*.safetensors")):
        return folder
    manifest = read_manifest(manifest_path)
    return stage(manifest[folder.resolve().name], manifest, Path(tempfile.mkdtemp(dir=temporary)), manifest.namespace)


@app.command()
def render(
    check: Annotated[bool, typer.Option("--check", help="Write nothing; fail if a file is out of date.")] = False,
    output: Annotated[Path | None, typer.Option(help="Folder to write to; model_cards/ by default.")] = None,
    manifest_path: ManifestOption = MANIFEST,
) -> None:
    """Render the card of every artifact, and the page that lists them, into model_cards/.

    Example: python -m upload render --check
    """
    from .rendering import CARDS, out_of_date, render_all

    manifest = read_manifest(manifest_path)
    if check:
        if stale := out_of_date(manifest, output or CARDS):
            raise LearngeneError(f"Run `python -m upload render`: out of date are {', '.join(stale)}")
        console.print("All cards are up to date")
        return
    for name in render_all(manifest, output or CARDS):
        console.print(name, markup=False, highlight=False)

"""Gather the pages of the site in build/pages: `python docs/gather.py`, which `make docs` does before it builds.

README.md is the front page. Pages that lie elsewhere in the repository keep their paths; links are led from where a
page lies in the repository to where it lies on the site. The commands' options are read off the program, and the
reference names each public name's module, so that neither goes stale.
"""

import dataclasses
import re
import shutil
from importlib import import_module
from pathlib import Path
from typing import Any

from typer.main import get_command

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = ROOT / "build" / "pages"
ELSEWHERE = ("CONTRIBUTING.md", "CHANGELOG.md")
FOLDERS = ("benchmarks", "examples", "model_cards")
SUFFIXES = (".md", ".png", ".ipynb", ".json", ".css")


def gather() -> None:
    """Write every page, picture and data file of the site to `PAGES`, anew."""
    shutil.rmtree(PAGES, ignore_errors=True)
    sources = {"index.md": ROOT / "README.md"} | {name: ROOT / name for name in ELSEWHERE}
    sources |= {path.relative_to(DOCS).as_posix(): path for path in files_of(DOCS)}
    sources |= {path.relative_to(ROOT).as_posix(): path for folder in FOLDERS for path in files_of(ROOT / folder)}
    for name, source in sources.items():
        target = PAGES / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.suffix == ".md":
            target.write_text(page(name, source.read_text(encoding="utf-8")), encoding="utf-8")
        else:
            shutil.copyfile(source, target)


def files_of(folder: Path) -> list[Path]:
    """The files of a folder that the site shows; a page.md is a template that a README is rendered from."""
    return [path for path in sorted(folder.rglob("*")) if path.suffix in SUFFIXES and path.name != "page.md"]


def page(name: str, text: str) -> str:
    """A page as the site shows it: links led right, and what is generated filled in."""
    if name == "index.md":
        text = text.replace("](docs/", "](")
    elif "/" not in name:
        text = text.replace("](../", "](").replace("](README.md", "](index.md")
    if name == "command-line.md":
        text = text.replace("<!-- commands -->", command_line())
    if name.startswith("reference/"):
        text = re.sub(r"^::: (\S+)$", lambda found: reference(found[1]), text, flags=re.M)
    return text


# --- the command line ------------------------------------------------------------------------------------------------


def command_line() -> str:
    """Every command with its arguments and options, read off the program itself."""
    from mmlg_hf.cli import app

    return "\n\n".join(_commands(get_command(app), "mmlg"))


def _commands(command: Any, name: str) -> list[str]:
    if subcommands := getattr(command, "commands", None):
        return [part for word, below in subcommands.items() for part in _commands(below, f"{name} {word}")]
    context = command.make_context(name, [], resilient_parsing=True)
    usage = " ".join([name, *command.collect_usage_pieces(context)])
    parts = [f"## {name}", f"```\n{usage}\n```", _unindent(command.help or "")]
    shown = [parameter for parameter in command.get_params(context) if not getattr(parameter, "hidden", False)]
    rows = [_row(parameter, context) for parameter in shown]
    parts.append("\n".join(["| argument | |", "|---|---|", *rows]))
    if command.epilog:
        parts.append("\n".join(f"    {line}" for line in command.epilog.removeprefix("Example: ").splitlines()))
    return parts


def _row(parameter: Any, context: Any) -> str:
    shown, described = parameter.get_help_record(context) or (parameter.human_readable_name, parameter.help or "")
    return f"| `{_plain(shown)}` | {_plain(described)} |"


def _plain(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip().replace("|", "\\|")


def _unindent(text: str) -> str:
    return "\n".join(line.strip() for line in text.strip().splitlines())


# --- the reference ---------------------------------------------------------------------------------------------------


def reference(public: str) -> str:
    """The directive for a public name, at the module that defines it, with the fields of a class of arguments."""
    thing = _find(public)
    parts = [f"::: {thing.__module__}.{thing.__qualname__}"]
    if own := _fields(thing):
        parts.append("\n".join(["| field | default | |", "|---|---|---|", *own]))
    return "\n\n".join(parts)


def _find(public: str) -> Any:
    thing: Any = import_module("mmlg_hf")
    for name in public.split(".")[1:]:
        try:
            thing = getattr(thing, name)
        except AttributeError:
            thing = import_module(f"{thing.__name__}.{name}")
    return thing


def _fields(thing: Any) -> list[str]:
    if not dataclasses.is_dataclass(thing):
        return []
    own = thing.__annotations__
    described = [field for field in dataclasses.fields(thing) if field.name in own and "help" in field.metadata]
    return [f"| `{field.name}` | `{_default(field)!r}` | {_plain(field.metadata['help'])} |" for field in described]


def _default(field: dataclasses.Field) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


if __name__ == "__main__":
    gather()

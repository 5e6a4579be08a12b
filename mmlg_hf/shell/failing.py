"""How a command ends that cannot do its work: one sentence on stderr, and an exit code that says whose fault it is."""

import re
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

import typer
from rich.console import Console
from rich.text import Text
from typer.core import TyperGroup

from ..errors import LearngeneError, OutputError, first_line

MACHINE, INPUT, INTERRUPTED = 1, 2, 130

# `ctx.meta` of a command that takes fields of a dataclass as options holds them here, with their options.
FIELDS = "mmlg_hf.fields"

_GOES_ON = "give the same command again, which goes on from the last checkpoint"
_AFTER_CTRL_C = {
    "extract": "give the same command again with --resume, which goes on from the last checkpoint",
    "align": _GOES_ON,
    "publish": "give the same command again, which publishes what is missing",
    "moe": _GOES_ON + " or the last finished stage",
}
# What a Python caller would write, and what the command line has for it.
_IN_PYTHON = (
    (re.compile(r'pass on_bad_image="skip"'), "give --skip-bad-images"),
    (re.compile(r"pass processor="), "save one beside it"),
    (re.compile(r",? or None (to|for) "), r", or leave it out \1 "),
)
# What libraries written in other languages say where a file could not be written.
_FAILED_WRITE = re.compile(r"os error \d+|PytorchStreamWriter|file write failed|unexpected pos|iostream error", re.I)


class ErrorsInOneSentence(TyperGroup):
    """Commands that end with one sentence on stderr: exit code 2 for bad input, 1 for a machine that cannot."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            how = _AFTER_CTRL_C.get(ctx.invoked_subcommand, "nothing half-written was left, so give it again")
            _end(f"Stopped: to go on, {how}.", INTERRUPTED)
        except Exception as error:
            # A reader of stdout that is gone, and what the command line's own library ends by, are dealt with there.
            if isinstance(error, (BrokenPipeError, typer.Abort)) or hasattr(error, "exit_code"):
                raise
            told = _sentence(error)
            if told is None:
                raise
            sentence, code = told
            _end(f"Error: {name_options(sentence, _options(self, ctx))}", code)


def _end(sentence: str, code: int) -> NoReturn:
    # Text and not markup: the sentence may hold square brackets.
    Console(stderr=True).print(Text(sentence, style="red"), soft_wrap=True)
    raise typer.Exit(code) from None


def _sentence(error: BaseException) -> tuple[str, int] | None:
    """What to say of an error and the exit code; None where it is a mistake of this package."""
    if isinstance(error, LearngeneError):
        return str(error), MACHINE if isinstance(error, OutputError) else INPUT
    if isinstance(error, MemoryError):
        return "the memory does not suffice: use less data at once (a smaller batch), or a smaller model", MACHINE
    for cause in _causes(error):
        if isinstance(cause, OSError):
            reason = (cause.strerror or first_line(cause)).rstrip(".")
            where = f"{str(cause.filename)!r}: " if cause.filename else ""
            return f"cannot read or write {where}{reason}", MACHINE
    if _FAILED_WRITE.search(str(error)):
        return f"cannot write: {first_line(error)}", MACHINE
    return None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def name_options(sentence: str, options: Mapping[str, str]) -> str:
    """Say what a sentence says of Python arguments of command-line options.

    A name of several words is replaced wherever it stands outside of quotes, a single word only where it is the
    subject ("depth is 0"): "data" and "text" are words of their own.
    """
    for pattern, words in _IN_PYTHON:
        sentence = pattern.sub(words, sentence)
    parts = re.split(r"('[^']*'|\"[^\"]*\")", sentence)
    for index in range(0, len(parts), 2):
        for name, option in options.items():
            if "_" in name:
                parts[index] = re.sub(rf"(?<![\w.-]){name}(?![\w-])", option, parts[index])
    sentence = "".join(parts)
    subject = re.match(r"([a-z]+) is ", sentence)
    if subject and subject[1] in options:
        return options[subject[1]] + sentence[len(subject[1]) :]
    return sentence


def _options(group: Any, ctx: Any) -> dict[str, str]:
    """The options of the command that ran, by the names of the Python arguments; of a group's, all."""
    commands = [group.commands.get(ctx.invoked_subcommand)]
    commands += getattr(commands[0], "commands", {}).values()
    options = dict(ctx.meta.get(FIELDS, {}))
    for command in commands:
        for parameter in getattr(command, "params", ()):
            long = [option for option in parameter.opts if option.startswith("--")]
            if long:
                options[parameter.name] = long[0]
    return options

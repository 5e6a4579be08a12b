"""The one error this package raises for bad input, the one line that it quotes of others, and what an extra brings."""

from importlib import import_module
from types import ModuleType

_LONGEST_LINE = 400  # characters: errors can quote names of any length


class LearngeneError(ValueError):
    """Bad input, said in one sentence: what was wrong, the value received, and what is allowed or what to do."""


class OutputError(LearngeneError, OSError):
    """An output that cannot be written: no folder, no permission, a full disk. Nothing was begun."""


def first_line(error: BaseException | str) -> str:
    """Return the first line that says anything of an error's message; the name of its class where it has none.

    A line that ends with a colon only announces the next, which is added; what is very long is cut.
    """
    if isinstance(error, KeyError):
        return f"there is no {error}"  # its message is the key alone
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    line = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
    return line if len(line) <= _LONGEST_LINE else f"{line[:_LONGEST_LINE]}..."


def require(module: str, extra: str) -> ModuleType:
    """Import a module of a library that only an extra of this package installs.

    Args:
        module: e.g. "matplotlib.figure".
        extra: of this package, e.g. "demo".

    Raises:
        LearngeneError: the library is not installed; the sentence says how to get it.
    """
    library = module.partition(".")[0]
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != library:
            raise  # the library is there, but lacks something of its own
        raise LearngeneError(
            f"This needs {library}, which is not installed: pip install 'mmlg_hf[{extra}]' brings it"
        ) from None

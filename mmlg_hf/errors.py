"""The one error this package raises for bad input, and the one line that it quotes of others."""


class LearngeneError(ValueError):
    """Bad input, said in one sentence: what was wrong, the value received, and what is allowed or what to do."""


def first_line(error: BaseException | str) -> str:
    """Return the first line that says anything of an error's message; the name of its class where it has none.

    A line that only announces the next, and so ends in a colon, is followed by that one.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if len(lines) > 1 and lines[0].endswith(":"):
        return f"{lines[0]} {lines[1]}"
    return lines[0] if lines else type(error).__name__

"""The captions of a row, read in one way wherever rows are read."""

from typing import Any

import numpy as np

from ..errors import LearngeneError

_LONGEST_QUOTE = 80
LONGEST_TEXT = 1_000_000  # characters


def captions_of(value: Any, row: str) -> list[str]:
    """Return the captions that a row's text holds, at least one, in their order.

    Args:
        value: a string, or a list, a tuple or an array of strings.
        row: the row's name in an error, such as "row 3".

    Raises:
        LearngeneError: naming the row, if there is no caption, or one is empty, blank, or no string that can be
            written down (half of a surrogate pair).
    """
    captions = value.tolist() if isinstance(value, np.ndarray) else value
    captions = [captions] if isinstance(captions, str) else captions
    if not isinstance(captions, (list, tuple)) or not captions or not all(map(_is_text, captions)):
        quoted = repr(value)
        quoted = quoted if len(quoted) <= _LONGEST_QUOTE else quoted[:_LONGEST_QUOTE] + "..."
        raise LearngeneError(
            f"{row} has the text {quoted}: give a string that is not blank, or a list with at least one such string"
        )
    for text in captions:
        check_length(text, row)
    return [str(text) for text in captions]


def check_length(text: str, row: str) -> None:
    """Refuse a text that no encoder reads a thousandth of, and that takes a tokenizer seconds and gigabytes."""
    if len(text) > LONGEST_TEXT:
        raise LearngeneError(
            f"{row} has a text of {len(text):,} characters ({text[:40]!r}...): give texts of at most {LONGEST_TEXT:,}"
        )


def _is_text(text: Any) -> bool:
    if not isinstance(text, str) or not text.strip():
        return False
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True

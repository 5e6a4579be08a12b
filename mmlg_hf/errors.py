"""The one error this package raises for bad input."""


class LearngeneError(ValueError):
    """Bad input, said in one sentence: what was wrong, the value received, and what is allowed or what to do."""

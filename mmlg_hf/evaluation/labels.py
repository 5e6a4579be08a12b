"""Class names and labels: the column that holds them, and each row's class as a number, or a refusal by its row."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from datasets import ClassLabel, Dataset
from torch import Tensor

from ..errors import LearngeneError

LABEL_COLUMN_NAMES = ("label", "labels", "class", "category")
_UNLABELLED = (None, -1, -100)  # as datasets and losses mark rows without a label
_SHOWN = 10


def find_label_column(dataset: Dataset, label_column: str | None = None) -> str:
    """Name the label column: the one asked for, the only `ClassLabel`, or one named label, labels, class or category.

    Raises:
        LearngeneError: naming the columns there are, if there is none or more than one would do.
    """
    have = ", ".join(map(repr, dataset.column_names))
    if label_column is not None:
        if label_column not in dataset.column_names:
            raise LearngeneError(f"the dataset has no label column {label_column!r}: its columns are {have}")
        return label_column
    found = [name for name, feature in dataset.features.items() if isinstance(feature, ClassLabel)]
    if len(found) != 1:
        found = [name for name in LABEL_COLUMN_NAMES if name in dataset.column_names]
    if not found:
        raise LearngeneError(f"the dataset has no label column that stands out: name one of {have} with label_column")
    return found[0]


def class_list(names: Any, what: str) -> list[str]:
    """Return class names in the order of their labels.

    Args:
        names: a list, or a mapping of the labels 0, 1, ... to names, as a config's `id2label` is.
        what: what the error calls them, such as "class_names".

    Raises:
        LearngeneError: for a mapping that does not count from 0 without gaps, or names that are no strings.
    """
    if isinstance(names, Mapping):
        if sorted(map(str, names)) != sorted(map(str, range(len(names)))):
            raise LearngeneError(
                f"{what} counts its {len(names)} classes {', '.join(map(str, list(names)[:_SHOWN]))}: count them "
                "from 0 without gaps, as a model's outputs are"
            )
        by_label = {str(label): name for label, name in names.items()}
        names = [by_label[str(label)] for label in range(len(names))]
    if isinstance(names, str) or not isinstance(names, Sequence):
        raise LearngeneError(f"{what} is {names!r}: give a list of names in the order of the labels")
    for label, name in enumerate(names):
        if not isinstance(name, str):
            raise LearngeneError(f"{what} calls class {label} {name!r}: a class name is a string")
    return list(names)


def class_numbers(values: Sequence[Any], names: Sequence[str]) -> Tensor:
    """Return each row's class [N]: labels that are strings by their place in `names`, whole numbers as they are.

    Raises:
        LearngeneError: naming the first row without a label, or with one that is none of the classes.
    """
    by_name = {name: index for index, name in enumerate(names)}
    numbers = []
    for row, value in enumerate(values):
        number = by_name.get(value) if isinstance(value, str) else value
        if not isinstance(number, int) or not 0 <= number < len(names):
            raise LearngeneError(f"row {row} has the label {value!r}, {_refusal(value, names)}")
        if isinstance(value, str) and names.count(value) > 1:
            raise LearngeneError(f"row {row} has the label {value!r}, but {names.count(value)} classes are called so")
        numbers.append(int(number))
    return torch.tensor(numbers, dtype=torch.long)


def _refusal(value: Any, names: Sequence[str]) -> str:
    if not isinstance(value, (list, dict)) and value in _UNLABELLED:
        return "so it is not labelled: drop such rows, or measure a split that has labels"
    shown = ", ".join(map(repr, names[:_SHOWN])) + (", ..." if len(names) > _SHOWN else "")
    return f"but there are {len(names)} classes, from 0: {shown}"

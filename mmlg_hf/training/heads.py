"""A classifier's head set by logistic regression before fine-tuning: linear probing, then fine-tuning."""

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import default_data_collator
from transformers.trainer_utils import RemoveColumnsCollator

from ..errors import LearngeneError, require
from .batches import check_is_data
from .modes import evaluating

_HEADS = ("classifier", "score")
_LABELS = ("labels", "label", "label_ids")
_NEVER = -10.0  # logit of a class without rows; the others' sum to 0, so that one of them is always above it


@torch.no_grad()
def probe_head(
    model: nn.Module,
    rows: Any,
    *,
    data_collator: Callable[[list[Any]], Mapping[str, Any]] | None = None,
    strength: float = 0.1,
    balanced: bool = False,
    batch_size: int = 128,
) -> None:
    """Set the head of a classifier to a logistic regression on its own features; the model is changed in place.

    A random head sends random gradients through pretrained layers and distorts what they know. A probed head starts
    fine-tuning as a working classifier (linear probing, then fine-tuning: Kumar et al., ICLR 2022, arXiv 2202.10054):

        probe_head(classifier, rows)
        Trainer(classifier, args, train_dataset=rows).train()

    The features are what the head is given while the model runs over the rows in evaluation mode. Nothing but the
    head's weights and bias changes, a class without rows is never predicted, and random states stay as they were.

    Args:
        model: any with a linear layer `classifier` or `score` of `config.num_labels` outputs, with a bias, which takes
            features [B, D]: `CLIPForImageClassification`, `ViTForImageClassification`,
            `BertForSequenceClassification`, our own classifiers, ... It runs where it is.
        rows: those of training, as the stock `Trainer` takes them: the model's inputs and `labels` (or `label`),
            classes from 0 to `config.num_labels` - 1.
        data_collator: makes a batch with `labels` [B] of rows; None takes transformers' `default_data_collator`, and
            leaves out what the model does not take, as the Trainer does.
        strength: inverse of the L2 penalty on the weights, on features of mean 0 and standard deviation 1.
        balanced: each class counts the same, however many rows it has.
        batch_size: rows at once.

    Raises:
        LearngeneError: the model has no such head, the rows are none or their labels not those of two or more classes
            of the model, a feature is not finite, a number is out of range, or scikit-learn is not installed.
    """
    for name, value in (("strength", strength), ("batch_size", batch_size)):
        if not value > 0:
            raise LearngeneError(f"{name} is {value}: give a number above 0")
    head = _head_of(model)
    regression = require("sklearn.linear_model", "demo").LogisticRegression
    check_is_data(rows, "training")
    features, labels = _features(model, head, _batches(model, rows, data_collator, batch_size))
    _check(features, labels, head.out_features)
    mean, spread = features.mean(axis=0), features.std(axis=0) + 1e-6
    probe = regression(C=strength, max_iter=1000, class_weight="balanced" if balanced else None)
    probe.fit((features - mean) / spread, labels)
    weight, bias = probe.coef_ / spread, probe.intercept_
    bias = bias - weight @ mean
    if len(probe.classes_) == 2:  # one logit of difference, shared out between the two classes
        weight, bias = np.stack([-weight[0], weight[0]]) / 2, np.array([-bias[0], bias[0]]) / 2
    full_weight, full_bias = torch.zeros_like(head.weight), torch.full_like(head.bias, _NEVER)
    full_weight[probe.classes_], full_bias[probe.classes_] = (torch.as_tensor(v).to(full_bias) for v in (weight, bias))
    head.weight.copy_(full_weight)
    head.bias.copy_(full_bias)


def _head_of(model: nn.Module) -> nn.Linear:
    """The one linear layer with a bias that has a head's name and gives a logit for each class."""
    count = getattr(getattr(model, "config", None), "num_labels", None)
    named = [(name, module) for name, module in model.named_modules() if name.rpartition(".")[2] in _HEADS]
    found = [
        module
        for _, module in named
        if isinstance(module, nn.Linear) and module.out_features == count and module.bias is not None
    ]
    if len(found) != 1:
        has = ", ".join(f"{name} ({module})" for name, module in named) or "neither"
        raise LearngeneError(
            f"the {type(model).__name__} has no head to probe (or several): give a model with one linear layer "
            f"'classifier' or 'score', with a bias, of config.num_labels = {count} outputs; it has {has}"
        )
    return found[0]


def _batches(
    model: nn.Module, rows: Any, collator: Callable[[list[Any]], Mapping[str, Any]] | None, batch_size: int
) -> Iterator[dict[str, Any]]:
    if collator is None:
        taken = [*inspect.signature(model.forward).parameters, *_LABELS]
        collator = RemoveColumnsCollator(default_data_collator, taken)
    # A loader draws a seed for its workers, though it has none: not from the global random state.
    loader = DataLoader(rows, batch_size, collate_fn=collator, generator=torch.Generator())
    return map(dict, loader)


def _features(
    model: nn.Module, head: nn.Module, batches: Iterable[dict[str, Any]]
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """What the head is given for all rows [N, D], in float64, and their labels [N]."""
    device = next(model.parameters()).device
    caught: list[Tensor] = []
    features, labels = [], []
    hook = head.register_forward_pre_hook(lambda module, given: caught.append(given[0]))
    try:
        with evaluating(model):
            for batch in batches:
                labels.append(_labels_of(batch))
                model(**{name: v.to(device) if isinstance(v, Tensor) else v for name, v in batch.items()})
                features.append(_pooled(model, caught.pop()).cpu().double())
    finally:
        hook.remove()
    if not features:
        raise LearngeneError("there are 0 rows to probe the head on: give those of training")
    return torch.cat(features).numpy(), torch.cat(labels).numpy()


def _labels_of(batch: dict[str, Any]) -> Tensor:
    """Take the labels out of a batch: a loss is not needed, and computing it can set the config's `problem_type`."""
    labels = batch.pop("labels", None)
    if labels is None:
        raise LearngeneError(f"the rows have no 'labels', only {sorted(batch)}: give each row its class")
    labels = torch.as_tensor(labels).cpu()
    if labels.dim() != 1 or labels.is_floating_point():
        raise LearngeneError(
            f"the labels of a batch are {labels.dtype} {list(labels.shape)}: give each row one class, a whole number"
        )
    return labels


def _pooled(model: nn.Module, states: Tensor) -> Tensor:
    if states.dim() != 2:
        raise LearngeneError(
            f"the head of the {type(model).__name__} is given states {list(states.shape)}, those of single tokens: "
            "give a model whose head takes one vector for each row"
        )
    return states


def _check(features: np.ndarray[Any, Any], labels: np.ndarray[Any, Any], count: int) -> None:
    """Refuse what no regression can be made of, or what is no class of the model."""
    found = np.unique(labels)
    if found[0] < 0 or found[-1] >= count:
        outside = found[0] if found[0] < 0 else found[-1]
        raise LearngeneError(
            f"a row has the label {outside}, but the model has {count} classes, 0 to {count - 1}: give it as many "
            "labels (num_labels) as the rows have"
        )
    if len(found) < 2:
        raise LearngeneError(f"all {len(labels)} rows have the label {found[0]}: a probe needs at least two classes")
    broken = np.flatnonzero(~np.isfinite(features).all(axis=1))
    if len(broken):
        raise LearngeneError(
            f"the features of {len(broken)} of {len(labels)} rows are not finite, first those of row {broken[0]}: "
            "look at its inputs and at the model's weights"
        )

"""Contrastive fine-tuning with the transformers Trainer: a collator for image-text rows, and the global loss."""

from collections.abc import Iterator, Mapping, Sequence
from inspect import signature
from math import log
from typing import Any

import torch
from accelerate.utils import extract_model_from_parallel
from torch import Tensor, nn
from torch.utils.data import IterableDataset
from transformers import PreTrainedTokenizerBase, Trainer, TrainerCallback
from transformers.tokenization_utils_base import LARGE_INTEGER

from .data import find_columns, open_image
from .errors import LearngeneError
from .losses import check_label_smoothing, contrastive_loss
from .texts import check_tokenizer, text_config_of

# CLIP (Radford et al., 2021, section 2.5) clips the temperature so that logits are never scaled by more than 100.
MAX_LOGIT_SCALE = log(100)


class ImageTextCollator:
    """Turn rows of image-text data into one batch for a CLIP-like model, with `return_loss=True`.

    Rows are raw (an image column and a text column) or processed (`pixel_values` and `input_ids`, as `process_pairs`
    leaves them). A raw row may hold a list of captions: one is drawn at random from torch's generator each time the
    row is seen, so that a seed fixes the choice.

    Args:
        processor: a `CLIPProcessor`, or any processor with an `image_processor` and a `tokenizer`.
        image_column: the image column of raw rows; None finds it from the first row of each batch.
        text_column: the text column of raw rows; None finds it likewise.
        max_length: longest text in tokens, longer ones are cut; None takes the tokenizer's own limit.
        pad_to_multiple_of: pad texts to a multiple of this, which must divide the longest length; None pads to the
            longest text of the batch.

    Raises:
        LearngeneError: on a processor that lacks one of the two, and on rows without a readable image or a text.
    """

    def __init__(
        self,
        processor: Any,
        image_column: str | None = None,
        text_column: str | None = None,
        max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
    ) -> None:
        for part in ("image_processor", "tokenizer"):
            if getattr(processor, part, None) is None:
                raise LearngeneError(
                    f"ImageTextCollator needs a processor with an image_processor and a tokenizer, such as a "
                    f"CLIPProcessor; this {type(processor).__name__} has no {part}"
                )
        _check_lengths(processor.tokenizer, max_length, pad_to_multiple_of)
        self.processor = processor
        self.image_column = image_column
        self.text_column = text_column
        self.max_length = max_length
        self.pad_to_multiple_of = pad_to_multiple_of

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Return `pixel_values` [B, 3, H, W], `input_ids` and `attention_mask` [B, T], and `return_loss=True`."""
        if not rows:
            raise LearngeneError("a batch needs at least one row, got none")
        processed = "pixel_values" in rows[0] and "input_ids" in rows[0]
        batch = self._stack(rows) if processed else self._process(rows)
        return {**batch, "return_loss": True}

    def _stack(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        names = [name for name in ("input_ids", "attention_mask", "token_type_ids") if name in rows[0]]
        texts = self.processor.tokenizer.pad(
            [{name: row[name] for name in names} for row in rows],
            pad_to_multiple_of=self.pad_to_multiple_of,
            return_tensors="pt",
        )
        pixel_values = torch.stack([torch.as_tensor(row["pixel_values"]) for row in rows])
        return {**texts, "pixel_values": pixel_values}

    def _process(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        image_column, text_column = find_columns(rows[0], self.image_column, self.text_column)
        images = [_read_image(row[image_column], position) for position, row in enumerate(rows)]
        texts = self.processor.tokenizer(
            [_choose_caption(row[text_column], position) for position, row in enumerate(rows)],
            padding=True,
            truncation=True,
            max_length=self.max_length,
            pad_to_multiple_of=self.pad_to_multiple_of,
            return_tensors="pt",
        )
        pixel_values = self.processor.image_processor(images=images, return_tensors="pt")["pixel_values"]
        return {**texts, "pixel_values": pixel_values}


def _check_lengths(tokenizer: Any, max_length: int | None, multiple: int | None) -> None:
    for name, value in (("max_length", max_length), ("pad_to_multiple_of", multiple)):
        if value is not None and value < 1:
            raise LearngeneError(f"{name} is {value}: give a number of tokens above 0, or None")
    limit = tokenizer.model_max_length if max_length is None else max_length
    if multiple is not None and limit % multiple and limit < LARGE_INTEGER:  # a tokenizer without a limit says 1e30
        # Padding the longest texts up to the multiple would pass the limit, and with it the model's positions.
        raise LearngeneError(
            f"texts have up to {limit} tokens, no multiple of pad_to_multiple_of={multiple}: set max_length to one, "
            f"such as {max(limit // multiple, 1) * multiple}"
        )


def _read_image(value: Any, position: int) -> Any:
    try:
        return open_image(value)
    except (OSError, TypeError, KeyError, AttributeError) as error:
        raise LearngeneError(
            f"the image of row {position} of the batch cannot be read ({type(value).__name__}): mend or drop that row"
        ) from error


def _choose_caption(value: Any, position: int) -> str:
    captions = [value] if isinstance(value, str) else value
    if not isinstance(captions, (list, tuple)) or not captions or not all(isinstance(text, str) for text in captions):
        raise LearngeneError(
            f"row {position} of the batch has the text {value!r}: give a string, or a list with at least one string"
        )
    return captions[0] if len(captions) == 1 else captions[int(torch.randint(len(captions), ()))]


def undecayed(name: str, parameter: Tensor) -> bool:
    """Whether weight decay should leave a parameter alone: it is no matrix of weights.

    Such are scalars and vectors (logit scale, class embedding, biases, norms), whole stacks of them, as a gene's
    blocks hold, and a gene's learned coefficients.
    """
    return parameter.dim() < 2 or any(word in name for word in _NO_MATRICES)


_NO_MATRICES = ("bias", "norm", "coefficients", "class_embedding", "cls_token")


def base_model_of(model: Any) -> Any:
    """Return the model inside the wrappers of distributed training, torch.compile and PEFT, in any order."""
    while True:
        inner = extract_model_from_parallel(model, keep_torch_compile=False)
        inner = inner.get_base_model() if hasattr(inner, "get_base_model") else inner
        if inner is model:
            return model
        model = inner


class _ClampLogitScale(TrainerCallback):
    """Hold a trained logit scale in its model's range after each optimizer step."""

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        model = base_model_of(kwargs["model"])
        lowest, highest = getattr(model, "logit_scale_range", (None, MAX_LOGIT_SCALE))
        if model.logit_scale.requires_grad:
            with torch.no_grad():
                model.logit_scale.clamp_(lowest, highest)


class _WholeBatches(IterableDataset):
    """The rows of a stream as far as they fill whole batches of all processes.

    accelerate then gives each process its part of every batch. It would fill up an odd last batch by rows of the
    first, and give a process whole shards of a `datasets` stream, so that one could end before the others.
    """

    def __init__(self, stream: Any, rows: int):
        self.stream, self.rows = stream, rows

    def __iter__(self) -> Iterator[Any]:
        batch = []
        for row in self.stream:
            batch.append(row)
            if len(batch) == self.rows:
                yield from batch
                batch = []

    def __len__(self) -> int:
        return len(self.stream) // self.rows * self.rows

    def __getattr__(self, name: str) -> Any:
        if name not in ("set_epoch", "generator"):  # what the epochs of streams are shuffled by
            raise AttributeError(name)
        return getattr(self.stream, name)


class ContrastiveTrainer(Trainer):
    """A transformers `Trainer` for models that embed images and texts, with the negatives of all processes.

    The same global batch gives the same update on any number of processes, where the stock Trainer contrasts each
    process's rows only with themselves. It takes every model whose forward returns normalised `image_embeds` and
    `text_embeds` and which has a `logit_scale`: `CLIPModel`, `LearngeneModel`, `VisionTextDualEncoderModel`, a CLIP
    mixture of experts (an `aux_loss` in the output is added to the loss), each whole, partly frozen or under PEFT.

    It differs from `Trainer` in these points:

    - `data_collator` defaults to an `ImageTextCollator` around `processing_class`.
    - `args.remove_unused_columns` is set to False, since the collator needs the raw columns, and
      `args.dataloader_drop_last` to True, since the loss of a smaller batch cannot be compared. So evaluation too
      leaves out an incomplete last batch; `evaluate_retrieval` measures all rows. Both hold for streams as well.
    - Each process reads a stream whole and takes its part of every batch: a stream that is shuffled needs a seed.
    - `args.label_smoothing_factor` smooths the contrastive targets.
    - The logit scale is held at ln 100 or below, as CLIP's was, or in the model's own `logit_scale_range` (lowest and
      highest, None for no bound), unless it is frozen.
    - Weight decay leaves alone what is no matrix, see `undecayed`.
    - `compute_metrics` is given (image_embeds, text_embeds) as predictions: `mmlg_hf.evaluation.compute_retrieval`
      makes recalls and ranks of them. `eval_loss` is always there.
    - Evaluation neither changes nor depends on the random state of training.

    Gradient accumulation averages the updates of smaller batches; it adds no negatives.

    Raises:
        LearngeneError: if the model has no `logit_scale`, there is neither a collator nor a processor, the tokenizer
            is another model's, a setting does not go with the contrastive loss, a batch of all processes holds one
            pair, or the data has no complete batch.
    """

    # The loss is a mean over one batch: the Trainer must divide it by the accumulation steps.
    loss_is_scaled_for_ga = False

    def __init__(
        self,
        model: Any = None,
        args: Any = None,
        data_collator: Any = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        **kwargs: Any,
    ) -> None:
        if data_collator is None:
            if processing_class is None:
                raise LearngeneError(
                    "ContrastiveTrainer needs processing_class (a CLIPProcessor), or a data_collator such as "
                    "ImageTextCollator(processor)"
                )
            data_collator = ImageTextCollator(processing_class)
        if kwargs.get("compute_loss_func") is not None:
            raise LearngeneError(
                "ContrastiveTrainer computes the contrastive loss itself: leave compute_loss_func out, or override "
                "compute_loss in a subclass"
            )
        if model is not None or kwargs.get("model_init") is None:
            _check_model(model)
        if args is not None:
            _check_settings(args, kwargs.get("compute_metrics"))
        if train_dataset is not None:
            _check_is_data(train_dataset, "training")
        super().__init__(
            model=model,
            args=args,
            data_collator=data_collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            **kwargs,
        )
        base = _check_model(self.model)
        text_config = text_config_of(base)
        for holder in (processing_class, getattr(data_collator, "processor", None)):
            tokenizer = getattr(holder, "tokenizer", holder)
            if isinstance(tokenizer, PreTrainedTokenizerBase):
                check_tokenizer(tokenizer, text_config)
        ours = isinstance(data_collator, ImageTextCollator)
        if ours and getattr(data_collator, "text_config", None) is None:
            data_collator.text_config = text_config
        self.args.remove_unused_columns = False
        self.args.dataloader_drop_last = True
        # The first process would send the others parts of its batches, whose texts have different lengths.
        self.accelerator.dataloader_config.dispatch_batches = False
        self.add_callback(_ClampLogitScale())

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Contrast the batch's pairs with those of all processes; see `mmlg_hf.losses.contrastive_loss`."""
        outputs = model(**inputs)
        image_embeds = getattr(outputs, "image_embeds", None)
        text_embeds = getattr(outputs, "text_embeds", None)
        if image_embeds is None or text_embeds is None:
            raise LearngeneError(
                f"the model returned a {type(outputs).__name__} without image_embeds and text_embeds: "
                "ContrastiveTrainer needs both by name (with config.return_dict=True)"
            )
        device = image_embeds.device  # a model spread over devices has its texts elsewhere
        loss = contrastive_loss(
            image_embeds,
            text_embeds.to(device),
            base_model_of(model).logit_scale.exp().to(device),
            label_smoothing=self.args.label_smoothing_factor,
        ).to(self.args.device)
        aux_loss = getattr(outputs, "aux_loss", None)
        if aux_loss is not None:
            loss = loss + aux_loss.to(loss.device)
        return (loss, outputs) if return_outputs else loss

    def get_decay_parameter_names(self, model: Any) -> list[str]:
        """Return the names of the parameters with weight decay: the stock ones but for those of `undecayed`."""
        parameters = dict(model.named_parameters())
        names = super().get_decay_parameter_names(model)
        return [name for name in names if name in parameters and not undecayed(name, parameters[name])]

    def prediction_step(
        self,
        model: Any,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor, tuple[Tensor, Tensor] | None, Tensor | None]:
        """Return the loss, (image_embeds, text_embeds), and zeros for labels: a pair's only label is its own row."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            loss, outputs = self.compute_loss(model, inputs, return_outputs=True)
        if prediction_loss_only:
            return loss, None, None
        embeds = (outputs.image_embeds.float(), outputs.text_embeds.float())
        # The Trainer calls compute_metrics only where there are labels.
        return loss, embeds, torch.zeros(len(embeds[0]), dtype=torch.long, device=loss.device)

    def get_train_dataloader(self) -> Any:
        """Return the stock dataloader, after seeing that there is something to train."""
        _check_trainable(self.model)
        return super().get_train_dataloader()

    def _get_dataloader(self, dataset: Any, description: str, batch_size: int, *args: Any, **kwargs: Any) -> Any:
        """Return the stock dataloader of whole batches; training, evaluation and prediction come by here."""
        purpose = description.lower()
        _check_is_data(dataset, purpose)
        splits = self.accelerator.dataloader_config.split_batches
        rows = batch_size if splits else batch_size * self.args.world_size
        if rows < 2:
            raise LearngeneError(
                f"a {purpose} batch of one pair has no negatives, so that its loss is 0 whatever the model: set "
                "the batch size to 2 or more (gradient accumulation adds no negatives)"
            )
        if isinstance(dataset, IterableDataset):
            if self.args.world_size > 1 and getattr(dataset, "_distributed", None) is not None:
                raise LearngeneError(
                    f"the {purpose} stream was already split by node: give the whole stream, which the trainer splits"
                )
            return super()._get_dataloader(_WholeBatches(dataset, rows), description, batch_size, *args, **kwargs)
        if len(dataset) < rows:
            raise LearngeneError(_too_few(f"{len(dataset)} rows, fewer", purpose, rows // self.args.world_size))
        _check_sampling(self.args, dataset)
        return super()._get_dataloader(dataset, description, batch_size, *args, **kwargs)

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, *args: Any, **kwargs: Any) -> Any:
        """Return the batches of one update; those that a stream has too few of at its end are left out.

        The stock Trainer would add their gradients to the next epoch's first update.
        """
        batches, count = super().get_batch_samples(epoch_iterator, num_batches, *args, **kwargs)
        if len(batches) == num_batches:
            return batches, count
        if self.state.global_step == 0:
            raise LearngeneError(_too_few("fewer rows", "training", self._train_batch_size, num_batches))
        return [], count

    def evaluation_loop(self, dataloader: Any, *args: Any, **kwargs: Any) -> Any:
        """Run the stock loop from the seed of `args`, then put torch's random state back as it was."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self.args.seed)
            output = super().evaluation_loop(dataloader, *args, **kwargs)
        if not output.num_samples:  # a stream
            raise LearngeneError(_too_few("fewer rows", "evaluation", self.args.eval_batch_size))
        return output


def _too_few(told: str, purpose: str, batch_size: int, batches: int = 1) -> str:
    needed = "one batch" if batches == 1 else f"one update's {batches} batches"
    return f"the {purpose} data has {told} than {needed} of {batch_size} on each process: lower the batch size"


def _check_model(model: Any) -> Any:
    """Return the model inside a model's wrappers, after seeing that it can be trained by contrast."""
    if not isinstance(model, nn.Module):
        raise LearngeneError(
            f"the model is {model!r}: give a model, such as CLIPModel.from_pretrained(...), or model_init"
        )
    base = base_model_of(model)
    if not hasattr(base, "logit_scale"):
        raise LearngeneError(
            "ContrastiveTrainer trains models that return image_embeds and text_embeds and have a logit_scale, "
            f"such as CLIPModel; {type(base).__name__} has none. Classifiers train with the stock Trainer"
        )
    away = next((name for name, parameter in model.named_parameters() if parameter.is_meta), None)
    if away is not None:
        raise LearngeneError(
            f"{away} is not in memory (its device is meta): load the model without offloading to disk or CPU"
        )
    return base


def _check_settings(args: Any, compute_metrics: Any) -> None:
    check_label_smoothing(args.label_smoothing_factor)
    by_batches = args.batch_eval_metrics and compute_metrics is not None
    if by_batches and "compute_result" not in signature(compute_metrics).parameters:
        raise LearngeneError(
            "batch_eval_metrics is set, but compute_metrics takes no compute_result, as a metric of single batches "
            "must: leave the setting out (retrieval ranks all rows at once)"
        )
    if args.accelerator_config.dispatch_batches:
        raise LearngeneError(
            "accelerator_config says dispatch_batches=True, but batches of texts of different lengths cannot be "
            "dispatched: leave it out"
        )
    if args.train_sampling_strategy == "batch_rebalance":
        raise LearngeneError(
            'train_sampling_strategy is "batch_rebalance", which makes batches of different sizes, whose losses '
            'cannot be compared: take "random", "sequential" or "group_by_length"'
        )


def _check_is_data(dataset: Any, purpose: str) -> None:
    if isinstance(dataset, Mapping):
        raise LearngeneError(
            f"the {purpose} data is a {type(dataset).__name__} with the splits {', '.join(map(repr, dataset))}: give "
            "one of them"
        )
    rows = hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__") and not isinstance(dataset, str)
    if not rows and not isinstance(dataset, IterableDataset):
        told = repr(dataset) if isinstance(dataset, str) else f"a {type(dataset).__name__}"
        raise LearngeneError(f"the {purpose} data is {told}: give a dataset or a stream, as load_dataset(...) returns")


def _check_sampling(args: Any, dataset: Any) -> None:
    column = args.length_column_name
    if args.train_sampling_strategy == "group_by_length" and column not in getattr(dataset, "column_names", ()):
        raise LearngeneError(
            f'train_sampling_strategy is "group_by_length", but the data has no column {column!r} with the lengths '
            "of its texts: add one, or name it with length_column_name"
        )


def _check_trainable(model: Any) -> None:
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if not trained:
        raise LearngeneError("all of the model's parameters are frozen: there is nothing to train")
    half = next((name for name, parameter in trained.items() if parameter.dtype == torch.float16), None)
    if half is not None:
        raise LearngeneError(
            f"{half} is float16, in which the small steps of training are lost: load the model in float32 and train "
            "with fp16=True or bf16=True"
        )

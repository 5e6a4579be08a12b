"""Contrastive fine-tuning with the transformers Trainer: a collator for image-text rows, and the global loss."""

from collections.abc import Mapping, Sequence
from math import log
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback
from transformers.tokenization_utils_base import LARGE_INTEGER

from .batches import WholeBatchTrainer
from .data import find_columns, open_image
from .errors import LearngeneError
from .losses import contrastive_loss

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


class _ClampLogitScale(TrainerCallback):
    """Hold a trained logit scale at or below ln 100 after each optimizer step."""

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        logit_scale = kwargs["model"].logit_scale
        if logit_scale.requires_grad:
            with torch.no_grad():
                logit_scale.clamp_(max=MAX_LOGIT_SCALE)


class ContrastiveTrainer(WholeBatchTrainer):
    """A transformers `Trainer` for models that embed images and texts, with the negatives of all processes.

    The same global batch gives the same update on any number of processes, where the stock Trainer contrasts each
    process's rows only with themselves. It takes every model whose forward returns normalised `image_embeds` and
    `text_embeds` and which has a `logit_scale`: `CLIPModel`, `LearngeneModel`, `VisionTextDualEncoderModel`, a CLIP
    mixture of experts (an `aux_loss` in the output is added to the loss), each whole, partly frozen or under PEFT.

    It differs from `Trainer` in these points:

    - `data_collator` defaults to an `ImageTextCollator` around `processing_class`.
    - `args.remove_unused_columns` is set to False, since the collator needs the raw columns, and
      `args.dataloader_drop_last` to True, since the loss of a smaller batch cannot be compared. So evaluation too
      leaves out an incomplete last batch; `evaluate_retrieval` measures all rows.
    - `args.label_smoothing_factor` smooths the contrastive targets.
    - The logit scale is held at ln 100 or below, as CLIP's was, unless it is frozen.
    - `compute_metrics` is given (image_embeds, text_embeds) as predictions: `mmlg_hf.evaluation.compute_retrieval`
      makes recalls and ranks of them. `eval_loss` is always there.
    - Evaluation neither changes nor depends on the random state of training.

    Gradient accumulation averages the updates of smaller batches; it adds no negatives.

    Raises:
        LearngeneError: if the model has no `logit_scale`, there is neither a collator nor a processor, or the data has
            no complete batch.
    """

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
        super().__init__(
            model=model,
            args=args,
            data_collator=data_collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            **kwargs,
        )
        if not hasattr(self.model, "logit_scale"):
            raise LearngeneError(
                "ContrastiveTrainer trains models that return image_embeds and text_embeds and have a logit_scale, "
                f"such as CLIPModel; {type(self.model).__name__} has none. Classifiers train with the stock Trainer"
            )
        self.add_callback(_ClampLogitScale())

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Contrast the batch's pairs with those of all processes; see `mmlg_hf.losses.contrastive_loss`."""
        outputs = model(**inputs)
        loss = contrastive_loss(
            outputs.image_embeds,
            outputs.text_embeds,
            self.accelerator.unwrap_model(model).logit_scale.exp(),
            label_smoothing=self.args.label_smoothing_factor,
        )
        aux_loss = getattr(outputs, "aux_loss", None)
        if aux_loss is not None:
            loss = loss + aux_loss
        return (loss, outputs) if return_outputs else loss

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

"""Contrastive fine-tuning with the transformers Trainer and the global loss."""

from math import log
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer, TrainerCallback
from transformers.trainer_utils import has_length

from .data import ImageTextCollator
from .errors import LearngeneError
from .losses import contrastive_loss

# CLIP (Radford et al., 2021, section 2.5) clips the temperature so that logits are never scaled by more than 100.
MAX_LOGIT_SCALE = log(100)


class _ClampLogitScale(TrainerCallback):
    """Hold a trained logit scale at or below ln 100 after each optimizer step."""

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        logit_scale = kwargs["model"].logit_scale
        if logit_scale.requires_grad:
            with torch.no_grad():
                logit_scale.clamp_(max=MAX_LOGIT_SCALE)


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
        self.args.remove_unused_columns = False
        self.args.dataloader_drop_last = True
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

    def get_train_dataloader(self) -> Any:
        """Return the stock dataloader, after seeing that it has at least one complete batch."""
        return _check_has_batch(super().get_train_dataloader(), "training", self.args.train_batch_size)

    def evaluation_loop(self, dataloader: Any, *args: Any, **kwargs: Any) -> Any:
        """Run the stock loop from the seed of `args`, then put torch's random state back as it was."""
        _check_has_batch(dataloader, "evaluation", self.args.eval_batch_size)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self.args.seed)
            return super().evaluation_loop(dataloader, *args, **kwargs)


def _check_has_batch(dataloader: Any, purpose: str, batch_size: int) -> Any:
    if has_length(dataloader) and len(dataloader) == 0:
        raise LearngeneError(
            f"the {purpose} data has {len(dataloader.dataset)} rows, fewer than one batch of {batch_size} on each "
            "process: lower the batch size"
        )
    return dataloader

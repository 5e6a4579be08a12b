"""Contrastive fine-tuning with the transformers Trainer and the global loss."""

from inspect import signature
from math import log
from typing import Any

import torch
from accelerate.utils import extract_model_from_parallel
from torch import Tensor, nn
from transformers import CLIPModel, PreTrainedTokenizerBase, TrainerCallback, VisionTextDualEncoderModel

from ..data import ImageTextCollator, holds_pictures, undecoded
from ..data.texts import check_tokenizer, pads_to_one_length, text_config_of
from ..errors import LearngeneError
from .batches import WholeBatchTrainer, check_is_data
from .losses import check_label_smoothing, contrastive_loss, sigmoid_loss
from .optimizers import is_decayed

# CLIP (Radford et al., 2021, section 2.5) clips the temperature so that logits are never scaled by more than 100.
MAX_LOGIT_SCALE = log(100)
# Models whose `return_loss` asks for a contrastive loss and for nothing else.
_LOSS_APART = (CLIPModel, VisionTextDualEncoderModel)


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
        # SigLIP's is free: the bias, not the scale, keeps its logits in bounds.
        stock = (None, None) if _logit_bias(model) is not None else (None, MAX_LOGIT_SCALE)
        lowest, highest = getattr(model, "logit_scale_range", stock)
        if model.logit_scale.requires_grad and not lowest is highest is None:
            with torch.no_grad():
                model.logit_scale.clamp_(lowest, highest)


def _logit_bias(model: Any) -> Tensor | None:
    """The bias that a model trained by the sigmoid loss has; None for one trained by the contrastive loss."""
    return getattr(base_model_of(model), "logit_bias", None)


class ContrastiveTrainer(WholeBatchTrainer):
    """A transformers `Trainer` for models that embed images and texts, with the negatives of all processes.

    The same global batch gives the same update on any number of processes, where the stock Trainer contrasts each
    process's rows only with themselves. It takes every model whose forward returns normalised `image_embeds` and
    `text_embeds` and which has a `logit_scale`: `CLIPModel`, `LearngeneModel`, `VisionTextDualEncoderModel`, a CLIP
    mixture of experts (an `aux_loss` in the output is added to the loss), each whole, partly frozen or under PEFT. A
    model with a `logit_bias` beside it, such as `SiglipModel`, is trained by the pairwise sigmoid loss.

    It differs from `Trainer` in these points:

    - `data_collator` defaults to an `ImageTextCollator` around `processing_class`. Its pictures leave the workers
      (`dataloader_num_workers`) as 8-bit pixels, and are normalised on the device.
    - `args.remove_unused_columns` is set to False, since the collator needs the raw columns, and
      `args.dataloader_drop_last` to True, since the loss of a smaller batch cannot be compared. So evaluation too
      leaves out an incomplete last batch; `evaluate_retrieval` measures all rows. Both hold for streams as well.
    - Each process reads a stream whole and takes its part of every batch: a stream that is shuffled needs a seed.
    - `args.label_smoothing_factor` smooths the contrastive targets; the sigmoid loss has none.
    - The logit scale is held at ln 100 or below, as CLIP's was, or in the model's own `logit_scale_range` (lowest and
      highest, None for no bound), unless it is frozen. With a `logit_bias` it is free.
    - Weight decay leaves alone what is no matrix, see `mmlg_hf.training.optimizers.is_decayed`.
    - `compute_metrics` is given (image_embeds, text_embeds) as predictions: `mmlg_hf.evaluation.compute_retrieval`
      makes recalls and ranks of them. `eval_loss` is always there.
    - Evaluation neither changes nor depends on the random state of training.

    Gradient accumulation averages the updates of smaller batches; it adds no negatives.

    Raises:
        LearngeneError: if the model has no `logit_scale`, there is neither a collator nor a processor, the tokenizer
            is another model's, a setting does not go with the contrastive loss, a batch of all processes holds one
            pair, or the data has no complete batch.
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
            check_is_data(train_dataset, "training")
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
        if _logit_bias(base) is not None and self.args.label_smoothing_factor:
            raise LearngeneError(
                f"label_smoothing_factor is {self.args.label_smoothing_factor}, but a {type(base).__name__} is "
                "trained by the sigmoid loss, which has no smoothing: leave it out"
            )
        text_config = text_config_of(base)
        for holder in (processing_class, getattr(data_collator, "processor", None)):
            tokenizer = getattr(holder, "tokenizer", holder)
            if isinstance(tokenizer, PreTrainedTokenizerBase):
                check_tokenizer(tokenizer, text_config)
        ours = isinstance(data_collator, ImageTextCollator)
        if ours and getattr(data_collator, "text_config", None) is None:
            data_collator.text_config = text_config
        if type(data_collator) is ImageTextCollator:  # what a class of the user's makes of pixels is not known
            self.data_collator = data_collator.deferred()
        self.add_callback(_ClampLogitScale())

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Contrast the batch's pairs with those of all processes, by `contrastive_loss` or `sigmoid_loss`."""
        self._check_length(model, inputs)
        base = base_model_of(model)
        if isinstance(base, _LOSS_APART) and not hasattr(base.config, "router_aux_loss_coef"):
            # Its own loss would be computed for nothing. Others may return their `aux_loss` only along with it.
            inputs = {name: value for name, value in inputs.items() if name != "return_loss"}
        outputs = model(**inputs)
        image_embeds = getattr(outputs, "image_embeds", None)
        text_embeds = getattr(outputs, "text_embeds", None)
        if image_embeds is None or text_embeds is None:
            raise LearngeneError(
                f"the model returned a {type(outputs).__name__} without image_embeds and text_embeds: "
                "ContrastiveTrainer needs both by name (with config.return_dict=True)"
            )
        device = image_embeds.device  # a model spread over devices has its texts elsewhere
        text_embeds, scale, bias = text_embeds.to(device), base.logit_scale.exp(), _logit_bias(model)
        if bias is not None:
            loss = sigmoid_loss(image_embeds, text_embeds, scale.to(device), bias.to(device))
        else:
            smoothing = self.args.label_smoothing_factor
            loss = contrastive_loss(image_embeds, text_embeds, scale.to(device), label_smoothing=smoothing)
        loss = loss.to(self.args.device)
        aux_loss = getattr(outputs, "aux_loss", None)
        if aux_loss is not None:
            loss = loss + aux_loss.to(loss.device)
        return (loss, outputs) if return_outputs else loss

    def _check_length(self, model: Any, inputs: dict[str, Any]) -> None:
        """Refuse texts padded to the longest of a batch where the model reads the last position, padding or not."""
        ids = inputs.get("input_ids")
        if ids is not None and pads_to_one_length(text_config_of(base_model_of(model))):
            self._text_length = getattr(self, "_text_length", ids.shape[1])
            if ids.shape[1] != self._text_length:
                raise LearngeneError(
                    f"batches have texts of {self._text_length} and of {ids.shape[1]} tokens, but the text encoder "
                    "reads the last position: pad all to one length, as ImageTextCollator(processor, "
                    "text_config=model.config.text_config) does"
                )

    def get_decay_parameter_names(self, model: Any) -> list[str]:
        """Return the names of the parameters with weight decay: the stock ones as far as `is_decayed`."""
        parameters = dict(model.named_parameters())
        names = super().get_decay_parameter_names(model)
        return [name for name in names if name in parameters and is_decayed(name, parameters[name])]

    def prediction_step(
        self,
        model: Any,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> Any:
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

    def _get_dataloader(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        _check_sampling(self.args, dataset)
        if isinstance(self.data_collator, ImageTextCollator) and holds_pictures(dataset):
            dataset = undecoded(dataset)  # one that cannot be decoded is met by the collator, which names its row
        return super()._get_dataloader(dataset, *args, **kwargs)


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

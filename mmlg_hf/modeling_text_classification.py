"""The one head that transformers' CLIP lacks: text classification on the text encoder."""

import os
from typing import Any

import torch
from torch import nn
from transformers import CLIPTextConfig
from transformers import initialization as init
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.models.clip.modeling_clip import CLIPPreTrainedModel, CLIPTextModel
from transformers.utils.generic import can_return_tuple

from .errors import LearngeneError
from .saving import code_saved_along


class CLIPTextForSequenceClassification(CLIPPreTrainedModel):
    """CLIP's text encoder with a linear classifier on the pooled state (the end token's, after the final norm).

    Used with the stock `Trainer` like any `*ForSequenceClassification`; `config.problem_type` chooses the loss. It is
    saved with its code: where this package is not installed,
    `AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True)` loads it.
    """

    config: CLIPTextConfig
    base_model_prefix = "text_model"
    input_modalities = ("text",)
    accepts_loss_kwargs = False  # the loss is a mean over the batch: the Trainer divides it by accumulation steps

    def __init__(self, config: Any):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.text_model = CLIPTextModel._from_config(config)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def _init_weights(self, module):
        super()._init_weights(module)
        if module is self.classifier:  # as CLIPForImageClassification initialises its own
            init.normal_(module.weight, std=self.config.hidden_size**-0.5 * self.config.initializer_factor)

    def get_input_embeddings(self) -> nn.Module:
        return self.text_model.embeddings.token_embedding

    def set_input_embeddings(self, value):
        self.text_model.embeddings.token_embedding = value

    def save_pretrained(
        self, save_directory: str | os.PathLike, *args: Any, with_code: bool = True, **kwargs: Any
    ) -> None:
        """Save as `PreTrainedModel.save_pretrained` does, and the code of this class along with it.

        Args:
            with_code: False leaves the code out; only where this package is installed can the model then be loaded.
        """
        with code_saved_along(self, with_code, "AutoModelForSequenceClassification"):
            super().save_pretrained(save_directory, *args, **kwargs)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        **kwargs,
    ) -> SequenceClassifierOutput:
        """Classify texts.

        Args:
            input_ids: [batch, tokens].
            attention_mask: [batch, tokens], 1 for tokens and 0 for padding; None means no padding.
            position_ids: [batch, tokens]; None counts from 0.
            labels: [batch] classes (or values, or [batch, num_labels], by `config.problem_type`); None gives no loss.
            inputs_embeds: None, which wrappers such as PEFT's pass along: the end token is found by its id.

        Returns:
            `SequenceClassifierOutput` with `logits` [batch, num_labels].

        Raises:
            LearngeneError: there are no `input_ids`, or `inputs_embeds` in their place.
        """
        if input_ids is None or inputs_embeds is not None:
            raise LearngeneError("the text classifier takes input_ids and no inputs_embeds: it pools the end token")
        outputs = self.text_model(
            input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, **kwargs
        )
        logits = self.classifier(outputs.pooler_output)
        loss = None if labels is None else self.loss_function(labels, logits, self.config)
        return SequenceClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


__all__ = ["CLIPTextForSequenceClassification"]

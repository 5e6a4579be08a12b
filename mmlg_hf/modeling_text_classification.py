"""The one head that transformers' CLIP lacks: text classification on the text encoder."""

import torch
from torch import nn
from transformers import CLIPTextConfig
from transformers import initialization as init
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.models.clip.modeling_clip import CLIPPreTrainedModel, CLIPTextModel
from transformers.utils.generic import can_return_tuple


class CLIPTextForSequenceClassification(CLIPPreTrainedModel):
    """CLIP's text encoder with a linear classifier on the pooled state (the end token's, after the final norm).

    Used with the stock `Trainer` like any `*ForSequenceClassification`; `config.problem_type` chooses the loss.
    """

    config: CLIPTextConfig
    base_model_prefix = "text_model"
    input_modalities = ("text",)
    accepts_loss_kwargs = False  # the loss is a mean over the batch: the Trainer divides it by accumulation steps

    def __init__(self, config: CLIPTextConfig):
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

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs,
    ) -> SequenceClassifierOutput:
        """Classify texts.

        Args:
            input_ids: [batch, tokens].
            attention_mask: [batch, tokens], 1 for tokens and 0 for padding; None means no padding.
            position_ids: [batch, tokens]; None counts from 0.
            labels: [batch] classes (or values, or [batch, num_labels], by `config.problem_type`); None gives no loss.

        Returns:
            `SequenceClassifierOutput` with `logits` [batch, num_labels].
        """
        outputs = self.text_model(
            input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, **kwargs
        )
        logits = self.classifier(outputs.pooler_output)
        loss = None if labels is None else self.loss_function(labels, logits, self.config)
        return SequenceClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


__all__ = ["CLIPTextForSequenceClassification"]

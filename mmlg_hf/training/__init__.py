"""Training by contrast with the transformers Trainer: the trainer, its losses, its optimizers; a probed head."""

from .. import lazy_names

_MODULE_OF = {
    "ImageTextCollator": "trainer",  # which imports it from `data`
    "ContrastiveTrainer": "trainer",
    "base_model_of": "trainer",
    "WholeBatchTrainer": "batches",
    "affinity_distillation_loss": "losses",
    "contrastive_loss": "losses",
    "feature_distillation_loss": "losses",
    "sigmoid_loss": "losses",
    "soft_distillation_loss": "losses",
    "probe_head": "heads",
    "MuonFactory": "optimizers",
    "StackedMuon": "optimizers",
    "with_muon": "optimizers",
}

__all__ = list(_MODULE_OF)
__getattr__, __dir__ = lazy_names(__name__, _MODULE_OF)

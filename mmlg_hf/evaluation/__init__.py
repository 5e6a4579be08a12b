"""Measuring models without the network: image-text retrieval, zero-shot classification, classifiers."""

from .. import lazy_names

_MODULE_OF = {
    "DEFAULT_TEMPLATES": "dual_encoders",
    "class_embeddings": "dual_encoders",
    "embed_images": "dual_encoders",
    "embed_texts": "dual_encoders",
    "evaluate_retrieval": "dual_encoders",
    "evaluate_zero_shot": "dual_encoders",
    "ImageTextRetrieval": "metrics",
    "ClassificationAccuracy": "metrics",
    "ZeroShotClassification": "metrics",
    "compute_retrieval": "metrics",
    "retrieval_results": "metrics",
    "LABEL_COLUMN_NAMES": "labels",
    "accuracies": "classification",
    "classification_metrics": "classification",
    "evaluate_classification": "classification",
    "load_classifier": "loading",
    "load_dual_encoder": "loading",
}

__all__ = list(_MODULE_OF)
__getattr__, __dir__ = lazy_names(__name__, _MODULE_OF)

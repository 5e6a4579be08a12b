"""The double's `validate-yaml`: checks a card's metadata block the way the Hub does before it takes a commit."""

from __future__ import annotations

import re

import yaml

_LICENSES = """
    apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0
    bigcode-openrail-m afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc
    cc0-1.0 cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0
    cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0
    cdla-sharing-1.0 cdla-permissive-1.0 cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1
    eupl-1.2 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0 lgpl lgpl-2.1 lgpl-3.0 isc h-research intel-research lppl-1.3c
    ms-pl mpl-2.0 odc-by odbl openmdw-1.0 openrail++ osl-3.0 postgresql ofl-1.1 ncsa unlicense zlib pddl lgpl-lr
    deepfloyd-if-license fair-noncommercial-research-license llama2 llama3 llama3.1 llama3.2 llama3.3 llama4
    grok2-community gemma unknown other
"""
LICENSES = set(_LICENSES.split())
_PIPELINE_TAGS = """
    text-classification token-classification table-question-answering question-answering
    zero-shot-classification translation summarization feature-extraction text-generation fill-mask
    sentence-similarity text-to-speech text-to-audio automatic-speech-recognition audio-to-audio
    audio-classification voice-activity-detection depth-estimation image-classification object-detection
    image-segmentation text-to-image image-to-text image-to-image image-to-video unconditional-image-generation
    video-classification reinforcement-learning robotics tabular-classification tabular-regression text-to-video
    visual-question-answering document-question-answering zero-shot-image-classification graph-ml
    mask-generation zero-shot-object-detection text-to-3d image-to-3d image-feature-extraction
    image-text-to-text visual-document-retrieval any-to-any text-ranking other
"""
PIPELINE_TAGS = set(_PIPELINE_TAGS.split())
RELATIONS = {"finetune", "adapter", "merge", "quantized"}
REPO_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
LANGUAGE = re.compile(r"[a-z]{2,3}(-[A-Za-z]+)?|multilingual|code")


def card_errors(content: str) -> list[str]:
    """Everything wrong with the metadata block of a card; an empty list when the Hub would take it."""
    match = re.match(r"\A---\r?\n(.*?)\r?\n---(\r?\n|\Z)", content, re.DOTALL)
    if match is None:
        return []  # The Hub warns about missing metadata but takes the commit.
    try:
        metadata = yaml.safe_load(match[1])
    except yaml.YAMLError as error:
        return [f"invalid YAML: {error}"]
    if metadata is None:
        return []
    if not isinstance(metadata, dict):
        return ["the metadata must be a mapping"]

    errors = []

    def each(key: str, check, allowed: str) -> None:
        values = metadata.get(key)
        for value in values if isinstance(values, list) else [] if values is None else [values]:
            if not isinstance(value, str) or not check(value):
                errors.append(f'"{key}" must be {allowed}, got {value!r}')

    def one(key: str, allowed: set[str]) -> None:
        value = metadata.get(key)
        if value is not None and value not in allowed:
            errors.append(f'"{key}" must be one of [{", ".join(sorted(allowed))}], got {value!r}')

    each("license", LICENSES.__contains__, "a license identifier")
    each("language", LANGUAGE.fullmatch, "an ISO 639 code")
    each("base_model", REPO_ID.fullmatch, "a repository id")
    each("datasets", REPO_ID.fullmatch, "a dataset id")
    each("metrics", bool, "a metric id")
    each("tags", bool, "text")
    each("library_name", re.compile(r"[\w.-]+").fullmatch, "a library name")
    one("pipeline_tag", PIPELINE_TAGS)
    one("base_model_relation", RELATIONS)
    for key in ("datasets", "metrics", "tags"):
        if key in metadata and not isinstance(metadata[key], list):
            errors.append(f'"{key}" must be an array')
    return errors

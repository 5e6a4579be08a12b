"""What of a text encoder is vocabulary, and what each step leaves of it: the tables of docs/extract.md.

    python -m benchmarks.vocabulary --data ashraq/fashion-product-images-small --tokenizer openai/clip-vit-base-patch32

counts the tokens that the titles use, writes results/vocabulary.json, and prints the tables.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from transformers import CLIPConfig, CLIPTokenizer

from benchmarks.common.fashion import HUB_ID
from benchmarks.common.results import environment
from mmlg_hf.data import find_columns, load_image_text
from mmlg_hf.extraction.vocabulary import read_corpus, trim_tokenizer
from mmlg_hf.inspection import measure_size
from mmlg_hf.saving import write_json

RESULTS = Path(__file__).parent / "results" / "vocabulary.json"
# Tokens and width of the token embedding.
SHAPES = {"CLIP B/32": (49_408, 512), "SigLIP 2 B": (256_000, 768)}
CONTEXTS = (77, 16)


def table_megabytes(tokens: int, width: int, rank: int | None = None) -> float:
    """Megabytes (millions of bytes) of a token embedding in float32, whole or as two factors."""
    return 4 * (tokens * width if rank is None else rank * (tokens + width)) / 1e6


def measure(data: str, tokenizer: str) -> dict[str, Any]:
    """Count the tokens that a tokenizer keeps for the texts of a data set, and the tokens of each text."""
    rows, whole = load_image_text(data, "train"), CLIPTokenizer.from_pretrained(tokenizer)
    texts = list(read_corpus(rows, find_columns(rows)[1]))
    trimmed, _ = trim_tokenizer(whole, texts)
    lengths = np.array([len(ids) for ids in whole(texts)["input_ids"]])
    return {
        "texts": len(texts),
        "tokens": len(whole),
        "tokens_kept": len(trimmed),
        "mean_length": round(float(lengths.mean()), 1),
        "fit": {str(context): round(float((lengths <= context).mean()), 4) for context in CONTEXTS},
        **environment(),
        "date": time.strftime("%Y-%m-%d"),
    }


def render(results: dict[str, Any]) -> str:
    """Return the two tables as Markdown: the token embedding by step, and what a shorter context saves."""
    kept = results["tokens_kept"]
    lines = ["| token embedding, MB in float32 | " + " | ".join(SHAPES) + " |", "|---|" + "---:|" * len(SHAPES)]
    steps = {
        "whole": lambda tokens, width: table_megabytes(tokens, width),
        "at a quarter of the rank": lambda tokens, width: table_megabytes(tokens, width, width // 4),
        f"trimmed to {kept:,} tokens": lambda _, width: table_megabytes(kept, width),
        "trimmed, at a quarter of the rank": lambda _, width: table_megabytes(kept, width, width // 4),
        "of a descendant of half the width": lambda _, width: table_megabytes(kept, width // 2),
    }
    for name, step in steps.items():
        lines.append(f"| {name} | " + " | ".join(f"{step(*shape):,.1f}" for shape in SHAPES.values()) + " |")
    lines += ["", "| context of CLIP B/32 | GFLOPs of a text | titles that fit |", "|---|---:|---:|"]
    for context in CONTEXTS:
        config = CLIPConfig(text_config={"max_position_embeddings": context})
        gflops = measure_size(config, "text").gflops_text
        lines.append(f"| {context} tokens | {gflops:.2f} | {results['fit'][str(context)]:.1%} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=HUB_ID, help="Hub id or folder of the product photos with their titles")
    parser.add_argument("--tokenizer", default="openai/clip-vit-base-patch32", help="Hub id or folder")
    args = parser.parse_args()
    write_json(RESULTS, measure(args.data, args.tokenizer))
    print(render(json.loads(RESULTS.read_text())))


if __name__ == "__main__":
    main()

"""Extractions of many choices from one ancestor: what they share is made once, and any formula can be trained."""

from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from datasets import Dataset
from torch.nn import functional as F
from transformers import TrainerCallback, set_seed

from benchmarks.common.fashion import IMAGE, TEMPLATES, TITLE, TYPE
from benchmarks.common.training import figures
from benchmarks.extraction.formulas import FormulaModel
from mmlg_hf import ExtractionArguments
from mmlg_hf.data import read_rows
from mmlg_hf.evaluation import embed_texts
from mmlg_hf.extraction.ancestors import copy_outer_weights, gene_config, load_ancestor, load_ancestor_processor
from mmlg_hf.extraction.fitting import fit_gene
from mmlg_hf.extraction.outputs import cache_ancestor_outputs
from mmlg_hf.extraction.rotation import rotate_channels
from mmlg_hf.extraction.trainer import AncestorCollator, ExtractionTrainer
from mmlg_hf.extraction.vocabulary import read_corpus, trim_embedding, trim_tokenizer
from mmlg_hf.training import ImageTextCollator
from mmlg_hf.training.optimizers import at_own_rate

BATCH = 128  # rows that the rotation reads at once


class KeptRows(torch.utils.data.Dataset):
    """Rows that stay in memory once they were read: runs of the same seed see the same ones."""

    def __init__(self, rows: Any) -> None:
        self.rows, self.kept = rows, {}

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index not in self.kept:
            self.kept[index] = self.rows[index]
        return {**self.kept[index]}


@dataclass
class Source:
    """An ancestor, trimmed to the titles, and the pairs with its outputs; the same for every choice and seed."""

    ancestor: Any
    processor: Any
    collator: AncestorCollator
    plain_rows: Any
    rows: KeptRows
    turned: list[Any] = field(default_factory=list)  # the ancestor turned, once it was asked for

    @classmethod
    def load(cls, ancestor: Any, data: Dataset, folder: str, processor: Any = None) -> "Source":
        """Read what `extract_learngene` reads, in its order; the ancestor's outputs are kept in a folder."""
        model = load_ancestor(ancestor, None)
        processor = load_ancestor_processor(model) if processor is None else processor
        tokenizer, old_ids = trim_tokenizer(processor.tokenizer, read_corpus(data, TITLE))
        trim_embedding(model, tokenizer, old_ids)
        processor = type(processor)(image_processor=processor.image_processor, tokenizer=tokenizer)
        text = {"text_config": model.config.text_config}
        collator = AncestorCollator(ImageTextCollator(processor, **text).deferred())
        rows = read_rows(data, processor, image_column=IMAGE, text_column=TITLE, **text)
        with_outputs = cache_ancestor_outputs(model, rows, collator, processor, folder)
        return cls(model, processor, collator, rows, KeptRows(with_outputs))

    def for_start(self, args: ExtractionArguments) -> Any:
        """The ancestor that blocks are fitted to: turned, if that is asked for."""
        if not args.rotate:
            return self.ancestor
        if not self.turned:
            rows = list(islice(self.plain_rows, args.rotation_rows))
            batches = [rows[start : start + BATCH] for start in range(0, len(rows), BATCH)]
            made = [self.collator.finish(self.collator(batch)) for batch in batches]
            self.turned.append(rotate_channels(self.ancestor, made)[0])
        return self.turned[0]


class Measured:
    """Rows that descendants of every size are measured on: their photos are read once."""

    def __init__(self, rows: Dataset, processor: Any) -> None:
        self.processor, self.titles, self.types = processor, list(rows[TITLE]), list(rows[TYPE])
        images = processor.image_processor
        parts = [images(part[IMAGE], return_tensors="pt")["pixel_values"] for part in rows.iter(256)]
        self.photos = torch.cat(parts)

    def figures(self, model: Any) -> dict[str, float]:
        """As `benchmarks.common.fashion.measure` gives them."""
        embeddings = []
        with torch.inference_mode():
            for part in self.photos.split(256):
                embeddings.append(F.normalize(model.get_image_features(pixel_values=part).pooler_output, dim=-1))
        texts = embed_texts(model, self.titles, self.processor)
        retrieval, zero_shot = figures(model, torch.cat(embeddings), texts, self.types, self.processor, TEMPLATES)
        return {**zero_shot, **retrieval}


class ScheduledTrainer(ExtractionTrainer):
    """An extraction whose formula has a rate of its own, and which can train some sizes first.

    Args:
        rate: of weight scales and of what `FormulaModel.own_parameters` names; their weight decay is 0.
        first: "full" trains the gene's own size alone in the first half, "smaller" the smaller networks alone, and
            None all of them throughout.
    """

    def __init__(
        self, model: FormulaModel, args: Any, *, rate: float, first: str | None = None, **kwargs: Any
    ) -> None:
        self.first = first
        args.scale_learning_rate = rate
        if own := model.own_parameters():
            optimizer = ExtractionTrainer.get_optimizer_cls_and_kwargs(args, model)
            kwargs["optimizer_cls_and_kwargs"] = at_own_rate(optimizer, own, rate)
        super().__init__(model, args, **kwargs)

    def _sizes(self) -> list[Any]:
        sizes = super()._sizes()
        if self.first is None or self.state.global_step >= self.args.max_steps // 2:
            return sizes
        return sizes[:1] if self.first == "full" else sizes[1:]


class StopAt(TrainerCallback):
    """Stop after so many steps, whatever the schedule is made for."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_training_stop = state.global_step >= self.step


def start(source: Source, args: ExtractionArguments, formula: dict[str, Any]) -> FormulaModel:
    """Build a gene of this formula and start it as `extract_learngene` does."""
    ancestor = source.for_start(args)
    multimodal = 1 if args.num_multimodal_blocks is None else args.num_multimodal_blocks
    unimodal = 1 if args.num_unimodal_blocks is None else args.num_unimodal_blocks
    config = gene_config(
        ancestor,
        num_multimodal_blocks=multimodal,
        num_unimodal_blocks=unimodal,
        mixing=args.mixing or ("shared-slope" if multimodal == unimodal == 1 else "linear"),
        token_embedding_rank=args.token_embedding_rank or max(ancestor.config.text_config.hidden_size // 4, 1),
    )
    config.scale_norms = args.rotate
    gene = FormulaModel(config, **formula)
    copy_outer_weights(gene, ancestor)
    if args.initialisation == "fitted":
        fit_gene(gene, ancestor)
    gene.begin()
    if not args.contrastive_weight:
        gene.logit_scale.requires_grad_(False)
    return gene


def extract(
    source: Source,
    args: ExtractionArguments,
    *,
    formula: dict[str, Any] | None = None,
    rate: float = 3e-2,
    first: str | None = None,
    stop_after: float | None = None,
) -> tuple[FormulaModel, list[float]]:
    """Extract a gene.

    Args:
        formula: keywords of `FormulaModel`; None is the package's own.
        rate, first: of `ScheduledTrainer`.
        stop_after: the share of the steps after which it stops; None takes all.

    Returns:
        the gene, and the loss of each log.
    """
    set_seed(args.seed)
    gene = start(source, args, formula or {})
    callbacks = [] if stop_after is None else [StopAt(round(stop_after * args.max_steps))]
    trainer = ScheduledTrainer(
        gene,
        args,
        rate=rate,
        first=first,
        ancestor=source.ancestor,
        data_collator=source.collator,
        train_dataset=source.rows,
        callbacks=callbacks,
    )
    trainer.train()
    return gene.eval(), [log["loss"] for log in trainer.state.log_history if "loss" in log]

"""`mmlg moe`: make a CLIP mixture of experts in three steps, each a command."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from ..errors import LearngeneError, first_line
from ..saving import check_writable, save_processor, whole_folder
from ..shell.devices import Device, train_on
from ..shell.options import (
    BatchSize,
    Data,
    Epochs,
    ImageColumn,
    LearningRate,
    Limit,
    MaxSteps,
    NumWorkers,
    Seed,
    Split,
    TextColumn,
)
from ..shell.options import given as options
from ..shell.printing import AsJson, console, print_json, stdout_for_json

app = typer.Typer(
    help="Turn a CLIP into a mixture of experts: diversify, then upcycle, then train-router.", no_args_is_help=True
)


@app.command(epilog="Example: mmlg moe diversify runs/base --data DATASET --output runs/experts --batch-size 128")
def diversify(
    base: Annotated[str, typer.Argument(help="The dense CLIP: a Hub id or a folder with model and processor.")],
    data: Data,
    output: Annotated[Path, typer.Option(help="Folder of the experts; run again to go on after an interruption.")],
    num_experts: Annotated[int, typer.Option(min=2, help="Experts of the mixture, the base included.")] = 4,
    num_clusters: Annotated[int, typer.Option(min=1, help="Clusters of images and of texts in each stage.")] = 3,
    max_dropped: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Largest share of pairs that may fill no batch.")
    ] = 0.5,
    batch_size: BatchSize = 128,
    learning_rate: LearningRate = 1e-5,
    epochs: Epochs = 1.0,
    max_steps: MaxSteps = -1,
    label_smoothing: Annotated[float, typer.Option(min=0.0, max=1.0, help="Smoothing of the targets.")] = 0.1,
    split: Split = "train",
    image_column: ImageColumn = None,
    text_column: TextColumn = None,
    limit: Limit = None,
    num_workers: NumWorkers = 0,
    seed: Seed = 42,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Fine-tune diversified experts of a CLIP: one stage for each, on clusters of the stages before."""
    check_writable(output)
    from .diversification import DiversifyArguments
    from .diversification import diversify as run

    processor, rows = _inputs(base, data, split, image_column, text_column, limit)
    args = DiversifyArguments(
        num_experts=num_experts,
        num_clusters=num_clusters,
        max_dropped=max_dropped,
        label_smoothing_factor=label_smoothing,
        **_training(output, batch_size, learning_rate, epochs, max_steps, num_workers, seed, device),
    )
    with stdout_for_json(as_json):
        experts = run(base, rows, args, processor=processor)
    stages = _stages(output)
    if as_json:
        print_json({"experts": [str(expert) for expert in experts], "stages": stages})
        return
    _show_stages(stages)
    console.print(f"{len(experts)} experts in {output}. Next: mmlg moe upcycle {base} --experts {output} --output ...")


UPCYCLE_EXAMPLES = (
    "Examples: mmlg moe upcycle runs/base --experts runs/experts --output runs/mixture; "
    "mmlg moe upcycle runs/base --clusters-of DATASET --output runs/mixture"
)


@app.command(epilog=UPCYCLE_EXAMPLES)
def upcycle(
    base: Annotated[str, typer.Argument(help="The dense CLIP: experts are fine-tunes of it.")],
    output: Annotated[Path, typer.Option(help="Folder of the mixture.")],
    experts: Annotated[Path | None, typer.Option(help="Output folder of diversify: takes all its experts.")] = None,
    expert: Annotated[list[str] | None, typer.Option(help="One expert, a folder or Hub id; can be repeated.")] = None,
    clusters_of: Annotated[
        str | None,
        typer.Option(help="Instead of experts: a dataset, whose tokens' clusters routers and experts start from."),
    ] = None,
    num_experts: Annotated[
        int | None, typer.Option(min=2, help="With --clusters-of: experts, and clusters.", show_default="4")
    ] = None,
    expert_rank: Annotated[
        int | None, typer.Option(min=1, help="With --clusters-of: rank of the experts.", show_default="copies")
    ] = None,
    num_experts_per_tok: Annotated[int, typer.Option(min=1, help="Experts that process one token.")] = 2,
    router_z_loss: Annotated[float, typer.Option(min=0.0, help="Weight of the router z-loss in training.")] = 0.0,
    split: Split = "train",
    image_column: ImageColumn = None,
    text_column: TextColumn = None,
    limit: Limit = None,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Make a mixture of experts of a CLIP: of fine-tunes with new routers, or of the clusters of its own tokens."""
    check_writable(output)
    from .cluster_upcycling import upcycle_by_clusters
    from .upcycling import count_parameters
    from .upcycling import upcycle as run

    given = [*_experts_in(experts), *(expert or [])]
    routing: dict[str, Any] = {
        "num_experts_per_tok": num_experts_per_tok,
        "router_z_loss_coef": router_z_loss,
        "seed": seed,
    }
    sizes = options(num_experts=num_experts, expert_rank=expert_rank)
    if clusters_of is None:
        if sizes:
            raise LearngeneError(f"{next(iter(sizes))} goes with clusters_of: experts that are given have their sizes")
        mixture, processor = run(base, given, **routing), _processor(base)
    else:
        if given:
            raise LearngeneError("experts and clusters_of were both given: experts are fine-tunes or come of clusters")
        processor, rows = _inputs(base, clusters_of, split, image_column, text_column, limit)
        mixture = upcycle_by_clusters(base, rows, processor=processor, **sizes, **routing)
    with whole_folder(output) as folder:
        mixture.save_pretrained(folder)
        save_processor(processor, folder)
    counts = count_parameters(mixture)
    if as_json:
        print_json({"output": str(output), "experts": mixture.config.num_experts, "parameters": counts})
        return
    console.print(
        f"{mixture.config.num_experts} experts, {num_experts_per_tok} for each token: {counts['total']:,} parameters, "
        f"{counts['active']:,} active. Next: mmlg moe train-router {output} --data ... --output ..."
    )


@app.command(epilog="Example: mmlg moe train-router runs/mixture --data DATASET --output runs/clip-moe")
def train_router(
    mixture: Annotated[str, typer.Argument(help="The mixture: a folder or Hub id with model and processor.")],
    data: Data,
    output: Annotated[Path, typer.Option(help="Folder of the trained mixture; run again to go on.")],
    train_experts: Annotated[bool, typer.Option(help="Also train the experts, as copies of one MLP need.")] = False,
    train_all: Annotated[bool, typer.Option(help="Train the whole mixture.")] = False,
    ancestor: Annotated[
        str | None, typer.Option(help="Also imitate this frozen CLIP: a Hub id or a folder, BASE itself too.")
    ] = None,
    feature_weight: Annotated[float, typer.Option(min=0.0, help="Weight of imitation, with --ancestor.")] = 10.0,
    batch_size: BatchSize = 128,
    learning_rate: LearningRate = 1e-6,
    epochs: Epochs = 1.0,
    max_steps: MaxSteps = -1,
    split: Split = "train",
    image_column: ImageColumn = None,
    text_column: TextColumn = None,
    limit: Limit = None,
    num_workers: NumWorkers = 0,
    seed: Seed = 42,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Train the routers of a mixture, or more of it, and plot how its experts are used."""
    check_writable(output)
    from ..training.resuming import last_checkpoint
    from .router_training import RouterArguments
    from .router_training import train_router as run

    processor, rows = _inputs(mixture, data, split, image_column, text_column, limit)
    training = _training(output, batch_size, learning_rate, epochs, max_steps, num_workers, seed, device)
    trained: dict[str, Any] = {
        "train_experts": train_experts,
        "train_all": train_all,
        "feature_weight": feature_weight,
    }
    args = RouterArguments(**trained, **training)
    with stdout_for_json(as_json):
        goes_on = last_checkpoint(output) is not None
        run(mixture, rows, args, processor=processor, ancestor=ancestor, resume_from_checkpoint=goes_on)
    if as_json:
        usage = json.loads((output / "expert_usage.json").read_text(encoding="utf-8"))
        print_json({"output": str(output), "expert_usage": usage})
        return
    console.print(f"The mixture is in {output}, the usage of its experts in {output / 'expert_usage.png'}")


def _training(
    output: Path,
    batch_size: int,
    learning_rate: float,
    epochs: float,
    max_steps: int,
    num_workers: int,
    seed: int,
    device: str | None,
) -> dict[str, Any]:
    return {
        "output_dir": str(output),
        "per_device_train_batch_size": batch_size,
        "per_device_eval_batch_size": batch_size,
        "learning_rate": learning_rate,
        "num_train_epochs": epochs,
        "max_steps": max_steps,
        "dataloader_num_workers": num_workers,
        "seed": seed,
        "save_total_limit": 1,
        "logging_steps": 10,
        "report_to": "none",
        **train_on(device),
    }


def _processor(name: str) -> Any:
    from transformers import AutoProcessor

    from ..checkpoints import check_place

    check_place(name, "the model")
    try:
        return AutoProcessor.from_pretrained(name)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise LearngeneError(
            f"{name!r} has no processor beside the model ({first_line(error)}): save its CLIPProcessor there"
        ) from error


def _inputs(
    name: str, data: str, split: str, image_column: str | None, text_column: str | None, limit: int | None
) -> tuple[Any, Any]:
    """Return the model's processor and the rows: tokens cached by `datasets`, pictures read when their row is."""
    from ..data import load_image_text, read_rows

    processor = _processor(name)
    rows: Any = load_image_text(data, split)
    if limit is not None:
        rows = rows.take(limit)
    return processor, read_rows(rows, processor, image_column=image_column, text_column=text_column)


def _experts_in(folder: Path | None) -> list[str]:
    """List the experts that diversify left in a folder, in the order of their stages."""
    if folder is None:
        return []
    found = sorted(folder.glob("stage-*/stage.json"), key=lambda path: int(path.parent.name.removeprefix("stage-")))
    if not found:
        raise LearngeneError(f"{str(folder)!r} holds no finished stage: `mmlg moe diversify` makes them")
    return [str(path.parent / "expert") for path in found]


def _stages(folder: Path) -> list[dict[str, Any]]:
    return [json.loads((Path(expert).parent / "stage.json").read_text()) for expert in _experts_in(folder)]


def _show_stages(stages: list[dict[str, Any]]) -> None:
    table = Table("stage", "clusters", "smallest", "largest", "pairs dropped", "steps", "seconds")
    for stage in stages:
        sizes, dropped = stage["sizes"], f"{stage['dropped']} ({stage['dropped_share']:.1%})"
        cells = (stage["stage"], len(sizes), sizes[-1], sizes[0], dropped, stage["steps"], round(stage["seconds"]))
        table.add_row(*map(str, cells))
    console.print(table)

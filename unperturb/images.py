"""`unperturb classify` and `purify`: what the service does, for files and without a server."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from models.catalog import CHUNK, Catalog, Defense
from models.purifiers import Options
from service.decode import decode, encode_png
from service.errors import Problem
from service.pipeline import Answer, Lane, Work, run_batch
from service.settings import Settings
from service.votes import predictions
from unperturb.options import Device, Json, Model, Precision, Zoo, open_catalog

PurifierName = Annotated[
    str | None, typer.Option(help="How to purify: see `unperturb models`. Default: what the service takes.")
]
ClassifierName = Annotated[str | None, typer.Option(help="One of the model's classifiers; default: the card's choice.")]
Epsilon = Annotated[
    float | None, typer.Option(min=0, max=1, help="The budget, in [0, 1] units, instead of the purifier's own.")
]
Steps = Annotated[int | None, typer.Option(min=1, max=1000, help="The steps, instead of the purifier's own.")]
Seed = Annotated[int, typer.Option(min=0, help="For purifiers that draw random numbers.")]

DIGITS = 7  # who runs this has the networks anyway

Outcome = Answer | Exception


def classify(
    files: Annotated[list[Path], typer.Argument(help="PNG, JPEG or WebP files.")],
    purifier: PurifierName = None,
    model: Model = "cifar10",
    classifier: ClassifierName = None,
    top_k: Annotated[int, typer.Option(min=1, help="How many classes to name.")] = 1,
    epsilon: Epsilon = None,
    steps: Steps = None,
    seed: Seed = 0,
    zoo: Zoo = None,
    device: Device = "cpu",
    precision: Precision = "fp32",
    as_json: Json = False,
) -> None:
    """Purify and classify image files; a broken one is reported, the others are done all the same."""
    defense = _chosen(open_catalog(zoo, device, precision), model, purifier, classifier)
    outcomes = _run(defense, files, Options(epsilon, steps), seed=seed)
    if as_json:
        records = [_record(defense, file, outcome, top_k) for file, outcome in zip(files, outcomes, strict=True)]
        typer.echo(json.dumps(records, indent=1))
    else:
        Console().print(_table(defense, files, outcomes, top_k))
    if any(isinstance(outcome, Exception) for outcome in outcomes):
        raise typer.Exit(1)


def purify(
    file: Annotated[Path, typer.Argument(help="PNG, JPEG or WebP file.")],
    out: Annotated[Path, typer.Option(help="Where the purified PNG goes, at the classifier's input size.")],
    purifier: PurifierName = None,
    model: Model = "cifar10",
    classifier: ClassifierName = None,
    epsilon: Epsilon = None,
    steps: Steps = None,
    seed: Seed = 0,
    zoo: Zoo = None,
    device: Device = "cpu",
    precision: Precision = "fp32",
    as_json: Json = False,
) -> None:
    """Purify one image file and write the result as PNG."""
    defense = _chosen(open_catalog(zoo, device, precision), model, purifier, classifier)
    (outcome,) = _run(defense, [file], Options(epsilon, steps), seed=seed, want_image=True)
    if isinstance(outcome, Exception):
        raise outcome
    assert outcome.image is not None
    out.write_bytes(encode_png(outcome.image))
    if as_json:
        typer.echo(json.dumps(_record(defense, file, outcome, top_k=1), indent=1))
    else:
        typer.echo(f"{out}: changed by at most {255 * outcome.linf:.1f}/255; suspicion {_suspicion(outcome)}")


def _chosen(catalog: Catalog, model: str, purifier: str | None, classifier: str | None) -> Defense:
    return catalog.defense(model, purifier or catalog.default_purifier(model), classifier)


def _run(
    defense: Defense, files: Sequence[Path], options: Options, *, seed: int, want_image: bool = False
) -> list[Outcome]:
    spec = defense.card.input
    lane = Lane.of(defense, options, (spec.channels, spec.height, spec.width))
    outcomes: dict[int, Outcome] = {}
    works: dict[int, Work] = {}
    for i, file in enumerate(files):
        try:
            image = decode(file.read_bytes(), spec, Settings.model_fields["max_pixels"].default)
            works[i] = Work(image, seed, want_image)
        except (Problem, OSError) as error:
            outcomes[i] = error
    order = list(works)
    parts = [order[start : start + CHUNK] for start in range(0, len(order), CHUNK)]
    for part in track(parts, defense.name, console=Console(stderr=True), transient=True, disable=len(parts) < 2):
        outcomes |= dict(zip(part, run_batch(lane, [works[i] for i in part]), strict=True))
    return [outcomes[i] for i in range(len(files))]


def _record(defense: Defense, file: Path, outcome: Outcome, top_k: int) -> dict[str, Any]:
    if isinstance(outcome, Exception):
        return {"file": str(file), "error": str(outcome)}
    found = {name: value for name, value in vars(outcome).items() if name not in ("probabilities", "before", "image")}
    ranked = predictions([outcome.probabilities], defense.card.labels, top_k, DIGITS)
    names = defense.name.split("+")
    found["steps"] = [
        {"purifier": name, **vars(step)} for name, step in zip(names, outcome.steps, strict=False)
    ]  # of a chain alone
    return {"file": str(file), "predictions": [asdict(each) for each in ranked], **found}


def _table(defense: Defense, files: Sequence[Path], outcomes: Sequence[Outcome], top_k: int) -> Table:
    title = f"{defense.card.model} / {defense.card.classifier} / {defense.name}"
    table = Table("file", "label", "probability", "epsilon", "suspicion", title=title)
    for file, outcome in zip(files, outcomes, strict=True):
        if isinstance(outcome, Exception):
            table.add_row(str(file), f"[red]{outcome}[/red]")
            continue
        for rank, prediction in enumerate(predictions([outcome.probabilities], defense.card.labels, top_k, DIGITS)):
            rest = (f"{255 * outcome.epsilon:.1f}/255", _suspicion(outcome)) if rank == 0 else ()
            name = str(file) if rank == 0 else ""
            table.add_row(name, prediction.label, f"{prediction.probability:.3f}", *rest)
    return table


def _suspicion(answer: Answer) -> str:
    return "unknown" if answer.suspicion is None else f"{answer.suspicion:.1f} %"

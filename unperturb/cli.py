"""The `unperturb` command."""

import json
import sys
from collections.abc import Iterable
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

from models.catalog import Catalog, Offer, UnknownName
from models.checkpoint import CheckpointError
from models.purifiers import OptionError
from unperturb import __version__, bench, images, keys, offline, settings
from unperturb.measure import MachineBusy
from unperturb.options import DeviceError, Json, Zoo, open_catalog

app = typer.Typer(
    name="unperturb",
    help="Undo adversarial perturbations before an image is classified, and say honestly how far that helps.",
    epilog="A first try: `unperturb serve`, or `unperturb classify samples/*.png`.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False) -> None:
    if version:
        typer.echo(f"unperturb {__version__}")
        raise typer.Exit


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on. Default: 127.0.0.1; 0.0.0.0 for all.")] = None,
    port: Annotated[int | None, typer.Option(help="TCP port. Default: 8000.")] = None,
    zoo: Zoo = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or cuda:N. Default: cuda where there is one.")] = None,
) -> None:
    """Run the HTTP service. Every other setting is an environment variable UNPERTURB_..., see docs/settings.md."""
    from service.server import serve as run
    from service.settings import Settings

    given: dict[str, Any] = {"host": host, "port": port, "zoo": tuple(zoo) if zoo else None, "device": device}
    run(Settings(**{name: value for name, value in given.items() if value is not None}))


@app.command()
def models(zoo: Zoo = None, as_json: Json = False) -> None:
    """List what can be served: models, their classifiers and purifiers, what they cost and how far they help."""
    catalog = open_catalog(zoo)
    rows = [_row(catalog, offer) for offer in catalog.offers()]
    if as_json:
        return typer.echo(json.dumps(rows, indent=1))
    table = Table("model", "purifier", "classifier", "passes", "clean", "PGD", "adaptive", "worst")
    for row in rows:
        cells = [_percent(row[key]) for key in ("clean", "pgd", "adaptive", "worst")]
        passes = f"{row['forward_passes']} + {row['backward_passes']}"
        name = row["purifier"] + (" *" if row["default"] else "")
        table.add_row(row["model"], name, row["classifier"], passes, *cells)
    Console().print(table)
    typer.echo(
        "* served where a request names no classifier. Passes: network forwards + backwards of one image, at most. "
        "Accuracies: in percent, see each card. Adaptive: right under every attack by gradient that knows the defence; "
        "worst: under every attack that there was."
    )


def _row(catalog: Catalog, offer: Offer) -> dict[str, Any]:
    info = catalog.load(offer).info
    return {
        "model": offer.model,
        "purifier": offer.purifier,
        "classifier": offer.classifier,
        "default": catalog.resolve(offer.model, offer.purifier) is offer,
        "note": offer.entry.note or info.summary,
        "eps_pfy": info.eps_pfy,
        "forward_passes": info.forward_passes,
        "backward_passes": info.backward_passes,
        "clean": _least(m.accuracy for m in offer.measured() if m.attack == "none"),
        "pgd": _least(m.accuracy for m in offer.measured() if m.attack == "pgd"),
        "adaptive": _least(each.adaptive for each in offer.worst()),
        "worst": _least(each.worst for each in offer.worst()),
    }


def _least(shares: Iterable[float | None]) -> float | None:
    return min((share for share in shares if share is not None), default=None)


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f}"


for command in (
    *(images.classify, images.purify, offline.train, offline.evaluate, offline.report, offline.convert),
    *(bench.bench, keys.key, settings.settings),
):
    app.command()(command)


def main() -> None:
    """What the user can mend ends in one clear line and exit status 2, everything else in a traceback."""
    try:
        app()
    except KeyboardInterrupt:
        sys.exit("unperturb: interrupted; a training or evaluation goes on where it stopped if you run it again")
    except Exception as error:  # the border of the program
        if not isinstance(error, _mendable()):
            raise
        print(f"unperturb: {error}", file=sys.stderr)  # noqa: T201
        sys.exit(2)


def _mendable() -> tuple[type[Exception], ...]:
    from models.convert import ConversionError
    from service.errors import Problem
    from service.keys import KeysError

    mendable: list[type[Exception]] = [CheckpointError, UnknownName, OptionError, ConversionError, KeysError]
    mendable += [DeviceError, MachineBusy, Problem, ValidationError, OSError]
    try:
        from training.data import DataError
        from training.loop import TrainingError
        from training.plan import EvaluationError
        from training.recipe import RecipeError
    except ImportError:  # a serving image without the training package
        return tuple(mendable)
    return (*mendable, DataError, EvaluationError, RecipeError, TrainingError)

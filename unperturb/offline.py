"""`unperturb train`, `evaluate`, `report` and `convert`. They need the training package, which a serving image may leave out."""

import json
import tomllib
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from models.checkpoint import AddOnCard, Card, Checkpoint, write_card
from unperturb.options import Data, Device, Json, Model, Precision, Threads, Zoo, open_catalog

if TYPE_CHECKING:
    from models.convert import Conversion
    from training.evaluate import Cell

# Told here so that `--help` needn't import the training package.
PLANS = "quick, standard, adaptive-full, budgets, steps, paper-soap, paper-aid, paper-nrp, paper-reverse, paper-pix2pix"

PerImage = Annotated[int | None, typer.Option(min=1, help="Images; default: the plan's.")]


def train(
    recipe: Annotated[
        str | None, typer.Argument(help="A shipped recipe's name or a .toml file; none lists them.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the training and its checkpoint. Default: runs/RECIPE.")
    ] = None,
    data: Data = None,
    start: Annotated[
        Path | None, typer.Option("--from", help="Begin with the weights of this checkpoint folder.")
    ] = None,
    download: Annotated[bool, typer.Option("--download", help="Fetch the data set where there is a network.")] = False,
    epochs: Annotated[int | None, typer.Option(min=1, help="Instead of the recipe's.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Instead of the recipe's.")] = None,
    threads: Threads = None,
    device: Device = "cpu",
    zoo: Zoo = None,
    restart: Annotated[bool, typer.Option("--restart", help="Throw an earlier training in --out away.")] = False,
    as_json: Json = False,
) -> None:
    """Train a classifier with its purifiers from a recipe; the same command continues an interrupted training."""
    from training.loop import TrainingError
    from training.loop import threads as limited
    from training.recipe import Recipe, load_recipe
    from training.train import train as train_classifier
    from training.train_addon import train_addon

    if recipe is None:
        return _list_recipes(as_json)
    changes: dict[str, Any] = {key: value for key, value in (("epochs", epochs), ("seed", seed)) if value is not None}
    chosen = load_recipe(recipe, changes)
    folder = out or Path("runs") / chosen.name
    wishes: dict[str, Any] = {"out": folder, "data": data, "download": download, "restart": restart, "device": device}
    card: Card | AddOnCard
    needed = [folder]
    with limited(threads):
        if isinstance(chosen, Recipe):
            card = train_classifier(chosen, start=start, **wishes)
        elif start is not None:
            raise TrainingError(f"--from is for classifiers; recipe {chosen.name!r} trains an add-on")
        else:
            catalog = open_catalog(zoo)
            card = train_addon(chosen, catalog=catalog, **wishes)
            # An add-on is of no use without its classifier; the rest of the zoo may hold another add-on of its name.
            needed = [catalog.folder(card.model, card.classifier), folder]
    if as_json:
        return typer.echo(card.model_dump_json(indent=1))
    where = " ".join(f"--zoo {one}" for one in needed)
    typer.echo(f"checkpoint in {folder}\nserve it:   unperturb serve {where}")
    typer.echo(f"measure it: unperturb evaluate {card.classifier} --model {card.model} {where}")


def _list_recipes(as_json: bool) -> None:
    from training.recipe import load_recipe, recipe_names

    recipes = [load_recipe(name) for name in recipe_names()]
    if as_json:
        return typer.echo(json.dumps([recipe.model_dump(mode="json") for recipe in recipes], indent=1))
    table = Table("recipe", "epochs", "what", title="unperturb train RECIPE")
    for recipe in recipes:
        table.add_row(recipe.name, str(recipe.epochs), recipe.summary)
    Console().print(table)


def evaluate(
    classifier: Annotated[str, typer.Argument(help="A checkpoint's classifier name: see `unperturb models`.")],
    model: Model = "cifar10",
    plan: Annotated[str, typer.Option(help=f"A shipped plan ({PLANS}) or a .toml file.")] = "quick",
    purifier: Annotated[list[str] | None, typer.Option(help="Only this purifier; may be repeated.")] = None,
    chain: Annotated[
        list[str] | None, typer.Option(help="Also these purifiers in a row, such as pix2pix+aid; may be repeated.")
    ] = None,
    attack: Annotated[list[str] | None, typer.Option(help="Only this attack of the plan; may be repeated.")] = None,
    variants: Annotated[
        Path | None, typer.Option(help="Purifier settings to compare on this checkpoint, instead of its card's; TOML.")
    ] = None,
    epsilon: Annotated[
        str | None,
        typer.Option(help="l_inf budget instead of the data set's own, such as 16/255; the plan follows it."),
    ] = None,
    first: Annotated[int | None, typer.Option(min=0, help="Index of the first test image.")] = None,
    n: PerImage = None,
    adaptive_n: PerImage = None,
    votes: Annotated[
        int,
        typer.Option(
            min=1, help="So many draws decide together, as with `votes` of a request; random purifiers alone."
        ),
    ] = 1,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Result file. Default: runs/results/MODEL-CLASSIFIER-PLAN.json, with another precision -PRECISION, "
            "with several votes -votes-VOTES."
        ),
    ] = None,
    card: Annotated[
        bool, typer.Option("--card", help="Write results that can be believed into the checkpoint's card.")
    ] = False,
    zoo: Zoo = None,
    data: Data = None,
    threads: Threads = None,
    device: Device = "cpu",
    precision: Precision = "fp32",
    as_json: Json = False,
) -> None:
    """Measure accuracy under attack; the same command continues an interrupted evaluation."""
    from training import cards, checks
    from training import evaluate as evaluation
    from training.loop import threads as limited
    from training.plan import EvaluationError, load_plan

    if card and (precision != "fp32" or votes > 1):
        raise EvaluationError("a card tells of one answer in fp32; --card goes without --precision and --votes")
    catalog = open_catalog(zoo, device, precision)
    defenses = evaluation.defenses_of(catalog, model, classifier, chain or ())
    given = (("first", first), ("n", n), ("adaptive_n", adaptive_n))
    overrides = {key: value for key, value in given if value is not None}
    data_set = evaluation.trained_on(defenses[0].card)
    chosen = load_plan(plan, data_set, overrides, _budget(epsilon))
    if variants:
        defenses = evaluation.variants_of(defenses, variants)
    if votes > 1:
        defenses = evaluation.voting(defenses, votes)
    told = ("" if precision == "fp32" else f"-{precision}") + (f"-votes-{votes}" if votes > 1 else "")
    file = out or Path("runs") / "results" / f"{model}-{classifier}-{chosen.name}{told}.json"
    folder = catalog.folder(model, classifier)
    if card:  # a file that is missing is told before hours of attacks
        cards.files_with(Checkpoint.open(folder).card, file)
    fit = evaluation.fitted(catalog, model, chosen)
    for name in fit.missing:
        typer.echo(f"without images made on {name}: this zoo has no such classifier", err=True)
    with limited(threads):
        run = evaluation.Evaluation(defenses, fit.plan, file, data, fit.sources)
        cells = run.run(purifiers=purifier, attacks=attack, oracle=not variants)
        flaws = checks.of_results(cells) + [
            flaw
            for defense in defenses
            if any(cell.purifier == defense.name and cell.attack.aware for cell in cells)
            for flaw in checks.of_defense(defense, run.x, run.y)
        ]
    if card and not flaws:
        told_so_far = Checkpoint.open(folder).card
        write_card(folder, cards.with_results(told_so_far, cards.files_with(told_so_far, file)))
    if as_json:
        typer.echo(json.dumps([cell.model_dump(mode="json") for cell in cells], indent=1))
    else:
        Console().print(_results(cells, f"{model} / {classifier}: {chosen.name}"))
        typer.echo(f"per image: {file}")
    if flaws:
        typer.echo("these results can't be believed as they are, docs/checks.md says why:", err=True)
        typer.echo("\n".join(f"  {flaw}" for flaw in flaws), err=True)
        if card:
            typer.echo(f"so the card of {classifier} was left as it is", err=True)
        raise typer.Exit(1)


def _budget(epsilon: str | None) -> float | None:
    from training.plan import EvaluationError, length

    try:
        return None if epsilon is None else length(epsilon)
    except ValueError as error:
        raise EvaluationError(f"--epsilon: {error}") from error


def _results(cells: "list[Cell]", title: str) -> Table:
    from training.outcomes import wilson

    table = Table("purifier", "attack", "accuracy, %", "95 % interval", "n", "paper, %", title=title)
    for cell in cells:
        low, high = wilson(cell.accuracy, cell.n)
        table.add_row(
            cell.purifier + (" (oracle)" if cell.oracle else ""),
            cell.attack.name,
            f"{100 * cell.accuracy:.1f}",
            f"{100 * low:.1f} to {100 * high:.1f}",
            str(cell.n),
            "" if cell.paper is None else f"{100 * cell.paper:.1f}",
        )
    return table


RESULTS = (Path("docs/results"), Path("runs/results"))


def report(
    folder: Annotated[
        Path | None, typer.Argument(help="Folder of results. Default: docs/results if there is one, else runs/results.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the page. Default: that of the results.")] = None,
) -> None:
    """Write one page from a folder of results, with pictures: every defence under every attack, beside what the papers report."""
    from training.pictures import draw
    from training.report.page import write_report

    found = folder or next((each for each in RESULTS if each.is_dir()), RESULTS[-1])
    drawable = find_spec("matplotlib") is not None
    if not drawable:
        typer.echo("without pictures: they need matplotlib, pip install 'unperturb[plot]'", err=True)
    typer.echo(write_report(found, out or found, draw if drawable else None))


def convert(
    file: Annotated[Path, typer.Argument(help="A foreign .pth file with a state dict.")],
    recipe: Annotated[str, typer.Option(help="The recipe whose network, labels and purifiers the checkpoint gets.")],
    out: Annotated[Path, typer.Option(help="Folder of the new checkpoint.")],
    data: Data = None,
    zoo: Zoo = None,
    rename: Annotated[
        Path | None, typer.Option(help='TOML table, foreign key = "our key", for keys that the converter can\'t place.')
    ] = None,
    allow_partial: Annotated[
        bool,
        typer.Option("--allow-partial", help="Write a checkpoint even if keys are left over or parameters unfilled."),
    ] = False,
) -> None:
    """Turn foreign weights into a checkpoint: weights only, every key that can't be placed is reported."""
    from models.classifiers import build_classifier
    from models.convert import convert as place
    from models.networks import build_network
    from training.data import load_data
    from training.recipe import Recipe, load_recipe
    from training.train import export
    from training.train_addon import classifier_of, export_addon

    chosen = load_recipe(recipe)
    names = tomllib.loads(rename.read_text(encoding="utf-8")) if rename else None
    wishes: dict[str, Any] = {"rename": names, "allow_partial": allow_partial}
    origin = {"converted_from": file.name}
    if isinstance(chosen, Recipe):
        done = place(file, build_classifier, chosen.architecture, chosen.arguments, **wishes)
        _tell_placed(done)
        export(done.network, chosen, load_data(chosen.data, "train", data), out, origin)
    else:
        addon = place(file, build_network, chosen.network, chosen.arguments, **wishes)
        _tell_placed(addon)
        protected = classifier_of(chosen, open_catalog(zoo))
        export_addon(addon.network, chosen, protected, load_data(chosen.data, "train", data), out, origin)
    typer.echo(f"checkpoint in {out}")


def _tell_placed(done: "Conversion[Any]") -> None:
    typer.echo(f"placed {len(done.placed)} tensors")
    for what in ("folded", "unplaced", "unfilled"):
        for key in getattr(done, what):
            typer.echo(f"{what}: {key}")

"""What a checkpoint's card tells of its results: each accuracy, and what is left image by image under all attacks together.

`python -m training.cards` makes the shipped cards' anew from docs/results.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

from models.catalog import ZOO
from models.checkpoint import Card, Measurement, WorstCase, read_card, write_card
from training.outcomes import APART, Worst, worst_of
from training.plan import EvaluationError
from training.results import Result, read_results
from training.tables import RESULTS


def main() -> None:
    """Rewrite every shipped card that tells of results."""
    for path in sorted(ZOO.glob("*/card.json")):
        card = read_card(path.parent)
        if isinstance(card, Card):
            write_card(path.parent, with_results(card, [RESULTS / name for name in named(card)]))


def named(card: Card) -> list[str]:
    """The result files that a card tells of."""
    return list(dict.fromkeys(each.detail.rsplit("; ", 1)[-1] for each in card.measured))


def files_with(card: Card, file: Path) -> list[Path]:
    """The result files that a card tells of once it tells of `file` too; all in one folder.

    Raises:
        EvaluationError: one isn't there, so that nobody could say what is left under all attacks together.
    """
    files = [file.parent / name for name in dict.fromkeys([*named(card), file.name])]
    if missing := [each.name for each in files if each != file and not each.exists()]:
        raise EvaluationError(
            f"the card of {card.classifier!r} tells of {', '.join(missing)} too, and of the worst under all together; "
            f"choose an --out beside them, or copy them to {file.parent}"
        )
    return files


def with_results(card: Card, files: Iterable[Path]) -> Card:
    """`card` with what these result files of its checkpoint say, and with nothing else.

    Raises:
        EvaluationError: a file is broken, or two hold a purifier of the same name that isn't the same one.
    """
    results = read_results(files)
    measured = tuple(each for result in results for each in _measurements(result))
    worst = tuple(_worst_case(found, results) for found in worst_of(results))
    return card.model_copy(update={"measured": measured, "worst": worst})


def _measurements(result: Result) -> Iterable[Measurement]:
    for cell in result.cells:
        yield Measurement(
            attack=cell.attack.name,
            purifier=cell.purifier + (" (oracle)" if cell.oracle else ""),
            addons=tuple(result.addons.get(cell.purifier, ())),
            accuracy=cell.accuracy,
            n=cell.n,
            paper=cell.paper,
            detail=f"{cell.attack.mode}; {cell.attack.text()}; seed {cell.attack.seed}; {result.stem}.json",
        )


def _worst_case(found: Worst, results: Sequence[Result]) -> WorstCase:
    taken = [each for each in results if each.bench == found.bench and each.plan not in APART]
    taken = [each for each in taken if found.purifier in each.purifiers()]
    return WorstCase(
        purifier=found.purifier,
        addons=tuple(taken[0].addons.get(found.purifier, ())),
        adaptive=None if found.adaptive is None else round(found.adaptive, 6),
        worst=round(found.worst, 6),
        n=found.n,
        strongest=found.strongest,
        detail=f"l_inf {found.bench.budget:.4g}; {found.bench.data}; {', '.join(f'{each.stem}.json' for each in taken)}",
    )


if __name__ == "__main__":
    main()

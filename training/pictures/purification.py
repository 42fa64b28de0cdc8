"""SOAP's Fig. 3: the auxiliary loss, and here the accuracy too, against the purification budget eps_pfy.

From files of variants NAME-EPS that differ in nothing but their one fixed budget.
"""

from collections.abc import Sequence
from typing import Any

from training.evaluate import Cell
from training.pictures.picture import BLUE, ORANGE, RED, Picture, Point, Unit, curve, images, percent
from training.results import Result

SHOWN = {"none": ("clean", BLUE, "o"), "fgsm": ("FGSM", ORANGE, "s"), "pgd": ("PGD", RED, "D")}

Curve = list[tuple[float, Cell]]  # by ascending eps_pfy


def pictures(results: Sequence[Result]) -> list[Picture]:
    """One of each file that holds such variants."""
    return [_picture(result, found) for result in results if (found := families(result))]


def families(result: Result) -> dict[str, dict[str, Curve]]:
    """By the variants' common name, then by attack: cells by budget. Only what has at least two budgets."""
    found: dict[tuple[str, str], dict[str, Curve]] = {}
    for cell in result.cells:
        settings = result.settings.get(cell.purifier, {})
        if settings.get("selection") == "fixed" and cell.objective_after is not None and cell.attack.name in SHOWN:
            family, _, _ = cell.purifier.rpartition("-")
            rest = str(sorted((name, value) for name, value in settings.items() if name != "budgets"))
            found.setdefault((family, rest), {}).setdefault(cell.attack.name, []).append(
                (settings["budgets"][-1], cell)
            )
    return {
        family: {attack: sorted(cells, key=lambda each: each[0]) for attack, cells in curves.items()}
        for (family, _), curves in found.items()
        if family and _budgets(curves) > 1
    }


def _budgets(curves: dict[str, Curve]) -> int:
    return len({budget for cells in curves.values() for budget, _ in cells})


def _picture(result: Result, found: dict[str, dict[str, Curve]]) -> Picture:
    unit = Unit.of(result.budget)

    def paint(figure: Any) -> None:
        axes = figure.subplots(2, len(found), sharex=True, sharey="row", squeeze=False)
        for column, (family, curves) in enumerate(found.items()):
            loss, accuracy = axes[0][column], axes[1][column]
            for attack, cells in curves.items():
                label, colour, marker = SHOWN[attack]
                x = [budget * unit.scale for budget, _ in cells]
                loss.plot(x, [cell.objective_after for _, cell in cells], color=colour, marker=marker, label=label)
                points = [Point(place, cell.accuracy, cell.n) for place, (_, cell) in zip(x, cells, strict=True)]
                curve(accuracy, points, label, colour, marker)
            for axis in (loss, accuracy):
                axis.axvline(result.budget * unit.scale, color="0.6", linestyle=":", zorder=0)
            loss.set_title(f"{result.classifier}, {family}")
            loss.grid(alpha=0.25)
            accuracy.set_xlabel(f"eps_pfy{unit.suffix}")
            accuracy.grid(alpha=0.25)
        axes[0][0].set_ylabel("auxiliary loss, mean")
        axes[0][0].set_ylim(bottom=0)
        percent(axes[1][0], "accuracy, %")
        axes[0][0].legend()

    return Picture(f"{result.stem}.png", _caption(result, found), (3.6 * max(2, len(found)), 5.2), paint)


def _caption(result: Result, found: dict[str, dict[str, Curve]]) -> str:
    cells = [cell for curves in found.values() for points in curves.values() for _, cell in points]
    told = dict.fromkeys(cell.attack.text() for cell in cells if cell.attack.mode != "none")
    return (
        f"{result.title}, SOAP's Fig. 3: mean auxiliary loss of the purified images (above) and accuracy with Wilson's 95 % "
        f"intervals (below) against the purification budget, the same for every image; {' and '.join(found)}. "
        f"{'; '.join(told)}, on the classifier alone (dotted: their budget); {images([cell.n for cell in cells])}, {result.data}."
    )

"""Accuracy against the attack's budget: what doesn't fall to nothing as it grows is masked, not robust. Plan `budgets`."""

from collections.abc import Sequence
from typing import Any

from training.attacks import BLIND
from training.evaluate import Cell
from training.outcomes import withstood
from training.pictures.picture import COLOURS, MARKERS, Picture, Point, Unit, curve, images, percent
from training.results import Result


def pictures(results: Sequence[Result]) -> list[Picture]:
    """One of each file of the plan."""
    return [_picture(result) for result in results if result.plan == "budgets"]


def blind(cells: Sequence[Cell]) -> list[Point]:
    """As they come, which is budget 0, and under attacks on the classifier alone."""
    kept = [cell for cell in cells if cell.attack.mode in ("none", *BLIND)]
    return [Point(cell.attack.epsilon, cell.accuracy, cell.n) for cell in kept]


def every(cells: Sequence[Cell]) -> list[Point]:
    """Right as they come and under every attack of one budget, image by image; nothing where no attack knew the defence."""
    aware = {cell.attack.epsilon for cell in cells if cell.attack.aware}
    if not aware:
        return []
    points = []
    for epsilon in sorted({0.0, *aware}):
        mine = [cell for cell in cells if cell.attack.mode == "none" or cell.attack.epsilon in (epsilon, 0.0)]
        n = min(cell.n for cell in cells if cell.attack.aware)
        cut = [cell.model_copy(update={"outcomes": cell.outcomes[:n]}) for cell in mine]
        points.append(Point(epsilon, withstood(cut), n))
    return points


def _picture(result: Result) -> Picture:
    unit = Unit.of(result.budget)
    found = {purifier: result.of(purifier) for purifier in result.purifiers()}

    def paint(figure: Any) -> None:
        axis = figure.subplots()
        for (purifier, cells), colour, marker in zip(found.items(), COLOURS, MARKERS, strict=False):
            _curves(axis, purifier, cells, colour, marker, unit.scale)
        axis.axvline(result.budget * unit.scale, color="0.6", linestyle=":", zorder=0)
        axis.set_xlabel(f"attack budget, l_inf{unit.suffix}; dotted: {unit.told(result.budget)}")
        axis.set_title(result.title)
        percent(axis)
        axis.legend()

    return Picture(f"{result.stem}.png", _caption(result), (7, 4), paint)


def _curves(axis: Any, purifier: str, cells: Sequence[Cell], colour: str, marker: str, scale: float) -> None:
    knowing = every(cells)
    label = f"{purifier}: PGD, " + ("which knows it" if purifier == "none" else "blind")
    curve(axis, _scaled(blind(cells), scale), label, colour, marker)
    if knowing:
        curve(axis, _scaled(knowing, scale), f"{purifier}: every attack", colour, marker, "--")


def _scaled(points: Sequence[Point], scale: float) -> list[Point]:
    return [Point(point.x * scale, point.share, point.n) for point in points]


def _caption(result: Result) -> str:
    tried = [cell for cell in result.cells if cell.attack.mode != "none" and not cell.oracle]
    how = dict.fromkeys(_how(cell) for cell in tried if cell.attack.aware)
    climbed = dict.fromkeys(_how(cell) for cell in tried if not cell.attack.aware)
    told = [
        f"{result.title}: accuracy against the attack's budget, with Wilson's 95 % intervals.",
        f"Solid: {', '.join(climbed)}, on the classifier alone ({images([cell.n for cell in tried if not cell.attack.aware])}).",
    ]
    if how:
        told += [
            f"Dashed: right under every attack of the budget, also by {', '.join(how)}, which know the defence",
            f"({images([cell.n for cell in tried if cell.attack.aware])}).",
        ]
    return " ".join(told)


def _how(cell: Cell) -> str:
    attack = cell.attack
    length = " of APGD" if attack.algorithm == "apgd" else f" of {attack.step_size / attack.epsilon:.3g} of the budget"
    return f"{attack.name.split()[0]} ({attack.steps} steps{length})"

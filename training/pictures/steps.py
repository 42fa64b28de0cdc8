"""Reverse's Fig. 5 and AID's Table 17: accuracy against the time of purification. Plan `steps`, variants by steps."""

from collections.abc import Sequence
from typing import Any

from training.evaluate import Cell
from training.pictures.picture import BLUE, COLOURS, MARKERS, Picture, Point, curve, images, percent
from training.results import Result


def pictures(results: Sequence[Result]) -> list[Picture]:
    """One of each file of the plan that was measured on a processor: elsewhere its time says nothing."""
    return [_picture(result, found) for result in results if result.plan == "steps" and (found := curves(result))]


def curves(result: Result) -> dict[str, list[tuple[int, Cell]]]:
    """By attack: cells by ascending number of steps."""
    found: dict[str, list[tuple[int, Cell]]] = {}
    for cell in result.cells:
        if cell.purify_seconds is not None and not cell.oracle:
            steps = result.settings.get(cell.purifier, {}).get("steps", 0)
            found.setdefault(cell.attack.name, []).append((steps, cell))
    return {attack: sorted(cells, key=lambda each: each[0]) for attack, cells in found.items()}


def milliseconds(cell: Cell) -> float:
    """Of the processor, an image."""
    assert cell.purify_seconds is not None
    return 1000 * cell.purify_seconds / cell.n


def _picture(result: Result, found: dict[str, list[tuple[int, Cell]]]) -> Picture:
    def paint(figure: Any) -> None:
        axis = figure.subplots()
        looks = zip((BLUE, *COLOURS[2:]), MARKERS, (6, -13), strict=False)
        for (attack, cells), (colour, marker, above) in zip(found.items(), looks, strict=False):
            points = [Point(milliseconds(cell), cell.accuracy, cell.n) for _, cell in cells]
            curve(axis, points, "no attack" if attack == "none" else attack, colour, marker)
            for (steps, _), point in zip(cells, points, strict=True):
                place = (point.x, 100 * point.share)
                axis.annotate(str(steps), place, (0, above), textcoords="offset points", ha="center", fontsize=8)
        axis.set_xscale("log")
        axis.xaxis.set_major_formatter("{x:g}")
        axis.set_xlabel("purifying and classifying an image, ms of a core; beside the points: steps")
        axis.set_title(result.title)
        percent(axis)
        axis.legend()

    return Picture(f"{result.stem}.png", _caption(result, found), (7, 4), paint)


def _caption(result: Result, found: dict[str, list[tuple[int, Cell]]]) -> str:
    cells = [cell for points in found.values() for _, cell in points]
    told = dict.fromkeys(cell.attack.text() for cell in cells if cell.attack.mode != "none")
    names = dict.fromkeys(name.rpartition("-")[0] for name in result.purifiers() if "-" in name)
    return (
        f"{result.title}: accuracy against time, by the number of steps of {' and '.join(f'`{name}`' for name in names)} "
        f"(0: none). {'; '.join(told)}, on the classifier alone, so blind to the purifier. {images([cell.n for cell in cells])}, "
        f"{result.data}; Wilson's 95 % intervals."
    )

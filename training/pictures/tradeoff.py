"""SOAP's Fig. 5 and AID's Fig. 4: attackers who trade the classifier's loss for the purifier's, by the weight beta of Eq. (9)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from training.evaluate import Cell
from training.pictures.picture import BLUE, RED, Picture, Point, curve, images, percent
from training.results import Result


@dataclass(frozen=True)
class Sweep:
    """Accuracies of one purifier against beta, before (the classifier alone) and after purification, of the same images."""

    purifier: str
    before: list[Point]
    after: list[Point]
    cells: list[Cell]


def pictures(results: Sequence[Result]) -> list[Picture]:
    """One of each file in which a purifier has met at least three weights."""
    return [_picture(result, found) for result in results if (found := sweeps(result))]


def sweeps(result: Result) -> list[Sweep]:
    """Of every purifier with at least three weights. Beta 0 is the same ascent without it, where it was measured."""
    found = []
    for purifier in result.purifiers():
        joint = [cell for cell in result.of(purifier) if cell.attack.mode == "joint"]
        if len({cell.attack.weight for cell in joint}) > 2:
            after = [Point(cell.attack.weight, cell.accuracy, cell.n) for cell in joint]
            before = [Point(cell.attack.weight, cell.bare, cell.n) for cell in joint if cell.bare is not None]
            n = min(cell.n for cell in joint)
            after += _unweighted(result, purifier, joint[0], n)
            before += _unweighted(result, "none", joint[0], n)
            found.append(Sweep(purifier, before, after, joint))
    return found


def _unweighted(result: Result, purifier: str, like: Cell, n: int) -> list[Point]:
    """The blind attack that climbs as `like` does, on its images."""
    how = {"mode", "name", "weight"}
    mine = [
        cell
        for cell in result.of(purifier)
        if cell.attack.mode == "static" and cell.attack.model_dump(exclude=how) == like.attack.model_dump(exclude=how)
    ]
    return [Point(0.0, cell.outcomes[:n].count("1") / n, n) for cell in mine[:1]]


def _picture(result: Result, found: Sequence[Sweep]) -> Picture:
    def paint(figure: Any) -> None:
        axes = figure.subplots(1, len(found), sharey=True, squeeze=False)[0]
        for axis, sweep in zip(axes, found, strict=True):
            if sweep.before:
                curve(axis, sweep.before, "the classifier alone", BLUE, "s")
            curve(axis, sweep.after, "purified", RED, "o")
            axis.set_xscale("symlog", linthresh=0.5)
            axis.set_xticks(ticks := sorted({point.x for point in sweep.after}), [f"{x:g}" for x in ticks])
            axis.minorticks_off()
            axis.set_xlabel("beta")
            axis.set_title(sweep.purifier)
            percent(axis, "accuracy, %" if axis is axes[0] else "")
        axes[0].legend()

    return Picture(f"{result.stem}-tradeoff.png", _caption(result, found), (3.2 * max(2, len(found)), 3.4), paint)


def _caption(result: Result, found: Sequence[Sweep]) -> str:
    cells = [cell for sweep in found for cell in sweep.cells]
    told = cells[0].attack.model_copy(update={"weight": 0.0, "name": "joint"}).text()
    return (
        f"{result.title}: attackers who know the purifier's loss and weigh it by beta (SOAP's Eq. (9) and Fig. 5, AID's Fig. 4): "
        "the classifier alone on the images that they sent, which are clean where those fool the defence already, and after "
        f"purification. {told}; beta > 0 hides from the purifier, beta = 0 is the same ascent blind to it. "
        f"{images([cell.n for cell in cells])}, Wilson's 95 % intervals."
    )

"""How well a purifier's own loss tells attacked images from clean ones, at every threshold."""

from collections.abc import Sequence
from typing import Any

from training.detector import area, losses, roc
from training.evaluate import Cell
from training.outcomes import APART
from training.pictures.picture import COLOURS, Picture, images
from training.results import Result

# Which attacks are shown where they were made; others would only cover these.
SHOWN = ("fgsm", "pgd", "pgd-50", "two-view", "bpda", "unrolled")


def pictures(results: Sequence[Result]) -> list[Picture]:
    """One of each file with losses of clean and of attacked images, but for the plans that stand apart."""
    plain = [result for result in results if result.plan not in APART and not result.stem.startswith("variants-")]
    return [_picture(result, found) for result in plain if (found := curves(result))]


def curves(result: Result) -> dict[str, list[Cell]]:
    """By purifier: its clean cell, then those of the attacks that are shown."""
    found = {}
    for purifier in result.purifiers():
        kept = [cell for cell in result.of(purifier) if cell.objectives is not None]
        clean = [cell for cell in kept if cell.attack.mode == "none"]
        joint = [cell for cell in kept if cell.attack.mode == "joint" and cell.attack.weight > 0]
        hidden = sorted(joint, key=lambda cell: cell.attack.weight)[-1:]
        if clean and (attacked := [cell for cell in kept if cell.attack.name in SHOWN] + hidden):
            found[purifier] = [clean[0], *attacked]
    return found


def _picture(result: Result, found: dict[str, list[Cell]]) -> Picture:
    def paint(figure: Any) -> None:
        axes = figure.subplots(1, len(found), sharey=True, squeeze=False)[0]
        for axis, (purifier, (clean, *attacked)) in zip(axes, found.items(), strict=True):
            for cell, colour in zip(attacked, COLOURS[1:], strict=False):
                of_clean, of_attacked = losses(clean), losses(cell)
                assert of_clean is not None  # `curves` keeps no other cells
                assert of_attacked is not None
                alarms, caught = roc(of_clean, of_attacked)
                label = f"{cell.attack.name}: {area(of_clean, of_attacked):.2f}"
                axis.plot(100 * alarms, 100 * caught, color=colour, label=label)
            axis.plot([0, 100], [0, 100], color="0.6", linestyle=":", zorder=0)
            axis.set_title(purifier)
            axis.set_xlabel("false alarms, % of clean images")
            axis.grid(alpha=0.25)
            axis.legend(title="area under it", loc="lower right", fontsize=8)
        axes[0].set_ylabel("detected, % of attacked images")

    return Picture(f"{result.stem}-roc.png", _caption(result, found), (4.2 * len(found), 4.2), paint)


def _caption(result: Result, found: dict[str, list[Cell]]) -> str:
    clean = [cells[0].n for cells in found.values()]
    attacked = [cell for _, *cells in found.values() for cell in cells]
    told = dict.fromkeys(cell.attack.text() for cell in attacked)
    return (
        f"{result.title}: clean against attacked images by the purifier's own loss on what comes in; dotted: a coin. "
        f"{images(clean)} clean, {images([cell.n for cell in attacked])} attacked. {'; '.join(told)}."
    )

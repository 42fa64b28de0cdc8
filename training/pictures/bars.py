"""Accuracy with and without a purifier under each attack: the attackers who know it are the point."""

from collections.abc import Sequence
from typing import Any

from training.evaluate import Cell
from training.pictures.picture import BLUE, Picture, images
from training.results import Result

SHOWN = {("cifar10-resnet18-soap-lc-paper-soap", "soap-lc"): "cifar10-attacks.png"}
LABELS = {
    "none": "no attack",
    "fgsm": "FGSM",
    "pgd": "PGD",
    "two-view": "two-view\n(knows it)",
    "bpda": "BPDA\n(knows it)",
    "unrolled": "unrolled\n(knows it)",
}


def pictures(results: Sequence[Result]) -> list[Picture]:
    """Those that the README shows."""
    return [
        _picture(result, purifier, name)
        for result in results
        for (stem, purifier), name in SHOWN.items()
        if result.stem == stem
    ]


def _picture(result: Result, purifier: str, name: str) -> Picture:
    found = {each: {cell.attack.name: cell for cell in result.of(each)} for each in ("none", purifier)}

    def paint(figure: Any) -> None:
        axis = figure.subplots()
        for (each, cells), shift, colour in zip(found.items(), (-0.2, 0.2), ("0.55", BLUE), strict=True):
            shown = {place: cells[attack] for place, attack in enumerate(LABELS) if attack in cells}
            heights = [100 * cell.accuracy for cell in shown.values()]
            drawn = axis.bar([place + shift for place in shown], heights, 0.4, color=colour, label=each)
            axis.bar_label(drawn, fmt="%.0f")
        axis.set_xticks(range(len(LABELS)), list(LABELS.values()))
        axis.set_ylabel("accuracy, %")
        axis.set_ylim(0, 105)
        axis.legend()

    cells = [cells[attack] for cells in found.values() for attack in LABELS if attack in cells]
    return Picture(name, _caption(result, purifier, cells), (7, 3), paint)


def _caption(result: Result, purifier: str, cells: Sequence[Cell]) -> str:
    blind, aware = ([cell.n for cell in cells if cell.attack.aware is knows] for knows in (False, True))
    told = dict.fromkeys(cell.attack.text() for cell in cells if cell.attack.mode != "none")
    known = f", {images(aware)} for attackers who know it" if aware else ""
    return f"{result.title}: accuracy without and with `{purifier}`. {'; '.join(told)}. {images(blind)}{known}."

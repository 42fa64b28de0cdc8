"""What remains of a defence under every attack that was tried on it: image by image, not attack by attack."""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from training.attacks import BLIND
from training.evaluate import Cell


@dataclass(frozen=True)
class Worst:
    """A defence's accuracies, shares in [0, 1].

    blind: of images right under every attack on the classifier alone. worst: of those right under every attack of any mode,
    and as they come. n: images that were in all of them. strongest: the one attack with the lowest accuracy among those.
    """

    model: str
    classifier: str
    purifier: str
    clean: float
    blind: float
    worst: float
    n: int
    strongest: str


def wilson(share: float, n: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's 95 % interval of a binomial share, as shares in [0, 1]."""
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def withstood(cells: Iterable[Cell]) -> float:
    """Share of the images that are right in every one of the cells; of as many as the shortest has."""
    images = list(zip(*(cell.outcomes for cell in cells), strict=False))
    return sum(all(outcome == "1" for outcome in image) for image in images) / len(images)


def worst_cases(files: Sequence[Path]) -> list[Worst]:
    """Every defence of these result files, the one with the most left first; files of one classifier are taken together.

    Left out: what nobody attacked itself, since images made for something else say little of it.
    """
    cells: dict[tuple[str, str, str], list[Cell]] = {}
    for file in files:
        found = json.loads(file.read_text(encoding="utf-8"))
        for each in map(Cell.model_validate, found["cells"]):
            if not each.oracle and each.attack.stays_within(found["budget"]):
                cells.setdefault((found["model"], found["classifier"], each.purifier), []).append(each)
    rows = [_worst(*names, mine) for names, mine in cells.items() if _attacked(names[1], names[2], mine)]
    return sorted(rows, key=lambda row: (row.model, -row.worst, -row.clean))


def _attacked(classifier: str, purifier: str, cells: Sequence[Cell]) -> bool:
    """Whether one of the attacks knew the defence; without a purifier that is one on the classifier's own labels."""
    if purifier == "none":
        own = [cell.attack for cell in cells if cell.attack.source in (None, classifier)]
        return any(attack.mode in BLIND and attack.mode != "features" for attack in own)
    return any(cell.attack.aware for cell in cells)


def _worst(model: str, classifier: str, purifier: str, cells: Sequence[Cell]) -> Worst:
    n = min(len(cell.outcomes) for cell in cells)
    if purifier == "none":  # others' results end at the images that the strongest attacks saw
        n = min(n, 200)
    strongest = min(cells, key=lambda cell: cell.outcomes[:n].count("1"))
    return Worst(
        model=model,
        classifier=classifier,
        purifier=purifier,
        clean=next(cell.accuracy for cell in cells if cell.attack.mode == "none"),
        blind=withstood(cell for cell in cells if cell.attack.mode in ("none", *BLIND)),
        worst=withstood(cell.model_copy(update={"outcomes": cell.outcomes[:n]}) for cell in cells),
        n=n,
        strongest=strongest.attack.name,
    )

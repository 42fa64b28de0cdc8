"""What remains of a defence under every attack that was tried on it: image by image, not attack by attack."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from training.attacks import BLIND, BY_QUERIES, AttackSettings
from training.evaluate import Cell
from training.results import Bench, Result, Rows, benches

# Plans with tables or pictures of their own: those that vary one length on fewer images, with shorter attacks, which in a worst
# case would only cut the images; and that of another norm.
APART = ("budgets", "steps", "l2")


@dataclass(frozen=True)
class Worst:
    """A defence's accuracies, shares in [0, 1]; None where nothing of the kind was tried.

    clean: as the images come. blind: of images right as they come and under every attack on the classifier alone; transfer:
    and under every one made on another classifier; adaptive: under every attack that knows the defence, by gradients; queries:
    by its answers alone. Without a purifier the attacks on the classifier know all there is: they are its adaptive ones too.
    worst: of images right under all of these. n: the images that were in all of them, for `blind` and so on the images that
    were in all of that kind. strongest: the one attack with the lowest accuracy among the n.

    again: for a defence that draws random numbers the lowest mean, over fresh seeds, of what adaptive attacks sent; None where
    nothing of the strongest one's mode was tried so.
    alone: the bare classifier's accuracy under AutoAttack, on these n images. passes: forward and backward ones of a clean image.
    """

    bench: Bench
    purifier: str
    clean: float | None
    blind: float | None
    transfer: float | None
    adaptive: float | None
    queries: float | None
    worst: float
    n: int
    strongest: str
    again: float | None = None
    alone: float | None = None
    passes: tuple[float, float] | None = None

    @property
    def model(self) -> str:
        return self.bench.model

    @property
    def classifier(self) -> str:
        return self.bench.classifier


def wilson(share: float, n: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's 95 % interval of a binomial share, as shares in [0, 1]."""
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def withstood(cells: Iterable[Cell]) -> float:
    """Share of the images that are right in every one of the cells; of as many as the shortest has."""
    images = list(zip(*(cell.outcomes for cell in cells), strict=False))
    return sum(all(outcome == "1" for outcome in image) for image in images) / len(images)


def transferred(attack: AttackSettings, classifier: str) -> bool:
    """Whether its images were made on another classifier."""
    return attack.source not in (None, classifier)


def kind_of(attack: AttackSettings, classifier: str) -> str:
    """What an attacker of this classifier had to know: none, blind, transfer, adaptive or queries."""
    if attack.mode == "none":
        return "none"
    if attack.mode in BLIND and not attack.aware:
        return "transfer" if transferred(attack, classifier) else "blind"
    return "queries" if attack.mode in BY_QUERIES else "adaptive"


def worst_of(results: Sequence[Result]) -> list[Worst]:
    """Every defence of these results, the one with the most left first; files of one classifier are taken together.

    Left out: what nobody attacked itself, since images made for something else say little of it; other norms and larger
    budgets; the plans that stand apart.
    """
    whole = [result for result in results if result.plan not in APART]
    rows = [row for bench, found in benches(whole).items() for row in _worst_of_bench(bench, found)]
    return sorted(rows, key=lambda row: (row.model, -row.worst, -(row.clean or 0)))


def _worst_of_bench(bench: Bench, rows: Rows) -> list[Worst]:
    cells = {
        purifier: [each.cell for each in measured if each.cell.attack.stays_within(bench.budget)]
        for purifier, measured in rows.items()
    }
    cells = {purifier: mine for purifier, mine in cells.items() if _attacked(bench.classifier, purifier, mine)}
    images = {purifier: min(cell.n for cell in mine) for purifier, mine in cells.items()}
    others = [n for purifier, n in images.items() if purifier != "none"]
    if "none" in images and others:  # others' results end at the images that the strongest attacks saw
        images["none"] = min(images["none"], max(others))
    bare = [cell for cell in cells.get("none", []) if _is_autoattack(cell.attack)]
    return [_worst(bench, purifier, mine, images[purifier], bare) for purifier, mine in cells.items()]


def _is_autoattack(attack: AttackSettings) -> bool:
    return attack.mode == "autoattack" and attack.attack == "standard"


def _attacked(classifier: str, purifier: str, cells: Sequence[Cell]) -> bool:
    """Whether one of the attacks knew the defence; without a purifier that is one on the classifier's own labels."""
    if purifier == "none":
        own = [cell.attack for cell in cells if not transferred(cell.attack, classifier)]
        return any(attack.mode in BLIND and attack.mode != "features" for attack in own)
    return any(cell.attack.aware for cell in cells)


def _worst(bench: Bench, purifier: str, cells: Sequence[Cell], n: int, bare: Sequence[Cell]) -> Worst:
    def under(kinds: Sequence[str]) -> float | None:
        mine = [cell for cell in cells if kind_of(cell.attack, bench.classifier) in kinds]
        return withstood(clean + mine) if mine else None

    clean = sorted((c for c in cells if c.attack.mode == "none"), key=lambda c: (-c.n, c.forward is None))[:1]
    strongest = min(cells, key=lambda cell: cell.outcomes[:n].count("1"))
    aware = [cell for cell in cells if kind_of(cell.attack, bench.classifier) == "adaptive"]
    spent = clean and (clean[0].forward, clean[0].backward)
    return Worst(
        bench=bench,
        purifier=purifier,
        clean=clean[0].accuracy if clean else None,
        blind=under(["blind"]),
        transfer=under(["transfer"]),
        adaptive=under(["blind", "adaptive"] if purifier == "none" else ["adaptive"]),
        queries=under(["queries"]),
        worst=withstood(first(cell, n) for cell in cells),
        n=n,
        strongest=strongest.attack.name,
        again=_again(aware),
        alone=min((withstood([first(cell, n)]) for cell in bare), default=None),
        passes=(spent[0], spent[1]) if spent and spent[0] is not None and spent[1] is not None else None,
    )


def _again(aware: Sequence[Cell]) -> float | None:
    redrawn = [(cell.attack.mode, cell.redrawn.mean) for cell in aware if cell.redrawn]
    if not redrawn or min(aware, key=lambda cell: cell.accuracy).attack.mode not in dict(redrawn):
        return None
    return min(mean for _, mean in redrawn)


def first(cell: Cell, n: int) -> Cell:
    """The cell as if it had been measured on its first n images."""
    return cell.model_copy(update={"outcomes": cell.outcomes[:n], "n": n})

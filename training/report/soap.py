"""SOAP's Tables 1 to 4 and Fig. 5; AID's Fig. 4 and Reverse's Table 6 are of Fig. 5's form."""

from collections.abc import Iterable, Sequence

from training.evaluate import Cell
from training.paper import REVERSE
from training.report.layout import beside, kept, noted, percent, table, theirs
from training.report.left_out import LEFT_OUT
from training.results import Planned, Result, planned

WHITE_BOX = {
    "none": "no attack",
    "fgsm": "FGSM",
    "pgd": "PGD",
    "cw": "C&W",
    "deepfool": "DeepFool",
    "two-view": "two-view",
    "bpda": "BPDA",
    "unrolled": "unrolled",
}


def white_box(results: Sequence[Result], model: str) -> str:
    """Tables 1 to 3, for MNIST, CIFAR-10 and CIFAR-100, with adaptive attacks beside them."""
    shown = _table(planned(results, "paper-soap", model), WHITE_BOX)
    note = LEFT_OUT.get(f"SOAP, {model}")
    return noted(shown, note) if note else shown


def black_box(results: Sequence[Result]) -> str:
    """Table 4: FGSM on substitutes that the defence's labels have trained."""
    found = planned(results, "paper-soap", "mnist")
    heads = {"none": "no attack", "substitute-fcn": "by an FCN", "substitute-cnn": "by a CNN"}
    return noted(_table(found, heads), LEFT_OUT["SOAP, 4"]) if len(kept(heads, found)) > 1 else ""


def _table(found: Sequence[Planned], heads: dict[str, str]) -> str:
    heads = kept(heads, found)
    return table(["classifier", "purifier", *heads.values()], _rows(found, heads))


def _rows(found: Sequence[Planned], heads: Iterable[str]) -> Iterable[list[str]]:
    for each in found:
        for purifier in each.purifiers():
            for oracle in (False, True):
                if any(attack in each.of(purifier, oracle) for attack in heads):
                    shown = [beside(each, purifier, attack, oracle) for attack in heads]
                    yield [each.classifier, f"`{purifier}`" + (", oracle" if oracle else ""), *shown]


def joint(results: Sequence[Result], plan: str) -> str:
    """Accuracy against beta, the weight of the purifier's own loss in what the attacker ascends (SOAP Eq. 9).

    At 0 it is the plan's PGD, which doesn't ask the defence, on the same images.
    """
    found = planned(results, plan)
    weights = sorted({cell.attack.weight for each in found for cell in each.cells if _is_joint(cell)} | {0.0})
    rows = [row for each in found for purifier in each.purifiers() for row in _against_beta(each, purifier, weights)]
    of_paper = _reverses_own(weights) if rows and plan == "paper-reverse" else []
    shown = table(["classifier", "purifier", *(f"{weight:g}" for weight in weights), "n"], [*rows, *of_paper])
    return noted(shown, LEFT_OUT["Reverse, 6"]) if of_paper else shown


def _is_joint(cell: Cell) -> bool:
    return cell.attack.name.startswith("joint=")


def _against_beta(each: Planned, purifier: str, weights: Sequence[float]) -> Iterable[list[str]]:
    """Before purification, the classifier alone on the images that were sent, and after it."""
    mine = each.of(purifier)
    found = {cell.attack.weight: cell for cell in mine.values() if _is_joint(cell)}
    if found:
        n = min(cell.n for cell in found.values())
        before = {weight: cell.bare for weight, cell in found.items() if cell.n == n and cell.bare is not None}
        after = {weight: cell.outcomes[:n].count("1") / n for weight, cell in found.items()}
        for name, shares, cells in (("before ", before, each.of("none")), ("", after, mine)):
            if blind := cells.get("pgd") or cells.get("pgd-50"):
                shares[0.0] = blind.outcomes[:n].count("1") / n
            if shares:
                told = [percent(shares.get(weight)) for weight in weights]
                yield [each.classifier, f"{name}`{purifier}`", *told, str(n)]


def _reverses_own(weights: Sequence[float]) -> list[list[str]]:
    heads = [f"joint={weight:g}" if weight else "pgd-50" for weight in weights]
    rows = {"before `reverse`": REVERSE["resnet18-at", "none"], "`reverse`": REVERSE["resnet18-at", "reverse"]}
    return [["the paper's", name, *theirs(figures, heads), ""] for name, figures in rows.items()]


def variants(results: Sequence[Result]) -> str:
    """Every variant of a comparison, by what the choice of the default went by."""
    heads = {name: WHITE_BOX[name] for name in ("none", "fgsm", "pgd")}
    cells = {(cell.purifier, cell.attack.name): cell for result in results for cell in result.cells}
    names = dict.fromkeys(purifier for purifier, _ in cells)
    return table(
        ["variant", *heads.values()],
        [[name, *(percent(cells[name, attack].accuracy) for attack in heads)] for name in names],
    )

"""SOAP's Tables 1 to 4 and Fig. 5; AID's Fig. 4 and Reverse's Table 6 are of Fig. 5's form."""

from collections.abc import Iterable, Sequence

from training.evaluate import Cell
from training.outcomes import first
from training.paper import REVERSE
from training.report.layout import beside, kept, percent, table
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
    return _table(planned(results, "paper-soap", model), WHITE_BOX)


def black_box(results: Sequence[Result]) -> str:
    """Table 4: FGSM on substitutes that the defence's labels have trained."""
    found = planned(results, "paper-soap", "mnist")
    heads = {"none": "no attack", "substitute-fcn": "by an FCN", "substitute-cnn": "by a CNN"}
    return _table(found, heads) if len(kept(heads, found)) > 1 else ""


def _table(found: Sequence[Planned], heads: dict[str, str]) -> str:
    heads = kept(heads, found)
    return table(["classifier", "purifier", *heads.values()], _rows(found, heads))


def _rows(found: Sequence[Planned], heads: Iterable[str]) -> Iterable[list[str]]:
    for each in found:
        for purifier in each.purifiers():
            for oracle in (False, True):
                mine = each.of(purifier, oracle)
                shown = [beside(each, mine.get(attack)) for attack in heads]
                if any(shown):
                    yield [each.classifier, f"`{purifier}`" + (", oracle" if oracle else ""), *shown]


def joint(results: Sequence[Result], plan: str) -> str:
    """Accuracy against beta, the weight of the purifier's own loss in what the attacker ascends (SOAP Eq. 9).

    At 0 it is the plan's PGD, which doesn't ask the defence, on the same images.
    """
    found = planned(results, plan)
    weights = sorted({cell.attack.weight for each in found for cell in each.cells if _is_joint(cell)} | {0.0})
    rows = [row for each in found for purifier in each.purifiers() if (row := _against_beta(each, purifier, weights))]
    if plan == "paper-reverse" and rows:
        for purifier, name in (("none", "without"), ("reverse", "with")):
            theirs = REVERSE["resnet18-at", purifier]
            shown = [theirs.get(f"joint={weight:g}" if weight else "pgd-50") for weight in weights]
            rows.append(["the paper's", name, *("" if share is None else f"({share:.1f})" for share in shown), ""])
    return table(["classifier", "purifier", *(f"{weight:g}" for weight in weights), "n"], rows)


def _is_joint(cell: Cell) -> bool:
    return cell.attack.name.startswith("joint=")


def _against_beta(each: Planned, purifier: str, weights: Sequence[float]) -> list[str]:
    mine = each.of(purifier)
    found = {cell.attack.weight: cell for cell in mine.values() if _is_joint(cell)}
    if not found:
        return []
    n = min(cell.n for cell in found.values())
    blind = mine.get("pgd") or mine.get("pgd-50")
    if blind is not None:
        found[0.0] = blind
    right = [first(found[weight], n).outcomes if weight in found else "" for weight in weights]
    shown = [percent(outcomes.count("1") / n) if outcomes else "" for outcomes in right]
    return [each.classifier, f"`{purifier}`", *shown, str(n)]


def variants(results: Sequence[Result]) -> str:
    """Every variant of a comparison, by what the choice of the default went by."""
    heads = {name: WHITE_BOX[name] for name in ("none", "fgsm", "pgd")}
    cells = {(cell.purifier, cell.attack.name): cell for result in results for cell in result.cells}
    names = dict.fromkeys(purifier for purifier, _ in cells)
    return table(
        ["variant", *heads.values()],
        [[name, *(percent(cells[name, attack].accuracy) for attack in heads)] for name in names],
    )

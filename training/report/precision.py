"""What another precision of the networks does to accuracy: the same command in each, side by side."""

from collections.abc import Sequence

from training.evaluate import Cell
from training.report.layout import percent, table
from training.results import Result

ATTACKS = {"none": "clean", "pgd": "PGD"}


def precisions(results: Sequence[Result]) -> str:
    """Accuracy in fp32 / in bf16 by classifier and purifier, and how many images it turns from right to wrong or back."""
    exact = {result.classifier: result for result in results if result.precision == "fp32"}
    rows = []
    for rough in results:
        if rough.precision == "fp32" or rough.classifier not in exact:
            continue
        for purifier in rough.purifiers():
            one, other = (_by_attack(each, purifier) for each in (exact[rough.classifier], rough))
            shown = [_beside(one.get(name), other.get(name)) for name in ATTACKS]
            n = str(min(cell.n for cell in other.values()))
            rows.append([rough.classifier, f"`{purifier}`", n, *(text for pair in shown for text in pair)])
    heads = [text for attack in ATTACKS.values() for text in (f"{attack}: fp32 / bf16", "changed")]
    return table(["classifier", "purifier", "n", *heads], rows)


def _by_attack(result: Result, purifier: str) -> dict[str, Cell]:
    return {cell.attack.name: cell for cell in result.of(purifier)}


def _beside(exact: Cell | None, rough: Cell | None) -> tuple[str, str]:
    if exact is None or rough is None:
        return "", ""
    changed = sum(before != after for before, after in zip(exact.outcomes, rough.outcomes, strict=True))
    return f"{percent(exact.accuracy)} / {percent(rough.accuracy)}", percent(changed / rough.n)

"""Every defence in one line, by what no attack of any mode took from it, image by image."""

from collections.abc import Sequence

from training.outcomes import Worst, withstood, worst_of
from training.paper import claim
from training.report.layout import interval, percent, table
from training.results import Planned, Result, planned

LEGEND = """\
Shares of right answers, in percent, image by image: a column counts an image only if it is right as it comes and under every
attack of that kind. Attacks stay in the l_inf ball of the data set's budget (CIFAR-10 8/255, MNIST 0.3, where no other is
said). An empty cell: nothing of the kind was measured.

- **clean**: without an attack.
- **blind**: attacks on the classifier alone, by who doesn't know of the purifier. **transfer**: those made on other classifiers.
- **adaptive**: attacks by gradient that know the whole defence; for `none`, where the classifier is the defence, those on the
  classifier. **queries**: by its answers alone (200 queries an image each of Square and RayS; substitutes).
- **worst**: under all of these, on the first n images, which were in all of them, with Wilson's 95 % interval. The columns
  before it are on all the images that they have (with the shipped plans 1000 where nobody knows the purifier), so one of them
  can lie a little below **worst**. **strongest** is the one attack that left least.
- A defence that draws random numbers was asked again and again during an adaptive attack, and counts as broken if one answer
  was wrong. *Again*: what was sent then, tried with fresh seeds, their mean; the least over the attacks.
- **alone**: the bare classifier under AutoAttack, on these n images. **paper**: the best claim of the paper with its mode, on the
  network that it names.
- **passes**: forward + backward ones that a clean image costs."""

LONG = ("model", "classifier", "purifier", "clean", "blind", "transfer", "adaptive", "queries", "worst", "95 %", "n")


def overall(results: Sequence[Result], short: bool = False) -> str:
    """Every defence; in short without VGGs, chains and twins, and with fewer columns."""
    found = worst_of(results)
    names = _names(found)
    if short:
        heads = [*LONG[:7], "worst", "95 %", "strongest", "passes"]
        return table(heads, [_short(row, names[id(row)]) for row in found if not _aside(row)])
    heads = [*LONG, "strongest", "alone", "paper", "passes"]
    return table(heads, [_long(row, names[id(row)]) for row in found])


IN_L2 = {
    "none": "clean",
    "pgd": "PGD",
    "autoattack": "AutoAttack",
    "bpda": "BPDA",
    "bpda-t": "BPDA, targeted",
    "end-to-end-t": "end to end, targeted",
    "unrolled": "unrolled",
    "bpda-eot": "BPDA, EOT",
    "end-to-end-eot": "end to end, EOT",
    "square": "Square",
}


def in_l2(results: Sequence[Result]) -> str:
    """Plan `l2`: each attack by itself, and what all of them together leave."""
    found = [_l2_row(each, purifier) for each in planned(results, "l2") for purifier in each.purifiers()]
    heads = ["classifier", "purifier", "l_2 budget", *IN_L2.values(), "worst", "95 %", "n"]
    return table(heads, [row for _, row in sorted(found, key=lambda each: -each[0])])


def _l2_row(of: Planned, purifier: str) -> tuple[float, list[str]]:
    cells = of.of(purifier)
    shown = [percent(cells[name].accuracy if name in cells else None) for name in IN_L2]
    left, n = withstood(cells.values()), min(cell.n for cell in cells.values())
    budget = max(cell.attack.epsilon for cell in cells.values())
    return left, [of.classifier, f"`{purifier}`", f"{budget:.3g}", *shown, percent(left), interval(left, n), str(n)]


def _aside(row: Worst) -> bool:
    twin = "+" in row.purifier or row.purifier.endswith(("-paper", "-dynamic"))
    return twin or row.classifier.startswith("vgg")


def _names(found: Sequence[Worst]) -> dict[int, list[str]]:
    """Model, classifier and purifier; where a model was measured in several ways, with the way."""
    ways: dict[str, set[tuple[float, str]]] = {}
    for row in found:
        ways.setdefault(row.model, set()).add((row.bench.budget, row.bench.data))
    told = {id(row): f", {row.bench.budget:.4g}, {row.bench.data}" if len(ways[row.model]) > 1 else "" for row in found}
    return {id(row): [row.model, row.classifier + told[id(row)], f"`{row.purifier}`"] for row in found}


def _start(row: Worst, names: Sequence[str]) -> list[str]:
    adaptive = percent(row.adaptive) + ("" if row.again is None else f" (again: {percent(row.again)})")
    return [*names, percent(row.clean), percent(row.blind), percent(row.transfer), adaptive]


def _short(row: Worst, names: Sequence[str]) -> list[str]:
    worst = percent(row.worst), interval(row.worst, row.n)
    return [*_start(row, names), *worst, row.strongest, _passes(row)]


def _long(row: Worst, names: Sequence[str]) -> list[str]:
    worst = percent(row.queries), percent(row.worst), interval(row.worst, row.n), str(row.n)
    paper = claim(row.model, row.classifier, row.purifier)
    told = "" if paper is None else f"{paper.percent:.2f}: {paper.mode}"
    return [*_start(row, names), *worst, row.strongest, percent(row.alone), told, _passes(row)]


def _passes(row: Worst) -> str:
    return "" if row.passes is None else " + ".join(f"{count:.0f}" for count in row.passes)

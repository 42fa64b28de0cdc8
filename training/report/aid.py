"""AID's Tables 1 and 7, 3 and 10, 4, 11 and 13: purifiers beside a frozen classifier, under attacks on that classifier alone."""

from collections.abc import Mapping, Sequence

from training import paper
from training.evaluate import Cell
from training.outcomes import withstood
from training.report.layout import beside, kept, noted, percent, table
from training.report.left_out import LEFT_OUT
from training.results import Planned, Result, planned

FIVE = {"none": "clean", "pgd": "PGD", "cw": "C&W", "deepfool": "DF", "mim": "MIM"}
BLIND = {"none": "no attack", "fgsm": "FGSM", "pgd": "PGD", "pgd-100": "PGD-100", "mim": "MIM", "deepfool": "DeepFool"}
BLIND |= {"cw": "C&W", "features": "features"}
AWARE = {"bpda": "BPDA", "bpda-eot": "BPDA, EOT", "unrolled": "unrolled", "end-to-end": "end to end"}

Elsewhere = Mapping[str, tuple[float, float]]


def exhaustive(results: Sequence[Result]) -> str:
    """Tables 3 and 10: attacks that are blind to the purifier, their worst case image by image, and others."""
    return noted(attacked(results, FIVE), LEFT_OUT["AID, 3 and 10"])


def attacked(results: Sequence[Result], heads: Mapping[str, str]) -> str:
    """The form of Tables 3 and 10 with any blind attacks."""
    found = planned(results, "paper-aid")
    aware = kept(AWARE, found)
    rows = []
    for each, purifier, mine in _defences(found):
        all_there = [mine[name] for name in heads if name in mine]
        worst = percent(withstood(all_there)) if len(all_there) == len(heads) else ""
        shown = [beside(each, purifier, name) for name in heads]
        knowing = [beside(each, purifier, name) for name in aware]
        rows.append([each.classifier, f"`{purifier}`", *shown, worst, *knowing])
    return table(["classifier", "purifier", *heads.values(), "worst of these", *aware.values()], rows)


def _defences(found: Sequence[Planned]) -> list[tuple[Planned, str, dict[str, Cell]]]:
    return [(each, purifier, each.of(purifier)) for each in found for purifier in each.purifiers()]


def worst(results: Sequence[Result]) -> str:
    """Tables 1 and 7: the lowest of Table 3's columns, the purifier alone (natural training) and as an add-on."""
    found = planned(results, "paper-aid")
    lowest: dict[str, dict[str, str]] = {}
    for each in found:
        for purifier in each.purifiers():
            mine = each.of(purifier)
            if all(name in mine for name in FIVE):
                paper_row = paper.AID.get((each.classifier, purifier))
                told = "" if paper_row is None else f" ({min(paper_row.values()):.1f})"
                share = min(mine[name].accuracy for name in FIVE)
                lowest.setdefault(purifier, {})[each.classifier] = percent(share) + told
    heads = [each.classifier for each in found]
    rows = [[f"`{purifier}`", *(shown.get(head, "") for head in heads)] for purifier, shown in lowest.items()]
    told = _elsewhere("by the network's training", paper.AID_SVHN_WORST)
    return _with(table(["purifier", *heads], rows), told, "AID, 1 and 7")


def sensitivity(results: Sequence[Result]) -> str:
    """Table 11: PGD of 40 steps by its budget in 255ths, and of 8/255 by its steps."""
    found = planned(results, "paper-aid")
    budgets = kept({f"pgd-eps-{eps}": f"{eps}/255" for eps in paper.AID_SVHN_BUDGETS}, found)
    steps = kept({f"pgd-iter-{steps}": f"{steps} steps" for steps in paper.AID_SVHN_ITERATIONS}, found)
    heads = budgets | steps
    rows = [
        [each.classifier, f"`{purifier}`", *(beside(each, purifier, name) for name in heads)]
        for each, purifier, mine in _defences(found)
        if any(name in mine for name in heads)
    ]
    told = _elsewhere("by budget, in 255ths", paper.AID_SVHN_BUDGETS), _elsewhere("by steps", paper.AID_SVHN_ITERATIONS)
    over = f"over Madry et al.'s network {'; '.join(told)}"
    return _with(table(["classifier", "purifier", *heads.values()], rows), over, "AID, 11")


def black_box(results: Sequence[Result]) -> str:
    """Table 4: queries, and images made on the same and on other networks."""
    found = planned(results, "standard")
    heads = {"square": "Square, on the defence", "pgd": "PGD on the classifier", "apgd-ce": "APGD on the classifier"}
    heads |= {
        f"transfer-{source}": f"APGD on {source}" for source in ("vgg19-natural", "resnet18-natural", "resnet18-at")
    }
    told = [_elsewhere(name, row) for name, row in paper.AID_SVHN_BLACK_BOX.items()]
    return _with(_beside_none(found, kept(heads, found)), "; ".join(told), "AID, 4")


def autoattack(results: Sequence[Result]) -> str:
    """Table 13: AutoAttack on the classifier alone."""
    found = planned(results, "standard")
    return _with(
        _beside_none(found, kept({"autoattack": "AutoAttack, on the classifier"}, found)),
        _elsewhere("by the network's training", paper.AID_SVHN_AUTOATTACK),
        "AID, 13",
    )


def _beside_none(found: Sequence[Planned], heads: Mapping[str, str]) -> str:
    """The classifiers that `aid` protects, alone and with it."""
    rows = [
        [each.classifier, f"`{purifier}`", *(beside(each, purifier, name) for name in heads)]
        for each, purifier, mine in _defences([each for each in found if "aid" in each.purifiers()])
        if purifier in ("none", "aid") and any(name in mine for name in heads)
    ]
    return table(["classifier", "purifier", *heads.values()], rows)


def _elsewhere(what: str, found: Elsewhere) -> str:
    return f"{what}: " + ", ".join(f"{name} {before:g} / {after:g}" for name, (before, after) in found.items())


def _with(shown: str, elsewhere: str, name: str) -> str:
    return noted(shown, f"The paper's, on SVHN, without / with its purifier, {elsewhere}.", LEFT_OUT[name])

"""NRP's Tables 1 and 2 at our scale: attacks made on other networks, and distorted features."""

from collections.abc import Sequence

from training import paper
from training.evaluate import Cell
from training.report.layout import beside, kept, noted, percent, table, theirs
from training.report.left_out import LEFT_OUT
from training.results import Result, planned

TRANSFERRED = {"fgsm": "FGSM", "fgsm-ti": "FGSM-TI", "r-fgsm": "R-FGSM", "bim": "BIM", "mim": "MIM", "mim-ti": "MIM-TI"}
TRANSFERRED |= {"dim": "DIM", "dim-ti": "DIM-TI"}
KINDS = {"none": "no attack", "features-8": "features 8/255", "features-16": "features 16/255"}
AWARE = {"bpda": "BPDA 8/255", "end-to-end": "end to end 8/255", "end-to-end-eot": "end to end, EOT, 8/255"}


def transferred(results: Sequence[Result]) -> str:
    """Table 1, lower is better: of the images that are right without an attack the share that is wrong with it."""
    found = planned(results, "paper-nrp")
    made = [cell.attack for each in found for cell in each.cells if "@" in cell.attack.name]
    heads = {kind: head for kind, head in TRANSFERRED.items() if any(a.name.split("@")[0] == kind for a in made)}
    rows = []
    for source in dict.fromkeys(attack.source for attack in made):
        for each in found:
            for purifier in each.purifiers():
                mine = each.of(purifier)
                shown = [_taken(mine.get("none"), mine.get(f"{kind}@{source}")) for kind in heads]
                if any(shown):
                    rows.append([str(source), each.classifier, f"`{purifier}`", *shown])
    if rows:
        rows += [[f"the paper's {made}", "IncRes-v2_ens", "NRP", *theirs(of, heads)] for made, of in paper.NRP.items()]
    return noted(table(["made on", "classifier", "purifier", *heads.values()], rows), LEFT_OUT["NRP, 1"])


def _taken(clean: Cell | None, attacked: Cell | None) -> str:
    """The attack's success, in percent."""
    if clean is None or attacked is None:
        return ""
    pairs = [after for before, after in zip(clean.outcomes, attacked.outcomes, strict=False) if before == "1"]
    return percent(pairs.count("0") / len(pairs)) if pairs else ""


def generality(results: Sequence[Result]) -> str:
    """Table 2's form: accuracy without an attack and under distortions, which NRP was trained against; and who knows it."""
    found = planned(results, "paper-nrp")
    heads = kept(KINDS | AWARE, found)
    rows = [
        [each.classifier, f"`{purifier}`", *(beside(each, purifier, name) for name in heads)]
        for each in found
        for purifier in each.purifiers()
    ]
    told = ", ".join(f"{name} {before:g} / {after:g}" for name, (before, after) in paper.NRP_CDA.items())
    shown = table(["classifier", "purifier", *heads.values()], rows)
    told = f"The paper's, on ImageNet, under a cross-domain attack trained on such images, without / with NRP: {told}."
    return noted(shown, told, LEFT_OUT["NRP, 2"])

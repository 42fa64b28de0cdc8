"""Every attack on every defence: which, on how many images, how sure, at what cost; random defences; suspicion."""

from collections.abc import Sequence

from training.attacks import AttackSettings
from training.detector import Detection, detections
from training.outcomes import APART, kind_of
from training.report.layout import interval, percent, table
from training.results import Bench, Measured, Result, Rows, benches

OUTSIDE = ", outside the budget"


def attacks(bench: Bench, rows: Rows) -> str:
    """One classifier: every attack of every mode on every purifier."""
    heads = ("purifier", "attack", "kind", "plan", "n", "right, %", "95 %", "passes an image", "seconds")
    return table(heads, [_attack(bench, purifier, each) for purifier, mine in rows.items() for each in mine])


def _attack(bench: Bench, purifier: str, measured: Measured) -> list[str]:
    cell = measured.cell
    passes = "" if cell.forward is None or cell.backward is None else f"{cell.forward:.0f} + {cell.backward:.0f}"
    kind = kind_of(cell.attack, bench.classifier) + _outside(bench, cell.attack)
    share = percent(cell.accuracy), interval(cell.accuracy, cell.n)
    text = [cell.attack.text(), kind, measured.plan, str(cell.n), *share, passes, f"{cell.seconds:.0f}"]
    return [f"`{purifier}`", *text]


RANDOM = """\
What a defence that draws random numbers says of the same image differs from time to time. *During the attack*: right at every
look that the attacker took (where none is taken: at the only one). What was sent for the first of these images is then tried
with R fresh seeds: *mean* of their shares, *worst* (right at all R), and right by the *majority* of K."""


def random_defences(results: Sequence[Result]) -> str:
    """Every cell of a defence that draws random numbers."""
    heads = ("classifier", "purifier", "attack", "plan", "n", "during the attack", "R", "images", "mean", "worst of R")
    rows, votes = [], (1, 5, 10)
    for bench, purifiers in benches(results).items():
        for purifier, measured in purifiers.items():
            for each in measured:
                if again := each.cell.redrawn:
                    shares = [
                        percent(again.mean),
                        percent(again.worst),
                        *(percent(again.majority.get(k)) for k in votes),
                    ]
                    names = bench.classifier, f"`{purifier}`", each.cell.attack.name, each.plan, str(each.cell.n)
                    rows.append([*names, percent(each.cell.accuracy), str(again.draws), str(again.n), *shares])
    return table([*heads, *(f"majority of {k}" for k in votes)], rows)


SUSPICION = """\
The purifier's own loss on the image as it comes, against its loss on the same clean test images, from whichever of the plans
kept it: the area under the ROC (50: it tells nothing; below: attacked images look cleaner than clean ones), and after the
stroke the share of attacked images above the threshold that 1 % of those clean images exceed. Both in percent. Where a clean
image fools a defence already, an attacker who knows that defence sends it as it is. NRP and Pix2Pix compute no loss of an
image, so there is no suspicion and no column of them, nor of chains that begin with one."""


def suspicion(results: Sequence[Result], model: str | None = None) -> str:
    """Attacks by purifiers: area under the ROC / share caught at 1 % false alarms. Without the losses there is nothing."""
    found, kinds = dict[str, dict[str, Detection]](), dict[str, str]()
    whole = [result for result in results if model in (None, result.model) and result.plan not in APART]
    for bench, rows in benches(whole).items():
        for purifier, measured in rows.items():
            if mine := _detected(measured):
                found[f"{bench.classifier} `{purifier}`"] = mine
                kinds |= {told: _kind(bench, detection.attack) for told, detection in mine.items()}
    order = [kind + far for kind in ("blind", "transfer", "adaptive", "queries") for far in ("", OUTSIDE)]
    rows_of = [
        [told, kind, *(_point(mine.get(told)) for mine in found.values())]
        for told, kind in sorted(kinds.items(), key=lambda row: order.index(row[1]))
    ]
    return table(["attack", "kind", *found], rows_of)


def _detected(measured: Sequence[Measured]) -> dict[str, Detection]:
    """By an attack's text; of two alike the one with more images, the clean ones too."""
    found: dict[str, Detection] = {}
    for detection in detections(sorted((each.cell for each in measured), key=lambda cell: -cell.n)):
        found.setdefault(detection.attack.text(), detection)
    return found


def _kind(bench: Bench, attack: AttackSettings) -> str:
    """The same in every column: what is made on a certain classifier was transferred to the others."""
    return ("transfer" if attack.source else kind_of(attack, bench.classifier)) + _outside(bench, attack)


def _outside(bench: Bench, attack: AttackSettings) -> str:
    return "" if attack.stays_within(bench.budget) else OUTSIDE


def _point(detection: Detection | None) -> str:
    return "" if detection is None else f"{100 * detection.area:.0f} / {100 * detection.caught:.0f}"

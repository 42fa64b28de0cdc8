"""Every attack on every defence: which, on how many images, how sure, at what cost; random defences; suspicion."""

from collections.abc import Sequence

from training.attacks import AttackSettings
from training.detector import Detection, detections
from training.outcomes import SWEEPS, kind_of
from training.report.layout import interval, percent, table
from training.results import Bench, Measured, Result, Rows, benches


def attacks(bench: Bench, rows: Rows) -> str:
    """One classifier: every attack of every mode on every purifier."""
    heads = ("purifier", "attack", "kind", "plan", "n", "right, %", "95 %", "passes an image", "seconds")
    return table(heads, [_attack(bench, purifier, each) for purifier, mine in rows.items() for each in mine])


def _attack(bench: Bench, purifier: str, measured: Measured) -> list[str]:
    cell = measured.cell
    passes = "" if cell.forward is None or cell.backward is None else f"{cell.forward:.0f} + {cell.backward:.0f}"
    kind = kind_of(cell.attack, bench.classifier)
    outside = "" if cell.attack.stays_within(bench.budget) else ", outside the budget"
    share = percent(cell.accuracy), interval(cell.accuracy, cell.n)
    text = [cell.attack.text(), kind + outside, measured.plan, str(cell.n), *share, passes, f"{cell.seconds:.0f}"]
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
The purifier's own loss on the image as it comes, against its loss on the clean test images of the same evaluation: the area
under the ROC (50: it tells nothing; below: attacked images look cleaner than clean ones), and after the stroke the share of
attacked images above the threshold that 1 % of those clean images exceed. Both in percent. NRP and Pix2Pix compute no loss of an
image, so there is no suspicion and no column of them, nor of chains that begin with one."""


def suspicion(results: Sequence[Result], model: str | None = None) -> str:
    """Attacks by purifiers: area under the ROC / share caught at 1 % false alarms. Without the losses there is nothing."""
    found, kinds = dict[str, dict[str, Detection]](), dict[str, str]()
    for bench, rows in benches([result for result in results if model in (None, result.model)]).items():
        for purifier, measured in rows.items():
            whole = [each for each in measured if each.plan not in SWEEPS]
            inside = [each for each in whole if each.cell.attack.stays_within(bench.budget)]
            if mine := _detected(inside):
                found[f"{bench.classifier} `{purifier}`"] = mine
                kinds |= {each.cell.attack.name: _kind(bench, each.cell.attack) for each in inside}
    order = ("blind", "transfer", "adaptive", "queries")
    names = dict.fromkeys(name for mine in found.values() for name in mine)
    rows_of = [
        [name, kinds[name], *(_point(mine.get(name)) for mine in found.values())]
        for name in sorted(names, key=lambda name: order.index(kinds[name]))
    ]
    return table(["attack", "kind", *found], rows_of)


def _kind(bench: Bench, attack: AttackSettings) -> str:
    """The same in every column: what is made on a certain classifier was transferred to the others."""
    return "transfer" if attack.source else kind_of(attack, bench.classifier)


def _detected(measured: Sequence[Measured]) -> dict[str, Detection]:
    """By attack; each plan's attacks against its own clean images, `standard` first."""
    found: dict[str, Detection] = {}
    for plan in sorted(dict.fromkeys(each.plan for each in measured), key=lambda plan: plan != "standard"):
        for detection in detections([each.cell for each in measured if each.plan == plan]):
            found.setdefault(detection.attack, detection)
    return found


def _point(detection: Detection | None) -> str:
    return "" if detection is None else f"{100 * detection.area:.0f} / {100 * detection.caught:.0f}"

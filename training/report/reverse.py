"""Reverse's Tables 1 and 5; Table 6 is of SOAP's Fig. 5's form, so it is there."""

from collections.abc import Mapping, Sequence

from training.paper import reported
from training.report.layout import beside, kept, noted, table
from training.report.left_out import LEFT_OUT
from training.results import Planned, Result, planned

LINF = {"none": "no attack", "pgd-50": "PGD-50", "pgd-200": "PGD-200", "bim-200": "BIM-200", "cw": "C&W"}
L2 = {"pgd-l2": "PGD-200", "cw-l2": "C&W"}
AWARE = {"bpda": "BPDA", "bpda-eot": "BPDA, EOT", "unrolled-eot": "unrolled, EOT"}


def gains(results: Sequence[Result]) -> str:
    """Table 1: standard inference beside the purifier's, and the gain; then who knows it."""
    return noted(_table(results, LINF, AWARE), LEFT_OUT["Reverse, 1"])


def gains_l2(results: Sequence[Result]) -> str:
    """Table 5: the same in l_2."""
    return noted(_table(results, L2, {}), LEFT_OUT["Reverse, 5"])


def _table(results: Sequence[Result], heads: Mapping[str, str], aware: Mapping[str, str]) -> str:
    rows = []
    for each in planned(results, "paper-reverse"):
        for attack, head in kept({**heads, **aware}, [each]).items():
            ours = each.of("reverse").get(attack)
            told = head if ours is None or attack not in aware else f"{head}, first {ours.n}"
            both = [beside(each, purifier, attack) for purifier in ("none", "reverse")]
            rows.append([each.classifier, told, *both, _gain(each, attack)])
    return table(["classifier", "attack", "standard", "`reverse`", "gain"], rows)


def _gain(each: Planned, attack: str) -> str:
    standard, ours = each.of("none").get(attack), each.of("reverse").get(attack)
    if standard is None or ours is None:
        return ""
    before, after = (
        reported(each.plan, each.bench.model, each.classifier, name, attack) for name in ("none", "reverse")
    )
    told = "" if before is None or after is None else f" ({100 * (after - before):+.1f})"
    return f"{100 * (ours.accuracy - standard.accuracy):+.1f}{told}"

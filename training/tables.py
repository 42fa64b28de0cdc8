"""Markdown tables from the committed results: `python -m training.tables` rewrites those in the pages.

A table stands between `<!-- table:NAME -->` and `<!-- end -->`. No accuracy there is typed by hand, and a test compares
the pages with the results.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from models.catalog import Catalog
from training.evaluate import Cell
from training.outcomes import wilson, withstood, worst_cases

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "results"
PAGES = (ROOT / "README.md", *(ROOT / "docs" / f"{name}.md" for name in ("soap", "addons", "robustness")))
COLUMNS = ("none", "fgsm", "pgd", "two-view", "bpda", "unrolled")

HEADS = "| no attack | FGSM | PGD | two-view | BPDA | unrolled |"


def main() -> None:
    """Rewrite every page."""
    for page in PAGES:
        page.write_text(rendered(page.read_text(encoding="utf-8")), encoding="utf-8")


def rendered(text: str) -> str:
    """`text` with each marked table made anew."""

    def replace(match: re.Match[str]) -> str:
        return f"{match['open']}\n{TABLES[match['name']]()}\n<!-- end -->"

    return re.sub(r"(?P<open><!-- table:(?P<name>[\w-]+) -->)\n.*?<!-- end -->", replace, text, flags=re.S)


def _cells(file: str) -> list[Cell]:
    found: dict[str, Any] = json.loads((RESULTS / file).read_text(encoding="utf-8"))
    return [Cell.model_validate(cell) for cell in found["cells"]]


def soap(data: str, classifiers: Sequence[str]) -> str:
    """Tables 1 and 2 of SOAP with the adaptive attacks beside them; the paper's figure in brackets."""
    rows = [f"| classifier | purifier {HEADS}", "|---" * 8 + "|"]
    for classifier in classifiers:
        cells = _cells(f"{data}-{classifier}-soap-{data}.json")
        for purifier in dict.fromkeys(cell.purifier for cell in cells):
            for oracle in (False, True):
                mine = {c.attack.name: c for c in cells if c.purifier == purifier and c.oracle is oracle}
                if mine:
                    name = f"`{purifier}`" + (", oracle" if oracle else "")
                    shown = [_beside(mine[attack]) if attack in mine else "" for attack in COLUMNS]
                    rows.append(f"| {classifier} | {name} | {' | '.join(shown)} |")
    return "\n".join(rows)


def _beside(cell: Cell) -> str:
    paper = "" if cell.paper is None else f" ({100 * cell.paper:.1f})"
    return f"{100 * cell.accuracy:.1f}{paper}"


BLIND = {"none": "no attack", "fgsm": "FGSM", "pgd": "PGD", "pgd-100": "PGD-100", "mim": "MIM", "deepfool": "DeepFool"}
BLIND |= {"cw": "C&W", "features": "features"}


AWARE = ("bpda", "unrolled", "end-to-end")

# AID's Tables 3 and 10.
AID = {"none": "clean", "pgd": "PGD", "cw": "C&W", "deepfool": "DF", "mim": "MIM"}


def addons(classifiers: Sequence[str], heads: Mapping[str, str] = BLIND) -> str:
    """Purifiers beside a frozen classifier: attacks that are blind to them, their worst case image by image, and others."""
    rows = [
        f"| classifier | purifier | {' | '.join(heads.values())} | worst of these | BPDA | unrolled | end to end |",
        "|---" * (len(heads) + 6) + "|",
    ]
    for classifier in classifiers:
        cells = [cell for cell in _cells(f"cifar10-{classifier}-paper-aid.json") if not cell.oracle]
        for purifier in dict.fromkeys(cell.purifier for cell in cells):
            mine = {cell.attack.name: cell for cell in cells if cell.purifier == purifier}
            shown = [_beside(mine[name]) for name in heads]
            adaptive = " | ".join(_beside(mine[name]) if name in mine else "" for name in AWARE)
            worst = f"{100 * withstood([mine[name] for name in heads]):.1f}"
            rows.append(f"| {classifier} | `{purifier}` | {' | '.join(shown)} | {worst} | {adaptive} |")
    return "\n".join(rows)


def evaluations() -> list[Path]:
    """The results of shipped checkpoints, without the comparisons of settings that were left behind."""
    return sorted(file for file in RESULTS.glob("*.json") if not file.name.startswith("variants-"))


def overall(short: bool = False) -> str:
    """Every defence by what no attack of any mode took from it, image by image; in short without VGGs, chains and twins."""
    rows = [
        "| model | classifier | purifier | clean | blind attacks | every attack | 95 % | strongest |",
        "|---" * 8 + "|",
    ]
    for found in worst_cases(evaluations()):
        twin = "+" in found.purifier or found.purifier.endswith(("-paper", "-dynamic"))
        if short and (twin or found.classifier.startswith("vgg")):
            continue
        low, high = wilson(found.worst, found.n)
        shares = " | ".join(f"{100 * share:.1f}" for share in (found.clean, found.blind, found.worst))
        names = f"{found.model} | {found.classifier} | `{found.purifier}`"
        rows.append(f"| {names} | {shares} | {100 * low:.0f} to {100 * high:.0f} | {found.strongest} |")
    return "\n".join(rows)


def reverse() -> str:
    """Reverse, Table 1: standard inference beside the purifier's, and the gain."""
    cells = {(c.purifier, c.attack.name): c for c in _cells("cifar10-resnet18-at-paper-reverse.json")}
    heads = {"none": "no attack", "pgd-50": "PGD-50", "cw": "C&W"}
    rows = ["| attack | standard | `reverse` | gain |", "|---|---|---|---|"]
    for attack, head in heads.items():
        standard, ours = cells["none", attack], cells["reverse", attack]
        gain = f"{100 * (ours.accuracy - standard.accuracy):+.1f}"
        if standard.paper is not None and ours.paper is not None:
            gain += f" ({100 * (ours.paper - standard.paper):+.1f})"
        rows.append(f"| {head} | {_beside(standard)} | {_beside(ours)} | {gain} |")
    rows.append(f"| BPDA, first {cells['reverse', 'bpda'].n} | | {_beside(cells['reverse', 'bpda'])} | |")
    return "\n".join(rows)


def _pix2pix(classifier: str) -> dict[tuple[str, str], Cell]:
    """By purifier and attack."""
    return {(c.purifier, c.attack.name): c for c in _cells(f"cifar10-{classifier}-paper-pix2pix.json")}


VICTIMS = ("vgg16-natural", "vgg19-natural", "resnet18-natural")


def pix2pix_features() -> str:
    """Pix2Pix, Table 1: distorted features against the classifiers alone."""
    cells = [_pix2pix(victim) for victim in VICTIMS]
    rows = [f"| made on | blocks | budget | {' | '.join(VICTIMS)} |", "|---" * 6 + "|"]
    for net in (16, 19):
        for blocks in (1, 2):
            for eps in (8, 16):
                shown = [_beside(found["none", f"features-vgg{net}-{blocks}-{eps}"]) for found in cells]
                rows.append(f"| VGG-{net} | {blocks} | {eps}/255 | {' | '.join(shown)} |")
    return "\n".join(rows)


def pix2pix_recovery() -> str:
    """Pix2Pix, Table 3: clean and distorted images, with and without the purifiers."""
    heads = " | ".join(f"{victim}: clean | distorted" for victim in VICTIMS)
    rows = [f"| purifier | {heads} |", "|---" * 7 + "|"]
    cells = [_pix2pix(victim) for victim in VICTIMS]
    for purifier in ("none", "nrp", "nrp-dynamic", "pix2pix"):
        shown = [_beside(found[purifier, attack]) for found in cells for attack in ("none", "features-vgg19-2-16")]
        rows.append(f"| `{purifier}` | {' | '.join(shown)} |")
    return "\n".join(rows)


def pix2pix_gradients() -> str:
    """Pix2Pix, Tables 2 and 4: FGSM and PGD made on VGG-19, and what the purifiers leave to who knows them."""
    attacks = {f"{kind}-vgg19-{eps}": f"{kind.upper()} {eps}" for kind in ("fgsm", "pgd") for eps in (8, 16)}
    distorted = {f"features-vgg19-2-{eps}": f"features {eps}" for eps in (8, 16)}
    attacks = {"none": "clean", **distorted, **attacks, "bpda": "BPDA 8", "end-to-end": "end to end 8"}
    rows = [f"| classifier | purifier | {' | '.join(attacks.values())} |", "|---" * (len(attacks) + 2) + "|"]
    for victim in (*VICTIMS, "resnet18-at"):
        found = _pix2pix(victim)
        for purifier in dict.fromkeys(purifier for purifier, _ in found):
            shown = [_beside(found[purifier, name]) if (purifier, name) in found else "" for name in attacks]
            rows.append(f"| {victim} | `{purifier}` | {' | '.join(shown)} |")
    return "\n".join(rows)


def offer_cost() -> str:
    """Every purifier of the zoo: time at three batch sizes, passes and multiply-adds."""
    found: dict[str, Any] = json.loads((ROOT / "benchmarks/results/offer_cost.json").read_text(encoding="utf-8"))
    head, hardware = found["header"], found["header"]["hardware"]
    rows = [
        f"fp32, {hardware['torch_threads']} threads, {hardware['cpu']}, PyTorch {head['versions']['torch']}, median of "
        f"{head['measured_rounds']} interleaved rounds; ms an image.\n",
        "| purifier | classifier | batch 1 | batch 8 | batch 64 | passes | million multiply-adds |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in found["rows"].items():
        ms = " | ".join(f"{row['ms'][batch]['median_ms']:.2f}" for batch in ("1", "8", "64"))
        passes = f"{row['passes']['forward']} + {row['passes']['backward']}"
        rows.append(f"| `{name}` | {row['classifier']} | {ms} | {passes} | {row['multiply_adds'] / 1e6:.0f} |")
    return "\n".join(rows)


def aid_cost() -> str:
    """AID at the paper's width, counted beside what the public code spends."""
    found: dict[str, Any] = json.loads((ROOT / "benchmarks/results/offer_cost.json").read_text(encoding="utf-8"))
    rows = ["| classifier | ours, million multiply-adds | public code | share |", "|---|---|---|---|"]
    for row in found["aid"]:
        ours, public = row["multiply_adds"] / 1e6, row["public_code"] / 1e6
        rows.append(f"| {row['architecture']} | {ours:.0f} | {public:.0f} | {row['share']:.1%} |")
    return "\n".join(rows)


def purifiers() -> str:
    """What the shipped zoo offers, and what it costs."""
    catalog = Catalog.open()
    rows: dict[tuple[str, ...], list[str]] = {}
    for offer in catalog.offers():
        info = catalog.load(offer).info
        change = (
            "" if not info.eps_pfy else f"{255 * info.eps_pfy:.0f}/255" if info.eps_pfy < 0.2 else f"{info.eps_pfy:g}"
        )
        passes = f"{info.forward_passes} + {info.backward_passes}"
        star = " \\*" if catalog.resolve(offer.model, offer.purifier) is offer else ""
        row = f"`{offer.purifier}`", offer.model, offer.entry.note or info.summary, change, passes
        rows.setdefault(row, []).append(offer.classifier + star)
    lines = ["| purifier | model | what it does | largest change | passes | classifiers |", "|---|---|---|---|---|---|"]
    return "\n".join(
        [*lines, *(f"| {' | '.join(row)} | {', '.join(classifiers)} |" for row, classifiers in sorted(rows.items()))]
    )


def detector(data: str, classifiers: Sequence[str]) -> str:
    """Share of images whose incoming objective is above the 95th percentile of clean training images."""
    rows = [f"| classifier | purifier {HEADS}", "|---" * 8 + "|"]
    for classifier in classifiers:
        cells = _cells(f"{data}-{classifier}-soap-{data}.json")
        for purifier in dict.fromkeys(cell.purifier for cell in cells if cell.flagged is not None):
            mine = {c.attack.name: c for c in cells if c.purifier == purifier and c.flagged is not None}
            shown = [f"{100 * (mine[name].flagged or 0):.0f}" if name in mine else "" for name in COLUMNS]
            rows.append(f"| {classifier} | `{purifier}` | {' | '.join(shown)} |")
    return "\n".join(rows)


def variants(file: str) -> str:
    """Every variant of a comparison, and the sum that the choice of the default went by."""
    cells = _cells(file)
    rows = ["| variant | no attack | FGSM | PGD |", "|---|---|---|---|"]
    for name in dict.fromkeys(cell.purifier for cell in cells):
        mine = {c.attack.name: c for c in cells if c.purifier == name}
        rows.append(f"| {name} | " + " | ".join(f"{100 * mine[attack].accuracy:.1f}" for attack in COLUMNS[:3]) + " |")
    return "\n".join(rows)


def cost() -> str:
    """Time of a batch against the published loop, both measured in one run."""
    found: dict[str, Any] = json.loads(
        (ROOT / "benchmarks" / "results" / "purify_cost.json").read_text(encoding="utf-8")
    )
    head, hardware = found["header"], found["header"]["hardware"]
    rows = [
        f"Batch of {head['images']}, fp32, {hardware['torch_threads']} threads, {hardware['cpu']}, PyTorch "
        f"{head['versions']['torch']}, median of {head['measured_rounds']} interleaved rounds.\n",
        "| purifier | ms an image | published loop, ms | ours / published | same label / budget / image, % |",
        "|---|---|---|---|---|",
    ]
    for name, row in found["rows"].items():
        ours, plain, same = row["ours"]["median_ms"], row.get("plain"), row.get("agreement")
        against = f"{plain['median_ms']:.1f} | {row['ratio']:.2f}" if plain else " | "
        shares = ("same_label", "same_budget", "same_image")
        agree = " / ".join(f"{100 * same[share]:.0f}" for share in shares) if same else ""
        rows.append(f"| {name} | {ours:.2f} | {against} | {agree} |")
    return "\n".join(rows)


CIFAR = ("resnet18-natural", "resnet18-soap-rp", "resnet18-soap-lc")
MNIST = ("fcn-soap-dr", "cnn-soap-dr")

TABLES: dict[str, Callable[[], str]] = {
    "purifiers": purifiers,
    "cost": cost,
    "cifar10": lambda: soap("cifar10", CIFAR),
    "mnist": lambda: soap("mnist", MNIST),
    "addons": lambda: addons(("resnet18-natural", "resnet18-at")),
    "overall": overall,
    "overall-short": lambda: overall(short=True),
    "aid": lambda: addons(("resnet18-natural", "resnet18-at"), AID),
    "reverse": reverse,
    "pix2pix-features": pix2pix_features,
    "pix2pix-recovery": pix2pix_recovery,
    "pix2pix-gradients": pix2pix_gradients,
    "offer-cost": offer_cost,
    "aid-cost": aid_cost,
    "detector-cifar10": lambda: detector("cifar10", CIFAR),
    "detector-mnist": lambda: detector("mnist", MNIST),
    "variants-lc": lambda: variants("variants-soap-lc.json"),
    "variants-rp": lambda: variants("variants-soap-rp.json"),
    "variants-dr": lambda: variants("variants-soap-dr.json"),
}

if __name__ == "__main__":
    main()

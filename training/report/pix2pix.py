"""Pix2Pix's Tables 1 to 4: distorted features, FGSM and PGD made on VGGs."""

from collections.abc import Sequence
from itertools import product

from training.paper import PIX2PIX_AT
from training.report.layout import beside, kept, noted, table, theirs
from training.report.left_out import LEFT_OUT
from training.results import Planned, Result, planned


def _found(results: Sequence[Result]) -> list[Planned]:
    """VGGs first, those that were attacked themselves."""
    return sorted(planned(results, "paper-pix2pix"), key=lambda each: not each.classifier.startswith("vgg"))


def features(results: Sequence[Result]) -> str:
    """Table 1: distorted features against the classifiers alone."""
    found = _found(results)
    rows = []
    for net, blocks, eps in product((16, 19), (1, 2), (8, 16)):
        name = f"features-vgg{net}-{blocks}-{eps}"
        if any(name in each.of("none") for each in found):
            shown = [beside(each, "none", name) for each in found]
            rows.append([f"VGG-{net}", str(blocks), f"{eps}/255", *shown])
    heads = ["made on", "blocks", "budget", *(each.classifier for each in found)]
    return noted(table(heads, rows), LEFT_OUT["Pix2Pix, 1"])


def recovery(results: Sequence[Result]) -> str:
    """Table 3: clean and distorted images, with and without the purifiers."""
    found = _found(results)
    heads = [head for each in found for head in (f"{each.classifier}: clean", "distorted")]
    rows = []
    for purifier in dict.fromkeys(purifier for each in found for purifier in each.purifiers()):
        attacks = ("none", "features-vgg19-2-16")
        shown = [beside(each, purifier, attack) for each in found for attack in attacks]
        rows.append([f"`{purifier}`", *shown])
    return noted(table(["purifier", *heads], rows), LEFT_OUT["Pix2Pix, 3"])


def gradients(results: Sequence[Result]) -> str:
    """Tables 2 and 4: FGSM and PGD made on VGG-19, and what the purifiers leave to who knows them."""
    found = _found(results)
    attacks = {f"{kind}-vgg19-{eps}": f"{kind.upper()} {eps}" for kind in ("fgsm", "pgd") for eps in (8, 16)}
    distorted = {f"features-vgg19-2-{eps}": f"features {eps}" for eps in (8, 16)}
    heads = kept({"none": "clean", **distorted, **attacks, "bpda": "BPDA 8", "end-to-end": "end to end 8"}, found)
    rows = [
        [each.classifier, f"`{purifier}`", *(beside(each, purifier, name) for name in heads)]
        for each in found
        for purifier in each.purifiers()
    ]
    if rows:
        rows += [[f"the paper's {net}", training, *theirs(of, heads)] for (net, training), of in PIX2PIX_AT.items()]
    return noted(table(["classifier", "purifier", *heads.values()], rows), LEFT_OUT["Pix2Pix, 2 and 4"])

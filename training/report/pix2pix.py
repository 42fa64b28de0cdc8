"""Pix2Pix's Tables 1 to 4: distorted features, FGSM and PGD made on VGGs."""

from collections.abc import Sequence

from training.report.layout import beside, kept, table
from training.results import Planned, Result, planned


def _found(results: Sequence[Result]) -> list[Planned]:
    """VGGs first, those that were attacked themselves."""
    return sorted(planned(results, "paper-pix2pix"), key=lambda each: not each.classifier.startswith("vgg"))


def features(results: Sequence[Result]) -> str:
    """Table 1: distorted features against the classifiers alone."""
    found = _found(results)
    rows = []
    for net in (16, 19):
        for blocks in (1, 2):
            for eps in (8, 16):
                cells = [each.of("none").get(f"features-vgg{net}-{blocks}-{eps}") for each in found]
                if any(cells):
                    shown = [beside(each, cell) for each, cell in zip(found, cells, strict=True)]
                    rows.append([f"VGG-{net}", str(blocks), f"{eps}/255", *shown])
    return table(["made on", "blocks", "budget", *(each.classifier for each in found)], rows)


def recovery(results: Sequence[Result]) -> str:
    """Table 3: clean and distorted images, with and without the purifiers."""
    found = _found(results)
    heads = [head for each in found for head in (f"{each.classifier}: clean", "distorted")]
    rows = []
    for purifier in dict.fromkeys(purifier for each in found for purifier in each.purifiers()):
        attacks = ("none", "features-vgg19-2-16")
        shown = [beside(each, each.of(purifier).get(attack)) for each in found for attack in attacks]
        rows.append([f"`{purifier}`", *shown])
    return table(["purifier", *heads], rows)


def gradients(results: Sequence[Result]) -> str:
    """Tables 2 and 4: FGSM and PGD made on VGG-19, and what the purifiers leave to who knows them."""
    found = _found(results)
    attacks = {f"{kind}-vgg19-{eps}": f"{kind.upper()} {eps}" for kind in ("fgsm", "pgd") for eps in (8, 16)}
    distorted = {f"features-vgg19-2-{eps}": f"features {eps}" for eps in (8, 16)}
    heads = kept({"none": "clean", **distorted, **attacks, "bpda": "BPDA 8", "end-to-end": "end to end 8"}, found)
    rows = [
        [each.classifier, f"`{purifier}`", *(beside(each, each.of(purifier).get(name)) for name in heads)]
        for each in found
        for purifier in each.purifiers()
    ]
    return table(["classifier", "purifier", *heads.values()], rows)

"""What the papers report, to stand beside what we measure; in percent, as they print it.

- SOAP (Shi et al., ICLR 2021), Tables 1 and 2, of the networks that we have too; `none` is the tables' eps_pfy = 0, and every
  purified cell stands beside the min-aux row.
- AID (Hwang et al. 2021), Tables 3 and 10, CIFAR-10: a WRN-34-10. "Natural training" stands beside our undefended network,
  Madry et al.'s beside our adversarially trained one.
- Reverse (Mao et al., ICCV 2021), Table 1: the smallest of its robust networks (the PreActResNet-18 of Rice et al.).
- Pix2Pix (Mezhoudi, Vu 2022), Tables 1, 3 and 4: the same architectures, ours a quarter as wide.
"""

from collections.abc import Mapping, Sequence

Row = tuple[str, str]  # classifier, purifier
Reported = dict[Row, dict[str, float]]


def _table(attacks: Sequence[str], rows: Mapping[Row, Sequence[float]]) -> Reported:
    return {row: dict(zip(attacks, values, strict=True)) for row, values in rows.items()}


SOAP = _table(
    ("none", "fgsm", "pgd"),
    {
        ("fcn-soap-dr", "none"): (97.57, 29.15, 0.58),
        ("fcn-soap-dr", "min-aux"): (97.56, 66.85, 61.88),
        ("fcn-soap-dr", "oracle"): (98.93, 69.21, 64.76),
        ("cnn-soap-dr", "none"): (99.04, 65.35, 27.54),
        ("cnn-soap-dr", "min-aux"): (98.94, 87.78, 84.92),
        ("cnn-soap-dr", "oracle"): (99.42, 89.40, 86.62),
        ("resnet18-natural", "none"): (90.54, 15.42, 0.00),
        ("resnet18-soap-rp", "none"): (73.64, 5.77, 0.47),
        ("resnet18-soap-rp", "min-aux"): (71.97, 35.80, 38.53),
        ("resnet18-soap-rp", "oracle"): (87.57, 37.60, 39.40),
        ("resnet18-soap-lc", "none"): (86.36, 22.81, 0.15),
        ("resnet18-soap-lc", "min-aux"): (84.07, 51.02, 51.42),
        ("resnet18-soap-lc", "oracle"): (94.06, 59.45, 62.29),
    },
)

AID = _table(
    ("none", "pgd", "cw", "deepfool", "mim"),
    {
        ("resnet18-natural", "none"): (95.44, 0.00, 2.98, 0.01, 0.00),
        ("resnet18-natural", "aid"): (87.84, 2.15, 78.36, 79.55, 1.35),
        ("resnet18-natural", "nrp"): (70.95, 41.02, 62.82, 62.79, 6.60),
        ("resnet18-natural", "nrp+aid"): (66.38, 40.58, 61.04, 60.86, 20.46),
        ("resnet18-at", "none"): (88.72, 51.64, 84.75, 54.81, 52.45),
        ("resnet18-at", "aid"): (88.28, 52.65, 86.87, 72.00, 53.08),
        ("resnet18-at", "nrp"): (86.08, 44.02, 84.06, 70.69, 54.96),
        ("resnet18-at", "nrp+aid"): (86.14, 46.27, 84.53, 70.69, 55.31),
    },
)

REVERSE = _table(
    ("pgd-50", "cw"), {("resnet18-at", "none"): (52.40, 50.33), ("resnet18-at", "reverse"): (54.59, 53.48)}
)

# Tables 1 (nobody purifies) and 3.
_FEATURES = _table(
    ("none", *(f"features-vgg{net}-{blocks}-{eps}" for net in (16, 19) for blocks in (1, 2) for eps in (8, 16))),
    {
        ("vgg16-natural", "none"): (92.06, 69.97, 28.36, 61.89, 14.89, 66.80, 17.22, 68.94, 11.17),
        ("vgg19-natural", "none"): (92.43, 70.66, 31.22, 68.07, 18.76, 66.56, 18.77, 65.49, 9.87),
        ("resnet18-natural", "none"): (87.99, 77.20, 39.72, 75.94, 26.49, 74.30, 24.92, 76.15, 13.80),
    },
) | _table(
    ("none", "features-vgg19-2-16"),
    {
        ("vgg16-natural", "nrp"): (67.06, 69.04),
        ("vgg19-natural", "nrp"): (68.79, 71.35),
        ("resnet18-natural", "nrp"): (74.51, 74.52),
        ("vgg16-natural", "pix2pix"): (84.45, 69.43),
        ("vgg19-natural", "pix2pix"): (84.78, 75.16),
        ("resnet18-natural", "pix2pix"): (85.22, 71.92),
    },
)
_GRADIENTS = _table(  # Table 4
    ("fgsm-vgg19-8", "fgsm-vgg19-16", "pgd-vgg19-8", "pgd-vgg19-16"),
    {
        ("vgg19-natural", "none"): (21.17, 6.39, 7.80, 3.48),
        ("vgg19-natural", "nrp"): (51.52, 25.07, 43.66, 27.73),
        ("vgg19-natural", "pix2pix"): (51.34, 19.38, 38.81, 15.23),
        ("resnet18-natural", "none"): (48.25, 17.87, 29.87, 10.87),
        ("resnet18-natural", "nrp"): (61.01, 42.71, 54.60, 40.69),
        ("resnet18-natural", "pix2pix"): (66.00, 34.02, 54.10, 29.49),
    },
)
PIX2PIX: Reported = {row: {**cells, **_GRADIENTS.get(row, {})} for row, cells in _FEATURES.items()}

# By the plan that measures the same.
PLANS: dict[str, Reported] = {"paper-aid": AID, "paper-reverse": REVERSE, "paper-pix2pix": PIX2PIX}


def reported(plan: str, classifier: str, purifier: str, attack: str, oracle: bool) -> float | None:
    """The paper's figure for a cell of a plan, a share in [0, 1], or None where it has none."""
    if plan in PLANS:
        found = None if oracle else PLANS[plan].get((classifier, purifier), {}).get(attack)
    elif plan != "paper-soap":
        found = None
    else:
        row = "none" if purifier == "none" else "oracle" if oracle else "min-aux"
        found = SOAP.get((classifier, row), {}).get(attack)
    return None if found is None else round(found / 100, 4)

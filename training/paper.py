"""What the papers report, to stand beside what we measure; in percent, as they print it.

- SOAP (Shi et al., ICLR 2021), Tables 1 to 4, of the networks that we have too; `none` is the tables' eps_pfy = 0 or, of networks
  that weren't trained for SOAP, No Def and PGD AT, and every purified cell stands beside the min-aux row.
- AID (Hwang et al. 2021), Tables 3 and 10, CIFAR-10: a WRN-34-10. "Natural training" stands beside our undefended network,
  Madry et al.'s beside our adversarially trained one.
- Reverse (Mao et al., ICCV 2021), Tables 1, 5 and 6: the smallest of its robust networks (the PreActResNet-18 of Rice et al.).
- Pix2Pix (Mezhoudi, Vu 2022), Tables 1, 3 and 4: the same architectures, ours a quarter as wide.

What of these tables has no place beside ours, and why, is in training/report/left_out.py.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Row = tuple[str, str]  # classifier, purifier
Reported = dict[Row, dict[str, float]]


def _table(attacks: Sequence[str], rows: Mapping[Row, Sequence[float]]) -> Reported:
    return {row: dict(zip(attacks, values, strict=True)) for row, values in rows.items()}


_WHITE_BOX = ("none", "fgsm", "pgd", "cw", "deepfool")
SOAP = _table(
    _WHITE_BOX,
    {
        ("fcn-soap-dr", "none"): (97.57, 29.15, 0.58, 0.25, 2.32),
        ("fcn-soap-dr", "min-aux"): (97.56, 66.85, 61.88, 86.81, 87.02),
        ("fcn-soap-dr", "oracle"): (98.93, 69.21, 64.76, 97.88, 97.97),
        ("cnn-soap-dr", "none"): (99.04, 65.35, 27.54, 0.35, 0.69),
        ("cnn-soap-dr", "min-aux"): (98.94, 87.78, 84.92, 74.61, 81.27),
        ("cnn-soap-dr", "oracle"): (99.42, 89.40, 86.62, 98.44, 98.47),
        ("resnet18-natural", "none"): (90.54, 15.42, 0.00, 0.00, 6.26),
        ("resnet18-at", "none"): (74.23, 47.43, 42.11, 3.14, 25.84),  # PGD AT
        ("resnet18-soap-rp", "none"): (73.64, 5.77, 0.47, 0.00, 13.65),
        ("resnet18-soap-rp", "min-aux"): (71.97, 35.80, 38.53, 68.22, 68.44),
        ("resnet18-soap-rp", "oracle"): (87.57, 37.60, 39.40, 79.80, 84.34),
        ("resnet18-soap-lc", "none"): (86.36, 22.81, 0.15, 0.00, 8.52),
        ("resnet18-soap-lc", "min-aux"): (84.07, 51.02, 51.42, 73.95, 74.79),
        ("resnet18-soap-lc", "oracle"): (94.06, 59.45, 62.29, 86.94, 88.88),
    },
)
_BLACK_BOX = _table(  # Table 4
    ("substitute-fcn", "substitute-cnn"),
    {
        ("fcn-soap-dr", "none"): (78.52, 92.72),
        ("fcn-soap-dr", "min-aux"): (90.35, 94.51),
        ("fcn-soap-dr", "oracle"): (94.34, 97.33),
        ("cnn-soap-dr", "none"): (95.25, 97.43),
        ("cnn-soap-dr", "min-aux"): (96.02, 97.80),
        ("cnn-soap-dr", "oracle"): (98.12, 98.81),
    },
)
SOAP = {row: {**cells, **_BLACK_BOX.get(row, {})} for row, cells in SOAP.items()}
SOAP_CIFAR100 = _table(  # Table 3
    _WHITE_BOX,
    {
        ("resnet18-natural", "none"): (65.56, 3.81, 0.01, 0.00, 12.30),
        ("resnet18-at", "none"): (42.15, 21.92, 20.04, 3.57, 17.90),  # PGD AT
        ("resnet18-soap-rp", "none"): (40.47, 2.53, 0.45, 0.03, 11.89),
        ("resnet18-soap-rp", "min-aux"): (35.21, 11.65, 11.73, 32.97, 33.51),
        ("resnet18-soap-rp", "oracle"): (45.57, 12.44, 12.04, 41.13, 46.51),
        ("resnet18-soap-lc", "none"): (57.86, 6.11, 0.01, 0.01, 12.72),
        ("resnet18-soap-lc", "min-aux"): (52.91, 22.93, 27.55, 50.26, 50.57),
        ("resnet18-soap-lc", "oracle"): (69.99, 27.52, 31.82, 62.87, 68.65),
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

# Tables 1, 5 (l_2, 256/255) and 6 (lambda_s from 0.5 to 10; 0 is PGD-50), the latter before and after purification.
REVERSE = _table(
    ("pgd-50", "pgd-200", "bim-200", "cw", "pgd-l2", "cw-l2"),
    {
        ("resnet18-at", "none"): (52.40, 52.34, 52.32, 50.33, 40.00, 38.31),
        ("resnet18-at", "reverse"): (54.59, 54.62, 54.54, 53.48, 41.98, 40.17),
    },
)
_JOINT = _table(
    tuple(f"joint={weight}" for weight in ("0.5", "1", "2", "4", "6", "8", "10")),
    {
        ("resnet18-at", "none"): (53.81, 55.41, 57.81, 60.80, 62.62, 63.81, 64.58),
        ("resnet18-at", "reverse"): (55.61, 56.75, 58.67, 60.81, 62.07, 63.16, 63.68),
    },
)
REVERSE = {row: {**cells, **_JOINT[row]} for row, cells in REVERSE.items()}

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

PIX2PIX_AT = _table(  # Table 4, the same, of networks trained adversarially within 16/255
    ("none", "fgsm-vgg19-8", "fgsm-vgg19-16", "pgd-vgg19-8", "pgd-vgg19-16"),
    {
        ("VGG-19", "none, FGSM AT"): (72.70, 59.02, 38.89, 51.91, 37.73),
        ("VGG-19", "none, PGD AT"): (53.17, 52.30, 50.94, 50.88, 49.64),
        ("ResNet-18", "none, FGSM AT"): (68.49, 55.68, 32.96, 50.18, 32.60),
        ("ResNet-18", "none, PGD AT"): (60.21, 58.46, 55.72, 56.30, 53.89),
    },
)

# Measured on other data, so they stand in the text or in rows of their own, not beside ours. AID's are on SVHN, over Madry et
# al.'s WRN-34-10 and one trained naturally, without and with the purifier: Table 1; Table 4; Table 11 (a) by the attack's budget
# in 255ths, (b) by steps; Table 13.
AID_SVHN_WORST = {"natural training": (0.01, 29.10), "Madry et al.": (22.63, 49.85)}
AID_SVHN_BLACK_BOX = {
    "natural training": {"Square": (0.213, 51.625), "same network": (11.955, 43.178), "VGG-19": (38.55, 43.32)},
    "Madry et al.": {"Square": (16.745, 84.668), "same network": (40.731, 55.025), "VGG-19": (87.31, 86.42)},
}
AID_SVHN_BUDGETS = {
    "1": (57.29, 88.20),
    "2": (49.49, 86.92),
    "4": (42.18, 83.82),
    "8": (34.94, 73.14),
    "12": (38.17, 49.85),
    "16": (22.28, 28.62),
    "32": (1.27, 1.59),
}
AID_SVHN_ITERATIONS = {"40": (38.17, 49.85), "100": (35.64, 48.60), "200": (34.86, 48.34)}
AID_SVHN_AUTOATTACK = {"natural training": (0.004, 35.679), "Madry et al.": (10.134, 64.363)}
# NRP, Table 1, its own rows: by where the attacks were made, the share of them that succeeds against IncRes-v2_ens behind NRP,
# ImageNet, 16/255. Table 2, classification: accuracy without and with NRP under CDA, by what CDA was trained on and its budget.
NRP = {
    made: dict(zip(("fgsm", "fgsm-ti", "mim", "mim-ti", "dim", "dim-ti"), shares, strict=True))
    for made, shares in {
        "Inc-v3": (3.2, 4.8, 4.5, 9.1, 5.1, 11.0),
        "Inc-v4": (3.1, 4.4, 4.8, 10.3, 5.2, 12.5),
        "IncRes-v2": (3.5, 6.9, 7.6, 18.7, 7.5, 20.8),
        "Res-v2-152": (3.4, 6.5, 5.8, 11.9, 6.3, 17.8),
        "ensemble": (3.7, 7.9, 10.1, 27.8, 11.4, 31.9),
    }.items()
}
NRP_CDA = {
    "no attack": (97.8, 95.6),
    "ImageNet 8/255": (83.0, 95.7),
    "ImageNet 16/255": (30.9, 96.0),
    "comics 8/255": (94.0, 95.4),
    "comics 16/255": (56.6, 94.2),
    "paintings 8/255": (71.6, 95.3),
    "paintings 16/255": (23.7, 94.1),
}


@dataclass(frozen=True)
class Claim:
    """A paper's best figure for a defence like ours under attack, in percent, and under which."""

    percent: float
    mode: str


# SOAP: the PGD columns of Tables 1 and 2, min-aux. AID and NRP: the lowest of clean, PGD, C&W, DeepFool and MIM in AID's Tables 3
# and 10, its column "Worst". Reverse: the lowest of Table 1's columns, C&W. Pix2Pix: Table 4, PGD 8/255, made on VGG-19; of
# VGG-16 there is only Table 3, features distorted by 16/255 on VGG-19.
CLAIMS: dict[Row, Claim] = {
    **{
        (classifier, purifier): Claim(SOAP[classifier, "min-aux"]["pgd"], f"PGD, blind, {network}")
        for classifier, purifier, network in (
            ("resnet18-soap-lc", "soap-lc", "ResNet-18"),
            ("resnet18-soap-rp", "soap-rp", "ResNet-18"),
            ("cnn-soap-dr", "soap-dr", "CNN"),
            ("fcn-soap-dr", "soap-dr", "FCN"),
        )
    },
    **{
        row: Claim(min(cells.values()), "worst of five, blind, WRN-34-10, by AID")
        for row, cells in AID.items()
        if row[1] != "none"
    },
    ("resnet18-at", "reverse"): Claim(REVERSE["resnet18-at", "reverse"]["cw"], "C&W, blind, PreActResNet-18"),
    **{
        (classifier, "pix2pix"): Claim(PIX2PIX[classifier, "pix2pix"][attack], mode)
        for classifier, attack, mode in (
            ("resnet18-natural", "pgd-vgg19-8", "PGD, transferred, ResNet-18"),
            ("vgg19-natural", "pgd-vgg19-8", "PGD, blind, VGG-19"),
            ("vgg16-natural", "features-vgg19-2-16", "distorted features, transferred, VGG-16"),
        )
    },
}


def claim(model: str, classifier: str, purifier: str) -> Claim | None:
    """What the paper of a purifier claims for it on MNIST or CIFAR-10; the `-paper` twin of a purifier has the same."""
    return CLAIMS.get((classifier, purifier.removesuffix("-paper"))) if model in ("mnist", "cifar10") else None


# By the plan that measures the same, and the model.
PLANS: dict[tuple[str, str], Reported] = {
    ("paper-soap", "mnist"): SOAP,
    ("paper-soap", "cifar10"): SOAP,
    ("paper-soap", "cifar100"): SOAP_CIFAR100,
    ("paper-aid", "cifar10"): AID,
    ("paper-reverse", "cifar10"): REVERSE,
    ("paper-pix2pix", "cifar10"): PIX2PIX,
}


def reported(plan: str, model: str, classifier: str, purifier: str, attack: str, oracle: bool = False) -> float | None:
    """The paper's figure for a cell of a plan, a share in [0, 1], or None where it has none."""
    soaps = plan == "paper-soap" and purifier != "none"
    row = "oracle" if oracle else "min-aux" if soaps else purifier
    found = PLANS.get((plan, model), {}).get((classifier, row), {}).get(attack)
    return None if found is None else round(found / 100, 4)

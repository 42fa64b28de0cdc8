"""What SOAP reports (Shi et al., ICLR 2021, Tables 1 and 2), to stand beside what we measure; shares, not percent.

Keyed by (classifier, row); a row is (none, fgsm, pgd). `none` is the table's eps_pfy = 0.
"""

ATTACKS = ("none", "fgsm", "pgd")

ROWS: dict[tuple[str, str], tuple[float, float, float]] = {
    ("fcn-soap-dr", "none"): (0.9757, 0.2915, 0.0058),
    ("fcn-soap-dr", "min-aux"): (0.9756, 0.6685, 0.6188),
    ("fcn-soap-dr", "oracle"): (0.9893, 0.6921, 0.6476),
    ("cnn-soap-dr", "none"): (0.9904, 0.6535, 0.2754),
    ("cnn-soap-dr", "min-aux"): (0.9894, 0.8778, 0.8492),
    ("cnn-soap-dr", "oracle"): (0.9942, 0.8940, 0.8662),
    ("resnet18-natural", "none"): (0.9054, 0.1542, 0.0000),
    ("resnet18-soap-rp", "none"): (0.7364, 0.0577, 0.0047),
    ("resnet18-soap-rp", "min-aux"): (0.7197, 0.3580, 0.3853),
    ("resnet18-soap-rp", "oracle"): (0.8757, 0.3760, 0.3940),
    ("resnet18-soap-lc", "none"): (0.8636, 0.2281, 0.0015),
    ("resnet18-soap-lc", "min-aux"): (0.8407, 0.5102, 0.5142),
    ("resnet18-soap-lc", "oracle"): (0.9406, 0.5945, 0.6229),
}


def reported(classifier: str, purifier: str, attack: str, oracle: bool) -> float | None:
    """The paper's figure for a cell, or None where it has none. Every purified cell stands beside its min-aux row."""
    row = "none" if purifier == "none" else "oracle" if oracle else "min-aux"
    values = ROWS.get((classifier, row))
    return values[ATTACKS.index(attack)] if values and attack in ATTACKS else None

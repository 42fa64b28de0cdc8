"""How well a purifier's own loss tells attacked images from clean ones: ROC, the area under it, and its operating points.

An image is suspected if its loss is above a threshold. Clean ones above it are false alarms.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from training.attacks import AttackSettings
from training.evaluate import Cell

FALSE_ALARMS = 0.01  # the operating point


@dataclass(frozen=True)
class Detection:
    """Of one attack. area: under the ROC. caught: share above the threshold that 1 % of the clean images exceed."""

    attack: AttackSettings
    n: int
    area: float
    caught: float


def roc(clean: Tensor, attacked: Tensor) -> tuple[Tensor, Tensor]:
    """False alarms and share caught at every threshold, from the highest down. (N,), (M,) losses -> (K,), (K,) in [0, 1]."""
    thresholds = torch.cat([clean, attacked]).unique().flip(0)
    thresholds = torch.cat([thresholds, thresholds.new_tensor([-torch.inf])])  # (K,)
    return _above(clean, thresholds), _above(attacked, thresholds)


def _above(values: Tensor, thresholds: Tensor) -> Tensor:
    return 1 - torch.searchsorted(values.sort().values, thresholds, right=True) / len(values)


def area(clean: Tensor, attacked: Tensor) -> float:
    """Under the ROC: the chance that an attacked image has the larger loss than a clean one, ties counted half."""
    alarms, caught = roc(clean, attacked)
    return float(torch.trapezoid(caught, alarms))


def caught_at(clean: Tensor, attacked: Tensor, alarms: float = FALSE_ALARMS) -> float:
    """The share of attacked images above a threshold that at most this share of the clean ones exceeds."""
    found, caught = roc(clean, attacked)
    return float(caught[found <= alarms + 1e-9].max())


def losses(cell: Cell) -> Tensor | None:
    """The purifier's loss on each incoming image, (N,); None where it has none or an older file didn't keep it."""
    if cell.objectives is None:
        return None
    return torch.tensor([float(value) for value in cell.objectives.split()], dtype=torch.float64)


def detections(cells: Sequence[Cell]) -> list[Detection]:
    """Of each attack on one purifier against the first of its clean cells; nothing where there are no losses to go by."""
    clean = next((found for cell in cells if cell.attack.mode == "none" if (found := losses(cell)) is not None), None)
    if clean is None:
        return []
    return [
        Detection(cell.attack, cell.n, area(clean, attacked), caught_at(clean, attacked))
        for cell in cells
        if cell.attack.mode != "none" and (attacked := losses(cell)) is not None
    ]

"""Attacks: on a classifier alone (blind.py, library.py), and on a whole defence by who knows it.

Those on the whole defence by gradients are in aware.py, those by its answers in queries.py and substitute.py. `knowing` runs
any of these by the mode of its settings.
"""

from torch import Tensor

from models.catalog import Defense
from training.attacks.asking import Survived
from training.attacks.aware import aware, lacks
from training.attacks.library import autoattack_whole
from training.attacks.queries import decision, square
from training.attacks.settings import BLIND, BY_GRADIENT, BY_QUERIES, PURIFYING, AttackSettings, Mode, Norm
from training.attacks.substitute import SubstituteSettings, substitute_attack

__all__ = [
    "BLIND",
    "BY_GRADIENT",
    "BY_QUERIES",
    "PURIFYING",
    "AttackSettings",
    "Mode",
    "Norm",
    "Survived",
    "applies",
    "knowing",
]


def knowing(
    defense: Defense, x: Tensor, y: Tensor, settings: AttackSettings, first: int = 0, owned: Tensor | None = None
) -> Survived:
    """Attack the whole defence. (N, C, H, W) in [0, 1], (N,) -> N images.

    first: the data set index of x[0], so that what is drawn belongs to its image. owned: (M, C, H, W), images that a
    `substitute`'s attacker has, others than x.

    Raises:
        ValueError: the attack can't be run on this defence, or needs a library that isn't there; the message says which.
    """
    match settings.mode:
        case "square":
            return square(defense, x, y, settings, first)
        case "decision":
            return decision(defense, x, y, settings, first)
        case "substitute":
            if owned is None or not len(owned):
                raise ValueError(f"attack {settings.name!r} needs images that the attacker owns; got none")
            how = SubstituteSettings(architecture=str(settings.attack), seed=settings.seed)
            return substitute_attack(defense, x, y, settings, first, owned, how)
        case "autoattack":
            return autoattack_whole(defense, x, y, settings, first)
        case _:
            return aware(defense, x, y, settings, first)


def applies(defense: Defense, settings: AttackSettings) -> bool:
    """Whether an evaluation runs an attack on a defence: those by gradient need something to go by that others have not."""
    if defense.info.kind == "none" and (settings.mode == "bpda" or settings.whole):  # a blind attack does the same
        return False
    return settings.mode not in BY_GRADIENT or lacks(defense, settings) is None

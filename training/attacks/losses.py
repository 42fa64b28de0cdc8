"""What an attack climbs, from logits: cross entropy and DLR, away from the label or towards another class."""

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional as F

from training.attacks.settings import AttackSettings

# (n, K) -> (n,)
Criterion = Callable[[Tensor], Tensor]


def criterion(settings: AttackSettings, labels: Tensor, target: Tensor | None = None) -> Criterion:
    """The loss of the settings, of images with these labels; towards `target` where there is one. (n,), (n,) -> criterion."""
    if settings.loss == "ce":
        if target is None:
            return lambda logits: F.cross_entropy(logits, labels, reduction="none")
        return lambda logits: -F.cross_entropy(logits, target, reduction="none")
    if target is None:
        return lambda logits: dlr(logits, labels)
    return lambda logits: targeted_dlr(logits, labels, target)


def dlr(logits: Tensor, labels: Tensor) -> Tensor:
    """Difference of logits ratio, Croce and Hein 2020, Eq. (6). (N, K), (N,) -> (N,); above 0 where misclassified.

    Raises:
        ValueError: there are fewer than 3 classes.
    """
    ranked = _ranked(logits, 3)
    # Not the second of those ranked: where two are alike, that may be the label's own.
    other = logits.scatter(1, labels[:, None], float("-inf")).amax(1)
    return -(_of(logits, labels) - other) / (ranked[:, 0] - ranked[:, 2] + 1e-12)


def targeted_dlr(logits: Tensor, labels: Tensor, target: Tensor) -> Tensor:
    """The same towards a class, Eq. (7). (N, K), (N,), (N,) -> (N,).

    Raises:
        ValueError: there are fewer than 4 classes.
    """
    ranked = _ranked(logits, 4)
    scale = ranked[:, 0] - (ranked[:, 2] + ranked[:, 3]) / 2
    return -(_of(logits, labels) - _of(logits, target)) / (scale + 1e-12)


def _ranked(logits: Tensor, least: int) -> Tensor:
    if logits.shape[1] < least:
        raise ValueError(
            f"this DLR loss compares {least} classes; the classifier has {logits.shape[1]}: take loss 'ce'"
        )
    return logits.sort(dim=1, descending=True).values


def _of(logits: Tensor, labels: Tensor) -> Tensor:
    return logits.gather(1, labels[:, None])[:, 0]


def likely_wrong(logits: Tensor, labels: Tensor, rank: int) -> Tensor:
    """The wrong class that is `rank`-th likely, from 0 on. (N, K), (N,) -> (N,).

    Raises:
        ValueError: there are not so many wrong classes.
    """
    if rank + 1 >= logits.shape[1]:
        raise ValueError(f"targets: of {logits.shape[1]} classes {logits.shape[1] - 1} are wrong; asked for {rank + 1}")
    others = logits.scatter(1, labels[:, None], float("-inf"))
    return others.argsort(dim=1, descending=True)[:, rank]

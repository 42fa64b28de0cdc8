"""The Purifier protocol and the registry of purifier kinds.

A *kind* is code (one `@register`ed builder a file); a *purifier* is a kind with settings under a name, and a checkpoint's
card lists those it offers. `soap-lc` and `soap-lc-paper` are two purifiers of one kind.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from models.classifiers import Classifier
from models.registry import Registry


@dataclass(frozen=True)
class PurifierInfo:
    """What a purifier is and costs, independent of the image it works on.

    `eps_pfy` bounds max|x_pfy - x|, in [0, 1] units; None where there is no such bound, 0.0 for `none`.
    The passes count network evaluations of one image, views included, in the worst case. `options`: the fields of
    `Options` that it takes. `random`: whether the seed matters.
    """

    kind: str
    paper: str
    summary: str
    eps_pfy: float | None
    forward_passes: int
    backward_passes: int
    objective: str | None
    options: tuple[str, ...] = ()
    random: bool = False


@dataclass(frozen=True)
class Options:
    """What a single request may change of a purifier; None keeps the card's value.

    epsilon: eps_pfy, in [0, 1] units. steps: T.
    """

    epsilon: float | None = None
    steps: int | None = None

    def given(self) -> list[str]:
        """The names of those that are set."""
        return [name for name, value in vars(self).items() if value is not None]


class OptionError(ValueError):
    """A purifier doesn't take this option; the message says which it takes."""


def refuse_options(kind: str, options: Options) -> None:
    """For purifiers without any.

    Raises:
        OptionError: some are given.
    """
    if options.given():
        raise OptionError(f"purifier {kind!r} takes no options; got {', '.join(options.given())}")


N = TypeVar("N", bound=nn.Module)


class Wish(IntEnum):
    """What whoever sent an image wants between two steps; plain booleans will do where nobody is in a hurry."""

    LEFT = 0  # nobody waits for it any more
    WAITS = 1
    HURRIES = 2  # what has been reached after at least one step is the answer


# Asked between steps: each image's wish.
Wanted = Callable[[], Sequence[Wish | bool]]


@dataclass(frozen=True)
class Purified:
    """What a purifier did to a batch of N images; every field is per image, in the order of the argument.

    image: (N, C, H, W) in [0, 1]. logits: (N, K), how the purifier's classifier reads the purified image.
    epsilon: (N,), the budget chosen, in [0, 1] units. objective_before / objective_after: (N,), the purifier's own loss on
    the incoming and on the purified image; None for a purifier without one. forward_passes / backward_passes: (N,) int64.
    steps: of a chain, what each of its purifiers did.
    """

    image: Tensor
    logits: Tensor
    epsilon: Tensor
    objective_before: Tensor | None
    objective_after: Tensor | None
    forward_passes: Tensor
    backward_passes: Tensor
    steps: tuple["Purified", ...] = ()


class Purifier(Protocol):
    """Undoes a possible perturbation, image by image.

    Promises (tests/contract): shape, dtype, device and range are kept; an image's result does not depend on its neighbours;
    the argument is not modified and no parameter gets a gradient; the same image and seed give the same answer.
    """

    @property
    def info(self) -> PurifierInfo: ...

    def purify(self, x: Tensor, seeds: Sequence[int] | None = None, wanted: Wanted | None = None) -> Purified:
        """x: (N, C, H, W) float32 in [0, 1]; seeds: N integers for purifiers that draw random numbers.

        Work on images that nobody waits for stops at the next step; what comes back for them means nothing. One that hurries
        gets what a purifier that works in steps has reached; others have nothing to cut short.

        Raises:
            ValueError: it draws random numbers and got no seeds.
        """
        ...

    def with_options(self, options: Options) -> "Purifier":
        """The same purifier with a request's options; `info.options` says which it takes.

        Raises:
            ValueError: an option has a value that it can't take.
        """
        ...

    def logits(self, x: Tensor) -> Tensor:
        """How an already purified image is classified, differentiable. (N, C, H, W) in [0, 1] -> (N, K)."""
        ...


@dataclass(frozen=True)
class Material:
    """What a builder gets: the frozen classifier, the settings and the calibration that the card holds.

    calibration: the 0th to 100th percentile (101 values) of this kind's objective on clean training images, or empty.
    network: the purifier's own, frozen, where it comes from a checkpoint of its own.
    """

    classifier: Classifier
    settings: Mapping[str, Any]
    calibration: Sequence[float]
    network: nn.Module | None = None

    def own_network(self, kind: type[N]) -> N:
        """The purifier's own network, which must be of the class `kind`.

        Raises:
            ValueError: there is none, or it is of another class.
        """
        if not isinstance(self.network, kind):
            found = "none" if self.network is None else type(self.network).__name__
            raise ValueError(
                f"this purifier needs a network of its own of type {kind.__name__}; its checkpoint has {found}"
            )
        return self.network


PURIFIERS: Registry[Callable[[Material], Purifier]] = Registry("purifier kind")
register = PURIFIERS.register
kinds = PURIFIERS.names


def build_purifier(kind: str, material: Material) -> Purifier:
    """Build a purifier of `kind`.

    Raises:
        ValueError: the kind is unknown or the settings do not fit it; the message says what exists.
    """
    return PURIFIERS.builder(kind)(material)


def one_each(x: Tensor, seeds: Sequence[int] | None) -> list[int]:
    """The seeds of the images x (N, ...).

    Raises:
        ValueError: no seeds, or not one for each image.
    """
    if seeds is None or len(seeds) != len(x):
        came = "none" if seeds is None else str(len(seeds))
        raise ValueError(f"this purifier draws random numbers and needs a seed for each of {len(x)} images; got {came}")
    return list(seeds)


def uniform(x: Tensor, seeds: Sequence[int] | None, radius: float) -> Tensor:
    """Uniform noise in [-radius, radius], each image's from its own seed. (N, C, H, W), N seeds -> (N, C, H, W).

    Raises:
        ValueError: no seeds, or not one for each image.
    """
    return (2 * _drawn(torch.rand, x, seeds) - 1) * radius


def gaussian(x: Tensor, seeds: Sequence[int] | None, sigma: float) -> Tensor:
    """Gaussian noise, each image's from its own seed. (N, C, H, W), N seeds -> (N, C, H, W).

    Raises:
        ValueError: no seeds, or not one for each image.
    """
    return sigma * _drawn(torch.randn, x, seeds)


def _drawn(draw: Callable[..., Tensor], x: Tensor, seeds: Sequence[int] | None) -> Tensor:
    draws = [draw(x.shape[1:], generator=torch.Generator().manual_seed(seed)) for seed in one_each(x, seeds)]
    return torch.stack(draws).to(x) if draws else torch.zeros_like(x)


def counted(x: Tensor, passes: int) -> Tensor:
    """(N, ...) -> (N,) int64, all `passes`."""
    return torch.full((len(x),), passes, dtype=torch.int64, device=x.device)

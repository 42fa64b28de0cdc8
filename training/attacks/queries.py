"""Attacks that see nothing but the whole defence's answers: what a purifier does to gradients can't mislead them.

`square`: Square Attack (Andriushchenko, Croce, Flammarion and Hein, ECCV 2020), which reads logits.
`decision`: RayS (Chen and Gu, KDD 2020, "RayS: A Ray Searching Method for Hard-label Adversarial Attack"), which reads labels.

In both, `AttackSettings.steps` is the number of queries an image, the look at it as it came included. An image that is wrong as
it came is left alone, and one that has fooled the defence is asked about no more.
"""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from models.catalog import Defense
from training.attacks.asking import Asker, Survived, draws
from training.attacks.settings import AttackSettings


def square(defense: Defense, x: Tensor, y: Tensor, settings: AttackSettings, first: int = 0) -> Survived:
    """Square Attack as pyautoattack has it; the schedule of its squares' sizes is scaled to the number of queries.

    x: (N, C, H, W) in [0, 1], the data set's images from `first` on; y: (N,). The library draws one square for all images that
    still stand, so here what an image suffers depends on its neighbours.

    Raises:
        ValueError: pyautoattack isn't installed.
    """
    try:
        from pyautoattack.square import SquareAttack
    except ImportError as error:
        raise ValueError(f"attack {settings.name!r} needs pyautoattack: pip install 'unperturb[attacks]'") from error
    ask = Asker(defense, settings, first, len(x))
    right, image, standing = _as_it_came(ask, x, y)
    attacked, queries = standing, settings.steps - 2  # one was the look just had, one is the library's start
    if queries < 0 or not len(attacked):
        return Survived(right, image)

    def answer(asked: Tensor) -> Tensor:
        """The logits. The library asks about all images, and from then on about those whose margin is still positive."""
        nonlocal standing
        assert len(asked) == len(standing), "pyautoattack asks in another order"
        logits = ask(asked, standing).logits.clone()  # it writes into them
        right[standing] = logits.argmax(1) == y[standing]
        own = y[standing, None]
        others = logits.scatter(1, own, -torch.inf).amax(1)  # (n, K) -> (n,)
        standing = standing[logits.gather(1, own)[:, 0] > others]
        return logits

    attack = SquareAttack(answer, {"linf": "Linf", "l2": "L2"}[settings.norm], n_queries=queries, eps=settings.epsilon)
    start = x[attacked].contiguous()  # the library calls `view`
    attack.init_hyperparam(start)
    with torch.random.fork_rng(devices=[]):  # it draws on the CPU
        torch.default_generator.manual_seed(draws(settings, first, 0))
        # Not `perturb`, which asks twice more and seeds the GPU's generator too.
        _, image[attacked] = attack.attack_single_run(start, y[attacked])
    return Survived(right, image)


def decision(defense: Defense, x: Tensor, y: Tensor, settings: AttackSettings, first: int = 0) -> Survived:
    """RayS, Alg. 3 with Alg. 2 within: of all sign vectors d the one along which the defence gives way at the smallest radius.

    x: (N, C, H, W) in [0, 1], the data set's images from `first` on; y: (N,). RayS draws nothing at random, so an image's result
    is its own, whatever else is in the batch; `seed` matters to random purifiers alone.

    Ours: the radius is counted in l_inf, every query is of all images that still stand, and one is done at its first wrong
    answer within epsilon, be it amid a binary search. The image of one that withstood is its best direction's, at epsilon.

    Raises:
        ValueError: the budget isn't one of l_inf.
    """
    if settings.norm != "linf":
        raise ValueError(f"attack {settings.name!r}: RayS searches in l_inf alone; for l2 take mode 'square'")
    ask = Asker(defense, settings, first, len(x))
    right, image, rows = _as_it_came(ask, x, y)
    rays = Rays.around(x[rows])
    for _ in range(settings.steps - 1):
        if not len(rows):
            break
        radius, asked = rays.candidate()
        wrong = ask(asked, rows).logits.argmax(1) != y[rows]
        # Not the radius: where all pixels are clipped, an image is nearer.
        near = (asked - x[rows]).flatten(1).abs().amax(1) <= settings.epsilon
        fooled = wrong & near
        right[rows[fooled]], image[rows[fooled]] = False, asked[fooled]
        rays.hear(radius, wrong)
        rows, rays = rows[~fooled], rays.of(~fooled)
    image[rows] = rays.at(rays.best, torch.full_like(rays.radius, settings.epsilon))
    return Survived(right, image)


def _as_it_came(ask: Asker, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """One look at each image: which are right (N,), a copy of them all, and the rows that are right (n,)."""
    right = ask(x, torch.arange(len(x))).logits.argmax(1) == y
    return right, x.clone(), right.nonzero()[:, 0]


TOLERANCE = 1e-3  # Alg. 2's epsilon, of the radius in l_2: the authors' code


@dataclass
class Rays:
    """How far RayS is with each of N images of n values. Every query brings every image one look further.

    x: (N, C, H, W). best: d_best, (N, n) of -1 and 1; radius: r_best, (N,), in l_inf. start, size: (N,) int64, the block of
    values that is flipped now. low, high: (N,), where the radius along the flipped direction lies; high is inf until the
    defence was wrong there.
    """

    x: Tensor
    best: Tensor
    radius: Tensor
    start: Tensor
    size: Tensor
    low: Tensor
    high: Tensor

    @classmethod
    def around(cls, x: Tensor) -> Self:
        """Alg. 3 begins with d_best ← (1, ..., 1), r_best ← ∞, s ← 0, k ← 1."""
        flat = x.flatten(1)
        none, far = flat.new_zeros(len(flat)), flat.new_full((len(flat),), torch.inf)
        start = torch.zeros_like(none, dtype=torch.int64)
        return cls(x, torch.ones_like(flat), far, start, torch.full_like(start, flat.shape[1]), none, far)

    def of(self, kept: Tensor) -> Self:
        """Some of the images. kept: (N,) bool."""
        return self if kept.all() else type(self)(*(each[kept] for each in vars(self).values()))

    def at(self, direction: Tensor, radius: Tensor) -> Tensor:
        """(N, n), (N,) -> (N, C, H, W), in [0, 1]."""
        return (self.x + (radius[:, None] * direction).view(self.x.shape)).clamp(0, 1)

    def flipped(self) -> Tensor:
        """d_tmp of Alg. 3: d_best with the k-th block's signs flipped. (N, n)"""
        place = torch.arange(self.best.shape[1], device=self.best.device)
        block = (place >= self.start[:, None]) & (place < (self.start + self.size)[:, None])
        return torch.where(block, -self.best, self.best)

    def candidate(self) -> tuple[Tensor, Tensor]:
        """What is asked next, and at which radius (N,). Alg. 2: first at r_best, and if that fools, at the interval's middle.

        At a radius of 1 each pixel is at its border: farther is the same.
        """
        radius = torch.where(self.high.isinf(), self.radius.clamp(max=1), (self.low + self.high) / 2)
        return radius, self.at(self.flipped(), radius)

    def hear(self, radius: Tensor, wrong: Tensor) -> None:
        """Take the defence's answer into account. radius: (N,), asked; wrong: (N,) bool, whether that fooled it."""
        self.low = torch.where(wrong, self.low, radius)
        self.high = torch.where(wrong, radius, self.high)
        n = self.best.shape[1]
        ended = self.high.isinf() | ((self.high - self.low) * n**0.5 <= TOLERANCE)
        # Alg. 3: r_best, d_best ← r_tmp, d_tmp, where r_tmp < r_best
        better = ended & (self.high < self.radius)
        self.best = torch.where(better[:, None], self.flipped(), self.best)
        self.radius = torch.where(better, self.high, self.radius)
        # Alg. 3: k ← k + 1, and after the last block s ← s + 1, k ← 1. Blocks of one value stay so.
        self.start = torch.where(ended, self.start + self.size, self.start)
        last = self.start >= n
        self.size = torch.where(last, (self.size + 1) // 2, self.size)  # = ceil(n / 2^s)
        self.start = self.start.masked_fill(last, 0)
        self.low = self.low.masked_fill(ended, 0)
        self.high = self.high.masked_fill(ended, torch.inf)

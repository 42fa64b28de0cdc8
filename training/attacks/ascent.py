"""Projected ascent on a per-image loss: SOAP Alg. 1 (PGD) with the field's variants, and APGD, which finds its own step size.

- MI-FGSM (Dong et al., CVPR 2018, Eq. 6): momentum. DIM (Xie et al., CVPR 2019): the gradient of an image that is now and then
  made smaller and padded. TI (Dong et al., CVPR 2019, Eq. 7): gradients smoothed by a Gaussian.
- APGD (Croce, Hein: Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free attacks, ICML
  2020): Alg. 1. The step size halves where the loss stopped growing, and the ascent goes on from the best image so far.

All state is per image, so who shares a batch changes nothing.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from training.attacks.settings import AttackSettings

# Images that require a gradient (n, C, H, W) in [0, 1] -> (n,).
Loss = Callable[[Tensor], Tensor]


class Ascent:
    """Where each of N images' ascents stands. x: (N, C, H, W) in [0, 1]; delta: (N, C, H, W), what is added to it.

    start: delta to begin with. indices: (N,), each image's in its data set, from which DIM's draws follow.
    """

    def __init__(
        self, x: Tensor, settings: AttackSettings, start: Tensor | None = None, indices: Tensor | None = None
    ) -> None:
        self.x, self.settings = x, settings
        self._indices = torch.arange(len(x)) if indices is None else indices.cpu()
        self._looks = torch.zeros(len(x), dtype=torch.int64)
        self.delta = torch.zeros_like(x) if start is None else start.clone()
        self._velocity = torch.zeros_like(x)

    def climb(self, loss: Loss, rows: Tensor) -> None:
        """One step of the images `rows` (n,)."""
        _, gradient = self._gradient(loss, rows)
        self.delta[rows] = self._moved(rows, self.delta[rows], gradient, self.settings.step_size)

    def best(self, loss: Loss, rows: Tensor) -> Tensor:
        """The images `rows` after the last step, (n, C, H, W)."""
        return (self.x + self.delta)[rows]

    def _gradient(self, loss: Loss, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The loss (n,) and what to follow (n, C, H, W)."""
        leaf = (self.x[rows] + self.delta[rows]).requires_grad_()
        with torch.enable_grad():
            value = loss(self._diverse(leaf, rows))
            (gradient,) = torch.autograd.grad(value.sum(), leaf)
        if self.settings.kernel:
            gradient = smoothed(gradient, self.settings.kernel)
        if self.settings.momentum:
            gradient = self.settings.momentum * self._velocity[rows] + _unit(gradient)
            self._velocity[rows] = gradient
        return value.detach(), gradient

    def _diverse(self, image: Tensor, rows: Tensor) -> Tensor:
        if not self.settings.diversity:
            return image
        here = rows.cpu()
        looks = zip(self._indices[here].tolist(), self._looks[here].tolist(), strict=True)
        self._looks[here] += 1
        return diverse(image, [hash((self.settings.seed, *look)) for look in looks], self.settings.diversity)

    def _moved(self, rows: Tensor, delta: Tensor, gradient: Tensor, step_size: float | Tensor) -> Tensor:
        delta = delta + step_size * _direction(gradient, self.settings)  # Alg. 1, l. 4
        return self._projected(rows, delta)

    def _projected(self, rows: Tensor, delta: Tensor) -> Tensor:
        """Alg. 1, l. 5 and 6."""
        x, epsilon = self.x[rows], self.settings.epsilon
        if self.settings.norm == "linf":
            delta = delta.clamp(-epsilon, epsilon)
        else:
            delta = delta * (epsilon / _length(delta)).clamp(max=1)
        return (x + delta).clamp(0, 1) - x


class AutoAscent(Ascent):
    """APGD, Alg. 1. Its numbers are those of the paper's Sec. 3 and public code."""

    MOMENTUM, RHO = 0.75, 0.75

    def __init__(
        self, x: Tensor, settings: AttackSettings, start: Tensor | None = None, indices: Tensor | None = None
    ) -> None:
        super().__init__(x, settings, start, indices)
        lowest = x.new_full((len(x),), -torch.inf)
        self._before = self.delta.clone()
        self._step_size = x.new_full((len(x), 1, 1, 1), 2 * settings.epsilon)  # eta^(0)
        self._last, self._best, self._best_then = lowest.clone(), lowest.clone(), lowest.clone()
        self._best_delta, self._best_gradient = self.delta.clone(), torch.zeros_like(x)
        self._rises = torch.zeros_like(lowest)
        self._halved = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        self._steps_of = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        self._windows = windows(settings.steps)

    def climb(self, loss: Loss, rows: Tensor) -> None:
        """One step of the images `rows` (n,), which have all made as many before."""
        gradient = self._look(loss, rows)
        k = int(self._steps_of[rows[0]])
        if k in self._windows:
            gradient = self._checked(rows, gradient, self._windows[k])
        here, before = self.delta[rows], self._before[rows]
        ahead = self._moved(rows, here, gradient, self._step_size[rows])  # z^(k+1)
        share = self.MOMENTUM if k else 1.0
        self._before[rows] = here
        self.delta[rows] = self._projected(rows, here + share * (ahead - here) + (1 - share) * (here - before))
        self._steps_of[rows] += 1

    def best(self, loss: Loss, rows: Tensor) -> Tensor:
        """The images `rows` where their loss was highest, (n, C, H, W)."""
        self._look(loss, rows)
        return (self.x + self._best_delta)[rows]

    def _look(self, loss: Loss, rows: Tensor) -> Tensor:
        """Take note of the loss at the present images; its gradient there."""
        value, gradient = self._gradient(loss, rows)
        self._rises[rows] += (value > self._last[rows]) & (self._steps_of[rows] > 0)  # condition 1 counts from x^(1) on
        self._last[rows] = value
        better = value > self._best[rows]
        risen = rows[better]
        self._best[risen], self._best_delta[risen] = value[better], self.delta[risen]
        self._best_gradient[risen] = gradient[better]
        return gradient

    def _checked(self, rows: Tensor, gradient: Tensor, window: int) -> Tensor:
        """At a checkpoint: halve the step where condition 1 or 2 of Sec. 3.1 holds, and go on from the best image."""
        rarely_rose = self._rises[rows] <= self.RHO * window
        no_better = ~self._halved[rows] & (self._best_then[rows] >= self._best[rows])
        halve = rarely_rose | no_better
        tired = rows[halve]
        self._step_size[tired] /= 2
        self.delta[tired] = self._best_delta[tired]
        gradient = torch.where(halve[:, None, None, None], self._best_gradient[rows], gradient)
        self._halved[rows], self._best_then[rows], self._rises[rows] = halve, self._best[rows], 0
        return gradient


def windows(steps: int) -> dict[int, int]:
    """Checkpoints, and the number of steps since the one before: Sec. 3.1, as in the public code in whole steps."""
    window, least, less = (max(int(share * steps), 1) for share in (0.22, 0.06, 0.03))
    found, at = {}, window
    while at < steps:
        found[at] = window
        window = max(window - less, least)
        at += window
    return found


def begin(x: Tensor, settings: AttackSettings, start: Tensor | None = None, indices: Tensor | None = None) -> Ascent:
    """An ascent by the algorithm of the settings; the arguments are those of `Ascent`."""
    kind = AutoAscent if settings.algorithm == "apgd" else Ascent
    return kind(x, settings, start, indices)


def ascend(
    loss: Loss, x: Tensor, settings: AttackSettings, *, start: Tensor | None = None, indices: Tensor | None = None
) -> Tensor:
    """All steps at once for images that nobody asks about in between. (N, C, H, W) in [0, 1] -> the same."""
    ascent, rows = begin(x, settings, start, indices), torch.arange(len(x), device=x.device)
    for _ in range(settings.steps):
        ascent.climb(loss, rows)
    return ascent.best(loss, rows)


def random_start(x: Tensor, epsilon: float) -> Tensor:
    """A uniform perturbation in the l_inf budget, from torch's global generator. (N, C, H, W) in [0, 1] -> (N, C, H, W)."""
    return _within(x, (2 * torch.rand_like(x) - 1) * epsilon)


def drawn_start(x: Tensor, settings: AttackSettings, indices: Tensor, restart: int) -> Tensor | None:
    """The same in the settings' norm, drawn from each image's index; None where they ask for no random start."""
    if not (settings.random_start or settings.sign_start):
        return None
    seed = settings.seed * 1_000_003 + restart * 100_003
    generators = [torch.Generator().manual_seed(seed + index) for index in indices.tolist()]
    draw = torch.rand if settings.norm == "linf" else torch.randn  # the latter has no favourite direction
    noise = torch.stack([draw(x.shape[1:], generator=generator) for generator in generators]).to(x)
    if settings.norm == "l2":
        return _within(x, settings.epsilon * _direction(noise, settings))
    noise = 2 * noise - 1
    if settings.sign_start:
        return _within(x, settings.sign_start * noise.sign())
    return _within(x, settings.epsilon * noise)


def _within(x: Tensor, delta: Tensor) -> Tensor:
    return (x + delta).clamp(0, 1) - x


def _direction(gradient: Tensor, settings: AttackSettings) -> Tensor:
    if settings.norm == "linf":
        return gradient.sign()
    # The square of what a sure network leaves of a gradient would be 0.
    largest = gradient.abs().amax(dim=(1, 2, 3), keepdim=True).clamp_min(torch.finfo(gradient.dtype).tiny)
    gradient = gradient / largest
    return gradient / _length(gradient)


def _length(delta: Tensor) -> Tensor:
    """Each image's l_2 length, (N, 1, 1, 1), above 0."""
    length: Tensor = delta.flatten(1).norm(dim=1).clamp_min(1e-12)
    return length[:, None, None, None]


def _unit(gradient: Tensor) -> Tensor:
    """Each image's gradient at L1 length 1 (MI-FGSM, Eq. 6)."""
    length = gradient.abs().sum(dim=(1, 2, 3), keepdim=True)
    return gradient / length.clamp_min(torch.finfo(gradient.dtype).tiny)


def smoothed(gradient: Tensor, side: int) -> Tensor:
    """TI, Eq. (7): each channel convolved with a Gaussian of 3 standard deviations to either side, as in the public code."""
    place = torch.linspace(-3, 3, side, device=gradient.device, dtype=gradient.dtype)
    line = torch.exp(-place.square() / 2)
    kernel = torch.outer(line, line) / line.sum() ** 2
    channels = gradient.shape[1]
    found: Tensor = F.conv2d(gradient, kernel.expand(channels, 1, side, side), padding=side // 2, groups=channels)
    return found


def diverse(image: Tensor, seeds: list[int], share: float, smallest: float = 0.9) -> Tensor:
    """DIM: with probability `share` an image is made smaller and set at a random place on black. (N, C, H, W) -> the same.

    The paper enlarges 299 pixels to 330 before; here the image itself is the frame, of which at least `smallest` is filled.
    """
    draws = torch.stack([torch.rand(4, generator=torch.Generator().manual_seed(seed % 2**63)) for seed in seeds]).to(
        image
    )
    size = torch.where(draws[:, 0] < share, smallest + (1 - smallest) * draws[:, 1], 1.0)
    theta = image.new_zeros(len(image), 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = 1 / size
    theta[:, :, 2] = (2 * draws[:, 2:] - 1) * (1 / size - 1)[:, None]
    grid = F.affine_grid(theta, list(image.shape), align_corners=False)
    resized = F.grid_sample(image, grid, mode="nearest", padding_mode="zeros", align_corners=False)
    return torch.where((size == 1)[:, None, None, None], image, resized)

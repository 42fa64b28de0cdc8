"""Attacks: SOAP Alg. 1 on the classifier alone, and attackers who know the defence.

- `pgd` (Alg. 1; FGSM is one step of the whole budget): gradient of the undefended classifier. It doesn't know the purifier.
- `foolbox_attack`: others on the undefended classifier (DeepFool, Carlini and Wagner's l_2, ...), by a library.
- `two_view`: the same ascent on the summed cross entropy of every view that the purifier compares. No purifier in
  the loop, hence cheap; against label consistency it is the strongest attack known to us.
- `distort_features`: NRP's Alg. 1 (SSP; Naseer et al., CVPR 2020) and Pix2Pix's Alg. 1 (Mezhoudi 2022), which are one: ascent
  on the distance of a classifier's inner activations from those of the clean image. No labels; meant to carry over to others.
- `bpda`: identity-BPDA (Athalye et al. 2018). Each step purifies the current image, takes the gradient at the *purified*
  point and applies it to the image, as if the purifier were the identity.
- `end_to_end`: plain ascent through purifier and classifier, where both are one differentiable function (NRP, Pix2Pix). In a
  chain the purifiers that are none count as the identity.
- `through_the_steps`: the same through every step of a descent (SOAP, AID), with a surrogate for the sign: training/unrolled.py.

An adaptive attack succeeds on an image as soon as *any* iterate that it checks, the image itself among them, is misclassified
by the whole defence: that one it sends, and leaves the image alone. Budgets are l_inf, in [0, 1] units.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor
from torch.nn import functional as F

from models.catalog import CHUNK, Defense
from models.purifiers import Purifier
from models.purifiers.chain import Chain
from models.purifiers.descending import DescentPurifier
from training.unrolled import unrolled

Mode = Literal["none", "static", "features", "foolbox", "two-view", "bpda", "end-to-end", "unrolled"]
BLIND: tuple[Mode, ...] = ("static", "features", "foolbox")  # attacks on a classifier alone


class AttackSettings(BaseModel):
    """An attack and its budget. steps = 1 with step_size = epsilon is FGSM."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    mode: Mode
    epsilon: float = Field(default=0.0, ge=0, le=1, description="l_inf")
    step_size: float = Field(default=0.0, ge=0, le=1)
    steps: int = Field(default=0, ge=0)
    random_start: bool = Field(
        default=False, description="uniform in the budget, drawn from `seed` and the image's index"
    )
    restarts: int = Field(
        default=1, ge=1, description="static: other random starts for images that withstood the last one"
    )
    momentum: float = Field(default=0.0, ge=0, description="mu of MI-FGSM (Dong et al., CVPR 2018, Eq. 6)")
    tap: str | None = Field(default=None, description="features: the classifier's layer whose outputs are distorted")
    attack: str | None = Field(default=None, description="foolbox: the attack's class, with `epsilon` in its own norm")
    arguments: dict[str, float] = Field(
        default={}, description="foolbox: of that class, where they aren't its defaults"
    )
    source: str | None = Field(
        default=None, description="classifier on which the images are made; default: the one that is evaluated"
    )
    seed: int = 0

    @model_validator(mode="after")
    def _fits_mode(self) -> Self:
        for mode, field in (("foolbox", "attack"), ("features", "tap")):
            if (self.mode == mode) != (getattr(self, field) is not None):
                raise ValueError(f"attack {self.name!r}: mode {mode!r} and the field `{field}` go together")
        if self.source and self.mode not in BLIND:
            raise ValueError(f"attack {self.name!r}: mode {self.mode!r} attacks the defence itself, not a `source`")
        if self.mode == "features" and not self.random_start:
            raise ValueError(
                f"attack {self.name!r}: mode 'features' needs random_start; at the image there is no gradient"
            )
        if self.restarts > 1 and not self.random_start:
            raise ValueError(f"attack {self.name!r}: restarts need random_start, else they are all the same")
        return self

    def text(self) -> str:
        """One line for people, for example `pgd: 20 steps of 2/255, epsilon 8/255`."""
        if self.mode == "none":
            return self.name
        if self.mode == "foolbox":
            given = "".join(f", {name} {value:g}" for name, value in self.arguments.items())
            return f"{self.name}: Foolbox {self.attack}{given}, epsilon {_fraction(self.epsilon)}{self._made_on()}"
        at = f" {self.tap}," if self.tap else ""
        steps = f"{self.steps} steps of {_fraction(self.step_size)}, epsilon {_fraction(self.epsilon)}"
        return f"{self.name}:{at} {steps}{self._special()}{self._made_on()}"

    def _made_on(self) -> str:
        return f", made on {self.source}" if self.source else ""

    def _special(self) -> str:
        momentum = f", momentum {self.momentum:g}" if self.momentum else ""
        if self.restarts > 1:
            return f"{momentum}, {self.restarts} random starts"
        return f"{momentum}, random start" if self.random_start else momentum


def _fraction(value: float) -> str:
    of_255 = value * 255
    return f"{of_255:.4g}/255" if abs(of_255 - round(of_255, 1)) < 1e-9 and value < 0.2 else f"{value:.4g}"


def ascend(
    loss: Callable[[Tensor], Tensor],
    x: Tensor,
    settings: AttackSettings,
    *,
    start: Tensor | None = None,
    on_step: Callable[[int, Tensor], None] = lambda step, image: None,
) -> Tensor:
    """The last iterate of projected sign ascent on a per-image loss (SOAP Alg. 1); `on_step` sees iterates 1..T.

    x: (N, C, H, W) in [0, 1]; loss: (N, C, H, W) -> (N,).
    """
    delta = torch.zeros_like(x) if start is None else start
    velocity = torch.zeros_like(x)
    for step in range(1, settings.steps + 1):
        delta, velocity = _stepped(loss, x, delta, velocity, settings)
        on_step(step, x + delta)
    return x + delta


def _stepped(
    loss: Callable[[Tensor], Tensor], x: Tensor, delta: Tensor, velocity: Tensor, settings: AttackSettings
) -> tuple[Tensor, Tensor]:
    """The perturbation and the velocity after one more step."""
    leaf = (x + delta).requires_grad_()
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(loss(leaf).sum(), leaf)
    if settings.momentum:
        gradient = velocity = settings.momentum * velocity + _unit(gradient)
    delta = delta + settings.step_size * gradient.sign()  # Alg. 1, l. 4
    delta = delta.clamp(-settings.epsilon, settings.epsilon)  # l. 5
    return (x + delta).clamp(0, 1) - x, velocity  # l. 6


def _unit(gradient: Tensor) -> Tensor:
    """Each image's gradient at L1 length 1 (MI-FGSM, Eq. 6)."""
    length = gradient.abs().sum(dim=(1, 2, 3), keepdim=True)
    return gradient / length.clamp_min(torch.finfo(gradient.dtype).tiny)


def static(defense: Defense, x: Tensor, y: Tensor, settings: AttackSettings, first: int = 0) -> Tensor:
    """Adversarial images against the undefended classifier. (N, C, H, W), (N,) -> (N, C, H, W).

    first: the data set index of x[0], so that a random start belongs to its image. Of several restarts an image keeps the
    first that the classifier gets wrong, else the last.
    """

    def attacked(rows: Tensor | slice, restart: int) -> Tensor:
        labels, start = y[rows], _random_start(x, settings, first, restart)

        def loss(image: Tensor) -> Tensor:
            return F.cross_entropy(defense.classifier(image), labels, reduction="none")

        return ascend(loss, x[rows], settings, start=None if start is None else start[rows])

    x_adv = attacked(slice(None), 0)
    for restart in range(1, settings.restarts):
        with torch.no_grad():
            withstood = (defense.classifier(x_adv).argmax(1) == y).nonzero().flatten()
        if len(withstood):
            x_adv[withstood] = attacked(withstood, restart)
    return x_adv


def foolbox_attack(defense: Defense, x: Tensor, y: Tensor, settings: AttackSettings) -> Tensor:
    """The same by an attack of Foolbox (Rauber et al., JOSS 2020), clipped to the budget in the attack's norm.

    Raises:
        ValueError: Foolbox isn't installed, or has no such attack.
    """
    try:
        from foolbox import attacks
        from foolbox.models.pytorch import PyTorchModel
    except ImportError as error:
        raise ValueError(f"attack {settings.name!r} needs Foolbox: pip install 'unperturb[attacks]'") from error
    kind = getattr(attacks, str(settings.attack), None)
    if kind is None:
        raise ValueError(f"attack {settings.name!r}: Foolbox has no {settings.attack}")
    # Numbers of steps are whole, and TOML tells 3 from 3.0; the settings model doesn't.
    arguments = {name: int(value) if value.is_integer() else value for name, value in settings.arguments.items()}
    model = PyTorchModel(defense.classifier, bounds=(0, 1), device=x.device)
    with torch.enable_grad():
        _, clipped, _ = kind(**arguments)(model, x.contiguous(), y, epsilons=settings.epsilon)
    return clipped.detach()  # type: ignore[no-any-return]


def distort_features(
    features: Callable[[Tensor], Tensor], x: Tensor, settings: AttackSettings, start: Tensor
) -> Tensor:
    """NRP and Pix2Pix, Alg. 1: max Delta(x, x') under the budget, Eq. (4) and (6).

    Delta is the squared L2 distance, as in NRP's public code; only its gradient's sign is used, which is that of Pix2Pix's
    norm. x: (N, C, H, W) in [0, 1]; features: (N, C, H, W) -> (N, ...), any shape; start: (N, C, H, W), the perturbation
    R(x) - x to begin with. It must not be zero: there the distance has no gradient.
    """
    with torch.no_grad():
        clean = features(x)

    def distance(image: Tensor) -> Tensor:
        return (features(image) - clean).square().flatten(1).sum(1)

    return ascend(distance, x, settings, start=start)


def distort(defense: Defense, x: Tensor, settings: AttackSettings, first: int = 0) -> Tensor:
    """`distort_features` of the undefended classifier, at the tap that the settings name. first: see `static`."""
    assert settings.tap is not None
    taps, start = [settings.tap], _random_start(x, settings, first, 0)
    assert start is not None
    return distort_features(lambda image: defense.classifier.tapped(image, taps)[0], x, settings, start)


def random_start(x: Tensor, epsilon: float) -> Tensor:
    """A uniform perturbation in the budget, from torch's global generator. (N, C, H, W) in [0, 1] -> (N, C, H, W)."""
    return _started(x, torch.rand_like(x), epsilon)


def _random_start(x: Tensor, settings: AttackSettings, first: int, restart: int) -> Tensor | None:
    if not settings.random_start:
        return None
    seed = settings.seed * 1_000_003 + restart * 100_003 + first
    noise = torch.stack(
        [torch.rand(image.shape, generator=torch.Generator().manual_seed(seed + i)) for i, image in enumerate(x.cpu())]
    ).to(x.device)
    return _started(x, noise, settings.epsilon)


def _started(x: Tensor, noise: Tensor, epsilon: float) -> Tensor:
    """noise: uniform in [0, 1)."""
    delta = (2 * noise - 1) * epsilon
    return (x + delta).clamp(0, 1) - x


@dataclass(frozen=True)
class Survived:
    """right: (N,) bool, which images the whole defence got right at every iterate that was checked.

    image: what the attacker sends, the first iterate that fooled the defence, else the last. (N, C, H, W)
    """

    right: Tensor
    image: Tensor


def draws(defense: Defense, settings: AttackSettings, first: int, count: int, draw: int = 0) -> list[int] | None:
    """Seeds of `count` images from the data set's `first` on, for the `draw`-th time; None where the purifier needs none.

    They follow from the attack's seed and the image alone. The attacker does not know those that the service will draw:
    every look at the defence has fresh ones.
    """
    if not defense.info.random:
        return None
    return [((settings.seed * 1_000_003 + first + i) * 10_007 + draw) % 2**53 for i in range(count)]


# What an adaptive attack ascends: images, labels and, where the defence was just asked, its purified images -> (N,).
Surrogate = Callable[[Tensor, Tensor, Tensor | None], Tensor]


def _hunt(
    defense: Defense,
    x: Tensor,
    y: Tensor,
    settings: AttackSettings,
    first: int,
    loss: Surrogate,
    every: int = 1,
) -> Survived:
    """Ascend each image until the whole defence, asked at every `every`-th iterate and the last, gets it wrong."""
    delta, velocity = torch.zeros_like(x), torch.zeros_like(x)
    right = torch.ones(len(x), dtype=torch.bool, device=x.device)
    for step in range(settings.steps + 1):
        rows, purified = right.nonzero().flatten(), None
        if step % every == 0 or step == settings.steps:
            seeds = draws(defense, settings, first, len(x), step)
            found = defense.purify((x + delta)[rows], seeds and [seeds[row] for row in rows.tolist()])
            withstood = found.logits.argmax(1) == y[rows]
            right[rows] = withstood
            rows, purified = rows[withstood], found.image[withstood]
        if step == settings.steps or not len(rows):
            break
        for i, part in zip(range(0, len(rows), CHUNK), rows.split(CHUNK), strict=True):
            shown = None if purified is None else purified[i : i + CHUNK]

            def of_part(image: Tensor, part: Tensor = part, shown: Tensor | None = shown) -> Tensor:
                return loss(image, y[part], shown)

            delta[part], velocity[part] = _stepped(of_part, x[part], delta[part], velocity[part], settings)
    return Survived(right, x + delta)


def two_view(
    defense: Defense, x: Tensor, y: Tensor, settings: AttackSettings, first: int = 0, every: int = 20
) -> Survived:
    """Ascend the summed cross entropy of all views; ask the whole defence at every `every`-th iterate.

    first: see `static`.

    Raises:
        ValueError: the purifier compares no views.
    """
    views = getattr(defense.purifier, "view_logits", None)
    if views is None:
        raise ValueError(f"purifier {defense.name!r} compares no views")

    def loss(image: Tensor, labels: Tensor, purified: Tensor | None) -> Tensor:
        seen = views(image)  # (V, N, K)
        each = F.cross_entropy(seen.flatten(0, 1), labels.repeat(len(seen)), reduction="none")
        return each.view(len(seen), -1).sum(0)

    return _hunt(defense, x, y, settings, first, loss, every)


def bpda(defense: Defense, x: Tensor, y: Tensor, settings: AttackSettings, first: int = 0) -> Survived:
    """Ascend the cross entropy at the purified point; ask the whole defence at every iterate. first: see `static`."""

    def loss(image: Tensor, labels: Tensor, purified: Tensor | None) -> Tensor:
        assert purified is not None
        shift = (purified - image).detach()  # forward: the purified image; backward: the identity
        return F.cross_entropy(defense.logits(image + shift), labels, reduction="none")

    return _hunt(defense, x, y, settings, first, loss)


def end_to_end(defense: Defense, x: Tensor, y: Tensor, settings: AttackSettings, first: int = 0) -> Survived:
    """Ascend the cross entropy of the whole defence, by its own gradient; ask it at every iterate. first: see `static`.

    Raises:
        ValueError: the purifier is no differentiable function.
    """
    if not differentiable(defense.purifier):
        raise ValueError(f"purifier {defense.name!r} can't be differentiated through")

    def loss(image: Tensor, labels: Tensor, purified: Tensor | None) -> Tensor:
        return F.cross_entropy(defense.logits(gradient_path(defense.purifier, image)), labels, reduction="none")

    return _hunt(defense, x, y, settings, first, loss)


def through_the_steps(defense: Defense, x: Tensor, y: Tensor, settings: AttackSettings, first: int = 0) -> Survived:
    """Ascend the cross entropy of the whole defence through all of its purifier's steps; ask it at every iterate.

    first: see `static`.

    Raises:
        ValueError: the purifier makes no steps, or random ones.
    """
    purifier = defense.purifier
    if not isinstance(purifier, DescentPurifier):
        raise ValueError(f"purifier {defense.name!r} makes no steps to unroll")

    def loss(image: Tensor, labels: Tensor, purified: Tensor | None) -> Tensor:
        return F.cross_entropy(defense.logits(unrolled(purifier, image)), labels, reduction="none")

    return _hunt(defense, x, y, settings, first, loss)


def differentiable(purifier: Purifier) -> bool:
    """Whether `end_to_end` has a gradient to go by: of the purifier, or in a chain of one of its purifiers at least.

    What draws random numbers for each step has to be asked as it is: `bpda` does.
    """
    if not isinstance(purifier, Chain):
        return hasattr(purifier, "restored")
    own = [differentiable(step) for step in purifier.purifiers]
    return any(own) and all(mine or not step.info.random for mine, step in zip(own, purifier.purifiers, strict=True))


def gradient_path(purifier: Purifier, image: Tensor) -> Tensor:
    """The purified image with a gradient; what has none counts as the identity, and with random numbers as nothing at all."""
    if isinstance(purifier, Chain):
        for step in purifier.purifiers:
            image = gradient_path(step, image)
        return image
    if hasattr(purifier, "restored"):
        return purifier.restored(image)  # type: ignore[no-any-return]
    if purifier.info.random:
        return image
    return image + (purifier.purify(image.detach()).image - image).detach()


def in_chunks(x: Tensor, y: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
    """(first index, images, labels) in cache-sized parts."""
    for first in range(0, len(x), CHUNK):
        yield first, x[first : first + CHUNK], y[first : first + CHUNK]

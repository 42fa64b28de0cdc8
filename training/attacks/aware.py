"""Attackers who know the defence and climb a gradient: of what, is the mode. All ask the whole defence, as it is served.

- `two-view`: the summed loss of every view that the purifier compares, where they are random of fresh ones for each gradient.
  No purifier in the loop, hence cheap; against label consistency it is the strongest attack known to us.
- `joint`: the classifier's loss and the purifier's own against it: SOAP Eq. (9), AID Eq. (2), Reverse Eq. (8), the papers'
  "auxiliary-aware" attack. No purifier in the loop either.
- `bpda`: identity-BPDA (Athalye et al., ICML 2018): the gradient at the *purified* point, as if the purifier were the identity.
- `trajectory`: the same at every iterate on the way there, summed (Croce et al., ICML 2022).
- `end-to-end`: plain ascent through purifier and classifier, where both are one differentiable function (NRP, Pix2Pix). In a
  chain the purifiers that are none count as the identity.
- `unrolled`: the same through every step of a descent (SOAP, AID, Reverse), with a surrogate for the sign (and for clips, as
  `past_clips` says), or through the first `followed` steps alone, which is cheaper and has a smoother gradient (Lee, Kim, ICCV
  2023).

`eot` draws of what is random are averaged in each gradient (Athalye et al.); `joint` has a single one. An attack succeeds on an
image as soon as *any* iterate that it asks about, the image itself among them, is misclassified: that one it sends, and leaves
the image alone. Against a random defence it goes on to the last step, and sends what it has then. Modes that ask seldom end with
APGD's image of the highest loss.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from models.catalog import CHUNK, Defense
from models.purifiers import Purifier
from models.purifiers.chain import Chain
from models.purifiers.descending import DescentPurifier
from models.purifiers.descent import RandomObjective
from training.attacks.ascent import Ascent, begin, drawn_start
from training.attacks.asking import Asker, Survived
from training.attacks.blind import attempts
from training.attacks.losses import Criterion, criterion, likely_wrong
from training.attacks.settings import AttackSettings, Mode
from training.attacks.unrolled import path

# Steps between two looks at the whole defence, of modes whose steps cost so much less than a look.
EVERY: dict[Mode, int] = {"two-view": 20, "joint": 20}


@dataclass(frozen=True)
class Look:
    """What an attacker has before a step, for the n images that it concerns.

    purified: (n, C, H, W), if the defence was just asked. seeds: n fresh ones each time, or None where nothing is random.
    """

    purified: Tensor | None
    seeds: Callable[[], list[int] | None]


# What is ascended: images that require a gradient (n, C, H, W), the loss of logits, what the attacker has just seen -> (n,).
Surrogate = Callable[[Tensor, Criterion, Look], Tensor]


def aware(defense: Defense, x: Tensor, y: Tensor, settings: AttackSettings, first: int = 0) -> Survived:
    """Attack a defence by the mode of the settings. (N, C, H, W) in [0, 1], (N,) -> N images.

    first: the data set index of x[0], so that what is drawn belongs to its image.

    Raises:
        ValueError: the purifier has nothing that this mode could go by; the message says what it lacks.
    """
    surrogate = _surrogate(replace(defense, votes=1), settings)  # `eot` says how many draws a gradient is the mean of
    hunt = _Hunt(defense, x, y, settings, first)
    for target, restart in attempts(settings):
        hunt.attempt(surrogate, target, restart)
    return Survived(hunt.right, hunt.sent)


class _Hunt:
    """Ascend each image until the whole defence gets it wrong."""

    def __init__(self, defense: Defense, x: Tensor, y: Tensor, settings: AttackSettings, first: int) -> None:
        self.x, self.y, self.settings = x, y, settings
        self.indices = first + torch.arange(len(x), device=x.device)
        self.ask, self.every = Asker(defense, settings, first, len(x)), EVERY.get(settings.mode, 1)
        self.right = torch.ones(len(x), dtype=torch.bool, device=x.device)
        self.sent = x.clone()
        self.seen: Tensor | None = None  # the logits of the images as they came

    def attempt(self, surrogate: Surrogate, target: int | None, restart: int) -> None:
        """One ascent of all images that withstood those before."""
        settings, rows = self.settings, self.right.nonzero().flatten()
        start = drawn_start(self.x, settings, self.indices, restart)
        if start is not None and self.seen is None:
            rows, _ = self._asked(self.x, rows)
        ascent = begin(self.x, settings, start, self.indices)
        for step in range(settings.steps):
            purified = None
            if step % self.every == 0 and len(rows):
                rows, purified = self._asked(ascent.x + ascent.delta, rows)
            if not len(rows):
                return
            for i, part in zip(range(0, len(rows), CHUNK), rows.split(CHUNK), strict=True):
                shown = None if purified is None else purified[i : i + CHUNK]
                ascent.climb(self._loss(surrogate, part, shown, target), part)
        if len(rows):
            rows, _ = self._asked(ascent.x + ascent.delta, rows)
        if len(rows) and self.every > 1 and settings.algorithm == "apgd":  # else it was asked about already
            self._asked(self._best(ascent, surrogate, rows, target), rows)

    def _best(self, ascent: Ascent, surrogate: Surrogate, rows: Tensor, target: int | None) -> Tensor:
        """The images of the highest loss, (N, C, H, W); only the `rows` matter."""
        images = self.x.clone()
        for part in rows.split(CHUNK):
            images[part] = ascent.best(self._loss(surrogate, part, None, target), part)
        return images

    def _asked(self, images: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Those of the rows that the attack goes on with, and their purified images."""
        self.sent[rows] = images[rows]
        found = self.ask(self.sent[rows], rows)
        if self.seen is None:
            self.seen = found.logits
        withstood = found.logits.argmax(1) == self.y[rows]
        self.right[rows] &= withstood
        # One lucky draw is no reason to stop: what is sent should fool most of them.
        going = torch.ones_like(withstood) if self.ask.defense.info.random else withstood
        return rows[going], found.image[going]

    def _loss(
        self, surrogate: Surrogate, rows: Tensor, shown: Tensor | None, target: int | None
    ) -> Callable[[Tensor], Tensor]:
        assert self.seen is not None  # the first step always asks
        aimed = None if target is None else likely_wrong(self.seen[rows], self.y[rows], target)
        follow = criterion(self.settings, self.y[rows], aimed)
        look = Look(shown, lambda: self.ask.seeds(rows))
        return lambda image: surrogate(image, follow, look)


def _surrogate(defense: Defense, settings: AttackSettings) -> Surrogate:
    if lacking := lacks(defense, settings):
        raise ValueError(f"attack {settings.name!r}: purifier {defense.name!r} {lacking}")
    return {
        "two-view": _two_view,
        "joint": _joint,
        "bpda": _bpda,
        "trajectory": _trajectory,
        "end-to-end": _end_to_end,
        "unrolled": _unrolled,
    }[settings.mode](defense, settings)


def lacks(defense: Defense, settings: AttackSettings) -> str | None:
    """What a defence lacks for an attack of a gradient mode, as the end of a sentence; None where it can be run."""
    purifier, info = defense.purifier, defense.info
    descends = isinstance(purifier, DescentPurifier)
    lacking: dict[Mode, str | None] = {
        "two-view": _lacks_views(purifier, settings),
        "joint": None if judging(purifier) else "has no loss of its own",
        "bpda": None,
        "trajectory": None if descends else "makes no steps",
        "unrolled": None if descends else "makes no steps to unroll",
        "end-to-end": None if differentiable(purifier) else "can't be differentiated through",
    }
    if settings.eot > 1 and not info.random:
        return "draws nothing at random to average over"
    if settings.weight and not judging(purifier):
        return "has no loss of its own"
    return lacking[settings.mode]


def _lacks_views(purifier: Purifier, settings: AttackSettings) -> str | None:
    if not hasattr(purifier, "view_logits"):
        return "compares no views"
    drawn = not isinstance(purifier, DescentPurifier) or isinstance(purifier.descended, RandomObjective)
    return None if drawn or settings.eot == 1 else "compares the same views in every draw"  # random in its start alone


def judging(purifier: Purifier) -> DescentPurifier | None:  # type: ignore[type-arg]
    """The purifier whose loss judges the incoming image: in a chain the first one, if it has any."""
    first = purifier.purifiers[0] if isinstance(purifier, Chain) else purifier
    return first if isinstance(first, DescentPurifier) else None


def _two_view(defense: Defense, settings: AttackSettings) -> Surrogate:
    views = defense.purifier.view_logits  # type: ignore[attr-defined]

    def drawn(image: Tensor, follow: Criterion, look: Look, is_first: bool) -> Tensor:
        seeds = look.seeds()  # of both terms: the purifier's own loss is that of these very views
        each = torch.stack([follow(logits) for logits in views(image, seeds)]).sum(0)
        return each - _penalty(defense, settings, image, seeds)

    return _averaged(settings, drawn)


def _joint(defense: Defense, settings: AttackSettings) -> Surrogate:
    def loss(image: Tensor, follow: Criterion, look: Look) -> Tensor:
        return follow(defense.classifier(image)) - _penalty(defense, settings, image, look.seeds())  # SOAP Eq. (9)

    return loss


def _penalty(defense: Defense, settings: AttackSettings, image: Tensor, seeds: list[int] | None) -> Tensor | float:
    purifier = judging(defense.purifier)
    return settings.weight * purifier.objective(image, seeds) if purifier and settings.weight else 0.0


def _averaged(settings: AttackSettings, drawn: Callable[[Tensor, Criterion, Look, bool], Tensor]) -> Surrogate:
    """The mean of `eot` draws of a loss; `drawn`'s last argument says whether it is the first of them."""

    def loss(image: Tensor, follow: Criterion, look: Look) -> Tensor:
        return torch.stack([drawn(image, follow, look, draw == 0) for draw in range(settings.eot)]).mean(0)

    return loss


def _bpda(defense: Defense, settings: AttackSettings) -> Surrogate:
    def drawn(image: Tensor, follow: Criterion, look: Look, is_first: bool) -> Tensor:
        # What was seen is not what a diverse input becomes.
        purified = look.purified if is_first and not settings.diversity else None
        if purified is None:
            purified = defense.purify(image.detach(), look.seeds()).image
        return follow(defense.logits(_as_if_identity(image, purified)))

    return _averaged(settings, drawn)


def _trajectory(defense: Defense, settings: AttackSettings) -> Surrogate:
    purifier = defense.purifier
    assert isinstance(purifier, DescentPurifier)

    def drawn(image: Tensor, follow: Criterion, look: Look, is_first: bool) -> Tensor:
        found = path(purifier, image.detach(), look.seeds(), through=False, steps=settings.followed)
        passed = [follow(defense.logits(_as_if_identity(image, iterate))) for iterate in found.iterates]
        return torch.stack(passed).sum(0)

    return _averaged(settings, drawn)


def _unrolled(defense: Defense, settings: AttackSettings) -> Surrogate:
    purifier = defense.purifier
    assert isinstance(purifier, DescentPurifier)

    def drawn(image: Tensor, follow: Criterion, look: Look, is_first: bool) -> Tensor:
        found = path(purifier, image, look.seeds(), steps=settings.followed, past_clips=settings.past_clips)
        return follow(defense.logits(found.chosen))

    return _averaged(settings, drawn)


def _end_to_end(defense: Defense, settings: AttackSettings) -> Surrogate:
    def drawn(image: Tensor, follow: Criterion, look: Look, is_first: bool) -> Tensor:
        # A single draw tells less than the function without its noise.
        seeds = look.seeds() if settings.eot > 1 else None
        return follow(defense.logits(gradient_path(defense.purifier, image, seeds)))

    return _averaged(settings, drawn)


def _as_if_identity(image: Tensor, purified: Tensor) -> Tensor:
    """Forward: the purified image; backward: the identity."""
    return image + (purified - image).detach()


def differentiable(purifier: Purifier) -> bool:
    """Whether `end-to-end` has a gradient to go by: of the purifier, or in a chain of one of its purifiers at least.

    What draws random numbers for each step has to be asked as it is: `bpda` does.
    """
    if not isinstance(purifier, Chain):
        return hasattr(purifier, "restored")
    own = [differentiable(step) for step in purifier.purifiers]
    return any(own) and all(mine or not step.info.random for mine, step in zip(own, purifier.purifiers, strict=True))


def gradient_path(purifier: Purifier, image: Tensor, seeds: Sequence[int] | None = None) -> Tensor:
    """The purified image with a gradient; what has none counts as the identity.

    Without seeds what is random is left out: noise, and purifiers that draw for each step.
    """
    if isinstance(purifier, Chain):
        for step, own in zip(purifier.purifiers, purifier.seeds_of_steps(seeds), strict=True):
            image = gradient_path(step, image, own)
        return image
    if hasattr(purifier, "restored"):
        return purifier.restored(image) if seeds is None else purifier.restored(image, seeds)  # type: ignore[no-any-return]
    if purifier.info.random and seeds is None:
        return image
    return _as_if_identity(image, purifier.purify(image.detach(), seeds).image)

"""Whether an evaluation can be believed: what should make anybody distrust high accuracies, looked for by machine.

After Athalye et al. (ICML 2018) and Carlini et al. (2019, "On Evaluating Adversarial Robustness"), whose list of symptoms of
masked gradients this is. docs/checks.md says what each flaw means and what to do about it.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import permutations

import torch
from torch import Tensor
from torch.nn import functional as F

from models.catalog import Defense
from training.attacks import BLIND, AttackSettings, draws, gradient_path
from training.evaluate import ADAPTIVE, Cell, applies
from training.outcomes import withstood

PROBED = 32  # images
CHANCE = 0.25  # of ten classes, with room for what 32 images leave to luck
SIGMAS = 3.0


@dataclass(frozen=True)
class Flaw:
    """code: its heading in docs/checks.md. text: what was seen."""

    code: str
    purifier: str
    text: str

    def __str__(self) -> str:
        return f"{self.purifier}: {self.code}: {self.text}"


def of_results(cells: Sequence[Cell]) -> list[Flaw]:
    """Flaws that the accuracies of one classifier show."""
    found = []
    for purifier in dict.fromkeys(cell.purifier for cell in cells):
        mine = [cell for cell in cells if cell.purifier == purifier and not cell.oracle]
        found += [*_rises(purifier, mine), *_weaker_than_blind(purifier, mine)]
    return found


def _rises(purifier: str, cells: Sequence[Cell]) -> Iterable[Flaw]:
    """Of two attacks that differ in nothing but in that one may do more, that one must not leave more images right."""
    attacked = [
        cell for cell in cells if cell.attack.steps > 1 and (purifier == "none" or cell.attack.mode in ADAPTIVE)
    ]
    for less, more in permutations(attacked, 2):
        if _does_more(less.attack, more.attack) and _significantly_better(more, less):
            told = f"{more.attack.text()} leaves {more.accuracy:.1%} right, {less.attack.text()} {less.accuracy:.1%}"
            yield Flaw("rises-with-effort", purifier, told)


def _does_more(less: AttackSettings, more: AttackSettings) -> bool:
    effort = ("epsilon", "step_size", "steps", "restarts")
    alike = {"name": "", **dict.fromkeys(effort, 0)}
    mine, other = (attack.model_dump() | alike for attack in (less, more))
    mine["random_start"] = other["random_start"]  # a start of its own is only another attack with restarts
    larger = more.epsilon > less.epsilon and more.steps >= less.steps
    longer = more.epsilon == less.epsilon and more.steps > less.steps
    return mine == other and (larger or longer) and more.restarts >= less.restarts


def _significantly_better(one: Cell, other: Cell) -> bool:
    """Whether more images are right in `one`, beyond chance (a sign test on the images that differ)."""
    pairs = list(zip(one.outcomes, other.outcomes, strict=False))
    gained, lost = pairs.count(("1", "0")), pairs.count(("0", "1"))
    return gained - lost > SIGMAS * math.sqrt(gained + lost)


def _weaker_than_blind(purifier: str, cells: Sequence[Cell]) -> Iterable[Flaw]:
    """Who knows the defence must not do worse than who doesn't."""
    aware = [cell for cell in cells if cell.attack.mode in ADAPTIVE]
    if not aware:
        return
    n, epsilon = min(cell.n for cell in aware), max(cell.attack.epsilon for cell in aware)
    blind = [cell for cell in cells if cell.attack.mode in BLIND and _is_within(cell.attack, epsilon)]
    left = withstood(cell.model_copy(update={"outcomes": cell.outcomes[:n]}) for cell in aware)
    for cell in blind:
        accuracy = cell.outcomes[:n].count("1") / n
        if left - accuracy > SIGMAS * math.sqrt(2 * max(left * (1 - left), 1 / n) / n):
            told = f"attacks that know the defence leave {left:.1%} right, {cell.attack.text()} leaves {accuracy:.1%}"
            yield Flaw("weaker-than-blind", purifier, told)


def _is_within(attack: AttackSettings, epsilon: float) -> bool:
    """In the same l_inf ball."""
    return attack.epsilon <= epsilon and not (attack.attack or "").startswith("L2")


def of_defense(defense: Defense, x: Tensor, y: Tensor) -> list[Flaw]:
    """Flaws that a few attacks of the defence itself show. x: (N, C, H, W) in [0, 1]; y: (N,); the first 32 are looked at."""
    x, y = x[:PROBED], y[:PROBED]
    found = [*_probabilities(defense, x), *_zero_gradient(defense, x, y), *_zero_budget(defense, x, y)]
    return [*found, *_unbounded(defense, x, y)]


def _probabilities(defense: Defense, x: Tensor) -> Iterable[Flaw]:
    with torch.no_grad():
        logits = defense.logits(x)
    if bool((logits >= 0).all()) and torch.allclose(logits.sum(1), torch.ones(len(x), device=x.device), atol=1e-4):
        yield Flaw("probabilities", defense.name, "what the classifier gives are probabilities, not logits")


def _zero_gradient(defense: Defense, x: Tensor, y: Tensor) -> Iterable[Flaw]:
    leaf = x.clone().requires_grad_()
    with torch.enable_grad():
        loss = F.cross_entropy(defense.logits(gradient_path(defense.purifier, leaf)), y, reduction="sum")
        gradient = torch.autograd.grad(loss, leaf, allow_unused=True)[0] if loss.requires_grad else None
    without = 1.0 if gradient is None else float((gradient.flatten(1).abs().amax(1) == 0).float().mean())
    if without > 0.1:
        yield Flaw("zero-gradient", defense.name, f"{without:.0%} of the images have no gradient at all")


def _modes(defense: Defense, **settings: float) -> list[AttackSettings]:
    """The attacks of this defence, with these settings; on a bare classifier that is BPDA, which is PGD there."""
    attacks = [AttackSettings.model_validate({"name": mode, "mode": mode, **settings}) for mode in ADAPTIVE]
    return [attack for attack in attacks if attack.mode == "bpda" or applies(defense, attack)]


def _zero_budget(defense: Defense, x: Tensor, y: Tensor) -> Iterable[Flaw]:
    for attack in _modes(defense, epsilon=0.0, step_size=1 / 255, steps=1):
        if defense.info.random:  # every look draws anew
            continue
        clean = defense.purify(x, draws(defense, attack, 0, len(x))).logits.argmax(1) == y
        right = ADAPTIVE[attack.mode](defense, x, y, attack, 0).right
        if not torch.equal(right, clean):
            shares = [f"{float(each.float().mean()):.1%}" for each in (right, clean)]
            told = f"{attack.mode} with a budget of 0 leaves {shares[0]} right, no attack {shares[1]}"
            yield Flaw("zero-budget", defense.name, told)


def _unbounded(defense: Defense, x: Tensor, y: Tensor) -> Iterable[Flaw]:
    right = torch.ones(len(x), dtype=torch.bool, device=x.device)
    for attack in _modes(defense, epsilon=1.0, step_size=0.05, steps=40):
        right &= ADAPTIVE[attack.mode](defense, x, y, attack, 0).right
    share = float(right.float().mean())
    if share > CHANCE:
        yield Flaw("unbounded", defense.name, f"an attacker who may do anything to an image leaves {share:.0%} right")

"""Whether an evaluation can be believed: what should make anybody distrust high accuracies, looked for by machine.

After Athalye et al. (ICML 2018) and Carlini et al. (2019, "On Evaluating Adversarial Robustness"), whose list of symptoms of
masked gradients this is. docs/checks.md says what each flaw means and what to do about it.
"""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import permutations

import torch
from torch import Tensor
from torch.nn import functional as F

from models.catalog import Defense
from training.attacks import BLIND, BY_QUERIES, PURIFYING, AttackSettings, Mode, knowing
from training.attacks.asking import Asker
from training.attacks.aware import gradient_path, lacks
from training.evaluate import Cell

PROBED = 32  # images
# Cheap ones first: those that follow look at what is left.
MODES: tuple[Mode, ...] = ("two-view", "bpda", "end-to-end", "trajectory", "unrolled")
CHANCE = 0.25  # of ten classes, with room for what 32 images leave to luck
SIGMAS = 3.0
# Greatest first, about 64/255, 16/255 and 4/255 after it. Two steps of the same size would be no other attack, since each
# step is asked about.
EFFORTS_TRIED = (
    *({"epsilon": budget, "step_size": budget / 4, "steps": 10} for budget in (1.0, 1 / 4, 1 / 16, 1 / 64)),
    {"epsilon": 1.0, "step_size": 1 / 8, "steps": 2},
)
SQUARE_FOUND = "Square Attack has decreased"  # AutoAttack's flag
MORE_BY_SEARCH = 0.02  # AutoAttack itself warns from 0.002 on, of the 1000 images and more that it is used with


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
    found: list[Flaw] = []
    for purifier in dict.fromkeys(cell.purifier for cell in cells):
        mine = [cell for cell in cells if cell.purifier == purifier and not cell.oracle]
        for check in (_rises, _weaker_than_blind, _square_beats_gradients, _without_eot, _flagged_by_autoattack):
            found += check(purifier, mine)
    return found


def _rises(purifier: str, cells: Sequence[Cell]) -> Iterable[Flaw]:
    """Of two attacks that differ in nothing but in that one may do more, that one must not leave more images right."""
    # One step overshoots, and Foolbox tells its steps among other arguments.
    attacked = [
        cell for cell in cells if _on(purifier, cell) and cell.attack.steps != 1 and cell.attack.mode != "foolbox"
    ]
    return _risen(purifier, [(cell.attack, cell.outcomes) for cell in attacked])


def _risen(purifier: str, tried: Sequence[tuple[AttackSettings, str]]) -> Iterable[Flaw]:
    """tried: attacks and the outcomes of the same images."""
    for (less, before), (more, after) in permutations(tried, 2):
        if _does_more(less, more) and _more_right(after, before):
            told = f"{more.text()} leaves {_share(after):.1%} right, {less.text()} {_share(before):.1%}"
            yield Flaw("rises-with-effort", purifier, told)


def _on(purifier: str, cell: Cell) -> bool:
    """Whether the images were made on this very defence, to fool it; others may fool it less the more is done to them."""
    here = cell.attack.aware or (purifier == "none" and cell.attack.source is None)
    return here and cell.attack.mode not in ("none", "features", "substitute")


EFFORTS = ("epsilon", "steps", "restarts", "targets", "eot")


def _does_more(less: AttackSettings, more: AttackSettings) -> bool:
    pairs = [(getattr(less, effort), getattr(more, effort)) for effort in EFFORTS]
    no_less, other = all(one <= two for one, two in pairs), any(one < two for one, two in pairs)
    return no_less and other and _sort(less) == _sort(more)


def _sort(attack: AttackSettings) -> dict[str, object]:
    """What an attack does, but for how much of it. A start of its own is only another attack with restarts."""
    how_much = {"name", "images", "step_size", "random_start", *EFFORTS}
    return {**attack.model_dump(exclude=how_much), "targeted": attack.targets > 0, "averaged": attack.eot > 1}


def _more_right(one: str, other: str) -> bool:
    """Whether more images are right in `one`, beyond chance (a sign test on the images that differ)."""
    pairs = list(zip(one, other, strict=False))
    gained, lost = pairs.count(("1", "0")), pairs.count(("0", "1"))
    return gained - lost > SIGMAS * math.sqrt(gained + lost)


def _left(cells: Sequence[Cell], n: int) -> str:
    """Outcomes of the first n images under all of these attacks; each counts for the images that it was made on."""
    return "".join("0" if any(cell.outcomes[i : i + 1] == "0" for cell in cells) else "1" for i in range(n))


def _share(outcomes: str) -> float:
    return outcomes.count("1") / len(outcomes)


def _weaker_than_blind(purifier: str, cells: Sequence[Cell]) -> Iterable[Flaw]:
    """Who knows the defence must not do worse than who doesn't, and may change as much at most."""
    aware = [cell for cell in cells if cell.attack.aware and cell.attack.by_gradient and cell.attack.norm == "linf"]
    for blind in (cell for cell in cells if cell.attack.mode in BLIND and not cell.attack.aware):
        budgets = [cell.attack.epsilon for cell in aware if blind.attack.stays_within(cell.attack.epsilon)]
        if not budgets:
            continue
        rivals = [cell for cell in aware if cell.attack.stays_within(min(budgets))]
        left = _left(rivals, min(blind.n, max(cell.n for cell in rivals)))
        if _more_right(left, blind.outcomes):
            told = f"attacks that know the defence leave {_share(left):.1%} of {len(left)} images right, "
            told += f"{blind.attack.text()} leaves {_share(blind.outcomes[: len(left)]):.1%}"
            yield Flaw("weaker-than-blind", purifier, told)


def _square_beats_gradients(purifier: str, cells: Sequence[Cell]) -> Iterable[Flaw]:
    """Random search must not find what no gradient led to."""
    own = [cell for cell in cells if _on(purifier, cell)]
    for search in (cell for cell in own if _searches(cell)):
        rivals = _rivals(search, own)
        if not rivals:
            continue
        n = min(search.n, max(cell.n for cell in rivals))
        if search.redrawn:
            # Who asks a random defence most often is lucky most often; what was sent is compared with fresh draws.
            left, both = min(cell.redrawn.mean for cell in rivals if cell.redrawn), search.redrawn.mean
            n = min(n, search.redrawn.n)
            luck = SIGMAS * math.sqrt(2 * max(left * (1 - left), 1 / n) / n)
        else:
            left, both = _share(_left(rivals, n)), _share(_left([search, *rivals], n))
            luck = 1 / n
        if left - both > max(MORE_BY_SEARCH, luck) + 1e-9:  # shares of whole images, rounded
            told = f"gradients leave {left:.1%} of {n} images right, with {search.attack.text()} it is {both:.1%}"
            yield Flaw("square-beats-gradients", purifier, told)


def _searches(cell: Cell) -> bool:
    """Whether it goes by answers alone, or has a part that does, of which it says that this found more than its gradients."""
    return cell.attack.mode in BY_QUERIES or cell.attack.attack == "square" or _by_square(cell)


def _by_square(cell: Cell) -> bool:
    return any(SQUARE_FOUND in flag for flag in cell.flags)


def _rivals(search: Cell, cells: Sequence[Cell]) -> list[Cell]:
    """The gradient attacks that must not do worse: in the same ball, and of more than one step, since one overshoots."""
    ball = search.attack.norm, search.attack.epsilon
    climbed = [cell for cell in cells if cell.attack.by_gradient and cell.attack.steps != 1]
    inside = [cell for cell in climbed if (cell.attack.norm, cell.attack.epsilon) == ball]
    return [cell for cell in inside if cell.redrawn or not search.redrawn]


def _without_eot(purifier: str, cells: Sequence[Cell]) -> Iterable[Flaw]:
    """What is random must have been attacked in the mean of its draws."""
    aware = [cell for cell in cells if cell.redrawn and cell.attack.aware]
    climbed = [cell for cell in aware if cell.attack.mode not in BY_QUERIES]
    if climbed and not any(_averaged(cell) for cell in climbed):
        told = "its answers are random, and no gradient at them was the mean of several draws (eot)"
        yield Flaw("randomness-without-eot", purifier, told)


def _averaged(cell: Cell) -> bool:
    """Whether its gradients are means of the purifier's answers. The views that it draws are none."""
    return cell.attack.eot > 1 and cell.attack.mode in PURIFYING


def _flagged_by_autoattack(purifier: str, cells: Sequence[Cell]) -> Iterable[Flaw]:
    """AutoAttack's own warnings, but for those that other attacks of the same evaluation answer."""
    own = [cell for cell in cells if _on(purifier, cell)]
    answered = {
        "dynamic defense": any(cell.attack.mode in PURIFYING for cell in own),
        "randomized defense": any(_averaged(cell) for cell in own),
        # Its images are compared with those of gradients, `_square_beats_gradients`.
        SQUARE_FOUND: all(any(rival.n >= cell.n for rival in _rivals(cell, own)) for cell in own if _by_square(cell)),
    }
    # It counts batch by batch, so the same flag comes with many numbers.
    flags = {re.sub(r"[\d.]+%?", "", flag): flag for cell in own for flag in cell.flags}
    for flag in flags.values():
        if not any(words in flag and done for words, done in answered.items()):
            yield Flaw("autoattack-flag", purifier, flag)


def of_defense(defense: Defense, x: Tensor, y: Tensor) -> list[Flaw]:
    """Flaws that a few attacks of the defence itself show. x: (N, C, H, W) in [0, 1]; y: (N,); the first 32 are looked at."""
    x, y = x[:PROBED], y[:PROBED]
    found = [*_probabilities(defense, x), *_zero_gradient(defense, x, y), *_zero_budget(defense, x, y)]
    return [*found, *_unbounded(defense, x, y), *_rises_when_tried(defense, x, y)]


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
    attacks = [AttackSettings.model_validate({"name": mode, "mode": mode, **settings}) for mode in MODES]
    return [attack for attack in attacks if lacks(defense, attack) is None]


def _zero_budget(defense: Defense, x: Tensor, y: Tensor) -> Iterable[Flaw]:
    # Every look at a random defence has seeds of its own, and no steps make one look.
    attacks = _modes(defense, epsilon=0.0, step_size=1 / 255, steps=0 if defense.info.random else 1)
    first_look = Asker(defense, attacks[0], 0, len(x))  # the seeds are the same in all modes
    clean = first_look(x, torch.arange(len(x), device=x.device)).logits.argmax(1) == y
    for attack in attacks:
        right = knowing(defense, x, y, attack).right
        if not torch.equal(right, clean):
            shares = [f"{float(each.float().mean()):.1%}" for each in (right, clean)]
            told = f"{attack.mode} with a budget of 0 leaves {shares[0]} right, no attack {shares[1]}"
            yield Flaw("zero-budget", defense.name, told)


def _unbounded(defense: Defense, x: Tensor, y: Tensor) -> Iterable[Flaw]:
    left = torch.arange(len(x))
    for attack in _modes(defense, epsilon=1.0, step_size=0.05, steps=40):
        left = left[knowing(defense, x[left], y[left], attack).right.cpu()]
        if not len(left):
            return
    share = len(left) / len(x)
    if share > CHANCE:
        yield Flaw("unbounded", defense.name, f"an attacker who may do anything to an image leaves {share:.0%} right")


def _rises_when_tried(defense: Defense, x: Tensor, y: Tensor) -> Iterable[Flaw]:
    """What few plans hold: an attack beside the same one with a smaller budget, or with fewer steps.

    Where the greatest effort works no lesser one leaves fewer images right, and most often its beginning on a third of them is
    enough to see that.
    """
    few = max(1, len(x) // 3)
    for greatest, *lesser in zip(*(_modes(defense, **effort) for effort in EFFORTS_TRIED), strict=True):
        begun = greatest.model_copy(update={"steps": 3})
        if _share(_tried(defense, x[:few], y[:few], begun)) > CHANCE:
            found = [(effort, _tried(defense, x, y, effort)) for effort in (greatest, *lesser)]
            yield from _risen(defense.name, found)


def _tried(defense: Defense, x: Tensor, y: Tensor, attack: AttackSettings) -> str:
    return "".join(str(int(right)) for right in knowing(defense, x, y, attack).right.tolist())

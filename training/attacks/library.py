"""Attacks of others' libraries: Foolbox (Rauber et al., JOSS 2020) and AutoAttack (Croce, Hein, ICML 2020; `pyautoattack`).

AutoAttack says by warnings that its result should not be trusted: a random or dynamic defence, probabilities for logits, zero
gradients, Square better than gradients. Here they come back as `flags`; training/checks.py makes them errors.
"""

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from models.catalog import CHUNK, Defense
from models.classifiers import Classifier
from training.attacks.asking import Asker, Survived
from training.attacks.aware import gradient_path
from training.attacks.settings import AttackSettings

PARTS = ("apgd-ce", "apgd-dlr", "apgd-t", "fab", "fab-t", "square")
STANDARD = ("apgd-ce", "apgd-t", "fab-t", "square")
LEAST_CLASSES = {"apgd-dlr": 3, "apgd-t": 4}  # of their losses


def foolbox_attack(classifier: Classifier, x: Tensor, y: Tensor, settings: AttackSettings) -> Tensor:
    """Images by an attack of Foolbox, clipped to the budget in the attack's norm. (N, C, H, W), (N,) -> (N, C, H, W).

    Raises:
        ValueError: Foolbox isn't installed, has no such attack, or that has no such arguments.
    """
    try:
        from foolbox import attacks
        from foolbox.models.pytorch import PyTorchModel
    except ImportError as error:
        raise ValueError(f"attack {settings.name!r} needs Foolbox: pip install 'unperturb[attacks]'") from error
    kind = getattr(attacks, str(settings.attack), None)
    if not isinstance(kind, type):
        raise ValueError(f"attack {settings.name!r}: Foolbox has no {settings.attack}")
    # Numbers of steps are whole, and TOML tells 3 from 3.0; the settings model doesn't.
    arguments = {name: int(value) if value.is_integer() else value for name, value in settings.arguments.items()}
    try:
        attack = kind(**arguments)
    except TypeError as error:
        raise ValueError(f"attack {settings.name!r}: {error}") from error
    model = PyTorchModel(classifier, bounds=(0, 1), device=x.device)
    with torch.enable_grad(), _own_draws(settings.seed):
        _, clipped, _ = attack(model, x.contiguous(), y, epsilons=settings.epsilon)
    return clipped.detach()  # type: ignore[no-any-return]


@contextmanager
def _own_draws(seed: int) -> Iterator[None]:
    """The libraries draw from torch's global generators: not from where those were, and they are put back."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        yield


def autoattack(
    logits: Callable[[Tensor], Tensor], x: Tensor, y: Tensor, settings: AttackSettings
) -> tuple[Tensor, tuple[str, ...]]:
    """Images by AutoAttack, and its flags; images that withstand it come back as they were.

    logits: (N, C, H, W) in [0, 1] -> (N, K), differentiable as far as it is. `settings.attack`: "standard" or one of `PARTS`.

    Raises:
        ValueError: the library isn't installed, has no such attack, or there are too few classes for it.
    """
    if settings.attack not in ("standard", *PARTS):
        known = ", ".join(("standard", *PARTS))
        raise ValueError(f"attack {settings.name!r}: AutoAttack has no {settings.attack!r}; it has {known}")
    try:
        from pyautoattack import AutoAttack, checks
    except ImportError as error:
        raise ValueError(f"attack {settings.name!r} needs AutoAttack: pip install 'unperturb[attacks]'") from error
    parts = STANDARD if settings.attack == "standard" else (settings.attack,)
    with torch.no_grad():
        classes = logits(x[:1]).shape[1]
    for part, least in LEAST_CLASSES.items():
        if part in parts and classes < least:
            raise ValueError(f"attack {settings.name!r}: {part} compares {least} classes; the classifier has {classes}")
    checks.funcs.update(dict.fromkeys(checks.funcs, 0))  # it counts from the process's start on
    made = AutoAttack(
        _Module(logits),
        norm={"linf": "Linf", "l2": "L2"}[settings.norm],
        eps=settings.epsilon,
        seed=settings.seed,
        version="custom",
        attacks=list(parts),
        device=x.device,
    )
    _as_standard(made, classes, queries=settings.steps)
    with _flags() as flags, _own_draws(settings.seed):
        x_adv, _ = made.run_standard_evaluation(x.contiguous(), y, batch_size=CHUNK)
    return x_adv.detach(), tuple(dict.fromkeys(flags))


def _as_standard(made: Any, classes: int, queries: int) -> None:
    """Version "standard" of the public code, for fewer classes than ten too; `queries` of Square where it isn't 0."""
    made.apgd.n_restarts = made.fab.n_restarts = made.apgd_targeted.n_restarts = 1
    made.apgd_targeted.n_target_classes = made.fab.n_target_classes = min(9, classes - 1)
    made.square.n_queries = queries or 5000


class _Module(nn.Module):
    """The library wants a module."""

    def __init__(self, logits: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, x: Tensor) -> Tensor:
        return self.logits(x)


@contextmanager
def _flags() -> Iterator[list[str]]:
    """What the library's logger warns of, in place of its output; whatever the level of logging, it is kept."""
    logger, found = logging.getLogger("auto-attack"), list[str]()

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append(record.getMessage())

    handler, before, trace = Keep(logging.WARNING), (logger.propagate, logger.level), sys.gettrace()
    logger.addHandler(handler)
    logger.propagate = False
    logger.setLevel(logging.WARNING)
    try:
        yield found
    finally:
        logger.removeHandler(handler)
        logger.propagate = before[0]
        logger.setLevel(before[1])
        sys.settrace(trace)  # the library's check for dynamic defences leaves none


def autoattack_whole(defense: Defense, x: Tensor, y: Tensor, settings: AttackSettings, first: int = 0) -> Survived:
    """AutoAttack on the whole defence, whose gradient goes past what has none (BPDA). first: see `aware`.

    Raises:
        ValueError: see `autoattack`.
    """
    ask = Asker(defense, settings, first, len(x))

    def logits(image: Tensor) -> Tensor:
        seeds = ask.seeds(torch.arange(len(image)))
        return defense.logits(gradient_path(defense.purifier, image, seeds))

    x_adv, flags = autoattack(logits, x, y, settings)
    return Survived(ask(x_adv, torch.arange(len(x))).logits.argmax(1) == y, x_adv, flags)

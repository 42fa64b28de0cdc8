"""SOAP's Fig. 4: clean images, their attacked and purified ones, and both changes enlarged; from the shipped checkpoints.

The images are among the first 256 test images, which ship in tests/data, and were chosen by hand: those for which purification
helps, and those for which it fails. How many of each there are is no measurement; the tables have that.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.catalog import Catalog, Defense
from training.attacks import AttackSettings
from training.attacks.blind import static
from training.data import load_data
from training.pictures.picture import GREEN, RED, Picture
from training.plan import load_plan

DATA = Path(__file__).parents[2] / "tests" / "data"


@dataclass(frozen=True)
class Choice:
    """A purifier, and test images for which it undoes plan paper-soap's PGD, or doesn't."""

    model: str
    classifier: str
    purifier: str
    helps: tuple[int, ...]
    fails: tuple[int, ...]

    @property
    def indices(self) -> list[int]:
        return [*self.helps, *self.fails]


CHOICES = (
    Choice("cifar10", "resnet18-soap-lc", "soap-lc", (0, 1, 2, 5), (3, 4, 28)),
    Choice("mnist", "cnn-soap-dr", "soap-dr", (0, 3, 7, 11), (9, 12, 38)),
    Choice("cifar10", "resnet18-natural", "nrp", (2, 3, 5, 9), (7, 36, 40)),
)


@dataclass(frozen=True)
class Strip:
    """The rows of a strip, (N, C, H, W) in [0, 1], and how each image is read, (N,)."""

    clean: Tensor
    attacked: Tensor
    purified: Tensor
    seen_clean: Tensor
    seen_attacked: Tensor
    seen_purified: Tensor
    labels: Tensor


def pictures(catalog: Catalog) -> list[Picture]:
    """One of each choice that the catalog holds."""
    return [_picture(catalog.defense(each.model, each.purifier, each.classifier), each) for each in CHOICES]


def pgd(model: str) -> AttackSettings:
    """Plan paper-soap's."""
    return next(attack for attack in load_plan("paper-soap", model).attacks if attack.name == "pgd")


def made(defense: Defense, choice: Choice) -> Strip:
    """The images of a choice, attacked through the classifier alone and purified."""
    test = load_data(choice.model, "test", DATA)
    which = torch.tensor(choice.indices)
    clean = test.floats(0, int(which.max()) + 1)[which].contiguous(memory_format=torch.channels_last)
    labels = test.labels[which]
    attacked = static(defense.classifier, clean, labels, pgd(choice.model))
    purified = defense.purify(attacked)
    with torch.no_grad():
        seen_clean, seen_attacked = (defense.classifier(x).argmax(1) for x in (clean, attacked))
    return Strip(clean, attacked, purified.image, seen_clean, seen_attacked, purified.logits.argmax(1), labels)


def _picture(defense: Defense, choice: Choice) -> Picture:
    # Where budgets are large, so are the changes.
    factor = 10 if pgd(choice.model).epsilon < 0.2 else 1

    def paint(figure: Any) -> None:
        strip = made(defense, choice)
        rows: tuple[tuple[str, Tensor, Tensor | None], ...] = (
            ("clean", strip.clean, strip.seen_clean),
            ("adversarial", strip.attacked, strip.seen_attacked),
            (_times("perturbation", factor), _enlarged(strip.attacked - strip.clean, factor), None),
            (f"purified by\n{choice.purifier}", strip.purified, strip.seen_purified),
            (_times("change", factor), _enlarged(strip.purified - strip.attacked, factor), None),
        )
        axes = figure.subplots(len(rows), len(choice.indices), squeeze=False)
        for row, (title, images, seen) in zip(axes, rows, strict=True):
            row[0].set_ylabel(title)
            for i, axis in enumerate(row):
                read = None if seen is None else (defense.card.labels[int(seen[i])], bool(seen[i] == strip.labels[i]))
                _show(axis, images[i], read)

    name = f"{choice.model}-{choice.classifier}-{choice.purifier}-strip.png"
    return Picture(name, _caption(choice, factor), (1.25 * len(choice.indices) + 0.5, 7.4), paint)


def _times(what: str, factor: int) -> str:
    return f"{what} x {factor}" if factor > 1 else what


def _enlarged(change: Tensor, factor: int) -> Tensor:
    return (0.5 + factor * change).clamp(0, 1)


def _show(axis: Any, image: Tensor, read: tuple[str, bool] | None) -> None:
    axis.imshow(image.permute(1, 2, 0).squeeze(-1).numpy(), cmap="gray", vmin=0, vmax=1)
    axis.set_xticks([])
    axis.set_yticks([])
    if read:
        label, right = read
        axis.set_xlabel(f"{'✓' if right else '✗'} {label}", color=GREEN if right else RED)


def _caption(choice: Choice, factor: int) -> str:
    helps, fails = (", ".join(map(str, part)) for part in (choice.helps, choice.fails))
    enlarged = (
        f"changes {factor} times enlarged" if factor > 1 else "changes as they are: larger they would be off the scale"
    )
    return (
        f"{choice.model} / {choice.classifier}: what an attack and `{choice.purifier}` make of single images (SOAP's Fig. 4; "
        f"{enlarged}). {pgd(choice.model).text()}, on the classifier alone. Chosen by hand: test images {helps}, where "
        f"purification helps, and {fails}, where it doesn't (evenly grey: left alone); how often either happens is in the tables."
    )

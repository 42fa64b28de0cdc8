"""What is measured: the purifiers that ship, the papers' grids on the same networks, and two of the papers' larger networks."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.measure import test_images
from benchmarks.speed import published
from models.catalog import Catalog, Defense, build_defense
from models.checkpoint import Card, Checkpoint, PurifierEntry
from models.classifiers import Classifier, build_classifier, frozen
from models.networks import build_network, frozen_network
from models.purifiers import reference
from models.purifiers.base import Material, build_purifier
from models.purifiers.descending import DescentPurifier

BATCHES = (1, 8, 64)
CIFAR = {"budgets": [step * 4 / 255 for step in range(11)], "step_size": 4 / 255, "steps": 5}  # SOAP, Sec. 4
MNIST = {"budgets": [step / 10 for step in range(11)], "step_size": 0.1, "steps": 5}
GRAPH_FITS = 96  # pixels square; the dense generator's graph of one image of 224 x 224 takes more than 22 GB
Run = Callable[[Tensor, Sequence[int]], Any]


@dataclass(frozen=True)
class Goal:
    """What a batch size is to reach: at most so many ms an image, or so many times as fast as published."""

    ms: float | None = None
    times: float | None = None


@dataclass(frozen=True)
class Row:
    """One purifier on images x (N, C, H, W); `sides` are the ways to the same answer, "ours" among them.

    authors: ms an image of the papers' public code at batch 1, 8 and 64 on another two-core machine, where it was measured.
    loop_of: the row whose published loop did this row's job before; its own settings were never published.
    heavy: takes minutes, so it has two rounds at most.
    """

    name: str
    defense: Defense
    x: Tensor
    weights: str
    inputs: str
    sides: dict[str, Run]
    batches: tuple[int, ...] = BATCHES
    goals: dict[int, Goal] = field(default_factory=dict)
    authors: dict[int, float] = field(default_factory=dict)
    loop_of: str | None = None
    heavy: bool = False


def rows(catalog: Catalog) -> Iterator[Row]:
    """The rows of the table, in its order."""
    lc, rp = _subject(catalog, "cifar10", "soap-lc"), _subject(catalog, "cifar10", "soap-rp")
    soap = {1: 364.0, 8: 143.0, 64: 91.0}
    turned = {1: 319.0, 8: 199.0, 64: 208.0}
    grid = {"selection": "min-aux", **CIFAR}
    least = {1: Goal(ms=15), 8: Goal(ms=8), 64: Goal(ms=8)}
    yield _row("none", _subject(catalog, "cifar10", "none"))
    yield _row("soap-lc min-aux", lc, grid | {"second_view_gradient": 1.0}, goals=least, authors=soap)
    yield _row("soap-lc min-aux, stop-gradient", lc, grid | {"second_view_gradient": 0.0}, goals=least)
    yield _row(
        "soap-lc", lc, goals={1: Goal(ms=6), 8: Goal(ms=3), 64: Goal(ms=3)}, authors=soap, loop_of="soap-lc min-aux"
    )
    times = {1: Goal(times=15), 8: Goal(times=15), 64: Goal(times=18)}
    yield _row("soap-rp min-aux", rp, grid, goals=times, authors=turned)
    yield _row("soap-rp", rp, authors=turned, loop_of="soap-rp min-aux")
    yield _row("soap-dr min-aux", _subject(catalog, "mnist", "soap-dr"), {"selection": "min-aux", **MNIST})
    six = dict.fromkeys(BATCHES, Goal(times=6))
    yield _row("aid", _subject(catalog, "cifar10", "aid"), goals=six, authors={1: 105.0, 8: 62.0, 64: 24.0})
    yield _row("reverse", _subject(catalog, "cifar10", "reverse"))
    yield _row("nrp", _subject(catalog, "cifar10", "nrp"), goals=dict.fromkeys(BATCHES, Goal(times=1.6)))
    yield _row("pix2pix", _subject(catalog, "cifar10", "pix2pix"))
    yield _large_reverse()
    yield _large_nrp(32, BATCHES[:2], {1: 125.0, 8: 164.0})
    yield _large_nrp(96, BATCHES[:1])
    yield _large_nrp(224, BATCHES[:1], {1: 6566.0})


@dataclass(frozen=True)
class _Subject:
    """A defence, the same networks as they were trained, and where they come from."""

    defense: Defense
    classifier: Classifier
    network: nn.Module | None
    weights: str
    x: Tensor
    inputs: str


def _subject(catalog: Catalog, model: str, purifier: str) -> _Subject:
    defense = catalog.defense(model, purifier)
    folder = catalog.folder(model, defense.card.classifier)
    checkpoint = Checkpoint.open(folder)
    network = defense.addons[0].network().eval() if defense.addons else None
    x, inputs = _images(defense.card)
    return _Subject(defense, checkpoint.classifier().eval(), network, f"models/zoo/{folder.name}", x, inputs)


def _images(card: Card) -> tuple[Tensor, str]:
    """Every second one with a step of random signs, which no skip rule passes over."""
    x, inputs = test_images(card, max(BATCHES))
    noise = 8 / 255 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).sign()
    x[1::2] = (x[1::2] + noise[1::2]).clamp(0, 1)
    return x, f"{inputs}, every second with noise of 8/255"


def _row(
    name: str, subject: _Subject, settings: dict[str, Any] | None = None, loop_of: str | None = None, **more: Any
) -> Row:
    """settings: other than those that ship."""
    defense, network = subject.defense, subject.network
    if settings is not None:
        entry = PurifierEntry(kind=defense.info.kind, settings=settings)
        card = defense.card.model_copy(update={"purifiers": {"grid": entry}})
        defense = build_defense("grid", card, defense.classifier)
    entry = defense.card.purifiers[defense.name]
    sides = _sides(defense, subject.classifier, entry, network)
    if loop_of is not None:
        del sides["published"]
    return Row(name, defense, subject.x, subject.weights, subject.inputs, sides, loop_of=loop_of, **more)


def _sides(defense: Defense, classifier: Classifier, entry: PurifierEntry, network: nn.Module | None) -> dict[str, Run]:
    sides: dict[str, Run] = {"ours": defense.purify}
    calibration = defense.card.calibration.get(entry.kind, ())
    trained = build_purifier(entry.kind, Material(classifier, entry.settings, calibration, network))
    own = defense.purifier
    if isinstance(own, DescentPurifier) and isinstance(trained, DescentPurifier):
        sides["oracle"] = reference.loop_of(own)
        sides["published"] = published.descent(trained)
    elif network is not None:
        sides["published"] = published.generator(network, classifier)
    else:
        sides["published"] = published.plain(classifier)
    return sides


def _large_reverse() -> Row:
    torch.manual_seed(0)
    head = build_network("reverse", features=512, hidden=128, outputs=8, negatives=1024).eval()
    settings = {"budgets": [16 / 255], "step_size": 2 / 255, "steps": 40, "random_start": 16 / 255, "views": 4}
    goals = dict.fromkeys((1, 8), Goal(times=2))
    return _seeded(
        "reverse, K = 40, PreActResNet-18",
        "preactresnet18",
        "reverse",
        settings,
        head,
        batches=(1, 8),
        goals=goals,
        authors={1: 2307.0, 8: 1614.0},
    )


def _large_nrp(size: int, batches: tuple[int, ...], authors: dict[int, float] | None = None) -> Row:
    torch.manual_seed(0)
    name, network = f"nrp dense, {size} x {size}", build_network("nrp").eval()
    row = _seeded(name, "resnet18-thin", "nrp", {}, network, size=size, batches=batches, authors=authors or {})
    if size > GRAPH_FITS:
        del row.sides["published"]
        return row
    return replace(row, goals=dict.fromkeys(batches, Goal(times=1.6)))


def _seeded(
    name: str, architecture: str, kind: str, settings: dict[str, Any], network: nn.Module, size: int = 32, **more: Any
) -> Row:
    """On networks of a paper's width with seeded random weights, which cost the same as trained ones."""
    classifier = build_classifier(architecture).eval()
    entry = PurifierEntry(kind=kind, settings=settings)
    spec = {"channels": 3, "height": size, "width": size}
    card = Card.model_validate(
        {
            "model": "cifar10",
            "classifier": "random",
            "architecture": architecture,
            "arguments": {},
            "labels": [str(i) for i in range(10)],
            "input": spec,
            "purifiers": {"seeded": entry},
            "training": {},
            "weights_sha256": "0" * 64,
        }
    )
    defense = build_defense("seeded", card, frozen(classifier), network=frozen_network(network))
    x = torch.rand(max(more["batches"]), 3, size, size, generator=torch.Generator().manual_seed(1))
    weights, inputs = "seeded random", "seeded noise"
    sides = _sides(defense, classifier, entry, network)
    return Row(name, defense, x, weights, inputs, sides, heavy=True, **more)

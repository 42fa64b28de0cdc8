"""Every purifier that the promises of DESIGN section 3 are checked on: each registered kind on a small seeded network, in
every selection mode, and everything that the shipped zoo offers."""

from dataclasses import dataclass
from functools import cache
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn

from models.catalog import ZOO, Catalog, Defense, Offer, build_defense
from models.checkpoint import CARD, Card, InputSpec, PurifierEntry
from models.classifiers import Classifier, build_classifier, frozen
from models.networks import build_network, frozen_network
from models.networks.reverse import ContrastiveHead
from models.purifiers import Options, Purified, kinds
from models.purifiers.descent import Selection

N = 6  # images in a batch
NAME = "under-test"

RESNET = ("resnet18-thin", {}, (3, 16, 16))  # architecture, arguments, image shape
ROTATION = ("wide-resnet", {"depth": 10, "widen": 1, "aux": "rotation"}, (3, 16, 16))
FCN = ("fcn", {"aux": "decoder"}, (1, 28, 28))
CNN = ("cnn", {"aux": "decoder"}, (1, 28, 28))
Network = tuple[str, dict[str, Any], tuple[int, int, int]]

# Kind and label -> the purifier's own network and its arguments, where it has one.
OWN: dict[tuple[str, str], tuple[str, dict[str, Any]]] = {
    ("nrp", "dense"): ("nrp", {"width": 8, "blocks": 1, "growth": 4}),
    ("nrp", "residual"): ("nrp-resg", {"width": 8, "blocks": 2}),
    ("nrp", "dynamic"): ("nrp-resg", {"width": 8, "blocks": 2}),
    ("pix2pix", "plain"): ("pix2pix", {"width": 8}),
    **{
        ("reverse", label): ("reverse", {"features": 64, "negatives": 32})
        for label in ("random-start", "plain-start", "min-aux", "best-iterate")
    },
}

GRID = {"budgets": [step * 4 / 255 for step in range(11)], "step_size": 4 / 255, "steps": 5}  # SOAP, Sec. 4
ODD = {"budgets": [0.03, 0.05], "step_size": 0.02, "steps": 3}  # no zero, no multiples of the step


def _descents(network: Network, **more: Any) -> dict[str, tuple[Network, dict[str, Any]]]:
    """The paper's grid in every selection mode, with a skip rule, and a grid without zero."""
    settings = {mode: {"selection": mode, **GRID, **more} for mode in get_args(Selection)}
    settings["skip"] = {"selection": "best-iterate", **GRID, **more, "skip_percentile": 50}
    settings["odd"] = {"selection": "min-aux", **ODD, **more}
    settings["random"] = {"selection": "min-aux", **GRID, **more, "random_start": 0.02}
    return {name: (network, found) for name, found in settings.items()}


# Kind -> label -> network and settings. A new kind needs its line here; test_every_kind_is_represented says so.
REPRESENTATIVE: dict[str, dict[str, tuple[Network, dict[str, Any]]]] = {
    "aid": _descents(RESNET),
    "none": {"plain": (FCN, {})},
    "nrp": {"dense": (RESNET, {}), "residual": (RESNET, {}), "dynamic": (RESNET, {"noise": 0.05})},
    "pix2pix": {"plain": (RESNET, {})},
    "soap-lc": {
        **_descents(RESNET),
        "exact-gradient": (RESNET, {"selection": "min-aux", **GRID, "second_view_gradient": 1}),
        "strong-averaged": (
            RESNET,
            {"selection": "best-iterate", **GRID, "second_view_gradient": -0.1, "second_view_share": 0.5},
        ),
        "symmetric-kl": (RESNET, {"selection": "best-iterate", **GRID, "distance": "symmetric-kl"}),
    },
    "soap-rp": _descents(ROTATION),
    "soap-dr": {
        **_descents(CNN),
        "fcn": (FCN, {"selection": "min-aux", "budgets": [0, 0.1, 0.2, 0.3], "step_size": 0.1, "steps": 5}),
    },
    "reverse": {
        "random-start": (RESNET, {"budgets": [16 / 255], "step_size": 4 / 255, "steps": 3, "random_start": 16 / 255}),
        "plain-start": (RESNET, {"budgets": [16 / 255], "step_size": 4 / 255, "steps": 3, "views": 2}),
        "min-aux": (RESNET, {"selection": "min-aux", **ODD, "views": 3}),
        "best-iterate": (RESNET, {"selection": "best-iterate", **ODD, "random_start": 0.02}),
    },
}

OWN |= {
    ("aid", label): ("aid", {"taps": ["stem", "block4"], "channels": [16, 32], "deeper": True})
    for label in REPRESENTATIVE["aid"]
}


@dataclass(frozen=True)
class Case:
    """A purifier under contract: a representative of a kind, or an offer of the zoo."""

    kind: str
    label: str
    offer: Offer | None = None

    def __str__(self) -> str:
        return f"{self.kind}-{self.label}"

    def defense(self) -> Defense:
        return _catalog().load(self.offer) if self.offer else _seeded_defense(self.kind, self.label)


def _shipped() -> list[Case]:
    if not any(ZOO.glob(f"*/{CARD}")):
        return []
    return [
        Case(offer.entry.kind, f"{offer.model}/{offer.classifier}/{offer.purifier}", offer)
        for offer in _catalog().offers()
    ]


@cache
def _catalog() -> Catalog:
    return Catalog.open()


CASES = [Case(kind, label) for kind, labels in REPRESENTATIVE.items() for label in labels] + _shipped()


@cache
def _seeded_classifier(architecture: str, arguments: tuple[tuple[str, Any], ...]) -> Classifier:
    with torch.random.fork_rng():
        torch.manual_seed(7)
        network = build_classifier(architecture, **dict(arguments))
        _enliven(network)
    return frozen(network)


def _enliven(network: nn.Module) -> None:
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight)  # livelier than the default: six toy images get several labels
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.normal_(layer.running_mean, std=0.3)
            nn.init.uniform_(layer.running_var, 0.5, 1.5)
            nn.init.normal_(layer.bias, std=0.3)


@cache
def _seeded_network(kind: str, label: str) -> nn.Module | None:
    """The purifier's own network, where it has one."""
    if (kind, label) not in OWN:
        return None
    name, arguments = OWN[kind, label]
    with torch.random.fork_rng():
        torch.manual_seed(7)
        network = build_network(name, **arguments)
        _enliven(network)
        if isinstance(network, ContrastiveHead):
            network.bank.uniform_()
    return frozen_network(network)


@cache
def _seeded_defense(kind: str, label: str) -> Defense:
    network, settings = REPRESENTATIVE[kind][label]
    classifier = _seeded_classifier(network[0], tuple(network[1].items()))

    def built(settings: dict[str, Any], calibration: dict[str, tuple[float, ...]] | None = None) -> Defense:
        card = _card(network, PurifierEntry(kind=kind, settings=settings), calibration)
        return build_defense(NAME, card, classifier, network=_seeded_network(kind, label))

    if "skip_percentile" not in settings:
        return built(settings)
    # Calibrated on the toy images themselves, so that half of them are skipped.
    bare = built({**settings, "skip_percentile": None})
    losses = bare.purify(toy_images(bare.card), seeds=range(N)).objective_before
    return built(settings, {kind: tuple(sorted(losses.quantile(torch.linspace(0, 1, 101)).tolist()))})


def _card(network: Network, entry: PurifierEntry, calibration: dict[str, tuple[float, ...]] | None = None) -> Card:
    architecture, arguments, (channels, height, width) = network
    return Card(
        model="toy",
        classifier="toy",
        architecture=architecture,
        arguments=arguments,
        labels=tuple("0123456789"),
        input=InputSpec(channels=channels, height=height, width=width),
        purifiers={NAME: entry},
        calibration=calibration or {},
        training={},
        weights_sha256="0" * 64,
    )


def toy_images(card: Card, seed: int = 1, n: int = N) -> Tensor:
    """Smooth seeded patterns with some noise; some pixels are exactly 0 or 1. -> (n, C, H, W) in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    shape = (card.input.height, card.input.width)
    coarse = torch.rand(n, card.input.channels, 4, 4, generator=generator)
    smooth = nn.functional.interpolate(coarse, size=shape, mode="bilinear")
    return (1.6 * smooth - 0.3 + 0.1 * torch.randn(smooth.shape, generator=generator)).clamp(0, 1)


@pytest.fixture(scope="session", params=CASES, ids=str)
def defense(request: pytest.FixtureRequest) -> Defense:
    found: Defense = request.param.defense()
    return found


@pytest.fixture(scope="session")
def images(defense: Defense) -> Tensor:
    return toy_images(defense.card)


@pytest.fixture(scope="session")
def strangers(defense: Defense) -> Tensor:
    return toy_images(defense.card, seed=2)


@pytest.fixture(scope="session")
def answer(defense: Defense, images: Tensor) -> Purified:
    """What the purifier says about `images`, computed once."""
    return defense.purify(images, seeds=range(N))


@pytest.fixture(scope="session")
def without_budget(defense: Defense) -> Defense | None:
    """The same purifier with a budget of zero; None where it declares no budget."""
    if defense.info.eps_pfy is None:
        return None
    return defense.with_options(Options(epsilon=0.0)) if "epsilon" in defense.info.options else defense


@pytest.fixture
def missing_kinds() -> set[str]:
    return set(kinds()) - set(REPRESENTATIVE)

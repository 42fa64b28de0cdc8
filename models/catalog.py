"""From names to something that runs: `model` x `purifier` (x `classifier`) -> Defense, read from checkpoint folders.

A purifier is one that a classifier's card offers, one that an add-on offers for that classifier, or several of them in a row,
joined by `+`: `nrp+aid`.
"""

import threading
from bisect import bisect_right
from collections.abc import Collection, Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, Self

import torch
from torch import Tensor, nn

from models.checkpoint import (
    CARD,
    AddOn,
    AddOnCard,
    Card,
    Checkpoint,
    CheckpointError,
    Measurement,
    PurifierEntry,
    WorstCase,
    open_checkpoint,
)
from models.classifiers import Classifier, frozen
from models.networks import frozen_network
from models.precision import Precision
from models.purifiers import Material, OptionError, Options, Purified, Purifier, PurifierInfo, Wanted, build_purifier
from models.purifiers.base import one_each
from models.purifiers.chain import Chain
from models.votes import scores, seeds_of

ZOO = Path(__file__).parent / "zoo"

# Images that go through the network together. Purification keeps 8 to 10 activations an image alive; larger groups fall out
# of the CPU's cache and get slower an image (docs/performance.md).
CHUNK = 32

# As good as the best under the worst case, and better than that against all who don't know of it: docs/robustness.md.
PREFERRED = "aid"

# Purifiers in a row. Every chain that was ever asked for is kept, and strangers may ask.
LONGEST_CHAIN = 3


class UnknownName(LookupError):
    """No such model, classifier or purifier, or not in this combination; the message lists what there is.

    what: which of the names it is, or "combination". known: what could have stood there.
    """

    def __init__(
        self, what: Literal["model", "purifier", "classifier", "combination"], message: str, known: Iterable[str]
    ):
        self.what, self.known = what, sorted(set(known))
        super().__init__(f"{message}: {', '.join(self.known)}")


@dataclass(frozen=True, eq=False)
class Defense:
    """A purifier, the classifier it protects and their card: what a request names and what an evaluation attacks.

    card: the classifier's, with what its add-ons offer and are calibrated to. addons: those whose networks the purifier uses.
    votes: how many draws of a purifier that draws random numbers decide together, as a request may ask for.
    """

    name: str
    card: Card
    classifier: Classifier
    purifier: Purifier
    device: torch.device
    addons: tuple[AddOn, ...] = ()
    votes: int = 1

    @property
    def addon_sha256(self) -> tuple[str, ...]:
        """Which weights the purifier brings along, beside the classifier's."""
        return tuple(addon.card.weights_sha256 for addon in self.addons)

    @property
    def info(self) -> PurifierInfo:
        """What the purifier is and costs."""
        return self.purifier.info

    def purify(self, x: Tensor, seeds: Sequence[int] | None = None, wanted: Wanted | None = None) -> Purified:
        """Purify and classify a batch. x: (N, C, H, W) float32 in [0, 1], on `device`.

        `seeds` and `wanted`: see `Purifier.purify`. With several votes the logits are `votes.scores`, the passes those of all of
        them, everything else that of the first.
        """
        if self.votes == 1:
            return self._drawn(x, seeds, wanted)
        own = [seeds_of(seed, self.votes) for seed in one_each(x, seeds)]
        drawn = [self._drawn(x, [each[vote] for each in own], wanted) for vote in range(self.votes)]
        return replace(
            drawn[0],
            logits=scores(torch.stack([one.logits.softmax(1) for one in drawn], 1)),
            forward_passes=torch.stack([one.forward_passes for one in drawn]).sum(0),
            backward_passes=torch.stack([one.backward_passes for one in drawn]).sum(0),
        )

    def _drawn(self, x: Tensor, seeds: Sequence[int] | None, wanted: Wanted | None) -> Purified:
        """In cache-sized parts, cut by position alone, so that what an image's neighbours contain can't change its answer."""
        parts = [
            self.purifier.purify(
                part.contiguous(memory_format=torch.channels_last),
                seeds and seeds[i : i + CHUNK],
                wanted and _part(wanted, i),
            )
            for i, part in zip(range(0, max(len(x), 1), CHUNK), x.split(CHUNK), strict=True)  # no image is one part too
        ]
        return parts[0] if len(parts) == 1 else _joined(parts)

    def voting(self, votes: int) -> "Defense":
        """The same defense with so many votes; networks are shared.

        Raises:
            ValueError: the purifier draws no random numbers, or there are no votes.
        """
        if votes < 1:
            raise ValueError(f"votes must be at least 1; got {votes}")
        if not self.info.random:
            raise ValueError(f"purifier {self.name!r} draws no random numbers, so every vote would be the same")
        return replace(self, votes=votes)

    def with_options(self, options: Options) -> "Defense":
        """The same defense with a request's options; networks are shared.

        Raises:
            OptionError: the purifier has no such option.
            ValueError: the value is out of its bounds.
        """
        if foreign := [name for name in options.given() if name not in self.info.options]:
            taken = ", ".join(self.info.options) or "none"
            raise OptionError(f"purifier {self.name!r} has no option {', '.join(foreign)}; its options: {taken}")
        return replace(self, purifier=self.purifier.with_options(options)) if options.given() else self

    def logits(self, x: Tensor) -> Tensor:
        """How a purified image is classified, differentiable. (N, C, H, W) -> (N, K)."""
        return self.purifier.logits(x)

    def suspicion(self, objective: float) -> float | None:
        """Where an incoming image's objective falls among clean training images, in percent from 0 to 100.

        None where the card has no calibration. It tells unaware attacks from clean images and nothing else: an attacker
        who knows the objective keeps it low.
        """
        percentiles = self.card.calibration.get(self.info.kind)
        if not percentiles:
            return None
        above = bisect_right(percentiles, objective)
        if above == 0:
            return 0.0
        if above == len(percentiles):
            return 100.0
        low, high = percentiles[above - 1], percentiles[above]
        return above - 1 + (objective - low) / (high - low)


def _part(wanted: Wanted, start: int) -> Wanted:
    return lambda: wanted()[start : start + CHUNK]


def _joined(parts: Sequence[Purified]) -> Purified:
    def cat(field: str) -> Tensor:
        return torch.cat([getattr(part, field) for part in parts])

    known = parts[0].objective_before is not None
    return Purified(
        image=cat("image"),
        logits=cat("logits"),
        epsilon=cat("epsilon"),
        objective_before=cat("objective_before") if known else None,
        objective_after=cat("objective_after") if known else None,
        forward_passes=cat("forward_passes"),
        backward_passes=cat("backward_passes"),
        steps=tuple(_joined(steps) for steps in zip(*(part.steps for part in parts), strict=True)),
    )


class Loaded:
    """A checkpoint and its frozen network, built when first asked for. Safe from several threads.

    since: when its files were read.
    """

    def __init__(self, checkpoint: Checkpoint | AddOn, device: torch.device, precision: Precision = "fp32") -> None:
        self.checkpoint, self.since, self.device = checkpoint, datetime.now(UTC), device
        self.precision: Precision = precision
        self._network: nn.Module | None = None
        self._lock = threading.Lock()

    @property
    def key(self) -> tuple[str, str]:
        """Its model and its name."""
        return self.checkpoint.card.model, self.checkpoint.card.name

    def network(self) -> nn.Module:
        """The frozen network.

        Raises:
            CheckpointError: the weights don't fit the card.
        """
        with self._lock:
            if self._network is None:
                self._network = self._build()
            return self._network

    def made(self, network: nn.Module) -> bool:
        """Whether `network` was built here."""
        return network is self._network

    def _build(self) -> nn.Module:
        if isinstance(self.checkpoint, Checkpoint):
            return frozen(self.checkpoint.classifier(), self.device, self.precision)
        return frozen_network(self.checkpoint.network(), self.device, self.precision)


@dataclass(frozen=True, eq=False)
class Step:
    """One purifier of an offer.

    addon: where it comes from, unless the classifier's own card offers it. default: whether that classifier is meant where a
    request names none.
    """

    name: str
    entry: PurifierEntry
    default: bool
    addon: Loaded | None = None


class Offer:
    """One combination that a catalog can serve: purifiers, one or several in a row, on a classifier.

    base: the classifier's checkpoint. An offer is built from what it names, whatever the catalog holds later, and once.
    """

    def __init__(self, base: Loaded, steps: Sequence[Step]) -> None:
        self.base, self.steps = base, tuple(steps)
        self.purifier = "+".join(step.name for step in steps)
        self.model, self.classifier = base.key
        self.addons = tuple(
            step.addon.checkpoint for step in steps if step.addon and isinstance(step.addon.checkpoint, AddOn)
        )
        self.entry = steps[0].entry if len(steps) == 1 else _chain_entry(steps)
        self.card = _merged(base, self.addons, {self.purifier: self.entry}, steps[0].entry.kind)
        self._defense: Defense | None = None
        self._lock = threading.Lock()

    @property
    def parts(self) -> set[Loaded]:
        """All checkpoints that it needs."""
        return {self.base, *(step.addon for step in self.steps if step.addon)}

    @property
    def addon_sha256(self) -> tuple[str, ...]:
        """Which weights the purifiers bring along, beside the classifier's."""
        return tuple(addon.card.weights_sha256 for addon in self.addons)

    def measured(self) -> list[Measurement]:
        """The accuracies that the classifier's card tells of this combination, with exactly these weights."""
        return [each for each in self.card.measured if self._is_of(each)]

    def worst(self) -> list[WorstCase]:
        """What was left of this combination under all attacks together, likewise; one for each budget."""
        return [each for each in self.card.worst if self._is_of(each)]

    def _is_of(self, found: Measurement | WorstCase) -> bool:
        return (found.purifier, found.addons) == (self.purifier, self.addon_sha256)

    def built(self) -> Defense | None:
        """The running form if there is one already; never waits."""
        return self._defense

    def build(self) -> Defense:
        """The running form.

        Raises:
            CheckpointError: a checkpoint's weights or settings are unusable.
        """
        with self._lock:
            if self._defense is None:
                self._defense = self._build()
            return self._defense

    def _build(self) -> Defense:
        classifier, device = self.base.network(), self.base.device
        assert isinstance(classifier, Classifier)
        steps = [
            build_defense(step.name, self.card, classifier, device, step.addon.network() if step.addon else None)
            for step in self.steps
        ]
        if len(steps) == 1:
            return replace(steps[0], addons=self.addons)
        chain = Chain([step.purifier for step in steps])
        return Defense(self.purifier, self.card, classifier, chain, device, self.addons)


def _chain_entry(steps: Sequence[Step]) -> PurifierEntry:
    return PurifierEntry(kind=Chain.KIND, settings={"steps": [step.name for step in steps]})


def _merged(base: Loaded, addons: Sequence[AddOn], entries: Mapping[str, PurifierEntry], first: str) -> Card:
    """The classifier's card with what the add-ons offer and are calibrated to.

    A chain is as suspicious as its first purifier, of the kind `first`: only that one sees images as they came.
    """
    card = base.checkpoint.card
    assert isinstance(card, Card)
    purifiers, calibration = dict(card.purifiers), dict(card.calibration)
    for addon in addons:
        purifiers |= addon.card.purifiers
        calibration |= addon.card.calibration
    if first in calibration:
        calibration[Chain.KIND] = calibration[first]
    return card.model_copy(update={"purifiers": {**purifiers, **entries}, "calibration": calibration})


def _offers(base: Loaded, everything: Collection[Loaded]) -> list[Offer]:
    """What there is for one classifier: its own purifiers, and those of the add-ons that fit it."""
    card = base.checkpoint.card
    if not isinstance(card, Card):
        return []
    steps = {name: Step(name, entry, entry.default) for name, entry in card.purifiers.items()}
    for part in everything:
        addon = part.checkpoint.card
        if not isinstance(addon, AddOnCard) or not addon.fits(card):
            continue
        home = _home(addon, everything)
        for name, entry in addon.purifiers.items():
            if name in steps:
                raise CheckpointError(
                    f"{part.checkpoint.folder}: classifier {card.classifier!r} of model {card.model!r} has a purifier "
                    f"{name!r} already; rename one of them in its card"
                )
            steps[name] = Step(name, entry, entry.default and card.classifier == home, part)
    return [Offer(base, [step]) for _, step in sorted(steps.items())]


def _home(addon: AddOnCard, everything: Iterable[Loaded]) -> str:
    """The classifier that an add-on's purifiers mean where a request names none: of those that they protect the most robust one.

    That is the one with the highest measured accuracy under PGD, undefended; where none is, the one it was trained beside.
    """
    cards = [part.checkpoint.card for part in everything]
    fitting = [card for card in cards if isinstance(card, Card) and addon.fits(card)]
    return max(fitting, key=lambda card: (card.robustness, card.classifier == addon.classifier)).classifier


class Catalog:
    """The checkpoints of one or more zoo folders. Cards are read at once, networks when first asked for.

    What a catalog holds never changes; `with_checkpoint` and `without` make another one that shares the networks.
    """

    def __init__(
        self,
        checkpoints: Iterable[Checkpoint | AddOn],
        device: torch.device | str = "cpu",
        precision: Precision = "fp32",
    ) -> None:
        self.device, self.precision = torch.device(device), precision
        loaded: dict[tuple[str, str], Loaded] = {}
        for checkpoint in checkpoints:
            one = Loaded(checkpoint, self.device, self.precision)
            if one.key in loaded:
                model, name = one.key
                first = loaded[one.key].checkpoint.folder
                raise CheckpointError(f"{first} and {checkpoint.folder} are both {name!r} of model {model!r}")
            loaded[one.key] = one
        self._hold(loaded, [])
        self._check_addons()

    def _hold(self, loaded: dict[tuple[str, str], Loaded], before: Iterable[Offer]) -> None:
        """Offers of before whose parts are all still here are kept, with what was built of them."""
        self._loaded, here = loaded, set(loaded.values())
        kept = {(offer.base, offer.purifier): offer for offer in before if offer.parts <= here}
        fresh = [offer for _, part in sorted(loaded.items()) for offer in _offers(part, loaded.values())]
        self._offers = [_same(kept.get((offer.base, offer.purifier)), offer) for offer in fresh]
        self._chains = {key: offer for key, offer in kept.items() if len(offer.steps) > 1}
        self._resolved: dict[tuple[str, str, str | None], Offer] = {}

    def _check_addons(self) -> None:
        used = {part for offer in self._offers for part in offer.parts}
        for loaded in self._loaded.values():
            card = loaded.checkpoint.card
            if isinstance(card, AddOnCard) and loaded not in used:
                raise CheckpointError(
                    f"{loaded.checkpoint.folder}: this add-on protects classifier {card.classifier!r} of model {card.model!r} "
                    f"with weights {card.classifier_sha256[:12]}..., which none of the folders holds; add the one that does"
                )

    @classmethod
    def open(
        cls, folders: Sequence[Path] = (ZOO,), device: torch.device | str = "cpu", precision: Precision = "fp32"
    ) -> "Catalog":
        """Read every checkpoint below `folders` (each a checkpoint itself, or a folder of checkpoints).

        Raises:
            CheckpointError: a folder holds no checkpoint, one of them is unusable, or an add-on's classifier is missing.
        """
        found: list[Checkpoint | AddOn] = []
        for folder in folders:
            cards = [folder / CARD] if (folder / CARD).exists() else sorted(folder.glob(f"*/{CARD}"))
            if not cards:
                raise CheckpointError(f"{folder}: no checkpoint here (looked for {CARD} and */{CARD})")
            found += [open_checkpoint(card.parent) for card in cards]
        return cls(found, device, precision)

    def with_checkpoint(self, checkpoint: Checkpoint | AddOn) -> Self:
        """This catalog with one checkpoint more, or with another one in the place of that of the same names.

        An add-on that protects the former weights of a classifier stays, but nothing of it is offered.

        Raises:
            CheckpointError: it offers a purifier that its classifier has already.
        """
        added = Loaded(checkpoint, self.device, self.precision)
        return self._with({**self._loaded, added.key: added})

    def without(self, model: str, name: str) -> Self:
        """This catalog with one checkpoint less."""
        return self._with({key: loaded for key, loaded in self._loaded.items() if key != (model, name)})

    def _with(self, loaded: dict[tuple[str, str], Loaded]) -> Self:
        made = copy(self)
        made._hold(loaded, [*self._offers, *list(self._chains.values())])
        return made

    def models(self) -> list[str]:
        """The model names, as in ?model=."""
        return sorted({offer.model for offer in self._offers})

    def checkpoints(self) -> list[Loaded]:
        """What is loaded, sorted by model and name."""
        return [loaded for _, loaded in sorted(self._loaded.items())]

    def find(self, model: str, name: str) -> Loaded | None:
        """The checkpoint of these names, if it is loaded."""
        return self._loaded.get((model, name))

    def folder(self, model: str, name: str) -> Path:
        """Where a checkpoint lies."""
        return self._loaded[model, name].checkpoint.folder

    def offers(self) -> list[Offer]:
        """Every combination of model, classifier and purifier; chains are made by `resolve`."""
        return self._offers

    def default_purifier(self, model: str) -> str:
        """What is meant where none is named: the best for all we measured, else the first that there is, else `none`."""
        offered = [offer.purifier for offer in self._offers if offer.model == model and offer.purifier != "none"]
        return next((name for name in (PREFERRED, *offered) if name in offered), "none")

    def resolve(self, model: str, purifier: str, classifier: str | None = None) -> Offer:
        """The combination a request means; without a classifier the one that most steps have as default, else the first.

        Raises:
            UnknownName: there is none; the message lists what there is.
        """
        if (model, purifier, classifier) not in self._resolved:
            self._resolved[model, purifier, classifier] = self._resolve(model, purifier, classifier)
        return self._resolved[model, purifier, classifier]

    def _resolve(self, model: str, purifier: str, classifier: str | None) -> Offer:
        names = _steps(purifier)
        offers = self._offers
        if model not in self.models():
            raise UnknownName("model", f"unknown model {model!r}; known", self.models())
        known = {offer.purifier for offer in offers}
        if unknown := [name for name in names if name not in known]:
            raise UnknownName("purifier", f"unknown purifier {unknown[0]!r}; known", known)
        of_model = [offer for offer in offers if offer.model == model]
        if classifier is not None:
            classifiers = {offer.classifier for offer in of_model}
            if classifier not in classifiers:
                raise UnknownName(
                    "classifier", f"model {model!r} has no classifier {classifier!r}; it has", classifiers
                )
            of_model = [offer for offer in of_model if offer.classifier == classifier]
        fitting = _covering(of_model, names)
        if not fitting:
            where = f"model {model!r}" + (f" with classifier {classifier!r}" if classifier else "")
            offered = {offer.purifier for offer in of_model}
            message = f"{where} has no purifier {purifier!r}{self._pairs(model, names)}; it has"
            raise UnknownName("combination", message, offered)
        return self._joined(max(fitting, key=lambda steps: sum(offer.steps[0].default for offer in steps)))

    def _pairs(self, model: str, names: Sequence[str]) -> str:
        """Which classifiers the purifiers go with, for a message."""
        found = {
            name: [offer.classifier for offer in self._offers if (offer.model, offer.purifier) == (model, name)]
            for name in names
        }
        told = [f"{name} goes with {', '.join(classifiers)}" for name, classifiers in found.items() if classifiers]
        return f" ({'; '.join(told)})" if told else ""

    def _joined(self, offers: Sequence[Offer]) -> Offer:
        """The chain of single offers on one classifier."""
        if len(offers) == 1:
            return offers[0]
        key = offers[0].base, "+".join(offer.purifier for offer in offers)
        if key not in self._chains:
            self._chains.setdefault(key, Offer(key[0], [offer.steps[0] for offer in offers]))  # one of several threads'
        return self._chains[key]

    def defense(self, model: str, purifier: str, classifier: str | None = None) -> Defense:
        """Resolve and build (once). Safe from several threads.

        Raises:
            UnknownName: see `resolve`.
            CheckpointError: the checkpoint's weights or settings are unusable.
        """
        return self.load(self.resolve(model, purifier, classifier))

    def loaded(self, offer: Offer) -> Defense | None:
        """The running form of an offer if it is built already; never waits."""
        return offer.built()

    def load(self, offer: Offer) -> Defense:
        """The running form of an offer, built on first use. Offers of an earlier catalog are built from what that one held."""
        return offer.build()

    def serves(self, defense: Defense) -> bool:
        """Whether a defense runs on networks of this catalog."""
        loaded = self.find(defense.card.model, defense.card.classifier)
        addons = [self.find(addon.card.model, addon.card.name) for addon in defense.addons]
        return (
            loaded is not None
            and loaded.made(defense.classifier)
            and all(one and one.checkpoint is addon for one, addon in zip(addons, defense.addons, strict=True))
        )


def _same(kept: Offer | None, fresh: Offer) -> Offer:
    return kept if kept and kept.parts == fresh.parts else fresh


def _steps(purifier: str) -> list[str]:
    """The names in `nrp+aid`.

    Raises:
        UnknownName: too many of them, one twice, or `none` among others.
    """
    names = purifier.split("+")
    if len(names) > 1 and (len(names) > LONGEST_CHAIN or len(set(names)) < len(names) or "none" in names):
        rule = f"a chain has up to {LONGEST_CHAIN} different purifiers, without 'none'"
        raise UnknownName("combination", f"{purifier!r} is no chain: {rule}, such as", ["nrp+aid"])
    return names


def _covering(offers: Sequence[Offer], names: Sequence[str]) -> list[list[Offer]]:
    """For each classifier that offers all of the purifiers: its offers, in their order."""
    by_classifier: dict[str, dict[str, Offer]] = {}
    for offer in offers:
        by_classifier.setdefault(offer.classifier, {})[offer.purifier] = offer
    return [[own[name] for name in names] for own in by_classifier.values() if own.keys() >= set(names)]


def build_defense(
    name: str,
    card: Card,
    classifier: Classifier,
    device: torch.device | str = "cpu",
    network: nn.Module | None = None,
) -> Defense:
    """Purifier `name` of `card` on a frozen classifier; `network`: the purifier's own, frozen, where it has one.

    Raises:
        CheckpointError: the card's settings don't fit the purifier.
    """
    entry = card.purifiers[name]
    material = Material(classifier, entry.settings, card.calibration.get(entry.kind, ()), network)
    try:
        purifier = build_purifier(entry.kind, material)
    except ValueError as error:
        raise CheckpointError(f"classifier {card.classifier!r}, purifier {name!r}: {error}") from error
    return Defense(name, card, classifier, purifier, torch.device(device))

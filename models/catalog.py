"""From names to something that runs: `model` x `purifier` (x `classifier`) -> Defense, read from checkpoint folders."""

import threading
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, Self

import torch
from torch import Tensor, nn

from models.checkpoint import CARD, Card, Checkpoint, CheckpointError, PurifierEntry
from models.classifiers import Classifier, frozen
from models.purifiers import Material, OptionError, Options, Purified, Purifier, PurifierInfo, Wanted, build_purifier

ZOO = Path(__file__).parent / "zoo"

# Images that go through the network together. Purification keeps 8 to 10 activations an image alive; larger groups fall out
# of the CPU's cache and get slower an image (benchmarks/purify_cost.py).
CHUNK = 32


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
    """A purifier, the classifier it protects and their card: what a request names and what an evaluation attacks."""

    name: str
    card: Card
    classifier: Classifier
    purifier: Purifier
    device: torch.device

    @property
    def info(self) -> PurifierInfo:
        """What the purifier is and costs."""
        return self.purifier.info

    def purify(self, x: Tensor, seeds: Sequence[int] | None = None, wanted: Wanted | None = None) -> Purified:
        """Purify and classify a batch in cache-sized parts. x: (N, C, H, W) float32 in [0, 1], on `device`.

        Parts are cut by position alone, so what an image's neighbours contain can't change its answer. `seeds` and `wanted`:
        see `Purifier.purify`.
        """
        parts = [
            self.purifier.purify(
                part.contiguous(memory_format=torch.channels_last),
                seeds and seeds[i : i + CHUNK],
                wanted and _part(wanted, i),
            )
            for i, part in zip(range(0, max(len(x), 1), CHUNK), x.split(CHUNK), strict=True)  # no image is one part too
        ]
        return parts[0] if len(parts) == 1 else _joined(parts)

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
    )


class Loaded:
    """A checkpoint and what was built of it: its network and defenses, each when first asked for. Safe from several threads.

    since: when its files were read.
    """

    def __init__(self, checkpoint: Checkpoint, device: torch.device) -> None:
        self.checkpoint, self.since = checkpoint, datetime.now(UTC)
        self._device = device
        self._classifier: Classifier | None = None
        self._defenses: dict[str, Defense] = {}
        self._lock = threading.Lock()

    def built(self, purifier: str) -> Defense | None:
        """The defense if it is built already; never waits."""
        return self._defenses.get(purifier)

    def build(self, purifier: str) -> Defense:
        """The defense, built on first use.

        Raises:
            CheckpointError: the checkpoint's weights or settings are unusable.
        """
        with self._lock:
            if purifier not in self._defenses:
                self._defenses[purifier] = self._build(purifier)
            return self._defenses[purifier]

    def made(self, defense: Defense) -> bool:
        """Whether the defense runs on this network."""
        return defense.classifier is self._classifier

    def _build(self, purifier: str) -> Defense:
        if self._classifier is None:
            self._classifier = frozen(self.checkpoint.classifier(), self._device)
        return build_defense(purifier, self.checkpoint.card, self._classifier, self._device)


@dataclass(frozen=True)
class Offer:
    """One combination that a catalog can serve. source: what it is built from, whatever the catalog holds later."""

    model: str
    classifier: str
    purifier: str
    entry: PurifierEntry
    card: Card
    source: Loaded = field(compare=False, repr=False)


class Catalog:
    """The checkpoints of one or more zoo folders. Cards are read at once, networks when first asked for.

    What a catalog holds never changes; `with_checkpoint` and `without` make another one that shares the networks.
    """

    def __init__(self, checkpoints: Iterable[Checkpoint], device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self._loaded: dict[tuple[str, str], Loaded] = {}
        for checkpoint in checkpoints:
            key = (checkpoint.card.model, checkpoint.card.classifier)
            if key in self._loaded:
                first = self._loaded[key].checkpoint.folder
                raise CheckpointError(
                    f"{first} and {checkpoint.folder} are both classifier {key[1]!r} of model {key[0]!r}"
                )
            self._loaded[key] = Loaded(checkpoint, self.device)

    @classmethod
    def open(cls, folders: Sequence[Path] = (ZOO,), device: torch.device | str = "cpu") -> "Catalog":
        """Read every checkpoint below `folders` (each a checkpoint itself, or a folder of checkpoints).

        Raises:
            CheckpointError: a folder holds no checkpoint, or one of them is unusable.
        """
        found: list[Checkpoint] = []
        for folder in folders:
            cards = [folder / CARD] if (folder / CARD).exists() else sorted(folder.glob(f"*/{CARD}"))
            if not cards:
                raise CheckpointError(f"{folder}: no checkpoint here (looked for {CARD} and */{CARD})")
            found += [Checkpoint.open(card.parent) for card in cards]
        return cls(found, device)

    def with_checkpoint(self, checkpoint: Checkpoint) -> Self:
        """This catalog with one checkpoint more, or with another one in the place of that of the same names."""
        key = (checkpoint.card.model, checkpoint.card.classifier)
        return self._with({**self._loaded, key: Loaded(checkpoint, self.device)})

    def without(self, model: str, classifier: str) -> Self:
        """This catalog with one checkpoint less."""
        return self._with({key: loaded for key, loaded in self._loaded.items() if key != (model, classifier)})

    def _with(self, loaded: dict[tuple[str, str], Loaded]) -> Self:
        made = copy(self)
        made._loaded = loaded
        return made

    def models(self) -> list[str]:
        """The model names, as in ?model=."""
        return sorted({model for model, _ in self._loaded})

    def checkpoints(self) -> list[Loaded]:
        """What is loaded, sorted by model and classifier."""
        return [loaded for _, loaded in sorted(self._loaded.items())]

    def find(self, model: str, classifier: str) -> Loaded | None:
        """The checkpoint of these names, if it is loaded."""
        return self._loaded.get((model, classifier))

    def folder(self, model: str, classifier: str) -> Path:
        """Where a classifier's checkpoint lies."""
        return self._loaded[model, classifier].checkpoint.folder

    def offers(self) -> list[Offer]:
        """Every combination of model, classifier and purifier."""
        return [
            Offer(model, classifier, name, entry, loaded.checkpoint.card, loaded)
            for (model, classifier), loaded in sorted(self._loaded.items())
            for name, entry in sorted(loaded.checkpoint.card.purifiers.items())
        ]

    def resolve(self, model: str, purifier: str, classifier: str | None = None) -> Offer:
        """The combination a request means; without a classifier the one whose card says `default`, else the first.

        Raises:
            UnknownName: there is none; the message lists what there is.
        """
        offers = self.offers()
        if model not in self.models():
            raise UnknownName("model", f"unknown model {model!r}; known", self.models())
        known = {offer.purifier for offer in offers}
        if purifier not in known:
            raise UnknownName("purifier", f"unknown purifier {purifier!r}; known", known)
        of_model = [offer for offer in offers if offer.model == model]
        if classifier is not None:
            names = {offer.classifier for offer in of_model}
            if classifier not in names:
                raise UnknownName("classifier", f"model {model!r} has no classifier {classifier!r}; it has", names)
            of_model = [offer for offer in of_model if offer.classifier == classifier]
        fitting = [offer for offer in of_model if offer.purifier == purifier]
        if not fitting:
            where = f"model {model!r}" + (f" with classifier {classifier!r}" if classifier else "")
            offered = {offer.purifier for offer in of_model}
            raise UnknownName("combination", f"{where} has no purifier {purifier!r}; it has", offered)
        return next((offer for offer in fitting if offer.entry.default), fitting[0])

    def defense(self, model: str, purifier: str, classifier: str | None = None) -> Defense:
        """Resolve and load (once). Safe from several threads.

        Raises:
            UnknownName: see `resolve`.
            CheckpointError: the checkpoint's weights or settings are unusable.
        """
        return self.load(self.resolve(model, purifier, classifier))

    def loaded(self, offer: Offer) -> Defense | None:
        """The running form of an offer if it is built already; never waits."""
        return offer.source.built(offer.purifier)

    def load(self, offer: Offer) -> Defense:
        """The running form of an offer, built on first use. Offers of an earlier catalog are built from what that one held."""
        return offer.source.build(offer.purifier)

    def serves(self, defense: Defense) -> bool:
        """Whether a defense runs on a network of this catalog."""
        loaded = self.find(defense.card.model, defense.card.classifier)
        return loaded is not None and loaded.made(defense)


def build_defense(
    name: str,
    card: Card,
    classifier: Classifier,
    device: torch.device | str = "cpu",
    network: nn.Module | None = None,
) -> Defense:
    """Purifier `name` of `card` on a frozen classifier; `network`: the purifier's own, frozen too, where it has one.

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

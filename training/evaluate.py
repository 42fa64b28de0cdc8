"""Accuracy of one checkpoint's purifiers under a plan of attacks: one JSON, from which cards, tables and plots are made.

What is attacked is the `Defense` that the service serves. Blind attacks see the bare classifier, as in the papers; the
others know the whole defence. The file is rewritten after every cell, and what is dear is kept in parts meanwhile
(training/parts.py), so an interrupted run goes on where it stopped.
"""

import json
import os
import platform
import time
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from models.catalog import CHUNK, Catalog, Defense, build_defense
from models.checkpoint import Card, CheckpointError, PurifierEntry
from models.networks import frozen_network
from models.purifiers import Purified
from models.purifiers.descending import DescentPurifier
from models.votes import scores
from training import paper
from training.attacks import AttackSettings, Survived, applies, knowing
from training.attacks.asking import draws
from training.attacks.aware import judging
from training.attacks.blind import distort, in_chunks, static
from training.attacks.library import autoattack, foolbox_attack
from training.attacks.settings import LIBRARIES
from training.counting import Passes, counted
from training.data import load_data, to_float
from training.parts import SEPARABLE, Parts
from training.plan import EvaluationError, Plan
from training.progress import Progress

# Test images that a `substitute`'s attacker owns, none of those that are evaluated (SOAP, Sec. 4.2).
OWNED = 150


class Redrawn(BaseModel):
    """What was sent to a random defence, tried again with fresh seeds: shares of right answers.

    n: images, the first ones. mean: over all draws. worst: right at every draw. majority: by so many draws as the service takes
    them together (models/votes.py), where each draw isn't several votes already. outcomes: at how many of the draws each image
    was right, in test set order; none in files of before it was kept.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    n: int
    draws: int
    mean: float
    worst: float
    majority: dict[int, float]
    outcomes: str = ""


class Cell(BaseModel):
    """One accuracy, with the outcome of each image ('1': right) in test set order.

    forward, backward: passes an image through the networks, the attack's and the defence's. objectives: the purifier's own
    loss on each incoming image, in test set order; objective_after: its mean on what was made of them. bare: the accuracy of
    the classifier alone on what was sent to a purifier. seconds: of attack and defence. What is made once for several
    purifiers counts with the first; purify_seconds doesn't: the processor's time, all threads together, for purifying and
    classifying what was sent.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    purifier: str
    attack: AttackSettings
    oracle: bool = Field(default=False, description="right under any of the purifier's own candidates; uses the label")
    n: int
    accuracy: float
    paper: float | None
    flagged: float | None = Field(
        default=None, description="share of incoming images whose objective is above the 95th percentile of clean ones"
    )
    seconds: float
    outcomes: str
    forward: float | None = None
    backward: float | None = None
    objectives: str | None = None
    objective_after: float | None = None
    bare: float | None = None
    purify_seconds: float | None = None
    redrawn: Redrawn | None = None
    flags: tuple[str, ...] = Field(default=(), description="what a library's attack had to say against its result")
    library: str | None = Field(
        default=None, description="whose attack it is, with the version: ours where none is said"
    )


def defenses_of(catalog: Catalog, model: str, classifier: str, chains: Sequence[str] = ()) -> list[Defense]:
    """Every purifier that is offered for a classifier, and these chains of them.

    Raises:
        EvaluationError: there is no such checkpoint; the message lists what there is.
        UnknownName: a chain can't be made.
    """
    offers = catalog.offers()
    found = [catalog.load(offer) for offer in offers if (offer.model, offer.classifier) == (model, classifier)]
    if not found:
        known = ", ".join(sorted({f"{offer.model}/{offer.classifier}" for offer in offers}))
        raise EvaluationError(f"no checkpoint {model}/{classifier}; known: {known}")
    return [*found, *(catalog.defense(model, chain, classifier) for chain in chains)]


def trained_on(card: Card) -> str:
    """The data set of a checkpoint: its recipe's, or for a card that doesn't tell the model's name."""
    recipe = card.training.get("recipe", {})
    return str(recipe.get("data", card.model))


@dataclass(frozen=True)
class Fitted:
    """A plan as far as a zoo allows it.

    sources: the classifiers that its attacks make their images on, by name. missing: those that the zoo hasn't got; the plan
    goes without what is made on them.
    """

    plan: Plan
    sources: dict[str, Defense]
    missing: tuple[str, ...]


def fitted(catalog: Catalog, model: str, plan: Plan) -> Fitted:
    """The plan without what this zoo has no classifier for."""
    named = dict.fromkeys(attack.source for attack in plan.attacks if attack.source)
    have = {offer.classifier for offer in catalog.offers() if offer.model == model}
    sources = {name: catalog.defense(model, "none", name) for name in named if name in have}
    kept = tuple(attack for attack in plan.attacks if attack.source is None or attack.source in sources)
    return Fitted(plan.model_copy(update={"attacks": kept}), sources, tuple(name for name in named if name not in have))


def variants_of(defenses: Sequence[Defense], path: Path) -> list[Defense]:
    """The purifiers of a TOML file (`[NAME]` with `kind` and `settings`) on the networks of `defenses`.

    A variant has the network and the calibration of the first of them of its kind.

    Raises:
        EvaluationError: the file is missing or wrong.
    """
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
        entries = {name: PurifierEntry.model_validate(table) for name, table in tables.items()}
        return [_variant(name, entries, defenses) for name in entries]
    except (OSError, tomllib.TOMLDecodeError, ValidationError, CheckpointError) as error:
        raise EvaluationError(f"{path}: {error}") from error


def _variant(name: str, entries: dict[str, PurifierEntry], defenses: Sequence[Defense]) -> Defense:
    like = next((defense for defense in defenses if defense.info.kind == entries[name].kind), defenses[0])
    card = like.card.model_copy(update={"purifiers": entries})
    network = frozen_network(like.addons[0].network(), like.device, like.classifier.precision) if like.addons else None
    return replace(build_defense(name, card, like.classifier, like.device, network), addons=like.addons)


def voting(defenses: Sequence[Defense], votes: int) -> list[Defense]:
    """Those that draw random numbers, each answering by so many votes.

    Raises:
        EvaluationError: none does.
    """
    found = [defense.voting(votes) for defense in defenses if defense.info.random]
    if not found:
        names = ", ".join(defense.name for defense in defenses)
        raise EvaluationError(f"--votes {votes}: none of these purifiers draws random numbers: {names}")
    return found


class Evaluation:
    """A plan on some purifiers of one checkpoint; `sources` are the classifiers that the plan's attacks name."""

    def __init__(
        self,
        defenses: Sequence[Defense],
        plan: Plan,
        out: Path,
        data: Path | None,
        sources: Mapping[str, Defense] | None = None,
    ) -> None:
        self.plan, self.out, self.defenses, self._sources = plan, out, defenses, sources or {}
        self.card = defenses[0].card
        test = load_data(plan.data, "test", data)
        count = max(plan.n, plan.adaptive_n)
        if len(test) < plan.first + count:
            raise EvaluationError(
                f"data set {plan.data!r} has {len(test)} test images; the plan asks for {plan.first} to {plan.first + count}"
            )
        device = defenses[0].device
        # A substitute's attacker owns images of all kinds, so not neighbours: some sets come writer by writer.
        rest = len(test) - plan.first - count
        owned = min(OWNED, rest)
        spread = plan.first + count + torch.arange(owned) * rest // max(owned, 1)
        self._owned = to_float(test.images[spread]).to(device)
        self.x = test.floats(plan.first, plan.first + count).contiguous(memory_format=torch.channels_last).to(device)
        self.y = test.labels[plan.first : plan.first + count].to(device)
        self.cells: list[Cell] = []
        self._adversarial: dict[str, tuple[Tensor, tuple[str, ...]]] = {}

    def run(
        self,
        progress: Progress | None = None,
        *,
        purifiers: Sequence[str] | None = None,
        attacks: Sequence[str] | None = None,
        oracle: bool = True,
    ) -> list[Cell]:
        """Fill every cell that the result file doesn't hold yet; all cells so far. Names restrict what is filled."""
        progress = progress or Progress()
        self._resume()
        jobs = [
            (defense, attack)
            for attack in self.plan.attacks
            for defense in self.defenses
            if (not purifiers or defense.name in purifiers)
            and (not attacks or attack.name in attacks)
            and applies(defense, attack)
        ]
        with progress.track(jobs, f"{self.card.classifier}: {self.plan.name}") as each:
            for defense, attack in each:
                self._fill(defense, attack, progress, oracle)
        return self.cells

    def _fill(self, defense: Defense, attack: AttackSettings, progress: Progress, oracle: bool) -> None:
        n = self.images(attack)
        if any((cell.purifier, cell.attack, cell.n) == (defense.name, attack, n) for cell in self.cells):
            return
        x, y, started, earlier_s = self.x[:n], self.y[:n], time.perf_counter(), 0.0
        any_right: Tensor | None = None
        sources = [self._sources[attack.source]] if attack.source else []
        with counted(defense, *sources) as passes:
            if attack.aware:
                found, earlier_s = self._known(defense, attack, x, y, passes)
                right, incoming, flags, own = found.right, found.image, found.flags, dict[str, Any]()
            else:
                incoming, flags = self._attacked(defense, attack)
                right, any_right, own = _right(defense, incoming, y, oracle, self._seeds(defense, attack, n))
        seconds = round(time.perf_counter() - started + earlier_s, 1)
        facts = {
            "seconds": seconds,
            "flags": flags,
            "bare": _bare(defense, incoming, y) if attack.aware else None,
            **own,
            **_spent(passes, n),
            **self._suspected(defense, incoming, attack),
            "redrawn": self._redrawn(defense, incoming, y, attack),
        }
        self._add(defense, attack, right, **facts)
        if any_right is not None:
            self._add(defense, attack, any_right, oracle=True, seconds=seconds)
        if attack.mode in SEPARABLE:
            self._parts(defense, attack, n).forget()
        progress.note(f"{defense.name} {attack.name}: {right.float().mean():.1%}")

    def _known(
        self, defense: Defense, attack: AttackSettings, x: Tensor, y: Tensor, passes: Passes
    ) -> tuple[Survived, float]:
        """An attack on the whole defence, and the seconds of what was found before an interruption."""

        def run(x: Tensor, y: Tensor, first: int) -> Survived:
            return knowing(defense, x, y, attack, self.plan.first + first, self._owned)

        try:
            if attack.mode not in SEPARABLE:
                return run(x, y, 0), 0.0
            return self._parts(defense, attack, len(x)).run(run, x, y, passes)
        except ValueError as error:  # a library is missing
            raise EvaluationError(str(error)) from error

    def _parts(self, defense: Defense, attack: AttackSettings, n: int) -> Parts:
        key = {**self._header(), "purifier": defense.name, "attack": attack.model_dump(mode="json"), "n": n}
        return Parts(self.out.with_suffix(".parts"), key)

    def images(self, attack: AttackSettings) -> int:
        """How many images an attack gets."""
        n = self.plan.adaptive_n if attack.aware else self.plan.n
        return min(n, attack.images or n)

    def _seeds(self, defense: Defense, attack: AttackSettings, n: int, draw: int = 0) -> list[int] | None:
        if not defense.info.random:
            return None
        return [draws(attack, self.plan.first + i, draw * defense.votes) for i in range(n)]

    def _attacked(self, defense: Defense, attack: AttackSettings) -> tuple[Tensor, tuple[str, ...]]:
        """The incoming images of a blind attack: the same for every purifier of the checkpoint, made once."""
        if attack.name not in self._adversarial:
            n, flags, parts = self.images(attack), list[str](), []
            x, y = self.x[:n], self.y[:n]
            # AutoAttack makes parts itself, and warns of what it sees in all of them.
            chunks = [(0, x, y)] if attack.mode == "autoattack" else in_chunks(x, y)
            for first, x, y in chunks:
                made, said = self._attack(defense, x, y, attack, self.plan.first + first)
                parts.append(made)
                flags += said
            self._adversarial[attack.name] = torch.cat(parts), tuple(dict.fromkeys(flags))
        return self._adversarial[attack.name]

    def _attack(
        self, defense: Defense, x: Tensor, y: Tensor, attack: AttackSettings, first: int
    ) -> tuple[Tensor, tuple[str, ...]]:
        classifier = (self._sources[attack.source] if attack.source else defense).classifier
        try:
            match attack.mode:
                case "static":
                    return static(classifier, x, y, attack, first), ()
                case "features":
                    return distort(classifier, x, attack, first), ()
                case "foolbox":
                    return foolbox_attack(classifier, x, y, attack), ()
                case "autoattack":
                    return autoattack(classifier, x, y, attack)
                case _:
                    return x, ()
        except ValueError as error:  # no such library, no such attack, no such tap
            raise EvaluationError(str(error)) from error

    def _suspected(self, defense: Defense, x: Tensor, attack: AttackSettings) -> dict[str, Any]:
        """What the purifier's own loss says of the incoming images; nothing where it has none."""
        found = _objectives(defense, x, self._seeds(defense, attack, len(x)))
        if found is None:
            return {}
        percentiles = defense.card.calibration.get(defense.info.kind)
        flagged = round(float((found > percentiles[95]).float().mean()), 4) if percentiles else None
        return {"objectives": " ".join(f"{value:.5g}" for value in found.tolist()), "flagged": flagged}

    def _redrawn(self, defense: Defense, x: Tensor, y: Tensor, attack: AttackSettings) -> Redrawn | None:
        """None where the defence draws nothing. The draws are none of those that the attack has seen."""
        if not defense.info.random:
            return None
        n, count = min(len(x), self.plan.adaptive_n), self.plan.redraws
        x, y = x[:n], y[:n]
        fresh = attack.model_copy(update={"seed": attack.seed + 7919})
        drawn = [defense.purify(x, self._seeds(defense, fresh, n, draw)).logits.softmax(1) for draw in range(count)]
        votes = torch.stack(drawn, 1)  # (N, R, classes)
        right = votes.argmax(2) == y[:, None]
        return Redrawn(
            n=n,
            draws=count,
            mean=round(float(right.float().mean()), 6),
            worst=round(float(right.all(1).float().mean()), 6),
            majority={k: _elected(votes[:, :k], y) for k in (1, 5, 10) if k <= count and defense.votes == 1},
            outcomes=" ".join(map(str, right.sum(1).tolist())),
        )

    def _add(
        self, defense: Defense, attack: AttackSettings, right: Tensor, *, oracle: bool = False, **facts: Any
    ) -> None:
        self.cells.append(
            Cell(
                purifier=defense.name,
                attack=attack,
                oracle=oracle,
                n=len(right),
                accuracy=round(float(right.float().mean()), 6),
                paper=paper.reported(
                    self.plan.name, self.card.model, self.card.classifier, defense.name, attack.name, oracle
                ),
                outcomes="".join("1" if ok else "0" for ok in right.tolist()),
                library=_library(attack),
                **facts,
            )
        )
        self._write()

    def _header(self) -> dict[str, Any]:
        return {
            "format": 1,
            "model": self.card.model,
            "classifier": self.card.classifier,
            "weights_sha256": self.card.weights_sha256,
            "plan": self.plan.name,
            "budget": self.plan.budget,
            "data": f"{self.plan.data} test images from {self.plan.first} on",
            "settings": {
                defense.name: dict(defense.card.purifiers[defense.name].settings) for defense in self.defenses
            },
            **_addons(self.defenses),
            **self._made_on(),
            "versions": {"python": platform.python_version(), "torch": torch.__version__},
            "device": str(self.x.device),
            **_unusual(self.defenses),
        }

    def _made_on(self) -> dict[str, Any]:
        found = {name: source.card.weights_sha256 for name, source in self._sources.items()}
        return {"sources": found} if found else {}

    def _write(self) -> None:
        self.out.parent.mkdir(parents=True, exist_ok=True)
        partial = self.out.with_suffix(".partial")
        # Fields that are as always would only fill the file.
        cells = [cell.model_dump(mode="json", exclude_defaults=True) for cell in self.cells]
        body = {**self._header(), "cells": cells}
        partial.write_text(json.dumps(body, indent=1) + "\n", encoding="utf-8")
        os.replace(partial, self.out)

    def _resume(self) -> None:
        if not self.out.exists():
            return
        found = json.loads(self.out.read_text(encoding="utf-8"))
        cells = [Cell.model_validate(cell) for cell in found.pop("cells")]
        if found != self._header():
            raise EvaluationError(
                f"{self.out} holds results of another checkpoint, plan or version; move it away or choose another --out"
            )
        self.cells = cells


def _library(attack: AttackSettings) -> str | None:
    """For example `foolbox 3.3.4`; None for attacks of ours."""
    name = LIBRARIES.get(attack.mode)
    return f"{name} {version(name)}" if name else None


def _unusual(defenses: Sequence[Defense]) -> dict[str, Any]:
    """In which precision the networks computed, and how many votes decided; nothing where that is float32, and one."""
    found = {"precision": defenses[0].classifier.precision, "votes": defenses[0].votes}
    return {name: value for name, value in found.items() if value not in ("fp32", 1)}


def _addons(defenses: Sequence[Defense]) -> dict[str, Any]:
    """The weights of purifiers that bring some, by purifier; nothing where none does."""
    found = {defense.name: list(defense.addon_sha256) for defense in defenses if defense.addons}
    return {"addons": found} if found else {}


def _right(
    defense: Defense, x: Tensor, y: Tensor, oracle: bool, seeds: Sequence[int] | None
) -> tuple[Tensor, Tensor | None, dict[str, float | None]]:
    """(N,) bool: right as served; where the purifier chooses from candidates, right under any of them; and a cell's facts."""
    purifier = defense.purifier
    if not oracle or defense.votes > 1 or not isinstance(purifier, DescentPurifier) or not purifier.chooses:
        started = time.process_time()
        purified = defense.purify(x, seeds)
        seconds = round(time.process_time() - started, 3) if x.device.type == "cpu" else None
        return purified.logits.argmax(1) == y, None, {"purify_seconds": seconds, **_after([purified])}
    right, any_right, found = [], [], []
    for first, part, labels in in_chunks(x, y):
        own = seeds and seeds[first : first + len(part)]
        purified, candidates = purifier.purify_with_candidates(part, own)
        found.append(purified)
        right.append(purified.logits.argmax(1) == labels)
        any_right.append((torch.stack(candidates).argmax(2) == labels).any(0))
    return torch.cat(right), torch.cat(any_right), _after(found)


def _elected(votes: Tensor, y: Tensor) -> float:
    """Share right by majority, as the service counts. votes: (N, K, classes) probabilities of K draws, y: (N,)."""
    return round(float((scores(votes).argmax(1) == y).float().mean()), 6)


def _after(parts: Sequence[Purified]) -> dict[str, float | None]:
    """The purifier's mean loss on its own images; of a chain that of the first that has one. Nothing where it has none."""
    found = [part.objective_after for part in parts if part.objective_after is not None]
    return {"objective_after": float(f"{torch.cat(found).mean():.5g}")} if found else {}


@torch.no_grad()
def _bare(defense: Defense, x: Tensor, y: Tensor) -> float | None:
    """Accuracy of the classifier alone; None where that is the defence."""
    if defense.info.kind == "none":
        return None
    right = [defense.classifier(part).argmax(1) == labels for _, part, labels in in_chunks(x, y)]
    return round(float(torch.cat(right).float().mean()), 6)


def _spent(passes: Passes, n: int) -> dict[str, float]:
    return {"forward": round(passes.forward / n, 1), "backward": round(passes.backward / n, 1)}


def _objectives(defense: Defense, x: Tensor, seeds: Sequence[int] | None) -> Tensor | None:
    """The loss that judges an incoming image, (N,): of a chain that of its first purifier; None without one."""
    purifier = judging(defense.purifier)  # in a chain the first one, whose seeds are those of the image
    if purifier is None:
        return None
    with torch.no_grad():
        parts = [
            purifier.objective(part, seeds and seeds[first : first + CHUNK])
            for part, first in zip(x.split(CHUNK), range(0, len(x), CHUNK), strict=True)
        ]
    return torch.cat(parts)

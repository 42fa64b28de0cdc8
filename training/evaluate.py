"""Accuracy of one checkpoint's purifiers under a plan of attacks: one JSON, from which cards and tables are made.

What is attacked is the `Defense` that the service serves. Static attacks see the bare classifier, as in the paper; the
adaptive ones see the whole defence. The file is rewritten after every cell, so an interrupted run goes on where it stopped.
"""

import json
import os
import platform
import time
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from models.catalog import CHUNK, Catalog, Defense, build_defense
from models.checkpoint import Card, CheckpointError, Measurement, PurifierEntry
from models.purifiers.descending import DescentPurifier
from training import attacks as attacking
from training import paper
from training.attacks import AttackSettings
from training.data import load_data
from training.progress import Progress

PLANS = Path(__file__).parent / "plans"


# Attacks on the whole defence, by their mode.
ADAPTIVE = {
    "two-view": attacking.two_view,
    "bpda": attacking.bpda,
    "end-to-end": attacking.end_to_end,
    "unrolled": attacking.through_the_steps,
}


class EvaluationError(Exception):
    """An evaluation can't run; the message says why and what to do."""


class Plan(BaseModel):
    """Which attacks, on which test images."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    data: str
    first: int = Field(default=0, ge=0, description="index of the first test image")
    n: int = Field(ge=1, description="images for static attacks, from `first` on")
    adaptive_n: int = Field(ge=1, description="images for adaptive attacks")
    attacks: tuple[AttackSettings, ...]


class Cell(BaseModel):
    """One accuracy, with the outcome of each image ('1': right) in test set order."""

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


def load_plan(name: str, overrides: dict[str, Any] | None = None) -> Plan:
    """A shipped plan by name, or any TOML file by path.

    Raises:
        EvaluationError: there is no such plan, or a field is wrong.
    """
    path = Path(name) if name.endswith(".toml") else PLANS / f"{name}.toml"
    try:
        fields = tomllib.loads(path.read_text(encoding="utf-8"))
        return Plan.model_validate({"name": path.stem, **fields, **(overrides or {})})
    except FileNotFoundError as error:
        known = ", ".join(sorted(plan.stem for plan in PLANS.glob("*.toml")))
        raise EvaluationError(f"no plan {name!r}; shipped: {known}; or give the path of a .toml file") from error
    except (tomllib.TOMLDecodeError, ValidationError) as error:
        raise EvaluationError(f"{path}: {error}") from error


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


def sources_of(catalog: Catalog, model: str, plan: Plan) -> dict[str, Defense]:
    """The classifiers on which a plan's attacks make their images, by name.

    Raises:
        UnknownName: one isn't in the zoo.
    """
    names = dict.fromkeys(attack.source for attack in plan.attacks if attack.source)
    return {name: catalog.defense(model, "none", name) for name in names}


def variants_of(defense: Defense, path: Path) -> list[Defense]:
    """The purifiers of a TOML file (`[NAME]` with `kind` and `settings`) on a checkpoint's network.

    Raises:
        EvaluationError: the file is missing or wrong.
    """
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
        entries = {name: PurifierEntry.model_validate(table) for name, table in tables.items()}
        card = defense.card.model_copy(update={"purifiers": entries})
        return [build_defense(name, card, defense.classifier, defense.device) for name in entries]
    except (OSError, tomllib.TOMLDecodeError, ValidationError, CheckpointError) as error:
        raise EvaluationError(f"{path}: {error}") from error


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
        self.x = test.floats(plan.first, plan.first + count).contiguous(memory_format=torch.channels_last).to(device)
        self.y = test.labels[plan.first : plan.first + count].to(device)
        self.cells: list[Cell] = []
        self._adversarial: dict[str, Tensor] = {}

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
        adaptive = attack.mode in ADAPTIVE
        n = self.plan.adaptive_n if adaptive else self.plan.n
        if any(cell.purifier == defense.name and cell.attack == attack and cell.n == n for cell in self.cells):
            return
        started = time.perf_counter()
        x, y, seeds = self.x[:n], self.y[:n], attacking.draws(defense, attack, self.plan.first, n)
        if adaptive:
            found = ADAPTIVE[attack.mode](defense, x, y, attack, self.plan.first)
            right, incoming, any_right = found.right, found.image, None
        else:
            incoming = self._attacked(defense, attack)
            right, any_right = _right(defense, incoming, y, oracle, seeds)
        seconds = time.perf_counter() - started
        self._add(defense, attack, right, seconds, flagged=_flagged(defense, incoming, seeds))
        if any_right is not None:
            self._add(defense, attack, any_right, seconds, oracle=True)
        progress.note(f"{defense.name} {attack.name}: {right.float().mean():.1%}")

    def _attacked(self, defense: Defense, attack: AttackSettings) -> Tensor:
        """The incoming images of a static attack: the same for every purifier of the checkpoint, made once."""
        if attack.name not in self._adversarial:
            parts = [
                self._attack(defense, x, y, attack, self.plan.first + first)
                for first, x, y in attacking.in_chunks(self.x[: self.plan.n], self.y[: self.plan.n])
            ]
            self._adversarial[attack.name] = torch.cat(parts)
        return self._adversarial[attack.name]

    def _attack(self, defense: Defense, x: Tensor, y: Tensor, attack: AttackSettings, first: int) -> Tensor:
        defense = self._sources[attack.source] if attack.source else defense
        try:
            match attack.mode:
                case "static":
                    return attacking.static(defense, x, y, attack, first)
                case "features":
                    return attacking.distort(defense, x, attack, first)
                case "foolbox":
                    return attacking.foolbox_attack(defense, x, y, attack)
                case _:
                    return x
        except ValueError as error:  # no Foolbox, no such attack, no such tap
            raise EvaluationError(str(error)) from error

    def _add(
        self,
        defense: Defense,
        attack: AttackSettings,
        right: Tensor,
        seconds: float,
        *,
        oracle: bool = False,
        flagged: float | None = None,
    ) -> None:
        self.cells.append(
            Cell(
                purifier=defense.name,
                attack=attack,
                oracle=oracle,
                n=len(right),
                accuracy=round(float(right.float().mean()), 6),
                paper=paper.reported(self.plan.name, self.card.classifier, defense.name, attack.name, oracle),
                flagged=flagged,
                seconds=round(seconds, 1),
                outcomes="".join("1" if ok else "0" for ok in right.tolist()),
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
            "data": f"{self.plan.data} test images from {self.plan.first} on",
            "settings": {
                defense.name: dict(defense.card.purifiers[defense.name].settings) for defense in self.defenses
            },
            **_addons(self.defenses),
            **self._made_on(),
            "versions": {"python": platform.python_version(), "torch": torch.__version__},
            "device": str(self.x.device),
        }

    def _made_on(self) -> dict[str, Any]:
        found = {name: source.card.weights_sha256 for name, source in self._sources.items()}
        return {"sources": found} if found else {}

    def _write(self) -> None:
        self.out.parent.mkdir(parents=True, exist_ok=True)
        partial = self.out.with_suffix(".partial")
        body = {**self._header(), "cells": [cell.model_dump(mode="json") for cell in self.cells]}
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


def _addons(defenses: Sequence[Defense]) -> dict[str, Any]:
    """The weights of purifiers that bring some, by purifier; nothing where none does."""
    found = {defense.name: list(defense.addon_sha256) for defense in defenses if defense.addons}
    return {"addons": found} if found else {}


def applies(defense: Defense, attack: AttackSettings) -> bool:
    """Whether an attack can be run on a defence: adaptive ones need a purifier to adapt to, its views, or its gradient."""
    if attack.mode == "two-view":
        return hasattr(defense.purifier, "view_logits")
    if attack.mode == "unrolled":
        return isinstance(defense.purifier, DescentPurifier) and not defense.info.random
    if attack.mode == "end-to-end":
        return attacking.differentiable(defense.purifier)
    return attack.mode != "bpda" or defense.info.kind != "none"


def _right(
    defense: Defense, x: Tensor, y: Tensor, oracle: bool, seeds: Sequence[int] | None
) -> tuple[Tensor, Tensor | None]:
    """(N,) bool: right as served; and, where the purifier chooses from candidates, right under any of them."""
    if not oracle or not isinstance(defense.purifier, DescentPurifier) or not defense.purifier.chooses:
        return defense.purify(x, seeds).logits.argmax(1) == y, None
    right, any_right = [], []
    for first, part, labels in attacking.in_chunks(x, y):
        own = seeds and seeds[first : first + len(part)]
        purified, candidates = defense.purifier.purify_with_candidates(part, own)
        right.append(purified.logits.argmax(1) == labels)
        any_right.append((torch.stack(candidates).argmax(2) == labels).any(0))
    return torch.cat(right), torch.cat(any_right)


def _flagged(defense: Defense, x: Tensor, seeds: Sequence[int] | None) -> float | None:
    percentiles = defense.card.calibration.get(defense.info.kind)
    if not percentiles or not isinstance(defense.purifier, DescentPurifier):
        return None
    with torch.no_grad():
        objective = torch.cat(
            [
                defense.purifier.objective(part, seeds and seeds[first : first + CHUNK])
                for part, first in zip(x.split(CHUNK), range(0, len(x), CHUNK), strict=True)
            ]
        )
    return round(float((objective > percentiles[95]).float().mean()), 4)


def measurements(cells: Sequence[Cell], where: str, addons: Mapping[str, Sequence[str]]) -> tuple[Measurement, ...]:
    """The cells as a card's `measured`; `where` names the result file, `addons` the weights that purifiers bring along."""
    return tuple(
        Measurement(
            attack=cell.attack.name,
            purifier=cell.purifier + (" (oracle)" if cell.oracle else ""),
            addons=tuple(addons.get(cell.purifier, ())),
            accuracy=cell.accuracy,
            n=cell.n,
            paper=cell.paper,
            detail=f"{cell.attack.mode}; {cell.attack.text()}; seed {cell.attack.seed}; {where}",
        )
        for cell in cells
    )


def with_measurements(
    card: Card, cells: Sequence[Cell], where: str, addons: Mapping[str, Sequence[str]] | None = None
) -> Card:
    """`card` with the results of the file `where` replaced; those of others stay."""
    others = tuple(each for each in card.measured if not each.detail.endswith(f"; {where}"))
    return card.model_copy(update={"measured": (*others, *measurements(cells, where, addons or {}))})

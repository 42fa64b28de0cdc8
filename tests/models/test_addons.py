"""Add-ons: purifiers whose networks have checkpoints of their own, alone and in chains."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from models.catalog import Catalog, UnknownName
from models.checkpoint import (
    CARD,
    AddOn,
    Checkpoint,
    CheckpointError,
    Measurement,
    open_checkpoint,
    read_card,
    save_checkpoint,
    write_card,
)
from models.networks.base import NETWORKS
from models.purifiers import Material, Options, Purified
from models.purifiers.base import PURIFIERS, PurifierInfo, counted

Make = Callable[..., Path]


class Shift(nn.Module):
    """Adds a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.by = nn.Parameter(torch.tensor(0.0))


class Shifting:
    """A purifier that adds its network's constant, and tells it as its objective."""

    def __init__(self, material: Material) -> None:
        self.network, self.classifier = material.own_network(Shift), material.classifier
        self.steps = int(material.settings.get("steps", 0))

    @property
    def info(self) -> PurifierInfo:
        options = ("steps",) if self.steps else ()
        return PurifierInfo("shift", "A paper", "adds", 0.5, 1, 0, "Shift", options)

    def purify(self, x: Tensor, seeds: Any = None, wanted: Any = None) -> Purified:
        self.seeds = seeds
        image = (x + self.network.by).clamp(0, 1)
        told = torch.full((len(x),), float(self.network.by) + self.steps)
        return Purified(image, self.logits(image), told, told, told, counted(x, 1), counted(x, 0))

    def with_options(self, options: Options) -> "Shifting":
        return Shifting(Material(self.classifier, {"steps": options.steps}, (), self.network))

    def logits(self, x: Tensor) -> Tensor:
        return self.classifier(x)


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(NETWORKS.builders, "shift", Shift)
    monkeypatch.setitem(PURIFIERS.builders, "shift", Shifting)


@pytest.fixture
def zoo(save: Make, tmp_path: Path) -> Path:
    """Two classifiers of one model with different weights."""
    for name in ("a", "b"):
        save(name, classifier=name)
        with torch.random.fork_rng():
            torch.manual_seed(ord(name))
            network = Checkpoint.open(tmp_path / name).classifier()
            nn.init.normal_(network.classifier_head.weight)
        fields = json.loads((tmp_path / name / CARD).read_text())
        del fields["weights_sha256"]
        save_checkpoint(tmp_path / name, network, fields)
    return tmp_path


@pytest.fixture
def addon(zoo: Path) -> Make:
    """Save an add-on beside the classifiers."""

    def make(name: str, by: float = 0.25, *, beside: str = "a", protects: str = "classifier", **entry: Any) -> Path:
        network = Shift()
        nn.init.constant_(network.by, by)
        protected = read_card(zoo / beside)
        fields = {
            **{"part": "purifier", "model": "mnist", "addon": name, "network": "shift", "arguments": {}},
            **{"classifier": beside, "classifier_sha256": protected.weights_sha256, "protects": protects},
            **{"input": protected.input.model_dump(), "training": {}},
            "purifiers": {name: {"kind": "shift", "default": True, **entry}},
        }
        save_checkpoint(zoo / name, network, fields)
        return zoo / name

    return make


def pairs(catalog: Catalog, purifier: str) -> list[str]:
    return [offer.classifier for offer in catalog.offers() if offer.purifier == purifier]


def test_an_add_on_purifies_for_the_classifier_it_was_trained_beside(zoo: Path, addon: Make) -> None:
    addon("shift")
    catalog = Catalog.open([zoo])
    assert pairs(catalog, "shift") == ["a"]
    defense = catalog.defense("mnist", "shift")
    found = defense.purify(torch.full((1, 1, 28, 28), 0.5))
    assert float(found.image.max()) == 0.75
    assert defense.addon_sha256 == (read_card(zoo / "shift").weights_sha256,)
    assert defense.card.classifier == "a"


def test_an_add_on_may_protect_every_classifier_of_its_model(zoo: Path, addon: Make) -> None:
    addon("shift", beside="b", protects="model")
    catalog = Catalog.open([zoo])
    assert pairs(catalog, "shift") == ["a", "b"]
    assert catalog.resolve("mnist", "shift").classifier == "b"  # the one it was trained beside


def test_without_a_classifier_the_most_robust_one_is_meant(zoo: Path, addon: Make) -> None:
    addon("shift", beside="b", protects="model")
    addon("bound", beside="b")
    for name, accuracies in (("a", (0.4, 0.5)), ("b", (0.1, 0.9))):  # of several measurements the lowest counts
        measured = [
            Measurement(attack="pgd", purifier="none", accuracy=each, n=1000, detail="x") for each in accuracies
        ]
        write_card(zoo / name, read_card(zoo / name).model_copy(update={"measured": tuple(measured)}))
    catalog = Catalog.open([zoo])
    assert catalog.resolve("mnist", "shift").classifier == "a"
    assert catalog.resolve("mnist", "bound").classifier == "b"
    assert catalog.resolve("mnist", "shift+bound").classifier == "b"


def test_an_add_on_whose_classifier_is_missing_is_refused_with_what_to_do(zoo: Path, addon: Make) -> None:
    folder = addon("shift")
    with pytest.raises(CheckpointError, match=r"shift: this add-on protects classifier 'a' .* add the one that does"):
        Catalog.open([zoo / "b", folder])


def test_an_add_on_is_not_offered_for_other_weights_of_its_classifier(zoo: Path, addon: Make) -> None:
    addon("shift")
    catalog = Catalog.open([zoo])
    old = catalog.defense("mnist", "shift")
    retrained = Checkpoint.open(zoo / "b")
    retrained.card = retrained.card.model_copy(update={"classifier": "a"})
    after = catalog.with_checkpoint(retrained)
    assert pairs(after, "shift") == []
    assert not after.serves(old)
    assert catalog.serves(old)


def test_what_a_swap_does_not_touch_is_not_built_again(zoo: Path, addon: Make) -> None:
    addon("shift")
    addon("other", beside="b")
    catalog = Catalog.open([zoo])
    shift, other = catalog.defense("mnist", "shift"), catalog.defense("mnist", "other")
    addon("shift", by=0.5)
    after = catalog.with_checkpoint(open_checkpoint(zoo / "shift"))
    assert after.defense("mnist", "other") is other
    assert after.defense("mnist", "shift") is not shift
    assert after.defense("mnist", "shift").classifier is shift.classifier
    assert (after.serves(other), after.serves(shift)) == (True, False)


def test_a_purifiers_name_is_taken_once_for_each_classifier(zoo: Path, addon: Make) -> None:
    addon("shift")
    folder = addon("again")
    card = json.loads((folder / CARD).read_text())
    card["purifiers"] = {"shift": card["purifiers"]["again"]}
    (folder / CARD).write_text(json.dumps(card))
    with pytest.raises(CheckpointError, match=r"classifier 'a' of model 'mnist' has a purifier 'shift' already"):
        Catalog.open([zoo])


def test_a_chain_runs_its_purifiers_in_order(zoo: Path, addon: Make) -> None:
    addon("one", 0.25)
    addon("two", -0.5)
    chain = Catalog.open([zoo]).defense("mnist", "one+two")
    x = torch.full((2, 1, 28, 28), 0.875)
    found = chain.purify(x)
    assert float(found.image.max()) == 0.5  # 0.875 + 0.25 is clipped to 1 before the second one
    assert [float(step.image.max()) for step in found.steps] == [1.0, 0.5]
    assert found.objective_before.tolist() == [0.25, 0.25]  # the first one's
    assert found.epsilon.tolist() == [-0.25, -0.25]
    assert found.forward_passes.tolist() == [2, 2]
    assert len(chain.addon_sha256) == 2
    assert (chain.name, chain.info.kind, chain.info.eps_pfy) == ("one+two", "chain", 1.0)


def test_a_chain_is_built_once(zoo: Path, addon: Make) -> None:
    addon("one")
    addon("two")
    catalog = Catalog.open([zoo])
    assert catalog.resolve("mnist", "one+two") is catalog.resolve("mnist", "one+two")
    assert catalog.resolve("mnist", "one+two") is not catalog.resolve("mnist", "two+one")


def test_the_steps_of_a_chain_draw_different_numbers(zoo: Path, addon: Make) -> None:
    addon("one")
    addon("two")
    chain = Catalog.open([zoo]).defense("mnist", "one+two")
    chain.purify(torch.rand(1, 1, 28, 28), seeds=[7])
    first, second = chain.purifier.purifiers
    assert first.seeds == [7]
    assert second.seeds != [7]


def test_an_option_goes_to_the_one_purifier_of_a_chain_that_takes_it(zoo: Path, addon: Make) -> None:
    addon("one", settings={"steps": 2})
    addon("two")
    addon("three", settings={"steps": 2})
    catalog = Catalog.open([zoo])
    changed = catalog.defense("mnist", "one+two").with_options(Options(steps=9))
    assert changed.purify(torch.rand(1, 1, 28, 28)).steps[0].epsilon.tolist() == [9.25]
    with pytest.raises(ValueError, match="has no option steps"):
        catalog.defense("mnist", "one+three").with_options(Options(steps=9))


@pytest.mark.parametrize("name", ["one+one", "one+none", "one+two+three+four", "one+"])
def test_what_is_no_chain_is_refused(zoo: Path, addon: Make, name: str) -> None:
    for each in ("one", "two", "three", "four"):
        addon(each)
    with pytest.raises(UnknownName, match=r"such as: nrp|unknown purifier ''"):
        Catalog.open([zoo]).resolve("mnist", name)


def test_purifiers_of_different_classifiers_make_no_chain(zoo: Path, addon: Make) -> None:
    addon("one", beside="a")
    addon("two", beside="b")
    with pytest.raises(UnknownName, match=r"no purifier 'one\+two' \(one goes with a; two goes with b\)"):
        Catalog.open([zoo]).resolve("mnist", "one+two")


def test_measurements_hold_only_for_the_weights_they_were_made_with(zoo: Path, addon: Make) -> None:
    sha256 = read_card(addon("shift")).weights_sha256
    card = json.loads((zoo / "a" / CARD).read_text())
    mine = {"attack": "none", "purifier": "shift", "accuracy": 0.5, "n": 2, "detail": ""}
    card["measured"] = [{**mine, "addons": [sha256]}, {**mine, "accuracy": 0.9, "addons": ["f" * 64]}]
    (zoo / "a" / CARD).write_text(json.dumps(card))
    assert [found.accuracy for found in Catalog.open([zoo]).resolve("mnist", "shift").measured()] == [0.5]


def test_add_ons_come_back_from_their_folder(addon: Make) -> None:
    found = open_checkpoint(addon("shift", 0.125))
    assert isinstance(found, AddOn)
    assert found.network().by.item() == 0.125


def test_an_add_on_is_no_classifier(addon: Make) -> None:
    with pytest.raises(CheckpointError, match=r"holds an add-on \(shift\), where a classifier is needed"):
        Checkpoint.open(addon("shift"))


def test_weights_that_do_not_fit_the_network_are_refused(addon: Make) -> None:
    folder = addon("shift")
    card = json.loads((folder / CARD).read_text())
    (folder / CARD).write_text(json.dumps({**card, "network": "nothing"}))
    with pytest.raises(CheckpointError, match="unknown purifier network 'nothing'"):
        open_checkpoint(folder).network()


def test_a_purifier_without_its_network_says_so(zoo: Path) -> None:
    classifier = Catalog.open([zoo]).defense("mnist", "none").classifier
    with pytest.raises(ValueError, match="needs a network of its own of type Shift; its checkpoint has none"):
        Shifting(Material(classifier, {}, ()))

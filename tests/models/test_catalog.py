"""From names to a running Defense, and what the catalog answers where there is none."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from models.catalog import CHUNK, Catalog, UnknownName, build_defense
from models.checkpoint import WEIGHTS, Card, Checkpoint, CheckpointError

NONE = {"none": {"kind": "none"}}


@pytest.fixture
def zoo(save, tmp_path: Path) -> Path:
    """Model mnist with classifiers a (none), b (none by default, soap-dr); model cifar10 with one classifier."""
    settings = {"selection": "fixed", "budgets": [0.3], "step_size": 0.1, "steps": 2}
    save("one", classifier="a", purifiers=NONE)
    save(
        "two",
        classifier="b",
        purifiers={"none": {"kind": "none", "default": True}, "soap-dr": {"kind": "soap-dr", "settings": settings}},
    )
    save(
        "three", model="cifar10", classifier="c", purifiers={**NONE, "quick": {"kind": "soap-dr", "settings": settings}}
    )
    return tmp_path


@pytest.fixture
def catalog(zoo: Path) -> Catalog:
    return Catalog.open([zoo])


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("mnist", "none"), ("mnist", "b", "none")),  # the default's
        (("mnist", "soap-dr"), ("mnist", "b", "soap-dr")),  # the only one
        (("mnist", "none", "a"), ("mnist", "a", "none")),
        (("cifar10", "none"), ("cifar10", "c", "none")),
    ],
)
def test_names_resolve(catalog: Catalog, names: tuple[str, ...], expected: tuple[str, ...]) -> None:
    offer = catalog.resolve(*names)
    assert (offer.model, offer.classifier, offer.purifier) == expected
    assert offer.card.classifier == expected[1]


def test_without_a_default_the_first_classifier_serves(save, tmp_path: Path) -> None:
    save("z", classifier="a", purifiers=NONE)
    save("y", classifier="b", purifiers=NONE)
    assert Catalog.open([tmp_path]).resolve("mnist", "none").classifier == "a"


def test_who_names_no_purifier_gets_what_is_best_or_else_the_first(catalog: Catalog) -> None:
    shipped = Catalog.open()
    assert [shipped.default_purifier(model) for model in ("cifar10", "mnist")] == ["aid", "soap-dr"]
    assert [catalog.default_purifier(model) for model in ("cifar10", "mnist")] == ["quick", "soap-dr"]
    assert catalog.default_purifier("nothing") == "none"


def test_models_and_offers_are_sorted(catalog: Catalog) -> None:
    assert catalog.models() == ["cifar10", "mnist"]
    assert [(offer.model, offer.classifier, offer.purifier) for offer in catalog.offers()] == [
        ("cifar10", "c", "none"),
        ("cifar10", "c", "quick"),
        ("mnist", "a", "none"),
        ("mnist", "b", "none"),
        ("mnist", "b", "soap-dr"),
    ]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("imagenet", "none"), "unknown model 'imagenet'; known: cifar10, mnist"),
        (("mnist", "magic"), "unknown purifier 'magic'; known: none, quick, soap-dr"),
        (("mnist", "none", "z"), "model 'mnist' has no classifier 'z'; it has: a, b"),
        (("mnist", "quick"), "model 'mnist' has no purifier 'quick'; it has: none, soap-dr"),
        (
            ("mnist", "soap-dr", "a"),
            "model 'mnist' with classifier 'a' has no purifier 'soap-dr' (soap-dr goes with b); it has: none",
        ),
    ],
)
def test_an_unknown_name_is_answered_with_what_there_is(catalog: Catalog, names: tuple[str, ...], message: str) -> None:
    with pytest.raises(UnknownName) as error:
        catalog.defense(*names)
    assert str(error.value) == message


def test_a_folder_may_be_a_checkpoint_itself(zoo: Path) -> None:
    assert Catalog.open([zoo / "one", zoo / "three"]).models() == ["cifar10", "mnist"]


def test_a_folder_without_a_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no checkpoint here \(looked for card.json and"):
        Catalog.open([tmp_path])


def test_two_folders_of_one_name_are_refused(save, tmp_path: Path) -> None:
    save("one")
    save("two")
    with pytest.raises(CheckpointError, match=r"one and .*two are both 'fcn' of model 'mnist'"):
        Catalog.open([tmp_path])


def test_networks_are_loaded_when_first_asked_for(catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = []
    load = Checkpoint.classifier
    monkeypatch.setattr(Checkpoint, "classifier", lambda self: loaded.append(self.card.classifier) or load(self))
    assert loaded == []
    one, two = catalog.defense("mnist", "none"), catalog.defense("mnist", "soap-dr")
    assert loaded == ["b"]
    assert one.classifier is two.classifier
    assert catalog.defense("mnist", "none") is one


def test_threads_share_one_defense(catalog: Catalog) -> None:
    with ThreadPoolExecutor(8) as pool:
        defenses = list(pool.map(lambda _: catalog.defense("mnist", "soap-dr"), range(32)))
    assert all(defense is defenses[0] for defense in defenses)


def test_wrong_weights_show_at_the_opening(zoo: Path) -> None:
    (zoo / "one" / WEIGHTS).write_bytes(b"")
    with pytest.raises(CheckpointError, match="SHA-256"):
        Catalog.open([zoo])


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"kind": "magic"}, "classifier 'fcn', purifier 'p': unknown purifier kind 'magic'; known: aid, none, nrp"),
        ({"kind": "soap-dr"}, "classifier 'fcn', purifier 'p': (?s:.*)selection"),
        ({"kind": "soap-rp", "settings": {}}, "classifier 'fcn', purifier 'p'"),
    ],
)
def test_settings_that_do_not_fit_are_the_cards_fault(save, entry: dict, message: str) -> None:
    catalog = Catalog.open([save(purifiers={"p": entry})])
    with pytest.raises(CheckpointError, match=message):
        catalog.defense("mnist", "p")


def test_large_batches_go_in_parts_and_come_back_in_order(catalog: Catalog) -> None:
    defense = catalog.defense("mnist", "soap-dr")
    x = torch.rand(CHUNK + 3, 1, 28, 28)
    whole, last = defense.purify(x), defense.purify(x[CHUNK:])
    assert whole.image.shape == x.shape
    assert torch.equal(whole.logits[CHUNK:], last.logits)
    assert torch.equal(whole.objective_after[CHUNK:], last.objective_after)
    assert defense.purify(x[:0]).image.shape == (0, 1, 28, 28)


def test_parts_without_an_objective_are_joined(catalog: Catalog) -> None:
    defense, x = catalog.defense("mnist", "none"), torch.rand(CHUNK + 1, 1, 28, 28)
    whole = defense.purify(x)
    assert whole.objective_before is None
    assert torch.equal(whole.image, x)


@pytest.mark.parametrize(
    ("objective", "percent"),
    [(-1.0, 0.0), (0.0, 0.0), (2.0, 2.0), (2.25, 2.25), (99.5, 99.5), (100.0, 100.0), (1e9, 100.0)],
)
def test_suspicion_is_a_percentile_of_clean_images(card: Card, network, objective: float, percent: float) -> None:
    defense = build_defense("soap-dr", card, network("fcn", aux="decoder"))  # its percentiles are 0, 1, ..., 100
    assert defense.suspicion(objective) == pytest.approx(percent)


def test_suspicion_of_equal_percentiles_is_the_highest(card: Card, network) -> None:
    flat = card.model_copy(update={"calibration": {"soap-dr": (0.0,) * 51 + (1.0,) * 50}})
    defense = build_defense("soap-dr", flat, network("fcn", aux="decoder"))
    assert defense.suspicion(0.0) == 50
    assert defense.suspicion(0.5) == 50.5


def test_without_calibration_there_is_no_suspicion(card: Card, network) -> None:
    assert build_defense("none", card, network("fcn")).suspicion(3.0) is None

"""Every attack, mode by mode, runs on every defence that is shipped; how strong they are is in docs/results."""

from pathlib import Path

import pytest
import torch

from models.catalog import Catalog
from training.attacks import AttackSettings, applies, knowing
from training.attacks.blind import distort, static
from training.attacks.library import autoattack, foolbox_attack
from training.attacks.settings import BY_GRADIENT
from training.attacks.substitute import SubstituteSettings, substitute_attack
from training.data import load_data

DATA = Path(__file__).parents[2] / "data"
CATALOG = Catalog.open()
OFFERS = [pytest.param(offer, id=f"{offer.classifier}-{offer.purifier}") for offer in CATALOG.offers()]
EPSILON = 0.02


def settings(mode, **fields):
    return AttackSettings.model_validate({"name": mode, "mode": mode, "epsilon": EPSILON, **fields})


def aware(defense):
    """What knows a defence; as short as it gets."""
    draws = 2 if defense.info.random else 1
    climb = [
        settings(mode, steps=1, step_size=0.01, norm=norm, eot=1 if mode == "joint" else draws)
        for mode in BY_GRADIENT
        for norm in ("linf", "l2")
    ]
    ask = [settings("square", steps=3), settings("decision", steps=3)]
    whole = settings("autoattack", attack="square", steps=2, whole=True)
    return [attack for attack in (*climb, *ask, whole) if applies(defense, attack)]


@pytest.mark.parametrize("offer", OFFERS)
def test_every_mode_runs(offer):
    defense = CATALOG.load(offer)
    x = load_data(offer.model, "test", DATA).floats(0, 2).contiguous(memory_format=torch.channels_last)
    y = defense.purify(x, range(2)).logits.argmax(1)  # right as they come, so that there is something to attack
    for attack in aware(defense):
        sent = knowing(defense, x, y, attack).image - x
        length = sent.abs().flatten(1).amax(1) if attack.norm == "linf" else sent.flatten(1).norm(dim=1)
        assert float(length.max()) <= EPSILON + 1e-6, attack.name
    how = SubstituteSettings(
        architecture="cnn" if offer.model == "mnist" else "resnet18-thin", queries=2, augmentations=1, epochs=1
    )
    transferred = settings("substitute", attack=how.architecture, steps=1, step_size=EPSILON)
    sent = substitute_attack(defense, x, y, transferred, 0, x.flip(0), how).image - x
    assert float(sent.abs().max()) <= EPSILON + 1e-6


@pytest.mark.parametrize("offer", [each for each in OFFERS if each.values[0].purifier == "none"])
def test_every_attack_on_a_classifier_runs(offer):
    defense = CATALOG.load(offer)
    x = load_data(offer.model, "test", DATA).floats(0, 2).contiguous(memory_format=torch.channels_last)
    y = defense.logits(x).argmax(1)
    classifier, climb = defense.classifier, {"steps": 2, "step_size": 0.01}
    made = [
        static(classifier, x, y, settings("static", **climb), 0),
        foolbox_attack(classifier, x, y, settings("foolbox", attack="LinfDeepFoolAttack", arguments={"steps": 2})),
        *(
            distort(classifier, x, settings("features", random_start=True, tap=tap, **climb), 0)
            for tap in classifier.taps
        ),
    ]
    assert all(0 < float((each - x).abs().max()) <= EPSILON + 1e-6 for each in made)
    found, _ = autoattack(
        classifier, x, y, settings("autoattack", attack="square", steps=2)
    )  # what withstands stays as it was
    assert float((found - x).abs().max()) <= EPSILON + 1e-6

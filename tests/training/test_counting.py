"""What an evaluation cost is counted where images enter a network."""

from dataclasses import replace

import pytest
import torch

from models.purifiers import Options
from models.purifiers.chain import Chain
from tests.contract.conftest import Case, toy_images
from training.attacks import AttackSettings, knowing
from training.attacks.blind import static
from training.counting import counted


@pytest.fixture(scope="module")
def plain():
    return Case("none", "plain").defense()


@pytest.fixture(scope="module")
def descent():
    """SOAP's reconstruction on the same kind of network."""
    return Case("soap-dr", "fcn").defense()


@pytest.fixture(scope="module")
def generator():
    return Case("pix2pix", "plain").defense()


def found(*defenses, run):
    with counted(*defenses) as passes:
        run()
    return passes.forward, passes.backward


def hooks(defense):
    return sum(len(module._forward_hooks) for module in defense.classifier.modules())


def test_a_bare_classifier_takes_one_pass_an_image(plain):
    x = toy_images(plain.card, n=3)
    assert found(plain, run=lambda: plain.purify(x)) == (3, 0)


def test_each_step_of_an_attack_is_a_pass_there_and_back(plain):
    x = toy_images(plain.card, n=3)
    pgd = AttackSettings(name="p", mode="static", epsilon=0.1, step_size=0.05, steps=4)
    labels = torch.zeros(3, dtype=torch.long)
    # One look before for the targets, one after for the restarts.
    assert found(plain, run=lambda: static(plain.classifier, x, labels, pgd)) == (3 * (4 + 2), 3 * 4)


def test_a_descent_of_two_steps_takes_three_looks_and_two_gradients(descent):
    short, x = descent.with_options(Options(epsilon=0.1, steps=2)), toy_images(descent.card, n=3)
    assert found(short, run=lambda: short.purify(x)) == (3 * 3, 3 * 2)


def test_a_choice_of_budgets_is_counted_as_the_answer_tells(descent):
    x = toy_images(descent.card, n=3)
    told = descent.purify(x)
    expected = int(told.forward_passes.sum()), int(told.backward_passes.sum())
    assert found(descent, run=lambda: descent.purify(x)) == expected


def test_a_generator_counts_beside_the_classifier(generator):
    x = toy_images(generator.card, n=3)
    assert found(generator, run=lambda: generator.purify(x)) == (3 * 2, 0)
    settings = AttackSettings(name="e", mode="end-to-end", epsilon=0.1, step_size=0.05, steps=1)
    labels = generator.purify(x).logits.argmax(1)
    # Asked twice; climbed once, through both.
    assert found(generator, run=lambda: knowing(generator, x, labels, settings)) == (3 * (2 * 2 + 2), 3 * 2)


def test_every_generator_of_a_chain_counts(generator):
    chained = replace(generator, purifier=Chain([generator.purifier, generator.purifier]))
    x = toy_images(generator.card, n=3)
    # The generator has one hook, however often it is in the chain. Each of the two classifies as well.
    assert found(chained, run=lambda: chained.purify(x)) == (3 * 4, 0)


def test_two_defenses_of_one_network_count_it_once(plain):
    x = toy_images(plain.card, n=3)
    assert found(plain, replace(plain, name="again"), run=lambda: plain.purify(x)) == (3, 0)


def test_nothing_is_left_on_the_network(plain):
    assert not hooks(plain)
    with counted(plain):
        assert hooks(plain) == 1
    assert not hooks(plain)
    with pytest.raises(RuntimeError, match="cannot be multiplied"), counted(plain):
        plain.purify(torch.zeros(2, 1, 2, 2))
    assert not hooks(plain)

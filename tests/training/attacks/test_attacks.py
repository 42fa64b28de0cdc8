from dataclasses import replace

import pytest
import torch
from torch import nn

from models.catalog import build_defense
from models.checkpoint import Card
from models.classifiers import Classifier, build_classifier, frozen
from models.purifiers import Purified
from models.purifiers.chain import Chain
from training.attacks import AttackSettings, knowing
from training.attacks.ascent import ascend
from training.attacks.aware import differentiable
from training.attacks.blind import distort, static
from training.attacks.library import foolbox_attack


def as_mode(mode):
    return lambda settings: settings.model_copy(update={"mode": mode})


BPDA, END_TO_END, TWO_VIEW = as_mode("bpda"), as_mode("end-to-end"), as_mode("two-view")
PGD = AttackSettings(name="pgd", mode="static", epsilon=0.1, step_size=0.03, steps=10)


def linear(weight=1.0):
    """Two classes; class 1 wins where the pixel sum is above 2 of 4."""
    head = nn.Linear(4, 2)
    head.weight.data = torch.stack([torch.zeros(4), torch.full((4,), weight)])
    head.bias.data = torch.tensor([0.0, -2.0 * weight])
    return Classifier(nn.Flatten(), head, mean=[0.0], std=[1.0]).eval().requires_grad_(False)


def defense(network=None, purifiers=None, name="none"):
    card = Card(
        model="toy",
        classifier="linear",
        architecture="none",
        arguments={},
        labels=("low", "high"),
        input={"channels": 1, "height": 2, "width": 2},
        purifiers=purifiers or {"none": {"kind": "none"}},
        training={},
        weights_sha256="0" * 64,
    )
    return build_defense(name, card, network or linear())


def images(value, count=3):
    return torch.full((count, 1, 2, 2), value)


def test_ascent_climbs_to_the_corner_of_the_budget():
    x = ascend(lambda x: x.sum(dim=(1, 2, 3)), images(0.5), PGD)
    assert torch.allclose(x, images(0.6))


def test_ascent_stays_in_the_image_range():
    x = ascend(lambda x: x.sum(dim=(1, 2, 3)), images(0.98), PGD)
    assert torch.allclose(x, images(1.0))


def test_pgd_flips_what_lies_within_its_budget_and_nothing_else():
    near, far, labels = images(0.55), images(0.7), torch.ones(3, dtype=torch.long)
    assert (defense().purify(static(defense().classifier, near, labels, PGD)).logits.argmax(1) == 0).all()
    assert (defense().purify(static(defense().classifier, far, labels, PGD)).logits.argmax(1) == 1).all()


def test_a_zero_budget_changes_nothing():
    settings = AttackSettings(name="pgd", mode="static", epsilon=0.0, step_size=0.1, steps=5)
    x = images(0.5)
    assert torch.equal(static(defense().classifier, x, torch.ones(3, dtype=torch.long), settings), x)


def test_a_random_start_belongs_to_the_image_not_to_its_place():
    settings = PGD.model_copy(update={"random_start": True, "steps": 0})
    labels = torch.ones(3, dtype=torch.long)
    both = static(defense().classifier, images(0.5), labels, settings, first=10)
    alone = static(defense().classifier, images(0.5, 1), labels[:1], settings, first=12)
    assert torch.equal(both[2:], alone)
    assert not torch.equal(both[0], both[1])


class Shift:
    """Adds 0.08 to every pixel: undoes a weak attack on class 1, behind a gradient that plain attacks never see."""

    def __init__(self, inner):
        self.inner, self.info = inner, inner.info

    def purify(self, x, seeds=None, wanted=None):
        found = self.inner.purify((x + 0.08).clamp(0, 1))
        return Purified(**{**found.__dict__, "image": (x + 0.08).clamp(0, 1)})

    def logits(self, x):
        return self.inner.logits(x)

    def view_logits(self, x, seeds=None):
        return torch.stack([self.inner.logits(x)] * 2)


def shifted():
    plain = defense()
    return type(plain)("shift", plain.card, plain.classifier, Shift(plain.purifier), plain.device)


def test_an_adaptive_attack_breaks_what_a_shift_only_hides():
    x, labels = images(0.51), torch.ones(3, dtype=torch.long)
    settings = PGD.model_copy(update={"mode": "bpda"})
    assert (shifted().purify(x - 0.06).logits.argmax(1) == 1).all()
    assert not knowing(shifted(), x, labels, BPDA(settings)).right.any()
    assert knowing(shifted(), images(0.7), labels, BPDA(settings)).right.all()


def test_two_view_breaks_on_any_checked_iterate():
    x, labels = images(0.51), torch.ones(3, dtype=torch.long)
    found = knowing(shifted(), x, labels, TWO_VIEW(PGD))
    assert not found.right.any()
    assert torch.allclose(found.image, x - 0.1, atol=1e-6)


class Counting(Shift):
    """Keeps how many images each look at the defence had."""

    def __init__(self, inner):
        super().__init__(inner)
        self.seen = []

    def purify(self, x, seeds=None, wanted=None):
        self.seen.append(len(x))
        return super().purify(x)


def test_an_image_that_is_fooled_is_left_alone_and_the_others_go_on():
    # With 0.08 added: wrong as it comes, within reach of two steps, out of reach.
    x, labels = torch.cat([images(0.41, 1), images(0.46, 1), images(0.7, 1)]), torch.ones(3, dtype=torch.long)
    counting = replace(shifted(), purifier=Counting(defense().purifier))
    found = knowing(counting, x, labels, BPDA(PGD))
    assert found.right.tolist() == [False, False, True]
    assert torch.allclose(found.image, x - torch.tensor([0.0, 0.06, 0.1]).view(3, 1, 1, 1), atol=1e-6)
    assert counting.purifier.seen == [3, 2, 2] + [1] * 8


def test_a_momentum_of_one_adaptive_image_is_its_own():
    settings = PGD.model_copy(update={"momentum": 1.0})
    x, labels = torch.cat([images(0.41, 1), images(0.7, 2)]), torch.ones(3, dtype=torch.long)
    together = knowing(shifted(), x, labels, BPDA(settings)).image
    assert torch.equal(together[1:], knowing(shifted(), x[1:], labels[1:], BPDA(settings)).image)


def test_two_view_needs_a_purifier_with_views():
    with pytest.raises(ValueError, match="compares no views"):
        knowing(defense(), images(0.5), torch.ones(3, dtype=torch.long), TWO_VIEW(PGD))


class Noisy(Shift):
    """Needs seeds, and keeps them."""

    def __init__(self, inner):
        super().__init__(inner)
        self.info, self.seen = replace(inner.info, random=True), []

    def purify(self, x, seeds=None, wanted=None):
        self.seen.append(tuple(seeds))
        return super().purify(x)


@pytest.mark.parametrize("mode", [BPDA, TWO_VIEW])
def test_every_look_at_a_random_defense_has_fresh_seeds_that_belong_to_the_image(mode):
    seen = []
    for first, count in ((4, 3), (5, 1)):
        noisy = replace(shifted(), purifier=Noisy(defense().purifier))
        knowing(noisy, images(0.7, count), torch.ones(count, dtype=torch.long), mode(PGD), first)
        seen.append(noisy.purifier.seen)
    assert len(set(seen[0])) == len(seen[0]) > 0
    assert [seeds[1] for seeds in seen[0]] == [seeds[0] for seeds in seen[1]]


class Flip(Shift):
    """x -> 1 - x: BPDA's identity points the wrong way, the true gradient does not."""

    def purify(self, x, seeds=None, wanted=None):
        found = self.inner.purify(1 - x)
        return Purified(**{**found.__dict__, "image": 1 - x})

    def restored(self, x):
        return 1 - x


def behind(purifier):
    return replace(defense(), name="toy", purifier=purifier)


def test_a_differentiable_purifier_is_attacked_through_its_own_gradient():
    flipped, plain = behind(Flip(defense().purifier)), defense()
    x, labels = images(0.45), torch.ones(3, dtype=torch.long)
    assert knowing(flipped, x, labels, BPDA(PGD)).right.all()
    assert not knowing(flipped, x, labels, END_TO_END(PGD)).right.any()
    assert knowing(flipped, images(0.3), labels, END_TO_END(PGD)).right.all()
    with pytest.raises(ValueError, match="can't be differentiated through"):
        knowing(plain, x, labels, END_TO_END(PGD))


def test_a_chain_is_attacked_through_those_of_its_purifiers_that_have_a_gradient():
    inner = defense().purifier
    chain = behind(Chain([Flip(inner), Shift(inner)]))
    x, labels = images(0.5), torch.ones(3, dtype=torch.long)
    assert knowing(chain, x, labels, BPDA(PGD)).right.all()
    assert not knowing(chain, x, labels, END_TO_END(PGD)).right.any()
    assert knowing(chain, images(0.4), labels, END_TO_END(PGD)).right.all()


def test_which_chains_have_a_gradient():
    inner = defense().purifier
    assert differentiable(Chain([Shift(inner), Flip(inner)]))
    assert not differentiable(Chain([Shift(inner), Shift(inner)]))
    assert not differentiable(Chain([Flip(inner), Noisy(inner)]))


def test_settings_describe_themselves():
    settings = AttackSettings(name="pgd", mode="static", epsilon=8 / 255, step_size=2 / 255, steps=20)
    assert settings.text() == "pgd: 20 steps of 2/255, epsilon 8/255"
    assert (
        AttackSettings(name="pgd", mode="static", epsilon=0.3, step_size=0.01, steps=40).text().endswith("epsilon 0.3")
    )


def test_momentum_keeps_going_where_a_gradient_is_zero():
    def step_then_flat(x):
        return (x - 0.55).clamp(max=0).sum(dim=(1, 2, 3))

    plain = ascend(step_then_flat, images(0.5), PGD)
    with_momentum = ascend(step_then_flat, images(0.5), PGD.model_copy(update={"momentum": 1.0}))
    assert float(plain.max()) < 0.59
    assert torch.allclose(with_momentum, images(0.6))


def test_momentum_weighs_each_images_gradients_alike():
    def steep(x):
        return x.sum(dim=(1, 2, 3)) * torch.tensor([1e-8, 1.0, 1e8])

    assert torch.allclose(ascend(steep, images(0.5), PGD.model_copy(update={"momentum": 1.0})), images(0.6))


def test_restarts_help_only_images_that_withstood():
    """Two steps from a random start reach the border for some images only."""
    settings = PGD.model_copy(update={"steps": 0, "random_start": True, "epsilon": 0.2})
    x, labels = images(0.501, 64), torch.ones(64, dtype=torch.long)
    wrong = [
        defense()
        .classifier(static(defense().classifier, x, labels, settings.model_copy(update={"restarts": n})))
        .argmax(1)
        == 0
        for n in (1, 4)
    ]
    assert 0 < wrong[0].sum() < wrong[1].sum()
    assert (wrong[0] <= wrong[1]).all()


def test_restarts_without_a_random_start_are_refused():
    with pytest.raises(ValueError, match="restarts need random_start"):
        AttackSettings(name="pgd", mode="static", restarts=2)


@pytest.mark.parametrize(
    ("attack", "arguments"), [("LinfDeepFoolAttack", {}), ("LinfPGD", {"steps": 10.0, "rel_stepsize": 0.3})]
)
def test_attacks_of_foolbox_find_what_lies_within_the_budget_and_nothing_else(attack, arguments):
    settings = AttackSettings(name="x", mode="foolbox", attack=attack, arguments=arguments, epsilon=0.1)
    labels = torch.ones(3, dtype=torch.long)
    for value, label in ((0.55, 0), (0.7, 1)):
        found = foolbox_attack(defense().classifier, images(value), labels, settings)
        assert (found - images(value)).abs().max() <= 0.1 + 1e-6
        assert (defense().classifier(found).argmax(1) == label).all()


def test_an_attack_that_foolbox_has_not_is_refused():
    settings = AttackSettings(name="x", mode="foolbox", attack="Magic", epsilon=0.1)
    with pytest.raises(ValueError, match="Foolbox has no Magic"):
        foolbox_attack(defense().classifier, images(0.5), torch.ones(3, dtype=torch.long), settings)


def test_attacks_describe_what_is_special_about_them():
    start = {"mode": "static", "epsilon": 8 / 255, "step_size": 2 / 255, "steps": 20}
    assert AttackSettings(name="m", **start, momentum=1.0).text().endswith("epsilon 8/255, momentum 1")
    assert AttackSettings(name="r", **start, random_start=True, restarts=3).text().endswith("3 random starts")
    found = AttackSettings(name="cw", mode="foolbox", attack="L2Deep", epsilon=0.5, arguments={"steps": 9}).text()
    assert found == "cw: Foolbox L2Deep, steps 9, epsilon 0.5"


def test_distorted_features_are_far_from_the_clean_ones_within_the_budget():
    plain = defense(frozen(build_classifier("resnet18-thin")))
    x = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    fields = {"tap": "block2", "epsilon": 8 / 255, "step_size": 4 / 255, "random_start": True}
    x_adv = [
        distort(plain.classifier, x, AttackSettings(name="f", mode="features", steps=steps, **fields))
        for steps in (0, 1, 5)
    ]

    def features(image):
        return plain.classifier.tapped(image, ["block2"])[0]

    far = [(features(image) - features(x)).square().sum() for image in x_adv]
    assert far[0] < far[1] < far[2]
    assert (x_adv[2] - x).abs().max() <= 8 / 255 + 1e-6


def test_a_source_is_for_attacks_on_a_classifier_alone():
    settings = AttackSettings(name="p", mode="static", epsilon=8 / 255, step_size=2 / 255, steps=20, source="vgg")
    assert settings.text().endswith("epsilon 8/255, made on vgg")
    with pytest.raises(ValueError, match="attacks the defence itself, not a `source`"):
        AttackSettings(name="p", mode="bpda", source="vgg")


def test_distorting_features_needs_a_tap_and_a_random_start():
    with pytest.raises(ValueError, match="the field `tap` and mode features go together"):
        AttackSettings(name="f", mode="features", random_start=True)
    with pytest.raises(ValueError, match="needs random_start"):
        AttackSettings(name="f", mode="features", tap="stem")

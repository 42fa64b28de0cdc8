"""Attacks by gradient on whole defences: what each mode climbs, by hand; and every mode on every kind of purifier."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from models.purifiers import Purified, kinds
from tests.contract.conftest import Case, toy_images
from tests.training.attacks.test_attacks import behind, defense, images
from tests.training.attacks.test_unrolled import Towards, purifier
from training.attacks import BY_GRADIENT, AttackSettings, applies, knowing
from training.attacks.ascent import ascend
from training.attacks.aware import lacks
from training.attacks.blind import static
from training.attacks.unrolled import path

HIGH = torch.ones(3, dtype=torch.long)


def attack(mode, **fields):
    start = {"name": mode, "mode": mode, "epsilon": 0.1, "step_size": 0.03, "steps": 1}
    return AttackSettings.model_validate(start | fields)


def bent(x):
    """Three classes, of which none has the same gradient everywhere. (N, 1, 2, 2) -> (N, 3)"""
    a, b, c, d = x.flatten(1).unbind(1)
    return torch.stack([4 * a * b, 3 * c.square() + a, 2 * d + b * c], dim=1)


def pull(x, labels):
    """The gradient of the cross entropy at x."""
    leaf = x.clone().requires_grad_()
    return torch.autograd.grad(F.cross_entropy(bent(leaf), labels, reduction="sum"), leaf)[0]


def direction(gradient):
    return gradient / gradient.flatten(1).norm(dim=1)[:, None, None, None]


def drawn(n=3):
    return 0.2 + 0.6 * torch.rand(n, 1, 2, 2, generator=torch.Generator().manual_seed(2))


class Toy:
    """Answers as `logits` says, of the image that `moved` makes of the incoming one; keeps what it was asked."""

    def __init__(self, logits=bent, moved=lambda x, seeds: x, random=False):
        self.inner = defense().purifier
        self.logits, self.moved = logits, moved
        self.info, self.asked = replace(self.inner.info, kind="toy", random=random), []

    def purify(self, x, seeds=None, wanted=None):
        self.asked.append((x.clone(), seeds))
        image = self.moved(x, seeds)
        others = self.inner.purify(images(0.5, len(x))).__dict__
        return Purified(**{**others, "image": image, "logits": self.logits(image)})


def by_seed(x, seeds):
    """Each image moved as its seed says."""
    draws = [torch.rand(x.shape[1:], generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return x + 0.2 * torch.stack(draws)


# What is climbed.


def test_without_weight_joint_is_pgd_on_the_classifier_asked_behind_the_purifier():
    protected = behind(purifier(Towards(0.9, defense().purifier.logits)))
    x, far = images(0.7), attack("joint", steps=3)
    found = knowing(protected, x, HIGH, far)
    blind = static(protected.classifier, x, HIGH, far.model_copy(update={"mode": "static"}))
    assert torch.equal(found.image, blind)
    near = knowing(protected, images(0.47), HIGH, far)  # wrong for the classifier, right behind the purifier
    assert (protected.classifier(near.image).argmax(1) == 0).all()
    assert near.right.all()


@pytest.mark.parametrize("mode", ["joint", "two-view"])
def test_the_weight_takes_the_purifiers_own_loss_away_as_eq_9_does(mode):
    made = purifier(Towards(0.9, defense().purifier.logits))
    made.view_logits = lambda x, seeds: defense().purifier.logits(x)[None]
    ends = [
        float(knowing(behind(made), images(0.7, 1), HIGH[:1], attack(mode, weight=weight)).image.mean())
        for weight in (-10, 0, 10)
    ]
    assert ends == pytest.approx([0.67, 0.67, 0.73])  # at 0.7 its loss falls towards 0.9, the classifier's away from it
    above = float(knowing(behind(made), images(0.95, 1), HIGH[:1], attack(mode, weight=-10)).image.mean())
    assert above == pytest.approx(0.98)  # what flees the purifier's target leaves it on the side where it is


def test_two_view_climbs_the_sum_over_the_views_and_ends_with_the_highest():
    toy = Toy(logits=lambda x: torch.eye(2)[torch.ones(len(x), dtype=torch.long)])  # never wrong
    toy.view_logits = lambda x, seeds=None: torch.stack(
        [torch.sin(170 * x).flatten(1), 3 * torch.cos(130 * x).flatten(1)]
    )
    settings, x = attack("two-view", algorithm="apgd", steps=15), drawn(12)
    labels = HIGH[:1].expand(12)

    def both(image):
        return sum(F.cross_entropy(view, labels, reduction="none") for view in toy.view_logits(image))

    losses = []
    expected = ascend(lambda image: (losses.append(both(image).detach()), both(image))[1], x, settings)
    assert torch.equal(knowing(behind(toy), x, labels, settings).image, expected)
    came, last, best = [image for image, _ in toy.asked]
    assert torch.equal(came, x)
    assert torch.allclose(both(last), losses[-1])
    assert torch.equal(best, expected)
    assert not torch.allclose(both(expected), losses[-1])


def test_bpda_takes_the_gradient_at_the_purified_image():
    toy = Toy(moved=lambda x, seeds: x + 0.3)
    x, labels = drawn(), bent(drawn() + 0.3).argmax(1)
    found = knowing(behind(toy), x, labels, attack("bpda", norm="l2", step_size=0.01))
    assert torch.allclose(found.image, x + 0.01 * direction(pull(x + 0.3, labels)), atol=1e-6)


@pytest.mark.parametrize(("followed", "seen"), [(None, 4), (1, 2), (2, 3), (9, 4)])
def test_a_trajectorys_gradient_is_the_sum_along_the_way(followed, seen):
    x, toy = drawn(), purifier(Towards(0.5, bent))
    way, labels = [x], bent(toy.purify(x).image).argmax(1)
    for _ in range(3):  # the toy's steps, of 0.05 towards a half
        way.append(way[-1] - 0.05 * (way[-1] - 0.5).sign())
    expected = sum(pull(each, labels) for each in way[:seen])
    settings = attack("trajectory", norm="l2", step_size=0.01, followed=followed)
    found = knowing(behind(toy), x, labels, settings)
    assert torch.allclose(found.image, x + 0.01 * direction(expected), atol=1e-6)


def test_the_first_steps_are_those_of_a_purifier_with_no_more_of_them():
    x = drawn().requires_grad_()
    assert torch.equal(path(purifier(), x, steps=2).chosen, path(purifier(steps=2), x).chosen)
    assert not torch.equal(path(purifier(), x, steps=2).chosen, path(purifier(), x).chosen)
    assert [len(path(purifier(), x, steps=steps).iterates) for steps in (1, 2, 3, 9)] == [2, 3, 4, 4]


@pytest.mark.parametrize("followed", [None, 2])
def test_unrolled_goes_through_as_many_steps_as_it_follows(followed):
    x, toy = drawn(), purifier(Towards(0.5, bent))
    labels, leaf = bent(toy.purify(x).image).argmax(1), drawn().requires_grad_()
    purified = path(purifier(Towards(0.5, bent), steps=followed or 3), leaf).chosen
    (expected,) = torch.autograd.grad(F.cross_entropy(bent(purified), labels, reduction="sum"), leaf)
    settings = attack("unrolled", norm="l2", step_size=0.01, followed=followed)
    found = knowing(behind(toy), x, labels, settings)
    assert torch.allclose(found.image, x + 0.01 * direction(expected), atol=1e-6)


# What is random.


@pytest.mark.parametrize("mode", ["bpda", "end-to-end"])
def test_a_gradient_of_several_draws_is_their_mean_and_costs_so_many_purifications(mode):
    toy, x = Toy(moved=by_seed, random=True), drawn(1)
    if mode == "end-to-end":
        toy.restored = lambda x, seeds: (toy.asked.append((x, seeds)), by_seed(x, seeds))[1]
    found = knowing(behind(toy), x, torch.tensor([0]), attack(mode, eot=4, norm="l2", step_size=0.01))
    looks = [seeds[0] for _, seeds in toy.asked]
    taken = {"bpda": looks[:4], "end-to-end": looks[1:5]}[mode]  # there the first look serves the gradient too
    assert len(looks) == len(set(looks)) == {"bpda": 4 + 1, "end-to-end": 4 + 2}[mode]
    expected = sum(pull(by_seed(x, [seed]), torch.tensor([0])) for seed in taken)
    assert torch.allclose(found.image, x + 0.01 * direction(expected), atol=1e-6)


def test_random_views_are_fresh_in_each_of_the_draws_that_a_gradient_is_the_mean_of():
    toy, x, seen = Toy(random=True), drawn(2), []

    def views(x, seeds):
        seen.append(seeds)
        return torch.stack([bent(by_seed(x, seeds)), bent(by_seed(x, [seed + 7 for seed in seeds]))])

    toy.view_logits, labels = views, HIGH[:2]
    found = knowing(behind(toy), x, labels, attack("two-view", eot=3, norm="l2", step_size=0.01))
    seeds_of_all = [seed for seeds in (*seen, *(seeds for _, seeds in toy.asked)) for seed in seeds]
    assert len(seen) == 3
    assert len(toy.asked) == 2  # the defence itself, before and after
    assert len(set(seeds_of_all)) == len(seeds_of_all)
    leaf = x.clone().requires_grad_()
    both = sum(F.cross_entropy(view, labels, reduction="sum") for seeds in tuple(seen) for view in views(leaf, seeds))
    expected = torch.autograd.grad(both, leaf)[0]
    assert torch.allclose(found.image, x + 0.01 * direction(expected), atol=1e-6)


def test_the_loss_that_a_weight_takes_from_random_views_is_that_of_these_views(monkeypatch):
    protected, asked = Case("reverse", "min-aux").defense(), []

    def spy(name):
        inner = getattr(protected.purifier, name)
        monkeypatch.setattr(
            protected.purifier, name, lambda x, seeds: (asked.append((name, tuple(seeds))), inner(x, seeds))[1]
        )

    spy("view_logits")
    spy("objective")
    knowing(protected, toy_images(protected.card, n=2), HIGH[:2], attack("two-view", weight=0.5, steps=2, eot=2))
    assert [name for name, _ in asked] == ["view_logits", "objective"] * 4
    assert [seeds for _, seeds in asked[::2]] == [seeds for _, seeds in asked[1::2]]
    assert len({seeds for _, seeds in asked}) == 4


def test_a_random_defence_is_not_left_alone_after_one_lucky_draw():
    looks = iter([1, 0, 1, 1, 1])
    toy = Toy(lambda x: bent(x) if x.requires_grad else torch.eye(3)[[next(looks)]], random=True)
    x = drawn(1)
    found = knowing(behind(toy), x, torch.tensor([1]), attack("bpda", steps=4))
    assert found.right.tolist() == [False]
    assert len(toy.asked) == 5
    assert torch.equal(found.image, toy.asked[-1][0])
    assert not torch.equal(found.image, toy.asked[1][0])


def test_what_is_drawn_for_an_image_does_not_depend_on_how_many_others_are_attacked():
    x, settings = drawn(40), attack("bpda", steps=3, eot=3, norm="l2")
    labels = torch.zeros(40, dtype=torch.long)

    def found(rows, first):
        return knowing(behind(Toy(moved=by_seed, random=True)), x[rows], labels[rows], settings, first).image

    assert torch.equal(found(slice(None), 5)[35:], found(slice(35, None), 40))


def test_with_diverse_inputs_bpda_purifies_the_input_that_it_differentiates():
    toy = Toy(logits=lambda x: torch.stack([x.sum((1, 2, 3)), 0 * x.sum((1, 2, 3))], 1))
    x = torch.full((1, 1, 20, 20), 0.5)
    knowing(behind(toy), x, torch.tensor([0]), attack("bpda", diversity=1.0))
    as_it_came, diverse, _ = [image for image, _ in toy.asked]
    assert (as_it_came > 0).all()
    assert not (diverse > 0).all()


# When an image is broken.


def three(x):
    """The likeliest wrong class is out of reach, and on the way to it one gets farther from the other."""
    a, b = x[:, 0, 0, 0], x[:, 0, 0, 1]
    return torch.stack([0 * a, 0.01 * a - 0.1 - 0.5 * (b - 0.5), 10 * (b - 0.58)], dim=1)


@pytest.mark.parametrize("targets", [1, 2])
def test_an_image_is_broken_if_one_of_the_targets_is_reached(targets):
    settings = attack("bpda", steps=4, targets=targets)
    found = knowing(behind(Toy(logits=three)), images(0.5), 0 * HIGH, settings)
    assert found.right.tolist() == [targets == 1] * 3
    blind = settings.model_copy(update={"mode": "static"})
    assert (three(static(three, images(0.5), 0 * HIGH, blind)).argmax(1) == 0).tolist() == [targets == 1] * 3


def test_what_an_earlier_attempt_broke_no_later_one_mends():
    settings = attack("bpda", steps=0, epsilon=0.2, random_start=True)
    right = [
        knowing(defense(), images(0.501, 64), HIGH[:1].expand(64), settings.model_copy(update={"restarts": n})).right
        for n in (1, 4)
    ]
    assert 64 > right[0].sum() > right[1].sum() > 0
    assert (right[1] <= right[0]).all()


def test_an_image_that_is_wrong_as_it_comes_is_wrong_whatever_the_start():
    settings = attack("bpda", steps=0, epsilon=0.2, random_start=True)
    found = knowing(defense(), images(0.499, 20), HIGH[:1].expand(20), settings)
    assert not found.right.any()
    assert torch.equal(found.image, images(0.499, 20))


# Which mode is for which purifier.

DESCENDS = {"joint", "bpda", "trajectory", "unrolled"}
GENERATES = {"bpda", "end-to-end"}
MODES = {
    ("aid", "odd"): DESCENDS,
    ("none", "plain"): set(),
    ("nrp", "dynamic"): GENERATES,
    ("pix2pix", "plain"): GENERATES,
    ("reverse", "min-aux"): DESCENDS | {"two-view"},
    ("soap-dr", "fcn"): DESCENDS | {"two-view"},
    ("soap-lc", "skip"): DESCENDS | {"two-view"},
    ("soap-rp", "odd"): DESCENDS | {"two-view"},
}


def test_the_table_of_modes_has_every_kind():
    assert {kind for kind, _ in MODES} == set(kinds())


@pytest.mark.parametrize(("kind", "label"), MODES)
def test_every_mode_that_applies_runs_and_stays_in_its_ball(kind, label):
    found = Case(kind, label).defense()
    x, ran = toy_images(found.card, n=2), set()
    labels, draws = found.purify(x, seeds=range(2)).logits.argmax(1), 2 if found.info.random else 1
    for mode in BY_GRADIENT:
        settings = attack(mode, epsilon=0.02, step_size=0.03, eot=1 if mode == "joint" else draws)
        if applies(found, settings):
            ran.add(mode)
            moved = (knowing(found, x, labels, settings).image - x).abs().amax()
            assert 0.019 < float(moved) <= 0.02 + 1e-6
    assert ran == MODES[kind, label]


@pytest.mark.parametrize(
    ("mode", "fields", "reason"),
    [
        ("two-view", {}, "compares no views"),
        ("joint", {}, "has no loss of its own"),
        ("trajectory", {}, "makes no steps"),
        ("unrolled", {}, "makes no steps to unroll"),
        ("end-to-end", {}, "can't be differentiated through"),
        ("bpda", {"eot": 2}, "draws nothing at random to average over"),
    ],
)
def test_what_a_mode_lacks_is_said(mode, fields, reason):
    plain, settings = defense(), attack(mode, **fields)
    assert lacks(plain, settings) == reason
    assert not applies(plain, settings)
    with pytest.raises(ValueError, match=f"attack '{mode}': purifier 'none' {reason}"):
        knowing(plain, images(0.5), HIGH, settings)


def test_views_are_averaged_only_where_they_are_drawn():
    averaged = attack("two-view", eot=2)
    assert lacks(Case("reverse", "min-aux").defense(), averaged) is None
    from_its_start_alone = Case("soap-lc", "random").defense()
    assert lacks(from_its_start_alone, averaged) == "compares the same views in every draw"
    assert lacks(from_its_start_alone, attack("two-view")) is None
    assert lacks(Case("aid", "random").defense(), averaged) == "compares no views"


def test_a_weight_needs_a_loss_to_weigh():
    toy = Toy()
    toy.view_logits = lambda x, seeds: bent(x)[None]
    assert applies(behind(toy), attack("two-view"))
    assert lacks(behind(toy), attack("two-view", weight=1.0)) == "has no loss of its own"


@pytest.mark.parametrize(
    ("mode", "fields", "message"),
    [
        ("joint", {"eot": 2}, "mode 'joint' has no eot; these have: bpda"),
        ("bpda", {"weight": 1.0}, "has no weight; these have: joint, two-view"),
        ("bpda", {"followed": 2}, "has no followed"),
        ("square", {"targets": 2}, "has no targets"),
        ("bpda", {"step_size": 0}, "1 steps of size 0 lead nowhere"),
    ],
)
def test_settings_that_nothing_would_read_are_refused(mode, fields, message):
    with pytest.raises(ValueError, match=message):
        attack(mode, **fields)

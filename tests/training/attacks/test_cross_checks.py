"""Our attacks beside those of others, on one network and the same images: who claims a PGD or an APGD must be as strong as the
authors' own. Foolbox and pyautoattack (AutoAttack as its authors wrote it) are in the extra `attacks`. torchattacks isn't used:
it pins `requests~=2.25.1` of 2021, so it can't be installed beside the rest.
"""

from pathlib import Path

import pytest
import torch
from torch import nn

from models.catalog import Catalog
from training.attacks import AttackSettings
from training.attacks.ascent import ascend, windows
from training.attacks.blind import static
from training.attacks.library import PARTS, STANDARD, autoattack, foolbox_attack
from training.attacks.losses import criterion
from training.data import load_data

DATA = Path(__file__).parents[2] / "data"
N = 256
LUCK = 2  # images: within 1 point of accuracy
RADIUS = {"linf": 0.1, "l2": 1.5}  # where about three in four images withstand
NORMS = pytest.mark.parametrize("norm", list(RADIUS))


@pytest.fixture(scope="module")
def network():
    return Catalog.open().defense("mnist", "none", "fcn-soap-dr").classifier


@pytest.fixture(scope="module")
def test_set():
    found = load_data("mnist", "test", DATA)
    return found.floats(0, N), found.labels[:N]


def apgd(norm="linf", **fields):
    start = {"algorithm": "apgd", "steps": 100, "random_start": True, "norm": norm, "epsilon": RADIUS[norm]}
    return AttackSettings.model_validate({"name": "ours", "mode": "static", **start, **fields})


def theirs(part, norm="linf", **fields):
    start = {"mode": "autoattack", "attack": part, "norm": norm, "epsilon": RADIUS[norm]}
    return AttackSettings.model_validate({"name": "theirs", **start, **fields})


def right(network, x, y):
    return network(x).argmax(1) == y


def length(delta, norm):
    return delta.flatten(1).norm(dim=1, p=float("inf") if norm == "linf" else 2)


def by_autoattack(network, x, y, settings):
    """Which withstand, (N,); what it sends is in the ball."""
    found, flags = autoattack(network, x, y, settings)
    assert flags == ()
    assert float(length(found - x, settings.norm).max()) <= settings.epsilon + 1e-5
    return right(network, found, y)


def test_pgd_is_foolboxes(network, test_set):
    x, y = test_set
    same = {"steps": 20.0, "abs_stepsize": 0.02, "random_start": 0.0}
    foolbox = AttackSettings(name="f", mode="foolbox", attack="LinfPGD", epsilon=0.1, arguments=same)
    their_x = foolbox_attack(network, x, y, foolbox)
    our_x = static(network, x, y, AttackSettings(name="o", mode="static", epsilon=0.1, step_size=0.02, steps=20))
    assert float(((our_x - their_x).abs() < 1e-6).float().mean()) > 0.999  # a sign flips where a gradient is about 0
    assert torch.equal(right(network, our_x, y), right(network, their_x, y))
    assert 0.5 < float(right(network, our_x, y).float().mean()) < 0.95


@pytest.mark.parametrize("steps", [1, 3, 5, 7, 10, 25, 34, 50, 99, 100, 1000])
def test_apgd_looks_back_when_autoattack_does(steps):
    from pyautoattack.autopgd_base import APGDAttack

    attack = APGDAttack(None, n_iter=steps, eps=0.1)
    expected, window, since = {}, attack.n_iter_2, 0
    for done in range(1, steps):  # its loop, less the last step, after which nothing follows
        since += 1
        if since == window:
            expected[done], since = window, 0
            window = max(window - attack.size_decr, attack.n_iter_min)
    assert windows(steps) == expected


@NORMS
@pytest.mark.parametrize("loss", ["ce", "dlr"])
def test_apgd_from_the_same_start_climbs_as_high_as_autoattacks(network, test_set, norm, loss):
    from pyautoattack.autopgd_base import APGDAttack

    x, y = test_set
    attack = APGDAttack(network, n_iter=50, norm=norm.capitalize(), eps=RADIUS[norm], loss=loss, device="cpu")
    attack.init_hyperparam(x)
    _, _, highest, _ = attack.attack_single_run(x, y, x_init=x)
    follow = criterion(apgd(loss=loss), y)
    found = ascend(lambda image: follow(network(image)), x, apgd(norm, loss=loss, steps=50))
    apart = (follow(network(found)) - highest).abs() / highest.abs()
    assert float((apart < 0.02).float().mean()) > 0.9  # roundings, from which some part


@NORMS
@pytest.mark.parametrize("loss", ["ce", "dlr"])
def test_apgd_leaves_as_many_right_as_autoattacks(network, test_set, norm, loss):
    x, y = test_set
    ours = right(network, static(network, x, y, apgd(norm, loss=loss)), y)
    others = by_autoattack(network, x, y, theirs(f"apgd-{loss}", norm))
    assert abs(int(ours.sum()) - int(others.sum())) <= LUCK
    assert 0.5 < float(ours.float().mean()) < 0.9


@NORMS
def test_targeted_apgd_leaves_as_many_right_as_autoattacks(network, test_set, norm):
    from pyautoattack.autopgd_base import APGDAttack_targeted

    x, y = test_set
    how = {"n_iter": 25, "n_target_classes": 3, "eps": RADIUS[norm], "norm": norm.capitalize()}
    with torch.random.fork_rng():
        others = right(network, APGDAttack_targeted(network, **how).perturb(x, y), y)
    ours = right(network, static(network, x, y, apgd(norm, loss="dlr", targets=3, steps=25)), y)
    assert abs(int(ours.sum()) - int(others.sum())) <= LUCK


def small():
    """Four classes of 4 x 4 pixels: few targets, so that all parts take seconds."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return nn.Sequential(nn.Flatten(), nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 4)).requires_grad_(False)


def test_the_whole_of_autoattack_is_never_weaker_than_one_of_its_parts():
    network, x = small(), torch.rand(12, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    y, few = network(x).argmax(1), {"epsilon": 0.15, "steps": 200}
    whole = by_autoattack(network, x, y, theirs("standard", **few))
    assert 0 < int(whole.sum()) < 12
    for part in PARTS:
        alone = by_autoattack(network, x, y, theirs(part, **few))
        assert int(whole.sum()) <= int(alone.sum()) < 12, part
        assert not (whole & ~alone).any() or part not in STANDARD


@pytest.mark.parametrize(
    ("attack", "norm", "arguments"),
    [
        ("LinfDeepFoolAttack", "linf", {}),
        ("L2DeepFoolAttack", "l2", {}),
        ("L2CarliniWagnerAttack", "l2", {"steps": 50, "binary_search_steps": 3, "initial_const": 1, "stepsize": 0.05}),
    ],
)
def test_attacks_of_foolbox_stay_in_the_ball_of_their_own_norm(network, test_set, attack, norm, arguments):
    x, y = (each[:32] for each in test_set)
    settings = AttackSettings(name="f", mode="foolbox", attack=attack, epsilon=RADIUS[norm], arguments=arguments)
    found = foolbox_attack(network, x, y, settings)
    assert float(length(found - x, norm).max()) <= RADIUS[norm] + 1e-5
    assert right(network, found, y).sum() < right(network, x, y).sum()

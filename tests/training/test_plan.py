"""Plans are told in the budget of their data set."""

import pytest

from training.plan import BUDGETS, EvaluationError, length, load_plan, plan_names

# Those of one data set alone.
ONLY = dict.fromkeys(("paper-aid", "paper-nrp", "paper-pix2pix", "paper-reverse", "steps"), "cifar10")

HEAD = "n = 8\nadaptive_n = 4\n"
PGD = '[[attacks]]\nname = "pgd"\nmode = "static"\nsteps = 2\n'
LENGTHS = 'epsilon = "budget"\nstep_size = "budget / 4"\n'


@pytest.fixture
def written(tmp_path):
    def write(text):
        path = tmp_path / "own.toml"
        path.write_text(text)
        return str(path)

    return write


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("budget", 0.3),
        ("2 * budget", 0.6),
        ("0.5*budget", 0.15),
        ("budget / 4", 0.075),
        ("3 * budget / 4", 0.225),
        (" 8 / 255 ", 8 / 255),
        ("8/255", 8 / 255),
        ("0.3", 0.3),
        (".5", 0.5),
        ("2", 2.0),
    ],
)
def test_a_length_is_a_number_a_fraction_or_a_share_of_the_budget(text, found):
    assert length(text, 0.3) == pytest.approx(found, abs=1e-12)


@pytest.mark.parametrize(
    "text", ["", "a lot", "budgets", "1.2.3", ".", "8 / 0", "8 /", "-0.1", "budget + 1", "budget * 2", "8 / budget"]
)
def test_what_is_no_length_is_told(text):
    with pytest.raises(ValueError, match="is no length: write a number"):
        length(text, 0.3)


def test_a_share_of_the_budget_needs_a_budget():
    with pytest.raises(ValueError, match="'budget / 4' is no length"):
        length("budget / 4")


@pytest.mark.parametrize("name", plan_names())
@pytest.mark.parametrize("data", sorted(BUDGETS))
def test_every_shipped_plan_loads_for_the_data_sets_it_is_for(name, data):
    if ONLY.get(name, data) != data:
        with pytest.raises(EvaluationError, match=f"is for the data set 'cifar10'.*trained on '{data}'"):
            load_plan(name, data)
        return
    plan = load_plan(name, data)
    assert (plan.name, plan.data, plan.budget) == (name, data, BUDGETS[data])
    assert plan.attacks[0].mode == "none"
    # What climbs climbs, within the ball that it tells.
    assert all(attack.epsilon > 0 for attack in plan.attacks[1:])
    if name in ("quick", "standard", "adaptive-full"):
        assert {attack.epsilon for attack in plan.attacks[1:]} == {BUDGETS[data]}


def test_a_budget_of_ones_own_scales_everything():
    usual, twice = load_plan("standard", "mnist"), load_plan("standard", "mnist", budget=0.6)
    assert twice.budget == 0.6
    for one, other in zip(usual.attacks, twice.attacks, strict=True):
        assert (other.epsilon, other.step_size) == pytest.approx((2 * one.epsilon, 2 * one.step_size))
        assert other.model_copy(update={"epsilon": one.epsilon, "step_size": one.step_size}) == one


def test_an_unknown_data_set_asks_for_a_budget():
    with pytest.raises(EvaluationError, match="no budget is known for the data set 'svhn'; give one with --epsilon"):
        load_plan("quick", "svhn")
    assert {attack.epsilon for attack in load_plan("quick", "svhn", budget=0.1).attacks} == {0.0, 0.1}


def test_a_plan_may_bring_its_own_budget_and_whoever_asks_another(written):
    plan = written("budget = 0.2\n" + HEAD + PGD + LENGTHS)
    for asked, found in ((None, 0.2), (0.4, 0.4)):
        loaded = load_plan(plan, "mnist", budget=asked)
        assert (loaded.budget, loaded.attacks[0].epsilon, loaded.attacks[0].step_size) == (found, found, found / 4)


def test_a_budget_of_nothing_is_refused_not_replaced(written):
    with pytest.raises(EvaluationError, match="budget"):
        load_plan("quick", "mnist", budget=0.0)


def test_an_attack_may_be_for_one_data_set_alone(written):
    other = PGD.replace("steps = 2", "steps = 3")
    plan = written(HEAD + PGD + 'data = "mnist"\n' + LENGTHS + other + 'data = "cifar10"\n' + LENGTHS)
    assert [attack.steps for attack in load_plan(plan, "mnist").attacks] == [2]
    assert [attack.steps for attack in load_plan(plan, "cifar10").attacks] == [3]


def test_a_data_sets_own_attack_stands_for_the_one_of_its_name_that_is_for_all(written):
    other = PGD.replace("steps = 2", "steps = 3")
    plan = written(HEAD + PGD + LENGTHS + other + 'data = "mnist"\n' + LENGTHS)
    assert [attack.steps for attack in load_plan(plan, "mnist").attacks] == [3]
    assert [attack.steps for attack in load_plan(plan, "svhn", budget=0.1).attacks] == [2]


def test_soaps_table_3_is_measured_as_its_table_2():
    ours, like = load_plan("paper-soap", "cifar100"), load_plan("paper-soap", "cifar10")
    assert {"none", "fgsm", "pgd", "cw", "deepfool"} < {attack.name for attack in ours.attacks}
    assert (ours.budget, ours.attacks) == (like.budget, like.attacks)


def test_overrides_win_over_the_plan(written):
    found = load_plan(written(HEAD + PGD + LENGTHS), "mnist", {"n": 3, "first": 5})
    assert (found.n, found.adaptive_n, found.first) == (3, 4, 5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (HEAD + PGD + LENGTHS + PGD + LENGTHS, "twice there: pgd"),
        (HEAD, "attacks"),
        (HEAD + PGD + 'epsilon = "rubbish"\n', "'rubbish' is no length"),
        (HEAD + PGD + 'epsilon = "2 * budget"\nstep_size = 0.1\nmagic = 1\n', "magic"),
        (HEAD + PGD + 'epsilon = "4 * budget"\nstep_size = 0.1\n', r"l_inf budgets are in \[0, 1\] units"),
        (HEAD + "attacks = ", "own.toml"),
        ('only = "cifar10"\n' + HEAD + PGD + LENGTHS, "plan 'own' is for the data set 'cifar10'"),
    ],
)
def test_what_is_wrong_with_a_plan_is_told(written, text, message):
    with pytest.raises(EvaluationError, match=message):
        load_plan(written(text), "mnist")

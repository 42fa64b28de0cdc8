import pytest

from training.attacks import AttackSettings
from training.evaluate import Cell, Redrawn
from training.outcomes import wilson, withstood, worst_of
from training.plan import EvaluationError
from training.results import read_results


def cell(purifier, mode, outcomes, **settings):
    fields = {"none": {}, "foolbox": {"attack": "LinfX", "epsilon": 8 / 255}}.get(mode, {"epsilon": 8 / 255})
    attack = AttackSettings(name=settings.pop("name", mode), mode=mode, **{**fields, **settings})
    n = len(outcomes)
    share = outcomes.count("1") / n
    return Cell(purifier=purifier, attack=attack, n=n, accuracy=share, paper=None, seconds=1.0, outcomes=outcomes)


def test_the_worst_is_taken_image_by_image():
    cells = [cell("p", "static", "1100"), cell("p", "static", "0110")]
    assert withstood(cells) == 0.25


def test_files_of_one_classifier_are_taken_together_and_adaptive_attacks_decide(results):
    one = results("a.json", cell("p", "none", "11110"), cell("p", "static", "11100"))
    other = results("b.json", cell("p", "bpda", "0111", name="bpda"))
    (found,) = worst_of(read_results([one, other]))
    assert (found.clean, found.blind, found.worst, found.n) == (0.8, 0.6, 0.5, 4)
    assert found.strongest in ("static", "bpda")


def test_larger_budgets_and_other_norms_are_another_subject(results):
    larger, l2 = cell("p", "static", "00", epsilon=16 / 255), cell("p", "foolbox", "00", attack="L2Deep")
    (found,) = worst_of(read_results([results("a.json", cell("p", "none", "11"), cell("p", "bpda", "10"), larger, l2)]))
    assert (found.blind, found.worst) == (None, 0.5)


def test_a_sweep_on_fewer_images_cuts_nothing(results):
    whole = results("a.json", cell("p", "none", "1111"), cell("p", "bpda", "1101"))
    sweep = results("b.json", cell("p", "none", "11"), cell("p", "bpda", "11", name="bpda x1"), plan="budgets")
    (found,) = worst_of(read_results([whole, sweep]))
    assert (found.worst, found.n) == (0.75, 4)


def test_the_bare_classifier_is_told_on_as_many_images(results):
    bare = cell("none", "autoattack", "1000", attack="standard")
    found = worst_of(read_results([results("a.json", bare, cell("p", "none", "11"), cell("p", "bpda", "11"))]))
    assert {each.purifier: each.alone for each in found} == {"p": 0.5, "none": 0.5}


@pytest.mark.parametrize(
    ("cells", "listed"),
    [
        ([("p", "static", {})], False),
        ([("p", "two-view", {})], True),
        ([("none", "static", {"source": "other"})], False),
        ([("none", "features", {"source": "c", "tap": "t", "random_start": True})], False),
        ([("none", "static", {"source": "c"})], True),
        ([("none", "static", {})], True),
    ],
)
def test_what_nobody_attacked_itself_is_left_out(results, cells, listed):
    made = [cell(purifier, mode, "10", **settings) for purifier, mode, settings in cells]
    found = worst_of(read_results([results("a.json", cell(cells[0][0], "none", "11"), *made)]))
    assert len(found) == listed


def test_the_oracle_is_no_defence(results):
    oracle = cell("p", "static", "00").model_copy(update={"oracle": True})
    (found,) = worst_of(read_results([results("a.json", cell("p", "none", "11"), cell("p", "bpda", "11"), oracle)]))
    assert (found.blind, found.worst) == (None, 1.0)


def test_the_most_robust_comes_first(results):
    files = [
        results(f"{name}.json", cell("p", "none", "11"), cell("p", "bpda", outcomes), classifier=name)
        for name, outcomes in (("weak", "00"), ("strong", "11"))
    ]
    assert [found.classifier for found in worst_of(read_results(files))] == ["strong", "weak"]


def test_wilson_by_hand():
    low, high = wilson(0.5, 100)
    assert (round(low, 4), round(high, 4)) == (0.4038, 0.5962)
    assert wilson(0.0, 200)[0] == 0.0
    assert 0.018 < wilson(0.0, 200)[1] < 0.019


def test_every_kind_of_attacker_has_a_column_on_its_own_images(results):
    cells = [
        cell("p", "none", "11110"),
        cell("p", "static", "01110"),
        cell("p", "static", "10110", name="own", source="c"),
        cell("p", "static", "11010", name="other", source="d"),
        cell("p", "bpda", "1110"),
        cell("p", "square", "0111"),
    ]
    (found,) = worst_of(read_results([results("a.json", *cells)]))
    shares = found.clean, found.blind, found.transfer, found.adaptive, found.queries
    assert shares == (0.8, 0.4, 0.6, 0.75, 0.75)
    assert (found.worst, found.n) == (0.0, 4)


def test_who_attacks_a_bare_classifier_knows_the_whole_defence(results):
    (found,) = worst_of(read_results([results("a.json", cell("none", "none", "11"), cell("none", "static", "10"))]))
    assert (found.adaptive, found.worst) == (0.5, 0.5)


def test_a_bare_classifier_is_counted_on_the_images_that_its_purifiers_have(results):
    bare = [cell("none", "none", "1111"), cell("none", "static", "0111")]
    found = worst_of(read_results([results("a.json", *bare, cell("p", "none", "1111"), cell("p", "bpda", "11"))]))
    assert {row.purifier: (row.worst, row.n) for row in found} == {"p": (1.0, 2), "none": (0.5, 2)}


def test_autoattack_on_the_classifier_stands_beside_its_purifiers(results):
    auto = cell("none", "autoattack", "1000", attack="standard")
    part = cell("none", "autoattack", "0000", attack="square", name="part")
    files = results("a.json", auto, part), results("b.json", cell("p", "none", "1111"), cell("p", "bpda", "1111"))
    assert {row.purifier: row.alone for row in worst_of(read_results(files))} == {"p": 0.25, "none": 0.25}


def test_what_was_sent_to_a_random_defence_may_fail_the_next_time(results):
    redrawn = Redrawn(n=2, draws=2, mean=0.75, worst=0.5, majority={1: 0.75})
    sent = cell("p", "bpda", "00").model_copy(update={"redrawn": redrawn})
    blind = cell("p", "static", "11").model_copy(update={"redrawn": redrawn.model_copy(update={"mean": 0.1})})
    (found,) = worst_of(read_results([results("a.json", cell("p", "none", "11"), sent, blind)]))
    assert (found.adaptive, found.again) == (0.0, 0.75)


def test_no_chance_is_told_where_the_strongest_attack_was_not_tried_again(results):
    redrawn = Redrawn(n=2, draws=2, mean=0.75, worst=0.5, majority={1: 0.75})
    weaker = cell("p", "joint", "01").model_copy(update={"redrawn": redrawn})
    (found,) = worst_of(read_results([results("a.json", cell("p", "none", "11"), weaker, cell("p", "bpda", "00"))]))
    assert (found.adaptive, found.again) == (0.0, None)


def test_the_cost_is_that_of_a_clean_image_where_it_was_counted(results):
    older = results("a.json", cell("p", "none", "11"), cell("p", "bpda", "11"))
    counted = cell("p", "none", "11").model_copy(update={"forward": 12.0, "backward": 10.0})
    (found,) = worst_of(read_results([older, results("b.json", counted)]))
    assert found.passes == (12.0, 10.0)


def test_other_images_are_another_row(results):
    cells = [cell("p", "none", "11"), cell("p", "bpda", "10")]
    files = [results("a.json", *cells, data="from 0 on"), results("b.json", *cells, data="from 500 on")]
    assert [found.bench.data for found in worst_of(read_results(files))] == ["from 0 on", "from 500 on"]


@pytest.mark.parametrize(
    "change", [{"weights_sha256": "b"}, {"settings": {"p": {"steps": 2}}}, {"addons": {"p": ["b"]}}]
)
def test_two_purifiers_of_one_name_are_not_mixed(results, change):
    files = [results("a.json", cell("p", "none", "11")), results("b.json", cell("p", "bpda", "10"), **change)]
    with pytest.raises(EvaluationError, match="'p' on cifar10/c come from different weights or settings"):
        worst_of(read_results(files))

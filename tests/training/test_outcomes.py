import json

import pytest

from training.attacks import AttackSettings
from training.evaluate import Cell
from training.outcomes import wilson, withstood, worst_cases


def cell(purifier, mode, outcomes, **settings):
    fields = {"none": {}, "foolbox": {"attack": "LinfX", "epsilon": 8 / 255}}.get(mode, {"epsilon": 8 / 255})
    attack = AttackSettings(name=settings.pop("name", mode), mode=mode, **{**fields, **settings})
    n = len(outcomes)
    share = outcomes.count("1") / n
    return Cell(purifier=purifier, attack=attack, n=n, accuracy=share, paper=None, seconds=1.0, outcomes=outcomes)


@pytest.fixture
def results(tmp_path):
    def write(name, *cells, model="cifar10", classifier="c"):
        file = tmp_path / name
        body = {
            "model": model,
            "classifier": classifier,
            "budget": 8 / 255,
            "cells": [each.model_dump(mode="json") for each in cells],
        }
        file.write_text(json.dumps(body))
        return file

    return write


def test_the_worst_is_taken_image_by_image():
    cells = [cell("p", "static", "1100"), cell("p", "static", "0110")]
    assert withstood(cells) == 0.25


def test_files_of_one_classifier_are_taken_together_and_adaptive_attacks_decide(results):
    one = results("a.json", cell("p", "none", "11110"), cell("p", "static", "11100"))
    other = results("b.json", cell("p", "bpda", "0111", name="bpda"))
    (found,) = worst_cases([one, other])
    assert (found.clean, found.blind, found.worst, found.n) == (0.8, 0.6, 0.5, 4)
    assert found.strongest in ("static", "bpda")


def test_larger_budgets_and_other_norms_are_another_subject(results):
    larger, l2 = cell("p", "static", "00", epsilon=16 / 255), cell("p", "foolbox", "00", attack="L2Deep")
    (found,) = worst_cases([results("a.json", cell("p", "none", "11"), cell("p", "bpda", "10"), larger, l2)])
    assert (found.blind, found.worst) == (1.0, 0.5)


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
    found = worst_cases([results("a.json", cell(cells[0][0], "none", "11"), *made)])
    assert len(found) == listed


def test_the_oracle_is_no_defence(results):
    oracle = cell("p", "static", "11").model_copy(update={"oracle": True})
    (found,) = worst_cases([results("a.json", cell("p", "none", "11"), cell("p", "bpda", "11"), oracle)])
    assert found.blind == 1.0


def test_the_most_robust_comes_first(results):
    files = [
        results(f"{name}.json", cell("p", "none", "11"), cell("p", "bpda", outcomes), classifier=name)
        for name, outcomes in (("weak", "00"), ("strong", "11"))
    ]
    assert [found.classifier for found in worst_cases(files)] == ["strong", "weak"]


def test_wilson_by_hand():
    low, high = wilson(0.5, 100)
    assert (round(low, 4), round(high, 4)) == (0.4038, 0.5962)
    assert wilson(0.0, 200)[0] == 0.0
    assert 0.018 < wilson(0.0, 200)[1] < 0.019

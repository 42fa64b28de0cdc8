import json

import pytest

from models.catalog import Catalog
from training.attacks import AttackSettings
from training.evaluate import Cell
from training.pictures import budgets, draw, pictures_of, purification, roc, steps, strips, tradeoff
from training.results import every_result

FGSM = {"mode": "static", "epsilon": 8 / 255, "step_size": 8 / 255, "steps": 1}
PGD = {"mode": "static", "epsilon": 8 / 255, "step_size": 2 / 255, "steps": 20}
BPDA = {"mode": "bpda", "epsilon": 8 / 255, "steps": 30, "algorithm": "apgd"}
NONE = {"mode": "none"}


def cell(purifier, name, attack, outcomes, **facts):
    n = len(outcomes)
    settings = AttackSettings(name=name, **attack)
    share = outcomes.count("1") / n
    return Cell(
        purifier=purifier, attack=settings, n=n, accuracy=share, paper=None, seconds=1.0, outcomes=outcomes, **facts
    )


@pytest.fixture
def results(tmp_path):
    def write(*cells, stem="r", plan="paper-x", settings=None):
        body = {
            "model": "cifar10",
            "classifier": "c",
            "budget": 8 / 255,
            "plan": plan,
            "data": "cifar10 test images from 7 on",
            "settings": settings or {},
            "cells": [each.model_dump(mode="json") for each in cells],
        }
        (tmp_path / f"{stem}.json").write_text(json.dumps(body))
        return every_result(tmp_path)[0]

    return write


SWEEP = [
    cell("p", "none", NONE, "1111"),
    cell("p", "pgd x0.5", {**PGD, "epsilon": 4 / 255}, "1110"),
    cell("p", "pgd x1", PGD, "1100"),
    cell("p", "bpda x0.5", {**BPDA, "epsilon": 4 / 255}, "01"),
    cell("p", "bpda x1", BPDA, "00"),
]


def test_nothing_measured_nothing_drawn(tmp_path):
    (tmp_path / "other.json").write_text('{"rows": []}')
    assert draw(tmp_path, tmp_path / "out") == []


def test_pictures_are_drawn_alike_every_time(results, tmp_path):
    results(*SWEEP, plan="budgets")
    (first,), (second,) = draw(tmp_path, tmp_path / "a"), draw(tmp_path, tmp_path / "b")
    assert first == second
    drawn = [(tmp_path / folder / first[0]).read_bytes() for folder in "ab"]
    assert drawn[0] == drawn[1]
    assert b"tEXt" not in drawn[0]  # no date, no version


def test_the_worst_of_a_budget_is_taken_image_by_image(results):
    found = results(*SWEEP, plan="budgets").of("p")
    assert [(round(255 * point.x), point.share, point.n) for point in budgets.every(found)] == [
        (0, 1.0, 2),
        (4, 0.5, 2),
        (8, 0.0, 2),
    ]
    assert [point.share for point in budgets.blind(found)] == [1.0, 0.75, 0.5]


def test_without_an_attack_that_knows_the_defence_there_is_no_worst_case(results):
    assert budgets.every(results(*SWEEP[:3], plan="budgets").of("p")) == []


def test_captions_say_how_many_images_and_which_attack(results, tmp_path):
    results(*SWEEP, plan="budgets")
    (caption,) = [picture.caption for picture in pictures_of(tmp_path)]
    assert "pgd (20 steps of" in caption
    assert "(4 images)" in caption
    assert "bpda (30 steps of APGD), which know the defence (2 images)" in caption


def test_fixed_budgets_of_one_name_make_a_curve(results):
    fixed = {f"lc-{e}": {"selection": "fixed", "budgets": [e / 255]} for e in (16, 4)}
    chosen = {f"other-{e}": {"selection": "best-iterate", "budgets": [e / 255]} for e in (16, 4)}
    noise = {f"noise-{e}": {"selection": "fixed", "budgets": [e / 255], "random_start": e / 255} for e in (16, 4)}
    cells = [cell(name, "pgd", PGD, "10", objective_after=1.0) for name in (*fixed, *chosen, *noise)]
    found = purification.families(results(*cells, stem="variants-x", settings=fixed | chosen | noise))
    assert list(found) == ["lc"]
    assert [(round(255 * budget), one.purifier) for budget, one in found["lc"]["pgd"]] == [(4, "lc-4"), (16, "lc-16")]


def test_time_is_that_of_an_image_and_only_where_it_was_taken(results):
    timed = cell("reverse-5", "pgd-50", PGD, "1010", purify_seconds=0.2)
    untimed = cell("reverse-9", "pgd-50", PGD, "1010")
    found = steps.curves(results(timed, untimed, plan="steps", settings={"reverse-5": {"steps": 5}}))
    assert found == {"pgd-50": [(5, timed)]}
    assert steps.milliseconds(timed) == 50


def test_beta_zero_is_the_same_ascent_blind_to_the_purifier(results):
    joint = [
        cell("p", f"joint={w}", {**PGD, "mode": "joint", "weight": w}, "11", bare=w / 4, objectives="1 2")
        for w in (1.0, 2.0, 4.0)
    ]
    blind = [cell("p", "pgd", PGD, "1000"), cell("none", "pgd", PGD, "0111"), cell("p", "fgsm", FGSM, "1111")]
    (sweep,) = tradeoff.sweeps(results(*joint, *blind))
    assert [(point.x, point.share, point.n) for point in sweep.after][-1] == (0.0, 0.5, 2)
    assert [(point.x, point.share) for point in sweep.before] == [(1.0, 0.25), (2.0, 0.5), (4.0, 1.0), (0.0, 0.5)]
    assert tradeoff.sweeps(results(*joint[:2], *blind)) == []


def test_the_best_hidden_attack_is_among_the_detectors(results):
    clean = cell("p", "none", NONE, "11", objectives="1 2")
    hidden = [
        cell("p", f"joint={w}", {**PGD, "mode": "joint", "weight": w}, "11", objectives="0 1") for w in (1.0, 9.0, -9.0)
    ]
    unknown = cell("q", "pgd", PGD, "11")
    found = roc.curves(results(clean, *hidden, cell("p", "pgd", PGD, "10", objectives="3 4"), unknown))
    assert {purifier: [one.attack.name for one in cells] for purifier, cells in found.items()} == {
        "p": ["none", "pgd", "joint=9.0"]
    }


@pytest.mark.parametrize("choice", strips.CHOICES, ids=lambda choice: choice.purifier)
def test_a_strip_shows_what_its_caption_says(choice):
    defense = Catalog.open().defense(choice.model, choice.purifier, choice.classifier)
    strip = strips.made(defense, choice)
    helped = (strip.seen_attacked != strip.labels) & (strip.seen_purified == strip.labels)
    failed = (strip.seen_attacked != strip.labels) & (strip.seen_purified != strip.labels)
    assert (strip.seen_clean == strip.labels).all()
    assert helped.tolist() == [True] * len(choice.helps) + [False] * len(choice.fails)
    assert failed.tolist() == [False] * len(choice.helps) + [True] * len(choice.fails)

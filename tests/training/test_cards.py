import pytest

from models.catalog import ZOO
from models.checkpoint import read_card, write_card
from tests.training.test_outcomes import cell
from training.cards import files_with, named, with_results
from training.plan import EvaluationError

SHA256 = "f" * 64


@pytest.fixture
def card():
    return read_card(ZOO / "cifar10-vgg19-natural").model_copy(update={"measured": (), "worst": ()})


@pytest.fixture
def files(results):
    """An attack that knows the purifier in each, and other images that withstand it."""
    one = results("a.json", cell("p", "none", "1111"), cell("p", "bpda", "0111"), addons={"p": [SHA256]})
    other = results("b.json", cell("p", "bpda", "1110", name="weak"), addons={"p": [SHA256]}, plan="paper")
    return [one, other]


def test_a_card_tells_every_accuracy_and_what_is_left_image_by_image(card, files, tmp_path):
    write_card(tmp_path, with_results(card, files))
    found = read_card(tmp_path)
    assert [(each.attack, each.accuracy, each.n) for each in found.measured] == [
        *(("none", 1.0, 4), ("bpda", 0.75, 4), ("weak", 0.75, 4))
    ]
    (worst,) = found.worst
    assert (worst.adaptive, worst.worst, worst.n, worst.strongest) == (0.5, 0.5, 4, "bpda")
    assert {worst.addons, *(each.addons for each in found.measured)} == {(SHA256,)}
    assert worst.detail.endswith("; a.json, b.json")


def test_a_paper_stands_beside_what_it_reports_on(card, results):
    reported = cell("p", "static", "10").model_copy(update={"paper": 0.6188})
    found = with_results(card, [results("a.json", reported)])
    assert (found.measured[0].paper, found.worst) == (0.6188, ())  # nobody who knew it attacked it


def test_a_card_keeps_the_files_that_it_tells_of(card, files):
    one, other = files
    told = with_results(card, [one])
    assert (files_with(told, other), files_with(told, one)) == (files, [one])
    assert named(with_results(told, files)) == ["a.json", "b.json"]


def test_a_worst_case_misses_no_file(card, files):
    one, other = files
    told = with_results(card, [one])
    one.unlink()
    assert files_with(told, one) == [one]  # it is what will be measured
    with pytest.raises(EvaluationError, match=r"'vgg19-natural' tells of a\.json too"):
        files_with(told, other)

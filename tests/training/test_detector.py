import pytest
import torch

from tests.training.test_outcomes import cell
from training.detector import area, caught_at, detections, roc


def losses(*values):
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize(
    ("clean", "attacked", "expected"),
    [
        ([1, 2], [3, 4], 1.0),
        ([3, 4], [1, 2], 0.0),
        ([1, 3], [2, 4], 0.75),  # of four pairs (2, 3) alone is the wrong way round
        ([1, 2], [2, 3], 0.875),  # 2 and 2 tie and count half
        ([5], [5, 5], 0.5),
    ],
)
def test_the_area_counts_pairs_and_ties_by_half(clean, attacked, expected):
    assert area(losses(*clean), losses(*attacked)) == pytest.approx(expected)


def test_a_curve_goes_from_no_alarm_to_alarm_for_all():
    alarms, caught = roc(losses(1, 3), losses(2, 4))
    assert alarms.tolist() == [0, 0, 0.5, 0.5, 1]
    assert caught.tolist() == [0, 0.5, 0.5, 1, 1]


def test_what_is_caught_is_bought_with_one_false_alarm_in_a_hundred():
    clean = torch.arange(100, dtype=torch.float64)
    attacked = losses(97.5, 98.5, 99.5, 200)
    assert caught_at(clean, attacked) == 0.75  # 99 alone may be above the threshold
    assert caught_at(clean, attacked, 0.0) == 0.5
    assert caught_at(clean, attacked, 0.02) == 1.0


def test_an_attack_is_compared_with_the_clean_images_of_its_purifier():
    clean = cell("p", "none", "11").model_copy(update={"objectives": "1 3"})
    seen = cell("p", "bpda", "10", name="bpda").model_copy(update={"objectives": "2 4"})
    (found,) = detections([clean, seen, cell("p", "static", "11")])
    assert (found.attack.name, found.n, found.area, found.caught) == ("bpda", 2, 0.75, 0.5)
    assert detections([seen]) == []

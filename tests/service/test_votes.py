import pytest

from service.votes import predictions

LABELS = ["a", "b", "c"]


def test_the_most_probable_come_first() -> None:
    found = predictions([([0.1, 0.6, 0.3])], LABELS, top_k=2, digits=7)
    assert [(each.label, each.index, each.votes) for each in found] == [("b", 1, 1), ("c", 2, 0)]
    assert found[0].probability == pytest.approx(0.6)


def test_no_more_predictions_than_classes() -> None:
    assert len(predictions([([0.2, 0.3, 0.5])], LABELS, top_k=100, digits=7)) == 3


def test_votes_and_the_mean_probability_are_told() -> None:
    votes = [([0.4, 0.35, 0.25])] * 2 + [([0.0, 1.0, 0.0])]
    found = predictions(votes, LABELS, top_k=2, digits=7)
    assert [(each.label, each.votes) for each in found] == [("a", 2), ("b", 1)]
    assert found[1].probability == pytest.approx((0.35 + 0.35 + 1) / 3)


def test_probabilities_are_rounded_after_they_are_ranked() -> None:
    found = predictions([([0.3334, 0.3335, 0.3331])], LABELS, top_k=3, digits=2)
    assert [(each.label, each.probability) for each in found] == [("b", 0.33), ("a", 0.33), ("c", 0.33)]

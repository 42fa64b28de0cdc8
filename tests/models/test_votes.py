from models.votes import tallied


def test_the_majority_decides_even_against_the_mean() -> None:
    found = tallied([[0.4, 0.35, 0.25], [0.4, 0.35, 0.25], [0.0, 1.0, 0.0]])
    assert (found.won, found.ranking) == ([2, 1, 0], [0, 1, 2])
    assert found.mean[1] == (0.35 + 0.35 + 1) / 3


def test_the_mean_decides_between_equal_votes() -> None:
    assert tallied([[0.5, 0.3, 0.2], [0.0, 0.9, 0.1]]).ranking == [1, 0, 2]

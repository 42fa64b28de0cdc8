import torch

from models.votes import SEED_LIMIT, scores, seeds_of, tallied


def test_the_majority_decides_even_against_the_mean() -> None:
    found = tallied([[0.4, 0.35, 0.25], [0.4, 0.35, 0.25], [0.0, 1.0, 0.0]])
    assert (found.won, found.ranking) == ([2, 1, 0], [0, 1, 2])
    assert found.mean[1] == (0.35 + 0.35 + 1) / 3


def test_the_mean_decides_between_equal_votes() -> None:
    assert tallied([[0.5, 0.3, 0.2], [0.0, 0.9, 0.1]]).ranking == [1, 0, 2]


def test_scores_rank_classes_as_the_tally_does() -> None:
    votes = torch.rand(200, 5, 4, generator=torch.Generator().manual_seed(0)).mul(9).softmax(2)
    found = scores(votes)
    assert found.shape == (200, 4)
    for own, row in zip(votes.tolist(), found, strict=True):
        assert row.argsort(descending=True).tolist() == list(tallied(own).ranking)
    assert (found.argmax(1) != votes.mean(1).argmax(1)).any()  # it isn't the mean that decides
    assert scores(votes[:0]).shape == (0, 4)


def test_the_seeds_of_votes_follow_each_other_and_stay_below_the_limit() -> None:
    assert seeds_of(7, 3) == [7, 8, 9]
    assert seeds_of(SEED_LIMIT - 1, 2) == [SEED_LIMIT - 1, 0]

import secrets

import pytest

from models.votes import SEED_LIMIT
from service.seeds import Seeds


def test_seeds_are_in_range_and_all_different() -> None:
    seeds = Seeds(SEED_LIMIT)
    drawn = [seeds.draw() for _ in range(2000)]
    assert len(set(drawn)) == 2000
    assert all(0 <= seed < SEED_LIMIT for seed in drawn)
    assert max(drawn) > SEED_LIMIT * 0.9
    assert min(drawn) < SEED_LIMIT * 0.1


def test_they_are_the_systems_and_asked_for_seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def token_bytes(count: int) -> bytes:
        asked.append(count)
        return bytes(count)

    monkeypatch.setattr(secrets, "token_bytes", token_bytes)
    seeds = Seeds(SEED_LIMIT)
    assert {seeds.draw() for _ in range(600)} == {0}
    assert len(asked) == 2


def test_the_limit_leaves_no_number_likelier() -> None:
    assert SEED_LIMIT & (SEED_LIMIT - 1) == 0

"""What a request may choose, and what the operator lets it choose."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from models.catalog import Catalog
from service.settings import Settings

Png = Callable[..., bytes]


def problem(response: Any, status: int, code: str) -> dict[str, Any]:
    assert (response.status_code, response.json().get("code")) == (status, code), response.text
    return dict(response.json())


def test_budget_and_steps_are_the_requests(api: Any, png: Png) -> None:
    reply = api.post("/classify?purifier=soap-rp&epsilon=0.002&steps=1", content=png()).json()["purification"]
    assert 0 < reply["linf"] <= 0.0021
    assert reply["backward_passes"] == 4  # one step, four rotations


@pytest.mark.parametrize(
    ("query", "detail"),
    [
        ("epsilon=0.6", "epsilon: 0.6 came; this service allows at most 0.5"),
        ("steps=21", "steps: 21 came; this service allows at most 20"),
        ("votes=11&purifier=soap-lc-random", "votes: 11 came; this service allows at most 10"),
        ("votes=2", "votes: purifier 'soap-lc' draws no random numbers"),
        ("epsilon=0.1&purifier=none", "purifier 'none' has no option epsilon; its options: none"),
    ],
)
def test_what_can_not_be_is_said_before_the_body_is_looked_at(api: Any, query: str, detail: str) -> None:
    assert detail in problem(api.post(f"/classify?{query}", content=b"no image"), 422, "bad-parameter")["detail"]


@pytest.mark.parametrize("query", ["epsilon=nan", "epsilon=-0.1", "epsilon=2", "steps=0", "votes=0", "timeout_ms=0"])
def test_what_no_service_could_allow_is_a_bad_parameter(api: Any, png: Png, query: str) -> None:
    problem(api.post(f"/classify?{query}", content=png()), 422, "bad-parameter")


def test_votes_are_the_seeds_that_follow(api: Any, png: Png) -> None:
    def ask(query: str) -> Any:
        return api.post(f"/classify?purifier=soap-lc-random&top_k=10&{query}", content=png()).json()

    together = ask("seed=7&votes=3")
    alone = [ask(f"seed={seed}") for seed in (7, 8, 9)]
    assert sum(each["votes"] for each in together["predictions"]) == 3
    won = {each["index"]: each["votes"] for each in together["predictions"]}
    for index in range(10):
        assert won[index] == sum(each["predictions"][0]["index"] == index for each in alone)
    assert together["purification"] == alone[0]["purification"]
    assert together["seed"] == 7
    assert len({each["purification"]["l2"] for each in alone}) == 3


def test_probabilities_are_rounded_and_the_unpurified_answer_is_kept_unless_the_operator_wants_otherwise(
    run: Any, catalog: Catalog, api: Any, png: Png
) -> None:
    def numbers(api: Any) -> list[float]:
        reply = api.post("/classify?top_k=10", content=png()).json()
        return [each["probability"] for each in reply["predictions"]]

    assert numbers(api) == [round(each, 2) for each in numbers(api)]
    assert api.post("/classify", content=png()).json()["unpurified"] is None
    with run(Settings(probability_digits=7, reveal_unpurified=True), catalog) as open_handed:
        open_handed.wait_ready()
        assert numbers(open_handed) != [round(each, 2) for each in numbers(open_handed)]
        told = open_handed.post("/classify?purifier=soap-rp", content=png()).json()["unpurified"]
        assert told == open_handed.post("/classify?purifier=none", content=png()).json()["predictions"]


@pytest.mark.parametrize(("query", "headers"), [("timeout_ms=40", {}), ("", {"X-Request-Timeout": "0.04"})])
def test_a_request_may_be_in_a_hurry(run: Any, hooked: Any, png: Png, query: str, headers: dict[str, str]) -> None:
    held = torch.zeros(1)

    def hold(x: Tensor) -> None:
        if held:
            import time

            time.sleep(0.3)

    with run(Settings(), hooked(hold)) as api:
        api.wait_ready()
        held += 1
        found = problem(api.post(f"/classify?{query}", content=png(), headers=headers), 504, "deadline-exceeded")
        assert "no answer within 40 ms" in found["detail"]


def test_purification_may_be_cut_short(api: Any, png: Png) -> None:
    def passes(query: str) -> int:
        return int(
            api.post(f"/classify?purifier=soap-rp&steps=5{query}", content=png()).json()["purification"][
                "backward_passes"
            ]
        )

    assert passes("&stop_after_ms=60000") == passes("") == 20
    assert passes("&stop_after_ms=1") == 8  # one step, and the gradient for the next, of four rotations each


def test_what_works_in_one_go_can_not_be_cut_short(api: Any, png: Png) -> None:
    found = problem(api.post("/classify?purifier=none&stop_after_ms=5", content=png()), 422, "bad-parameter")
    assert "purifier 'none' doesn't work in steps" in found["detail"]


@pytest.mark.parametrize("header", ["soon", "-1", "nan", "inf", "0"])
def test_an_odd_timeout_header_is_a_problem(api: Any, png: Png, header: str) -> None:
    found = problem(api.post("/classify", content=png(), headers={"X-Request-Timeout": header}), 422, "bad-parameter")
    assert found["detail"] == "X-Request-Timeout: not a positive number of seconds, such as 2.5"


def test_a_batch_that_finds_no_room_is_refused_as_a_whole(run: Any, catalog: Catalog, png: Png) -> None:
    with run(Settings(queue_limit_images=3, max_batch_images=3, shed_status=429), catalog) as api:
        api.wait_ready()
        parts = [("image", ("a.png", png(), "image/png"))] * 3
        response = api.post("/classify/batch?purifier=soap-lc-random&votes=2", files=parts)
        problem(response, 429, "queue-full")
        assert int(response.headers["Retry-After"]) >= 1


def test_out_of_memory_turns_not_ready_and_heals_by_itself(
    run: Any, hooked: Any, png: Png, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.engine.PROBE_S", 0.02)
    full = torch.zeros(1)

    def fill(x: Tensor) -> None:
        if full:
            raise MemoryError

    with run(Settings(), hooked(fill)) as api:
        api.wait_ready()
        full += 1
        response = api.post("/classify", content=png())
        problem(response, 503, "out-of-memory")
        assert int(response.headers["Retry-After"]) >= 1
        assert "out of memory" in problem(api.get("/readyz"), 503, "not-ready")["detail"]
        full.zero_()
        api.wait_ready()
        assert api.post("/classify", content=png()).status_code == 200


def test_draining_is_not_ready_but_answers(run: Any, catalog: Catalog, png: Png) -> None:
    with run(Settings(), catalog) as api:
        api.wait_ready()
        api.app.state.engine.drain()
        assert "shutting down" in problem(api.get("/readyz"), 503, "not-ready")["detail"]
        assert api.post("/classify", content=png()).status_code == 200

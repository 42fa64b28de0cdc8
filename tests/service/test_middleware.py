import logging
import time
from typing import Any

import pytest


def test_callers_request_id_comes_back(api: Any, png: Any) -> None:
    response = api.post("/classify", content=png(), headers={"X-Request-ID": "a-b_c.1:2"})
    assert response.headers["X-Request-ID"] == response.json()["request_id"] == "a-b_c.1:2"


@pytest.mark.parametrize("bad", ["", "x" * 65, "a b", "-a", "a;b", "ä".encode("latin-1")])
def test_unusable_request_id_is_replaced(api: Any, bad: Any) -> None:
    given = api.get("/livez", headers={"X-Request-ID": bad}).headers["X-Request-ID"]
    assert len(given) == 32


def test_one_line_a_request_and_one_a_batch(api: Any, png: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="service"):
        api.post("/classify?purifier=none", content=png(), headers={"X-Request-ID": "line"})
        while "batch lane" not in caplog.text:  # the worker answers first and logs then
            time.sleep(0.001)
    requests = [each.getMessage() for each in caplog.records if each.name == "service.middleware"]
    batches = [each.getMessage() for each in caplog.records if each.name == "service.desk"]
    assert len(requests) == len(batches) == 1
    assert "request request_id=line method=POST path=/classify route=/classify status=200 outcome=ok ms=" in requests[0]
    for fact in ("model=cifar10", "purifier=none", "batch_size=1", "queue_ms=", "purify_ms="):
        assert fact in requests[0]
    assert "batch lane=cifar10/toy/none/3x32x32 size=1 queue_ms=" in batches[0]


def test_refused_request_has_its_line_too(api: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="service"):
        api.post("/classify")
    assert "method=POST path=/classify route=/classify status=400 outcome=no-body" in caplog.text


def test_path_cannot_forge_a_line(api: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="service"):
        api.get("/x%0Arequest%20id=forged%20GET%20/%20200")
    (line,) = [each.getMessage() for each in caplog.records if each.name == "service.middleware"]
    assert "\n" not in line


def test_unexpected_error_is_a_problem_with_an_id_that_is_in_the_log(
    api: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def break_down() -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(api.app.state.engine, "unready", break_down)
    response = api.get("/readyz", headers={"X-Request-ID": "bug"})
    assert (response.status_code, response.json()["code"]) == (500, "internal-error")
    assert response.headers["X-Request-ID"] == "bug"
    assert "a bug" not in response.text
    assert "request id=bug failed" in caplog.text
    assert "ZeroDivisionError: a bug" in caplog.text

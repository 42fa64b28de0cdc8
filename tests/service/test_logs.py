import io
import json
import logging
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from service import logs
from service.settings import Settings

log = logging.getLogger("service.x")
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
TRACEPARENT = f"00-{TRACE}-00f067aa0ba902b7-01"
EVIL = "a\n2026-01-01 00:00:00,000 INFO    service.middleware request request_id=forged\r\x1b[31m\u2028\u202eb"


@pytest.fixture(autouse=True)
def _restore() -> Iterator[None]:
    root = logging.getLogger()
    level, handlers = root.level, root.handlers[:]
    root.handlers.clear()  # pytest's own must outlive `force`
    yield
    root.setLevel(level)
    root.handlers[:] = handlers


def test_level_holds_and_uvicorn_is_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("info")
    logging.getLogger("service.x").debug("too fine")
    logging.getLogger("service.x").info("said once")
    logging.getLogger("uvicorn.error").info("Application startup complete.")
    error = capsys.readouterr().err
    assert error.count("said once") == 1
    assert "too fine" not in error
    assert "Application" not in error


def test_second_call_replaces_the_first(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("info")
    logs.configure("info")
    logging.getLogger("service.x").info("said once")
    assert capsys.readouterr().err.count("said once") == 1


def test_lines_that_are_gathered_come_with_the_next_flush(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("info")
    logs.gather(True)
    log.info("first")
    log.info("second")
    assert capsys.readouterr().err == ""
    logs.flush()
    assert [line.split()[-1] for line in capsys.readouterr().err.splitlines()] == ["first", "second"]


def test_a_warning_waits_for_nobody_and_takes_along_what_waits(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("info")
    logs.gather(True)
    log.info("before")
    log.warning("trouble")
    assert [line.split()[-1] for line in capsys.readouterr().err.splitlines()] == ["before", "trouble"]


def test_no_more_lines_than_so_many_wait(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("info")
    logs.gather(True)
    for number in range(logs.Lines.most + 1):
        log.info("line %d", number)
    assert len(capsys.readouterr().err.splitlines()) == logs.Lines.most


def test_who_stops_gathering_writes_what_waits(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("info")
    logs.gather(True)
    log.info("last")
    logs.gather(False)
    assert "last" in capsys.readouterr().err
    log.info("at once")
    assert "at once" in capsys.readouterr().err


@pytest.mark.parametrize("gathers", [False, True])
def test_a_closed_stream_fails_nobody(gathers: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    logs.configure("info")
    logs.gather(gathers)
    stream.close()
    log.info("nobody reads this")
    log.warning("nor this")
    logs.flush()


def test_pairs_are_short() -> None:
    assert logs.pairs(purifier="none", queue_ms=1.23456, batch_size=3) == "purifier=none queue_ms=1.2 batch_size=3"


def test_importing_the_service_configures_nothing() -> None:
    code = (
        "import logging, warnings, torch; before = list(warnings.filters); import service.logs, service.middleware; "
        "assert not logging.getLogger().handlers; assert warnings.filters == before"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def records(text: str) -> list[str]:
    """What begins like a line of ours."""
    return [line for line in text.splitlines() if re.match(r"\d{4}-\d\d-\d\d ", line)]


def test_event_is_pairs_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("info")
    logs.event(log, logging.INFO, "batch", lane="a/b", size=2, queue_ms=1.23456, nothing=None, words="two words")
    assert capsys.readouterr().err.endswith(' INFO    service.x batch lane=a/b size=2 queue_ms=1.2 words="two words"\n')


def test_event_is_an_object_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("info", "json")
    logs.event(log, logging.WARNING, "batch", lane="a/b", size=2, queue_ms=1.23456, nothing=None)
    line = json.loads(capsys.readouterr().err)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", line.pop("time"))
    about = {"level": "warning", "logger": "service.x", "message": "batch"}
    assert line == about | {"lane": "a/b", "size": 2, "queue_ms": 1.235}


def test_other_records_are_an_object_too_with_their_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("info", "json")
    try:
        raise ZeroDivisionError("a bug")
    except ZeroDivisionError:
        log.exception("%s failed", "it", extra={"facts": {"request_id": "a"}})
    (line,) = map(json.loads, capsys.readouterr().err.splitlines())
    assert (line["level"], line["message"], line["request_id"]) == ("error", "it failed", "a")
    assert line["exception"].endswith("ZeroDivisionError: a bug")


def test_event_below_the_level_is_not_even_written_out() -> None:
    class Unprintable:
        def __str__(self) -> str:
            raise AssertionError("written out")

    logs.configure("warning")
    logs.event(log, logging.INFO, "batch", lane=Unprintable())


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_nothing_typed_can_forge_a_record(capsys: pytest.CaptureFixture[str], log_format: Any) -> None:
    logs.configure("info", log_format)
    logs.event(log, logging.INFO, "request", path=EVIL, **{"method": EVIL})
    log.warning("came: %s", EVIL)
    try:
        raise ValueError(EVIL)
    except ValueError:
        log.exception("failed")
    written = capsys.readouterr().err
    if log_format == "json":
        assert [json.loads(line)["message"] for line in written.splitlines()] == ["request", f"came: {EVIL}", "failed"]
    else:
        assert len(records(written)) == 3
    assert not set("\r\x1b\u2028\u202e") & set(written)


def answered(run: Any, catalog: Any, png: Any, query: str = "", **settings: Any) -> tuple[dict[str, Any], Any]:
    """The request that all these tests look at: the reply, and its app's metrics."""
    with run(Settings(**settings), catalog) as api:
        api.wait_ready()
        headers = {"X-Request-ID": "mine", "traceparent": TRACEPARENT}
        reply = api.post(f"/classify?{query}", content=png(), headers=headers)
        assert reply.status_code == 200
        return reply.json(), api.app.state.metrics.registry


def line_of(written: str, request_id: str) -> str:
    (found,) = [line for line in written.splitlines() if request_id in line and "request" in line]
    return found


def test_request_has_the_same_facts_in_both_formats(
    capsys: pytest.CaptureFixture[str], run: Any, catalog: Any, png: Any
) -> None:
    logs.configure("info", "text")
    answered(run, catalog, png, "purifier=none")
    text = line_of(capsys.readouterr().err, "mine").partition("service.middleware request ")[2]
    as_text = dict(pair.split("=") for pair in text.split())
    logs.configure("info", "json")
    answered(run, catalog, png, "purifier=none")
    as_json = json.loads(line_of(capsys.readouterr().err, "mine"))
    assert list(as_json) == ["time", "level", "logger", "message", *as_text]
    fixed = {"request_id": "mine", "trace_id": TRACE, "method": "POST", "path": "/classify", "route": "/classify"}
    fixed |= {"outcome": "ok", "model": "cifar10", "purifier": "none"}
    for found in (as_text, as_json):
        assert {name: found[name] for name in fixed} == fixed
        assert int(found["status"]) == 200
        assert float(found["ms"]) >= float(found["purify_ms"]) > 0


def test_request_without_a_valid_traceparent_has_no_trace_id(caplog: pytest.LogCaptureFixture, run: Any) -> None:
    with caplog.at_level("INFO", logger="service"), run(Settings(), None) as api:
        api.get("/livez", headers={"traceparent": "typed"})
    (line,) = [each.getMessage() for each in caplog.records if each.name == "service.middleware"]
    assert "trace_id" not in line
    assert "typed" not in line


def suspicious(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [each.getMessage() for each in caplog.records if each.levelname == "WARNING"]


def test_suspicion_at_the_alarm_is_a_warning_and_counted(
    caplog: pytest.LogCaptureFixture, run: Any, catalog: Any, png: Any
) -> None:
    suspicion = answered(run, catalog, png)[0]["purification"]["suspicion"]
    assert suspicious(caplog) == []
    _, registry = answered(run, catalog, png, suspicion_alarm=suspicion)
    facts = f"model=cifar10 purifier=soap-lc request_id=mine trace_id={TRACE} suspicion={suspicion:.1f}"
    assert suspicious(caplog) == [f"suspicious {facts}"]
    labels = {"model": "cifar10", "purifier": "soap-lc"}
    assert registry.get_sample_value("unperturb_suspicious_total", labels) == 1


@pytest.mark.parametrize("query", ["purifier=soap-lc&seed=0", "purifier=soap-rp", "purifier=none"])
def test_suspicion_below_the_alarm_or_unknown_is_silent(
    caplog: pytest.LogCaptureFixture, run: Any, catalog: Any, png: Any, query: str
) -> None:
    suspicion = answered(run, catalog, png, query)[0]["purification"]["suspicion"]
    alarm = 0 if suspicion is None else suspicion + 0.001
    answered(run, catalog, png, query, suspicion_alarm=alarm)
    assert suspicious(caplog) == []


def test_every_image_of_a_batch_is_looked_at(
    caplog: pytest.LogCaptureFixture, run: Any, catalog: Any, png: Any
) -> None:
    with run(Settings(suspicion_alarm=0), catalog) as api:
        api.wait_ready()
        api.post("/classify/batch", files=[("image", png(seed=seed)) for seed in range(3)])
    assert len(suspicious(caplog)) == 3


def test_logs_hold_no_image_even_for_debugging(
    capsys: pytest.CaptureFixture[str], run: Any, catalog: Any, png: Any
) -> None:
    logs.configure("debug")
    with run(Settings(), catalog) as api:
        api.wait_ready()
        for body in (png() + b"MARK", b"MARK" * 100, b"\x89PNG\r\n\x1a\n" + b"MARK" * 10):
            api.post("/classify?purifier=none", content=body)
            api.post("/classify?purifier=none", files={"image": ("MARK", body), "MARK": b"MARK"})
    written = capsys.readouterr().err
    assert written.count("path=/classify") == 6
    assert "MARK" not in written

import hashlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.datastructures import Headers

from models.catalog import Catalog
from service import keys
from service.errors import RateLimited, TooManyImages, Unauthorized
from service.keys import ApiKey, Bucket, Keys, KeysError
from service.settings import Settings

ALICE, BOB = "alices-secret", "bobs-secret"


def line(name: str, key: str, *rate: str) -> str:
    return ":".join([name, hashlib.sha256(key.encode()).hexdigest(), *rate])


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


# What stands in the settings.


def test_no_keys_are_asked_for_unless_some_are_set() -> None:
    assert keys.load(Settings()) is None


def test_keys_come_from_the_file_and_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"# of the lab\n\n  {line('alice', ALICE)}\n{line('bob', BOB, '2.5')}\n")
    settings = Settings(api_keys_file=file, api_keys=f"{line('carol', 'c')}, {line('dave', 'd')}\n{line('eve', 'e')}")
    found = keys.load(settings)
    assert found is not None
    assert found.names() == ["alice", "bob", "carol", "dave", "eve"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("alice", "entry 1: the second part must be a SHA-256 as 64 lower-case hex digits, never the key itself"),
        ("alice:open-secret", "entry 1: the second part must be"),
        (line("", "x"), "the name must be 1 to 64 letters"),
        (line("a=b", "x"), "the name must be 1 to 64 letters"),
        (line("a", "x", "fast"), "the rate must be a number of images a second above 0"),
        (line("a", "x", "0"), "the rate must be"),
        (line("a", "x", "nan"), "the rate must be"),
        (line("a", "x", "inf"), "the rate must be"),
        (line("a", "x", ""), "the rate must be"),
        (line("a", "x", "1", "2"), "more than three parts"),
        (f"{line('a', 'x')} {line('a', 'y')}", "entry 2: the same name or hash as the key 'a' before it"),
        (f"{line('a', 'x')} {line('b', 'x')}", "entry 2: the same name or hash as the key 'a' before it"),
        ("", "wanted but there are none"),
        (" , ", "wanted but there are none"),
    ],
)
def test_wrong_key_stops_the_start_and_is_not_repeated(text: str, message: str) -> None:
    with pytest.raises(KeysError, match=message) as error:
        keys.load(Settings(api_keys=text))
    assert "open-secret" not in str(error.value)


def test_wrong_line_of_the_file_is_named(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"# keys\n{line('alice', ALICE)}\nbob:2\n")
    with pytest.raises(KeysError, match=f"{file}, line 3: the second part"):
        keys.load(Settings(api_keys_file=file))


def test_missing_file_stops_the_start(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="no-such-file"):
        keys.load(Settings(api_keys_file=tmp_path / "no-such-file"))


def test_settings_in_the_log_hide_the_hashes() -> None:
    settings = Settings(api_keys=line("alice", ALICE))
    assert hashlib.sha256(ALICE.encode()).hexdigest() not in settings.model_dump_json() + repr(settings)


@pytest.mark.parametrize("rate", [None, 0.25, 1_234_567 / 8])
def test_generated_key_is_long_new_and_found_by_its_line(rate: float | None) -> None:
    secret, key = ApiKey.generate("alice", rate)
    assert len(secret) == 43
    assert secret != ApiKey.generate("alice")[0]
    assert ApiKey.parse(key.line()) == key
    assert Keys([key], burst_s=1).client(Headers({"x-api-key": secret})).key.rate == rate


# Who asks.


@pytest.mark.parametrize(
    "headers",
    [{"X-API-Key": BOB}, {"Authorization": f"Bearer {BOB}"}, {"Authorization": f"bearer  {BOB} "}],
)
def test_key_comes_as_either_header(headers: dict[str, str]) -> None:
    known = Keys([ApiKey.parse(line("alice", ALICE)), ApiKey.parse(line("bob", BOB))], burst_s=1)
    assert known.client(Headers(headers)).key.name == "bob"


@pytest.mark.parametrize(
    ("headers", "came"),
    [
        ({}, False),
        ({"X-API-Key": ""}, False),
        ({"Authorization": "Bearer"}, False),
        ({"Authorization": f"Basic {ALICE}"}, False),
        ({"X-API-Key": ALICE + "x"}, True),
        ({"X-API-Key": hashlib.sha256(ALICE.encode()).hexdigest()}, True),
        ({"X-API-Key": "\xe4"}, True),
    ],
)
def test_anything_else_is_refused(headers: dict[str, str], came: bool) -> None:
    with pytest.raises(Unauthorized) as refusal:
        Keys([ApiKey.parse(line("alice", ALICE))], burst_s=1).client(Headers(headers))
    assert ("invalid_token" in refusal.value.headers()["WWW-Authenticate"]) == came


# What it costs.


def test_bucket_gives_what_it_saved_and_says_when_there_is_more() -> None:
    clock = Clock()
    bucket = Bucket(rate=2, capacity=4, clock=clock)
    assert [bucket.take(1) for _ in range(5)] == [True] * 4 + [False]
    assert bucket.missing_s(3) == pytest.approx(1.5)
    clock.now += 0.5
    assert [bucket.take(1), bucket.take(1)] == [True, False]
    clock.now += 1000
    assert [bucket.take(4), bucket.take(1)] == [True, False]


@pytest.mark.parametrize("rate", [0.1, 0.3, 3.0, 7.0])
def test_waiting_as_long_as_told_is_enough(rate: float) -> None:
    clock = Clock()
    bucket = Bucket(rate, capacity=5, clock=clock)
    for _ in range(50):
        clock.now += bucket.missing_s(3)
        assert bucket.take(3)


def client(rate: str, burst_s: float, clock: Clock) -> keys.Client:
    return Keys([ApiKey.parse(line("alice", ALICE, rate))], burst_s, clock).client(Headers({"x-api-key": ALICE}))


def test_slow_key_may_always_send_one() -> None:
    alice = client("0.01", burst_s=10, clock=Clock())
    alice.charge(1, attempt=1)
    with pytest.raises(RateLimited) as refusal:
        alice.charge(1, attempt=1)
    assert refusal.value.headers() == {"Retry-After": "100"}


def test_refused_batch_is_told_when_all_of_it_fits_or_that_it_never_will() -> None:
    alice = client("1", burst_s=10, clock=Clock())
    alice.charge(6, attempt=6)
    with pytest.raises(RateLimited) as refusal:
        alice.charge(7, attempt=8)
    assert refusal.value.headers() == {"Retry-After": "4"}
    with pytest.raises(TooManyImages) as never:
        alice.charge(10, attempt=11)
    assert never.value.members == {"limit": 10}


# The service with keys.


@pytest.fixture(scope="module")
def guarded(run: Any, catalog: Catalog) -> Iterator[Any]:
    lines = [line("alice", ALICE), line("bob", BOB, "0.001"), line("carol", "carols-secret", "0.004")]
    with run(Settings(api_keys=" ".join(lines), rate_limit_burst_s=1000, max_batch_images=8), catalog) as api:
        api.wait_ready()  # without a key
        yield api


def test_every_path_but_the_probes_needs_a_key(guarded: Any, png: Any) -> None:
    paths = [
        "/",
        "/docs",
        "/redoc",
        "/openapi.json",
        "/purifiers",
        "/models",
        "/metrics",
        "/nowhere",
        "/livez/",
        "//livez",
    ]
    for method, path in [("POST", "/classify"), *(("GET", path) for path in paths)]:
        refused = guarded.request(method, path)
        assert (refused.status_code, refused.json()["code"]) == (401, "unauthorized"), path
        assert refused.headers["WWW-Authenticate"] == 'Bearer realm="unperturb"'
        assert refused.headers["X-Request-ID"] == refused.json()["request_id"]
    assert guarded.get("/livez").status_code == guarded.get("/readyz").status_code == 200


def test_every_route_that_is_added_later_needs_one_too(guarded: Any) -> None:
    app: FastAPI = guarded.app
    app.add_api_route("/v9/late", lambda: "open", methods=["GET"])
    assert guarded.get("/v9/late").status_code == 401
    assert guarded.get("/v9/late", headers={"X-API-Key": ALICE}).json() == "open"


def test_right_key_is_let_in_and_its_name_is_in_the_log(
    guarded: Any, png: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="service"):
        found = guarded.post("/classify", content=png(), headers={"Authorization": f"Bearer {ALICE}"})
        guarded.get("/models", headers={"X-API-Key": "a-guess"})
    assert found.status_code == 200
    admitted, refused = [each.getMessage() for each in caplog.records if each.name == "service.middleware"]
    assert "key=alice" in admitted
    assert "status=401 outcome=unauthorized" in refused
    assert ALICE not in caplog.text
    assert "a-guess" not in caplog.text


def test_used_up_share_is_429_with_the_time_to_come_back(guarded: Any, png: Any) -> None:
    bob = {"X-API-Key": BOB}
    assert guarded.post("/classify", content=png(), headers=bob).status_code == 200
    refused = guarded.post("/classify", content=png(), headers=bob)
    assert (refused.status_code, refused.json()["code"]) == (429, "rate-limited")
    assert 990 <= int(refused.headers["Retry-After"]) == refused.json()["retry_after_s"] <= 1000
    assert guarded.get("/models", headers=bob).status_code == 200  # reading costs nothing
    assert guarded.post("/classify", content=png(), headers={"X-API-Key": ALICE}).status_code == 200


def test_batch_costs_as_many_as_it_has(guarded: Any, png: Any) -> None:
    carol = {"X-API-Key": "carols-secret"}  # 4 at once
    five = guarded.post("/classify/batch", files=[("image", png())] * 5, headers=carol)
    assert (five.status_code, five.json()["limit"]) == (413, 4)  # and one is paid
    three = guarded.post("/classify/batch", files=[("image", png())] * 3, headers=carol)
    assert three.status_code == 200
    assert guarded.post("/classify", content=png(), headers=carol).status_code == 429


@pytest.mark.parametrize("open_metrics", [False, True])
def test_metrics_can_be_open(run: Any, catalog: Catalog, open_metrics: bool) -> None:
    with run(Settings(api_keys=line("alice", ALICE), open_metrics=open_metrics), catalog) as api:
        assert (api.get("/metrics").status_code == 401) == (not open_metrics)
        assert api.get("/models").status_code == 401


# Other people's web pages.

ORIGIN = {"Origin": "https://example.org"}
ASKS = {**ORIGIN, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "X-API-Key"}


def test_no_cors_unless_asked_for(api: Any, png: Any) -> None:
    answer = api.post("/classify", content=png(), headers=ORIGIN)
    assert not [name for name in answer.headers if name.startswith("access-control")]
    assert api.request("OPTIONS", "/classify", headers=ASKS).status_code == 405


def test_allowed_page_may_ask_without_a_key_and_read_the_answer(run: Any, catalog: Catalog, png: Any) -> None:
    settings = Settings(api_keys=line("alice", ALICE), cors_origins="https://example.org,https://example.net")
    with run(settings, catalog) as api:
        api.wait_ready()
        asked = api.request("OPTIONS", "/classify", headers=ASKS)
        assert asked.status_code == 200
        assert asked.headers["Access-Control-Allow-Origin"] == "https://example.org"
        assert "X-API-Key" in asked.headers["Access-Control-Allow-Headers"]
        answer = api.post("/classify", content=png(), headers={**ORIGIN, "X-API-Key": ALICE})
        assert answer.status_code == 200
        assert answer.headers["Access-Control-Allow-Origin"] == "https://example.org"
        refused = api.post("/classify", content=png(), headers=ORIGIN)
        assert (refused.status_code, refused.headers["Access-Control-Allow-Origin"]) == (401, "https://example.org")
        other = api.request("OPTIONS", "/classify", headers={**ASKS, "Origin": "https://example.com"})
        assert other.status_code == 400
        assert "Access-Control-Allow-Origin" not in other.headers

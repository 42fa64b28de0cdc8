import asyncio
import io
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from models.catalog import Catalog
from service.decode import decode
from service.settings import Settings

Png = Callable[..., bytes]
PNG = {"Content-Type": "image/png"}


def problem(response: Any, status: int, code: str) -> dict[str, Any]:
    assert (response.status_code, response.json().get("code")) == (status, code), response.text
    assert response.headers["Content-Type"] == "application/problem+json"
    body: dict[str, Any] = response.json()
    assert body["request_id"] == response.headers["X-Request-ID"]
    assert body["status"] == status
    return body


def test_unknown_purifier_lists_the_known_ones(api: Any, png: Png) -> None:
    found = problem(api.post("/classify?purifier=soup", content=png()), 422, "unknown-purifier")
    assert found["known"] == ["none", "soap-dr", "soap-lc", "soap-lc-random", "soap-rp"]
    assert found["detail"] == "unknown purifier 'soup'; known: none, soap-dr, soap-lc, soap-lc-random, soap-rp"


def test_unknown_model_lists_the_known_ones(api: Any, png: Png) -> None:
    assert problem(api.post("/classify?model=imagenet", content=png()), 422, "unknown-model")["known"] == [
        "cifar10",
        "mnist",
    ]


def test_unknown_classifier_lists_the_known_ones(api: Any, png: Png) -> None:
    found = problem(api.post("/classify?classifier=vit", content=png()), 422, "unknown-classifier")
    assert found["known"] == ["plain", "toy"]


@pytest.mark.parametrize(
    ("query", "known"),
    [("model=mnist&purifier=soap-lc", ["none", "soap-dr"]), ("classifier=plain&purifier=soap-lc", ["none"])],
)
def test_purifier_that_this_model_has_not_lists_those_it_has(api: Any, png: Png, query: str, known: list[str]) -> None:
    assert problem(api.post(f"/classify?{query}", content=png()), 422, "purifier-not-offered")["known"] == known


@pytest.mark.parametrize(
    "query", ["top_k=0", "top_k=many", "seed=-1", f"seed={2**53}", "purfier=none", f"model={'x' * 65}"]
)
def test_bad_parameter_is_named_and_its_value_not_repeated(api: Any, png: Png, query: str) -> None:
    found = problem(api.post(f"/classify?{query}", content=png()), 422, "bad-parameter")
    assert found["errors"][0]["parameter"] == query.partition("=")[0]
    assert "many" not in found["detail"]


@pytest.mark.parametrize("path", ["/classify", "/purify"])
def test_no_body_is_a_problem(api: Any, path: str) -> None:
    problem(api.post(path), 400, "no-body")


def test_what_is_no_image_is_a_problem_and_not_repeated(api: Any) -> None:
    found = problem(api.post("/classify", content=b"secret bytes"), 400, "not-an-image")
    assert "secret" not in str(found)


def test_truncated_image_is_a_problem(api: Any, png: Png) -> None:
    problem(api.post("/classify", content=png()[:-900], headers=PNG), 400, "broken-image")


def test_other_format_is_a_problem_whatever_the_header_says(api: Any) -> None:
    file = io.BytesIO()
    Image.new("RGB", (32, 32)).save(file, format="GIF")
    problem(api.post("/classify", content=file.getvalue(), headers=PNG), 415, "unsupported-format")


def test_content_decides_the_format_not_the_header(api: Any, png: Png) -> None:
    assert api.post("/classify", content=png(), headers={"Content-Type": "image/jpeg"}).status_code == 200


@pytest.mark.parametrize("media_type", ["text/plain", "application/json", "video/mp4", "multipart/mixed; boundary=x"])
def test_wrong_media_type_is_a_problem(api: Any, png: Png, media_type: str) -> None:
    found = problem(
        api.post("/classify", content=png(), headers={"Content-Type": media_type}), 415, "unsupported-media-type"
    )
    assert "image/png" in found["expected"]


def test_curls_default_content_type_is_not_held_against_it(api: Any, png: Png) -> None:
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    assert api.post("/classify", content=png(), headers=headers).status_code == 200


def test_too_many_pixels_is_a_problem(api: Any, png: Png) -> None:
    found = problem(api.post("/classify", content=png(0, size=(1000, 101))), 413, "too-many-pixels")
    assert "1000x101" in found["detail"]


def test_too_many_bytes_is_a_problem(api: Any) -> None:
    assert problem(api.post("/classify", content=b"x" * 400_001), 413, "too-many-bytes")["limit"] == 400_000


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/nowhere", 404), ("GET", "/classify", 405)])
def test_no_such_path_and_method_are_problems_too(api: Any, method: str, path: str, status: int) -> None:
    problem(api.request(method, path), status, {404: "not-found", 405: "method-not-allowed"}[status])


def test_raw_and_multipart_give_the_same_answer(api: Any, png: Png) -> None:
    raw = api.post("/classify?seed=1", content=png(), headers=PNG).json()
    form = api.post("/classify?seed=1", files={"image": ("x.png", png(), "image/png")}).json()
    for reply in (raw, form):
        del reply["timings"], reply["request_id"]
    assert raw == form


def test_reply_is_complete_and_what_the_defense_says(api: Any, png: Png, catalog: Catalog) -> None:
    reply = api.post("/classify?seed=3&top_k=2", content=png()).json()
    defense = catalog.defense("cifar10", "soap-lc")
    expected = defense.purify(decode(png(), defense.card.input, 10_000)[None])
    assert (reply["model"], reply["classifier"], reply["purifier"]) == ("cifar10", "toy", "soap-lc")
    assert [each["index"] for each in reply["predictions"]] == expected.logits[0].topk(2).indices.tolist()
    assert reply["predictions"][0]["label"] == f"cifar10-{reply['predictions'][0]['index']}"
    assert reply["purification"]["epsilon"] == pytest.approx(float(expected.epsilon[0]))
    assert reply["purification"]["forward_passes"] == int(expected.forward_passes[0])
    assert reply["seed"] == 3
    assert reply["weights_sha256"] == defense.card.weights_sha256
    assert set(reply["timings"]) == {"decode_ms", "queue_ms", "purify_ms", "batch_size"}


def test_seed_is_drawn_and_told_where_none_is_given(api: Any, png: Png) -> None:
    seeds = {api.post("/classify", content=png()).json()["seed"] for _ in range(3)}
    assert len(seeds) == 3


def test_model_and_classifier_can_be_named(api: Any, png: Png) -> None:
    reply = api.post("/classify?model=mnist&purifier=soap-dr", content=png(mode="L", size=(28, 28))).json()
    assert (reply["model"], reply["classifier"]) == ("mnist", "fcn")
    reply = api.post("/classify?purifier=none&classifier=plain", content=png()).json()
    assert reply["classifier"] == "plain"


def test_top_k_beyond_the_classes_tells_all(api: Any, png: Png) -> None:
    assert len(api.post("/classify?top_k=1000", content=png()).json()["predictions"]) == 10


def test_batch_answers_each_in_order_with_a_result_or_a_problem(api: Any, png: Png) -> None:
    parts = [png(seed=1), b"junk", png(seed=2), b""]
    files = [("image", (f"{i}.png", data, "image/png")) for i, data in enumerate(parts)]
    items = api.post("/classify/batch?purifier=none", files=files).json()["items"]
    assert [item["problem"] and item["problem"]["code"] for item in items] == [None, "not-an-image", None, "no-body"]
    assert items[1]["problem"]["instance"] == "/classify/batch#1"
    for item, data in ((items[0], parts[0]), (items[2], parts[2])):
        alone = api.post("/classify?purifier=none", content=data).json()["predictions"]
        assert [each["index"] for each in item["result"]["predictions"]] == [each["index"] for each in alone]


def test_batch_item_of_a_wrong_media_type_is_its_own_problem(api: Any, png: Png) -> None:
    files = [("image", ("a.txt", b"text", "text/plain")), ("image", ("b.png", png(), "image/png"))]
    items = api.post("/classify/batch", files=files).json()["items"]
    assert items[0]["problem"]["code"] == "unsupported-media-type"
    assert items[1]["result"]["model"] == "cifar10"


def test_seed_of_a_batch_holds_for_all(api: Any, png: Png) -> None:
    files = [("image", ("a.png", png(), "image/png"))] * 2
    items = api.post("/classify/batch?seed=9", files=files).json()["items"]
    assert [item["result"]["seed"] for item in items] == [9, 9]


def test_batch_wants_a_form(api: Any, png: Png) -> None:
    problem(api.post("/classify/batch", content=png(), headers=PNG), 415, "unsupported-media-type")


def test_purify_gives_the_image_that_the_defense_makes(api: Any, png: Png, catalog: Catalog) -> None:
    response = api.post("/purify?seed=1", content=png())
    defense = catalog.defense("cifar10", "soap-lc")
    x = decode(png(), defense.card.input, 10_000)[None]
    got = decode(response.content, defense.card.input, 10_000)
    assert response.headers["Content-Type"] == "image/png"
    assert (got - defense.purify(x).image[0]).abs().max() <= 0.5001 / 255


def test_purify_tells_the_facts_in_headers(api: Any, png: Png) -> None:
    headers = api.post("/purify?seed=1", content=png()).headers
    reply = api.post("/classify?seed=1", content=png()).json()
    assert headers["X-Unperturb-Purifier"] == "soap-lc"
    assert headers["X-Unperturb-Label"] == reply["predictions"][0]["label"]
    assert float(headers["X-Unperturb-Epsilon"]) == reply["purification"]["epsilon"]
    assert headers["X-Unperturb-Seed"] == "1"
    assert headers["X-Unperturb-Weights-Sha256"] == reply["weights_sha256"]


def test_purify_leaves_out_headers_that_have_no_value(api: Any, png: Png) -> None:
    headers = api.post("/purify?purifier=none", content=png()).headers
    assert "X-Unperturb-Suspicion" not in headers
    assert headers["X-Unperturb-Linf"] == "0.0"


# What the device does to its callers.

MARK = 200 / 255


def guilty(x: Tensor) -> None:
    if bool((x[:, 0, 0, 0] == torch.tensor(MARK)).any()):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")


def test_raising_model_is_an_id_for_the_caller_and_the_cause_for_the_log(
    run: Any, hooked: Any, png: Png, caplog: pytest.LogCaptureFixture
) -> None:
    with run(Settings(), hooked(guilty)) as api:
        found = problem(api.post("/classify", content=png(200)), 500, "internal-error")
        assert api.post("/classify", content=png(10)).status_code == 200
    assert "CUDA" not in str(found)
    (record,) = [each for each in caplog.records if found["request_id"] in each.getMessage() and each.exc_info]
    assert "illegal memory access" in str(record.exc_info)


def test_guilty_image_of_a_batch_fails_alone(run: Any, hooked: Any, png: Png) -> None:
    files = [("image", (f"{value}.png", png(value), "image/png")) for value in (10, 200, 30)]
    with run(Settings(), hooked(guilty)) as api:
        items = api.post("/classify/batch", files=files).json()["items"]
    assert items[1]["problem"]["code"] == "internal-error"
    assert items[0]["result"]["purification"]["epsilon"] == pytest.approx(10 / 255)
    assert items[2]["result"]["purification"]["epsilon"] == pytest.approx(30 / 255)


class Hold:
    """Keeps the device busy with the image of value 99 until it is released."""

    def __init__(self) -> None:
        self.entered, self.released, self.seen = threading.Event(), threading.Event(), [0]

    def __call__(self, x: Tensor) -> None:
        self.seen += [round(255 * value) for value in x[:, 0, 0, 0].tolist()]
        if 99 in self.seen and not self.entered.is_set():
            self.entered.set()
            assert self.released.wait(10)


def occupy(api: Any, png: Png, busy: Hold) -> Any:
    api.wait_ready()
    future = api.portal.start_task_soon(lambda: api._client.post("/classify", content=png(99)))
    assert busy.entered.wait(5)
    return future


def test_full_queue_is_refused_with_the_time_to_come_back(run: Any, hooked: Any, png: Png) -> None:
    busy = Hold()
    settings = Settings(queue_limit_images=1, max_batch_images=1)
    with run(settings, hooked(busy)) as api:
        first = occupy(api, png, busy)
        waits = api.portal.start_task_soon(lambda: api._client.post("/classify", content=png(1)))
        while api.app.state.engine.waiting()[0] < 1:
            time.sleep(0.001)
        refused = api.post("/classify", content=png(2))
        found = problem(refused, 503, "queue-full")
        assert int(refused.headers["Retry-After"]) == found["retry_after_s"] >= 1
        problem(api.post("/classify", content=b"junk"), 503, "queue-full")  # before anybody looks at the body
        busy.released.set()
        assert first.result(5).status_code == waits.result(5).status_code == 200


def test_late_answer_is_504_and_a_late_image_never_runs(run: Any, hooked: Any, png: Png) -> None:
    busy = Hold()
    with run(Settings(timeout_ms=150), hooked(busy)) as api:
        first = occupy(api, png, busy)
        problem(api.post("/classify", content=png(55)), 504, "deadline-exceeded")
        busy.released.set()
        assert first.result(5).status_code == 504
    assert 55 not in busy.seen


def test_client_that_leaves_withdraws_its_image(run: Any, hooked: Any, png: Png) -> None:
    busy = Hold()
    with run(Settings(), hooked(busy)) as api:
        first = occupy(api, png, busy)
        engine = api.app.state.engine
        answer = api.portal.start_task_soon(lambda: leaving_client(api.app, png(66), engine))
        answer.result(5)
        busy.released.set()
        assert first.result(5).status_code == 200
    assert 66 not in busy.seen


async def leaving_client(app: Any, data: bytes, engine: Any) -> None:
    """Sends a request, waits until its image is queued, closes the connection."""
    messages = iter([{"type": "http.request", "body": data, "more_body": False}])

    async def receive() -> dict[str, Any]:
        for message in messages:
            return message
        while engine.waiting()[0] == 0:
            await asyncio.sleep(0.001)
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        pass

    scope = {
        **{"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http"},
        **{"path": "/classify", "raw_path": b"/classify", "query_string": b"", "root_path": "", "headers": []},
        **{"server": ("test", 80), "client": ("test", 1)},
    }
    await app(scope, receive, send)


def test_shutdown_answers_what_waits(run: Any, hooked: Any, png: Png) -> None:
    busy = Hold()
    with run(Settings(), hooked(busy)) as api:
        first = occupy(api, png, busy)
        waits = api.portal.start_task_soon(lambda: api._client.post("/classify", content=png(1)))
        while api.app.state.engine.waiting()[0] < 1:
            time.sleep(0.001)
        threading.Timer(0.05, busy.released.set).start()
    assert first.result(5).status_code == waits.result(5).status_code == 200


@pytest.mark.parametrize("written", ["soap-lc+soap-rp", "soap-lc%2Bsoap-rp"])
def test_a_chain_tells_what_each_of_its_purifiers_did(api: Any, png: Png, written: str) -> None:
    reply = api.post(f"/classify?purifier={written}&seed=1", content=png()).json()
    assert reply["purifier"] == "soap-lc+soap-rp"
    whole, steps = reply["purification"], reply["purification"]["steps"]
    assert [step["purifier"] for step in steps] == ["soap-lc", "soap-rp"]
    assert whole["forward_passes"] == sum(step["forward_passes"] for step in steps)
    assert whole["objective_before"] == steps[0]["objective_before"]
    assert (
        whole["suspicion"] == api.post("/classify?purifier=soap-lc", content=png()).json()["purification"]["suspicion"]
    )
    assert 0 < whole["linf"] <= steps[0]["linf"] + steps[1]["linf"] + 1e-6


def test_a_chain_whose_first_purifier_is_not_calibrated_has_no_suspicion(api: Any, png: Png) -> None:
    reply = api.post("/classify?purifier=soap-rp+soap-lc", content=png()).json()
    assert reply["purification"]["suspicion"] is None


def test_a_single_purifier_has_no_steps(api: Any, png: Png) -> None:
    reply = api.post("/classify", content=png()).json()
    assert (reply["purification"]["steps"], reply["addon_sha256"]) == (None, [])


def test_the_purified_image_of_a_chain_has_the_facts_of_the_whole(api: Any, png: Png) -> None:
    reply = api.post("/purify?purifier=soap-lc+soap-rp", content=png())
    assert reply.headers["X-Unperturb-Forward-Passes"] == "18"
    assert "X-Unperturb-Steps" not in reply.headers


def test_what_is_no_chain_is_refused(api: Any, png: Png) -> None:
    found = problem(api.post("/classify?purifier=soap-lc+none", content=png()), 422, "purifier-not-offered")
    assert "a chain has up to 3 different purifiers, without 'none'" in found["detail"]

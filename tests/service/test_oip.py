"""The routes under /v2 against the app; the client of Triton meets them in tests/integration/test_triton_client.py."""

import asyncio
import base64
import json
import struct
import threading
import time
from collections.abc import Callable
from copy import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from models.catalog import Catalog, Offer
from service.decode import decode
from service.oip import COLUMNS, version_of
from service.oip_schemas import ErrorReply, InferRequest, InferResponse
from service.settings import Settings
from service.tensors import pack_bytes

Png = Callable[..., bytes]
INFER = "/v2/models/cifar10/infer"


def files(*images: bytes, **members: Any) -> dict[str, Any]:
    """The JSON of a request with image files."""
    data = [base64.b64encode(image).decode() for image in images]
    return {"inputs": [{"name": "image", "datatype": "BYTES", "shape": [len(data)], "data": data}], **members}


def pixels(values: Any, **members: Any) -> dict[str, Any]:
    """The JSON of a request with values."""
    array = np.asarray(values)
    image = {"name": "image", "datatype": "FP32", "shape": list(array.shape), "data": array.ravel().tolist()}
    return {"inputs": [image], **members}


def outputs(response: Any) -> dict[str, Any]:
    assert response.status_code == 200, response.text
    return {
        each["name"]: each["data"] for each in InferResponse.model_validate(response.json()).model_dump()["outputs"]
    }


def error(response: Any, status: int) -> str:
    assert response.status_code == status, response.text
    assert response.headers["Content-Type"] == "application/json"
    assert list(response.json()) == ["error"]
    return ErrorReply.model_validate(response.json()).error


@pytest.fixture(scope="module")
def versions(catalog: Catalog) -> dict[str, str]:
    return {offer.classifier: version_of(offer.card) for offer in catalog.offers()}


# What there is.


def test_server_tells_its_name_version_and_extensions(api: Any) -> None:
    found = api.get("/v2").json()
    assert found["name"] == "unperturb"
    assert found["version"]
    assert found["extensions"] == ["binary_tensor_data", "parameters"]


def test_model_tells_both_forms_of_its_input_and_all_outputs(api: Any, versions: dict[str, str]) -> None:
    found = api.get("/v2/models/cifar10").json()
    assert (found["name"], found["platform"]) == ("cifar10", "pytorch_safetensors")
    assert found["versions"] == [versions["plain"], versions["toy"]]
    assert found["inputs"] == [
        {"name": "image", "datatype": "BYTES", "shape": [-1]},
        {"name": "image", "datatype": "FP32", "shape": [-1, 3, 32, 32]},
    ]
    assert {each["name"]: (each["datatype"], each["shape"]) for each in found["outputs"]} == {
        "label": ("BYTES", [-1]),
        "label_index": ("INT64", [-1]),
        "probabilities": ("FP32", [-1, 10]),
        "epsilon": ("FP32", [-1]),
        "suspicion": ("FP32", [-1]),
        "seed": ("INT64", [-1]),
        "purified": ("FP32", [-1, 3, 32, 32]),
    }


def test_metadata_are_those_of_the_classifier_that_answers(
    api: Any, catalog: Catalog, versions: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def shrunk(offer: Offer) -> Offer:
        small, made = offer.card.input.model_copy(update={"height": 16}), copy(offer)
        made.card = offer.card.model_copy(update={"input": small})
        return made

    offers = [shrunk(offer) if offer.classifier == "plain" else offer for offer in catalog.offers()]
    monkeypatch.setattr(catalog, "offers", lambda: offers)
    shapes = {
        path: api.get(f"/v2/models/cifar10{path}").json()["inputs"][1]["shape"]
        for path in ("", f"/versions/{versions['plain']}")
    }
    assert list(shapes.values()) == [[-1, 3, 32, 32], [-1, 3, 16, 32]]


def test_model_without_the_default_purifier_has_metadata_too(api: Any, versions: dict[str, str]) -> None:
    found = api.get("/v2/models/mnist").json()
    assert (found["versions"], found["inputs"][1]["shape"]) == ([versions["fcn"]], [-1, 1, 28, 28])


def test_version_of_a_model_has_metadata_and_is_ready(api: Any, versions: dict[str, str]) -> None:
    path = f"/v2/models/cifar10/versions/{versions['plain']}"
    assert api.get(path).json()["versions"] == [versions["plain"]]
    assert api.get(f"{path}/ready").json() == {"name": "cifar10", "ready": True}


def test_live_and_ready(api: Any) -> None:
    assert api.get("/v2/health/live").json() == {"live": True}
    assert api.get("/v2/health/ready").json() == {"ready": True}
    assert api.get("/v2/models/cifar10/ready").json() == {"name": "cifar10", "ready": True}


def test_index_lists_every_version(api: Any, versions: dict[str, str]) -> None:
    found = api.post("/v2/repository/index").json()
    assert {(each["name"], each["version"]) for each in found} == {
        ("cifar10", versions["plain"]),
        ("cifar10", versions["toy"]),
        ("mnist", versions["fcn"]),
    }
    assert len(found) == 3
    assert {each["state"] for each in found} == {"READY"}


@pytest.mark.parametrize(("tail", "method"), [("", "GET"), ("/ready", "GET"), ("/infer", "POST")])
def test_unknown_model_and_version_are_404_with_the_known_ones(
    api: Any, versions: dict[str, str], tail: str, method: str
) -> None:
    said = error(api.request(method, f"/v2/models/imagenet{tail}"), 404)
    assert said == "unknown model 'imagenet'; known: cifar10, mnist"
    said = error(api.request(method, f"/v2/models/mnist/versions/1{tail}"), 404)
    assert said == f"model 'mnist' has no version '1'; it has: {versions['fcn']}"
    assert "at most 64 characters" in error(api.request(method, f"/v2/models/{'x' * 65}{tail}"), 422)


def test_other_paths_and_methods_answer_in_the_protocols_shape(api: Any) -> None:
    assert "no such path" in error(api.get("/v2/models/cifar10/config"), 404)
    assert "another method" in error(api.post("/v2"), 405)
    refused = api.get(INFER)
    assert "another method" in error(refused, 405)
    assert refused.headers["Allow"] == "POST"


def test_not_ready_is_503_with_the_reason_and_when_to_come_back(run: Any, tmp_path: Any, png: Png) -> None:
    with run(Settings(zoo=(tmp_path,)), None) as api:
        while "not loaded yet" in api.get("/v2/health/ready").text:
            pass
        for method, path in [
            ("GET", "/v2/health/ready"),
            ("GET", "/v2/models/cifar10"),
            ("GET", "/v2/models/cifar10/ready"),
            ("POST", "/v2/repository/index"),
            ("POST", INFER),
        ]:
            response = api.request(method, path)
            assert "no checkpoint here" in error(response, 503)
            assert response.headers["Retry-After"] == "2"
        assert api.get("/v2/health/live").status_code == 200
        assert api.get("/v2").status_code == 200


def test_warming_service_is_not_ready_though_its_models_are_known(run: Any, hooked: Any) -> None:
    go = threading.Event()
    with run(Settings(), hooked(lambda x: go.wait(10) and None)) as api:
        while "not loaded" in api.get("/v2/health/ready").text:
            pass
        for method, path in [("GET", "/v2/models/cifar10/ready"), ("POST", "/v2/repository/index")]:
            assert "warming cifar10/soap-lc" in error(api.request(method, path), 503)
        assert api.get("/v2/models/cifar10").status_code == 200
        go.set()
        api.wait_ready()


# Answers.


def test_file_gets_the_answer_of_classify(api: Any, png: Png) -> None:
    reply = api.post("/classify?seed=1&top_k=10", content=png()).json()
    response = api.post(INFER, json=files(png(), parameters={"seed": 1}, id="mine"))
    found, told = outputs(response), response.json()
    best = reply["predictions"][0]
    by_index = sorted(reply["predictions"], key=lambda each: each["index"])
    assert (told["id"], told["model_name"], told["model_version"]) == ("mine", "cifar10", reply["weights_sha256"][:12])
    assert told["parameters"] == {"classifier": "toy", "purifier": "soap-lc"}
    assert (found["label"], found["label_index"], found["seed"]) == ([best["label"]], [best["index"]], [1])
    assert found["probabilities"] == pytest.approx([each["probability"] for each in by_index])
    assert found["epsilon"] == pytest.approx([reply["purification"]["epsilon"]])
    assert found["suspicion"] == pytest.approx([reply["purification"]["suspicion"]])


def test_values_get_the_answer_of_the_file_that_they_come_from(api: Any, png: Png, catalog: Catalog) -> None:
    spec = catalog.defense("cifar10", "none").card.input
    values = decode(png(), spec, 10_000).numpy()
    as_file = outputs(api.post(INFER, json=files(png(), parameters={"seed": 1})))
    as_values = outputs(api.post(INFER, json=pixels([values], parameters={"seed": 1})))
    assert as_values == as_file


def test_images_are_answered_in_their_order(run: Any, catalog: Catalog, png: Png) -> None:
    with run(Settings(probability_digits=7), catalog) as api:
        api.wait_ready()
        _check_order(api, png)


def _check_order(api: Any, png: Png) -> None:
    images = [png(seed=seed) for seed in range(4)]
    together = outputs(api.post(INFER, json=files(*images, parameters={"purifier": "none"})))
    alone = [outputs(api.post(INFER, json=files(image, parameters={"purifier": "none"}))) for image in images]
    got = np.reshape(together["probabilities"], (4, 10))
    np.testing.assert_allclose(got, [each["probabilities"] for each in alone], atol=1e-5)
    assert len(np.unique(got.round(6), axis=0)) == 4
    assert len(set(together["seed"])) == 4  # each drew its own


def test_outputs_are_those_that_are_named_in_that_order(api: Any, png: Png) -> None:
    wanted = [{"name": "purified"}, {"name": "label"}]
    found = outputs(api.post(INFER, json=files(png(), outputs=wanted)))
    assert list(found) == ["purified", "label"]
    assert len(found["purified"]) == 3 * 32 * 32


def test_purified_image_is_what_the_defense_makes_and_only_sent_on_request(
    api: Any, png: Png, catalog: Catalog
) -> None:
    defense = catalog.defense("cifar10", "soap-lc")
    expected = defense.purify(decode(png(), defense.card.input, 10_000)[None]).image.flatten().tolist()
    assert outputs(api.post(INFER, json=files(png(), outputs=[{"name": "purified"}])))["purified"] == expected
    assert set(outputs(api.post(INFER, json=files(png())))) == set(COLUMNS) - {"purified"}


def test_purifier_without_an_objective_has_no_suspicion(api: Any, png: Png) -> None:
    none = {"purifier": "none", "binary_data_output": True}
    wanted = [{"name": "suspicion", "parameters": {"binary_data": False}}, {"name": "suspicion"}]
    in_json, behind = (api.post(INFER, json=files(png(), parameters=none, outputs=[each])) for each in wanted)
    assert outputs(in_json)["suspicion"] == [None]
    assert behind.content[-4:] == struct.pack("<f", float("nan"))


def test_binary_outputs_follow_the_json(api: Any, png: Png) -> None:
    wanted = [
        {"name": "label_index", "parameters": {"binary_data": True}},
        {"name": "seed"},
        {"name": "label", "parameters": {"binary_data": True}},
    ]
    response = api.post(INFER, json=files(png(), parameters={"seed": 5}, outputs=wanted))
    size = int(response.headers["Inference-Header-Content-Length"])
    index, seed, label = json.loads(response.content[:size])["outputs"]
    assert response.headers["Content-Type"] == "application/octet-stream"
    assert (index["parameters"], seed["data"]) == ({"binary_data_size": 8}, [5])
    (number,) = struct.unpack_from("<q", response.content, size)
    assert response.content[size + 8 :] == pack_bytes([f"cifar10-{number}".encode()])
    assert label["parameters"] == {"binary_data_size": len(response.content) - size - 8}


def test_binary_inputs_follow_the_json(api: Any, png: Png) -> None:
    raw, seed = pack_bytes([png()]), {"seed": 1}
    image = {"name": "image", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": len(raw)}}
    text = json.dumps({"inputs": [image], "parameters": seed}).encode()
    headers = {"Inference-Header-Content-Length": str(len(text))}
    found = outputs(api.post(INFER, content=text + raw, headers=headers))
    assert found == outputs(api.post(INFER, json=files(png(), parameters=seed)))


def test_parameters_choose_as_those_of_classify(api: Any, png: Png) -> None:
    named = {"purifier": "none", "classifier": "plain"}
    assert api.post(INFER, json=files(png(), parameters=named)).json()["parameters"] == {**named}
    mnist = api.post("/v2/models/mnist/infer", json=files(png(), parameters={"purifier": "soap-dr"})).json()
    assert mnist["parameters"] == {"classifier": "fcn", "purifier": "soap-dr"}


def test_version_pins_the_classifier(api: Any, png: Png, versions: dict[str, str]) -> None:
    path = f"/v2/models/cifar10/versions/{versions['plain']}/infer"
    reply = api.post(path, json=files(png(), parameters={"purifier": "none"})).json()
    assert (reply["model_version"], reply["parameters"]["classifier"]) == (versions["plain"], "plain")
    assert "it has: none" in error(api.post(path, json=files(png())), 422)  # no soap-lc, the default
    other = files(png(), parameters={"purifier": "none", "classifier": "toy"})
    assert f"'toy', but version '{versions['plain']}' is plain" in error(api.post(path, json=other), 422)


# Errors.


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"purfier": "none"}, "purfier: Extra inputs are not permitted"),
        ({"seed": -1}, "seed: Input should be greater than or equal to 0"),
        ({"purifier": "soup"}, "unknown purifier 'soup'; known: none, soap-dr, soap-lc, soap-lc-random, soap-rp"),
        ({"classifier": "vit"}, "model 'cifar10' has no classifier 'vit'; it has: plain, toy"),
        (
            {"classifier": "plain"},
            "model 'cifar10' with classifier 'plain' has no purifier 'soap-lc' (soap-lc goes with toy); it has: none",
        ),
        ({"model": "mnist"}, "model: 'mnist', but the path says 'cifar10'; leave it out"),
    ],
)
def test_wrong_parameter_is_told_as_elsewhere(api: Any, png: Png, parameters: dict[str, Any], said: str) -> None:
    assert error(api.post(INFER, json=files(png(), parameters=parameters)), 422) == said


@pytest.mark.parametrize(
    ("datatype", "shape"),
    [
        ("FP32", [1, 3, 28, 28]),
        ("FP32", [1, 32, 32, 3]),
        ("FP32", [3, 32, 32]),
        ("FP32", []),
        ("FP32", [1]),
        ("BYTES", [1, 1]),
        ("BYTES", []),
        ("UINT8", [1, 3, 32, 32]),
    ],
)
def test_wrong_shape_or_datatype_says_what_came_and_what_is_expected(api: Any, datatype: str, shape: list[int]) -> None:
    image = {"name": "image", "datatype": datatype, "shape": shape, "data": []}
    said = error(api.post(INFER, json={"inputs": [image]}), 400)
    assert said.startswith(f"image: {datatype} of shape {shape}; expected BYTES of shape [N]")
    assert "FP32 of shape [N, 3, 32, 32]" in said


def test_values_outside_their_range_are_refused(api: Any) -> None:
    said = error(api.post(INFER, json=pixels(np.full((1, 3, 32, 32), 255.0))), 400)
    assert said == "image: values from 255 to 255; expected 0 to 1: divide 8-bit values by 255"


def test_number_of_images_is_limited(api: Any, png: Png) -> None:
    assert error(api.post(INFER, json=files(*[png()] * 5)), 413).startswith("image: 5 elements; expected 1 to 4")
    assert error(api.post(INFER, json=files()), 400).startswith("image: 0 elements")


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        (["logits"], "unknown output 'logits'; known: label, label_index, probabilities"),
        (["purified", "purified"], "an output is named twice in: purified, purified"),
    ],
)
def test_unknown_or_repeated_output_is_refused(api: Any, png: Png, wanted: list[str], said: str) -> None:
    request = files(png(), outputs=[{"name": name} for name in wanted])
    assert error(api.post(INFER, json=request), 400).startswith(said)


def test_other_input_is_refused(api: Any, png: Png) -> None:
    request = files(png())
    request["inputs"][0]["name"] = "input0"
    assert error(api.post(INFER, json=request), 400) == "unknown input 'input0'; expected 'image'"


def test_body_that_is_no_json_is_refused_and_not_repeated(api: Any) -> None:
    said = error(api.post(INFER, content=b"secret"), 400)
    assert "Invalid JSON" in said
    assert "secret" not in said


def test_body_above_the_limit_is_refused(api: Any) -> None:
    assert "larger than 400000 bytes" in error(api.post(INFER, content=b"x" * 400_001), 413)


def test_compressed_body_is_refused(api: Any) -> None:
    said = error(api.post(INFER, content=b"x", headers={"Content-Encoding": "gzip"}), 415)
    assert said == "Content-Encoding 'gzip'; expected none: send the body uncompressed"


@pytest.mark.parametrize(
    ("broken", "status", "said"),
    [
        (b"junk", 400, "4 bytes that are not an image"),
        (b"GIF89a...", 415, "the image is GIF"),
        (b"", 400, "got 0 bytes"),
    ],
)
def test_failing_image_fails_the_request_and_is_named(
    api: Any, png: Png, broken: bytes, status: int, said: str
) -> None:
    assert error(api.post(INFER, json=files(png(), png(), broken)), status).startswith(f"image[2]: {said}")


def test_raising_model_is_named_and_its_cause_only_logged(
    run: Any, hooked: Any, png: Png, caplog: pytest.LogCaptureFixture
) -> None:
    def guilty(x: Tensor) -> None:
        if bool((x[:, 0, 0, 0] == torch.tensor(200 / 255)).any()):
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    with run(Settings(), hooked(guilty)) as api:
        response = api.post(INFER, json=files(png(10), png(200)), headers={"X-Request-ID": "guilty-1"})
    assert error(response, 500).startswith("image[1]: something failed here")
    assert response.headers["X-Request-ID"] == "guilty-1"
    (record,) = [each for each in caplog.records if "guilty-1" in each.getMessage() and each.exc_info]
    assert "illegal memory access" in str(record.exc_info)


# What the device, the queue and the client do meanwhile.


class Hold:
    """Keeps the device busy with the image of value 99 until it is released."""

    def __init__(self) -> None:
        self.entered, self.released = threading.Event(), threading.Event()
        self.seen: list[int] = []

    def __call__(self, x: Tensor) -> None:
        self.seen += (255 * x[:, 0, 0, 0]).round().int().tolist()
        if 99 in self.seen and not self.entered.is_set():
            self.entered.set()
            assert self.released.wait(10)


def occupy(api: Any, png: Png, hold: Hold) -> Any:
    api.wait_ready()
    future = api.portal.start_task_soon(lambda: api._client.post(INFER, json=files(png(99))))
    assert hold.entered.wait(5)
    return future


async def talk(app: Any, receive: Callable[[], Any]) -> list[dict[str, Any]]:
    """One request to INFER, whose messages `receive` gives; what was answered."""
    sent: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    scope = {
        **{"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http"},
        **{"path": INFER, "raw_path": INFER.encode(), "query_string": b"", "root_path": "", "headers": []},
        **{"server": ("test", 80), "client": ("test", 1)},
    }
    await asyncio.wait_for(app(scope, receive, send), timeout=20)
    return sent


def test_failing_image_withdraws_its_neighbours(run: Any, hooked: Any, png: Png) -> None:
    hold = Hold()
    with run(Settings(), hooked(hold)) as api:
        first = occupy(api, png, hold)
        assert "image[1]" in error(api.post(INFER, json=files(png(66), b"junk", png(67))), 400)
        hold.released.set()
        assert first.result(5).status_code == 200
    assert not {66, 67} & set(hold.seen)


def test_client_that_leaves_withdraws_its_images(run: Any, hooked: Any, png: Png) -> None:
    hold = Hold()
    with run(Settings(), hooked(hold)) as api:
        first = occupy(api, png, hold)
        engine = api.app.state.engine
        messages = [{"type": "http.request", "body": json.dumps(files(png(66), png(67))).encode()}]

        async def receive() -> dict[str, Any]:
            if messages:
                return messages.pop()
            while engine.waiting()[0] < 2:
                await asyncio.sleep(0.001)
            return {"type": "http.disconnect"}

        api.portal.start_task_soon(talk, api.app, receive).result(5)
        hold.released.set()
        assert first.result(5).status_code == 200
    assert not {66, 67} & set(hold.seen)


def test_full_queue_is_refused_with_the_time_to_come_back(run: Any, hooked: Any, png: Png) -> None:
    hold = Hold()
    with run(Settings(queue_limit_images=1, max_batch_images=1), hooked(hold)) as api:
        first = occupy(api, png, hold)
        waits = api.portal.start_task_soon(lambda: api._client.post(INFER, json=files(png(1))))
        while api.app.state.engine.waiting()[0] < 1:
            pass
        refused = api.post(INFER, json=files(png(2)))
        assert "1 images wait" in error(refused, 503)
        assert int(refused.headers["Retry-After"]) >= 1
        hold.released.set()
        assert first.result(5).status_code == waits.result(5).status_code == 200


def test_late_answer_is_504_and_late_images_never_run(run: Any, hooked: Any, png: Png) -> None:
    hold = Hold()
    with run(Settings(timeout_ms=150), hooked(hold)) as api:
        first = occupy(api, png, hold)
        assert "no answer within 150 ms" in error(api.post(INFER, json=files(png(55))), 504)
        hold.released.set()
        assert first.result(5).status_code == 504
    assert 55 not in hold.seen


def test_upload_that_never_ends_is_408(run: Any, catalog: Catalog) -> None:
    messages = [{"type": "http.request", "body": b"{", "more_body": True}]

    async def receive() -> dict[str, Any]:
        if messages:
            return messages.pop()
        await asyncio.Event().wait()
        raise AssertionError

    with run(Settings(timeout_ms=100), catalog) as api:
        api.wait_ready()
        start, content = api.portal.call(talk, api.app, receive)
    assert start["status"] == 408
    assert "not complete after 100 ms" in json.loads(content["body"])["error"]


def test_deadline_counts_from_the_arrival_not_from_the_end_of_the_upload(
    run: Any, catalog: Catalog, png: Png, monkeypatch: pytest.MonkeyPatch
) -> None:
    messages = [{"type": "http.request", "body": json.dumps(files(png(), parameters={"purifier": "none"})).encode()}]
    uploading, deadlines = [], []

    async def receive() -> dict[str, Any]:
        if messages:
            uploading.append(time.monotonic())
            return messages.pop()
        await asyncio.Event().wait()
        raise AssertionError

    with run(Settings(), catalog) as api:
        api.wait_ready()
        engine = api.app.state.engine
        answer = engine.answer
        monkeypatch.setattr(engine, "answer", lambda *asked: deadlines.append(asked[2]) or answer(*asked))
        assert api.portal.call(talk, api.app, receive)[0]["status"] == 200
        assert deadlines[0].arrived <= uploading[0]


def test_request_has_its_line_in_the_log(api: Any, png: Png, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="service.middleware"):
        api.post(INFER, json=files(png(), png(), parameters={"purifier": "none"}), headers={"X-Request-ID": "line"})
    (line,) = [each.getMessage() for each in caplog.records if "request_id=line" in each.getMessage()]
    assert "method=POST path=/v2/models/cifar10/infer" in line
    assert "model=cifar10 purifier=none images=2" in line


# The OpenAPI page.


@pytest.fixture(scope="module")
def page(api: Any) -> dict[str, Any]:
    found: dict[str, Any] = api.get("/openapi.json").json()
    return found


def test_every_route_has_a_summary_and_the_protocols_errors(page: dict[str, Any]) -> None:
    routes = [route for path, item in page["paths"].items() if path.startswith("/v2") for route in item.values()]
    assert len(routes) == 10
    for route in routes:
        assert route["summary"]
        assert route["description"]
        for status, response in route["responses"].items():
            if status != "200":
                assert list(response["content"]) == ["application/json"]
                for example in response["content"]["application/json"]["examples"].values():
                    ErrorReply.model_validate(example["value"])


@pytest.mark.parametrize("path", ["/v2/models/{model}/infer", "/v2/models/{model}/versions/{version}/infer"])
def test_body_and_answer_of_infer_are_declared_with_valid_examples(page: dict[str, Any], path: str) -> None:
    route = page["paths"][path]["post"]
    request, response = (
        part["content"]["application/json"] for part in (route["requestBody"], route["responses"]["200"])
    )
    assert {"400", "404", "408", "413", "415", "422", "500", "503", "504"} <= set(route["responses"])
    assert InferRequest.model_validate(request["example"]).inputs[0].name == "image"
    assert InferResponse.model_validate(response["example"]).outputs
    assert response["schema"] == {"$ref": "#/components/schemas/InferResponse"}
    assert request["schema"]["properties"]["inputs"]["items"]["properties"]["shape"]["type"] == "array"
    assert "$ref" not in json.dumps(request["schema"])

"""Triton's own client against a real server: what docs/open-inference-protocol.md promises it."""

import base64
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput, InferResult
from tritonclient.utils import InferenceServerException

from models.catalog import Catalog
from service.decode import decode

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "open-inference-protocol.md"
SAMPLE = ROOT / "samples" / "cifar10-clean-automobile-2002.png"
OUTPUTS = {"label", "label_index", "probabilities", "epsilon", "suspicion", "seed"}


@pytest.fixture
def client(url: str) -> Iterator[InferenceServerClient]:
    with InferenceServerClient(url.removeprefix("http://")) as found:
        yield found


@pytest.fixture(scope="module")
def image(catalog: Catalog) -> np.ndarray[Any, Any]:
    """The sample as the model sees it, (C, H, W)."""
    return decode(SAMPLE.read_bytes(), catalog.defense("cifar10", "none").card.input, 10_000).numpy()


def as_input(array: np.ndarray[Any, Any], datatype: str, binary: bool = True) -> InferInput:
    return InferInput("image", list(array.shape), datatype).set_data_from_numpy(array, binary_data=binary)


def sample(datatype: str, binary: bool, image: np.ndarray[Any, Any]) -> InferInput:
    if datatype == "FP32":
        return as_input(image[None], "FP32", binary)
    data = SAMPLE.read_bytes()
    return as_input(np.array([data if binary else base64.b64encode(data)], object), "BYTES", binary)


def plain(result: InferResult, name: str) -> list[Any]:
    """An output as a list, BYTES as text."""
    found = result.as_numpy(name).tolist()
    return [each.decode() if isinstance(each, bytes) else each for each in found]


def test_server_and_models_are_live_and_ready(client: InferenceServerClient) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("cifar10")
    assert not client.is_model_ready("imagenet")
    assert not client.is_model_ready("cifar10", "1")


def test_metadata_of_the_server_and_of_a_model(client: InferenceServerClient) -> None:
    assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
    found = client.get_model_metadata("cifar10")
    assert {each["datatype"]: each["shape"] for each in found["inputs"]} == {"BYTES": [-1], "FP32": [-1, 3, 32, 32]}
    (version,) = found["versions"]
    assert client.get_model_metadata("cifar10", version) == found
    assert client.is_model_ready("cifar10", version)


def test_index_lists_the_models(client: InferenceServerClient) -> None:
    assert [each["name"] for each in client.get_model_repository_index()] == ["cifar10", "mnist"]


@pytest.mark.parametrize("datatype", ["BYTES", "FP32"])
@pytest.mark.parametrize("binary_in", [True, False], ids=["binary in", "JSON in"])
@pytest.mark.parametrize("binary_out", [True, False], ids=["binary out", "JSON out"])
def test_sample_gets_the_answer_of_classify(
    client: InferenceServerClient,
    url: str,
    image: np.ndarray[Any, Any],
    datatype: str,
    binary_in: bool,
    binary_out: bool,
) -> None:
    query = {"purifier": "soap-lc", "seed": 1, "top_k": 10}
    reply = httpx.post(f"{url}/classify", params=query, content=SAMPLE.read_bytes()).json()
    wanted = [InferRequestedOutput(name, binary_data=binary_out) for name in OUTPUTS]
    asked = {"purifier": "soap-lc", "seed": 1}
    result = client.infer("cifar10", [sample(datatype, binary_in, image)], outputs=wanted, parameters=asked)
    best = reply["predictions"][0]
    assert plain(result, "label") == [best["label"]]
    assert plain(result, "label_index") == [best["index"]]
    assert plain(result, "seed") == [1]
    assert plain(result, "epsilon") == pytest.approx([reply["purification"]["epsilon"]])
    assert np.isnan(result.as_numpy("suspicion")).all()  # this card has no calibration
    probabilities = result.as_numpy("probabilities")
    assert (probabilities.shape, probabilities.dtype) == ((1, 10), np.float32)
    by_index = sorted(reply["predictions"], key=lambda each: each["index"])
    assert probabilities[0].tolist() == pytest.approx([each["probability"] for each in by_index], abs=1e-6)


def test_everything_but_the_purified_image_comes_where_nothing_is_named(
    client: InferenceServerClient, image: np.ndarray[Any, Any]
) -> None:
    response = client.infer("cifar10", [as_input(image[None], "FP32")], request_id="42").get_response()
    assert response["id"] == "42"
    assert {each["name"] for each in response["outputs"]} == OUTPUTS


def test_purified_batch_stays_within_the_budget(client: InferenceServerClient, image: np.ndarray[Any, Any]) -> None:
    batch = np.stack([image, image[:, ::-1], image[..., ::-1]])
    wanted = [InferRequestedOutput(name) for name in ("purified", "epsilon")]
    result = client.infer("cifar10", [as_input(batch, "FP32")], outputs=wanted)
    change = np.abs(result.as_numpy("purified") - batch).reshape(3, -1).max(axis=1)
    assert (change <= result.as_numpy("epsilon") + 1e-6).all()


def test_version_of_the_metadata_can_be_asked(client: InferenceServerClient, image: np.ndarray[Any, Any]) -> None:
    (version,) = client.get_model_metadata("cifar10")["versions"]
    result = client.infer("cifar10", [as_input(image[None], "FP32")], model_version=version)
    assert result.get_response()["model_version"] == version


@pytest.mark.parametrize("shape", [(1, 3, 28, 28), (1, 32, 32, 3), (3, 32, 32)])
def test_wrong_shape_raises_with_what_is_expected(client: InferenceServerClient, shape: tuple[int, ...]) -> None:
    with pytest.raises(InferenceServerException, match=r"expected .* FP32 of shape \[N, 3, 32, 32\]") as caught:
        client.infer("cifar10", [as_input(np.zeros(shape, np.float32), "FP32")])
    assert caught.value.status() == "400"


def test_what_is_not_supported_raises_a_readable_error(client: InferenceServerClient) -> None:
    with pytest.raises(InferenceServerException, match="no such path"):
        client.get_model_config("cifar10")
    image = as_input(np.zeros((1, 3, 32, 32), np.float32), "FP32")
    with pytest.raises(InferenceServerException, match="send the body uncompressed"):
        client.infer("cifar10", [image], request_compression_algorithm="gzip")
    with pytest.raises(InferenceServerException, match="timeout: Extra inputs are not permitted"):
        client.infer("cifar10", [image], timeout=1000)


def test_the_pages_snippet_runs(
    client: InferenceServerClient, url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (snippet,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.S)
    monkeypatch.chdir(ROOT)
    exec(snippet.replace("127.0.0.1:8000", url.removeprefix("http://")), {})
    assert re.fullmatch(r"\[b'\d'\] 0\.\d+\n|\[b'\d'\] 1\.0\n", capsys.readouterr().out)


def test_the_page_lists_the_outputs_of_the_metadata(client: InferenceServerClient) -> None:
    rows = re.findall(r"^\| `(\w+)` \| `(\w+)` \| `\[(.*?)\]` \|", PAGE.read_text(), flags=re.M)
    sizes = {"N": -1, "K": 10, "C": 3, "H": 32, "W": 32}
    listed = [
        {"name": name, "datatype": kind, "shape": [sizes[d] for d in dims.split(", ")]} for name, kind, dims in rows
    ]
    assert client.get_model_metadata("cifar10")["outputs"] == listed

"""The wire format against hand-made bytes, against the client's own code, and against damage."""

import base64
import json
import random
import struct
from typing import Any

import numpy as np
import pytest
from tritonclient.http import InferenceServerClient, InferInput, InferResult
from tritonclient.utils import deserialize_bytes_tensor, serialize_byte_tensor

from service.errors import MalformedInference
from service.oip_schemas import InputTensor
from service.tensors import Output, encode, pack_bytes, parse, read_bytes, read_floats, unpack_bytes

NOTHING = memoryview(b"")


def bytes_tensor(shape: list[int], **fields: Any) -> InputTensor:
    return InputTensor(name="image", datatype="BYTES", shape=shape, **fields)


def floats(shape: list[int], **fields: Any) -> InputTensor:
    return InputTensor(name="image", datatype="FP32", shape=shape, **fields)


def body(**members: Any) -> bytes:
    image = {"name": "image", "shape": [1], "datatype": "BYTES", "data": [""]}
    return json.dumps({"inputs": [image], **members}).encode()


def some_bytes(seed: int) -> list[bytes]:
    generator = random.Random(seed)
    return [
        generator.randbytes(generator.choice([0, 1, 3, 4, 5, 255, 256, 70_000])) for _ in range(generator.randrange(6))
    ]


def test_binary_form_is_length_and_bytes() -> None:
    assert pack_bytes([b"ab", b"", b"c"]) == b"\x02\0\0\0ab" + b"\0\0\0\0" + b"\x01\0\0\0c"


@pytest.mark.parametrize("seed", range(20))
def test_packed_bytes_come_back_and_are_what_the_client_packs(seed: int) -> None:
    elements = some_bytes(seed)
    packed = pack_bytes(elements)
    assert unpack_bytes(memoryview(packed), len(elements)) == elements
    if elements:
        assert packed == serialize_byte_tensor(np.array(elements, object)).item()
        assert deserialize_bytes_tensor(packed).tolist() == elements


@pytest.mark.parametrize("seed", range(20))
def test_no_damage_to_packed_bytes_goes_unseen_or_reads_past_the_end(seed: int) -> None:
    elements = [*some_bytes(seed), b"last"]
    packed = pack_bytes(elements)
    for damaged in (packed[:-1], packed + b"x", packed[:3], b""):
        with pytest.raises(MalformedInference):
            unpack_bytes(memoryview(damaged), len(elements))
    for count in (len(elements) - 1, len(elements) + 1, 2**31):
        with pytest.raises(MalformedInference):
            unpack_bytes(memoryview(packed), count)


def test_length_beyond_the_data_is_refused() -> None:
    with pytest.raises(MalformedInference, match="end inside element 0; expected 1 elements"):
        unpack_bytes(memoryview(struct.pack("<I", 2**32 - 1) + b"x"), 1)


def test_request_of_the_client_is_read() -> None:
    image = InferInput("image", [2], "BYTES").set_data_from_numpy(np.array([b"\xff\xd8", b"\0"], object))
    sent, size = InferenceServerClient.generate_request_body([image], request_id="7", parameters={"seed": 1})
    asked, binary = parse(sent, str(size))
    assert (asked.id, asked.parameters) == ("7", {"binary_data_output": True, "seed": 1})
    assert read_bytes(asked.inputs[0], binary) == [b"\xff\xd8", b"\0"]


@pytest.mark.parametrize("as_binary", [True, False])
def test_floats_of_the_client_are_read_bit_for_bit(as_binary: bool) -> None:
    values = np.random.default_rng(0).random((2, 3, 4, 5), np.float32)
    image = InferInput("image", [2, 3, 4, 5], "FP32").set_data_from_numpy(values, binary_data=as_binary)
    sent, size = InferenceServerClient.generate_request_body([image])
    asked, binary = parse(sent, None if size is None else str(size))
    got = read_floats(asked.inputs[0], binary)
    assert (got.dtype, got.tobytes()) == (np.float32, values.tobytes())
    assert got.flags.writeable  # torch warns of others


@pytest.mark.parametrize("data", [[0, 0.25, 0.5, 1], [[0, 0.25], [0.5, 1.0]]])
def test_json_numbers_may_be_flat_or_nested(data: list[Any]) -> None:
    assert read_floats(floats([2, 2], data=data), NOTHING).tolist() == [[0, 0.25], [0.5, 1]]


def test_json_bytes_are_base64() -> None:
    data = [base64.b64encode(b"\xff\0").decode(), ""]
    assert read_bytes(bytes_tensor([2], data=data), NOTHING) == [b"\xff\0", b""]


@pytest.mark.parametrize("text", ["é", "a", "ab=c", "Y Q==", "YQ==!", 3, None, ["YQ=="]])
def test_what_is_no_base64_is_named(text: Any) -> None:
    with pytest.raises(MalformedInference, match=r"^image\[1\]: no base64"):
        read_bytes(bytes_tensor([2], data=["YQ==", text]), NOTHING)


@pytest.mark.parametrize("data", [[], ["YQ=="], ["YQ=="] * 3])
def test_number_of_strings_is_that_of_the_shape(data: list[str]) -> None:
    with pytest.raises(MalformedInference, match=rf"{len(data)} strings; expected 2"):
        read_bytes(bytes_tensor([2], data=data), NOTHING)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1e-7, 1.0000001, 255.0])
@pytest.mark.parametrize("as_binary", [True, False])
def test_value_outside_0_to_1_is_refused(value: float, as_binary: bool) -> None:
    data = {"parameters": {"binary_data_size": 8}} if as_binary else {"data": [0.5, value]}
    binary = memoryview(struct.pack("<2f", 0.5, value) if as_binary else b"")
    with pytest.raises(MalformedInference, match=r"values from .* to .*; expected 0 to 1: divide"):
        read_floats(floats([2], **data), binary)


@pytest.mark.parametrize(
    "data", [["x"] * 4, [{}] * 4, [[0, 1], [0]], [10**400] * 4, [[[[0]]]] * 3, [0.5] * 3, [0.5] * 5, [[0, 0, 0, 0]]]
)
def test_data_that_do_not_make_the_shape_are_refused(data: list[Any]) -> None:
    with pytest.raises(MalformedInference, match="image: "):
        read_floats(floats([2, 2], data=data), NOTHING)


def test_one_long_text_does_not_take_the_memory_of_many() -> None:
    with pytest.raises(MalformedInference, match="not numbers"):
        read_floats(floats([100_000], data=["x" * 10_000_000, *[0] * 99_999]), NOTHING)


@pytest.mark.parametrize("size", [0, 15, 17])
def test_binary_floats_have_four_bytes_each(size: int) -> None:
    tensor = floats([2, 2], parameters={"binary_data_size": size})
    with pytest.raises(MalformedInference, match=rf"{size} bytes; expected 16 for the shape \[2, 2\]"):
        read_floats(tensor, memoryview(bytes(size)))


@pytest.mark.parametrize(
    ("fields", "binary"),
    [
        ({}, b""),
        ({"data": ["YQ=="], "parameters": {"binary_data_size": 5}}, b"\1\0\0\0a"),
        ({"parameters": {"binary_data_size": 5}}, b""),
        ({"parameters": {"binary_data_size": 5}}, b"\1\0\0\0ab"),
        ({"data": ["YQ=="]}, b"more"),
    ],
)
def test_data_come_once_and_as_long_as_they_say(fields: Any, binary: bytes) -> None:
    with pytest.raises(MalformedInference, match="binary_data_size"):
        read_bytes(bytes_tensor([1], **fields), memoryview(binary))


@pytest.mark.parametrize("length", ["", "-1", "1e2", "x", "9" * 5000, "²", "1000"])
def test_impossible_header_length_is_refused(length: str) -> None:
    with pytest.raises(MalformedInference, match="Inference-Header-Content-Length is no number from 0 to"):
        parse(body(), length)


@pytest.mark.parametrize(
    ("sent", "said"),
    [
        (b"", "Invalid JSON"),
        (b"\xff", "Invalid JSON"),
        (b"[" * 100_000, "Invalid JSON"),
        (b"[]", "should be an object"),
        (b"{}", "inputs: Field required"),
        (body(inputs=[]), "inputs: List should have at least 1 item"),
        (body(output=[]), "output: Extra inputs are not permitted"),
        (body(outputs=[{"name": "label", "parameters": {"classification": 3}}]), "classification: Extra inputs"),
        (body(parameters={"a": {}}), "parameters.a"),
        (body(parameters={str(i): 0 for i in range(33)}), "at most 32 items"),
        (body(inputs=[{"name": "image", "shape": [-1], "datatype": "BYTES"}]), "inputs.0.shape.0"),
    ],
)
def test_json_that_is_no_request_says_where(sent: bytes, said: str) -> None:
    with pytest.raises(MalformedInference, match=said):
        parse(sent, None)


def test_many_errors_and_long_names_make_a_short_message() -> None:
    with pytest.raises(MalformedInference) as caught:
        parse(body(**{"x" * 10_000 + str(i): 0 for i in range(100)}), None)
    assert len(caught.value.detail) < 1000
    assert caught.value.detail.endswith("and 95 more")


def test_shared_memory_is_refused_by_name() -> None:
    image = InferInput("image", [1], "BYTES")
    image.set_shared_memory("region", 64)
    with pytest.raises(MalformedInference, match="shared_memory_region: Extra inputs are not permitted"):
        parse(InferenceServerClient.generate_request_body([image])[0], None)


ARRAYS = {
    "label": np.array(["cat", "Flugzeug ✈", ""], object),
    "label_index": np.array([3, 0, 2**53 - 1], np.int64),
    "probabilities": np.random.default_rng(0).random((3, 2), np.float32),
    "suspicion": np.array([np.nan, 0.0, 99.5], np.float32),
}


@pytest.mark.parametrize("seed", range(8))
def test_client_reads_what_was_encoded_binary_or_not(seed: int) -> None:
    generator = random.Random(seed)
    outputs = [Output(name, ARRAYS[name], generator.random() < 0.5) for name in generator.sample(list(ARRAYS), 3)]
    sent, size = encode({"model_name": "m"}, outputs)
    result = InferResult.from_response_body(sent, header_length=size)
    assert (size is None) == (not any(output.binary for output in outputs))
    for output in outputs:
        got = result.as_numpy(output.name)
        if output.name == "label" and output.binary:
            got = np.array([each.decode() for each in got], object)
        np.testing.assert_array_equal(got, output.values)


def test_json_has_null_for_nan() -> None:
    sent, _ = encode({}, [Output("suspicion", ARRAYS["suspicion"], False)])
    assert json.loads(sent, parse_constant=pytest.fail)["outputs"] == [
        {"name": "suspicion", "datatype": "FP32", "shape": [3], "data": [None, 0.0, 99.5]}
    ]


def test_binary_is_little_endian_and_in_the_order_of_the_json() -> None:
    big = np.array([1, 2], ">i8")
    sent, size = encode({}, [Output("b", big, True), Output("a", np.array(["x"], object), True)])
    assert sent[size:] == struct.pack("<2q", 1, 2) + b"\1\0\0\0x"
    assert [each["parameters"]["binary_data_size"] for each in json.loads(sent[:size])["outputs"]] == [16, 5]

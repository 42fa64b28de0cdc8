"""The wire format of the Open Inference Protocol, version 2: JSON, after which binary tensors may follow.

Binary tensors are little-endian and row-major; an element of BYTES is a 4-byte length and that many bytes. In JSON, BYTES
that come are base64, since a JSON string can't hold a file; BYTES that leave are text. JSON has no NaN: null stands for it.
"""

import base64
import binascii
import json
import math
import struct
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from service.errors import MalformedInference
from service.oip_schemas import InferRequest, InputTensor

HEADER_LENGTH = "Inference-Header-Content-Length"

# The protocol's names for numpy's kinds of what leaves; an array of objects holds str.
_DATATYPES = {"f": "FP32", "i": "INT64", "O": "BYTES"}
_LENGTH = struct.Struct("<I")
_MOST_ERRORS = 5


class Output(NamedTuple):
    """An output to send. values: float32, int64, or objects that are str."""

    name: str
    values: NDArray[Any]
    binary: bool


def datatype(dtype: np.dtype[Any] | str) -> str:
    """The protocol's name of a numpy type that leaves."""
    return _DATATYPES[np.dtype(dtype).kind]


def parse(body: bytes, header_length: str | None) -> tuple[InferRequest, memoryview]:
    """A body to its JSON part and the bytes behind it. header_length: of the JSON part; all of it where None.

    Raises:
        MalformedInference.
    """
    size = len(body) if header_length is None else _header_length(header_length, len(body))
    try:
        return InferRequest.model_validate_json(body[:size]), memoryview(body)[size:]
    except ValidationError as error:
        raise MalformedInference(_told(error)) from error


def read_bytes(tensor: InputTensor, binary: memoryview) -> list[bytes]:
    """The elements of a BYTES tensor of shape (N,). binary: what follows the JSON.

    Raises:
        MalformedInference.
    """
    count = math.prod(tensor.shape)
    if (raw := _binary_part(tensor, binary)) is not None:
        return unpack_bytes(raw, count)
    data = tensor.data or []
    if len(data) != count:
        raise MalformedInference(f"{tensor.name}: {len(data)} strings; expected {count} for the shape {tensor.shape}")
    return [_from_base64(f"{tensor.name}[{i}]", text) for i, text in enumerate(data)]


def read_floats(tensor: InputTensor, binary: memoryview) -> NDArray[np.float32]:
    """The values of an FP32 tensor, of its shape. binary: what follows the JSON.

    Raises:
        MalformedInference: or some value is outside [0, 1], or no number.
    """
    raw, count = _binary_part(tensor, binary), math.prod(tensor.shape)
    if raw is not None and len(raw) != 4 * count:
        raise MalformedInference(f"{tensor.name}: {len(raw)} bytes; expected {4 * count} for the shape {tensor.shape}")
    found = _numbers(tensor) if raw is None else np.frombuffer(raw, "<f4")
    if found.size != count:
        raise MalformedInference(f"{tensor.name}: {found.size} values; expected {count} for the shape {tensor.shape}")
    if not ((found >= 0) & (found <= 1)).all():  # NaN compares false
        raise MalformedInference(
            f"{tensor.name}: values from {found.min():g} to {found.max():g}; expected 0 to 1: divide 8-bit values by 255"
        )
    return found.reshape(tensor.shape).astype(np.float32)


def encode(head: dict[str, Any], outputs: Sequence[Output]) -> tuple[bytes, int | None]:
    """A response's body, and the length of its JSON part where binary tensors follow that. head: all but `outputs`."""
    described, behind = [], []
    for output in outputs:
        entry: dict[str, Any] = {
            "name": output.name,
            "datatype": datatype(output.values.dtype),
            "shape": list(output.values.shape),
        }
        if output.binary:
            behind.append(_packed(output.values))
            entry["parameters"] = {"binary_data_size": len(behind[-1])}
        else:
            entry["data"] = [None if value != value else value for value in output.values.ravel().tolist()]
        described.append(entry)
    text = json.dumps({**head, "outputs": described}, allow_nan=False, separators=(",", ":")).encode()
    return b"".join([text, *behind]), len(text) if behind else None


def pack_bytes(elements: Sequence[bytes]) -> bytes:
    """BYTES elements to their binary form."""
    return b"".join(part for each in elements for part in (_LENGTH.pack(len(each)), each))


def unpack_bytes(raw: memoryview, count: int) -> list[bytes]:
    """The other way round.

    Raises:
        MalformedInference: there are more or fewer than `count`.
    """
    elements, position = [], 0
    for index in range(count):
        start = position + _LENGTH.size
        position = start + _LENGTH.unpack_from(raw, position)[0] if start <= len(raw) else start
        if position > len(raw):
            raise MalformedInference(f"the binary data end inside element {index}; expected {count} elements")
        elements.append(bytes(raw[start:position]))
    if position != len(raw):
        raise MalformedInference(f"{len(raw) - position} bytes are left over after {count} elements")
    return elements


def _header_length(text: str, size: int) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) <= 15 and int(text) <= size):
        raise MalformedInference(
            f"{HEADER_LENGTH} is no number from 0 to {size}, the size of the body; expected the length of the JSON part"
        )
    return int(text)


def _binary_part(tensor: InputTensor, binary: memoryview) -> memoryview | None:
    """What follows the JSON, if that is this tensor; None if its data are in the JSON."""
    size = tensor.parameters.binary_data_size
    if (size is None) == (tensor.data is None):
        came = "both" if tensor.data is not None else "neither"
        raise MalformedInference(f"{tensor.name}: expected either `data` or `binary_data_size`, got {came}")
    if len(binary) != (size or 0):
        raise MalformedInference(
            f"{tensor.name}: {len(binary)} bytes follow the JSON, binary_data_size says {size or 0}; "
            f"the header {HEADER_LENGTH} has to give the length of the JSON part"
        )
    return None if size is None else binary


def _numbers(tensor: InputTensor) -> NDArray[Any]:
    try:
        # With a dtype, since without one a single long text would make every element as long.
        found = np.array(tensor.data, np.float64)
    except (ValueError, TypeError, OverflowError) as error:
        raise MalformedInference(f"{tensor.name}: `data` are not numbers, flat or nested as the shape") from error
    if found.ndim > 1 and list(found.shape) != tensor.shape:
        raise MalformedInference(
            f"{tensor.name}: `data` are nested as {list(found.shape)}; the shape is {tensor.shape}"
        )
    return found


def _from_base64(where: str, text: object) -> bytes:
    try:
        if isinstance(text, str):
            return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        pass
    raise MalformedInference(f"{where}: no base64; encode the image file so, or send it as binary data")


def _packed(values: NDArray[Any]) -> bytes:
    if values.dtype.kind == "O":
        return pack_bytes([text.encode() for text in values.ravel().tolist()])
    return values.astype(values.dtype.newbyteorder("<")).tobytes()


def _told(error: ValidationError) -> str:
    """The first few errors; the values that came are left out, and names are cut short."""
    found = error.errors(include_url=False, include_input=False, include_context=False)
    told = [
        f"{'.'.join(str(part)[:64] for part in each['loc'])}: {each['msg']}".removeprefix(": ")
        for each in found[:_MOST_ERRORS]
    ]
    return "; ".join(told + [f"and {len(found) - _MOST_ERRORS} more"] * (len(found) > _MOST_ERRORS))

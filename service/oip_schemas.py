"""What comes and goes as JSON under /v2: the objects of the Open Inference Protocol, version 2."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from service.schemas import ClassifyQuery

Name = Annotated[str, Field(max_length=64)]
Scalar = bool | int | float | str


class _Wire(BaseModel):
    """A member that doesn't exist is an error, so that typing errors show."""

    model_config = ConfigDict(extra="forbid")


class InputParameters(_Wire):
    """How an input is sent."""

    binary_data_size: int | None = Field(
        default=None, ge=0, description="Bytes of this tensor after the JSON, in place of `data`."
    )


class InputTensor(_Wire):
    """A tensor that comes."""

    name: Name
    shape: list[Annotated[int, Field(ge=0, lt=2**31)]] = Field(max_length=8)
    datatype: Name = Field(description="BYTES or FP32.")
    parameters: InputParameters = InputParameters()
    data: list[Any] | None = Field(default=None, description="Base64 strings for BYTES, else numbers, nested or flat.")


class OutputParameters(_Wire):
    """How an output is wanted."""

    binary_data: bool | None = Field(default=None, description="After the JSON instead of in it.")


class OutputWish(_Wire):
    """An output that is wanted."""

    name: Name
    parameters: OutputParameters = OutputParameters()


class InferRequest(_Wire):
    """The JSON of a request."""

    id: str | None = Field(default=None, description="Comes back in the response.")
    model_name: str | None = Field(default=None, description="Some clients repeat it; the path decides.")
    model_version: str | None = Field(default=None, description="Likewise.")
    parameters: dict[Name, Scalar] = Field(
        default={},
        max_length=32,
        description="Those of POST /classify, and `binary_data_output`: whether outputs come after the JSON.",
    )
    inputs: list[InputTensor] = Field(min_length=1, max_length=1)
    outputs: list[OutputWish] = Field(default=[], max_length=32, description="All but `purified` where none is named.")


class OutputTensor(BaseModel):
    """A tensor that leaves."""

    name: str
    datatype: str
    shape: list[int]
    parameters: dict[str, Scalar] | None = Field(
        default=None, description="`binary_data_size`, where the data follow the JSON."
    )
    data: list[Any] | None = Field(default=None, description="Flat, row-major; null for NaN.")


class InferResponse(BaseModel):
    """The JSON of a response."""

    model_name: str
    model_version: str = Field(description="That of the classifier that answered.")
    id: str | None = None
    parameters: dict[str, Scalar]
    outputs: list[OutputTensor]


class InferQuery(ClassifyQuery):
    """The `parameters` of a request: those of POST /classify, and how outputs are sent."""

    binary_data_output: bool = Field(
        default=False, description="Outputs follow the JSON, but for those whose `binary_data` is false."
    )


class ErrorReply(BaseModel):
    """The protocol's errors; the status has the kind, X-Request-ID what to look for in the log."""

    error: str = Field(description="What came, what was expected, what to do.")


class LiveReply(BaseModel):
    """The process is up."""

    live: bool = True


class ReadyReply(BaseModel):
    """Requests can be answered."""

    ready: bool = True


class ModelReadyReply(ReadyReply):
    """The same of one model."""

    name: str


class ServerReply(BaseModel):
    """What this server is."""

    name: str
    version: str
    extensions: list[str]


class TensorReply(BaseModel):
    """An input or output; -1 is a size that varies."""

    name: str
    datatype: str
    shape: list[int]


class ModelMetadataReply(BaseModel):
    """What a model takes and gives."""

    name: str
    versions: list[str] = Field(description="One for each classifier: the first 12 hex digits of its weights' SHA-256.")
    platform: str
    inputs: list[TensorReply] = Field(description="The two forms in which the one input may come.")
    outputs: list[TensorReply]


class IndexEntry(BaseModel):
    """A version of a model in Triton's list of them."""

    name: str
    version: str
    state: str
    reason: str

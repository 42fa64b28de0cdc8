"""Every setting of the service, in one place. An instance is passed in; nobody reads a global."""

import os
from pathlib import Path
from typing import Annotated, Literal, Self

import torch
from PIL import Image
from pydantic import DirectoryPath, Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from models.catalog import ZOO
from models.precision import Precision
from service import tracing
from service.decode import FORMATS, MAX_SIDE, Format

# Pillow warns above this size and refuses above twice of it; our own limit has to be the one that speaks.
PILLOW_LIMIT = Image.MAX_IMAGE_PIXELS or 89_478_485


class Settings(BaseSettings):
    """Read from arguments, else from the environment (`UNPERTURB_PORT=9000`), else the defaults below.

    Raises:
        pydantic.ValidationError: a value is out of its bounds; the message names the field and the bound.
    """

    model_config = SettingsConfigDict(env_prefix="UNPERTURB_", frozen=True, extra="forbid")

    host: str = Field(default="127.0.0.1", min_length=1, description="Address to listen on; 0.0.0.0 for all.")
    port: int = Field(default=8000, ge=0, le=65535, description="TCP port to listen on; 0 takes a free one.")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="The least severe message that is logged."
    )
    log_format: Literal["text", "json"] = Field(
        default="text", description="Log lines for people, or an object a line for programs; the facts are the same."
    )
    suspicion_alarm: float | None = Field(
        default=None,
        ge=0,
        le=100,
        description="Answers of at least this suspicion, a percentile, are logged as a warning and counted; unset never.",
    )
    otlp_endpoint: str | None = Field(
        default=None,
        pattern=r"^https?://[^\s@?#]+$",
        description="OpenTelemetry collector for traces, such as http://localhost:4318; needs the extra `otel`.",
    )

    zoo: Annotated[tuple[Path, ...], NoDecode] = Field(
        default=(ZOO,),
        min_length=1,
        description="Folders of checkpoints to serve; in the environment separated like PATH.",
    )
    device: str = Field(
        default="auto",
        pattern=r"^(auto|cpu|cuda(:\d+)?)$",
        description="Where the networks run: cpu, cuda or cuda:1; auto takes cuda where there is one.",
    )
    precision: Precision = Field(
        default="fp32",
        description="In which the networks compute; bf16 is faster on some processors and changes answers: "
        "docs/performance.md.",
    )
    threads: int | None = Field(
        default=None, ge=1, le=1024, description="CPU cores that the networks take; unset leaves PyTorch's choice: all."
    )
    processes: int | None = Field(
        default=None,
        ge=1,
        le=256,
        description="Processes that run batches at the same time on a CPU, each with its part of `threads`; unset is one a core, "
        "eight at most; 1: the service's own process alone. Fewer suit large networks that are asked one image at a time.",
    )
    default_model: str = Field(default="cifar10", description="The model of a request that names none.")
    default_purifier: str | None = Field(
        default=None,
        description="The purifier of a request that names none. Unset: aid where the model has it, else the model's first.",
    )
    warm_all: bool = Field(
        default=True,
        description="Once ready and while nobody asks, load and run every purifier, so that no caller is its first; off "
        "saves the memory of networks that nobody asks for.",
    )

    max_batch_size: int = Field(default=32, ge=1, le=4096, description="The most images that are purified together.")
    max_batch_ms: float = Field(
        default=250.0,
        gt=0,
        le=3_600_000,
        description="How long one batch should take, by what the purifier has taken so far; slow purifiers get smaller ones. "
        "Batches of an eighth of it are let in between two steps of a long one.",
    )
    max_wait_ms: float = Field(
        default=0.0,
        ge=0,
        le=10_000,
        description="How long an idle worker waits for company, from an image's arrival; 0 never waits.",
    )
    queue_limit_images: int = Field(
        default=1024, ge=1, le=1_000_000, description="Images that may wait in all; more are refused."
    )
    queue_limit_ms: float = Field(
        default=10_000.0,
        gt=0,
        le=3_600_000,
        description="Work that may wait, by how long it should take; beyond it requests are refused at once. While several "
        "purifiers are asked for, each may fill its even share.",
    )
    shed_status: Literal[503, 429] = Field(
        default=503,
        description="The status of a refusal because of the queue; some proxies count 503 against the server.",
    )
    timeout_ms: float = Field(
        default=30_000.0,
        gt=0,
        le=3_600_000,
        description="From a request's arrival to its answer, upload included; a request may ask for less.",
    )
    hang_timeout_ms: float = Field(
        default=120_000.0,
        gt=0,
        le=86_400_000,
        description="A batch that takes longer has hung: its requests are told, and another thread takes over.",
    )
    shutdown_delay_ms: float = Field(
        default=0.0,
        ge=0,
        le=600_000,
        description="After SIGTERM: how long requests are still accepted while /readyz is red, so that balancers notice.",
    )

    max_epsilon: float = Field(
        default=0.5, ge=0, le=1, description="The largest `epsilon` that a request may choose, in [0, 1] units."
    )
    max_steps: int = Field(default=20, ge=1, le=1000, description="The most `steps` that a request may choose.")
    max_votes: int = Field(default=10, ge=1, le=1000, description="The most `votes` that a request may choose.")
    probability_digits: int = Field(
        default=2,
        ge=0,
        le=7,
        description="Decimals of the probabilities in replies. More of them help attackers who search by scores.",
    )
    reveal_unpurified: bool = Field(
        default=False,
        description="Tell in each reply how the image is classified unpurified. Costs a pass, and tells an attacker how far "
        "he came.",
    )

    max_body_bytes: int = Field(
        default=16 * 2**20, ge=1, le=2**31, description="The largest request body, all parts together."
    )
    max_pixels: int = Field(
        default=2**24, ge=1, le=PILLOW_LIMIT, description="The most pixels an image may claim; checked before decoding."
    )
    max_side: int = Field(
        default=MAX_SIDE, ge=1, le=2**20, description="The longest side that an image may claim, in pixels."
    )
    formats: Annotated[tuple[Format, ...], NoDecode] = Field(
        default=FORMATS,
        min_length=1,
        description="Image formats that are read; in the environment with commas between.",
    )
    max_batch_images: int = Field(default=32, ge=1, le=4096, description="The most images in one request.")
    decode_threads: int = Field(
        default=4,
        ge=1,
        le=256,
        description="Images decoded at the same time; each may need 16 bytes a pixel meanwhile.",
    )
    decode_timeout_ms: float = Field(
        default=10_000.0,
        gt=0,
        le=3_600_000,
        description="The longest that decoding one image may take; its thread stays taken until it really ends.",
    )
    max_held_bytes: int = Field(
        default=512 * 2**20,
        ge=1,
        le=2**40,
        description="Bytes of request bodies in memory at the same time, all requests together; more get a 503.",
    )

    api_keys_file: Path | None = Field(
        default=None, description="A file of API keys, a line each (docs/security.md); unset asks for no key."
    )
    api_keys: SecretStr | None = Field(
        default=None, description="The same lines without a file, with commas or spaces between."
    )
    open_metrics: bool = Field(default=False, description="Whether /metrics needs no API key where the rest does.")
    rate_limit_burst_s: float = Field(
        default=10.0,
        ge=0,
        le=86_400,
        description="Seconds of a key's rate that it may save up and then send at once; one image it always may.",
    )
    cors_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        description="Web origins whose pages may call, with commas between; * for all; none sends no CORS headers.",
    )

    admin_port: int | None = Field(
        default=None,
        ge=0,
        le=65535,
        description="A second port, on 127.0.0.1 only, to load, swap and unload checkpoints; 0 takes a free one. Whoever can "
        "connect to it may use it.",
    )
    admin_socket: Path | None = Field(
        default=None,
        description="The same on a Unix socket instead, which only the service's own user can open.",
    )
    admin_root: DirectoryPath | None = Field(
        default=None,
        description="The folder whose folders are checkpoints that may be loaded while the service runs; unset allows none.",
    )

    @field_validator("zoo", mode="before")
    @classmethod
    def _split_folders(cls, value: object) -> object:
        return tuple(folder for folder in value.split(os.pathsep) if folder) if isinstance(value, str) else value

    @field_validator("otlp_endpoint")
    @classmethod
    def _traces_can_be_sent(cls, value: str | None) -> str | None:
        if value is not None and not tracing.installed():
            raise ValueError("traces need the extra `otel`: pip install '.[otel]' in the folder of unperturb's source")
        return value

    @field_validator("formats", "cors_origins", mode="before")
    @classmethod
    def _split_commas(cls, value: object) -> object:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _a_body_fits_the_memory(self) -> Self:
        if self.max_body_bytes > self.max_held_bytes:
            raise ValueError(
                f"max_body_bytes ({self.max_body_bytes}) is above max_held_bytes ({self.max_held_bytes}): "
                "such a body could never be received"
            )
        return self

    @model_validator(mode="after")
    def _a_batch_fits_the_queue(self) -> Self:
        if self.max_batch_images > self.queue_limit_images:
            raise ValueError(
                f"max_batch_images ({self.max_batch_images}) is above queue_limit_images ({self.queue_limit_images}): "
                "such a batch could never be served"
            )
        return self

    @model_validator(mode="after")
    def _one_way_to_the_admin(self) -> Self:
        if self.admin_port is not None and self.admin_socket is not None:
            raise ValueError("admin_port and admin_socket are both set: choose one of them")
        return self

    def torch_device(self) -> torch.device:
        """`device` with "auto" decided."""
        if self.device == "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return torch.device(self.device)

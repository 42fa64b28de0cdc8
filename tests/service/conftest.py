"""The real app on a toy zoo: untrained networks of the real architectures, saved and loaded like any checkpoint."""

import io
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from anyio.from_thread import BlockingPortal, start_blocking_portal
from PIL import Image
from torch import Tensor

from models.catalog import Catalog, Defense, Offer
from models.checkpoint import save_checkpoint
from models.classifiers import build_classifier
from models.purifiers import Purified, PurifierInfo, Wanted
from service.app import create_app
from service.settings import Settings
from tests.environment import clean_environment, no_helpers  # noqa: F401

DESCENT = {"selection": "best-iterate", "budgets": [4 / 255, 8 / 255], "step_size": 4 / 255, "steps": 2}


def card(model: str, classifier: str, size: tuple[int, int, int], **fields: Any) -> dict[str, Any]:
    channels, height, width = size
    return {
        "model": model,
        "classifier": classifier,
        "labels": [f"{model}-{index}" for index in range(10)],
        "input": {"channels": channels, "height": height, "width": width},
        "training": {},
        **fields,
    }


@pytest.fixture(scope="session")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("zoo")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        resnet = {"architecture": "resnet18-thin", "arguments": {"aux": "rotation"}}
        fcn = {"architecture": "fcn", "arguments": {"aux": "decoder"}}
        colour = card(
            "cifar10",
            "toy",
            (3, 32, 32),
            **resnet,
            purifiers={
                "none": {"kind": "none", "default": True},
                "soap-lc": {"kind": "soap-lc", "settings": DESCENT, "default": True},
                "soap-rp": {"kind": "soap-rp", "settings": DESCENT},
                "soap-lc-random": {"kind": "soap-lc", "settings": {**DESCENT, "random_start": 0.1}},
            },
            calibration={"soap-lc": [float(value) for value in range(101)]},
            measured=[{"attack": "none", "purifier": "soap-lc", "accuracy": 0.1, "n": 10, "detail": "untrained"}],
            worst=[
                {"purifier": "soap-lc", "adaptive": 0.5, "worst": 0.4, "n": 10, "strongest": "x", "detail": "untrained"}
            ],
        )
        plain = card("cifar10", "plain", (3, 32, 32), **resnet, purifiers={"none": {"kind": "none"}})
        grey = card(
            "mnist",
            "fcn",
            (1, 28, 28),
            **fcn,
            purifiers={"none": {"kind": "none"}, "soap-dr": {"kind": "soap-dr", "settings": DESCENT}},
        )
        for made in (colour, plain, grey):
            network = build_classifier(made["architecture"], **made["arguments"])
            save_checkpoint(folder / f"{made['model']}-{made['classifier']}", network, made)
    return folder


@pytest.fixture(scope="session")
def catalog(zoo: Path) -> Catalog:
    return Catalog.open([zoo])


class Revealing:
    """A purifier whose answer shows its input: epsilon is the image's first value. `hook` sees each batch first."""

    def __init__(self, defense: Defense, hook: Callable[[Tensor], None]) -> None:
        self._defense, self._hook = defense, hook

    @property
    def info(self) -> PurifierInfo:
        return self._defense.info

    def purify(self, x: Tensor, seeds: Sequence[int] | None = None, wanted: Wanted | None = None) -> Purified:
        self._hook(x)
        return replace(self._defense.purifier.purify(x, seeds, wanted), epsilon=x[:, 0, 0, 0].clone())

    def logits(self, x: Tensor) -> Tensor:
        return self._defense.logits(x)


class HookedCatalog(Catalog):
    """The toy catalog with a hook before every batch, to make it fail or wait."""

    def __init__(self, inner: Catalog, hook: Callable[[Tensor], None]) -> None:
        self.__dict__.update(inner.__dict__)
        self._hook = hook

    def loaded(self, offer: Offer) -> Defense | None:
        return None

    def load(self, offer: Offer) -> Defense:
        defense = super().load(offer)
        return replace(defense, purifier=Revealing(defense, self._hook))


@pytest.fixture
def hooked(catalog: Catalog) -> Callable[..., Catalog]:
    """`hooked(hook)`, or `hooked(hook, other)` for another catalog than the toy one."""
    return lambda hook, other=catalog: HookedCatalog(other, hook)


class Api:
    """The app in an event loop of its own, called without a network."""

    def __init__(self, portal: BlockingPortal, app: Any) -> None:
        self.portal, self.app = portal, app
        self._client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")

    def request(self, method: str, url: str, **options: Any) -> httpx.Response:
        return self.portal.call(lambda: self._client.request(method, url, **options))

    def get(self, url: str, **options: Any) -> httpx.Response:
        return self.request("GET", url, **options)

    def post(self, url: str, **options: Any) -> httpx.Response:
        return self.request("POST", url, **options)

    def wait_ready(self) -> None:
        give_up = time.monotonic() + 10
        while self.get("/readyz").status_code != 200:
            assert time.monotonic() < give_up, self.get("/readyz").text
            time.sleep(0.005)


@contextmanager
def _run(settings: Settings, catalog: Catalog | None) -> Iterator[Api]:
    app = create_app(settings, catalog)
    del catalog  # the app's alone
    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(app.router.lifespan_context(app)),
    ):
        yield Api(portal, app)


@pytest.fixture(scope="session")
def run() -> Callable[..., Any]:
    """`with run(settings, catalog) as api:` starts and stops the app."""
    return _run


@pytest.fixture(scope="module")
def api(catalog: Catalog) -> Iterator[Api]:
    with _run(Settings(max_pixels=100_000, max_body_bytes=400_000, max_batch_images=4), catalog) as running:
        running.wait_ready()
        yield running


@pytest.fixture(scope="session")
def png() -> Callable[..., bytes]:
    """A PNG of one value, or of noise where none is given."""

    def make(value: int | None = None, size: tuple[int, int] = (32, 32), mode: str = "RGB", seed: int = 0) -> bytes:
        bands = len(Image.new(mode, (1, 1)).getbands())
        if value is None:
            generator = torch.Generator().manual_seed(seed)
            raw = bytes(torch.randint(256, (size[0] * size[1] * bands,), generator=generator).tolist())
        else:
            raw = bytes([value]) * (size[0] * size[1] * bands)
        file = io.BytesIO()
        Image.frombytes(mode, size, raw).save(file, format="PNG")
        return file.getvalue()

    return make

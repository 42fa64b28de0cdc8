"""A real uvicorn on a free port, on a toy zoo of untrained networks."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import torch

from models.catalog import Catalog
from models.checkpoint import save_checkpoint
from models.classifiers import build_classifier
from service.app import create_app
from service.server import build_server
from service.settings import Settings
from tests.environment import clean_environment, no_helpers  # noqa: F401

DESCENT = {"selection": "min-aux", "budgets": [0.0, 4 / 255, 8 / 255], "step_size": 4 / 255, "steps": 2}
TOYS = {
    "cifar10": ("resnet18-thin", "rotation", (3, 32, 32), ("none", "soap-lc", "soap-rp")),
    "mnist": ("fcn", "decoder", (1, 28, 28), ("none", "soap-dr")),
}


@pytest.fixture(scope="session")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("zoo")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for model, (architecture, aux, (channels, height, width), purifiers) in TOYS.items():
            network = build_classifier(architecture, aux=aux)
            # Untrained networks see little difference between images; louder heads let each answer be recognised.
            for head in (network.classifier_head, network.aux_head):
                if isinstance(head, torch.nn.Linear):
                    head.weight.data.mul_(30)
            card = {
                "model": model,
                "classifier": "toy",
                "architecture": architecture,
                "arguments": {"aux": aux},
                "labels": [str(index) for index in range(10)],
                "input": {"channels": channels, "height": height, "width": width},
                "purifiers": {
                    name: {"kind": name, "settings": {} if name == "none" else DESCENT} for name in purifiers
                },
                "training": {},
            }
            save_checkpoint(folder / model, network, card)
    return folder


@pytest.fixture(scope="session")
def catalog(zoo: Path) -> Catalog:
    return Catalog.open([zoo])


@contextmanager
def running(settings: Settings, catalog: Catalog | None = None, patience_s: float = 20.0) -> Iterator[str]:
    """A service in a thread of its own, once it is ready: where it listens."""
    server = build_server(settings, create_app(settings, catalog))
    thread = threading.Thread(target=server.run, name="uvicorn")
    thread.start()
    give_up = time.monotonic() + patience_s
    while not server.started:
        assert time.monotonic() < give_up
        time.sleep(0.005)
    (address,) = server.addresses()
    while httpx.get(f"{address}/readyz").status_code != 200:
        assert time.monotonic() < give_up
        time.sleep(0.005)
    yield address
    server.should_exit = True
    thread.join(20)
    assert not thread.is_alive()


@pytest.fixture(scope="session")
def url(catalog: Catalog) -> Iterator[str]:
    """Where the service listens."""
    settings = Settings(port=0, max_body_bytes=2**20, max_pixels=200_000, probability_digits=7, queue_limit_ms=60_000)
    with running(settings, catalog) as address:
        yield address

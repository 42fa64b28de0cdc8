"""Everything that ships, over HTTP and on the command line: the same image and seed get the same answer."""

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner

from models.catalog import Catalog
from service.settings import Settings
from tests.integration.conftest import running
from unperturb import cli

SAMPLES = Path(__file__).parents[2] / "samples"
PAIRS = [(offer.model, offer.purifier, offer.classifier) for offer in Catalog.open().offers()]
CHAINS = [("cifar10", chain, "resnet18-at") for chain in ("nrp+aid", "pix2pix+aid", "nrp+reverse")]


@pytest.fixture(scope="module")
def shipped() -> Iterator[httpx.Client]:
    settings = Settings(port=0, probability_digits=7)
    with running(settings, patience_s=60) as address, httpx.Client(base_url=address, timeout=30) as client:
        yield client


def test_all_that_is_listed_is_tested(shipped: httpx.Client) -> None:
    listed = shipped.get("/purifiers").json()["purifiers"]
    assert {(each["model"], each["purifier"], each["classifier"]) for each in listed} == set(PAIRS)


@pytest.mark.parametrize(("model", "purifier", "classifier"), [*PAIRS, *CHAINS], ids=lambda word: word)
def test_http_and_the_command_line_agree(shipped: httpx.Client, model: str, purifier: str, classifier: str) -> None:
    file = next(SAMPLES.glob(f"{model}-clean-*.png"))
    choice = {"model": model, "purifier": purifier, "classifier": classifier}
    reply = shipped.post("/classify", params={**choice, "seed": 3, "top_k": 1}, content=file.read_bytes()).json()
    options = [word for name, value in choice.items() for word in (f"--{name}", value)]
    result = CliRunner().invoke(cli.app, ["classify", str(file), *options, "--seed", "3", "--json"])
    (found,) = json.loads(result.stdout)
    served, offline = reply["predictions"][0], found["predictions"][0]
    assert served["label"] == offline["label"]
    assert served["probability"] == pytest.approx(offline["probability"], abs=1e-3)
    steps = purifier.split("+") if "+" in purifier else []
    assert [step["purifier"] for step in reply["purification"]["steps"] or []] == steps
    assert [step["purifier"] for step in found["steps"]] == steps

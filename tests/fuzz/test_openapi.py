"""Requests made from the OpenAPI document by schemathesis, and every reply held against it.

Short and always the same here. The long run, other requests each time:

    FUZZ_EXAMPLES=2000 python -m pytest tests/fuzz/test_openapi.py
"""

import os
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import strategies
from schemathesis.config import SchemathesisConfig

from models.catalog import Catalog
from service.app import create_app
from service.oip import version_of
from service.settings import Settings
from tests.fuzz.mutations import originals

LONG = os.environ.get("FUZZ_EXAMPLES")
CATALOG = Catalog.open()
NAMES = {"purifier": ["none", "soap-lc"], "model": ["cifar10"], "classifier": ["resnet18-soap-lc"]}
VERSION = version_of(CATALOG.resolve("cifar10", "soap-lc", "resnet18-soap-lc").card)

CONFIG: dict[str, Any] = {
    "generation": {"max-examples": int(LONG or 12), "deterministic": LONG is None, "database": "none"},
    # Names that exist and go together, often enough to come past the first check; the others are made up.
    "dictionaries": {name: {"values": values} for name, values in {**NAMES, "version": [VERSION]}.items()},
    "parameters": {
        **{f"query.{name}": {"dictionary": name, "probability": 0.8} for name in NAMES},
        **{f"path.{name}": {"dictionary": name, "probability": 0.8} for name in ("model", "version")},
        "query.timeout_ms": 60_000,  # less may well be too little, and is answered so
    },
    # The names that exist are no part of the document, so 422 may answer what it allows; the others are the check's own list.
    "checks": {
        "positive_data_acceptance": {
            "expected-statuses": ["2xx", "3xx", "401", "403", "404", "409", "422", "429", "5xx"]
        }
    },
    # In a form one image and a list of one image look the same, so the wrong type is none.
    "operations": [
        {"include-name": "POST /classify/batch", "checks": {"negative_data_rejection": {"enabled": False}}},
        # What a tensor's name, type, shape and data must have in common no schema says.
        {"include-path-regex": "/infer$", "checks": {"positive_data_acceptance": {"enabled": False}}},
    ],
}

schemathesis.openapi.format("binary", strategies.sampled_from(originals()))
APP = create_app(Settings(threads=1), CATALOG)
DOCUMENT = schemathesis.openapi.from_dict(APP.openapi(), config=SchemathesisConfig.from_dict(CONFIG))
DOCUMENT.app = APP


@pytest.fixture(scope="module", autouse=True)
def answered() -> Iterator[Counter[tuple[str, int]]]:
    """How often each operation gave each status; in the end, each must have had something else to do than to refuse.

    But for the tensors of /v2, which nobody makes up whose numbers of values fit their shapes: tests/service/test_oip.py.
    """
    seen: Counter[tuple[str, int]] = Counter()
    yield seen
    made_up = {label for label, _ in seen if not label.endswith("/infer")}
    assert {label for label, status in seen if status == 200} >= made_up


@pytest.fixture(autouse=True)
def _ready() -> None:
    """Schemathesis starts the app for each test."""
    give_up = time.monotonic() + 60
    while DOCUMENT["/readyz"]["GET"].Case().call().status_code != 200:
        assert time.monotonic() < give_up
        time.sleep(0.01)


@DOCUMENT.parametrize()
def test_every_reply_is_a_documented_one(case: Any, answered: Counter[tuple[str, int]]) -> None:
    reply = case.call_and_validate()
    answered[case.operation.label, reply.status_code] += 1

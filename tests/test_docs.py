"""The pages say what is true: tables come from the results, settings from the class, snippets run."""

import json
import re
from pathlib import Path

import pytest

from models.catalog import Catalog
from service.settings import Settings
from training.tables import PAGES, RESULTS, rendered

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_tables_are_what_the_results_say(page):
    text = page.read_text()
    assert "<!-- table:" in text
    assert rendered(text) == text, "run: python -m training.tables"


def test_every_shipped_checkpoint_carries_its_committed_results():
    for offer in Catalog.open().offers():
        file = RESULTS / f"{offer.model}-{offer.classifier}-soap-{offer.model}.json"
        found = json.loads(file.read_text())
        assert found["weights_sha256"] == offer.card.weights_sha256
        cells = {(c["purifier"] + (" (oracle)" if c["oracle"] else ""), c["attack"]["name"]): c for c in found["cells"]}
        measured = {(m.purifier, m.attack): m for m in offer.card.measured}
        assert {key: m.accuracy for key, m in measured.items()} == {key: c["accuracy"] for key, c in cells.items()}


def test_results_were_measured_with_the_settings_that_are_served():
    for offer in Catalog.open().offers():
        file = RESULTS / f"{offer.model}-{offer.classifier}-soap-{offer.model}.json"
        assert json.loads(file.read_text())["settings"][offer.purifier] == offer.entry.settings


def test_static_results_have_a_thousand_images_and_adaptive_ones_two_hundred():
    for offer in Catalog.open().offers():
        for measured in offer.card.measured:
            assert measured.n >= (200 if measured.attack in ("two-view", "bpda") else 1000)


def test_the_settings_page_names_every_setting_and_default():
    rows = dict(
        re.findall(r"^\| `UNPERTURB_(\w+)` \| ([^|]+) \|", (ROOT / "docs" / "settings.md").read_text(), flags=re.M)
    )
    assert {name.lower() for name in rows} == set(Settings.model_fields)
    for name, default in rows.items():
        value = Settings.model_fields[name.lower()].default
        shown = "the shipped checkpoints" if name == "ZOO" else "unset" if value is None else f"`{value}`"
        assert default.strip() == shown, name


def test_links_lead_somewhere():
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\((?!https?:|#|mailto:)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_readme_is_finished():
    assert "@@" not in (ROOT / "README.md").read_text()

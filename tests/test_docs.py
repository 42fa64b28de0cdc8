"""The pages say what is true: tables come from the results, settings from the class, snippets run."""

import asyncio
import json
import re
from pathlib import Path

import httpx
import pytest

from models.catalog import Catalog
from service.app import create_app
from service.settings import Settings
from training.attacks import BLIND
from training.cards import named, with_results
from training.outcomes import worst_of
from training.parts import SEPARABLE
from training.pictures import pictures_of, strips
from training.pictures.pages import IMAGES, illustrated
from training.plan import load_plan
from training.report.page import PICTURES, report
from training.results import load_results
from training.tables import PAGES, RESULTS, TABLES, rendered
from unperturb import settings

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_tables_are_what_the_results_say(page):
    text = page.read_text()
    assert "<!-- table:" in text
    assert rendered(text) == text, "run: python -m training.tables"


def test_the_results_page_is_what_the_results_say():
    page = (RESULTS / "README.md").read_text()
    assert page.partition(PICTURES)[0].rstrip() == report(load_results(RESULTS)).rstrip(), "run: unperturb report"


def test_below_every_table_of_a_paper_stands_what_is_left_out():
    papers = (RESULTS / "README.md").read_text().partition("## The papers' tables")[2].partition("\n## ")[0]
    tables = [part for part in papers.split("### ")[1:] if "Fig." not in part]
    assert len(tables) == 16
    assert [part.splitlines()[0] for part in tables if "Left out" not in part] == []


def test_every_table_stands_somewhere():
    found = {name for page in PAGES for name in re.findall(r"<!-- table:([\w-]+) -->", page.read_text())}
    assert found == set(TABLES)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pictures_and_their_captions_are_what_the_results_say(page):
    made = [*pictures_of(RESULTS), *strips.pictures(Catalog.open())]
    text = illustrated(page, {picture.name: picture.caption for picture in made})
    assert text == page.read_text(), "run: python -m training.pictures"


def test_every_drawn_picture_is_one_of_today():
    made = {picture.name for picture in [*pictures_of(RESULTS), *strips.pictures(Catalog.open())]}
    drawn = {image.name for image in IMAGES.glob("*.png")}
    assert drawn == made, "run: python -m training.pictures, and delete what it no longer draws"


def results_of(card):
    """The result files that a card names, with what it took from each."""
    files = {}
    for measured in card.measured:
        files.setdefault(measured.detail.rsplit("; ", 1)[1], []).append(measured)
    return [(json.loads((RESULTS / file).read_text()), taken) for file, taken in files.items()]


def cards():
    return {offer.classifier: offer.base.checkpoint.card for offer in Catalog.open().offers()}.values()


def test_every_shipped_checkpoint_carries_its_committed_results():
    for card in cards():
        assert card.measured
        assert with_results(card, [RESULTS / name for name in named(card)]) == card, "run: python -m training.cards"
        assert {found["weights_sha256"] for found, _ in results_of(card)} == {card.weights_sha256}


def test_the_cards_tell_the_worst_that_the_tables_show():
    found = {(each.model, each.classifier, each.purifier): each for each in worst_of(load_results(RESULTS))}
    told = {(card.model, card.classifier, each.purifier): each for card in cards() for each in card.worst}
    assert told.keys() == found.keys()
    for name, each in told.items():
        assert (each.worst, each.adaptive) == pytest.approx((found[name].worst, found[name].adaptive), abs=1e-6), name


def test_every_offer_was_measured_with_the_settings_and_weights_that_are_served():
    for offer in Catalog.open().offers():
        beside = all(addon.card.classifier == offer.classifier for addon in offer.addons)
        assert offer.measured() or not beside, f"{offer.purifier} on {offer.classifier}"
        for found, taken in results_of(offer.card):
            if any(measured in taken for measured in offer.measured()):
                assert found["settings"][offer.purifier] == offer.entry.settings
                assert found.get("addons", {}).get(offer.purifier, []) == list(offer.addon_sha256)


def test_committed_results_are_of_todays_plans():
    for result in load_results(RESULTS):
        plan = load_plan(result.plan, result.data.split()[0])
        assert [cell.attack.name for cell in result.cells if cell.attack not in plan.attacks] == [], result.stem


def test_blind_results_have_a_thousand_images_and_others_two_hundred():
    for offer in Catalog.open().offers():
        for measured in offer.card.measured:
            mode = measured.detail.split(";")[0]
            assert measured.n >= (1000 if mode in ("none", *BLIND) else 200)


def test_the_page_says_which_attacks_go_on_where_they_were():
    page = (ROOT / "docs" / "evaluation.md").read_text()
    told = re.search(r"Amid an attack it goes on only.*?\((`.*?)\)", page, re.S)
    assert re.findall(r"`(.*?)`", told[1]) == list(SEPARABLE)


def test_the_settings_page_is_what_the_command_prints():
    assert (ROOT / "docs" / "settings.md").read_text() == settings.page()


def test_links_lead_somewhere():
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md"), RESULTS / "README.md"]:
        for target in re.findall(r"\]\((?!https?:|#|mailto:)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_readmes_request_gets_the_readmes_answer():
    text = (ROOT / "README.md").read_text()
    file, path = re.search(r"curl --data-binary @(\S+) 'http://127.0.0.1:8000(\S+)'", text).groups()
    shown = json.loads(re.search(r"```json\n(.*?)```", text, flags=re.S)[1])
    answer = asyncio.run(_answer(path, (ROOT / file).read_bytes()))
    assert answer["predictions"][0]["label"] == shown["predictions"][0]["label"] == file.split("-")[2]
    assert answer["weights_sha256"] == shown["weights_sha256"]
    # Another CPU rounds differently, and sign flips cascade.
    assert answer["predictions"][0]["probability"] == pytest.approx(shown["predictions"][0]["probability"], abs=0.25)


async def _answer(path, body):
    app = create_app(Settings())
    client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1:8000")
    async with app.router.lifespan_context(app), client:
        while (await client.get("/readyz")).status_code != 200:
            await asyncio.sleep(0.05)
        return (await client.post(path, content=body)).json()


def test_the_pages_are_finished():
    assert [page.name for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")] if "@@" in page.read_text()] == []

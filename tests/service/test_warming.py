import logging
import threading
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from models.catalog import Catalog
from service.decode import File
from service.settings import Settings
from service.warming import QUIET_S, warm_others


def warm(api: Any) -> None:
    api.portal.call(warm_others, api.app.state.engine)


def names(catalog: Catalog) -> set[tuple[str, str, str]]:
    return {(offer.model, offer.classifier, offer.purifier) for offer in catalog.offers() if offer.built()}


def test_every_purifier_runs_until_it_is_warm_and_the_usual_ones_first(run: Any, zoo: Any) -> None:
    catalog = Catalog.open([zoo])
    with run(Settings(), catalog) as api:
        api.wait_ready()
        assert names(catalog) == {("cifar10", "toy", "soap-lc")}
        warmed = []
        inner = api.app.state.engine.warm

        async def noted(offer: Any) -> Any:
            warmed.append((offer.classifier, offer.purifier))
            return await inner(offer)

        api.app.state.engine.warm = noted
        warm(api)
        assert len(names(catalog)) == len(catalog.offers())
        assert warmed[-3:] == [("plain", "none")] * 3  # whoever wants it has to name that classifier
        assert len(warmed) == 3 * (len(catalog.offers()) - 1)


def test_one_that_fails_is_logged_and_the_others_are_warmed(run: Any, hooked: Any, zoo: Any, caplog: Any) -> None:
    catalog, seen = Catalog.open([zoo]), set()

    def fail(x: Tensor) -> None:
        seen.add(x.shape[1])
        if x.shape[1] == 1:
            raise RuntimeError("no grey today")

    with caplog.at_level(logging.WARNING), run(Settings(), hooked(fail, catalog)) as api:
        api.wait_ready()
        warm(api)
        assert api.get("/readyz").status_code == 200
    assert [record.getMessage() for record in caplog.records if "not warmed" in record.getMessage()] == [
        f"not warmed: mnist/fcn/{purifier}: no grey today" for purifier in ("none", "soap-dr")
    ]
    assert len(names(catalog)) == len(catalog.offers())


def test_it_waits_until_nobody_has_asked_for_a_while(run: Any, zoo: Any, png: Any) -> None:
    catalog, quiet = Catalog.open([zoo]), list[float]()
    with run(Settings(), catalog) as api:
        api.wait_ready()
        engine = api.app.state.engine
        inner = engine.warm

        async def noted(offer: Any) -> Any:
            quiet.append(engine.quiet_s())
            return await inner(offer)

        engine.warm = noted
        assert api.post("/classify", content=png()).status_code == 200
        task = api.portal.start_task_soon(warm_others, engine)
        for _ in range(5):
            assert api.post("/classify", content=png()).status_code == 200
        task.result(60)
    assert min(quiet) >= QUIET_S


def test_it_is_not_quiet_while_somebody_waits_for_an_answer(run: Any, hooked: Any, png: Any) -> None:
    quiet: list[float] = []
    there = threading.Event()  # the warm-up may begin before `api` has a name

    def note(_: Any) -> None:
        there.wait(10)
        quiet.append(api.app.state.engine.quiet_s())

    with run(Settings(), hooked(note)) as api:
        there.set()
        api.wait_ready()
        assert quiet[-1] > 0  # in the warm-up
        assert api.post("/classify", content=png()).status_code == 200
        assert quiet[-1] == 0
        assert api.app.state.engine.quiet_s() > 0


@pytest.mark.parametrize("trouble", [True, False])
def test_a_service_that_leaves_warms_nothing(run: Any, zoo: Any, trouble: bool) -> None:
    catalog = Catalog.open([zoo])
    with run(Settings(), catalog) as api:
        api.wait_ready()
        if trouble:
            api.app.state.engine.drain()
        warm(api)
        assert (len(names(catalog)) == 1) is trouble


def test_who_decodes_files_is_warmed_with_one(run: Any, zoo: Any) -> None:
    sent = []
    with run(Settings(), Catalog.open([zoo])) as api:
        api.wait_ready()
        engine = api.app.state.engine
        inner = engine._worker.submit_to_each

        def noted(lane: Any, work: Any) -> Any:
            sent.append(type(work.image))
            return inner(lane, replace(work, image=torch.rand(lane.shape)))

        engine._worker.submit_to_each = noted
        for engine._decode_later in (True, False):
            api.portal.call(engine.warm, engine.choose())
    assert sent == [File, Tensor]

import logging
from typing import Any

import pytest
from torch import Tensor

from models.catalog import Catalog
from service.settings import Settings
from service.warming import warm_others


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


def test_it_waits_while_somebody_does(run: Any, zoo: Any) -> None:
    catalog = Catalog.open([zoo])
    with run(Settings(), catalog) as api:
        api.wait_ready()
        waiting = [(2, 0.1), (1, 0.1), (1, 0.1)]
        engine, seen = api.app.state.engine, []
        inner = engine.warm

        async def noted(offer: Any) -> Any:
            seen.append(len(waiting))
            return await inner(offer)

        engine.warm, engine.waiting = noted, lambda: waiting.pop() if waiting else (0, 0.0)
        warm(api)
        assert seen[0] == 0


@pytest.mark.parametrize("trouble", [True, False])
def test_a_service_that_leaves_warms_nothing(run: Any, zoo: Any, trouble: bool) -> None:
    catalog = Catalog.open([zoo])
    with run(Settings(), catalog) as api:
        api.wait_ready()
        if trouble:
            api.app.state.engine.drain()
        warm(api)
        assert (len(names(catalog)) == 1) is trouble

import threading
import time
from typing import Any

import pytest
import torch
from torch import Tensor

from models.catalog import Catalog
from service import crew
from service.engine import Engine
from service.settings import Settings


def test_opens_the_zoo_of_the_settings(run: Any, zoo: Any, png: Any) -> None:
    with run(Settings(zoo=(zoo,)), None) as api:
        api.wait_ready()
        assert api.post("/classify", content=png()).status_code == 200


def test_not_ready_until_the_default_is_warm(run: Any, hooked: Any) -> None:
    go = threading.Event()

    def wait(x: Tensor) -> None:
        assert go.wait(5)

    with run(Settings(), hooked(wait)) as api:
        while "not loaded" in api.get("/readyz").text:
            pass
        cold = api.get("/readyz")
        assert (cold.status_code, "warming cifar10/soap-lc" in cold.json()["detail"]) == (503, True)
        go.set()
        api.wait_ready()


def test_default_that_is_not_served_is_never_ready_and_says_why(run: Any, catalog: Catalog, png: Any) -> None:
    with run(Settings(default_purifier="nrp"), catalog) as api:
        time.sleep(0.05)
        assert "unknown purifier 'nrp'; known: none" in api.get("/readyz").json()["detail"]
        assert api.post("/classify?purifier=none", content=png()).status_code == 200


def test_raising_warm_up_is_red_not_silent(run: Any, hooked: Any) -> None:
    def fail(x: Tensor) -> None:
        raise RuntimeError("out of memory")

    with run(Settings(), hooked(fail)) as api:
        time.sleep(0.1)
        assert "loading failed: RuntimeError" in api.get("/readyz").json()["detail"]


def test_dead_worker_turns_ready_red_and_answers_every_caller(run: Any, hooked: Any, png: Any) -> None:
    def die(x: Tensor) -> None:
        if x[0, 0, 0, 0] == 1:
            raise SystemExit

    with run(Settings(), hooked(die)) as api:
        api.wait_ready()
        assert api.post("/classify", content=png(255)).json()["code"] == "not-ready"
        give_up = time.monotonic() + 5
        while api.get("/readyz").status_code == 200:
            assert time.monotonic() < give_up
        assert "worker" in api.get("/readyz").json()["detail"]
        refused = api.post("/classify", content=png())
        assert (refused.status_code, refused.json()["code"]) == (503, "not-ready")
        assert api.get("/livez").status_code == 200


def test_start_and_stop_leave_no_thread_behind(run: Any, catalog: Catalog) -> None:
    def devices() -> set[int | None]:
        return {thread.ident for thread in threading.enumerate() if thread.name.startswith("device-")}

    before = devices()  # another test's server may be running
    with run(Settings(), catalog) as api:
        api.wait_ready()
        assert devices() > before
    assert devices() == before


def test_event_loop_stays_free_while_the_device_works(run: Any, hooked: Any, png: Any) -> None:
    entered, released = threading.Event(), threading.Event()

    def work(x: Tensor) -> None:
        if x[0, 0, 0, 0] == 1:
            entered.set()
            assert released.wait(5)

    with run(Settings(), hooked(work)) as api:
        api.wait_ready()
        slow = api.portal.start_task_soon(lambda: api._client.post("/classify", content=png(255)))
        assert entered.wait(5)
        assert api.get("/livez").status_code == 200
        assert api.get("/models").status_code == 200
        released.set()
        assert slow.result(5).status_code == 200


def test_who_names_no_purifier_gets_the_catalogs_or_the_operators(catalog: Any) -> None:
    shipped = Engine(Settings(), Catalog.open())
    assert [shipped.default_purifier(model) for model in ("cifar10", "mnist")] == ["aid", "soap-dr"]
    assert shipped.choose().classifier == "resnet18-at"
    assert Engine(Settings(), catalog).default_purifier("nothing") == "none"
    assert Engine(Settings(default_purifier="nrp"), catalog).default_purifier("cifar10") == "nrp"


@pytest.mark.parametrize(("threads", "taken"), [(3, 3), (None, crew.CORES)])
def test_the_devices_thread_alone_takes_several_cores(
    run: Any, catalog: Catalog, png: Any, monkeypatch: pytest.MonkeyPatch, threads: int | None, taken: int
) -> None:
    found: dict[str, int] = {}
    real = crew.run_batch

    def noted(*arguments: Any) -> Any:
        found["device"] = torch.get_num_threads()
        return real(*arguments)

    monkeypatch.setattr(crew, "run_batch", noted)
    with run(Settings(threads=threads), catalog) as api:
        api.wait_ready()
        assert api.post("/classify", content=png()).status_code == 200
    assert found == {"device": taken}

"""Changing what is served while it is served: nothing is lost, mixed up or left behind."""

import gc
import json
import shutil
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
import torch
from torch import Tensor

from models.catalog import Catalog
from models.checkpoint import CARD, WEIGHTS, read_card, save_checkpoint
from models.classifiers import build_classifier
from models.networks import build_network
from models.purifiers import Options
from service.admin import create_admin
from service.settings import Settings

TOY = ("cifar10", "toy")


class Admin:
    """The admin's app beside a running `Api`."""

    def __init__(self, api: Any) -> None:
        self._api = api
        app = create_admin(api.app.state.engine, api.app.state.metrics)
        self._client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost")

    def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        response: httpx.Response = self._api.portal.call(lambda: self._client.request(method, path, **options))
        return response

    def load(self, folder: str, sha256: str) -> httpx.Response:
        return self.request("PUT", f"/checkpoints/{folder}", params={"sha256": sha256})

    def unload(self, model: str, classifier: str, **params: str) -> httpx.Response:
        return self.request("DELETE", f"/checkpoints/{model}/{classifier}", params=params)

    def loaded(self) -> dict[tuple[str, str], dict[str, Any]]:
        found = self.request("GET", "/checkpoints").json()["checkpoints"]
        return {(each["model"], each["name"]): each for each in found}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "root"
    folder.mkdir()
    return folder


@pytest.fixture
def make(zoo: Path, root: Path) -> Callable[..., str]:
    """A checkpoint like the toy one, with other weights and fields, as a folder of the root. Returns the weights' checksum."""

    def build(name: str, damage: Callable[[torch.nn.Module], None] | None = None, **fields: Any) -> str:
        card = json.loads((zoo / "cifar10-toy" / CARD).read_text())
        del card["weights_sha256"]
        with torch.random.fork_rng():
            torch.manual_seed(1)
            network = build_classifier(card["architecture"], **card["arguments"])
        if damage:
            damage(network)
        return save_checkpoint(root / name, network, {**card, **fields}).weights_sha256

    return build


@pytest.fixture
def fresh(zoo: Path) -> Catalog:
    """A catalog whose networks nobody else holds."""
    return Catalog.open([zoo])


@pytest.fixture
def start(run: Any, root: Path) -> Iterator[Callable[[Catalog], tuple[Any, Admin]]]:
    """Run the service on a catalog, with its admin."""
    running = []

    def begin(catalog: Catalog) -> tuple[Any, Admin]:
        manager = run(Settings(admin_root=root), catalog)
        running.append(manager)
        api = manager.__enter__()
        api.wait_ready()
        return api, Admin(api)

    yield begin
    for manager in running:
        manager.__exit__(None, None, None)


def sha_of(reply: httpx.Response) -> str:
    assert reply.status_code == 200, reply.text
    sha: str = reply.json()["weights_sha256"]
    return sha


def test_a_new_checkpoint_is_served_as_soon_as_it_is_loaded(start: Any, fresh: Catalog, make: Any, png: Any) -> None:
    api, admin = start(fresh)
    sha256 = make("version-2", classifier="newcomer")
    assert api.post("/classify?classifier=newcomer", content=png()).json()["code"] == "unknown-classifier"
    reply = admin.load("version-2", sha256)
    assert reply.status_code == 200, reply.text
    assert reply.json()["replaced"] is None
    assert reply.json()["checkpoint"] == admin.loaded()["cifar10", "newcomer"]
    assert sha_of(api.post("/classify?classifier=newcomer", content=png())) == sha256
    listed = admin.loaded()["cifar10", "newcomer"]
    assert (listed["folder"], listed["weights_sha256"]) == ("version-2", sha256)
    assert listed["purifiers"] == ["none", "soap-lc", "soap-lc-random", "soap-rp"]


def test_a_swap_answers_old_requests_with_the_old_and_new_ones_with_the_new(
    start: Any, hooked: Any, fresh: Catalog, make: Any, png: Any
) -> None:
    entered, released = threading.Event(), threading.Event()

    def hold(x: Tensor) -> None:
        if x[0, 0, 0, 0] == 1:
            entered.set()
            assert released.wait(20)

    api, admin = start(hooked(hold))
    old, new = admin.loaded()[TOY]["weights_sha256"], make("version-2")

    def send(value: int) -> Any:
        return api.portal.start_task_soon(lambda: api._client.post("/classify", content=png(value)))

    running = send(255)
    assert entered.wait(10)
    waiting = send(0)
    while api.app.state.engine.waiting()[0] < 1:
        pass
    swapping = api.portal.start_task_soon(
        lambda: admin._client.put("/checkpoints/version-2", params={"sha256": new}, timeout=30)
    )
    while api.app.state.engine.waiting()[0] < 2:  # the warm-up has to wait for its turn
        pass
    meanwhile = send(0)
    released.set()
    reply = swapping.result(20).json()
    assert reply["replaced"]["weights_sha256"] == old
    assert [sha_of(each.result(10)) for each in (running, waiting, meanwhile)] == [old] * 3
    assert sha_of(api.post("/classify", content=png())) == new


def test_requests_that_were_accepted_but_not_sent_completely_get_the_old_one(
    start: Any, fresh: Catalog, make: Any, png: Any
) -> None:
    api, admin = start(fresh)
    old, new = admin.loaded()[TOY]["weights_sha256"], make("version-2", labels=[f"new-{index}" for index in range(10)])
    image = png()
    first_half, second_half = threading.Event(), threading.Event()

    async def body() -> Any:
        yield image[:50]
        first_half.set()
        await anyio.to_thread.run_sync(second_half.wait)
        yield image[50:]

    slow = api.portal.start_task_soon(lambda: api._client.post("/classify", content=body()))
    assert first_half.wait(10)
    assert admin.load("version-2", new).status_code == 200
    second_half.set()
    reply = slow.result(10)
    assert (sha_of(reply), reply.json()["predictions"][0]["label"][:7]) == (old, "cifar10")
    after = api.post("/classify", content=image)
    assert (sha_of(after), after.json()["predictions"][0]["label"][:3]) == (new, "new")


def test_an_offer_is_built_from_the_catalog_it_was_chosen_in(start: Any, fresh: Catalog, make: Any) -> None:
    api, admin = start(fresh)
    engine = api.app.state.engine
    offer = engine.choose()
    assert admin.load("version-2", make("version-2")).status_code == 200
    ask = api.portal.call(engine.ask, offer, Options())
    assert ask.lane.weights_sha256 == offer.card.weights_sha256 != engine.choose().card.weights_sha256


def test_the_same_weights_with_another_card_share_no_batch_with_the_old(
    start: Any, fresh: Catalog, make: Any, root: Path, zoo: Path
) -> None:
    api, admin = start(fresh)
    engine = api.app.state.engine
    before = api.portal.call(engine.ask, engine.choose(), Options())
    shutil.copytree(zoo / "cifar10-toy", root / "same")
    assert admin.load("same", before.lane.weights_sha256).status_code == 200
    after = api.portal.call(engine.ask, engine.choose(), Options())
    assert after.lane.weights_sha256 == before.lane.weights_sha256
    assert after.lane != before.lane


def test_the_old_network_is_freed_and_the_others_are_kept(start: Any, zoo: Path, make: Any, png: Any) -> None:
    api, admin = start(Catalog.open([zoo]))

    def network(model: str) -> "weakref.ref[torch.nn.Module]":
        return weakref.ref(api.app.state.engine.catalog.defense(model, "none").classifier)

    for query in ("purifier=soap-rp", "purifier=soap-lc&steps=1", "model=mnist&purifier=soap-dr"):
        assert api.post(f"/classify?{query}", content=png()).status_code == 200
    old, other = network("cifar10"), network("mnist")
    assert admin.load("version-2", make("version-2")).status_code == 200
    gc.collect()
    assert old() is None
    assert other() is not None
    assert network("mnist")() is other()


def test_an_old_network_is_freed_with_the_last_request_that_needs_it(
    start: Any, hooked: Any, zoo: Path, png: Any
) -> None:
    entered, released = threading.Event(), threading.Event()

    def hold(x: Tensor) -> None:
        if x[0, 0, 0, 0] == 1:
            entered.set()
            assert released.wait(20)

    api, _ = start(hooked(hold, Catalog.open([zoo])))
    engine = api.app.state.engine
    network = weakref.ref(engine.catalog.defense("cifar10", "none").classifier)
    running = api.portal.start_task_soon(lambda: api._client.post("/classify", content=png(255)))
    assert entered.wait(10)
    api.portal.call(engine.adopt, engine.catalog.without(*TOY))
    gc.collect()
    assert network() is not None
    released.set()
    assert running.result(10).status_code == 200
    del running
    give_up = time.monotonic() + 10
    while network() is not None:  # the worker's thread may still have to let go of the batch
        assert time.monotonic() < give_up
        gc.collect()


def change_card(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    card = json.loads((folder / CARD).read_text())
    change(card)
    (folder / CARD).write_text(json.dumps(card))


def cut(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-1])


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "weights cut off": (cut, "its SHA-256 is"),
    "no weights": (lambda folder: (folder / WEIGHTS).unlink(), "can't be read"),
    "not a card": (lambda folder: (folder / CARD).write_text("{}"), "not a valid card"),
    "another architecture": (
        lambda folder: change_card(folder, lambda card: card["arguments"].update(aux="decoder")),
        "weights and card don't fit together",
    ),
    "settings that don't fit": (
        lambda folder: change_card(folder, lambda card: card["purifiers"]["soap-rp"]["settings"].update(steps=-1)),
        "'soap-rp' failed on the warm-up image: CheckpointError",
    ),
    "too few labels": (
        lambda folder: change_card(folder, lambda card: card["labels"].pop()),
        "the network tells 10 classes apart, the card names 9",
    ),
    "no purifier": (lambda folder: change_card(folder, lambda card: card.update(purifiers={})), "offers no purifier"),
}


@pytest.fixture(scope="module")
def served(run: Any, zoo: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, Admin, Path]]:
    """One service for what must leave it untouched."""
    root = tmp_path_factory.mktemp("root")
    with run(Settings(admin_root=root), Catalog.open([zoo])) as api:
        api.wait_ready()
        yield api, Admin(api), root


@pytest.fixture
def untouched(served: tuple[Any, Admin, Path], png: Any) -> Iterator[tuple[Admin, Path]]:
    """After the test the service must answer as before."""
    api, admin, root = served
    catalog, listed = api.app.state.engine.catalog, admin.loaded()
    answer = api.post("/classify?seed=1", content=png()).json()
    yield admin, root
    for folder in root.iterdir():
        folder.unlink() if folder.is_symlink() else shutil.rmtree(folder)
    assert api.app.state.engine.catalog is catalog
    assert admin.loaded() == listed
    again = api.post("/classify?seed=1", content=png()).json()
    assert {**again, "request_id": "", "timings": ""} == {**answer, "request_id": "", "timings": ""}


@pytest.mark.parametrize("fault", FAULTS)
def test_an_unusable_checkpoint_is_refused_and_the_old_one_stays(
    untouched: tuple[Admin, Path], zoo: Path, fault: str
) -> None:
    admin, root = untouched
    damage, reason = FAULTS[fault]
    shutil.copytree(zoo / "cifar10-toy", root / "new")
    sha256 = read_card(root / "new").weights_sha256
    damage(root / "new")
    reply = admin.load("new", sha256)
    assert (reply.status_code, reply.json()["code"]) == (422, "checkpoint-refused"), reply.text
    assert reply.headers["Content-Type"] == "application/problem+json"
    assert reason in reply.json()["detail"]


def test_an_answer_that_is_not_a_number_is_refused(untouched: tuple[Admin, Path], make: Any, root: Path) -> None:
    admin, served_root = untouched
    sha256 = make("broken", damage=lambda network: network.classifier_head.weight.data.fill_(float("nan")))
    shutil.copytree(root / "broken", served_root / "broken")
    reply = admin.load("broken", sha256)
    assert (reply.status_code, reply.json()["code"]) == (422, "checkpoint-refused")
    assert "not a finite number" in reply.json()["detail"]


def test_other_weights_than_the_request_names_are_refused(untouched: tuple[Admin, Path], zoo: Path) -> None:
    admin, root = untouched
    shutil.copytree(zoo / "cifar10-toy", root / "new")
    reply = admin.load("new", "0" * 64)
    assert (reply.status_code, reply.json()["code"]) == (409, "wrong-checksum")
    assert reply.json()["found"] == read_card(root / "new").weights_sha256


@pytest.mark.parametrize("query", ["", "?sha256=", "?sha256=ABC", f"?sha256={'0' * 64}%0a"])
def test_without_a_checksum_nothing_is_loaded(untouched: tuple[Admin, Path], query: str) -> None:
    reply = untouched[0].request("PUT", f"/checkpoints/new{query}")
    assert (reply.status_code, reply.json()["code"]) == (422, "bad-parameter")
    assert "sha256" in reply.json()["detail"]


def test_a_swap_that_would_end_the_default_is_refused(untouched: tuple[Admin, Path], zoo: Path) -> None:
    admin, root = untouched
    shutil.copytree(zoo / "cifar10-plain", root / "new")
    change_card(root / "new", lambda card: card.update(classifier="toy"))
    reply = admin.load("new", read_card(root / "new").weights_sha256)
    assert (reply.status_code, reply.json()["code"]) == (409, "default-needed")
    assert "cifar10/soap-lc" in reply.json()["detail"]


@pytest.mark.parametrize(
    "name", ["..", "%2e%2e", "..%2fzoo", "%2fetc", ".", ".hidden", "a%5cb", "a%00", "a%0a", "x" * 300]
)
def test_a_name_that_is_no_plain_folder_name_is_refused(untouched: tuple[Admin, Path], name: str) -> None:
    admin, _ = untouched
    url = httpx.URL("http://localhost").copy_with(raw_path=f"/checkpoints/{name}?sha256={'0' * 64}".encode())
    reply = admin.request("PUT", url)
    assert reply.status_code in (404, 405, 422), reply.text
    assert reply.json()["code"] in ("not-found", "method-not-allowed", "bad-parameter")


def test_an_unknown_folder_is_answered_with_those_there_are(untouched: tuple[Admin, Path], zoo: Path) -> None:
    admin, root = untouched
    shutil.copytree(zoo / "cifar10-toy", root / "one")
    (root / "empty").mkdir()
    reply = admin.load("two", "0" * 64)
    assert (reply.status_code, reply.json()["code"], reply.json()["known"]) == (404, "unknown-checkpoint", ["one"])


@pytest.mark.parametrize("link", ["folder", CARD, WEIGHTS])
def test_links_that_lead_out_of_the_root_are_refused(untouched: tuple[Admin, Path], zoo: Path, link: str) -> None:
    admin, root = untouched
    outside = zoo / "cifar10-toy"
    if link == "folder":
        (root / "new").symlink_to(outside)
    else:
        shutil.copytree(outside, root / "new")
        (root / "new" / link).unlink()
        (root / "new" / link).symlink_to(outside / link)
    reply = admin.load("new", read_card(outside).weights_sha256)
    assert (reply.status_code, reply.json()["code"]) == (422, "checkpoint-refused")
    assert "leads out of" in reply.json()["detail"]


def test_a_link_to_a_neighbour_is_followed(start: Any, fresh: Catalog, make: Any, root: Path) -> None:
    _, admin = start(fresh)
    sha256 = make("version-2")
    (root / "current").symlink_to("version-2")
    assert admin.load("current", sha256).json()["checkpoint"]["folder"] == "current"


def test_without_a_root_nothing_is_loaded(run: Any, catalog: Catalog) -> None:
    with run(Settings(), catalog) as api:
        api.wait_ready()
        reply = Admin(api).load("new", "0" * 64)
        assert (reply.status_code, reply.json()["code"]) == (422, "checkpoint-refused")
        assert "UNPERTURB_ADMIN_ROOT" in reply.json()["detail"]
        assert len(Admin(api).loaded()) == 3


def test_unloaded_is_not_served_any_more(start: Any, fresh: Catalog, png: Any) -> None:
    api, admin = start(fresh)
    assert admin.unload("mnist", "fcn").json()["name"] == "fcn"
    assert set(admin.loaded()) == {("cifar10", "plain"), TOY}
    reply = api.post("/classify?model=mnist&purifier=none", content=png()).json()
    assert (reply["code"], reply["known"]) == ("unknown-model", ["cifar10"])
    assert api.get("/readyz").status_code == 200


@pytest.mark.parametrize(
    ("names", "params", "status", "code"),
    [
        (TOY, {}, 409, "default-needed"),
        (("mnist", "fcn"), {"sha256": "0" * 64}, 409, "wrong-checksum"),
        (("mnist", "lenet"), {}, 404, "unknown-checkpoint"),
        (("mnist", "fcn"), {"sha256": "x"}, 422, "bad-parameter"),
    ],
)
def test_what_may_not_be_unloaded_stays(
    untouched: tuple[Admin, Path], names: tuple[str, str], params: dict[str, str], status: int, code: str
) -> None:
    reply = untouched[0].unload(*names, **params)
    assert (reply.status_code, reply.json()["code"]) == (status, code)


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "POST"])
@pytest.mark.parametrize("path", ["/checkpoints", "/checkpoints/new", "/checkpoints/cifar10/toy"])
def test_the_images_port_knows_nothing_of_it(served: tuple[Any, Admin, Path], method: str, path: str) -> None:
    assert served[0].request(method, path).status_code == 404


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "10.0.0.1:8001"])
def test_another_host_name_is_refused(untouched: tuple[Admin, Path], host: str) -> None:
    reply = untouched[0].request("DELETE", "/checkpoints/mnist/fcn", headers={"Host": host})
    assert (reply.status_code, reply.json()["code"]) == (421, "misdirected-request")


def test_requests_have_ids_and_lines_in_the_log(
    served: tuple[Any, Admin, Path], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        reply = served[1].request("GET", "/checkpoints", headers={"X-Request-ID": "mine"})
    assert reply.headers["X-Request-ID"] == "mine"
    assert "request_id=mine method=GET path=/checkpoints" in caplog.text


@pytest.fixture
def make_addon(zoo: Path, root: Path) -> Callable[..., str]:
    """A small generator for the toy classifier, as a folder of the root. Returns the weights' checksum."""

    def build(name: str, where: Path = root, **fields: Any) -> str:
        protected = read_card(zoo / "cifar10-toy")
        card = {
            **{
                "part": "purifier",
                "model": "cifar10",
                "addon": "generator",
                "network": "pix2pix",
                "arguments": {"width": 8},
            },
            **{"classifier": "toy", "classifier_sha256": protected.weights_sha256, "protects": "classifier"},
            **{"input": protected.input.model_dump(), "purifiers": {"clean-up": {"kind": "pix2pix"}}, "training": {}},
        }
        return save_checkpoint(where / name, build_network("pix2pix", width=8), {**card, **fields}).weights_sha256

    return build


def test_an_add_on_is_loaded_used_and_unloaded(start: Any, fresh: Catalog, make_addon: Any, png: Any) -> None:
    api, admin = start(fresh)
    sha256 = make_addon("generator")
    assert admin.load("generator", sha256).status_code == 200
    assert admin.loaded()["cifar10", "generator"]["part"] == "purifier"
    reply = api.post("/classify?purifier=clean-up%2Bsoap-lc", content=png()).json()
    assert (reply["classifier"], reply["addon_sha256"]) == ("toy", [sha256])
    assert [step["purifier"] for step in reply["purification"]["steps"]] == ["clean-up", "soap-lc"]
    assert admin.unload("cifar10", "generator", sha256=sha256).status_code == 200
    gone = api.post("/classify?purifier=clean-up", content=png()).json()
    assert gone["code"] == "unknown-purifier"


@pytest.mark.parametrize(
    ("fields", "detail"),
    [
        ({"classifier_sha256": "0" * 64}, "protects a classifier that is not loaded"),
        ({"purifiers": {"soap-lc": {"kind": "pix2pix"}}}, "has a purifier 'soap-lc' already"),
        ({"purifiers": {"clean-up": {"kind": "aid"}}}, "needs a network of its own of type AidDiscriminator"),
        ({"arguments": {"width": 4}}, "weights and card don't fit together"),
    ],
)
def test_an_add_on_that_can_not_serve_is_refused(
    untouched: tuple[Admin, Path], make_addon: Any, fields: dict[str, Any], detail: str
) -> None:
    admin, root = untouched
    reply = admin.load("generator", make_addon("generator", root, **fields))
    assert (reply.status_code, reply.json()["code"]) == (422, "checkpoint-refused")
    assert detail in reply.json()["detail"]


def test_swapping_a_classifier_leaves_its_add_on_unoffered(
    start: Any, fresh: Catalog, make: Any, make_addon: Any, png: Any
) -> None:
    api, admin = start(fresh)
    assert admin.load("generator", make_addon("generator")).status_code == 200
    assert admin.load("version-2", make("version-2")).status_code == 200
    assert api.post("/classify?purifier=clean-up", content=png()).json()["code"] == "unknown-purifier"
    assert ("cifar10", "generator") in admin.loaded()

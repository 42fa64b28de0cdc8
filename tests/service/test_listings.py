from typing import Any

from service.settings import Settings


def test_root_leads_to_the_docs(api: Any) -> None:
    response = api.get("/")
    assert (response.status_code, response.headers["Location"]) == (307, "docs")


def test_purifiers_tell_what_they_are_and_cost(api: Any) -> None:
    listing = api.get("/purifiers").json()
    found = {(each["model"], each["classifier"], each["purifier"]): each for each in listing["purifiers"]}
    assert listing["default_purifier"] == "soap-lc"
    assert len(found) == 7
    lc = found["cifar10", "toy", "soap-lc"]
    assert lc["cost"] == {"forward_passes": 6, "backward_passes": 2}
    assert lc["eps_pfy"] == 8 / 255
    assert "Shi" in lc["paper"]
    assert lc["settings"]["selection"] == "best-iterate"
    assert lc["measured"] == [
        {
            **{"attack": "none", "purifier": "soap-lc", "addons": [], "accuracy": 0.1, "n": 10},
            **{"paper": None, "detail": "untrained"},
        }
    ]


def test_the_worst_that_was_found_is_told_with_the_rest(api: Any) -> None:
    (worst,) = next(
        each["worst"] for each in api.get("/purifiers").json()["purifiers"] if each["purifier"] == "soap-lc"
    )
    assert (worst["purifier"], worst["adaptive"], worst["worst"], worst["n"]) == ("soap-lc", 0.5, 0.4, 10)
    _, toy = api.get("/models").json()["models"][0]["classifiers"]
    assert toy["worst"] == [worst]


def test_purifiers_say_which_classifier_is_taken(api: Any) -> None:
    none = [each for each in api.get("/purifiers").json()["purifiers"] if each["purifier"] == "none"]
    assert {(each["model"], each["classifier"]): each["default"] for each in none} == {
        ("cifar10", "plain"): False,
        ("cifar10", "toy"): True,
        ("mnist", "fcn"): True,
    }


def test_models_tell_their_classifiers(api: Any) -> None:
    listing = api.get("/models").json()
    assert listing["default_model"] == "cifar10"
    assert [each["model"] for each in listing["models"]] == ["cifar10", "mnist"]
    plain, toy = listing["models"][0]["classifiers"]
    assert (plain["classifier"], plain["purifiers"], plain["default_for"]) == ("plain", ["none"], [])
    assert toy["default_for"] == ["none", "soap-lc", "soap-lc-random", "soap-rp"]
    assert toy["input"] == {"channels": 3, "height": 32, "width": 32, "resize": "bilinear-antialias"}
    assert toy["labels"][3] == "cifar10-3"


def test_every_listed_purifier_can_be_asked_for(api: Any, png: Any) -> None:
    for each in api.get("/purifiers").json()["purifiers"]:
        query = {name: each[name] for name in ("model", "classifier", "purifier")}
        reply = api.post("/classify", params=query, content=png()).json()
        assert {name: reply[name] for name in query} == query


def test_live_and_ready(api: Any) -> None:
    assert api.get("/livez").json() == {"status": "ok"}
    assert api.get("/readyz").json() == {"status": "ok"}


def test_missing_zoo_is_live_but_not_ready_and_says_why(run: Any, tmp_path: Any, png: Any) -> None:
    with run(Settings(zoo=(tmp_path,)), None) as api:
        while "not loaded yet" in api.get("/readyz").text:
            pass
        ready = api.get("/readyz")
        assert (ready.status_code, ready.headers["Retry-After"]) == (503, "2")
        assert "no checkpoint here" in ready.json()["detail"]
        assert api.get("/livez").status_code == 200
        for path in ("/purifiers", "/models"):
            assert api.get(path).json()["code"] == "not-ready"
        assert api.post("/classify", content=png()).json()["code"] == "not-ready"

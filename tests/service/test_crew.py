"""Helper processes do what this one would, say what went wrong, and are replaced when they die."""

import gc
import multiprocessing
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from models.catalog import Catalog
from models.purifiers import Options
from service import crew as crew_module
from service.crew import Crew, HelperDied, Superseded
from service.pipeline import Answer, Lane, Work, run_batch
from service.settings import Settings
from service.threads import use_cores

LONG = 1000  # steps that nobody waits for: several seconds


@pytest.fixture(scope="module")
def crew() -> Iterator[Crew]:
    made = Crew(2)
    made.begin()
    yield made
    made.close()


@pytest.fixture(autouse=True)
def _one_thread_as_a_helper_has() -> Iterator[None]:
    before = torch.get_num_threads()
    use_cores(1)
    yield
    use_cores(before)


@pytest.mark.parametrize(
    ("settings", "made"),
    [
        ({"threads": 1, "processes": None}, None),
        ({"threads": 4, "processes": 1}, None),
        ({"threads": 4, "processes": None, "device": "cuda"}, None),
        ({"threads": 4, "processes": None}, (4, 1)),
        ({"threads": 64, "processes": None}, (8, 8)),
        ({"threads": 6, "processes": 2}, (2, 3)),
        ({"threads": 2, "processes": 4}, (4, 1)),
    ],
)
def test_helpers_are_for_cpus_with_several_cores(settings: dict[str, Any], made: tuple[int, int] | None) -> None:
    found = crew_module.crew_of(Settings(**settings))
    assert (found and (found.size, found.threads)) == made


def works(count: int, **wants: bool) -> list[Work]:
    images = torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    return [Work(image, seed, **wants) for seed, image in enumerate(images)]


def lane_of(catalog: Catalog, purifier: str, **options: float) -> Lane:
    return Lane.of(catalog.defense("cifar10", purifier), Options(**options), (3, 32, 32))


def plain(answer: Answer | Exception) -> tuple[Answer, Tensor | None]:
    """What two answers to the same image have in common."""
    assert isinstance(answer, Answer)
    return replace(answer, purify_ms=0.0, image=None), answer.image


@pytest.mark.parametrize("count", [1, 2, 3, 5, 40])
@pytest.mark.parametrize(
    ("purifier", "options"), [("none", {}), ("soap-lc", {}), ("soap-lc", {"steps": 1}), ("soap-lc-random", {})]
)
def test_a_batch_gets_the_answers_that_this_process_would_give(
    crew: Crew, catalog: Catalog, purifier: str, options: dict[str, float], count: int
) -> None:
    lane = lane_of(catalog, purifier, **options)
    asked = works(count, want_image=True, want_before=True)
    for theirs, ours in zip(crew.run(lane, asked), run_batch(lane, asked), strict=True):
        (told, image), (expected, same) = plain(theirs), plain(ours)
        assert told == expected
        assert image is not None
        assert same is not None
        assert torch.equal(image, same)


def test_a_batch_is_split_evenly_but_two_images_stay_together() -> None:
    def sizes(count: int, hands: int) -> list[int]:
        return [part.stop - part.start for part in crew_module._parts(count, hands)]

    assert [sizes(count, 4) for count in (1, 2, 3, 4, 5, 8, 9, 32)] == [
        *([1], [2], [1, 2], [2, 2], [1, 2, 2], [2, 2, 2, 2], [2, 2, 2, 3], [8, 8, 8, 8])
    ]


def test_what_a_helper_raises_is_raised_here_and_says_where_it_was(crew: Crew, catalog: Catalog) -> None:
    lane = lane_of(catalog, "none")
    with pytest.raises(RuntimeError) as caught:
        crew.run(lane, [Work(work.image[:2], 0) for work in works(4)])  # two channels instead of three
    assert any("in a helper process" in note and "pipeline.py" in note for note in caught.value.__notes__)
    assert len(crew.run(lane, works(4))) == 4


def kill_helpers() -> None:
    for each in multiprocessing.active_children():
        each.kill()
        each.join()


def test_who_dies_is_replaced_and_the_images_are_not_lost(crew: Crew, catalog: Catalog) -> None:
    lane = lane_of(catalog, "soap-lc")
    before = crew.run(lane, works(4))
    kill_helpers()
    assert [plain(each)[0] for each in crew.run(lane, works(4))] == [plain(each)[0] for each in before]


def test_images_that_cost_two_helpers_their_lives_are_given_up(crew: Crew, catalog: Catalog) -> None:
    done = threading.Event()

    def rage() -> None:
        while not done.wait(0.1):
            kill_helpers()

    raging = threading.Thread(target=rage)
    raging.start()
    with pytest.raises(HelperDied, match="ended with -9"):
        crew.run(lane_of(catalog, "soap-lc", steps=LONG), works(4))
    done.set()
    raging.join()
    assert len(crew.run(lane_of(catalog, "none"), works(4))) == 4


def test_helpers_stop_between_steps_when_nobody_waits_any_more(crew: Crew, catalog: Catalog) -> None:
    asked = 0

    def wanted() -> list[bool]:
        nonlocal asked
        asked += 1
        return [asked < 3] * 4

    found = crew.run(lane_of(catalog, "soap-lc", steps=LONG, epsilon=1.0), works(4), wanted)
    assert max(each.linf for each in found if isinstance(each, Answer)) < 0.5  # steps are of 4/255
    assert asked >= 3


def test_who_is_in_a_hurry_gets_what_has_been_reached_and_neighbours_the_whole(crew: Crew, catalog: Catalog) -> None:
    hurries = [crew_module.Wish.HURRIES, crew_module.Wish.WAITS]
    one, other = crew.run(lane_of(catalog, "soap-lc", steps=400), works(2), lambda: hurries)
    assert isinstance(one, Answer)
    assert isinstance(other, Answer)
    assert 0 < one.backward_passes < other.backward_passes == 400


def test_another_thread_takes_over_from_one_that_hangs(catalog: Catalog) -> None:
    crew, outcome = Crew(2), list[Any]()
    lane = lane_of(catalog, "soap-lc", steps=LONG)
    begun = threading.Event()

    def hang() -> None:
        crew.begin()
        begun.set()
        for _ in range(2):
            try:
                outcome.append(crew.run(lane, works(4)))
            except RuntimeError as error:
                outcome.append(error)

    old = threading.Thread(target=hang)
    old.start()
    assert begun.wait(60)
    time.sleep(0.3)
    crew.begin()
    old.join(60)
    assert [type(each) for each in outcome] == [Superseded, Superseded]
    assert len(crew.run(lane_of(catalog, "none"), works(4))) == 4
    crew.close()


def test_a_helper_gets_each_network_once_and_forgets_what_is_gone_here(catalog: Catalog) -> None:
    store, has = crew_module._Store(), set[int]()
    defenses = [catalog.defense("cifar10", name) for name in ("none", "soap-lc", "soap-rp")]
    parcels = [store.parcel(defense, has) for defense in [*defenses, *defenses]]
    # A frozen network's folded copy aside, all three are on one classifier.
    assert sum(len(parcel.networks) for parcel in parcels[1:]) < len(defenses)
    assert [len(parcel.defenses) for parcel in parcels] == [1, 1, 1, 0, 0, 0]
    short_lived = replace(defenses[0])
    number = store.number(short_lived)
    store.parcel(short_lived, has)
    del short_lived
    gc.collect()
    assert store.parcel(defenses[0], has).forget == {number}
    assert store.parcel(defenses[0], has).forget == frozenset()


class Stubborn(Exception):
    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} and {two}")


def test_an_exception_that_can_not_be_sent_is_told() -> None:
    told = crew_module._told(Stubborn(1, 2))
    assert (type(told), str(told)) == (RuntimeError, "Stubborn: 1 and 2")
    assert str(crew_module._told(ValueError("x"))) == "x"

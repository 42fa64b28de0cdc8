"""Helper processes do what this one would, say what went wrong, and are replaced when they die."""

import gc
import multiprocessing
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from models.catalog import Catalog
from models.purifiers import Options, Wanted, Wish
from service import crew
from service.crew import Hand, HelperDied, Here, Superseded
from service.decode import File
from service.desk import Ran
from service.errors import NotAnImage
from service.pipeline import Answer, Lane, Work, run_batch
from service.settings import Settings
from service.threads import use_cores

LONG = 1000  # steps that nobody waits for: several seconds

Run = Callable[..., Sequence[Answer | Exception]]


def running(hand: Hand) -> Run:
    """How its batches run, by default for callers who wait, and without guests."""
    ordered = hand.begin()

    def run(
        lane: Lane,
        asked: Sequence[Work],
        wanted: Wanted | None = None,
        meanwhile: Callable[[], None] = lambda: None,
    ) -> Sequence[Answer | Exception]:
        return ordered(lane, asked, wanted or (lambda: [True] * len(asked)), meanwhile).results

    return run


@pytest.fixture(scope="module")
def run() -> Iterator[Run]:
    hand = Hand(crew._Store(), 1)
    yield running(hand)
    hand.close()


@pytest.fixture(autouse=True)
def _one_thread_as_a_helper_has() -> Iterator[None]:
    before = torch.get_num_threads()
    use_cores(1)
    yield
    use_cores(before)


@pytest.mark.parametrize(
    ("settings", "made"),
    [
        ({"threads": 1, "processes": None}, [(Here, 1)]),
        ({"threads": 4, "processes": 1}, [(Here, 4)]),
        ({"threads": 4, "processes": None, "device": "cuda"}, [(Here, 4)]),
        ({"threads": 4, "processes": None}, [(Hand, 1)] * 4),
        ({"threads": 64, "processes": None}, [(Hand, 8)] * 8),
        ({"threads": 6, "processes": 2}, [(Hand, 3)] * 2),
        ({"threads": 2, "processes": 4}, [(Hand, 1)] * 4),
    ],
)
def test_helpers_are_for_cpus_with_several_cores(settings: dict[str, Any], made: list[tuple[type, int]]) -> None:
    assert [(type(seat), seat.threads) for seat in crew.seats(Settings(**settings))] == made


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
    run: Run, catalog: Catalog, purifier: str, options: dict[str, float], count: int
) -> None:
    lane = lane_of(catalog, purifier, **options)
    asked = works(count, want_image=True, want_before=True)
    for theirs, ours in zip(run(lane, asked), run_batch(lane, asked), strict=True):
        (told, image), (expected, same) = plain(theirs), plain(ours)
        assert told == expected
        assert image is not None
        assert same is not None
        assert torch.equal(image, same)


def test_files_are_decoded_by_the_helper_and_a_broken_one_fails_alone(run: Run, catalog: Catalog, png: Any) -> None:
    lane, image = lane_of(catalog, "none"), works(1)[0]
    good, broken, plain_image = run(lane, [Work(File(png(), 2**20), 0), Work(File(b"broken", 2**20), 0), image])
    assert isinstance(broken, NotAnImage)
    assert [isinstance(each, Answer) for each in (good, plain_image)] == [True, True]


def test_what_a_helper_raises_is_raised_here_and_says_where_it_was(run: Run, catalog: Catalog) -> None:
    lane = lane_of(catalog, "none")
    with pytest.raises(RuntimeError) as caught:
        run(lane, [Work(work.image[:2], 0) for work in works(4)])  # two channels instead of three
    assert any("in a helper process" in note and "pipeline.py" in note for note in caught.value.__notes__)
    assert len(run(lane, works(4))) == 4


def kill_helpers() -> None:
    for each in multiprocessing.active_children():
        each.kill()
        each.join()


def test_who_dies_is_replaced_and_the_images_are_not_lost(run: Run, catalog: Catalog) -> None:
    lane = lane_of(catalog, "soap-lc")
    before = run(lane, works(4))
    kill_helpers()
    assert [plain(each)[0] for each in run(lane, works(4))] == [plain(each)[0] for each in before]


def test_images_that_cost_two_helpers_their_lives_are_given_up(run: Run, catalog: Catalog) -> None:
    done = threading.Event()

    def rage() -> None:
        while not done.wait(0.1):
            kill_helpers()

    raging = threading.Thread(target=rage)
    raging.start()
    with pytest.raises(HelperDied, match="ended with -9"):
        run(lane_of(catalog, "soap-lc", steps=LONG), works(4))
    done.set()
    raging.join()
    assert len(run(lane_of(catalog, "none"), works(4))) == 4


def test_helpers_stop_between_steps_when_nobody_waits_any_more(run: Run, catalog: Catalog) -> None:
    asked = 0

    def wanted() -> list[bool]:
        nonlocal asked
        asked += 1
        return [asked < 3] * 4

    found = run(lane_of(catalog, "soap-lc", steps=LONG, epsilon=1.0), works(4), wanted)
    assert max(each.linf for each in found if isinstance(each, Answer)) < 0.5  # steps are of 4/255
    assert asked >= 3


def test_who_is_in_a_hurry_gets_what_has_been_reached_and_neighbours_the_whole(run: Run, catalog: Catalog) -> None:
    hurries = [Wish.HURRIES, Wish.WAITS]
    one, other = run(lane_of(catalog, "soap-lc", steps=400), works(2), lambda: hurries)
    assert isinstance(one, Answer)
    assert isinstance(other, Answer)
    assert 0 < one.backward_passes < other.backward_passes == 400


def test_a_guest_is_run_between_two_steps_and_its_host_goes_on(run: Run, catalog: Catalog) -> None:
    """Both with the answers that they would get alone."""
    lane, quick, guests = lane_of(catalog, "soap-lc", steps=40), lane_of(catalog, "none"), list[Any]()
    alone = run(lane, works(2)), run(quick, works(3))

    def meanwhile() -> None:
        if len(guests) < 2:
            guests.append(run(quick, works(3)))

    host = run(lane, works(2), None, meanwhile)
    assert len(guests) == 2
    for found, expected in zip([host, *guests], [alone[0], alone[1], alone[1]], strict=True):
        assert [plain(each) for each in found] == [plain(each) for each in expected]


def test_a_guests_time_is_what_its_helper_worked_on_it(catalog: Catalog) -> None:
    """Not the rest of its host's step, for which it waited."""
    hand, took = Hand(crew._Store(), 1), list[tuple[Ran[Answer], float]]()
    ordered, patient = hand.begin(), works(64)  # so many that a step takes far longer than the guest

    def meanwhile() -> None:
        if not took:
            started = time.perf_counter()
            guest = ordered(lane_of(catalog, "none"), works(1), lambda: [True], lambda: None)
            took.append((guest, time.perf_counter() - started))

    for lane in (lane_of(catalog, "none"), lane_of(catalog, "soap-lc", steps=1)):  # the first of each is slow
        ordered(lane, works(1), lambda: [True], lambda: None)
    host = ordered(lane_of(catalog, "soap-lc", steps=4), patient, lambda: [True] * len(patient), meanwhile)
    hand.close()
    guest, waited_s = took[0]
    assert host.seconds is None  # all of it: nothing was ahead of it
    assert guest.seconds is not None
    assert 0 < guest.seconds < waited_s / 2


def test_a_guest_that_raises_leaves_its_host_alone(run: Run, catalog: Catalog) -> None:
    raised = list[RuntimeError]()

    def meanwhile() -> None:
        if not raised:
            with pytest.raises(RuntimeError) as caught:
                run(lane_of(catalog, "none"), [Work(torch.rand(2, 32, 32), 0)])
            raised.append(caught.value)

    assert len(run(lane_of(catalog, "soap-lc", steps=40), works(2), None, meanwhile)) == 2
    assert raised


def test_a_helper_that_dies_with_a_guest_costs_neither_an_answer(run: Run, catalog: Catalog) -> None:
    """Tried again one after the other, so that the one whose fault it is dies alone."""
    guests = list[Any]()

    def meanwhile() -> None:
        if not guests:
            kill_helpers()
            guests.append(run(lane_of(catalog, "none"), works(3)))

    assert len(run(lane_of(catalog, "soap-lc", steps=40), works(2), None, meanwhile)) == 2
    assert [len(each) for each in guests] == [3]


def test_another_thread_takes_over_from_one_that_hangs(catalog: Catalog) -> None:
    hand, outcome = Hand(crew._Store(), 1), list[Any]()
    lane = lane_of(catalog, "soap-lc", steps=LONG)
    begun = threading.Event()

    def hang() -> None:
        run = running(hand)
        begun.set()
        for _ in range(2):
            try:
                outcome.append(run(lane, works(4)))
            except RuntimeError as error:
                outcome.append(error)

    old = threading.Thread(target=hang)
    old.start()
    assert begun.wait(60)
    time.sleep(0.3)
    run = running(hand)
    old.join(60)
    assert [type(each) for each in outcome] == [Superseded, Superseded]
    assert len(run(lane_of(catalog, "none"), works(4))) == 4
    hand.close()


def test_in_this_process_guests_come_between_two_steps_too(catalog: Catalog) -> None:
    run, guests = Here(1).begin(), list[Any]()

    def meanwhile() -> None:
        if not guests:
            guests.append(run(lane_of(catalog, "none"), works(3), lambda: [True] * 3, lambda: None))

    host = run(lane_of(catalog, "soap-lc", steps=2), works(2), lambda: [True] * 2, meanwhile)
    assert [len(each.results) for each in (host, *guests)] == [2, 3]


def test_a_helper_gets_each_network_once_and_forgets_what_is_gone_here(catalog: Catalog) -> None:
    store, has = crew._Store(), set[int]()
    defenses = [catalog.defense("cifar10", name) for name in ("none", "soap-lc", "soap-rp")]
    parcels = [store.parcel(defense, has)[1] for defense in [*defenses, *defenses]]
    # A frozen network's folded copy aside, all three are on one classifier.
    assert sum(len(parcel.networks) for parcel in parcels[1:]) < len(defenses)
    assert [len(parcel.defenses) for parcel in parcels] == [1, 1, 1, 0, 0, 0]
    short_lived = replace(defenses[0])
    number = store.number(short_lived)
    store.parcel(short_lived, has)
    del short_lived
    gc.collect()
    assert store.parcel(defenses[0], has)[1].forget == {number}
    assert store.parcel(defenses[0], has)[1].forget == frozenset()


class Stubborn(Exception):
    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} and {two}")


def test_an_exception_that_can_not_be_sent_is_told() -> None:
    told = crew._told(Stubborn(1, 2))
    assert (type(told), str(told)) == (RuntimeError, "Stubborn: 1 and 2")
    assert str(crew._told(ValueError("x"))) == "x"


def test_a_helper_leaves_quietly_when_the_service_ended_with_its_reply_unread(monkeypatch: pytest.MonkeyPatch) -> None:
    for changes_this_process in ("signal.signal", "os.nice"):
        monkeypatch.setattr(f"service.crew.{changes_this_process}", lambda *_: None)
    monkeypatch.setattr(crew, "spare_collector", lambda: None)
    ours, theirs = multiprocessing.Pipe()
    theirs.send_bytes(b"a reply")
    ours.close()
    crew._help(theirs, torch.get_num_threads())

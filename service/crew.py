"""Helper processes that share every batch on a CPU: a few images each, at the same time.

Small networks gain little from several threads in one operation, and the event loop's Python holds up every operation that a
thread of this process begins. A helper has neither trouble. An image's answer doesn't depend on who works on it or beside what,
since `Defense.purify` doesn't, and each helper takes the same number of threads.
"""

import io
import itertools
import logging
import multiprocessing
import os
import pickle
import signal
import threading
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, replace
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
from numpy.typing import NDArray
from torch import nn

from models.catalog import Defense
from models.purifiers import Options, Wanted, Wish
from service.pipeline import Answer, Lane, Work, run_batch
from service.settings import Settings
from service.threads import CORES, spare_collector, use_cores

log = logging.getLogger(__name__)

# The most helpers that are started unasked: each takes about 120 MB.
MOST = 8

# How often those who wait for an answer are asked whether they still do; helpers hear of changes between two steps.
LOOK_S = 0.005

# Helpers give way to the service's own thread: it refuses, expires and answers in no time, but needs it at once.
NICER = 5

Wishes = list[Wish | bool]
Results = list[Answer | Exception]


class HelperDied(RuntimeError):
    """A helper process ended in the middle of a batch: the operating system killed it, or a library crashed."""


class Superseded(RuntimeError):
    """The calling thread was given up as hung, and another one has taken the helpers over."""


@dataclass(frozen=True)
class _Parcel:
    """What a helper needs before its next order: networks and defenses by number; and what it may forget."""

    networks: dict[int, bytes]
    defenses: dict[int, bytes]
    forget: frozenset[int]


@dataclass(frozen=True)
class _Order:
    """Images (N, C, H, W) float32 of one lane, and what is wanted of each."""

    number: int
    defense: int
    options: Options
    images: NDArray[Any]
    wants: list[tuple[int, bool, bool]]
    parcel: _Parcel


def prepare(settings: Settings) -> None:
    """Begin to import what helpers need, in the process that they will be forked from; it takes seconds, so in good time."""
    if _size(settings) > 1:
        _have_server()


def _have_server() -> None:
    forkserver.set_forkserver_preload([__name__])
    forkserver.ensure_running()


def crew_of(settings: Settings) -> "Crew | None":
    """Helpers where they are of use: on a CPU with several cores."""
    size = _size(settings)
    return Crew(size, max(1, (settings.threads or CORES) // size)) if size > 1 else None


def _size(settings: Settings) -> int:
    if settings.torch_device().type != "cpu":
        return 1
    return settings.processes or min(settings.threads or CORES, MOST)


class Crew:
    """Runs batches like `run_batch`, in `size` processes of `threads` threads each. Used by one thread at a time.

    Whoever is to run batches calls `begin` first; helpers of an earlier thread are ended, with what they were at.
    """

    def __init__(self, size: int, threads: int = 1) -> None:
        self.size, self.threads = size, threads
        self._helpers: list[_Helper] = []
        self._busy, self._mine = threading.Lock(), threading.local()
        self._turn, self._number = 0, itertools.count()
        self._store = _Store()

    def begin(self) -> None:
        """Take the helpers over from whoever had them."""
        self._turn += 1
        self.close()
        _have_server()
        with self._busy:
            self._mine.turn = self._turn
            self._helpers = [_Helper(self.threads) for _ in range(self.size)]

    def close(self) -> None:
        """End the helpers. Who waits for one is told that it died."""
        for helper in self._helpers:
            helper.end()

    def run(self, lane: Lane, works: Sequence[Work], wanted: Wanted | None = None) -> Results:
        """See `run_batch`.

        Raises:
            HelperDied: one did, and the one that took its place too.
            Superseded: another thread has called `begin`.
            Exception: what one of the helpers raised; the others were waited for.
        """
        with self._busy:
            self._check_turn()
            parts = _parts(len(works), self.size)
            # A lone image goes to another helper each time, so that all of them are warm.
            number = next(self._number)
            hands = {(number + i) % self.size: part for i, part in enumerate(parts)}
            for hand, part in hands.items():
                self._order(hand, number, lane, works[part])
            return self._collect(hands, number, lane, works, wanted)

    def _check_turn(self) -> None:
        if getattr(self._mine, "turn", None) != self._turn:
            raise Superseded("another thread has taken the helpers over")

    def _order(self, hand: int, number: int, lane: Lane, works: Sequence[Work]) -> None:
        helper = self._helpers[hand]
        helper.send(
            _Order(
                number=number,
                defense=self._store.number(lane.base),
                options=lane.options,
                images=torch.stack([work.image for work in works]).numpy(),
                wants=[(work.seed, work.want_image, work.want_before) for work in works],
                parcel=self._store.parcel(lane.base, helper.has),
            )
        )

    def _collect(
        self, hands: dict[int, slice], number: int, lane: Lane, works: Sequence[Work], wanted: Wanted | None
    ) -> Results:
        """Wait for all helpers; `hands`: which of the images each of them has."""
        results: list[Answer | Exception | None] = [None] * len(works)
        failure: Exception | None = None
        told: Wishes = [True] * len(works)
        working, replaced = set(hands), set[int]()
        while working:
            for hand in self._heard(working):
                found = self._helpers[hand].receive()
                if isinstance(found, HelperDied):
                    self._check_turn()
                    self._helpers[hand] = _Helper(self.threads)
                    if hand not in replaced:  # once it may have been anything, twice it is one of the images
                        replaced.add(hand)
                        self._order(hand, number, lane, works[hands[hand]])
                        self._helpers[hand].send((number, told[hands[hand]]))
                        continue
                working.discard(hand)
                if isinstance(found, Exception):
                    failure = failure or found
                else:
                    results[hands[hand]] = found
            if working and wanted and (wishes := list(wanted())) != told:
                told = wishes
                for hand in working:
                    self._helpers[hand].send((number, wishes[hands[hand]]))
        if failure is not None:
            raise failure
        return cast(Results, results)

    def _heard(self, working: set[int]) -> list[int]:
        """Who has something to say; waits a little."""
        by_connection = {self._helpers[hand].connection: hand for hand in working}
        return [by_connection[cast(Connection, each)] for each in wait(list(by_connection), LOOK_S)]


def _parts(count: int, size: int) -> list[slice]:
    """How many images each helper gets: as even as can be, but not one each of two, for a lone one is computed twice."""
    hands = min(size, -(-count // 2))
    ends = [count * i // hands for i in range(hands + 1)]
    return [slice(start, end) for start, end in itertools.pairwise(ends)]


class _Store:
    """Numbers for the defenses and networks that helpers were told of, as long as this process keeps them."""

    def __init__(self) -> None:
        self._numbers: WeakKeyDictionary[Any, int] = WeakKeyDictionary()
        self._next = itertools.count()

    def number(self, what: Defense | nn.Module) -> int:
        if what not in self._numbers:
            self._numbers[what] = next(self._next)
        return self._numbers[what]

    def parcel(self, defense: Defense, has: set[int]) -> _Parcel:
        """What who `has` some lacks for this defense; `has` is brought up to date."""
        forget = frozenset(has - set(self._numbers.values()))
        networks, defenses = dict[int, bytes](), dict[int, bytes]()
        if self.number(defense) not in has:
            packer = _Packer(self)
            defenses[self.number(defense)] = packer.packed(replace(defense, addons=()))
            networks = {
                self.number(each): pickle.dumps(each) for each in packer.networks if self.number(each) not in has
            }
        has -= forget
        has |= {*networks, *defenses}
        return _Parcel(networks, defenses, forget)


class _Packer(pickle.Pickler):
    """Pickles with numbers in the place of networks, which several defenses share."""

    def __init__(self, store: _Store) -> None:
        self._into = io.BytesIO()
        super().__init__(self._into, pickle.HIGHEST_PROTOCOL)
        self._store = store
        self.networks: list[nn.Module] = []

    def persistent_id(self, what: Any) -> int | None:
        """See pickle."""
        if not isinstance(what, nn.Module):
            return None
        self.networks.append(what)
        return self._store.number(what)

    def packed(self, what: Defense) -> bytes:
        self.dump(what)
        return self._into.getvalue()


class _Unpacker(pickle.Unpickler):
    def __init__(self, data: bytes, networks: dict[int, nn.Module]) -> None:
        super().__init__(io.BytesIO(data))
        self._networks = networks

    def persistent_load(self, number: Any) -> nn.Module:
        """See pickle."""
        return self._networks[number]


class _Helper:
    """One helper process, seen from here. has: the numbers of what it was sent."""

    def __init__(self, threads: int) -> None:
        context = multiprocessing.get_context("forkserver")
        self.connection, theirs = context.Pipe()
        # A daemon: should this process end in a hurry, it doesn't wait for its helpers.
        self._process = context.Process(target=_help, args=(theirs, threads), name="helper", daemon=True)
        self._process.start()
        theirs.close()
        self.has: set[int] = set()

    def send(self, what: _Order | tuple[int, Wishes]) -> None:
        """Plain bytes: PyTorch's own way with tensors between processes opens a file for each."""
        try:
            self.connection.send_bytes(pickle.dumps(what, pickle.HIGHEST_PROTOCOL))
        except OSError:
            log.debug("a helper is gone; who waits for its answer will see", exc_info=True)

    def receive(self) -> Results | Exception:
        try:
            return cast(Results | Exception, pickle.loads(self.connection.recv_bytes()))
        except (EOFError, OSError):
            self._process.join(1)
            return HelperDied(f"a helper process ended with {self._process.exitcode}")

    def end(self) -> None:
        self._process.kill()


# In the helper.


def _help(connection: Connection, threads: int) -> None:
    """A helper's life: orders come, results go, until the other end is closed."""
    for each in (signal.SIGINT, signal.SIGTERM):  # meant for the service, which ends its helpers when it is done
        signal.signal(each, signal.SIG_IGN)
    os.nice(NICER)
    use_cores(threads)
    spare_collector()
    bench = _Bench(connection)
    try:
        while True:
            bench.work()
    except (EOFError, BrokenPipeError):
        return


class _Bench:
    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._networks: dict[int, nn.Module] = {}
        self._defenses: dict[int, Defense] = {}
        self._wishes: Wishes = []

    def work(self) -> None:
        """Wait for an order and carry it out."""
        order = pickle.loads(self._connection.recv_bytes())
        if not isinstance(order, _Order):
            return  # wishes for a batch that is done
        try:
            reply: Results | Exception = self._carry_out(order)
        except Exception as error:  # the border of the batch: the service decides what becomes of it
            reply = _told(error)
        self._connection.send_bytes(pickle.dumps(reply, pickle.HIGHEST_PROTOCOL))

    def _carry_out(self, order: _Order) -> Results:
        self._unpack(order.parcel)
        images = torch.from_numpy(order.images)
        works = [Work(image, *wants) for image, wants in zip(images, order.wants, strict=True)]
        lane = Lane.of(self._defenses[order.defense], order.options, images.shape[1:])
        self._wishes = [True] * len(works)
        return run_batch(lane, works, lambda: self._wanted(order.number))

    def _unpack(self, parcel: _Parcel) -> None:
        for number in parcel.forget:
            self._networks.pop(number, None)
            self._defenses.pop(number, None)
        self._networks |= {number: pickle.loads(data) for number, data in parcel.networks.items()}
        self._defenses |= {number: _Unpacker(data, self._networks).load() for number, data in parcel.defenses.items()}

    def _wanted(self, number: int) -> Wishes:
        while self._connection.poll():
            of, wishes = pickle.loads(self._connection.recv_bytes())
            if of == number:
                self._wishes = wishes
        return self._wishes


def _told(error: Exception) -> Exception:
    """An exception as it can be sent, with where it came from."""
    where = "in a helper process:\n" + "".join(traceback.format_exception(error))
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # of a class that can't be sent
        error = RuntimeError(f"{type(error).__name__}: {error}")
    error.add_note(where)
    return error

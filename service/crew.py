"""Where batches run: in this process, or on a CPU in helper processes, a batch each at the same time.

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
import select
import signal
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models.catalog import Defense
from models.purifiers import Options, Wanted, Wish
from service import ahead
from service.decode import File
from service.desk import Ran, Run
from service.pipeline import Answer, Lane, Work, run_batch, run_files
from service.settings import Settings
from service.threads import CORES, spare_collector, use_cores

log = logging.getLogger(__name__)

# The most helpers that are started unasked: each takes about 120 MB.
MOST = 8

# How often those who wait for an answer are asked whether they still do, and whether others should be let in; helpers hear of it
# between two steps.
LOOK_S = 0.005

# Helpers give way to the service's own thread: it refuses, expires and answers in no time, but needs it at once.
NICER = 5

Wishes = list[Wish | bool]
Results = list[Answer | Exception]


class HelperDied(RuntimeError):
    """A helper process ended in the middle of a batch: the operating system killed it, or a library crashed."""


class Superseded(RuntimeError):
    """The calling thread was given up as hung, and another one has taken its seat."""


@dataclass(frozen=True)
class _Parcel:
    """What a helper needs before its next order: networks and defenses by number; and what it may forget."""

    networks: dict[int, bytes]
    defenses: dict[int, bytes]
    forget: frozenset[int]


@dataclass(frozen=True)
class _Order:
    """Images (C, H, W) float32 of one lane or their files, and what is wanted of each."""

    number: int
    defense: int
    options: Options
    images: list[NDArray[Any] | File]
    wants: list[tuple[int, bool, bool, float]]
    parcel: _Parcel


@dataclass(frozen=True)
class _Reply:
    """What became of an order, and the seconds that the helper took, guests included."""

    number: int
    outcome: Results | Exception
    seconds: float


def prepare(settings: Settings) -> None:
    """Begin to import what helpers need, in the process that they will be forked from; it takes seconds, so in good time."""
    if _size(settings) > 1:
        ahead.start()


def seats(settings: Settings) -> "list[Here] | list[Hand]":
    """Where batches run: helpers on a CPU with several cores, else this process."""
    size, cores = _size(settings), settings.threads or CORES
    if size == 1:
        return [Here(cores)]
    store = _Store()
    return [Hand(store, max(1, cores // size)) for _ in range(size)]


def _size(settings: Settings) -> int:
    if settings.torch_device().type != "cpu":
        return 1
    return settings.processes or min(settings.threads or CORES, MOST)


class Here:
    """The seat of a worker's thread that runs batches itself, on so many cores. It takes no files: it has better to do."""

    decodes = False

    def __init__(self, threads: int) -> None:
        self.threads = threads

    def begin(self) -> Run[Lane, Work, Answer]:
        """See `Seat`. A thread that hangs can't be ended."""
        use_cores(self.threads)
        return self._run

    def close(self) -> None:
        """There is nothing to end."""

    @staticmethod
    def _run(lane: Lane, works: Sequence[Work], wanted: Wanted, meanwhile: Callable[[], None]) -> Ran[Answer]:
        def wishes() -> Sequence[Wish | bool]:
            meanwhile()
            return wanted()

        return Ran(run_batch(lane, works, wishes))


class Hand:
    """The seat of a worker's thread that has a helper process, of `threads` threads, run its batches, files too."""

    decodes = True

    def __init__(self, store: "_Store", threads: int) -> None:
        self.threads = threads
        self._store = store
        self._life: _Life | None = None

    def begin(self) -> Run[Lane, Work, Answer]:
        """See `Seat`. The helper of an earlier thread is ended, with what it was at."""
        self.close()
        self._life = _Life(self._store, self.threads)
        return self._life.run

    def close(self) -> None:
        """See `Seat`."""
        if self._life is not None:
            self._life.end()


@dataclass(eq=False)
class _Pending:
    """A batch that is not answered yet. guest: it came while another one ran. told: the wishes that its helper knows; None before
    it has the batch. deaths: of helpers that had it."""

    number: int
    lane: Lane
    works: Sequence[Work]
    guest: bool
    told: Wishes | None = None
    deaths: int = 0


class _Life:
    """A helper, and those that take its place, as one thread here uses it: a batch at a time, and guests between its steps."""

    def __init__(self, store: "_Store", threads: int) -> None:
        self._store, self._threads = store, threads
        self._helper = _Helper(threads)
        self._numbers = itertools.count()
        self._pending: list[_Pending] = []
        self._replies: dict[int, _Reply] = {}
        self._over = False

    def end(self) -> None:
        """Whoever waits for the helper finds out at once."""
        self._over = True
        self._helper.end()

    def run(self, lane: Lane, works: Sequence[Work], wanted: Wanted, meanwhile: Callable[[], None]) -> Ran[Answer]:
        """See `Run`; `meanwhile` may call this again. A guest's time is the helper's: it waits for its host's step to end.

        Raises:
            HelperDied: one did, and the one that took its place too.
            Superseded: the seat has been given to another thread.
            Exception: what the helper raised.
        """
        pending = _Pending(next(self._numbers), lane, works, guest=bool(self._pending))
        self._pending.append(pending)
        self._send_next()
        while pending.number not in self._replies:
            if self._helper.ear.hears(LOOK_S):
                self._receive()
            elif not any(each.deaths for each in self._pending):  # who is tried again is tried alone
                meanwhile()
            self._tell(pending, list(wanted()))
        reply = self._replies.pop(pending.number)
        if isinstance(reply.outcome, Exception):
            raise reply.outcome
        return Ran(reply.outcome, reply.seconds if pending.guest else None)

    def _send_next(self) -> None:
        """Give the helper what it hasn't got yet: after a death one after the other, to see whose fault it was."""
        for pending in self._pending:
            if pending.deaths and any(each.told is not None for each in self._pending):
                return
            if pending.told is None:
                pending.told = [True] * len(pending.works)
                self._helper.send(self._order(pending))

    def _order(self, pending: _Pending) -> "_Order":
        number, parcel = self._store.parcel(pending.lane.base, self._helper.has)
        return _Order(
            number=pending.number,
            defense=number,
            options=pending.lane.options,
            images=[
                each.numpy() if isinstance(each, Tensor) else each for each in (work.image for work in pending.works)
            ],
            wants=[(work.seed, work.want_image, work.want_before, work.decode_ms) for work in pending.works],
            parcel=parcel,
        )

    def _tell(self, pending: _Pending, wishes: Wishes) -> None:
        if pending.told is not None and pending.number not in self._replies and wishes != pending.told:
            pending.told = wishes
            self._helper.send((pending.number, wishes))

    def _receive(self) -> None:
        try:
            reply = self._helper.receive()
        except HelperDied as died:
            self._mourn(died)
        else:
            self._file(reply)
        self._send_next()

    def _file(self, reply: _Reply) -> None:
        self._pending = [pending for pending in self._pending if pending.number != reply.number]
        self._replies[reply.number] = reply

    def _mourn(self, died: HelperDied) -> None:
        """Replace the helper. Once it may have been anything, twice it is one of the images."""
        if self._over:
            raise Superseded("the seat has been given to another thread") from died
        self._helper = _Helper(self._threads)
        for pending in [each for each in self._pending if each.told is not None]:
            pending.told, pending.deaths = None, pending.deaths + 1
            if pending.deaths > 1:
                self._file(_Reply(pending.number, died, 0.0))


class _Store:
    """Numbers for the defenses and networks that helpers were told of, as long as this process keeps them. Thread-safe."""

    def __init__(self) -> None:
        self._numbers: WeakKeyDictionary[Any, int] = WeakKeyDictionary()
        self._next = itertools.count()
        self._lock = threading.Lock()

    def number(self, what: Defense | nn.Module) -> int:
        if what not in self._numbers:
            self._numbers[what] = next(self._next)
        return self._numbers[what]

    def parcel(self, defense: Defense, has: set[int]) -> tuple[int, _Parcel]:
        """The defense's number, and what who `has` some lacks for it; `has` is brought up to date."""
        with self._lock:
            return self.number(defense), self._parcel(defense, has)

    def _parcel(self, defense: Defense, has: set[int]) -> _Parcel:
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


class _Ear:
    """`Connection.poll`, which makes a selector for every look: those take longer than a small batch's way back."""

    def __init__(self, connection: Connection) -> None:
        self._poll = select.poll()
        self._poll.register(connection, select.POLLIN)

    def hears(self, timeout_s: float = 0.0) -> bool:
        """Whether something has come, or the other end is gone."""
        return bool(self._poll.poll(1000 * timeout_s))


# Processes are started by the threads of several seats, and `multiprocessing` keeps lists of them.
_starting = threading.Lock()


class _Helper:
    """One helper process, seen from here. has: the numbers of what it was sent."""

    def __init__(self, threads: int) -> None:
        context = multiprocessing.get_context("forkserver")
        self.connection, theirs = context.Pipe()
        # A daemon: should this process end in a hurry, it doesn't wait for its helpers.
        self._process = context.Process(target=_help, args=(theirs, threads), name="helper", daemon=True)
        with _starting:
            ahead.start()
            self._process.start()
        theirs.close()
        self.ear = _Ear(self.connection)
        self.has: set[int] = set()

    def send(self, what: _Order | tuple[int, Wishes]) -> None:
        """Plain bytes: PyTorch's own way with tensors between processes opens a file for each."""
        try:
            self.connection.send_bytes(pickle.dumps(what, pickle.HIGHEST_PROTOCOL))
        except OSError:
            log.debug("a helper is gone; who waits for its answer will see", exc_info=True)

    def receive(self) -> _Reply:
        """What became of an order.

        Raises:
            HelperDied
        """
        try:
            return cast(_Reply, pickle.loads(self.connection.recv_bytes()))
        except (EOFError, OSError) as error:
            self._process.join(1)
            raise HelperDied(f"a helper process ended with {self._process.exitcode}") from error

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
    except (EOFError, ConnectionError):
        return


class _Bench:
    def __init__(self, connection: Connection) -> None:
        self._connection, self._ear = connection, _Ear(connection)
        self._networks: dict[int, nn.Module] = {}
        self._defenses: dict[int, Defense] = {}
        self._wishes: dict[int, Wishes] = {}  # of the batch that runs and, between two of its steps, of its guest

    def work(self) -> None:
        """Wait for a message and do what it says."""
        message = pickle.loads(self._connection.recv_bytes())
        if isinstance(message, _Order):
            self._carry_out(message)
        else:
            number, wishes = message
            if number in self._wishes:  # else it is done already
                self._wishes[number] = wishes

    def _carry_out(self, order: _Order) -> None:
        self._wishes[order.number] = [True] * len(order.wants)
        started = time.perf_counter()
        try:
            outcome: Results | Exception = self._run(order)
        except Exception as error:  # the border of the batch: the service decides what becomes of it
            outcome = _told(error)
        del self._wishes[order.number]
        reply = _Reply(order.number, outcome, time.perf_counter() - started)
        self._connection.send_bytes(pickle.dumps(reply, pickle.HIGHEST_PROTOCOL))

    def _run(self, order: _Order) -> Results:
        self._unpack(order.parcel)
        images = [each if isinstance(each, File) else torch.from_numpy(each) for each in order.images]
        works = [Work(image, *wants) for image, wants in zip(images, order.wants, strict=True)]
        defense = self._defenses[order.defense]
        spec = defense.card.input
        lane = Lane.of(defense, order.options, (spec.channels, spec.height, spec.width))
        return run_files(lane, works, lambda: self._wanted(order.number))

    def _wanted(self, number: int) -> Wishes:
        """Between two steps of a batch: hear what has changed, and run the guests that came."""
        while self._ear.hears():
            self.work()
        return self._wishes[number]

    def _unpack(self, parcel: _Parcel) -> None:
        for number in parcel.forget:
            self._networks.pop(number, None)
            self._defenses.pop(number, None)
        self._networks |= {number: pickle.loads(data) for number, data in parcel.networks.items()}
        self._defenses |= {number: _Unpacker(data, self._networks).load() for number, data in parcel.defenses.items()}


def _told(error: Exception) -> Exception:
    """An exception as it can be sent, with where it came from."""
    where = "in a helper process:\n" + "".join(traceback.format_exception(error))
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # of a class that can't be sent
        error = RuntimeError(f"{type(error).__name__}: {error}")
    error.add_note(where)
    return error

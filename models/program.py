"""Operations of the compiled code in a row, in one call for any number of images of one size: models/program.cpp."""

import ctypes
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from itertools import accumulate, pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from models import compiled

_LINE = 64  # bytes of a cache's
_NONE, _LOCAL = -1, -2  # instead of a buffer's number


class Kind(IntEnum):
    """How an operation computes, as models/program.cpp numbers them."""

    WINOGRAD = 0
    DIRECT = 1
    ROWS = 2  # direct, each image being one pixel
    SUM = 3  # x as it is, then what follows
    MEAN = 4  # of each channel over all pixels
    SPREAD = 5  # its gradient


@dataclass(frozen=True)
class Kernel:
    """An operation on images of one size, (C, H, W) -> (C', H', W'), or (C,) -> (C',) by `Kind.ROWS`.

    weights: as the code of its kind reads them. shape: kernel, stride and padding. together: so many images at a time suit it,
    None where any do.
    """

    kind: Kind
    size: tuple[int, ...]
    output: tuple[int, ...]
    weights: Tensor | None = None
    bias: Tensor | None = None
    shape: tuple[int, int, int] = (1, 1, 0)
    transposed: bool = False
    together: int | None = None


class Entry(NamedTuple):
    """A kernel on what is at the place `x`, to the place `y`. added, gate, slope: see `winograd.convolution`; places as well.

    told: where an activation without a gate puts, in bits, which sums were above 0. signs: such bits, instead of a gate.
    """

    kernel: Kernel
    x: int
    y: int
    added: int | None = None
    gate: int | None = None
    signs: int | None = None
    told: int | None = None
    slope: float | None = None

    @property
    def read(self) -> list[int]:
        """The places that it reads."""
        return [place for place in (self.x, self.added) if place is not None]


class Where(NamedTuple):
    """A place's memory: `at` bytes for each of all images from a buffer's start on, one image after the other."""

    buffer: int
    at: int = 0


class _Operand(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int64) for name in ("buffer", "at", "each")]


class _Operation(ctypes.Structure):
    _fields_ = [
        ("kind", ctypes.c_int32),
        ("group", ctypes.c_int32),
        ("sizes", ctypes.c_int32 * 10),
        ("activated", ctypes.c_int32),
        ("slope", ctypes.c_float),
        ("weights", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        *((name, _Operand) for name in ("x", "added", "gate", "signs", "y", "told")),
    ]


class Program:
    """Entries in a row.

    given: where the places lie that the caller has memory for. What else goes on beyond a group of images lies in a buffer of the
    number `arena`, of `bytes` for each image, which the caller makes; the rest a thread keeps to itself.
    """

    def __init__(self, entries: Sequence[Entry], given: Mapping[int, Where], arena: int = -1) -> None:
        self._kernels = [entry.kernel for entry in entries]  # whose weights are read
        groups = _groups(self._kernels)
        self._located = dict(given)
        self.bytes = 0
        crossing = _crossing(entries, groups)
        for entry in entries:
            if entry.y in crossing and entry.y not in self._located:
                self._located[entry.y] = Where(arena, self.bytes)
                self.bytes += _lines(entry.kernel.output)
        self._local, self._local_bytes = _packed(entries, self._located)
        made = (self._operation(entry, group) for entry, group in zip(entries, groups, strict=True))
        self._operations = (_Operation * len(entries))(*made)

    def run(self, buffers: Sequence[Tensor | None], images: int) -> None:
        """The entries on so many images. Nobody looks whether the buffers, float32 or bits, are as large as they must be."""
        code = compiled.loaded()
        assert code is not None
        pointers = (ctypes.c_void_p * len(buffers))(*(None if each is None else each.data_ptr() for each in buffers))
        threads = torch.get_num_threads()
        code.run(self._operations, len(self._operations), pointers, images, self._local_bytes, threads)

    def _operation(self, entry: Entry, group: int) -> _Operation:
        kernel, came, gives = entry.kernel, 4 * math.prod(entry.kernel.size), 4 * math.prod(entry.kernel.output)
        return _Operation(
            kernel.kind,
            group,
            (ctypes.c_int32 * 10)(*_sides(kernel.size), *_sides(kernel.output), *kernel.shape, kernel.transposed),
            entry.slope is not None and entry.signs is None,
            entry.slope or 0.0,
            *(None if each is None else each.data_ptr() for each in (kernel.weights, kernel.bias)),
            self._operand(entry.x, came),
            self._operand(entry.added, gives),
            self._operand(entry.gate, gives),
            self._operand(entry.signs, gives // 32),
            self._operand(entry.y, gives),
            self._operand(entry.told, gives // 32),
        )

    def _operand(self, place: int | None, each: int) -> _Operand:
        if place is None:
            return _Operand(_NONE, 0, each)
        if place in self._located:
            return _Operand(*self._located[place], each)
        return _Operand(_LOCAL, self._local[place], each)


def _sides(size: tuple[int, ...]) -> tuple[int, int, int]:
    """(C, H, W) or (C,) -> H, W, C."""
    channels, height, width = size if len(size) == 3 else (*size, 1, 1)
    return height, width, channels


def _lines(size: tuple[int, ...]) -> int:
    """Bytes of the whole cache lines that hold so many floats."""
    return -(-4 * math.prod(size) // _LINE) * _LINE


def _groups(kernels: Sequence[Kernel]) -> list[int]:
    """How many images go through each at a time; who doesn't mind goes with those before, or else after it."""
    found, last = list[int](), next((each.together for each in kernels if each.together), 1)
    for kernel in kernels:
        last = kernel.together or last
        found.append(last)
    return found


def _crossing(entries: Sequence[Entry], groups: Sequence[int]) -> set[int]:
    """Places that are read in groups of another size than they are written in, or in later ones of the same."""
    runs = list(accumulate((before != after for before, after in pairwise(groups)), initial=0))
    written = {entry.y: run for entry, run in zip(entries, runs, strict=True)}
    return {
        place
        for entry, run in zip(entries, runs, strict=True)
        for place in entry.read
        if written.get(place, run) != run
    }


def _packed(entries: Sequence[Entry], located: Mapping[int, Where]) -> tuple[dict[int, int], int]:
    """Where the other places begin in a memory of their own, each as long as somebody reads it; and that memory's bytes."""
    last = {place: i for i, entry in enumerate(entries) for place in entry.read}
    found, taken, whole = dict[int, int](), dict[int, tuple[int, int]](), 0
    for i, entry in enumerate(entries):
        if entry.y not in located:
            length, start = _lines(entry.kernel.output), 0
            for begin, end in sorted(taken.values()):
                if start + length <= begin:
                    break
                start = max(start, end)
            found[entry.y], taken[entry.y] = start, (start, start + length)
            whole = max(whole, start + length)
        for place in [place for place in taken if last.get(place, i) <= i]:
            del taken[place]
    return found, whole


def applied(kernel: Kernel, x: Tensor, added: Tensor | None, gate: Tensor | None, slope: float | None) -> Tensor:
    """One kernel alone, (N, C, H, W) -> (N, C', H', W'), channels last. added, gate, slope: see `winograd.convolution`.

    Raises:
        ValueError: `added` or `gate` is of another size than the output, or something isn't float32.
    """
    y = torch.empty((len(x), *kernel.output), memory_format=torch.channels_last)
    follows = (added, gate)
    if x.dtype != y.dtype or any(
        each is not None and (each.shape, each.dtype) != (y.shape, y.dtype) for each in follows
    ):
        raise misfit(x, kernel.weights, kernel.bias, *follows)
    if y.numel() == 0:
        return y
    places = [None if each is None else place for place, each in enumerate((x, y, *follows))]
    entry = Entry(kernel, 0, 1, places[2], places[3], slope=slope)
    program = Program([entry], {place: Where(place) for place in range(len(places))})
    program.run([laid_out(x), y, *(None if each is None else laid_out(each) for each in follows)], len(x))
    return y


def laid_out(x: Tensor) -> Tensor:
    """As programs read it: images with channels last, rows one after the other."""
    return x.contiguous(memory_format=torch.channels_last if x.dim() == 4 else torch.contiguous_format)


def misfit(*tensors: Tensor | None) -> ValueError:
    """For who calls with sizes that don't belong together."""
    shapes = [None if each is None else tuple(each.shape) for each in tensors]
    dtype = None if tensors[0] is None else tensors[0].dtype
    return ValueError(f"x, weights, bias, added and gate don't fit each other: {shapes}, x of {dtype}")

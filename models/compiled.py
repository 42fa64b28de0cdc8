"""Convolutions of our own for frozen networks on a CPU, in C++: models/winograd.cpp and models/direct.cpp.

Installing the package compiles them, once with AVX-512 and once with AVX2, where a C++ compiler is at hand; which one is loaded
goes by the processor. Without either `available` is false and models/fused.py leaves all layers to oneDNN. What an image gets
depends neither on its batch nor on the threads.
"""

import ctypes
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

# By what PyTorch calls the processor's instructions: the module that setuptools makes, and the floats of a vector.
VARIANTS = {"AVX512": ("models._convolutions_avx512", 16), "AVX2": ("models._convolutions_avx2", 8)}

# Beyond this they don't stay in the caches, for Winograd's algorithm four times as many, and oneDNN is as quick or quicker.
_MOST_WEIGHTS = 9 * 192 * 192


@dataclass(frozen=True)
class Compiled:
    """The compiled functions, and the floats of a vector."""

    winograd: Any
    direct: Any
    lanes: int


@cache
def loaded(capability: str | None = None) -> Compiled | None:
    """The compiled code for a processor, this one unless another is named."""
    module, lanes = VARIANTS.get(capability or torch.backends.cpu.get_cpu_capability(), ("", 0))
    found = find_spec(module) if module else None
    if found is None or found.origin is None:
        return None
    try:
        # Its threads are those of PyTorch's OpenMP, which is in the process already.
        library = ctypes.CDLL(found.origin)
        return Compiled(_typed(library.unperturb_winograd_1, 5), _typed(library.unperturb_direct_1, 11), lanes)
    except (OSError, AttributeError):  # nothing that runs here, or what another version of the source was compiled to
        return None


def _typed(call: Any, sizes: int) -> Any:
    """A function of six tensors, so many sizes, whether it is activated, slope and threads."""
    pointer, number = ctypes.c_void_p, ctypes.c_int
    call.argtypes, call.restype = (*[pointer] * 6, *[number] * sizes, number, ctypes.c_float, number), None
    return call


def available() -> bool:
    """Whether they were compiled for instructions that this processor has."""
    return loaded() is not None


def told() -> str:
    """What computes most convolutions on a CPU here, for those who compare times."""
    return "Winograd" if available() else "oneDNN"


def suits(layer: nn.Conv2d) -> bool:
    """Whether it is of a kind that ours compute: float32, not dilated, one group, not too many weights."""
    plain = (layer.dilation, layer.groups, layer.padding_mode) == ((1, 1), 1, "zeros")
    return available() and plain and layer.weight.dtype == torch.float32 and layer.weight.numel() <= _MOST_WEIGHTS


@dataclass(frozen=True, slots=True)
class Operands:
    """What a convolution takes beside its sizes.

    x: (N, C, H, W). weights: as its code reads them. bias: (C'). added, gate: (N, C', H', W'). slope: see `winograd.convolution`.
    """

    x: Tensor
    weights: Tensor
    bias: Tensor | None
    added: Tensor | None
    gate: Tensor | None
    slope: float | None

    def misfit(self) -> ValueError:
        """For who calls with sizes that don't belong together."""
        tensors = (self.x, self.weights, self.bias, self.added, self.gate)
        shapes = [None if each is None else tuple(each.shape) for each in tensors]
        return ValueError(f"x, weights, bias, added and gate don't fit each other: {shapes}, x of {self.x.dtype}")

    def output(self, call: Any, size: list[int], *sizes: int) -> Tensor:
        """What a compiled function makes of them, of that size, channels last.

        Raises:
            ValueError: `added` or `gate` is of another size, or something isn't float32.
        """
        y = torch.empty(size, memory_format=torch.channels_last)
        for each in (self.added, self.gate):
            if each is not None and (each.shape != y.shape or each.dtype != y.dtype):
                raise self.misfit()
        if self.x.dtype != y.dtype:
            raise self.misfit()
        if y.numel() == 0:
            return y
        x, added, gate = _laid_out(self.x), _laid_out(self.added), _laid_out(self.gate)
        pointers = [None if each is None else each.data_ptr() for each in (x, self.weights, self.bias, added, gate, y)]
        call(*pointers, *sizes, self.slope is not None, self.slope or 0.0, torch.get_num_threads())
        return y


def _laid_out(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.contiguous(memory_format=torch.channels_last)


LIBRARY = torch.library.Library("unperturb", "DEF")

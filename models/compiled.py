"""Convolutions of our own for frozen networks on a CPU, in C++: models/winograd.cpp, direct.cpp and, in a row, program.cpp.

Installing the package compiles them, once with AVX-512 and once with AVX2, where a C++ compiler is at hand; which one is loaded
goes by the processor. Without either `available` is false and models/plan.py leaves all layers to oneDNN. What an image gets
depends neither on its batch nor on the threads.
"""

import ctypes
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

# By what PyTorch calls the processor's instructions: the module that setuptools makes, and the floats of a vector.
VARIANTS = {"AVX512": ("models._convolutions_avx512", 16), "AVX2": ("models._convolutions_avx2", 8)}


@dataclass(frozen=True)
class Compiled:
    """The compiled function, see models/program.cpp, and the floats of a vector."""

    run: Any
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
        run = ctypes.CDLL(found.origin).unperturb_run_3
    except (OSError, AttributeError):  # nothing that runs here, or what another version of the source was compiled to
        return None
    pointer, number = ctypes.c_void_p, ctypes.c_int
    run.argtypes, run.restype = (pointer, number, pointer, number, ctypes.c_int64, number), None
    return Compiled(run, lanes)


def available() -> bool:
    """Whether they were compiled for instructions that this processor has."""
    return loaded() is not None


def told() -> str:
    """What computes most convolutions on a CPU here, for those who compare times."""
    return "Winograd" if available() else "oneDNN"


def suits(layer: nn.Conv2d) -> bool:
    """Whether it is of a kind that ours compute: float32, not dilated, one group."""
    plain = (layer.dilation, layer.groups, layer.padding_mode) == ((1, 1), 1, "zeros")
    return available() and plain and layer.weight.dtype == torch.float32


LIBRARY = torch.library.Library("unperturb", "DEF")

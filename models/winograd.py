"""3 x 3 convolutions of frozen networks by Winograd's F(4 x 4, 3 x 3): a quarter of the multiplications, in models/winograd.cpp.

Lavin, Gray: Fast Algorithms for Convolutional Neural Networks, CVPR 2016. Installing the package compiles it, once with AVX-512
and once with AVX2, where a C++ compiler is at hand; which one is loaded goes by the processor. Without either, `available` is
false and models/fused.py leaves these layers to oneDNN. What an image gets depends neither on its batch nor on the threads.
"""

import ctypes
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor, nn

# By what PyTorch calls the processor's instructions: the module that setuptools makes, and the floats of a vector.
_VARIANTS = {"AVX512": ("models._winograd_avx512", 16), "AVX2": ("models._winograd_avx2", 8)}

# Weights are 4 times as many as they were: beyond this they don't stay in the caches, and oneDNN is as quick or quicker.
_MOST_WEIGHTS = 192 * 192

# G of F(4 x 4, 3 x 3).
_G = (
    (1 / 4, 0, 0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0, 0, 1),
)


@cache
def _loaded(capability: str | None = None) -> tuple[ctypes.CDLL, int] | None:
    """The compiled code for a processor, this one unless another is named, and the floats of its vectors."""
    module, lanes = _VARIANTS.get(capability or torch.backends.cpu.get_cpu_capability(), ("", 0))
    found = find_spec(module) if module else None
    if found is None or found.origin is None:
        return None
    try:
        # Its threads are those of PyTorch's OpenMP, which is in the process already.
        library = ctypes.CDLL(found.origin)
        call = library.unperturb_winograd_1
    except (OSError, AttributeError):  # nothing that runs here, or what another version of the source was compiled to
        return None
    pointer, number = ctypes.c_void_p, ctypes.c_int
    call.argtypes, call.restype = (*[pointer] * 6, *[number] * 6, ctypes.c_float, number), None
    return library, lanes


def available() -> bool:
    """Whether it was compiled for instructions that this processor has."""
    return _loaded() is not None


def told() -> str:
    """What computes these convolutions on a CPU here, for those who compare times."""
    return "Winograd" if available() else "oneDNN"


def fits(layer: nn.Conv2d) -> bool:
    """Whether a layer is one of these, of float32, with channels that fill the processor's vectors."""
    loaded = _loaded()
    shape = (layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.groups)
    if loaded is None or shape != ((3, 3), (1, 1), (1, 1), (1, 1), 1) or layer.weight.dtype != torch.float32:
        return False
    channels = (layer.in_channels, layer.out_channels)
    return all(count % loaded[1] == 0 for count in channels) and channels[0] * channels[1] <= _MOST_WEIGHTS


def transformed(weight: Tensor) -> Tensor:
    """G g G^T of each filter, Eq. (9) there. (C', C, 3, 3) -> (36, C, C')."""
    g = torch.tensor(_G, dtype=torch.float64)
    turned = torch.einsum("ia,fcab,jb->ijcf", g, weight.double(), g)
    return turned.flatten(0, 1).float().contiguous()


_LIBRARY = torch.library.Library("unperturb", "DEF")
_LIBRARY.define(
    "convolution_3x3(Tensor x, Tensor weights, Tensor? bias, Tensor? added, Tensor? gate, float? slope) -> Tensor"
)


def _convolution(
    x: Tensor, weights: Tensor, bias: Tensor | None, added: Tensor | None, gate: Tensor | None, slope: float | None
) -> Tensor:
    loaded = _loaded()
    assert loaded is not None
    n, channels, height, width = x.shape
    filters = weights.shape[2]
    y = torch.empty((n, filters, height, width), memory_format=torch.channels_last)
    if x.dtype != torch.float32 or channels != weights.shape[1] or not all(_fits(each, y) for each in (added, gate)):
        shapes = [None if each is None else tuple(each.shape) for each in (x, weights, added, gate)]
        raise ValueError(f"x, weights, added and gate don't fit each other: {shapes}, x of {x.dtype}")
    x, added, gate = (_laid_out(each) for each in (x, added, gate))  # type: ignore[assignment]
    loaded[0].unperturb_winograd_1(
        *(None if each is None else each.data_ptr() for each in (x, weights, bias, added, gate, y)),
        *(n, height, width, channels, filters),
        slope is not None,
        slope or 0.0,
        torch.get_num_threads(),
    )
    return y


def _fits(each: Tensor | None, y: Tensor) -> bool:
    return each is None or (each.shape == y.shape and each.dtype == y.dtype)


def _laid_out(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.contiguous(memory_format=torch.channels_last)


_LIBRARY.impl("convolution_3x3", _convolution, "CPU")


def convolution(
    x: Tensor,
    weights: Tensor,
    bias: Tensor | None = None,
    added: Tensor | None = None,
    gate: Tensor | None = None,
    slope: float | None = None,
) -> Tensor:
    """A 3 x 3 convolution with what follows it. (N, C, H, W), (36, C, C') of `transformed` -> (N, C', H, W), channels last.

    added: (N, C', H, W), added to the outcome. slope: where it is given the sum is multiplied by 1 where `gate` (N, C', H, W), or
    without one the sum itself, is above 0, by the slope elsewhere: a (leaky) ReLU, or the gradient through one.

    Raises:
        ValueError: shapes don't fit each other, or something isn't float32.
    """
    found: Tensor = torch.ops.unperturb.convolution_3x3.default(x, weights, bias, added, gate, slope)
    return found

"""Layers in a row, ready to run on a CPU, forward and back: what models/fused.py makes of frozen modules.

Each by our own code (models/winograd.py, models/direct.py) where it suits, else by oneDNN's operations that PyTorch keeps for its
compiler, under `torch.ops.mkldnn`. A gradient runs through the same kernels with the weights turned round. Rows that are all our
own run in one call (models/program.py).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from itertools import count

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import _get_current_dispatch_mode

from models import direct, winograd
from models.pooling import Pooling, channel_means
from models.program import Entry, Kernel, Kind, Program, Where, laid_out

_MKLDNN = torch.ops.mkldnn
_NAMES = (
    "_convolution_pointwise",
    "_convolution_transpose_pointwise",
    "_linear_pointwise",
    "_reorder_convolution_weight",
    "_reorder_convolution_transpose_weight",
    "_reorder_linear_weight",
    "_get_mkldnn_serialized_md",
)
AVAILABLE = torch.backends.mkldnn.is_available() and all(hasattr(_MKLDNN, name) for name in _NAMES)
_REST = ([1, 1], 1)  # of a convolution: dilation, groups
_SIZES = 64  # of images whose programs are kept


@dataclass(frozen=True)
class Step:
    """A layer on what one step gave, plus what another one gave, activated. Place 0 is the input, i + 1 what step i gives.

    slope: of the activation below zero, 0 for ReLU; None where there is no activation. added: after a convolution only.
    """

    layer: nn.Module
    source: int
    slope: float | None = None
    added: int | None = None


class _Weights:
    """A layer's weights as oneDNN's kernels read them.

    Which way that is it decides by the input's size and the number of threads. What lies another way it would lay out anew in
    every call, which may take twenty times as long as the layer itself; from PyTorch's own way it is done in no time.
    """

    def __init__(self, lay_out: Callable[[list[int]], Tensor]) -> None:
        """lay_out: the weights for an input of that size."""
        self._lay_out = lay_out
        self._by_input: dict[tuple[int, ...], Tensor] = {}
        self._by_layout: dict[bytes, Tensor] = {}  # two or three, for any number of sizes

    def of(self, x: Tensor) -> Tensor:
        """The weights for the input `x`."""
        key = (torch.get_num_threads(), *x.shape)
        found = self._by_input.get(key)
        return self._found(key, x) if found is None else found

    def _found(self, key: tuple[int, ...], x: Tensor) -> Tensor:
        weights = self._lay_out([max(1, len(x)), *x.shape[1:]])
        layout = _MKLDNN._get_mkldnn_serialized_md(weights).numpy().tobytes()
        self._by_input[key] = self._by_layout.setdefault(layout, weights)
        return self._by_input[key]


@dataclass(frozen=True)
class _Gate:
    """What an activation does to gradients: times 1 where its output `y` is above zero, the slope elsewhere."""

    y: Tensor
    slope: float


def _gated(gradient: Tensor, gate: _Gate | None) -> Tensor:
    """The gradient before an activation, from that after it."""
    if gate is None:
        return gradient
    if gate.slope == 0:
        return torch.ops.aten.threshold_backward(gradient, gate.y, 0)  # type: ignore[no-any-return]
    return torch.ops.aten.leaky_relu_backward(gradient, gate.y, gate.slope, True)  # type: ignore[no-any-return]


class _Packed:
    """A layer and its activation, with the weights as oneDNN reads them."""

    def __init__(self, layer: nn.Conv2d | nn.Linear, slope: float | None) -> None:
        self.weight, self.bias, self.slope = layer.weight.detach(), layer.bias, slope
        self.activation = None if slope is None else "leaky_relu" if slope else "relu"
        self.scalars = [slope] if slope else []

    def forward(self, x: Tensor, added: Tensor | None) -> Tensor:
        raise NotImplementedError

    def backward(self, gradient: Tensor, size: torch.Size, added: Tensor | None, gate: _Gate | None) -> Tensor:
        """The gradient of an input of that size, from that before the activation.

        added: what other layers gave for it. gate: of the activation that the input came from.
        """
        found = self._backward(gradient, size)
        if added is not None:
            found.add_(added)
        return _gated(found, gate)

    def _backward(self, gradient: Tensor, size: torch.Size) -> Tensor:
        raise NotImplementedError


class _PackedConvolution(_Packed):
    """(N, C, H, W) -> (N, C', H', W'), channels last."""

    def __init__(self, layer: nn.Conv2d, slope: float | None) -> None:
        super().__init__(layer, slope)
        assert not isinstance(layer.padding, str)
        self._kernel, self._padding, self._stride = layer.kernel_size, list(layer.padding), list(layer.stride)
        self._shape = (self._padding, self._stride, *_REST)
        self._turned_shape = (
            [kernel - 1 - pad for kernel, pad in zip(self._kernel, self._padding, strict=True)],
            [1, 1],
            *_REST,
        )
        self._forwards = _Weights(partial(_MKLDNN._reorder_convolution_weight, self.weight, *self._shape))

    @cached_property
    def _turned(self) -> _Weights:
        """Of the convolution that takes gradients back where the stride is 1."""
        weight = self.weight.flip(2, 3).transpose(0, 1).contiguous(memory_format=torch.channels_last)
        return _Weights(partial(_MKLDNN._reorder_convolution_weight, weight, *self._turned_shape))

    @cached_property
    def _transposed(self) -> _Weights:
        """Of the transposed convolution that does so elsewhere."""
        shape = (self._padding, [0, 0], self._stride, *_REST)
        return _Weights(partial(_MKLDNN._reorder_convolution_transpose_weight, self.weight, *shape))

    def forward(self, x: Tensor, added: Tensor | None) -> Tensor:
        alone = added is None
        y: Tensor = _MKLDNN._convolution_pointwise.default(
            x,
            self._forwards.of(x),
            self.bias,
            *self._shape,
            (alone and self.activation) or "none",
            self.scalars if alone else [],
            "",
        )
        if added is not None:
            y.add_(added)  # measured: quicker than oneDNN's own sum with another tensor
            if self.activation:
                y = F.relu_(y) if self.activation == "relu" else F.leaky_relu_(y, self.scalars[0])
        return y

    def _backward(self, gradient: Tensor, size: torch.Size) -> Tensor:
        x: Tensor
        if self._stride == [1, 1]:
            x = _MKLDNN._convolution_pointwise.default(
                gradient, self._turned.of(gradient), None, *self._turned_shape, "none", [], ""
            )
        else:
            sides = zip(size[2:], self._padding, self._kernel, self._stride, strict=True)
            rest = [(length + 2 * pad - kernel) % stride for length, pad, kernel, stride in sides]
            weights = self._transposed.of(gradient)
            x = _MKLDNN._convolution_transpose_pointwise.default(
                gradient, weights, None, self._padding, rest, self._stride, *_REST, "none", [], ""
            )
        return x


class _Own(_Packed):
    """A layer that our own code computes, sum, activation and gate with it: alone, or with others (models/program.py)."""

    dimensions = 3  # of an image, or of a row

    def kernel(self, size: tuple[int, ...]) -> Kernel | None:
        """What it does to images of that size; None where it can't, or not with the bits of its activation."""
        told = self.slope is None or direct.fills_vectors(len(self.weight))
        if len(size) != self.dimensions or size[0] != self.weight.shape[1] or not told:
            return None
        kernel = self._kernel(size)
        return kernel if min(kernel.output) > 0 else None

    def _kernel(self, size: tuple[int, ...]) -> Kernel:
        raise NotImplementedError

    def kernel_back(self, size: tuple[int, ...]) -> Kernel:
        """What takes gradients back to images of that size."""
        raise NotImplementedError


class _WinogradConvolution(_Own):
    """A 3 x 3 convolution of models/winograd.py."""

    @cached_property
    def _forwards(self) -> Tensor:
        return winograd.transformed(self.weight)

    @cached_property
    def _turned(self) -> Tensor:
        return winograd.transformed(self.weight.flip(2, 3).transpose(0, 1))

    def forward(self, x: Tensor, added: Tensor | None) -> Tensor:
        return winograd.convolution(x, self._forwards, self.bias, added, slope=self.slope)

    def backward(self, gradient: Tensor, size: torch.Size, added: Tensor | None, gate: _Gate | None) -> Tensor:
        y, slope = (gate.y, gate.slope) if gate else (None, None)
        return winograd.convolution(gradient, self._turned, added=added, gate=y, slope=slope)

    def _kernel(self, size: tuple[int, ...]) -> Kernel:
        return winograd.kernel(self._forwards, self.bias, size)

    def kernel_back(self, size: tuple[int, ...]) -> Kernel:
        return winograd.kernel(self._turned, None, (len(self.weight), *size[1:]))


class _DirectConvolution(_Own):
    """A convolution of models/direct.py."""

    def __init__(self, layer: nn.Conv2d, slope: float | None) -> None:
        super().__init__(layer, slope)
        self._shape, self._forwards = direct.geometry(layer), direct.laid_out(self.weight)

    @cached_property
    def _backwards(self) -> Tensor:
        return direct.laid_out_transposed(self.weight, self._shape)

    def forward(self, x: Tensor, added: Tensor | None) -> Tensor:
        return direct.convolution(x, self._forwards, len(self.weight), self._shape, self.bias, added, self.slope)

    def backward(self, gradient: Tensor, size: torch.Size, added: Tensor | None, gate: _Gate | None) -> Tensor:
        y, slope = (gate.y, gate.slope) if gate else (None, None)
        return direct.transposed(gradient, self._backwards, size, self._shape, added, y, slope)

    def _kernel(self, size: tuple[int, ...]) -> Kernel:
        return direct.kernel(self._forwards, len(self.weight), self._shape, size, self.bias)

    def kernel_back(self, size: tuple[int, ...]) -> Kernel:
        return direct.kernel_transposed(self._backwards, len(self.weight), self._shape, size)


class _DirectLinear(_Own):
    """A linear layer as such a convolution, each row a pixel. (..., C) -> (..., C')."""

    dimensions = 1

    def __init__(self, layer: nn.Linear, slope: float | None) -> None:
        super().__init__(layer, slope)
        self._convolution = _DirectConvolution(direct.as_convolution(layer), slope)

    def forward(self, x: Tensor, added: Tensor | None) -> Tensor:
        if x.shape[-1] != self.weight.shape[1]:
            return F.linear(x, self.weight, self.bias)  # whose error says what doesn't fit
        return direct.as_rows(self._convolution.forward(direct.as_image(x), None), x.shape[:-1])

    def backward(self, gradient: Tensor, size: torch.Size, added: Tensor | None, gate: _Gate | None) -> Tensor:
        given = None if added is None else direct.as_image(added)
        by = None if gate is None else _Gate(direct.as_image(gate.y), gate.slope)
        image = torch.Size((1, size[-1], 1, size[:-1].numel()))
        return direct.as_rows(self._convolution.backward(direct.as_image(gradient), image, given, by), size[:-1])

    def _kernel(self, size: tuple[int, ...]) -> Kernel:
        return direct.of_rows(self._convolution._kernel((*size, 1, 1)))

    def kernel_back(self, size: tuple[int, ...]) -> Kernel:
        return direct.of_rows(self._convolution.kernel_back((*size, 1, 1)))


class _Pooled:
    """Each channel's mean. (N, C, H, W) -> (N, C)."""

    def forward(self, x: Tensor, added: Tensor | None) -> Tensor:
        return channel_means(x)

    def backward(self, gradient: Tensor, size: torch.Size, added: Tensor | None, gate: _Gate | None) -> Tensor:
        """See `_Packed`."""
        spread = (gradient / (size[2] * size[3]))[:, :, None, None].expand(size)
        return _gated(laid_out(spread if added is None else spread + added), gate)

    def kernel(self, size: tuple[int, ...]) -> Kernel | None:
        """See `_Own`."""
        return Kernel(Kind.MEAN, size, size[:1]) if len(size) == 3 and direct.fills_vectors(size[0]) else None

    def kernel_back(self, size: tuple[int, ...]) -> Kernel:
        """See `_Own`."""
        return Kernel(Kind.SPREAD, size[:1], size)


class _PackedLinear(_Packed):
    """(N, C) -> (N, C'). It rounds by the number of rows: give it a fixed one where that matters (models/rounding.py)."""

    def __init__(self, layer: nn.Linear, slope: float | None) -> None:
        super().__init__(layer, slope)
        self._forwards = _Weights(partial(_linear_weights, self.weight))

    @cached_property
    def _turned(self) -> _Weights:
        return _Weights(partial(_linear_weights, self.weight.t().contiguous()))

    def forward(self, x: Tensor, added: Tensor | None) -> Tensor:
        if x.shape[-1] != self.weight.shape[1]:
            return F.linear(x, self.weight, self.bias)  # whose error says what doesn't fit
        y: Tensor = _MKLDNN._linear_pointwise.default(
            x.contiguous(), self._forwards.of(x), self.bias, self.activation or "none", self.scalars, ""
        )
        return y

    def _backward(self, gradient: Tensor, size: torch.Size) -> Tensor:
        weights = self._turned.of(gradient)
        x: Tensor = _MKLDNN._linear_pointwise.default(gradient.contiguous(), weights, None, "none", [], "")
        return x


def _linear_weights(weight: Tensor, size: Sequence[int]) -> Tensor:
    laid_out: Tensor = _MKLDNN._reorder_linear_weight(weight, math.prod(size[:-1]))
    return laid_out


@dataclass(frozen=True)
class _Move:
    """What a step's layer makes of the gradient at a place, plus that at another, through a third's activation, goes to `to`.

    Without a step only the sum and the activation. of: the place whose gradient this is.
    """

    step: int | None
    source: int
    to: int
    added: int | None
    gate: int | None
    slope: float | None
    of: int


def _moves_back(steps: Sequence[Step]) -> list[_Move]:
    """From the gradient of what the last step gave, at the place behind its own, to that of the input, where the last one goes.

    Each gradient on the way is that before its place's activation.
    """
    first = {place: i for i, step in reversed(list(enumerate(steps))) for place in (step.source, step.added)}
    last, moves, places = len(steps), list[_Move](), count(len(steps) + 2)

    def gate(place: int) -> int | None:
        return place if place and steps[place - 1].slope is not None else None

    def moved(step: int | None, source: int, added: int | None, gate: int | None, of: int) -> int:
        slope = None if gate is None else steps[gate - 1].slope
        moves.append(_Move(step, source, next(places), added, gate, slope, of))
        return moves[-1].to

    gradients = {last: last + 1 if gate(last) is None else moved(None, last + 1, None, last, last)}
    for i, step in reversed(list(enumerate(steps))):
        found = gradients.pop(i + 1)
        if step.added is not None:
            ends = first[step.added] == i and step.added != step.source
            by, others = gate(step.added) if ends else None, gradients.get(step.added)
            simply = by is None and others is None
            gradients[step.added] = found if simply else moved(None, found, others, by, step.added)
        by = gate(step.source) if first[step.source] == i else None
        gradients[step.source] = moved(i, found, gradients.get(step.source), by, step.source)
    return moves


class Plan:
    """A module's steps, ready to run."""

    def __init__(self, steps: Sequence[Step]) -> None:
        packed, back = [_packed(step) for step in steps], _moves_back(steps)
        self._one_by_one = _OneByOne(steps, packed, back)
        self._programs = lru_cache(_SIZES)(partial(_programs, steps, packed, back))

    def suiting(self, x: Tensor) -> "_OneByOne | _Programs":
        """What runs them: in one call, unless somebody looks at the single operations or they are about to refuse the input."""
        if x.dtype != torch.float32 or x.numel() == 0 or _get_current_dispatch_mode() is not None:
            return self._one_by_one
        return self._programs(x.shape[1:] if x.dim() == 4 else x.shape[-1:]) or self._one_by_one


class _OneByOne:
    """Steps in calls of their own."""

    def __init__(self, steps: Sequence[Step], packed: Sequence[_Packed | _Pooled], back: Sequence[_Move]) -> None:
        self._steps, self._packed, self._back = steps, packed, back
        read = {place: i for i, step in enumerate(steps) for place in (step.source, step.added)}
        self._done = [[place for place, last in read.items() if last == i] for i in range(len(steps))]

    def answer(self, x: Tensor) -> Tensor:
        """What the last step gives."""
        values: dict[int | None, Tensor] = {0: laid_out(x)}
        for i, (step, packed) in enumerate(zip(self._steps, self._packed, strict=True)):
            values[i + 1] = packed.forward(values[step.source], values.get(step.added))
            for place in self._done[i]:
                values.pop(place, None)  # which nobody needs any more
        return values[len(self._steps)]

    def values(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """What the last step gives, and what `backward` must know."""
        values = [laid_out(x)]
        for step, packed in zip(self._steps, self._packed, strict=True):
            values.append(packed.forward(values[step.source], None if step.added is None else values[step.added]))
        return values[-1], values

    def backward(self, size: torch.Size, values: Sequence[Tensor], gradient: Tensor) -> Tensor:
        """The gradient of an input of that size, from that of what the last step gave."""
        places = dict(enumerate([*values, laid_out(gradient)]))
        for move in self._back:
            given = None if move.added is None else places[move.added]
            places[move.to] = self._moved(move, places[move.source], given, values)
        return places[self._back[-1].to]

    def _moved(self, move: _Move, gradient: Tensor, added: Tensor | None, values: Sequence[Tensor]) -> Tensor:
        gate = None if move.gate is None or move.slope is None else _Gate(values[move.gate], move.slope)
        if move.step is None:
            return _gated(gradient if added is None else gradient + added, gate)
        return self._packed[move.step].backward(gradient, values[move.of].shape, added, gate)


@dataclass(frozen=True)
class _Programs:
    """A plan's steps for images of one size, in one call each way, all by our own code.

    signs: bytes that an image's bits take which say where activations gave more than 0; they are all that the way back must know.
    """

    output: tuple[int, ...]
    signs: int
    answering: Program
    telling: Program
    back: Program

    def answer(self, x: Tensor) -> Tensor:
        return self._forward(self.answering, x, None)

    def values(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        signs = torch.empty(self.signs * _images(x.shape), dtype=torch.uint8)
        return self._forward(self.telling, x, signs), [signs]

    def _forward(self, program: Program, x: Tensor, signs: Tensor | None) -> Tensor:
        y = _empty((len(x), *self.output) if x.dim() == 4 else (*x.shape[:-1], *self.output))
        self._run(program, laid_out(x), y, signs)
        return y

    def backward(self, size: torch.Size, values: Sequence[Tensor], gradient: Tensor) -> Tensor:
        found = _empty(size)
        self._run(self.back, laid_out(gradient), found, values[0])
        return found

    def _run(self, program: Program, x: Tensor, y: Tensor, signs: Tensor | None) -> None:
        images = _images(x.shape)
        program.run([x, y, torch.empty(program.bytes * images, dtype=torch.uint8), signs], images)


_X, _Y, _ARENA, _SIGNS = range(4)  # buffers of these programs


def _images(size: torch.Size) -> int:
    """Rows count as such."""
    return size[0] if len(size) == 4 else size[:-1].numel()


def _empty(size: Sequence[int]) -> Tensor:
    return torch.empty(size, memory_format=torch.channels_last if len(size) == 4 else torch.contiguous_format)


def _programs(
    steps: Sequence[Step], packed: Sequence[_Packed | _Pooled], back: Sequence[_Move], size: tuple[int, ...]
) -> _Programs | None:
    """For images of that size; None where it doesn't fit, or where not all layers are our own."""
    sizes, forwards = [tuple(size)], list[Entry]()
    for i, (step, layer) in enumerate(zip(steps, packed, strict=True)):
        kernel = layer.kernel(sizes[step.source]) if isinstance(layer, _Own | _Pooled) else None
        if kernel is None or (step.added is not None and sizes[step.added] != kernel.output):
            return None
        sizes.append(kernel.output)
        forwards.append(Entry(kernel, step.source, i + 1, step.added, slope=step.slope))
    # Bits of the place i are at the place -i.
    bits, signs = 0, dict[int, Where]()
    for entry in forwards:
        if entry.slope is not None:
            signs[-entry.y], bits = Where(_SIGNS, bits), bits + math.prod(entry.kernel.output) // 8
    ends = {0: Where(_X), len(steps): Where(_Y)}
    telling = [entry if entry.slope is None else entry._replace(told=-entry.y) for entry in forwards]
    backwards = [_entry_back(move, packed, sizes) for move in back]
    ends_back = {len(steps) + 1: Where(_X), back[-1].to: Where(_Y)}
    return _Programs(
        sizes[-1],
        bits,
        Program(forwards, ends, _ARENA),
        Program(telling, ends | signs, _ARENA),
        Program(backwards, ends_back | signs, _ARENA),
    )


def _entry_back(move: _Move, packed: Sequence[_Packed | _Pooled], sizes: Sequence[tuple[int, ...]]) -> Entry:
    layer, size = None if move.step is None else packed[move.step], sizes[move.of]
    kernel = layer.kernel_back(size) if isinstance(layer, _Own | _Pooled) else Kernel(Kind.SUM, size, size)
    signs = None if move.gate is None else -move.gate
    return Entry(kernel, move.source, move.to, move.added, signs=signs, slope=move.slope)


def _packed(step: Step) -> "_Packed | _Pooled":
    layer = step.layer
    if isinstance(layer, Pooling):
        return _Pooled()
    if isinstance(layer, nn.Conv2d):
        if winograd.fits(layer):
            return _WinogradConvolution(layer, step.slope)
        return (_DirectConvolution if direct.fits(layer) else _PackedConvolution)(layer, step.slope)
    assert isinstance(layer, nn.Linear)
    return (_DirectLinear if direct.fits(layer) else _PackedLinear)(layer, step.slope)

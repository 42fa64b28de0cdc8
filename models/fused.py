"""Layers of frozen networks in one operation with what follows them: a sum, an activation. On a CPU; elsewhere as ever.

oneDNN adds and activates while a layer's output is still in the cache, and reads weights that were laid out for its kernels.
PyTorch keeps these operations for its compiler, under `torch.ops.mkldnn`; where a version lacks them nothing changes. Two more
things come of it: with weights laid out, convolutions round one image alone as in any batch (tests/models/test_fused.py), and the
gradient with respect to the input, all that a purifier needs, runs through the same kernels with the weights turned round.
Where our own convolutions are compiled they take most layers: models/winograd.py, models/direct.py.

The gradient of a gradient, which only attacks ask for, goes through PyTorch's layers.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial
from itertools import groupby, pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from models import direct, winograd

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


class _WinogradConvolution(_Packed):
    """A 3 x 3 convolution of models/winograd.py, whose sum, activation and gate are part of the operation."""

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


class _DirectConvolution(_Packed):
    """A convolution of models/direct.py, likewise."""

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


class _DirectLinear(_Packed):
    """A linear layer as such a convolution, each row a pixel. (..., C) -> (..., C')."""

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


class _Plan:
    """A module's steps, ready to run."""

    def __init__(self, steps: Sequence[Step]) -> None:
        self._steps = [(step, _packed(step)) for step in steps]
        read = {place: i for i, step in enumerate(steps) for place in (step.source, step.added)}
        self._first = {place: i for i, step in reversed(list(enumerate(steps))) for place in (step.source, step.added)}
        self._done = [[place for place, last in read.items() if last == i] for i in range(len(steps))]

    def answer(self, x: Tensor) -> Tensor:
        """What the last step gives; what nobody needs any more on the way there is freed."""
        values: dict[int | None, Tensor] = {0: _laid_out(x)}
        for i, (step, packed) in enumerate(self._steps):
            values[i + 1] = packed.forward(values[step.source], values.get(step.added))
            for place in self._done[i]:
                values.pop(place, None)
        return values[len(self._steps)]

    def values(self, x: Tensor) -> list[Tensor]:
        """What is at each place, the input first."""
        values = [_laid_out(x)]
        for step, packed in self._steps:
            values.append(packed.forward(values[step.source], None if step.added is None else values[step.added]))
        return values

    def backward(self, values: Sequence[Tensor], gradient: Tensor) -> Tensor:
        """The gradient of the input, from that of what the last step gave."""
        last = len(self._steps)
        gradients = {last: _gated(_laid_out(gradient), self._gate(last, values))}  # each before its place's activation
        for i, (step, packed) in reversed(list(enumerate(self._steps))):
            found = gradients.pop(i + 1)
            if step.added is not None:
                whole = gradients[step.added] + found if step.added in gradients else found
                ends = self._first[step.added] == i and step.added != step.source
                gradients[step.added] = _gated(whole, self._gate(step.added, values) if ends else None)
            gate = self._gate(step.source, values) if self._first[step.source] == i else None
            others = gradients.get(step.source)
            gradients[step.source] = packed.backward(found, values[step.source].shape, others, gate)
        return gradients[0]

    def _gate(self, place: int, values: Sequence[Tensor]) -> _Gate | None:
        """Of the activation that made what is at a place."""
        slope = self._steps[place - 1][0].slope if place else None
        return None if slope is None else _Gate(values[place], slope)


def _packed(step: Step) -> _Packed:
    layer = step.layer
    if isinstance(layer, nn.Conv2d):
        if winograd.fits(layer):
            return _WinogradConvolution(layer, step.slope)
        return (_DirectConvolution if direct.fits(layer) else _PackedConvolution)(layer, step.slope)
    assert isinstance(layer, nn.Linear)
    return (_DirectLinear if direct.fits(direct.as_convolution(layer)) else _PackedLinear)(layer, step.slope)


def _laid_out(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x


class _Run(torch.autograd.Function):
    """A plan with its gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, module: "Fusable", plan: _Plan) -> Tensor:
        values = plan.values(x)
        ctx.module, ctx.plan = module, plan
        ctx.save_for_backward(x, *values[1:])
        return values[-1]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        values = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph: somebody wants the gradient of this one
            (found,) = torch.autograd.grad(ctx.module.plain(values[0]), values[0], gradient, create_graph=True)
        else:
            found = ctx.plan.backward(values, gradient)
        return found, None, None


class Fusable(nn.Module):
    """A module that can say how its frozen form is made of layers, sums and activations."""

    fused = False
    _plan: _Plan | None = None

    def steps(self) -> list[Step]:
        """The frozen form, whose weights don't change any more."""
        raise NotImplementedError

    def plain(self, x: Tensor) -> Tensor:
        """The same with PyTorch's layers."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Fused where it is frozen and `runs(x)`, else plain."""
        if not self.fused or not runs(x):
            return self.plain(x)
        if self._plan is None:
            self._plan = _Plan(self.steps())  # one of several threads'
        if x.requires_grad and torch.is_grad_enabled():
            return _Run.apply(x, self, self._plan)  # type: ignore[no-any-return]
        return self._plan.answer(x)

    def __getstate__(self) -> dict[str, Any]:
        # Weights laid out for this machine's kernels can't be copied; a copy lays out its own.
        return {name: value for name, value in self.__dict__.items() if name != "_plan"}


class _Layer(Fusable):
    """A layer with the activation that followed it."""

    slope: float | None

    def steps(self) -> list[Step]:
        return [Step(self, 0, self.slope)]

    def _activated(self, y: Tensor) -> Tensor:
        return y if self.slope is None else F.relu(y) if self.slope == 0 else F.leaky_relu(y, self.slope)


class _Convolution(_Layer, nn.Conv2d):
    def plain(self, x: Tensor) -> Tensor:
        return self._activated(nn.Conv2d.forward(self, x))


class _Linear(_Layer, nn.Linear):
    def plain(self, x: Tensor) -> Tensor:
        return self._activated(nn.Linear.forward(self, x))


class _Chain(Fusable, nn.Sequential):
    """Fusable modules in a row. Those that somebody hooked are called one by one, else their hooks would see nothing."""

    def forward(self, x: Tensor) -> Tensor:
        if any(module._forward_hooks for module in self):
            return self.plain(x)
        return super().forward(x)

    def steps(self) -> list[Step]:
        found: list[Step] = []
        for module in self:
            if isinstance(module, Fusable):
                base = len(found)
                found += [
                    replace(step, source=step.source + base, added=None if step.added is None else step.added + base)
                    for step in module.steps()
                ]
        return found

    def plain(self, x: Tensor) -> Tensor:
        return nn.Sequential.forward(self, x)  # type: ignore[no-any-return, no-untyped-call]


def runs(x: Tensor) -> bool:
    """Whether what is fused runs so on `x`."""
    on_cpu = AVAILABLE and x.device.type == "cpu" and not torch.is_autocast_enabled("cpu")
    return on_cpu and (x.dtype == torch.float32 or (x.dtype == torch.bfloat16 and _bf16()))


@cache
def _bf16() -> bool:
    return hasattr(_MKLDNN, "_is_mkldnn_bf16_supported") and bool(_MKLDNN._is_mkldnn_bf16_supported())


def fuse(network: nn.Module, apart: Iterable[nn.Module] = ()) -> bool:
    """Fuse what can be in a frozen network, in place; whether no layer with weights is left out but norms.

    apart: layers whose own output somebody reads; no activation is drawn into them.
    """
    sequences = [module for module in network.modules() if type(module) is nn.Sequential]
    slopes = {id(layer): slope for sequence in sequences for layer, slope in _activations(sequence, set(apart))}
    left_out = False
    for module in list(network.modules()):
        if type(module) in (nn.Conv2d, nn.Linear) and _fits(module):
            # The same parameters, another way to compute.
            module.__class__ = _Convolution if isinstance(module, nn.Conv2d) else _Linear
            module.slope = slopes.get(id(module))  # type: ignore[assignment]
        left_out |= type(module) in (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
    for sequence in reversed(sequences):  # so inner ones come first
        if len(sequence) and all(isinstance(module, Fusable | nn.Identity) for module in sequence):
            sequence.__class__ = _Chain
    for module in network.modules():
        if isinstance(module, Fusable):
            module.fused = True
    return not left_out


def in_chains(network: nn.Module, start: int = 0, end: int | None = None) -> nn.Module:
    """A sequence's layers from `start` to before `end`, of the same weights; those in a row that are fused run as one.

    But for a network's very first, which is called as it is: training/counting.py hooks it, and must not change what it counts.
    """
    if not isinstance(network, nn.Sequential):
        return network
    layers = list(network)[start:end]
    first = layers[:1] if start == 0 else []
    rest = [layer for layer in layers[len(first) :] if not isinstance(layer, nn.Identity)]
    joined: list[nn.Module] = list(first)
    for fused, row in groupby(rest, lambda layer: isinstance(layer, Fusable)):
        joined.append((_Chain if fused else nn.Sequential)(*row))
        joined[-1].fused = fused  # type: ignore[assignment]
    return nn.Sequential(*joined)


def _activations(sequence: nn.Sequential, apart: set[nn.Module]) -> Iterable[tuple[nn.Module, float]]:
    """Layers with the slope of the activation behind them, which becomes the identity."""
    for layer, after in pairwise(sequence):
        fits = type(layer) in (nn.Conv2d, nn.Linear) and _fits(layer) and layer not in apart
        if fits and isinstance(after, nn.ReLU | nn.LeakyReLU):
            slope = after.negative_slope if isinstance(after, nn.LeakyReLU) else 0.0
            after.__class__ = nn.Identity  # type: ignore[assignment]
            yield layer, slope


def _fits(layer: nn.Module) -> bool:
    if not isinstance(layer, nn.Conv2d):
        return True
    padded_with_zeros = layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
    return padded_with_zeros and (list(layer.dilation), layer.groups) == _REST


def fold_batch_norm(module: nn.Module) -> None:
    """Replace each [layer, (Dropout,) batch norm] run of a Sequential by one layer, in place (eval mode only)."""
    for child in module.children():
        fold_batch_norm(child)
    if not isinstance(module, nn.Sequential):
        return
    layers: list[nn.Module] = []
    for layer in module:
        if isinstance(layer, nn.Dropout):
            continue  # the identity at inference
        before = layers[-1] if layers else None
        if isinstance(layer, nn.BatchNorm2d) and isinstance(before, nn.Conv2d):
            layers[-1] = fuse_conv_bn_eval(before, layer)
        elif isinstance(layer, nn.BatchNorm1d) and isinstance(before, nn.Linear):
            layers[-1] = fuse_linear_bn_eval(before, layer)
        else:
            layers.append(layer)
    for name in list(module._modules):
        del module._modules[name]
    for index, layer in enumerate(layers):
        module.add_module(str(index), layer)

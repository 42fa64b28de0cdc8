"""Layers of frozen networks in one operation with what follows them: a sum, an activation. On a CPU; elsewhere as ever.

How they run is in models/plan.py; where PyTorch lacks what that takes nothing changes. Layers add and activate while their output
is still in the cache, and read weights that were laid out for their kernels. Two more things come of it: convolutions round one
image alone as in any batch (tests/models/test_fused.py), and the gradient with respect to the input, all that a purifier needs,
runs through the same kernels. The gradient of a gradient, which only attacks ask for, goes through PyTorch's layers.
"""

from collections.abc import Iterable
from dataclasses import replace
from functools import cache
from itertools import groupby, pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from models import direct
from models.plan import AVAILABLE, Plan, Step
from models.pooling import Pooling


class _Run(torch.autograd.Function):
    """A plan with its gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, module: "Fusable", plan: Plan) -> Tensor:
        ctx.module, ctx.steps = module, plan.suiting(x)
        y, values = ctx.steps.values(x)
        ctx.save_for_backward(x, *values)
        return y  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        x, *values = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph: somebody wants the gradient of this one
            (found,) = torch.autograd.grad(ctx.module.plain(x), x, gradient, create_graph=True)
        else:
            found = ctx.steps.backward(x.shape, values, gradient)
        return found, None, None


class Fusable(nn.Module):
    """A module that can say how its frozen form is made of layers, sums and activations."""

    fused = False
    _plan: Plan | None = None

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
            self._plan = Plan(self.steps())  # one of several threads'
        if x.requires_grad and torch.is_grad_enabled():
            return _Run.apply(x, self, self._plan)  # type: ignore[no-any-return]
        return self._plan.suiting(x).answer(x)

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


class _Pooling(_Layer, Pooling):
    slope = None

    def plain(self, x: Tensor) -> Tensor:
        return Pooling.forward(self, x)


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
    return hasattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported") and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def rounds_alike(layer: nn.Linear) -> bool:
    """Whether a linear layer, once it is fused, gives a row the same bits among any others where it `runs`."""
    return AVAILABLE and direct.fits(layer)


def rows_alike(network: nn.Module) -> bool:
    """Whether a network that was fused does so: all its linear layers do."""
    layers = (layer for layer in network.modules() if isinstance(layer, nn.Linear))
    return all(isinstance(layer, _Linear) and rounds_alike(layer) for layer in layers)


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
        elif type(module) is Pooling:
            module.__class__ = _Pooling
        left_out |= type(module) in (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
    for sequence in reversed(sequences):  # so inner ones come first
        if len(sequence) and all(isinstance(module, Fusable | nn.Identity) for module in sequence):
            sequence.__class__ = _Chain
    for module in network.modules():
        if isinstance(module, Fusable):
            module.fused = True
    return not left_out


def in_chains(network: nn.Module, start: int = 0, end: int | None = None) -> nn.Module:
    """A sequence's layers from `start` to before `end`, of the same weights; those in a row that are fused run as one."""
    if not isinstance(network, nn.Sequential):
        return network
    layers = [layer for layer in list(network)[start:end] if not isinstance(layer, nn.Identity)]
    joined: list[nn.Module] = []
    for fused, row in groupby(layers, lambda layer: isinstance(layer, Fusable)):
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
    return padded_with_zeros and (list(layer.dilation), layer.groups) == ([1, 1], 1)


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

"""The registry of purifier networks. A network's builder takes plain keyword arguments, those that its card holds."""

from collections.abc import Callable
from copy import deepcopy

import torch
from torch import nn

Builder = Callable[..., nn.Module]
_BUILDERS: dict[str, Builder] = {}


def register_network(name: str) -> Callable[[Builder], Builder]:
    """Make a builder available to cards and recipes under `name`. A name can be taken once.

    Raises:
        ValueError: the name is taken.
    """

    def decorate(builder: Builder) -> Builder:
        if name in _BUILDERS:
            raise ValueError(f"network {name!r} is already registered")
        _BUILDERS[name] = builder
        return builder

    return decorate


def networks() -> list[str]:
    """The names that `build_network` knows."""
    return sorted(_BUILDERS)


def build_network(name: str, /, **arguments: object) -> nn.Module:
    """A freshly initialised network.

    Raises:
        ValueError: the name is unknown, or an argument does not fit it; the message says what exists.
    """
    if name not in _BUILDERS:
        raise ValueError(f"unknown purifier network {name!r}; known: {', '.join(networks())}")
    try:
        return _BUILDERS[name](**arguments)
    except TypeError as error:
        raise ValueError(f"purifier network {name!r}: {error}") from error


def frozen_network(network: nn.Module, device: torch.device | str = "cpu") -> nn.Module:
    """A copy for inference: eval mode, no parameter gradients, channels last. The argument is left alone."""
    copy = deepcopy(network).eval().requires_grad_(False)
    return copy.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]

"""The registry of purifier networks. A network's builder takes plain keyword arguments, those that its card holds."""

from collections.abc import Callable
from copy import deepcopy

import torch
from torch import nn

from models.fused import fold_batch_norm, fuse, rows_alike
from models.networks.generator import Generator
from models.precision import DTYPES, Precision
from models.registry import Registry, called

NETWORKS: Registry[Callable[..., nn.Module]] = Registry("purifier network")
register_network = NETWORKS.register
networks = NETWORKS.names


def build_network(name: str, /, **arguments: object) -> nn.Module:
    """A freshly initialised network.

    Raises:
        ValueError: the name is unknown, or an argument does not fit it; the message says what exists.
    """
    return called(f"purifier network {name!r}", NETWORKS.builder(name), arguments)


def frozen_network(network: nn.Module, device: torch.device | str = "cpu", precision: Precision = "fp32") -> nn.Module:
    """A copy for inference: eval mode, no parameter gradients, batch norm folded, channels last. The argument is left alone.

    precision: of a generator; heads on a classifier's features are small and stay in float32. What reads `fused` of its network
    learns that all of its layers are, what reads `rows_alike` that no row's bits depend on others, see models/fused.py.
    """
    copy = deepcopy(network).eval().requires_grad_(False)
    fold_batch_norm(copy)
    copy.fused = fuse(copy)  # type: ignore[assignment]
    copy.rows_alike = rows_alike(copy)  # type: ignore[assignment]
    if isinstance(copy, Generator):
        copy.precision = precision
        if precision != "fp32":  # which means: as the weights are
            copy.to(DTYPES[precision])
    return copy.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]

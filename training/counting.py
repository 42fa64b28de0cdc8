"""How many images pass through a defence's networks, forward and backward: what an evaluation cost, in units of work."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from models.catalog import Defense
from models.purifiers import Purifier
from models.purifiers.chain import Chain


@dataclass
class Passes:
    """Images that went forward and gradients that came back, classifiers and generators alike."""

    forward: int = 0
    backward: int = 0


@contextmanager
def counted(*defenses: Defense) -> Iterator[Passes]:
    """Count while the block runs, where images enter each network."""
    found, handles = Passes(), list[RemovableHandle]()

    def on_forward(module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> None:
        found.forward += len(output)
        if output.requires_grad:
            output.register_hook(on_backward)

    def on_backward(gradient: Tensor) -> None:
        found.backward += len(gradient)

    try:
        for module in {id(module): module for defense in defenses for module in _entries(defense)}.values():
            handles.append(module.register_forward_hook(on_forward))
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _entries(defense: Defense) -> Iterator[nn.Module]:
    yield defense.classifier.normalization
    yield from _generators(defense.purifier)


def _generators(purifier: Purifier) -> Iterator[nn.Module]:
    for step in purifier.purifiers if isinstance(purifier, Chain) else (purifier,):
        if isinstance(network := getattr(step, "network", None), nn.Module):
            yield network

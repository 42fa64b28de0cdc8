"""Foreign `.pth` weights into one of our networks: weights only, and every tensor is accounted for.

A tensor finds its place by name (after `rename`), else by order: among the layers of one type and shape, the first
unplaced one of the file belongs to the first unfilled one of the network, in definition order. That holds only where both
sides have equally many, so a type and shape with different counts is left alone and reported.

Placed so, from the authors' public SOAP code: `resnet` and `resnet-rot` (as resnet18-thin) and `ae` (as fcn). Not: its
`wide-resnet` activates before the convolution and its `cae` has a bottleneck; both are other functions than Table 7's. NRP's
published generators (`NRP`, `NRP_resG`) are `nrp` and `nrp-resg`, name by name.
A bias before a batch norm, which our networks do without, is folded exactly into the norm's running mean.
"""

import pickle
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

N = TypeVar("N", bound=nn.Module)
Weights = dict[str, Tensor]
Layer = tuple[str, tuple[tuple[str, tuple[int, ...]], ...]]  # its type, and its tensors' names and shapes

_COUNTER = "num_batches_tracked"  # a training statistic that nothing here reads
_NESTS = ("state_dict", "model_state_dict", "model", "net")
_WRAPPERS = ("module.", "_orig_mod.")  # DataParallel, torch.compile


class ConversionError(Exception):
    """A foreign file can't be converted; the message says what was left and what to do."""


@dataclass(frozen=True)
class Conversion(Generic[N]):
    """A converted network and where everything went.

    placed: foreign key -> our key. folded: foreign biases now part of a running mean. unplaced: foreign keys left over.
    unfilled: our keys that still have their random initial values.
    """

    network: N
    placed: Mapping[str, str]
    folded: tuple[str, ...]
    unplaced: tuple[str, ...]
    unfilled: tuple[str, ...]


def convert(
    path: Path,
    build: Callable[..., N],
    name: str,
    arguments: Mapping[str, object],
    rename: Mapping[str, str] | None = None,
    *,
    allow_partial: bool = False,
) -> Conversion[N]:
    """Read a foreign weights file into a fresh network.

    Args:
        path: what `torch.save` wrote: a state dict, bare or nested under "state_dict", "model" and the like.
        build: `build_classifier` or `build_network`.
        name: an architecture, or a purifier's network, that it knows.
        arguments: its arguments.
        rename: foreign key or layer (a key without its last part) -> ours.
        allow_partial: return what could be placed instead of raising.

    Raises:
        ConversionError: the file can't be read safely, or something was left unplaced or unfilled.
        ValueError: the name or its arguments are unknown.
    """
    network = build(name, **arguments)
    foreign, ours = read_weights(path), _without_counters(network.state_dict())
    placed = _by_name(foreign, ours, rename or {})
    placed |= _by_order(_except(foreign, placed), _except(ours, placed.values()))
    folds = {key: norm for key in _except(foreign, placed) if (norm := _norm_behind(network, key, placed))}
    state = network.state_dict()
    for theirs, mine in placed.items():
        state[mine] = foreign[theirs]
    for bias, norm in folds.items():
        # BN(W x + b) = gamma (W x + b - mu) / sigma + beta: a bias moves the mean by as much.
        state[f"{norm}.running_mean"] = state[f"{norm}.running_mean"] - foreign[bias]
    network.load_state_dict(state)
    unplaced = tuple(key for key in foreign if key not in placed and key not in folds)
    unfilled = tuple(_except(ours, placed.values()))
    if (unplaced or unfilled) and not allow_partial:
        raise ConversionError(
            f"{path} doesn't fit {name!r}; unplaced: {_listed(unplaced)}; unfilled: {_listed(unfilled)}; "
            "name their places in `rename`, or choose other arguments"
        )
    return Conversion(network, placed, tuple(folds), unplaced, unfilled)


def read_weights(path: Path) -> Weights:
    """The tensors of a `.pth` file, without running any code that it holds; wrappers and batch counters removed.

    Raises:
        ConversionError: it can't be read, holds more than tensors, or no tensors at all.
    """
    try:
        found = torch.load(path, weights_only=True, map_location="cpu")
    except pickle.UnpicklingError as error:
        reason = str(error).splitlines()[0]
        raise ConversionError(
            f"{path}: refused, it is no file of plain tensors and reading it could run code; export its state_dict() "
            f"where it comes from ({reason})"
        ) from error
    except (OSError, RuntimeError, EOFError, ValueError) as error:
        raise ConversionError(f"{path}: can't be read ({error})") from error
    while isinstance(found, dict) and (nest := next((n for n in _NESTS if isinstance(found.get(n), dict)), None)):
        found = found[nest]
    if not isinstance(found, dict) or not found or not all(isinstance(value, Tensor) for value in found.values()):
        raise ConversionError(
            f"{path}: no state dict here; expected tensors by name, bare or under {', '.join(_NESTS)}"
        )
    return _without_counters(_unwrapped(dict(found)))


def _unwrapped(weights: Weights) -> Weights:
    for prefix in _WRAPPERS:
        if all(key.startswith(prefix) for key in weights):
            return _unwrapped({key.removeprefix(prefix): value for key, value in weights.items()})
    return weights


def _without_counters(weights: Mapping[str, Tensor]) -> Weights:
    return {key: value for key, value in weights.items() if not key.endswith(_COUNTER)}


def _except(weights: Weights, keys: Iterable[str]) -> Weights:
    gone = set(keys)
    return {key: value for key, value in weights.items() if key not in gone}


def _by_name(foreign: Weights, ours: Weights, rename: Mapping[str, str]) -> dict[str, str]:
    placed: dict[str, str] = {}
    for theirs, value in foreign.items():
        layer, _, last = theirs.rpartition(".")
        mine = rename.get(theirs) or (f"{rename[layer]}.{last}" if layer in rename else theirs)
        if mine in ours and ours[mine].shape == value.shape and mine not in placed.values():
            placed[theirs] = mine
    return placed


def _by_order(foreign: Weights, ours: Weights) -> dict[str, str]:
    """Pair layers of one type and shape in definition order, where both sides have equally many."""
    theirs, mine = _layers(foreign), _layers(ours)
    placed: dict[str, str] = {}
    for kind, layers in mine.items():
        candidates = theirs.get(kind, [])
        if len(candidates) == len(layers):
            for their_layer, my_layer in zip(candidates, layers, strict=True):
                names = [key.rpartition(".")[2] for key in ours if key.rpartition(".")[0] == my_layer]
                pairs = {f"{their_layer}.{name}": f"{my_layer}.{name}" for name in names}
                placed |= {key: place for key, place in pairs.items() if key in foreign}
    return placed


def _layers(weights: Weights) -> dict[Layer, list[str]]:
    """Layer type and shapes -> the layers' names, in definition order. A convolution's bias is not part of its type."""
    shapes: dict[str, dict[str, tuple[int, ...]]] = defaultdict(dict)
    for key, value in weights.items():
        layer, _, name = key.rpartition(".")
        shapes[layer][name] = tuple(value.shape)
    found: dict[Layer, list[str]] = defaultdict(list)
    for layer, tensors in shapes.items():
        kind = "norm" if "running_mean" in tensors else f"{len(tensors.get('weight', ()))}-d weight"
        if kind == "4-d weight":
            tensors.pop("bias", None)
        found[kind, tuple(sorted(tensors.items()))].append(layer)
    return found


def _norm_behind(network: nn.Module, bias: str, placed: Mapping[str, str]) -> str | None:
    """The batch norm that follows the convolution whose `bias` has no place, if its running mean was filled."""
    layer, _, name = bias.rpartition(".")
    convolution = placed.get(f"{layer}.weight", "").rpartition(".")[0]
    if name != "bias" or not convolution:
        return None
    container, _, index = convolution.rpartition(".")
    siblings = network.get_submodule(container)
    if not isinstance(siblings, nn.Sequential):
        return None
    for following in range(int(index) + 1, len(siblings)):
        if isinstance(siblings[following], nn.BatchNorm2d):
            norm = f"{container}.{following}"
            return norm if f"{norm}.running_mean" in placed.values() else None
        if not isinstance(siblings[following], nn.Dropout):
            return None
    return None


def _listed(keys: Iterable[str]) -> str:
    return ", ".join(keys) or "nothing"

"""What every classifier here is: an encoder f, a classifier head g and, where a purifier needs one, an auxiliary head h.

Notation of SOAP (Shi et al., ICLR 2021, Sec. 3): z = f(x), logits = g(z), auxiliary output = h(z).
Images are float tensors (N, C, H, W) in [0, 1]; the mean and standard deviation are part of the network, so
nobody outside ever sees another scale.
"""

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from typing import cast

import torch
from torch import Tensor, nn

from models.fused import fold_batch_norm, fuse, in_chains, rounds_alike, runs
from models.precision import DTYPES, Precision
from models.registry import Registry, called
from models.rounding import by_rows


class Normalization(nn.Module):
    """Images (N, C, H, W) in [0, 1], shifted and scaled channel by channel, channels last: what a classifier's encoder sees.

    It has no part in the state dict: the card names the values, and strict loading should not depend on two copies agreeing.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        # Always in the layout of the weights: which one `x` comes in may depend on the size of its batch.
        x = x.contiguous(memory_format=torch.channels_last)
        # Each pixel's own values: a loop over an image, where three channels would be one of their own for each pixel.
        size = (1, *x.shape[1:])
        mean, std = (each.expand(size).contiguous(memory_format=torch.channels_last) for each in (self.mean, self.std))
        return (x - mean).div_(std)


class Classifier(nn.Module):
    """An image classifier g(f(x)) with an optional auxiliary head h(f(x)).

    Args:
        encoder: f, maps normalised images (N, C, H, W) to representations z.
        classifier_head: g, maps z to logits (N, K).
        mean: per-channel mean, C values in [0, 1].
        std: per-channel standard deviation, C values > 0.
        aux_head: h, maps z to what the self-supervised task needs; None where the task uses g itself.
        taps: names of those layers of the encoder (an `nn.Sequential`) whose outputs a purifier may read.

    `batch_invariant`: on a CPU an image's outputs are the same bits whatever the size of its batch; `frozen` sees to it where
    that costs little. `fused`: every convolution is, see models/fused.py. `precision`: in which the encoder computes; what goes
    in and comes out is float32 all the same, and so are the heads.
    """

    def __init__(
        self,
        encoder: nn.Module,
        classifier_head: nn.Module,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        aux_head: nn.Module | None = None,
        taps: Mapping[str, nn.Module] | None = None,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.classifier_head = classifier_head
        self.aux_head = aux_head
        self.batch_invariant = False
        self.fused = False
        self.precision: Precision = "fp32"
        self._taps = dict(taps or {})  # of layers that are the encoder's: not in the state dict, copied with it
        # Of a frozen one: parts of the encoder whose fused layers run as one.
        self._parts: dict[tuple[int, int | None], nn.Module] | None = None
        self.normalization = Normalization(mean, std)

    @property
    def taps(self) -> list[str]:
        """The names that `tapped` knows, from shallow to deep."""
        return sorted(self._taps, key=self._depth)

    def _depth(self, name: str) -> int:
        """Which layer of the encoder a tap is."""
        return [id(layer) for layer in self.encoder.children()].index(id(self._taps[name]))

    def features(self, x: Tensor) -> Tensor:
        """z = f(x). x: (N, C, H, W) in [0, 1] -> z, of the shape the heads expect."""
        if _alone(self, x):
            return self.features(x.expand(2, -1, -1, -1))[:1]
        return self._told(self._through(self._inside(self.normalization(x))))

    def tapped(self, x: Tensor, names: Sequence[str]) -> list[Tensor]:
        """The outputs of the named layers, in the order of the names; the encoder runs only as deep as the deepest of them.

        x: (N, C, H, W) in [0, 1].

        Raises:
            ValueError: a name is unknown; the message lists what there is.
        """
        if unknown := [name for name in names if name not in self._taps]:
            raise ValueError(f"no tap {', '.join(unknown)}; this classifier has {', '.join(self.taps) or 'none'}")
        if _alone(self, x):
            return [found[:1] for found in self.tapped(x.expand(2, -1, -1, -1), names)]
        found: dict[int, Tensor] = {}
        activation, start = self._inside(self.normalization(x)), 0
        for depth in sorted({self._depth(name) for name in names}):
            found[depth] = activation = self._through(activation, start, depth + 1)
            start = depth + 1
        return [self._told(found[self._depth(name)]) for name in names]

    def from_tap(self, name: str, activation: Tensor) -> Tensor:
        """z, from what `tapped` gave for `name`: the rest of the encoder."""
        if _alone(self, activation):
            twice = activation.expand(2, *activation.shape[1:]).contiguous(memory_format=torch.channels_last)
            return self.from_tap(name, twice)[:1]
        return self._told(self._through(self._inside(activation), self._depth(name) + 1))

    def _through(self, activation: Tensor, start: int = 0, end: int | None = None) -> Tensor:
        """What the encoder's layers from `start` to before `end` make of an activation."""
        if self._parts is None:
            part = self.encoder if (start, end) == (0, None) else cast(nn.Sequential, self.encoder)[start:end]
            return part(activation)  # type: ignore[no-any-return]
        if (start, end) not in self._parts:
            self._parts[start, end] = in_chains(self.encoder, start, end)
        return self._parts[start, end](activation)  # type: ignore[no-any-return]

    def _inside(self, activation: Tensor) -> Tensor:
        return activation if self.precision == "fp32" else activation.to(DTYPES[self.precision])

    def _told(self, activation: Tensor) -> Tensor:
        return activation if self.precision == "fp32" else activation.float()

    def forward(self, x: Tensor) -> Tensor:
        """Logits g(f(x)). x: (N, C, H, W) in [0, 1] -> (N, K)."""
        logits: Tensor = self.classifier_head(self.features(x))
        return logits


def _alone(classifier: Classifier, x: Tensor) -> bool:
    """Whether x must go in twice: PyTorch's own CPU convolutions round one image alone otherwise than two or more, which all come
    out the same (tests/contract); fused ones don't. Where linear layers aren't in blocks either, it is they who do."""
    alike = classifier.fused and classifier.batch_invariant and runs(x)
    return len(x) == 1 and not classifier.training and not alike


def numbered_taps(encoder: nn.Sequential, block: type[nn.Module], stem: int | None = None) -> dict[str, nn.Module]:
    """Taps "block1", "block2", ... at an encoder's blocks, before them "stem" at its layer of that index."""
    blocks = [layer for layer in encoder if isinstance(layer, block)]
    first = {} if stem is None else {"stem": encoder[stem]}
    return {**first, **{f"block{i}": layer for i, layer in enumerate(blocks, start=1)}}


def frozen(classifier: Classifier, device: torch.device | str = "cpu", precision: Precision = "fp32") -> Classifier:
    """A copy of `classifier` for inference: eval mode, no parameter gradients, batch norm folded, channels last.

    Gradients with respect to the *input* still work; that is all a purifier needs. The argument is left alone.
    """
    copy = deepcopy(classifier).eval().requires_grad_(False)
    fold_batch_norm(copy)
    copy.batch_invariant = _make_batch_invariant(copy, precision)
    copy.fused = fuse(copy, apart=copy._taps.values())
    copy._parts, copy.precision = {}, precision
    if precision != "fp32":  # which means: as the weights are
        copy.encoder.to(DTYPES[precision])
    return copy.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


class _BlockLinear(nn.Linear):
    """nn.Linear in blocks of a fixed number of rows."""

    # Beyond so many weights the rows that fill a block cost more than they are worth.
    LARGEST = 2**16

    def forward(self, x: Tensor) -> Tensor:
        return by_rows(super().forward, x)


def _make_batch_invariant(module: nn.Module, precision: Precision) -> bool:
    """Replace linear layers in place that fusing won't make so; False where one was too large for that."""
    invariant = True
    for child in module.children():
        if not isinstance(child, nn.Linear):
            invariant &= _make_batch_invariant(child, precision)
        elif precision == "fp32" and rounds_alike(child):
            continue
        elif child.weight.numel() <= _BlockLinear.LARGEST:
            child.__class__ = _BlockLinear  # the same parameters, another way to multiply
        else:
            invariant = False
    return invariant


ARCHITECTURES: Registry[Callable[..., Classifier]] = Registry("architecture")
register_architecture = ARCHITECTURES.register
architectures = ARCHITECTURES.names


def build_classifier(architecture: str, /, **arguments: object) -> Classifier:
    """A freshly initialised network.

    Raises:
        ValueError: the architecture is unknown, or an argument does not fit it; the message says what exists.
    """
    return called(f"architecture {architecture!r}", ARCHITECTURES.builder(architecture), arguments)

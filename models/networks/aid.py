"""AID-Purifier's discriminator: how likely is an image adversarial, from two layers of the frozen classifier.

Duhun Hwang, Eunjung Lee, Wonjong Rhee: AID-Purifier: A Light Auxiliary Network for Boosting Adversarial Defense, 2021
(https://openreview.net/forum?id=3Uk9_JRVwiF). Here: Sec. 3.1 and Table 5, D(h_low(x), h_high(x)).

What the paper leaves open or contradicts, and what we chose:
- For CIFAR-10, CIFAR-100 and TinyImageNet "one more linear layer both before and after concatenating" (A.2) has no width: we
  take 1024, that of its neighbours. The authors' public code has other numbers of layers than Table 5; we follow the table.
- Table 5 names no normalisation. The public code has a batch norm after every hidden layer, and so have we. It is fixed at
  inference, where an image's answer must not depend on its batch.
- The sigmoid is left to the reader: training and purification are both exacter on the logit.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from models.classifiers import Classifier
from models.fused import runs
from models.networks.base import register_network
from models.pooling import channel_means
from models.rounding import by_rows

WIDTH = 1024  # Table 5
# Few rows cost little more than one, since the weights must be read anyway; see `by_rows` for why it is a fixed number.
ROWS = 16


@register_network("aid")
class AidDiscriminator(nn.Module):
    """D of Table 5, on the globally averaged outputs of `taps`.

    Args:
        taps: names of the classifier's layers, from low to high (the paper: two).
        channels: how many channels each of them has.
        deeper: one more linear layer before and after concatenating (A.2: all data sets but SVHN).
        width: of the hidden layers, 1024 in Table 5; the last one has half as many.

    Raises:
        ValueError: not one number of channels for each tap.
    """

    rows_alike = False  # until it is frozen

    def __init__(self, *, taps: Sequence[str], channels: Sequence[int], deeper: bool, width: int = WIDTH) -> None:
        super().__init__()
        if not taps or len(taps) != len(channels):
            raise ValueError(f"a number of channels for each tap; got {len(channels)} for {len(taps)}")
        self.taps, self.channels = tuple(taps), tuple(channels)
        before, after = (3, 2) if deeper else (2, 1)
        self.heads = nn.ModuleList(_layers(count, *[width] * before) for count in channels)
        self.trunk = _layers(len(taps) * width, *[width] * after, width // 2)
        self.output = nn.Linear(width // 2, 1)

    def check(self, classifier: Classifier) -> None:
        """Whether `classifier` has what this network looks at.

        Raises:
            ValueError: it lacks a tap.
        """
        if missing := [tap for tap in self.taps if tap not in classifier.taps]:
            has = ", ".join(classifier.taps) or "none"
            raise ValueError(f"the discriminator looks at tap {', '.join(missing)}; this classifier has {has}")

    def highest(self, classifier: Classifier) -> str:
        """That of its taps that lies deepest in `classifier`."""
        return max(self.taps, key=classifier.taps.index)

    def forward(self, activations: Sequence[Tensor]) -> Tensor:
        """The logit of p_adv. One activation (N, C, H, W) for each tap, in order -> (N,)."""
        # Sec. 3.1: "global average pooling as the first operation".
        pooled = torch.cat([channel_means(each) for each in activations], dim=1)
        alone = self.training or (self.rows_alike and runs(pooled))
        return self._classified(pooled) if alone else by_rows(self._classified, pooled, ROWS)

    def _classified(self, pooled: Tensor) -> Tensor:
        """(N, sum of the channels) -> (N,)."""
        parts = pooled.split(self.channels, dim=1)
        outputs = [head(part) for head, part in zip(self.heads, parts, strict=True)]
        logit: Tensor = self.output(self.trunk(torch.cat(outputs, dim=1)))
        return logit.squeeze(1)


def _layers(*widths: int) -> nn.Sequential:
    """Linear layers from each width to the next, every one with batch norm and ReLU."""
    layers: list[nn.Module] = []
    for width_in, width_out in pairwise(widths):
        # No bias: the norm would cancel it.
        layers += [nn.Linear(width_in, width_out, bias=False), nn.BatchNorm1d(width_out), nn.ReLU()]
    return nn.Sequential(*layers)

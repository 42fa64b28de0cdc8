"""The CIFAR networks of SOAP Tables 6 and 7 (Shi et al., ICLR 2021), for 3x32x32 images.

What the paper leaves open or contradicts, and what we chose:
- Table 7 prints three stages of two blocks for ResNet-18 and 4 + 4 + 2 wide blocks for Wide-ResNet-28. A 28-layer network
  has four blocks a stage (6n + 4), so we build 4 + 4 + 4.
- "ShortCut" where the shape changes: a 1x1 convolution with batch norm.
- No convolution before a batch norm has a bias: the norm would cancel it.
"""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from models.classifiers.base import Classifier, numbered_taps, register_architecture
from models.fused import Fusable
from models.plan import Step
from models.pooling import Pooling

CIFAR10_MEAN = (0.4914, 0.4822, 0.4465)
CIFAR10_STD = (0.2023, 0.1994, 0.2010)


def _shortcut(channels_in: int, channels_out: int, stride: int) -> nn.Module:
    if stride == 1 and channels_in == channels_out:
        return nn.Identity()
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, 1, stride=stride, bias=False), nn.BatchNorm2d(channels_out)
    )


class Block(Fusable):
    """Table 6, left: Conv(m, s), BN, ReLU, Conv(m, 1), BN, ShortCut, ReLU."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels_in, channels_out, 3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(channels_out),
            nn.ReLU(),
            nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels_out),
        )
        self.shortcut = _shortcut(channels_in, channels_out, stride)

    def plain(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + self.shortcut(x))

    def steps(self) -> list[Step]:
        first, _, second = self.body
        if isinstance(self.shortcut, nn.Sequential):
            return [Step(self.shortcut[0], 0), Step(first, 0, slope=0), Step(second, 2, slope=0, added=1)]
        return [Step(first, 0, slope=0), Step(second, 1, slope=0, added=0)]


class WideBlock(nn.Module):
    """Table 6, right: Conv(m, 1), Dropout(p), BN, ReLU, Conv(m, s), ShortCut, BN, ReLU; m already widened."""

    def __init__(self, channels_in: int, channels_out: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False),
            nn.Dropout(dropout),
            nn.BatchNorm2d(channels_out),
            nn.ReLU(),
            nn.Conv2d(channels_out, channels_out, 3, stride=stride, padding=1, bias=False),
        )
        self.shortcut = _shortcut(channels_in, channels_out, stride)
        self.norm = nn.BatchNorm2d(channels_out)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.body(x) + self.shortcut(x)))


def _stem() -> list[nn.Module]:
    return [nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]


def _aux_head(aux: str | None, width: int) -> nn.Module | None:
    if aux is None:
        return None
    if aux == "rotation":
        return nn.Linear(width, 4)  # Sec. 4: "an auxiliary linear classifier h for degree prediction"
    raise ValueError(f"auxiliary head {aux!r}: the CIFAR networks have 'rotation' or none")


@register_architecture("resnet18-thin")
def resnet18_thin(
    *,
    num_classes: int = 10,
    mean: Sequence[float] = CIFAR10_MEAN,
    std: Sequence[float] = CIFAR10_STD,
    aux: str | None = None,
) -> Classifier:
    """ResNet-18 in the paper's thin form, stages of 16, 32 and 64 channels (175,258 parameters). z: (N, 64).

    Taps: `stem` and `block1` to `block6`.
    """
    widths = ((16, 16, 1), (16, 16, 1), (16, 32, 2), (32, 32, 1), (32, 64, 2), (64, 64, 1))
    blocks = [Block(*width) for width in widths]
    encoder = nn.Sequential(*_stem(), *blocks, Pooling())
    return Classifier(
        encoder,
        nn.Linear(64, num_classes),
        mean=mean,
        std=std,
        aux_head=_aux_head(aux, 64),
        taps=numbered_taps(encoder, Block, stem=2),
    )


@register_architecture("wide-resnet")
def wide_resnet(
    *,
    depth: int = 28,
    widen: int = 10,
    dropout: float = 0.3,
    num_classes: int = 10,
    mean: Sequence[float] = CIFAR10_MEAN,
    std: Sequence[float] = CIFAR10_STD,
    aux: str | None = None,
) -> Classifier:
    """Wide-ResNet of Table 7 (28-10 by default), stages of 16, 32 and 64 times `widen` channels. z: (N, 64 * widen).

    Taps: `stem` and `block1` to `block12` (at depth 28).
    """
    if depth < 10 or (depth - 4) % 6:
        raise ValueError(f"wide-resnet depth is 6n + 4 (10, 16, 22, 28, ...); got {depth}")
    layers, channels_in = _stem(), 16
    for stage, channels in enumerate((16 * widen, 32 * widen, 64 * widen)):
        for block in range((depth - 4) // 6):
            stride = 2 if stage > 0 and block == 0 else 1
            layers.append(WideBlock(channels_in, channels, stride, dropout))
            channels_in = channels
    encoder = nn.Sequential(*layers, Pooling())
    head = nn.Linear(channels_in, num_classes)
    return Classifier(
        encoder,
        head,
        mean=mean,
        std=std,
        aux_head=_aux_head(aux, channels_in),
        taps=numbered_taps(encoder, WideBlock, stem=2),
    )

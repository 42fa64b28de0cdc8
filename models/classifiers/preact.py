"""Residual networks with pre-activation, for 3x32x32 images: the classifiers of the robustness literature.

PreActResNet-18: He et al. (ECCV 2016, https://arxiv.org/abs/1603.05027) in the width usual for CIFAR, as Wong et al.'s fast
adversarial training has it. Wide ResNet: Zagoruyko and Komodakis (BMVC 2016, https://arxiv.org/abs/1605.07146), the WRN-34-10
of TRADES, AVmixup and AID; TRADES' public code has another block in it that nothing uses. SOAP's own form is `wide-resnet`.

Norms that stand in front of a convolution follow a sum and can't be folded into one convolution: `frozen` leaves them.
"""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from models.classifiers.base import Classifier, numbered_taps, register_architecture
from models.classifiers.resnet import CIFAR10_MEAN, CIFAR10_STD
from models.pooling import Pooling


class PreActBlock(nn.Module):
    """BN, ReLU, Conv(m, s), BN, ReLU, Dropout(p), Conv(m, 1), added to the input; He et al. Fig. 1 (b).

    Where the shape changes, a 1x1 convolution of the activated input takes the input's place.
    """

    def __init__(self, channels_in: int, channels_out: int, stride: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels_in)
        self.body = nn.Sequential(
            nn.Conv2d(channels_in, channels_out, 3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(channels_out),
            nn.ReLU(),
            *([nn.Dropout(dropout)] if dropout else []),
            nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False),
        )
        same = stride == 1 and channels_in == channels_out
        self.shortcut = None if same else nn.Conv2d(channels_in, channels_out, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(self.norm(x))
        added: Tensor = self.body(active)
        return added + (x if self.shortcut is None else self.shortcut(active))


def _stages(channels: Sequence[int], blocks: int, dropout: float = 0.0) -> list[nn.Module]:
    """Stages of `blocks` blocks each; `channels`: of the stem, then of each stage. All but the first stage halve the side."""
    return [
        PreActBlock(channels[stage + (block > 0)], channels[stage + 1], 2 if stage and not block else 1, dropout)
        for stage in range(len(channels) - 1)
        for block in range(blocks)
    ]


def _end(channels: int) -> list[nn.Module]:
    return [nn.BatchNorm2d(channels), nn.ReLU(), Pooling()]


@register_architecture("preactresnet18")
def preactresnet18(
    *, num_classes: int = 10, mean: Sequence[float] = CIFAR10_MEAN, std: Sequence[float] = CIFAR10_STD
) -> Classifier:
    """PreActResNet-18, stages of 64, 128, 256 and 512 channels (11.2 million parameters). z: (N, 512)."""
    encoder = nn.Sequential(
        nn.Conv2d(3, 64, 3, padding=1, bias=False),
        *_stages((64, 64, 128, 256, 512), 2),
        *_end(512),
    )
    taps = numbered_taps(encoder, PreActBlock, stem=0)
    return Classifier(encoder, nn.Linear(512, num_classes), mean=mean, std=std, taps=taps)


@register_architecture("wide-resnet-preact")
def wide_resnet_preact(
    *,
    depth: int = 34,
    widen: int = 10,
    dropout: float = 0.0,
    num_classes: int = 10,
    mean: Sequence[float] = CIFAR10_MEAN,
    std: Sequence[float] = CIFAR10_STD,
) -> Classifier:
    """WRN-`depth`-`widen` (34-10: 46.2 million parameters), stages of 16, 32 and 64 times `widen` channels.

    z: (N, 64 * widen).
    """
    if depth < 10 or (depth - 4) % 6:
        raise ValueError(f"wide-resnet-preact depth is 6n + 4 (10, 16, 22, 28, ...); got {depth}")
    width = 64 * widen
    encoder = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1, bias=False),
        *_stages((16, 16 * widen, 32 * widen, width), (depth - 4) // 6, dropout),
        *_end(width),
    )
    taps = numbered_taps(encoder, PreActBlock, stem=0)
    return Classifier(encoder, nn.Linear(width, num_classes), mean=mean, std=std, taps=taps)

"""The two generators of NRP.

Muzammal Naseer, Salman Khan, Munawar Hayat, Fahad Shahbaz Khan, Fatih Porikli: A Self-supervised Approach for Adversarial
Robustness, CVPR 2020, Sec. 3.3: "a convolution layer followed by multiple basic blocks. Each basic block is composed of 3
dense blocks and each dense block contains five convolutional layers followed by leaky-relu and finally a convolutional layer
that has output with same dimension as input"; no skip connection from input to output, which "can potentially reintroduce
harmful noise patterns".

What the paper leaves open or contradicts, and what we chose:
- All numbers: 64 channels, 32 more with each convolution, 23 basic blocks, slope 0.2 and the weight 0.2 of what a block adds are
  those of the authors' public code, and of ESRGAN (Wang et al. 2018), which it builds on. There the fifth convolution
  of a dense block is the one whose output has the dimension of the input; so here.
- The small residual generator is in the public code alone ("NRP_resG"): 23 blocks of two convolutions.
- What a generator gives is clamped to [0, 1], as the public code does when it saves an image.

Layers carry the names of the public code, so that its published weights are state dicts of these networks as they are.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.fused import Fusable
from models.networks.base import register_network
from models.networks.generator import Generator
from models.plan import Step

SHARE = 0.2  # how much of a block's output is added to its input


def _conv3x3(channels_in: int, channels_out: int) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels_out, 3, padding=1)


def _calm(convolutions: list[nn.Conv2d]) -> None:
    """A tenth of the usual random weights (ESRGAN, Sec. 3.1, "smaller initialization"): a deep trunk starts near the identity."""
    for convolution in convolutions:
        nn.init.kaiming_normal_(convolution.weight, mode="fan_in")
        convolution.weight.data *= 0.1
        nn.init.zeros_(convolution.bias)  # type: ignore[arg-type]


class NrpGenerator(Generator):
    """What a purifier of kind `nrp` runs: either of the two."""


class DenseBlock(nn.Module):
    """Five convolutions, each of which sees the block's input and what all before it gave."""

    def __init__(self, width: int, growth: int) -> None:
        super().__init__()
        self.conv1 = _conv3x3(width, growth)
        self.conv2 = _conv3x3(width + growth, growth)
        self.conv3 = _conv3x3(width + 2 * growth, growth)
        self.conv4 = _conv3x3(width + 3 * growth, growth)
        self.conv5 = _conv3x3(width + 4 * growth, width)
        _calm([self.conv1, self.conv2, self.conv3, self.conv4, self.conv5])

    def forward(self, x: Tensor) -> Tensor:
        """(N, width, H, W) -> the same."""
        seen = x
        for convolution in (self.conv1, self.conv2, self.conv3, self.conv4):
            seen = torch.cat([seen, F.leaky_relu(convolution(seen), 0.2)], dim=1)
        return x + SHARE * self.conv5(seen)  # type: ignore[no-any-return]


class BasicBlock(nn.Module):
    """Three dense blocks and a skip connection around them."""

    def __init__(self, width: int, growth: int) -> None:
        super().__init__()
        self.RDB1 = DenseBlock(width, growth)
        self.RDB2 = DenseBlock(width, growth)
        self.RDB3 = DenseBlock(width, growth)

    def forward(self, x: Tensor) -> Tensor:
        """(N, width, H, W) -> the same."""
        return x + SHARE * self.RDB3(self.RDB2(self.RDB1(x)))  # type: ignore[no-any-return]


class DenseGenerator(NrpGenerator):
    """Sec. 3.3's P_theta."""

    def __init__(self, width: int, blocks: int, growth: int) -> None:
        super().__init__()
        self.reach = 15 * blocks + 2
        self.conv_first = _conv3x3(3, width)
        self.RRDB_trunk = nn.Sequential(*(BasicBlock(width, growth) for _ in range(blocks)))
        self.trunk_conv = _conv3x3(width, 3)

    def translate(self, x: Tensor) -> Tensor:
        """See `Generator`."""
        return self.trunk_conv(self.RRDB_trunk(self.conv_first(x)))  # type: ignore[no-any-return]


class ResidualBlock(Fusable):
    """Two convolutions and a skip connection around them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = _conv3x3(width, width)
        self.conv2 = _conv3x3(width, width)
        _calm([self.conv1, self.conv2])

    def plain(self, x: Tensor) -> Tensor:
        """(N, width, H, W) -> the same."""
        return x + self.conv2(F.relu(self.conv1(x)))  # type: ignore[no-any-return]

    def steps(self) -> list[Step]:
        """See `Fusable`."""
        return [Step(self.conv1, 0, slope=0), Step(self.conv2, 1, added=0)]


class ResidualGenerator(NrpGenerator):
    """The public code's small generator."""

    def __init__(self, width: int, blocks: int) -> None:
        super().__init__()
        self.reach = 2 * blocks + 2
        self.conv_first = _conv3x3(3, width)
        self.recon_trunk = nn.Sequential(*(ResidualBlock(width) for _ in range(blocks)))
        self.conv_last = _conv3x3(width, 3)

    def translate(self, x: Tensor) -> Tensor:
        """See `Generator`."""
        return self.conv_last(self.recon_trunk(F.leaky_relu(self.conv_first(x), 0.1)))  # type: ignore[no-any-return]


@register_network("nrp")
def nrp(*, width: int = 64, blocks: int = 23, growth: int = 32) -> DenseGenerator:
    """NRP's dense generator; by default the published one (16.55 M parameters)."""
    return DenseGenerator(width, blocks, growth)


@register_network("nrp-resg")
def nrp_resg(*, width: int = 64, blocks: int = 23) -> ResidualGenerator:
    """NRP's small residual generator; by default the published one (1.70 M parameters)."""
    return ResidualGenerator(width, blocks)

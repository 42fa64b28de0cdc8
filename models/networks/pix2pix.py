"""The U-Net generator of the Pix2Pix purifier.

Nazim Mezhoudi, Son Vu: Self-Supervised Learning for Adversarial Robustness, ETIS 2022, Sec. 3.5: "a convolution block with 2
convolution layers and leaky ReLU activations followed by a series of 4 down-sampling and 4 up-sampling blocks with symmetric
skip connections. Leaky ReLU activations have been used in the encoder part and ReLU in the decoder part. Dropout has also
been used at the end of the encoder."

What the paper leaves open, and what we chose:
- Its "architecture B" has "less parameters" than that of Isola et al. (Image-to-Image Translation with Conditional Adversarial
  Networks, CVPR 2017) and no numbers. Ours doubles the channels from `width` up to eight times `width`, as Isola et al. do.
- Down: their 4x4 convolution of stride 2, slope 0.2 and batch norm. Up: the 2x2 transposed convolution of the U-Net paper
  (Ronneberger et al., MICCAI 2015), batch norm, and one 3x3 convolution over the skip connection.
- Dropout 0.5 (Isola et al.); at inference it is off, so an answer is not random.
- The output is a sigmoid, as images lie in [0, 1]; Isola et al. have tanh for [-1, 1].
- Sizes that four halvings don't divide are padded by reflection at the right and at the bottom, and cut back.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.networks.base import register_network
from models.networks.generator import Generator

DEPTH = 4  # "4 down-sampling and 4 up-sampling blocks"
SLOPE = 0.2  # Isola et al., appendix 6.1.1


def _conv(channels_in: int, channels_out: int) -> list[nn.Module]:
    return [nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False), nn.BatchNorm2d(channels_out)]


def _down(channels_in: int, channels_out: int) -> nn.Sequential:
    convolution = nn.Conv2d(channels_in, channels_out, 4, stride=2, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(channels_out), nn.LeakyReLU(SLOPE))


class Up(nn.Module):
    """Twice the size, then a convolution over what came up and what the encoder had at this size."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        larger = nn.ConvTranspose2d(channels_in, channels_out, 2, stride=2, bias=False)
        self.larger = nn.Sequential(larger, nn.BatchNorm2d(channels_out), nn.ReLU())
        self.merge = nn.Sequential(*_conv(2 * channels_out, channels_out), nn.ReLU())

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """(N, channels_in, H, W), (N, channels_out, 2 H, 2 W) -> (N, channels_out, 2 H, 2 W)."""
        y: Tensor = self.merge(torch.cat([self.larger(x), skip], dim=1))
        return y


class UNet(Generator):
    """Sec. 3.5's generator.

    Args:
        width: channels at full size; 2, 4, 8 and 8 times as many below.
        dropout: chance of dropping a value at the end of the encoder, in training.
    """

    stride = 2**DEPTH
    # In pixels of the whole image: 1 + (1 + 2 + 4 + 8) for the tail and the convolutions on the way up, up to 15 to the border of
    # a cell of the coarsest grid, and from there 8 + 4 + 2 + 1 + 2 on the way down.
    reach = 48

    def __init__(self, width: int = 64, dropout: float = 0.5) -> None:
        super().__init__()
        widths = [width, 2 * width, 4 * width, 8 * width, 8 * width]
        steps = list(pairwise(widths))
        first = [nn.Conv2d(3, width, 3, padding=1), nn.LeakyReLU(SLOPE)]
        self.head = nn.Sequential(*first, *_conv(width, width), nn.LeakyReLU(SLOPE))
        self.down = nn.ModuleList(_down(*step) for step in steps)
        self.dropout = nn.Dropout(dropout)
        self.up = nn.ModuleList(Up(deep, shallow) for shallow, deep in reversed(steps))
        self.tail = nn.Conv2d(width, 3, 3, padding=1)

    def translate(self, x: Tensor) -> Tensor:
        """See `Generator`."""
        height, width = x.shape[-2:]
        padding = (0, -width % self.stride, 0, -height % self.stride)
        levels = [self.head(F.pad(x, padding, mode="reflect") if any(padding) else x)]
        for down in self.down:
            levels.append(down(levels[-1]))
        y = self.dropout(levels.pop())
        for up in self.up:
            y = up(y, levels.pop())
        return self.tail(y).sigmoid()[..., :height, :width]  # type: ignore[no-any-return]


@register_network("pix2pix")
def pix2pix(*, width: int = 64, dropout: float = 0.5) -> UNet:
    """The U-Net of Sec. 3.5; 64 channels as Isola et al."""
    return UNet(width, dropout)

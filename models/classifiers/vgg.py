"""VGG-16 and VGG-19 (Simonyan and Zisserman, ICLR 2015, https://arxiv.org/abs/1409.1556) for 3x32x32 images.

The Pix2Pix purifier's classifiers: configurations D and E with batch norm and one linear layer instead of three, as in
kuangliu/pytorch-cifar, on which that paper builds (Sec. VI.A). Each block of convolutions is one layer of the encoder.
"""

from collections.abc import Sequence

from torch import nn

from models.classifiers.base import Classifier, numbered_taps, register_architecture
from models.classifiers.resnet import CIFAR10_MEAN, CIFAR10_STD

WIDTH = 64  # channels of the first block; the others have 2, 4, 8 and 8 times as many


def _block(channels_in: int, channels_out: int, convolutions: int, *, pool: bool) -> nn.Sequential:
    """Pooling comes first, so that a block's output is its last convolution's: block3 is "conv3-3" of VGG-16."""
    layers: list[nn.Module] = [nn.MaxPool2d(2)] if pool else []
    for _ in range(convolutions):
        # No bias: the norm would cancel it.
        layers += [
            nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels_out),
            nn.ReLU(),
        ]
        channels_in = channels_out
    return nn.Sequential(*layers)


def _vgg(
    depths: Sequence[int], width: int, num_classes: int, mean: Sequence[float], std: Sequence[float]
) -> Classifier:
    channels = (3, width, 2 * width, 4 * width, 8 * width, 8 * width)
    shapes = zip(channels, channels[1:], depths, strict=False)
    blocks = [_block(*shape, pool=number > 0) for number, shape in enumerate(shapes)]
    encoder = nn.Sequential(*blocks, nn.MaxPool2d(2), nn.Flatten())
    taps = numbered_taps(encoder, nn.Sequential)
    return Classifier(encoder, nn.Linear(channels[-1], num_classes), mean=mean, std=std, taps=taps)


@register_architecture("vgg16")
def vgg16(
    *,
    width: int = WIDTH,
    num_classes: int = 10,
    mean: Sequence[float] = CIFAR10_MEAN,
    std: Sequence[float] = CIFAR10_STD,
) -> Classifier:
    """Configuration D: 2 + 2 + 3 + 3 + 3 convolutions (14.7 million parameters at width 64). z: (N, 8 * width)."""
    return _vgg((2, 2, 3, 3, 3), width, num_classes, mean, std)


@register_architecture("vgg19")
def vgg19(
    *,
    width: int = WIDTH,
    num_classes: int = 10,
    mean: Sequence[float] = CIFAR10_MEAN,
    std: Sequence[float] = CIFAR10_STD,
) -> Classifier:
    """Configuration E: 2 + 2 + 4 + 4 + 4 convolutions (20.0 million parameters at width 64). z: (N, 8 * width)."""
    return _vgg((2, 2, 4, 4, 4), width, num_classes, mean, std)

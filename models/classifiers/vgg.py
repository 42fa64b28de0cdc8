"""VGG-16 and VGG-19 (Simonyan and Zisserman, ICLR 2015, https://arxiv.org/abs/1409.1556) for 3x32x32 images.

The Pix2Pix purifier's classifiers: configurations D and E with batch norm and one linear layer instead of three, as in
kuangliu/pytorch-cifar, on which that paper builds (Sec. VI.A). Each block of convolutions is one layer of the encoder.
"""

from collections.abc import Sequence

from torch import nn

from models.classifiers.base import Classifier, register_architecture
from models.classifiers.resnet import CIFAR10_MEAN, CIFAR10_STD

CHANNELS = (64, 128, 256, 512, 512)


def _block(channels_in: int, channels_out: int, convolutions: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for _ in range(convolutions):
        # No bias: the norm would cancel it.
        layers += [
            nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels_out),
            nn.ReLU(),
        ]
        channels_in = channels_out
    return nn.Sequential(*layers, nn.MaxPool2d(2))


def _vgg(depths: Sequence[int], num_classes: int, mean: Sequence[float], std: Sequence[float]) -> Classifier:
    blocks = [_block(*shape) for shape in zip((3, *CHANNELS), CHANNELS, depths, strict=False)]
    encoder = nn.Sequential(*blocks, nn.Flatten())
    return Classifier(encoder, nn.Linear(CHANNELS[-1], num_classes), mean=mean, std=std)


@register_architecture("vgg16")
def vgg16(
    *, num_classes: int = 10, mean: Sequence[float] = CIFAR10_MEAN, std: Sequence[float] = CIFAR10_STD
) -> Classifier:
    """Configuration D: 2 + 2 + 3 + 3 + 3 convolutions (14.7 million parameters). z: (N, 512)."""
    return _vgg((2, 2, 3, 3, 3), num_classes, mean, std)


@register_architecture("vgg19")
def vgg19(
    *, num_classes: int = 10, mean: Sequence[float] = CIFAR10_MEAN, std: Sequence[float] = CIFAR10_STD
) -> Classifier:
    """Configuration E: 2 + 2 + 4 + 4 + 4 convolutions (20.0 million parameters). z: (N, 512)."""
    return _vgg((2, 2, 4, 4, 4), num_classes, mean, std)

"""The MNIST networks of SOAP Table 7 (Shi et al., ICLR 2021), for 1x28x28 images, with their decoders (Sec. 4).

Table 7 gives FCN and CNN layer by layer but not the decoders: "for the FCN g is a linear classifier and h is a
fully-connected decoder; for the CNN g is a 2-layer MLP and h is a convolutional decoder", output squashed by a
sigmoid. We mirror the encoder in both. The authors' public code uses another CNN (no batch norm, a 1024-wide bottleneck);
measured after short training it was a little worse under attack than Table 7's.
"""

from collections.abc import Sequence

from torch import nn

from models.classifiers.base import Classifier, register_architecture


@register_architecture("fcn")
def fcn(
    *,
    num_classes: int = 10,
    mean: Sequence[float] = (0.0,),
    std: Sequence[float] = (1.0,),
    aux: str | None = None,
    dropout: float = 0.5,
) -> Classifier:
    """FCN of Table 7: FC(256), ReLU, Dropout, FC(128), ReLU, Dropout, FC(10). z: (N, 128)."""
    _check_aux(aux)
    encoder = nn.Sequential(
        nn.Flatten(),
        *(nn.Linear(784, 256), nn.ReLU(), nn.Dropout(dropout)),
        *(nn.Linear(256, 128), nn.ReLU(), nn.Dropout(dropout)),
    )
    decoder = nn.Sequential(
        *(nn.Linear(128, 256), nn.ReLU()),
        *(nn.Linear(256, 784), nn.Sigmoid(), nn.Unflatten(1, (1, 28, 28))),
    )
    return Classifier(
        encoder, nn.Linear(128, num_classes), mean=mean, std=std, aux_head=decoder if aux == "decoder" else None
    )


@register_architecture("cnn")
def cnn(
    *,
    num_classes: int = 10,
    mean: Sequence[float] = (0.0,),
    std: Sequence[float] = (1.0,),
    aux: str | None = None,
) -> Classifier:
    """CNN of Table 7: two strided convolutions, then g = FC(128), ReLU, BN, FC(10). z: (N, 64, 7, 7)."""
    _check_aux(aux)
    encoder = nn.Sequential(
        *(nn.Conv2d(1, 32, 3, stride=2, padding=1), nn.ReLU()),
        *(nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.ReLU(), nn.BatchNorm2d(64)),
    )
    head = nn.Sequential(
        nn.Flatten(), nn.Linear(64 * 7 * 7, 128), nn.ReLU(), nn.BatchNorm1d(128), nn.Linear(128, num_classes)
    )
    decoder = nn.Sequential(
        *(nn.ConvTranspose2d(64, 32, 3, stride=2, padding=1, output_padding=1), nn.ReLU()),
        *(nn.ConvTranspose2d(32, 1, 3, stride=2, padding=1, output_padding=1), nn.Sigmoid()),
    )
    return Classifier(encoder, head, mean=mean, std=std, aux_head=decoder if aux == "decoder" else None)


def _check_aux(aux: str | None) -> None:
    if aux not in (None, "decoder"):
        raise ValueError(f"auxiliary head {aux!r}: the MNIST networks have 'decoder' or none")

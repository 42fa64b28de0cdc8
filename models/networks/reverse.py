"""The contrastive head of `reverse`, and its loss.

Chengzhi Mao, Mia Chiquier, Hao Wang, Junfeng Yang, Carl Vondrick: Adversarial Attacks are Reversible with Natural
Supervision, ICCV 2021. Here: the two-layer network G of Sec. 3.2 on the classifier's penultimate features, and Eq. (4).

What the paper leaves open or contradicts, and what we chose:
- G's widths: 128 hidden units with batch norm and 8 outputs, as the authors' public code has for PreActResNet-18.
- Negatives are "random images from a collection that form the negative set" (Sec. 3.2); the public code takes the other
  images of the batch, so that one caller's answer depends on another's image. Ours are a fixed bank: the classifier's features of
  views of training images. The classifier is frozen, so they don't age while G learns.
- Eq. (4) sums over k without saying which: all other views of the image and all negatives, not z_i itself (as SimCLR). With more
  than two views the public code counts one positive and lets the others stand among the negatives; we follow Eq. (4), whose
  expectation runs over all positive pairs.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.networks.base import register_network


class ContrastiveHead(nn.Module):
    """G, from the classifier's features to contrastive features z, and the bank of negatives.

    Args:
        features: length of the classifier's penultimate features.
        hidden: width of the first layer.
        outputs: length of z.
        negatives: rows of the bank.
    """

    bank: Tensor

    def __init__(self, features: int, hidden: int, outputs: int, negatives: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(features, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, outputs)
        )
        self.register_buffer("bank", torch.zeros(negatives, features))  # the trainer fills it

    def forward(self, features: Tensor) -> Tensor:
        """z, of length 1, as the cosines of Eq. (4) need it. (..., features) -> (..., outputs)."""
        z: Tensor = self.layers(features.flatten(0, -2)).unflatten(0, features.shape[:-1])
        return F.normalize(z, dim=-1)


def contrastive_loss(own: Tensor, others: Tensor, temperature: float) -> Tensor:
    """Eq. (4) for each image: how badly its views find each other among the negatives. -> (N,), each >= 0.

    own: (N, V, V), cosines of an image's V >= 2 views. others: (N, V, M), of its views with its negatives.
    """
    itself = torch.eye(own.shape[1], dtype=torch.bool, device=own.device)
    own = own / temperature
    among = torch.cat([own.masked_fill(itself, -torch.inf), others / temperature], dim=2).logsumexp(dim=2)  # (N, V)
    together = own.masked_fill(itself, 0).sum(dim=2) / (own.shape[1] - 1)  # (N, V), the mean over j
    return (among - together).mean(dim=1)


@register_network("reverse")
def reverse(*, features: int = 64, hidden: int = 128, outputs: int = 8, negatives: int = 1024) -> ContrastiveHead:
    """Two layers, and 1024 negatives: about as many as the paper's inference batch of 1024 images."""
    return ContrastiveHead(features, hidden, outputs, negatives)

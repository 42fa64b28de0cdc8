"""Reverse: purify by descending a contrastive loss, so that views of the image agree with each other again.

Chengzhi Mao, Mia Chiquier, Hao Wang, Junfeng Yang, Carl Vondrick: Adversarial Attacks are Reversible with Natural
Supervision, ICCV 2021. Here: Alg. 1 on the loop of models/purifiers/descent.py, with Eq. (4) of models/networks/reverse.py.

What the paper leaves open or contradicts, and what we chose:
- Alg. 1, l. 6 prints a plain gradient step; the authors' public code takes its sign, as every l_inf attack does. So do we.
- eta: 2/255 in the public code. The initial noise n: uniform in the whole box of eps_v there; here `random_start`.
- Views are drawn anew in each step, as in the public code.
- The public code scores the batch as one and takes batch mates as negatives. Here the loss is each image's own, its
  negatives are a fixed bank, and all that is random comes from its seed.
"""

from collections.abc import Callable, Sequence

import torch
from pydantic import Field
from torch import Tensor

from models.augment import DRAWS, Views
from models.classifiers import Classifier
from models.networks.reverse import ContrastiveHead, contrastive_loss
from models.purifiers.base import Material, Purifier, one_each, register
from models.purifiers.descending import DescentPurifier, Description, settings_of
from models.purifiers.descent import DescentSettings, Evaluation, Selection
from models.rounding import by_rows

PAPER = "Mao, Chiquier, Wang, Yang, Vondrick: Adversarial Attacks are Reversible with Natural Supervision, ICCV 2021"


# Images at a time, each with thousands of cosines: what fills a block up costs as much as they do.
_ROWS = 8


class ReverseSettings(DescentSettings):
    """Settings of `reverse`; K is `steps`, eta `step_size`, eps_v the last of `budgets`."""

    selection: Selection = "fixed"  # Alg. 1 keeps the last iterate
    skip_percentile: None = None
    views: int = Field(default=4, ge=2, le=16, description="positive views of each iterate, Sec. 7.D")
    temperature: float = Field(default=0.2, gt=0, description="tau, Sec. 4.3")


class Contrast:
    """Eq. (4) as a descent objective: an image's views among the bank of negatives."""

    logit_views = 1  # the classification of the unaugmented image

    def __init__(self, classifier: Classifier, head: ContrastiveHead, views: int, temperature: float) -> None:
        self.classifier, self.head, self.temperature = classifier, head, temperature
        self.views = self.gradient_views = views
        self.batch_invariant = classifier.batch_invariant
        with torch.no_grad():
            self._negatives = head(head.bank).T.contiguous()  # (D, M)

    def drawn(self, t: int, seeds: Sequence[int]) -> Callable[[Tensor], Evaluation]:
        """The objective of N images with step t's views of their seeds."""
        uniform = self._uniform(t, seeds)
        return lambda x: Evaluation(self.loss(x, uniform.to(x.device)), lambda: self.logits(x.detach()))

    def loss(self, x: Tensor, uniform: Tensor) -> Tensor:
        """Eq. (4) of each image. (N, 3, H, W) in [0, 1], (N V, DRAWS) in [0, 1) -> (N,), each >= 0."""
        features = self.classifier.features(self._seen(x, uniform))
        return by_rows(self._of_features, features.unflatten(0, (len(x), self.views)), _ROWS)

    def _of_features(self, rows: Tensor) -> Tensor:
        """Eq. (4), from the classifier's features of the views. (N, V features) -> (N,)."""
        z = self.head(rows.unflatten(1, (self.views, -1)))  # (N, V, D)
        return contrastive_loss(z @ z.mT, z @ self._negatives, self.temperature)

    def view_logits(self, x: Tensor, seeds: Sequence[int]) -> Tensor:
        """The class logits of step 0's views of their seeds. (N, 3, H, W) -> (V, N, K)."""
        each = self.logits(self._seen(x, self._uniform(0, seeds).to(x.device)))  # (N V, K)
        logits: Tensor = each.unflatten(0, (len(x), self.views)).transpose(0, 1)
        return logits

    def logits(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, K)."""
        return self.classifier(x)  # type: ignore[no-any-return]

    def _uniform(self, t: int, seeds: Sequence[int]) -> Tensor:
        """What decides step t's views of N images. -> (N V, DRAWS) in [0, 1)."""
        return torch.cat([_uniform(seed, t, self.views) for seed in seeds])

    def _seen(self, x: Tensor, uniform: Tensor) -> Tensor:
        """All views, image by image. (N, 3, H, W), (N V, DRAWS) -> (N V, 3, H, W)."""
        return Views.drawn(uniform).of(x[:, None].expand(-1, self.views, -1, -1, -1).flatten(0, 1))


def _uniform(seed: int, t: int, views: int) -> Tensor:
    """What decides an image's views in step t. -> (V, DRAWS) in [0, 1)."""
    # The seed itself draws the start (see `uniform`); each step has a stream of its own, however many steps there are.
    generator = torch.Generator().manual_seed((seed + (t + 1) * 0xD1B54A32D192ED03) % 2**63)
    return torch.rand(views, DRAWS, generator=generator)


class Reverse(DescentPurifier[Contrast]):
    """Alg. 1: Eq. (4) on the shared descent."""

    def view_logits(self, x: Tensor, seeds: Sequence[int] | None = None) -> Tensor:
        """Class logits of the random views of an incoming image, differentiable. (N, C, H, W) -> (V, N, K).

        They are those of step 0, whose loss `objective` has for the same seeds. No step's views are likelier than another's,
        so fresh seeds are all that an attacker needs to see others.

        Raises:
            ValueError: no seeds, or not one for each image.
        """
        return self._objective.view_logits(x, one_each(x, seeds))


@register("reverse")
def reverse(material: Material) -> Purifier:
    """Reverse, Alg. 1."""
    summary = "descends the contrastive loss of random views of the image against a fixed bank of negatives"
    settings, head = settings_of(ReverseSettings, material), material.own_network(ContrastiveHead)
    objective = Contrast(material.classifier, head, settings.views, settings.temperature)
    return Reverse(Description("reverse", PAPER, summary), objective, settings, material.calibration)

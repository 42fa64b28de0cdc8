"""AID-Purifier: purify by descending the probability, judged from two layers of the classifier, that an image is adversarial.

Duhun Hwang, Eunjung Lee, Wonjong Rhee: AID-Purifier: A Light Auxiliary Network for Boosting Adversarial Defense, 2021
(https://openreview.net/forum?id=3Uk9_JRVwiF). Here: Alg. 2 as `aid`, on the shared loop (models/purifiers/descent.py). The
discriminator is models/networks/aid.py, its training (Alg. 1) training/aid.py.

What the paper leaves open or contradicts, and what we chose:
- Alg. 2, l. 4 takes the sign of the gradient of p_adv. We take that of its logit: the same sign, but where p_adv rounds to 1
  the gradient of the sigmoid is 0, and the most conspicuous images would stay as they are.
- A pass here is one forward of the classifier as deep as the highest tap, and the discriminator; the paper's N steps are N
  backward and N + 1 forward passes. The last forward goes on from the tap to the logits: no layer runs twice for an iterate.
"""

import torch
from torch import Tensor

from models.classifiers import Classifier
from models.networks.aid import AidDiscriminator
from models.purifiers.base import Material, Purifier, register
from models.purifiers.descending import DescentPurifier, Description, settings_of
from models.purifiers.descent import DescentSettings, Evaluation
from models.rounding import by_rows

PAPER = "Hwang, Lee, Rhee: AID-Purifier: A Light Auxiliary Network for Boosting Adversarial Defense, 2021"


class AdversarialProbability:
    """p_adv = D(h_low(x), h_high(x)) as a descent objective; what is descended is its logit.

    Raises:
        ValueError: the classifier lacks a tap.
    """

    views = gradient_views = 1
    logit_views = 0

    def __init__(self, classifier: Classifier, discriminator: AidDiscriminator) -> None:
        discriminator.check(classifier)
        self.classifier, self.discriminator = classifier, discriminator
        self.batch_invariant = classifier.batch_invariant
        self._highest = discriminator.highest(classifier)

    def __call__(self, x: Tensor) -> Evaluation:
        activations = self.classifier.tapped(x, self.discriminator.taps)
        logit = self.discriminator(activations)
        highest = activations[self.discriminator.taps.index(self._highest)].detach()
        # A sigmoid is rounded in one way in a processor's vectors and in another way in what is left over.
        probability = by_rows(torch.sigmoid, logit[:, None]).squeeze(1)
        return Evaluation(probability, lambda: self._read(highest), surrogate=logit)

    @torch.no_grad()
    def _read(self, activation: Tensor) -> Tensor:
        """The rest of the classifier. -> (N, K)."""
        logits: Tensor = self.classifier.classifier_head(self.classifier.from_tap(self._highest, activation))
        return logits

    def logits(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, K)."""
        return self.classifier(x)  # type: ignore[no-any-return]


@register("aid")
def aid(material: Material) -> Purifier:
    """AID-Purifier, Alg. 2."""
    summary = "descends a discriminator's probability that the image is adversarial"
    objective = AdversarialProbability(material.classifier, material.own_network(AidDiscriminator))
    settings = settings_of(DescentSettings, material)
    return DescentPurifier(Description("aid", PAPER, summary), objective, settings, material.calibration)

"""What published code does that ours doesn't: the ways that `ours` is measured against.

All of it runs on unfrozen networks in eval mode, in the layout that PyTorch makes them in, with batch norm as it was trained;
every backward pass fills the gradients of the weights too, and the chosen image is classified once more.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from models.classifiers import Classifier
from models.purifiers import reference
from models.purifiers.aid import AdversarialProbability
from models.purifiers.descending import DescentPurifier
from models.purifiers.descent import Evaluation
from models.purifiers.soap import LabelConsistency, flip_crop

Run = Callable[[Tensor, Sequence[int]], reference.Answer]

# Public AID passes the classifier once for each of its four taps, and multiplies two of the results by zero.
AID_FORWARDS = 4


class SeparateViews(LabelConsistency):
    """SOAP's public code classifies the two views in two calls."""

    def __call__(self, x: Tensor) -> Evaluation:
        first, second = self.classifier(x), self.classifier(flip_crop(x))
        second = second.detach() + self.weight * (second - second.detach())
        return Evaluation(torch.square(first - second).sum(1), first)


class SeparateTaps(AdversarialProbability):
    """AID's public code runs the classifier anew, as deep as the tap, for every layer that its discriminator may read."""

    def __call__(self, x: Tensor) -> Evaluation:
        taps = self.discriminator.taps
        (unused, *_) = [self.classifier.tapped(x, [self._highest]) for _ in range(AID_FORWARDS - len(taps))]
        logit = self.discriminator([self.classifier.tapped(x, [name])[0] for name in taps])
        logit = logit + 0 * unused[0].flatten(1).sum(1)
        return Evaluation(logit.sigmoid(), lambda: self.classifier(x.detach()), surrogate=logit)


def descent(purifier: DescentPurifier) -> Run:  # type: ignore[type-arg]
    """The published loop around the objective of `purifier`, which is built on unfrozen networks."""
    objective = purifier.descended
    if isinstance(objective, LabelConsistency):
        objective = SeparateViews(objective.classifier, objective.weight, objective.share)
    elif isinstance(objective, AdversarialProbability):
        objective = SeparateTaps(objective.classifier, objective.discriminator)
    return lambda x, seeds: reference.purify(objective, x.contiguous(), purifier.settings, seeds=seeds)


def generator(network: nn.Module, classifier: Classifier) -> Run:
    """One pass with a graph that nobody needs, on the whole image."""

    def run(x: Tensor, seeds: Sequence[int]) -> reference.Answer:
        image = network(x.contiguous()).detach()
        nothing = x.new_zeros(len(x))
        return reference.Answer(image, nothing, nothing, classifier(image).detach())

    return run


def plain(classifier: Classifier) -> Run:
    """The classification alone."""

    def run(x: Tensor, seeds: Sequence[int]) -> reference.Answer:
        nothing = x.new_zeros(len(x))
        return reference.Answer(x, nothing, nothing, classifier(x.contiguous()).detach())

    return run

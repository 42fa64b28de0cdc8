"""Classifiers: networks from [0, 1] images to logits, built by name."""

from models.classifiers import mnist as _mnist  # noqa: F401  (registers its architectures)
from models.classifiers import preact as _preact  # noqa: F401
from models.classifiers import resnet as _resnet  # noqa: F401
from models.classifiers import vgg as _vgg  # noqa: F401
from models.classifiers.base import Classifier, architectures, build_classifier, frozen

__all__ = ["Classifier", "architectures", "build_classifier", "frozen"]

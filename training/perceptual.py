"""What NRP and Pix2Pix call a perceptual space: inner activations of a fixed classifier, and images perturbed to distort them.

Both papers take a VGG: NRP (Naseer et al., CVPR 2020, Sec. 3.3) one trained on ImageNet, Pix2Pix (Mezhoudi 2022, Sec. 4.1) one
trained on CIFAR-10. Here it is the classifier of the recipe, whatever its architecture, as Pix2Pix does it; or
torchvision's VGG trained on ImageNet, for who has its weights.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torchvision import models as torchvision_models

from models.classifiers import Classifier, frozen
from training.addons import Setting
from training.attacks import AttackSettings
from training.attacks.ascent import random_start
from training.attacks.blind import distort_features


class PerceptualSettings(BaseModel):
    """The extractor and the perturbation that images are trained with."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    extractor: Literal["classifier", "vgg16", "vgg19"] = Field(
        default="classifier",
        description="the recipe's classifier, or torchvision's VGG with its ImageNet weights, which are downloaded once",
    )
    tap: str = Field(
        description="the layer: of the classifier one of its taps; of a VGG a convolution with its ReLU, for example conv3-3"
    )
    epsilon: float = Field(default=16 / 255, gt=0, le=1, description="of the perturbation, l_inf; both papers")
    step_size: float = Field(default=0.01, gt=0, le=1, description="kappa; NRP's public code")
    steps: int = Field(default=100, ge=1, description="T; NRP's public code")

    def attack(self) -> AttackSettings:
        """Alg. 1 of both papers with these numbers."""
        return AttackSettings(
            name="feature-distortion",
            mode="static",
            epsilon=self.epsilon,
            step_size=self.step_size,
            steps=self.steps,
            random_start=True,
        )


class Perceptual:
    """The activations of one layer, and perturbations that distort them."""

    def __init__(self, setting: Setting, settings: PerceptualSettings) -> None:
        self._attack, self._tap, self._precision = settings.attack(), settings.tap, setting.precision
        self._classifier = (
            setting.classifier
            if settings.extractor == "classifier"
            else frozen(imagenet_vgg(settings.extractor), setting.device)
        )
        if self._tap not in self._classifier.taps:
            raise ValueError(f"no tap {self._tap!r}; the extractor has {', '.join(self._classifier.taps) or 'none'}")

    def features(self, x: Tensor) -> Tensor:
        """P_n(x), differentiable. (N, C, H, W) in [0, 1] -> (N, ...) float32."""
        with self._precision():
            return self._classifier.tapped(x, [self._tap])[0].float()

    def perturbed(self, x: Tensor) -> Tensor:
        """x' of Alg. 1 from a random start, drawn from torch's global generator. (N, C, H, W) in [0, 1] -> the same."""
        return distort_features(self.features, x, self._attack, random_start(x, self._attack.epsilon))


def imagenet_vgg(name: Literal["vgg16", "vgg19"]) -> Classifier:
    """torchvision's VGG as an encoder without a head; it is tapped after each convolution's ReLU."""
    layers: nn.Sequential = torchvision_models.get_model(name, weights="IMAGENET1K_V1").features
    return tapped_vgg(layers)


def tapped_vgg(layers: nn.Sequential) -> Classifier:
    """Taps named as in the VGG paper: `conv3-2` is the second convolution of the third block, with its ReLU."""
    taps, block, place = {}, 1, 0
    for layer in layers:
        if isinstance(layer, nn.MaxPool2d):
            block, place = block + 1, 0
        if isinstance(layer, nn.ReLU):
            place += 1
            taps[f"conv{block}-{place}"] = layer
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # torchvision's, of ImageNet
    return Classifier(layers, nn.Flatten(), mean=mean, std=std, taps=taps)

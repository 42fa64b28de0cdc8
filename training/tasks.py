"""The tasks that a recipe can name: what one training step's loss is.

A task gets the network in training mode, the recipe, the augmented images (`crop`), a batch's indices (B,) and labels (B,).
It draws whatever it needs from torch's global generator, and leaves the network in training mode.
"""

from collections.abc import Callable

from torch import Tensor

from models.classifiers import Classifier
from training import robust, soap
from training.augment import Cropper
from training.recipe import Recipe, Task
from training.soap import Losses

TASKS: dict[Task, Callable[[Classifier, Recipe, Cropper, Tensor, Tensor], Losses]] = {
    "natural": soap.natural,
    "soap-dr": soap.soap_dr,
    "soap-rp": soap.soap_rp,
    "soap-lc": soap.soap_lc,
    "fgsm-at": robust.adversarial,
    "pgd-at": robust.adversarial,
    "trades": robust.trades,
    "avmixup": robust.avmixup,
}

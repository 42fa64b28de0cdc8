"""`unperturb train` for add-ons: a purifier's own network, learnt beside a frozen classifier of the zoo."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from models.catalog import Catalog
from models.checkpoint import AddOnCard, Checkpoint, save_checkpoint
from models.classifiers import Classifier, frozen
from models.networks import build_network, frozen_network
from training import aid as _aid  # noqa: F401  (registers its trainers)
from training import nrp as _nrp  # noqa: F401
from training import pix2pix as _pix2pix  # noqa: F401
from training import reverse as _reverse  # noqa: F401
from training.addons import Setting, trainer
from training.augment import Cropper
from training.calibrate import calibrate
from training.data import ImageData, load_data
from training.loop import Loop, TrainingError, check_images
from training.progress import Progress
from training.recipe import AddOnRecipe


def train_addon(
    recipe: AddOnRecipe,
    *,
    out: Path,
    catalog: Catalog,
    data: Path | None = None,
    download: bool = False,
    restart: bool = False,
    device: str = "cpu",
    progress: Progress | None = None,
) -> AddOnCard:
    """Train `recipe` in the folder `out`, continuing what is there, and write the checkpoint into it.

    Args:
        catalog: holds the classifier that the recipe names.

    Raises:
        TrainingError: `out` holds a training with other settings, the classifier is missing or looks at other images, or the
            loss is no longer finite.
        DataError: the data set is missing.
    """
    checkpoint = classifier_of(recipe, catalog)
    images = load_data(recipe.data, "train", data, download=download)
    check_images(recipe, images)
    out.mkdir(parents=True, exist_ok=True)
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(recipe.seed)
        setting = setting_of(recipe, frozen(checkpoint.classifier(), device), images, torch.device(device))
        learner = trainer(setting)
        sizes = {"images": len(images), "batch_size": recipe.batch_size, "epochs": recipe.epochs}
        identity = json.dumps({**recipe.shaping(), "classifier": checkpoint.card.weights_sha256}, sort_keys=True)
        loop = Loop(learner, out=out, identity=identity, seed=recipe.seed, **sizes)
        if not restart:
            loop.resume(setting.device)
        loop.run(recipe.name, progress or Progress())
    made = recipe.model_dump(mode="json", exclude={"purifiers", "input", "model", "addon", "protects"})
    provenance = {"recipe": made, **loop.provenance(setting.device)}
    return export_addon(learner.exported.cpu(), recipe, checkpoint, setting.images, out, provenance)


def classifier_of(recipe: AddOnRecipe, catalog: Catalog) -> Checkpoint:
    """The classifier beside which a recipe's add-on learns.

    Raises:
        TrainingError: it is missing, or looks at other images.
    """
    found = catalog.find(recipe.model, recipe.classifier)
    if found is None or not isinstance(found.checkpoint, Checkpoint):
        known = ", ".join(
            "/".join(each.key) for each in catalog.checkpoints() if isinstance(each.checkpoint, Checkpoint)
        )
        raise TrainingError(
            f"recipe {recipe.name!r} needs classifier {recipe.model}/{recipe.classifier}; there are {known}. "
            "--zoo names the folder that holds it"
        )
    if found.checkpoint.card.input != recipe.input:
        raise TrainingError(
            f"classifier {recipe.classifier!r} looks at {found.checkpoint.card.input}; the recipe says {recipe.input}"
        )
    return found.checkpoint


def setting_of(recipe: AddOnRecipe, classifier: Classifier, images: ImageData, device: torch.device) -> Setting:
    """What the recipe's trainer works with: a fresh network beside the frozen `classifier`."""
    network = build_network(recipe.network, **recipe.arguments).to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    on_device = ImageData(images.images.to(device), images.labels.to(device), images.classes)
    crop = Cropper(on_device.images, recipe.augmentation.crop_padding, recipe.augmentation.flip)
    return Setting(recipe, classifier.to(device), network, on_device, crop, device)


def export_addon(
    network: nn.Module,
    recipe: AddOnRecipe,
    protected: Checkpoint,
    images: ImageData,
    out: Path,
    provenance: dict[str, Any],
) -> AddOnCard:
    """Write a purifier's network as the add-on that `recipe` describes, calibrated on the first training images.

    protected: the classifier that the recipe names. The device is that of `images`; the network's is the CPU.
    """
    fields: dict[str, Any] = {
        "part": "purifier",
        "model": recipe.model,
        "addon": recipe.addon,
        "network": recipe.network,
        "arguments": recipe.arguments,
        "classifier": protected.card.classifier,
        "classifier_sha256": protected.card.weights_sha256,
        "protects": recipe.protects,
        "input": recipe.input.model_dump(),
        "purifiers": {name: entry.model_dump() for name, entry in recipe.purifiers.items()},
        "training": {
            **provenance,
            "calibrated_on": f"the first {recipe.calibration_images} training images, unaugmented",
        },
    }
    merged = protected.card.model_copy(update={"purifiers": dict(recipe.purifiers)})
    first, device = images.floats(0, recipe.calibration_images), images.images.device
    classifier = frozen(protected.classifier(), device)
    fields["calibration"] = calibrate(merged, classifier, first, frozen_network(network, device))
    card = save_checkpoint(out, network, fields)
    assert isinstance(card, AddOnCard)
    return card

"""`unperturb train` for classifiers: one recipe in, one checkpoint folder out (the loop itself is training/loop.py)."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.checkpoint import Card, Checkpoint, save_checkpoint
from models.classifiers import Classifier, build_classifier, frozen
from training.augment import Cropper
from training.calibrate import calibrate
from training.data import ImageData, load_data
from training.loop import Loop, TrainingError, check_images, set_rate
from training.progress import Progress
from training.recipe import Recipe, Schedule
from training.robust import robust_accuracy
from training.tasks import TASKS


def train(
    recipe: Recipe,
    *,
    out: Path,
    data: Path | None = None,
    start: Path | None = None,
    download: bool = False,
    restart: bool = False,
    device: str = "cpu",
    progress: Progress | None = None,
) -> Card:
    """Train `recipe` in the folder `out`, continuing what is there, and write the checkpoint into it.

    Args:
        start: a checkpoint folder whose weights the training begins from, instead of fresh ones.

    Raises:
        TrainingError: `out` holds a training with other settings, `start` has another network, or the loss is no longer
            finite.
        CheckpointError: `start` can't be read.
        DataError: the data set is missing.
    """
    progress = progress or Progress()
    images = load_data(recipe.data, "train", data, download=download)
    _check(recipe, images)
    out.mkdir(parents=True, exist_ok=True)
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        run = ClassifierTrainer(recipe, images, device)
        if start is not None:
            run.start_from(Checkpoint.open(start))
        sizes = {"images": len(images), "batch_size": recipe.batch_size, "epochs": recipe.epochs}
        loop = Loop(run, out=out, identity=run.identity(), seed=recipe.seed, **sizes)
        if not restart:
            loop.resume(run.device)
        loop.run(recipe.name, progress, watch=lambda: robust_accuracy(run.network, recipe, run.images))
        provenance = {**run.provenance(), **loop.provenance(run.device)}
        return export(run.network.cpu(), recipe, run.images, out, provenance)


def _check(recipe: Recipe, images: ImageData) -> None:
    check_images(recipe, images)
    if recipe.task == "soap-lc" and recipe.views is None:
        raise TrainingError("task 'soap-lc' needs a [views] table in the recipe")


class ClassifierTrainer:
    """A classifier's trainer, see `Trainer`, with all that it needs to begin and to end. It begins with fresh weights."""

    def __init__(self, recipe: Recipe, images: ImageData, device: str) -> None:
        self.recipe, self.device = recipe, torch.device(device)
        self.images = ImageData(images.images.to(device), images.labels.to(device), images.classes)
        self.started_from: dict[str, Any] | None = None
        torch.manual_seed(recipe.seed)
        network = build_classifier(recipe.architecture, num_classes=len(images.classes), **recipe.arguments)
        self.network: Classifier = network.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizer = _optimizer(self.network, recipe)
        self.networks, self.optimizers = {"classifier": self.network}, {"sgd": self.optimizer}
        self.crop = Cropper(self.images.images, recipe.augmentation.crop_padding, recipe.augmentation.flip)

    def start_from(self, checkpoint: Checkpoint) -> None:
        """Begin with the weights of `checkpoint`; how those were made goes on into this training's card."""
        card = checkpoint.card
        arguments = {"num_classes": len(self.images.classes), **self.recipe.arguments}
        if (card.architecture, card.arguments) != (self.recipe.architecture, arguments):
            raise TrainingError(
                f"{checkpoint.folder} holds {card.architecture} {card.arguments}; "
                f"recipe {self.recipe.name!r} trains {self.recipe.architecture} {arguments}"
            )
        self.network.load_state_dict(checkpoint.classifier().state_dict())
        self.started_from = {"weights_sha256": card.weights_sha256, "training": card.training}

    def step(self, indices: Tensor, share: float) -> dict[str, Tensor]:
        """See `Trainer`."""
        set_rate(self.optimizer, learning_rate(self.recipe, share))
        indices = indices.to(self.device)
        labels = self.images.labels[indices]
        bf16 = self.recipe.precision == "bf16"
        with torch.device(self.device), torch.autocast(self.device.type, torch.bfloat16, enabled=bf16):
            losses = TASKS[self.recipe.task](self.network, self.recipe, self.crop, indices, labels)
        self.optimizer.zero_grad(set_to_none=True)
        losses.total.backward()
        self.optimizer.step()
        accuracy = losses.correct / losses.count
        return {"loss": losses.total.detach(), "auxiliary": losses.auxiliary.detach(), "accuracy": accuracy}

    def identity(self) -> str:
        """Everything that decides what this training's weights will be."""
        start = self.started_from["weights_sha256"] if self.started_from else None
        return json.dumps({**self.recipe.shaping(), "start": start}, sort_keys=True)

    def provenance(self) -> dict[str, Any]:
        """What the card says of the training, beside what the loop knows."""
        recipe = self.recipe.model_dump(mode="json", exclude={"purifiers", "input", "model", "classifier"})
        return {"recipe": recipe, "started_from": self.started_from}


def export(network: Classifier, recipe: Recipe, images: ImageData, out: Path, provenance: dict[str, Any]) -> Card:
    """Write a trained network as the checkpoint that `recipe` describes, calibrated on the first training images."""
    fields: dict[str, Any] = {
        "model": recipe.model,
        "classifier": recipe.classifier,
        "architecture": recipe.architecture,
        "arguments": {"num_classes": len(images.classes), **recipe.arguments},
        "labels": images.classes,
        "input": recipe.input.model_dump(),
        "purifiers": {name: entry.model_dump() for name, entry in recipe.purifiers.items()},
        "training": {
            **provenance,
            "calibrated_on": f"the first {recipe.calibration_images} training images, unaugmented",
        },
    }
    card = Card.model_validate({**fields, "weights_sha256": "0" * 64})
    fields["calibration"] = calibrate(card, frozen(network), images.floats(0, recipe.calibration_images).cpu())
    made = save_checkpoint(out, network, fields)
    assert isinstance(made, Card)
    return made


def _optimizer(network: Classifier, recipe: Recipe) -> torch.optim.SGD:
    weights = [parameter for parameter in network.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in network.parameters() if parameter.ndim <= 1]
    groups = [{"params": weights, "weight_decay": recipe.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.SGD(groups, lr=recipe.learning_rate, momentum=recipe.momentum, nesterov=recipe.nesterov)


def learning_rate(recipe: Recipe, share: float) -> float:
    """The rate when `share` in [0, 1) of the training is done."""
    schedule: Schedule = recipe.schedule
    if schedule.kind == "step":
        return float(recipe.learning_rate * schedule.factor ** sum(share >= mark for mark in schedule.milestones))
    return recipe.learning_rate * min(share / schedule.warmup, (1 - share) / (1 - schedule.warmup))

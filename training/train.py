"""The training loop: one recipe in, one checkpoint folder out; resumable after any interruption with identical results.

Everything random in an epoch draws from torch's global generator, seeded anew from (seed, epoch) at the epoch's start. The
state is written after each epoch, so a resumed run repeats the interrupted epoch exactly. "Identical" holds on
one machine with the same thread count and library versions; floating point promises no more.
"""

import json
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.catalog import CHUNK, build_defense
from models.checkpoint import Card, Checkpoint, save_checkpoint
from models.classifiers import Classifier, build_classifier, frozen
from models.purifiers.soap import Soap
from training.augment import Cropper
from training.data import ImageData, load_data
from training.progress import Progress
from training.recipe import Recipe, Schedule
from training.robust import robust_accuracy
from training.tasks import TASKS


class TrainingError(Exception):
    """A training can't start or go on; the message says why and what to do."""


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
        run = _Run(recipe, images, out, device)
        if start is not None:
            run.start_from(Checkpoint.open(start))
        if not restart:
            run.resume()
        with progress.training(recipe.name, recipe.epochs, run.steps, run.epoch) as report:
            while run.epoch < recipe.epochs:
                run.train_epoch(report)
        return run.export()


def _check(recipe: Recipe, images: ImageData) -> None:
    found = tuple(images.images.shape[1:])
    expected = (recipe.input.height, recipe.input.width, recipe.input.channels)
    if found != expected:
        raise TrainingError(f"data set {recipe.data!r} has images of {found} (H, W, C); the recipe says {expected}")
    if len(images) < recipe.batch_size:
        raise TrainingError(
            f"data set {recipe.data!r} has {len(images)} images, fewer than one batch of {recipe.batch_size}"
        )
    if recipe.task == "soap-lc" and recipe.views is None:
        raise TrainingError("task 'soap-lc' needs a [views] table in the recipe")


class _Run:
    """A training in progress: network, optimizer, and how far it has come."""

    def __init__(self, recipe: Recipe, images: ImageData, out: Path, device: str) -> None:
        self.recipe, self.out, self.device = recipe, out, torch.device(device)
        self.images = ImageData(images.images.to(device), images.labels.to(device), images.classes)
        self.state_file = out / "state.pt"
        self.epoch, self.seconds, self.commit = 0, 0.0, _commit()
        self.started_from: dict[str, Any] | None = None
        torch.manual_seed(recipe.seed)
        network = build_classifier(recipe.architecture, num_classes=len(images.classes), **recipe.arguments)
        self.network: Classifier = network.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizer = _optimizer(self.network, recipe)
        self.crop = Cropper(self.images.images, recipe.augmentation.crop_padding, recipe.augmentation.flip)
        self.steps = len(images) // recipe.batch_size

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

    def train_epoch(self, report: Callable[..., None]) -> None:
        """One pass over the data, then the state on disk."""
        started, recipe = time.perf_counter(), self.recipe
        torch.manual_seed(recipe.seed * 1_000_003 + self.epoch)
        self.network.train()
        sums, seen = torch.zeros(3), 0
        for step, indices in enumerate(self._batches()):
            rate = learning_rate(recipe, (self.epoch * self.steps + step) / (recipe.epochs * self.steps))
            found = self._step(indices, rate)
            sums += torch.stack([found[0], found[1], found[2]])
            seen += int(found[3])
            report(self.epoch, step + 1, loss=float(sums[0]) / (step + 1), accuracy=float(sums[2]) / seen)
        if not torch.isfinite(sums).all():
            raise TrainingError(f"loss is no longer finite in epoch {self.epoch}; lower learning_rate and start anew")
        values = {"loss": float(sums[0]) / self.steps, "auxiliary": float(sums[1]) / self.steps}
        values |= {"accuracy": float(sums[2]) / seen, **robust_accuracy(self.network, recipe, self.images)}
        self.epoch += 1
        self.seconds += time.perf_counter() - started
        self._log(**values)
        self._save()

    def _batches(self) -> Iterator[Tensor]:
        order = torch.randperm(len(self.images)).to(self.device)
        return iter(order[: self.steps * self.recipe.batch_size].split(self.recipe.batch_size))

    def _step(self, indices: Tensor, rate: float) -> tuple[Tensor, Tensor, Tensor, int]:
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        labels = self.images.labels[indices]
        bf16 = self.recipe.precision == "bf16"
        with torch.device(self.device), torch.autocast(self.device.type, torch.bfloat16, enabled=bf16):
            losses = TASKS[self.recipe.task](self.network, self.recipe, self.crop, indices, labels)
        self.optimizer.zero_grad(set_to_none=True)
        losses.total.backward()
        self.optimizer.step()
        return losses.total.detach().cpu(), losses.auxiliary.detach().cpu(), losses.correct.cpu(), losses.count

    def _shaping(self) -> str:
        """Everything that decides what this training's weights will be."""
        start = self.started_from["weights_sha256"] if self.started_from else None
        return json.dumps({**self.recipe.shaping(), "start": start}, sort_keys=True)

    def _log(self, **values: float) -> None:
        line = {
            "epoch": self.epoch,
            **{name: round(value, 5) for name, value in values.items()},
            "seconds": round(self.seconds),
        }
        with (self.out / "log.jsonl").open("a", encoding="utf-8") as log:
            log.write(json.dumps(line) + "\n")

    def _save(self) -> None:
        state = {
            "recipe": self._shaping(),
            "epoch": self.epoch,
            "seconds": self.seconds,
            "commit": self.commit,
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        partial = self.state_file.with_suffix(".partial")
        torch.save(state, partial)
        os.replace(partial, self.state_file)  # a kill at any moment leaves the old state or the new one

    def resume(self) -> None:
        """Continue from the state on disk, if there is one."""
        if not self.state_file.exists():
            return
        state = torch.load(self.state_file, map_location=self.device, weights_only=True)
        if state["recipe"] != self._shaping():
            raise TrainingError(
                f"{self.state_file} belongs to other settings or another start than recipe {self.recipe.name!r} has now; "
                "choose another --out, or --restart to throw that training away"
            )
        self.epoch, self.seconds, self.commit = state["epoch"], state["seconds"], state["commit"]
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])

    def export(self) -> Card:
        """Write the checkpoint."""
        return export(self.network.cpu(), self.recipe, self.images, self.out, self._provenance())

    def _provenance(self) -> dict[str, Any]:
        return {
            "recipe": self.recipe.model_dump(mode="json", exclude={"purifiers", "input", "model", "classifier"}),
            "started_from": self.started_from,
            "command": "unperturb " + shlex.join(sys.argv[1:]) if Path(sys.argv[0]).name == "unperturb" else None,
            "commit": self.commit,
            "seconds": round(self.seconds),
            "threads": torch.get_num_threads(),
            "device": str(self.device),
            "images": len(self.images),
            "versions": {"python": platform.python_version(), "torch": torch.__version__},
        }


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
    fields["calibration"] = calibrate(network, fields, images.floats(0, recipe.calibration_images).cpu())
    return save_checkpoint(out, network, fields)


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


def calibrate(network: Classifier, fields: dict[str, Any], images: Tensor) -> dict[str, tuple[float, ...]]:
    """The percentiles 0 to 100 of each offered purifier kind's objective on clean images (N, C, H, W) in [0, 1]."""
    card = Card.model_validate({**fields, "weights_sha256": "0" * 64})
    # Without thresholds: the percentiles they need are what is being computed.
    bare = {
        name: entry.model_copy(update={"settings": {k: v for k, v in entry.settings.items() if k != "skip_percentile"}})
        for name, entry in card.purifiers.items()
    }
    network, found = frozen(network), {}
    for name, entry in bare.items():
        purifier = build_defense(name, card.model_copy(update={"purifiers": bare}), network).purifier
        if not isinstance(purifier, Soap) or entry.kind in found:
            continue
        with torch.no_grad():
            objective = torch.cat([purifier.objective(part) for part in images.split(CHUNK)])
        percentiles = torch.quantile(objective.double(), torch.linspace(0, 1, 101, dtype=torch.float64))
        found[entry.kind] = tuple(float(f"{value:.6g}") for value in percentiles.tolist())
    return found


def _commit() -> str | None:
    """The source tree's commit, where the package runs from a checkout."""
    try:
        answer = subprocess.run(
            ["git", "rev-parse", "HEAD"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()


@contextmanager
def threads(count: int | None) -> Iterator[None]:
    """Run with `count` compute threads, then restore; None leaves torch's default."""
    before = torch.get_num_threads()
    if count:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)

"""The training loop: a trainer in, weights out; resumable after any interruption with identical results.

Everything random in an epoch draws from torch's global generator, seeded anew from (seed, epoch) at the epoch's start. The
state is written after each epoch, so a resumed run repeats the interrupted epoch exactly. "Identical" holds on
one machine with the same thread count and library versions; floating point promises no more.
"""

import json
import math
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from training.data import ImageData
from training.progress import Progress, Report
from training.recipe import AnyRecipe


class TrainingError(Exception):
    """A training can't start or go on; the message says why and what to do."""


class Trainer(Protocol):
    """What the loop drives: networks that learn, their optimizers, and one step of both.

    networks, optimizers: all that has state, by name; the loop saves and restores it.
    """

    @property
    def networks(self) -> Mapping[str, nn.Module]: ...

    @property
    def optimizers(self) -> Mapping[str, torch.optim.Optimizer]: ...

    def step(self, indices: Tensor, share: float) -> dict[str, Tensor]:
        """Learn from the training images `indices` (B,) when `share` in [0, 1) of the training is done.

        Returns scalars by name; the log holds their means over the epoch.
        """
        ...


class Loop:
    """A training in progress, and how far it has come.

    identity: JSON of everything that decides what the weights will be; a state of another identity is not continued.
    """

    def __init__(
        self, trainer: Trainer, *, out: Path, identity: str, images: int, batch_size: int, epochs: int, seed: int
    ) -> None:
        self.trainer, self.out, self.identity = trainer, out, identity
        self.images, self.batch_size, self.epochs, self.seed = images, batch_size, epochs, seed
        self.steps = images // batch_size
        self.state_file = out / "state.pt"
        self.epoch, self.seconds, self.commit = 0, 0.0, _commit()

    def run(self, name: str, progress: Progress, watch: Callable[[], Mapping[str, float]] = dict) -> None:
        """What is left of the training. `watch` is measured after each epoch, for the log."""
        with progress.training(name, self.epochs, self.steps, self.epoch) as report:
            while self.epoch < self.epochs:
                self._epoch(report, watch)

    def _epoch(self, report: Report, watch: Callable[[], Mapping[str, float]]) -> None:
        """One pass over the data, then the state on disk."""
        started = time.perf_counter()
        torch.manual_seed(self.seed * 1_000_003 + self.epoch)
        for network in self.trainer.networks.values():
            network.train()
        sums: dict[str, float] = {}
        for step, indices in enumerate(self._batches()):
            found = self.trainer.step(indices, (self.epoch * self.steps + step) / (self.epochs * self.steps))
            for name, value in found.items():
                sums[name] = sums.get(name, 0.0) + float(value)
            report(self.epoch, step + 1, **{name: total / (step + 1) for name, total in sums.items()})
        if not all(math.isfinite(total) for total in sums.values()):
            raise TrainingError(f"loss is no longer finite in epoch {self.epoch}; lower learning_rate and start anew")
        watched = watch()
        self.epoch += 1
        self.seconds += time.perf_counter() - started
        self._log({**{name: total / self.steps for name, total in sums.items()}, **watched})
        self._save()

    def _batches(self) -> Iterator[Tensor]:
        order = torch.randperm(self.images)
        return iter(order[: self.steps * self.batch_size].split(self.batch_size))

    def _log(self, values: Mapping[str, float]) -> None:
        rounded = {name: round(value, 5) for name, value in values.items()}
        with (self.out / "log.jsonl").open("a", encoding="utf-8") as log:
            log.write(json.dumps({"epoch": self.epoch, **rounded, "seconds": round(self.seconds)}) + "\n")

    def _save(self) -> None:
        state = {
            "identity": self.identity,
            "epoch": self.epoch,
            "seconds": self.seconds,
            "commit": self.commit,
            "networks": {name: network.state_dict() for name, network in self.trainer.networks.items()},
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.trainer.optimizers.items()},
        }
        partial = self.state_file.with_suffix(".partial")
        torch.save(state, partial)
        os.replace(partial, self.state_file)  # a kill at any moment leaves the old state or the new one

    def resume(self, device: torch.device) -> None:
        """Continue from the state on disk, if there is one.

        Raises:
            TrainingError: it belongs to another training.
        """
        if not self.state_file.exists():
            return
        state = torch.load(self.state_file, map_location=device, weights_only=True)
        if state.get("identity") != self.identity:
            raise TrainingError(
                f"{self.state_file} belongs to other settings or another start than the recipe has now; "
                "choose another --out, or --restart to throw that training away"
            )
        self.epoch, self.seconds, self.commit = state["epoch"], state["seconds"], state["commit"]
        for name, network in self.trainer.networks.items():
            network.load_state_dict(state["networks"][name])
        for name, optimizer in self.trainer.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])

    def provenance(self, device: torch.device) -> dict[str, Any]:
        """How these weights came about, for the card."""
        return {
            "command": _command(),
            "commit": self.commit,
            "seconds": round(self.seconds),
            "threads": torch.get_num_threads(),
            "device": str(device),
            "images": self.images,
            "versions": {"python": platform.python_version(), "torch": torch.__version__},
        }


def check_images(recipe: AnyRecipe, images: ImageData) -> None:
    """Whether a recipe can be trained on these images.

    Raises:
        TrainingError: they have another shape, or are fewer than a batch.
    """
    found = tuple(images.images.shape[1:])
    expected = (recipe.input.height, recipe.input.width, recipe.input.channels)
    if found != expected:
        raise TrainingError(f"data set {recipe.data!r} has images of {found} (H, W, C); the recipe says {expected}")
    if len(images) < recipe.batch_size:
        raise TrainingError(
            f"data set {recipe.data!r} has {len(images)} images, fewer than one batch of {recipe.batch_size}"
        )


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Learn with `rate` from here on."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def _command() -> str | None:
    """The command line, if this is `unperturb` or `python -m unperturb`."""
    program = Path(sys.argv[0])
    ours = program.name == "unperturb" or program.parts[-2:] == ("unperturb", "__main__.py")
    return "unperturb " + shlex.join(sys.argv[1:]) if ours else None


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

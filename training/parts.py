"""What an attack on a whole defence has found so far, kept part by part of the images, so that an interruption costs minutes.

Only for attacks by which an image suffers the same whoever its neighbours are; a part is then a small attack of its own.
"""

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from training.attacks import BY_GRADIENT, Mode, Survived
from training.counting import Passes

# Enough for a device to be busy; of the slowest defences the dearest attack takes some twenty minutes of a core for so many.
PART = 64

SEPARABLE: tuple[Mode, ...] = (*BY_GRADIENT, "decision")

# (images, labels, index of the first) -> what the attack leaves of them.
Attack = Callable[[Tensor, Tensor, int], Survived]


class Parts:
    """The finished parts of one attack on one defence, in a folder of their own until `forget`.

    key: all that must be the same for a part to be used again.
    """

    def __init__(self, folder: Path, key: Mapping[str, Any]) -> None:
        self._root = folder
        self._folder = folder / hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]

    def run(self, attack: Attack, x: Tensor, y: Tensor, passes: Passes) -> tuple[Survived, float]:
        """The attack on all images, and the seconds of those parts that were there already, whose passes are added.

        x: (N, C, H, W), y: (N,).
        """
        right, image, earlier_s = list[Tensor](), list[Tensor](), 0.0
        for first in range(0, len(x), PART):
            path = self._folder / f"{first}.safetensors"
            if not path.exists():
                self._make(path, attack, x[first : first + PART], y[first : first + PART], first, passes)
            else:
                earlier_s += _booked(path, passes)
            with safe_open(path, "pt") as file:
                right.append(file.get_tensor("right").to(x.device))
                image.append(file.get_tensor("image").to(x.device))
        # As `x` lies in memory: which way a network rounds may depend on it.
        whole = torch.cat(image).contiguous(memory_format=torch.channels_last)
        return Survived(torch.cat(right), whole), earlier_s

    def forget(self) -> None:
        """All parts; they are of no more use once the result is written."""
        shutil.rmtree(self._folder, ignore_errors=True)
        if self._root.exists() and not any(self._root.iterdir()):
            self._root.rmdir()

    def _make(self, path: Path, attack: Attack, x: Tensor, y: Tensor, first: int, passes: Passes) -> None:
        started, forward, backward = time.perf_counter(), passes.forward, passes.backward
        found = attack(x, y, first)
        spent = {
            "seconds": time.perf_counter() - started,
            "forward": passes.forward - forward,
            "backward": passes.backward - backward,
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        tensors = {"right": found.right.cpu(), "image": found.image.cpu().contiguous()}
        save_file(tensors, partial, {name: str(value) for name, value in spent.items()})
        partial.replace(path)


def _booked(path: Path, passes: Passes) -> float:
    """Adds a part's passes; its seconds."""
    with safe_open(path, "pt") as file:
        spent = file.metadata()
    passes.forward += int(spent["forward"])
    passes.backward += int(spent["backward"])
    return float(spent["seconds"])

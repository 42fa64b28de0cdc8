"""The bare engine in a process of its own: the batches that the service reported, without the service around them.

Says {"ready"} once it has started. Reads one JSON object a line from its standard input ({"purifier", "batch_sizes",
"seconds"}), runs `service.pipeline.run_batch` on batches of those sizes over and over, and answers one line: {"images",
"seconds", "cpu_s"}. Zoo, device and threads are the settings', read from the same environment as the service's.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.catalog import Catalog
from models.purifiers import Options
from service.decode import decode
from service.pipeline import Lane, Work, run_batch
from service.settings import Settings


class Engine:
    """The caller's end."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process
        self._answer()  # its imports would run beside what is measured first

    def images_per_s(self, purifier: str, batch_sizes: Sequence[int], seconds: float) -> float:
        done = self._run(purifier, batch_sizes, seconds)
        return float(done["images"] / done["seconds"])

    def cpu_ms(self, purifier: str, batch_sizes: Sequence[int], seconds: float) -> float:
        """The processor's milliseconds an image."""
        done = self._run(purifier, batch_sizes, seconds)
        return float(1000 * done["cpu_s"] / done["images"])

    def _run(self, purifier: str, batch_sizes: Sequence[int], seconds: float) -> dict[str, Any]:
        assert self._process.stdin is not None
        order = {"purifier": purifier, "batch_sizes": list(batch_sizes), "seconds": seconds}
        print(json.dumps(order), file=self._process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        said: dict[str, Any] = json.loads(self._process.stdout.readline())
        return said


@contextmanager
def engine(model: str, images: Sequence[Path], threads: int | None = None) -> Iterator[Engine]:
    """The process, idle until it is asked. threads: other than the settings'."""
    command = [sys.executable, "-m", "benchmarks.load.engine", model, *map(str, images)]
    given = {} if threads is None else {"UNPERTURB_THREADS": str(threads)}
    environment = {**os.environ, **given}
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
    with process:
        yield Engine(process)
        assert process.stdin is not None
        process.stdin.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("images", type=Path, nargs="+")
    options = parser.parse_args()
    settings = Settings()
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    catalog, files = Catalog.open(settings.zoo, settings.torch_device()), [path.read_bytes() for path in options.images]
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        print(json.dumps(_run(catalog, options.model, files, **json.loads(line))), flush=True)


def _run(
    catalog: Catalog, model: str, files: Sequence[bytes], purifier: str, batch_sizes: Sequence[int], seconds: float
) -> dict[str, Any]:
    defense = catalog.defense(model, purifier)
    images = [decode(data, defense.card.input, 2**24) for data in files]
    batches = [_works(images, size, seed) for seed, size in enumerate(batch_sizes)]
    lane = Lane.of(defense, Options(), images[0].shape)
    for works in batches[:2]:
        run_batch(lane, works)
    done, started, cpu_s = 0, time.monotonic(), time.process_time()
    for works in cycle(batches):
        run_batch(lane, works)
        done += len(works)
        if (spent := time.monotonic() - started) >= seconds:
            return {"images": done, "seconds": spent, "cpu_s": time.process_time() - cpu_s}
    raise ValueError("no batch sizes were given")


def _works(images: Sequence[Tensor], size: int, seed: int) -> list[Work]:
    chance = random.Random(seed)
    return [Work(chance.choice(images), seed=chance.randrange(2**32)) for _ in range(size)]


if __name__ == "__main__":
    main()

"""How many images a second each recipe learns on a CPU, by precision, memory layout and compilation, side by side in one run.

    python -m benchmarks.train_speed

Timed are the steps of the trainers that `unperturb train` drives, on seeded random images: what these show doesn't change its
time. One recipe stands for all whose steps are the same; `-paper` recipes take more of them, or larger networks.
Precision is the recipe's own field. Layout and compilation are no options of the training code and are put on from outside: NCHW
by letting `torch.channels_last`, its one name for the layout, mean the other for a while; `torch.compile` on every network that
a step calls, with nothing compiled before at hand. A row is measured in one run; with `--add` several runs on one machine make
the table, a few recipes each. The process is pinned to the idlest cores. Wants a machine with nothing else to do and refuses
another.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal
from unittest.mock import patch

import torch
from torch import nn
from torch._inductor.utils import fresh_cache

from benchmarks.machine import described, options_of, refused, save
from models.catalog import Catalog
from models.classifiers import Classifier, frozen
from training.addons import trainer
from training.data import ImageData
from training.loop import Trainer, threads
from training.recipe import AddOnRecipe, Recipe, RecipeError, load_recipe, recipe_names
from training.train import ClassifierTrainer
from training.train_addon import classifier_of, setting_of
from unperturb.measure import busy_cores, spread

WARMUP = 3  # steps of every trainer that don't count
MIDDLE = 0.5  # of the training, as its schedule sees it


@dataclass(frozen=True)
class Option:
    """A way to do the same steps."""

    name: str
    precision: Literal["fp32", "bf16"]
    channels_last: bool = True
    compiled: bool = False

    def layout(self) -> AbstractContextManager[Any]:
        """The layout of the networks that are built, and of the images that come to them, until it is left."""
        if self.channels_last:
            return nullcontext()
        return patch.object(torch, "channels_last", torch.contiguous_format)


OPTIONS = (
    Option("fp32 NCHW", "fp32", channels_last=False),
    Option("fp32 channels_last", "fp32"),
    Option("bf16 channels_last", "bf16"),
    Option("bf16 channels_last compiled", "bf16", compiled=True),
)


@dataclass
class Run:
    """A recipe's training under one option; `ms` an image, one for each round; `unavailable`: why there is none."""

    option: Option
    learner: Trainer
    images: int
    batch_size: int
    begin_s: float = 0.0
    ms: list[float] = field(default_factory=list)
    unavailable: str | None = None

    def begin(self) -> None:
        """The steps that don't count; what the option compiles is compiled in them."""
        try:
            self.begin_s = WARMUP * self._step_s(at_least=0, steps=WARMUP)
        except RuntimeError as error:  # what all of the compiler's errors are
            if not self.option.compiled:
                raise
            self.unavailable = f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"

    def round(self, seconds: float) -> None:
        """Whole steps for so many seconds at least."""
        self.ms.append(1000 * self._step_s(at_least=seconds, steps=1) / self.batch_size)

    def _step_s(self, at_least: float, steps: int) -> float:
        """Seconds of a step, as training/loop.py does it."""
        started, done = time.perf_counter(), 0
        with self.option.layout():
            while done < steps or time.perf_counter() - started < at_least:
                found = self.learner.step(torch.randperm(self.images)[: self.batch_size], MIDDLE)
                sum(map(float, found.values()))
                done += 1
        return (time.perf_counter() - started) / done

    def described(self) -> dict[str, Any]:
        if self.unavailable:
            return {"unavailable": self.unavailable}
        ms = spread(self.ms)
        found = {"images_per_s": 1000 / ms.median_ms, "ms": asdict(ms)}
        if self.option.compiled:
            ordinary_s = WARMUP * self.batch_size * ms.median_ms / 1000
            found["compile_s"] = max(0.0, self.begin_s - ordinary_s)
        return found


def main(arguments: list[str] | None = None) -> int:
    options = _options(arguments)
    looked = busy_cores(options.look_s)
    busy = sum(looked) / len(looked)
    if refused(busy, options.force):
        return 2
    chosen = [option for option in OPTIONS if option.name in options.option]
    with _pinned(looked, options.threads), threads(options.threads):
        run = described() | {"busy_percent_before": busy, "measured_rounds": options.rounds, "round_s": options.seconds}
        setup = {"hardware": run.pop("hardware"), "versions": run.pop("versions"), "warmup_steps": WARMUP}
        setup["hardware"]["torch_threads"] = torch.get_num_threads()
        try:
            rows = _earlier(options.out, setup) if options.add else {}
        except ValueError as error:
            print(error, file=sys.stderr)
            return 2
        for recipe in options.recipe:
            rows[recipe.name] = {**_measured(recipe, chosen, options), "run": run}
            save(options.out, {"header": setup, "rows": dict(sorted(rows.items()))})
    return 0


def _earlier(file: Path, setup: dict[str, Any]) -> dict[str, Any]:
    """The rows of an earlier run, each of which says what it was in.

    Raises:
        ValueError: it was made on another machine or with other versions, so its rows don't belong beside new ones.
    """
    if not file.exists():
        return {}
    found = json.loads(file.read_text(encoding="utf-8"))
    for what, now in setup.items():
        if (then := found["header"][what]) != now:
            raise ValueError(f"{file} has {what} {then}, this run {now}: without --add all rows are measured anew")
    rows: dict[str, Any] = found["rows"]
    return rows


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = options_of(__doc__, Path("benchmarks/results/train_speed.json"))
    names = [option.name for option in OPTIONS]
    parser.add_argument("--recipe", action="append", help="may be repeated; default: one for each kind of step")
    parser.add_argument("--option", action="append", choices=names, help="may be repeated; default: all")
    parser.add_argument("--threads", type=int, default=1, help="of torch, and cores to which the process is pinned")
    parser.add_argument("--rounds", type=int, default=5, help="measured rounds, interleaved")
    parser.add_argument("--seconds", type=float, default=2.0, help="of a recipe's round under one option, at least")
    parser.add_argument("--add", action="store_true", help="keep the rows of other recipes that --out holds already")
    options = parser.parse_args(arguments)
    options.option = options.option or names
    try:
        options.recipe = [load_recipe(name) for name in options.recipe or kinds()]
    except RecipeError as error:
        parser.error(str(error))
    return options


def kinds() -> list[str]:
    """The shipped recipes that are short and begin anew, but for those whose steps are another's beside another classifier."""
    found: dict[str, str] = {}
    for name in recipe_names():
        if name.endswith(("-paper", "-fine")):
            continue
        shaping = load_recipe(name).shaping()
        step = json.dumps({key: value for key, value in shaping.items() if key not in ("name", "addon")})
        found.setdefault(step, name)
    return list(found.values())


@contextmanager
def _pinned(busy: Sequence[float], count: int) -> Iterator[None]:
    """Run on the `count` cores that were least `busy`, where the system can do that."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(before, key=lambda core: busy[core])[:count])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _measured(recipe: Recipe | AddOnRecipe, chosen: Sequence[Option], options: argparse.Namespace) -> dict[str, Any]:
    with _fresh_compiler():
        runs = [_begun(recipe, option) for option in chosen]
        for turn in range(options.rounds):
            for run in runs if turn % 2 else reversed(runs):
                if not run.unavailable:
                    run.round(options.seconds)
    found = {run.option.name: run.described() for run in runs}
    for name, row in found.items():
        print(f"{recipe.name:20} {name:28} {row.get('unavailable') or round(row['images_per_s'])}", file=sys.stderr)
    own = next(option.name for option in OPTIONS[1:] if option.precision == recipe.precision)
    return {"batch_size": recipe.batch_size, "own": own, "options": found}


@contextmanager
def _fresh_compiler() -> Iterator[None]:
    """Nothing compiled is at hand, in memory or on disk. What is compiled again too often is an error, and not left as it is."""
    torch.compiler.reset()
    with fresh_cache(), torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        yield


def _begun(recipe: Recipe | AddOnRecipe, option: Option) -> Run:
    recipe = recipe.model_copy(update={"precision": option.precision})
    images = _images(recipe)
    with option.layout():
        learner, networks = _trainer(recipe, images)
    for network in learner.networks.values():
        network.train()
    if option.compiled:
        for network in networks:
            _compile(network)
    run = Run(option, learner, len(images), recipe.batch_size)
    run.begin()
    return run


def _images(recipe: Recipe | AddOnRecipe) -> ImageData:
    count, shape = max(1024, 2 * recipe.batch_size), (recipe.input.height, recipe.input.width, recipe.input.channels)
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (count, *shape), dtype=torch.uint8, generator=generator)
    return ImageData(images, torch.randint(10, (count,), generator=generator), tuple("0123456789"))


def _trainer(recipe: Recipe | AddOnRecipe, images: ImageData) -> tuple[Trainer, list[nn.Module]]:
    """The recipe's trainer, and every network that its steps call."""
    if isinstance(recipe, Recipe):
        learner = ClassifierTrainer(recipe, images, "cpu")
        return learner, [learner.network]
    classifier = frozen(classifier_of(recipe, Catalog.open()).classifier())
    addon = trainer(setting_of(recipe, classifier, images, torch.device("cpu")))
    return addon, [*addon.networks.values(), classifier]


def _compile(network: nn.Module) -> None:
    """In place. Of a classifier the ways in that losses and attacks take."""
    if not isinstance(network, Classifier):
        network.compile()
        return
    network.features = torch.compile(network.features)  # type: ignore[method-assign]
    network.tapped = torch.compile(network.tapped)  # type: ignore[method-assign]
    for head in (network.classifier_head, network.aux_head):
        if head is not None:
            head.compile()


if __name__ == "__main__":
    raise SystemExit(main())

"""How the cost of an image grows with batch, budgets, steps, image size and network width.

    python -m benchmarks.speed.growth        # a few minutes

SOAP's label consistency with its grid of budgets (min-aux, exact gradient) on networks with seeded random weights, which cost
what trained ones do. One axis is varied at a time; the rest is as in SOAP, Sec. 4, at batch 8 on 32 x 32 pixels and the thin
ResNet-18 (width: Wide-ResNet-10). Writes benchmarks/results/growth.json and draws docs/images/growth.png.
"""

import argparse
import math
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.machine import described, options_of, refused, save
from benchmarks.measure import multiply_adds
from models.classifiers import Classifier, build_classifier, frozen
from models.purifiers.descent import DescentSettings, descend
from models.purifiers.soap import LabelConsistency
from unperturb.measure import busy_percent, spread

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "growth.json"
PICTURE = ROOT / "docs" / "images" / "growth.png"
BATCH, SIZE, STEP = 8, 32, 4 / 255


@dataclass(frozen=True)
class Point:
    """One value of one axis."""

    axis: str
    value: int
    settings: DescentSettings
    network: Classifier
    batch: int = BATCH
    size: int = SIZE
    ms: list[float] = field(default_factory=list)

    def images(self) -> Tensor:
        """(batch, 3, size, size), seeded."""
        x = torch.rand(self.batch, 3, self.size, self.size, generator=torch.Generator().manual_seed(1))
        return x.contiguous(memory_format=torch.channels_last)

    def run(self, x: Tensor) -> None:
        """Purify and classify."""
        descend(LabelConsistency(self.network, 1.0, 0.0), x, self.settings)


def points() -> Iterator[Point]:
    """All that is measured."""
    torch.manual_seed(0)
    thin = frozen(build_classifier("resnet18-thin"))
    for batch in (1, 2, 4, 8, 16, 32):
        yield Point("batch", batch, _grid(), thin, batch=batch)
    for budgets in (2, 3, 4, 6, 11):
        yield Point("budgets", budgets, _grid(budgets=budgets), thin)
    for steps in (1, 2, 5, 10):
        yield Point("steps", steps, _grid(steps=steps), thin)
    for size in (32, 48, 64, 96):
        yield Point("image size", size, _grid(), thin, size=size)
    for widen in (1, 2, 4):
        network = frozen(build_classifier("wide-resnet", depth=10, widen=widen))
        yield Point("width", widen, _grid(), network)


def _grid(budgets: int = 11, steps: int = 5) -> DescentSettings:
    grid = tuple(place * STEP for place in range(budgets))
    return DescentSettings(selection="min-aux", budgets=grid, step_size=STEP, steps=steps)


def main(arguments: list[str] | None = None) -> int:
    options = _options(arguments)
    busy = busy_percent(options.look_s)
    if refused(busy, options.force):
        return 2
    found = [point for point in points() if not options.axis or point.axis in options.axis]
    for turn in range(options.rounds + 1):
        print(f"round {turn} of {options.rounds}" if turn else "warming up", file=sys.stderr)
        for point in found if turn % 2 else reversed(found):
            x, started = point.images(), time.perf_counter()
            point.run(x)
            if turn:
                point.ms.append(1000 * (time.perf_counter() - started) / point.batch)
    header = described() | {
        "busy_percent_before": busy,
        "measured_rounds": options.rounds,
    }
    header["hardware"]["torch_threads"] = torch.get_num_threads()
    report = {
        "header": header,
        "axes": {axis: _axis(found, axis) for axis in dict.fromkeys(each.axis for each in found)},
    }
    save(options.out, report)
    if options.out.resolve() == RESULTS:
        draw(report)
    return 0


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = options_of(__doc__, RESULTS)
    parser.add_argument("--axis", action="append", help="only these axes")
    parser.add_argument("--rounds", type=int, default=5, help="measured rounds, interleaved")
    return parser.parse_args(arguments)


def _axis(found: Sequence[Point], axis: str) -> dict[str, Any]:
    points = [_point(point) for point in found if point.axis == axis]
    values = [point["value"] for point in points]
    return {
        "points": points,
        "time_exponent": exponent(values, [point["ms"]["median_ms"] for point in points]),
        "work_exponent": exponent(values, [point["multiply_adds"] for point in points]),
    }


def _point(point: Point) -> dict[str, Any]:
    x = point.images()
    adds = multiply_adds(lambda: point.run(x)) / point.batch
    return {"value": point.value, "ms": asdict(spread(point.ms)), "multiply_adds": adds}


def exponent(values: Sequence[float], amounts: Sequence[float]) -> float:
    """The slope of a straight line through the logarithms: amounts grow as values to this power."""
    x, y = [math.log(value) for value in values], [math.log(amount) for amount in amounts]
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    spread_x = sum((each - mean_x) ** 2 for each in x)
    return sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / spread_x


def draw(found: dict[str, Any], file: Path = PICTURE) -> None:
    """Time and work of an image along each axis, both against their first value."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2.7 * len(found["axes"]), 3), layout="constrained")
    panels = figure.subplots(1, len(found["axes"]), squeeze=False)[0]
    for panel, (name, axis) in zip(panels, found["axes"].items(), strict=True):
        points = axis["points"]
        values = [point["value"] for point in points]
        for label, amounts in (
            ("time", [point["ms"]["median_ms"] for point in points]),
            ("multiply-adds", [point["multiply_adds"] for point in points]),
        ):
            panel.plot(values, [amount / amounts[0] for amount in amounts], "o-", label=label)
        panel.set(xscale="log", yscale="log", xlabel=name)
        panel.set_xticks(values, [str(value) for value in values], minor=False)
        panel.minorticks_off()
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("an image, first value = 1")
    panels[-1].legend(frameon=False)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=100)


if __name__ == "__main__":
    raise SystemExit(main())

"""What purification costs an image: published loop, oracle and what is served, interleaved in one run.

    python -m benchmarks.speed        # about a quarter of an hour on a machine that does nothing else

`published`: benchmarks/speed/published.py. `oracle`: the same loop (models/purifiers/reference.py) on the frozen, folded
network. `ours`: `Defense.purify`, which is what the service calls. Purification and classification together, fp32. Multiply-adds
are those of convolutions and matrix products that PyTorch's counter sees, backward passes included, and as many for a convolution
by Winograd as for any other. The floor is the time that ours' multiply-adds would take at the rate of our best convolution on
this machine, measured in the same run.

Writes benchmarks/results/speed.json and draws docs/images/speed.png; `python -m training.tables` makes the tables of
docs/performance.md from it.
Exits with 1 where ours and the oracle label an image otherwise; goals that are missed are told in the table.
"""

import argparse
import json
import sys
import time
import timeit
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.machine import described, options_of, refused, save
from benchmarks.measure import multiply_adds
from benchmarks.speed import aid, picture
from benchmarks.speed.rows import Goal, Row, rows
from models.catalog import Catalog
from models.fused import fuse
from unperturb.measure import busy_percent, spread

RESULTS = Path(__file__).parents[1] / "results" / "speed.json"
HEAVY_ROUNDS = 2
LEAST_S = 0.25  # of a measurement: what takes less is called again, and the mean counts
COUNTED, HEAVY_COUNTED = 8, 2  # images that multiply-adds are counted on
Times = dict[tuple[str, str, int], list[float]]
Answers = dict[tuple[str, str], Any]
Work = dict[tuple[str, str, int], float]


def main(arguments: list[str] | None = None) -> int:
    options = _options(arguments)
    busy = busy_percent(options.look_s)
    if refused(busy, options.force):
        return 2
    found = [row for row in rows(Catalog.open()) if not options.row or row.name in options.row]
    work: Work = {}
    for row in found:
        _say(f"counting: {row.name}")
        work |= _counted(row)
    times: Times = {}
    answers: Answers = {}
    rates: list[float] = []
    for turn in range(options.warmup + options.rounds):
        for row in found if turn % 2 else reversed(found):
            if row.heavy and turn >= options.warmup + HEAVY_ROUNDS:
                continue
            _say(f"round {turn + 1} of {options.warmup + options.rounds}: {row.name}")
            _time(row, times if turn >= options.warmup else {}, answers, backwards=turn % 2 == 1)
        rates.append(best_rate())
    rate = max(rates)
    header = described() | {
        "busy_percent_before": busy,
        "precision": "fp32",
        "warmup_rounds": options.warmup,
        "measured_rounds": options.rounds,
        "multiply_adds_per_s": rate,
    }
    header["hardware"]["torch_threads"] = torch.get_num_threads()
    measured = {row.name: _described(row, times, answers, work, rate) for row in found}
    _judge(found, measured)
    report = {"header": header, "rows": measured}
    if not options.row:
        report["aid"] = [aid.at_full_width(*each) for each in aid.WIDE]
    save(options.out, report)
    if options.out.resolve() == RESULTS:
        picture.draw(json.loads(json.dumps(report)))  # whose batch sizes are text, as after a file
    agree = [row["agreement"]["oracle"]["label"] for row in measured.values() if "oracle" in row["agreement"]]
    return 0 if all(share >= 0.99 for share in agree) else 1


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = options_of(__doc__, RESULTS)
    parser.add_argument("--row", action="append", help="only these rows")
    parser.add_argument("--rounds", type=int, default=4, help="measured rounds, interleaved")
    parser.add_argument("--warmup", type=int, default=1, help="rounds before them that don't count")
    return parser.parse_args(arguments)


def best_rate() -> float:
    """Multiply-adds a second of the quickest of a few convolutions."""
    found = []
    for channels, size in ((32, 16), (64, 8), (128, 16)):
        x = torch.rand(64, channels, size, size).contiguous(memory_format=torch.channels_last)
        layer = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1)).requires_grad_(False)
        fuse(layer)
        seconds = min(timeit.repeat(partial(layer, x), number=1, repeat=20))
        found.append(9 * channels**2 * size**2 * len(x) / seconds)
    return max(found)


def _time(row: Row, times: Times, answers: Answers, backwards: bool) -> None:
    """A round of a row, into `times`; `answers` keeps those of its largest batch."""
    for side in sorted(row.sides, reverse=backwards):
        for batch in row.batches:
            started, calls = time.perf_counter(), 0
            while calls == 0 or time.perf_counter() - started < LEAST_S:
                answers[row.name, side] = row.sides[side](row.x[:batch], list(range(batch)))
                calls += 1
            seconds = (time.perf_counter() - started) / calls
            times.setdefault((row.name, side, batch), []).append(1000 * seconds / batch)


def _counted(row: Row) -> Work:
    """Multiply-adds of an image, each way; ours in each batch too, since some images cost more than others."""

    def counted(side: str, images: int) -> float:
        return multiply_adds(lambda: row.sides[side](row.x[:images], list(range(images)))) / images

    row.sides["ours"](row.x[:1], [0])  # networks lay their weights out at the first use
    found = {(row.name, side, _several(row)): counted(side, _several(row)) for side in row.sides}
    return found | {(row.name, "ours", batch): counted("ours", batch) for batch in row.batches}


def _several(row: Row) -> int:
    return min(HEAVY_COUNTED if row.heavy else COUNTED, len(row.x))


def _described(row: Row, times: Times, answers: Answers, work: Work, rate: float) -> dict[str, Any]:
    sides = {}
    for side in row.sides:
        ms = {each: asdict(spread(times[row.name, side, each])) for each in row.batches}
        sides[side] = {"multiply_adds": work[row.name, side, _several(row)], "ms": ms}
    floor_ms = {each: 1000 * work[row.name, "ours", each] / rate for each in row.batches}
    return {
        "classifier": row.defense.card.classifier,
        "architecture": row.defense.card.architecture,
        "weights": row.weights,
        "inputs": row.inputs,
        "passes": {"forward": row.defense.info.forward_passes, "backward": row.defense.info.backward_passes},
        "loop_of": row.loop_of,
        "authors_ms": row.authors,
        "floor_ms": floor_ms,
        "share_of_floor": {each: floor_ms[each] / sides["ours"]["ms"][each]["median_ms"] for each in row.batches},
        "sides": sides,
        "agreement": {
            side: _agreement(answers[row.name, "ours"], answers[row.name, side]) for side in row.sides if side != "ours"
        },
    }


def _agreement(ours: Any, other: Any) -> dict[str, float]:
    """Shares of images with the same label and budget, and with the same pixels but for rounding."""
    apart = (ours.image - other.image).abs().flatten(1).amax(1)
    return {
        "label": float((ours.logits.argmax(1) == other.logits.argmax(1)).float().mean()),
        "budget": float(torch.isclose(ours.epsilon, other.epsilon, atol=1e-6).float().mean()),
        "image": float((apart < 1e-6).float().mean()),
    }


def _judge(found: Sequence[Row], measured: dict[str, Any]) -> None:
    """How much faster than the published loop, and whether that and the time reach the goal, into `measured`."""
    for row in found:
        own = measured[row.name]
        loop = measured.get(row.loop_of or row.name, {}).get("sides", {}).get("published")
        own["times_published"], own["goals"] = {}, {}
        for batch in row.batches:
            ms = own["sides"]["ours"]["ms"][batch]["median_ms"]
            times = loop["ms"][batch]["median_ms"] / ms if loop else None
            own["times_published"][batch] = times
            if (goal := row.goals.get(batch)) is not None:
                own["goals"][batch] = asdict(goal) | {"met": _met(goal, ms, times)}


def _met(goal: Goal, ms: float, times: float | None) -> bool:
    if goal.ms is not None:
        return ms <= goal.ms
    return times is not None and goal.times is not None and times >= goal.times


def _say(what: str) -> None:
    print(what, file=sys.stderr)


if __name__ == "__main__":
    raise SystemExit(main())

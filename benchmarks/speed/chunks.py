"""How long an image takes by how many go through the network together: is `models.catalog.CHUNK` a good size?

    python -m benchmarks.speed.chunks        # a minute and a half

A chunk of each size, purified and classified as served, in turns, with one thread (what a helper process of the service has) and
with all. Writes benchmarks/results/chunks.json; `python -m training.tables` makes the table of docs/performance.md.
"""

import argparse
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import described, options_of, refused, save
from models.catalog import CHUNK, Catalog
from training.loop import threads
from unperturb.measure import busy_percent, spread

RESULTS = Path(__file__).parents[1] / "results" / "chunks.json"
PURIFIERS = ("none", "aid", "soap-rp", "soap-lc-paper")
SIZES = (4, 8, 12, 16, 24, CHUNK, 64)
SHORT_S = 0.05  # calls that take less are repeated within a round


def main(arguments: list[str] | None = None) -> int:
    options = _options(arguments)
    busy = busy_percent(options.look_s)
    if refused(busy, options.force):
        return 2
    header = described() | {"busy_percent_before": busy, "measured_rounds": options.rounds, "chunk": CHUNK}
    rows: list[dict[str, Any]] = []
    for count in sorted({1, torch.get_num_threads()}):
        with threads(count):
            rows += _measured(options.purifier or PURIFIERS, count, options.rounds)
    save(options.out, {"header": header, "rows": rows})
    return 0


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = options_of(__doc__, RESULTS)
    parser.add_argument("--purifier", action="append", help="only this one; may be repeated")
    parser.add_argument("--rounds", type=int, default=3, help="measured rounds, interleaved")
    return parser.parse_args(arguments)


def _measured(purifiers: tuple[str, ...], count: int, rounds: int) -> list[dict[str, Any]]:
    catalog = Catalog.open()
    defenses = {name: catalog.defense("cifar10", name) for name in purifiers}
    # Noise, which no skip rule leaves alone.
    x = torch.rand(max(SIZES), 3, 32, 32, generator=torch.Generator().manual_seed(0))
    x = x.contiguous(memory_format=torch.channels_last)
    ms: dict[tuple[str, int], list[float]] = {(name, size): [] for name in defenses for size in SIZES}
    for defense in defenses.values():
        defense.purifier.purify(x[: SIZES[0]], range(SIZES[0]))
    for turn in range(rounds):
        print(f"round {turn + 1} of {rounds}, threads: {count}", file=sys.stderr)
        for name, size in ms if turn % 2 else reversed(ms):
            started, calls = time.perf_counter(), 0
            while not calls or time.perf_counter() - started < SHORT_S:
                defenses[name].purifier.purify(x[:size], range(size))
                calls += 1
            ms[name, size].append(1000 * (time.perf_counter() - started) / calls / size)
    return [
        {"purifier": name, "threads": count, "ms": {size: asdict(spread(ms[name, size])) for size in SIZES}}
        for name in defenses
    ]


if __name__ == "__main__":
    raise SystemExit(main())

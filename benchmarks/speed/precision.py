"""What Winograd's convolutions gain in time, and bfloat16: every purifier with its networks each way, interleaved in one run.

    python -m benchmarks.speed.precision        # three minutes

fp32: as served. onednn: the same without models/winograd.py. bf16: what it costs in accuracy is measured elsewhere, see
docs/performance.md; it gains where the processor multiplies in bfloat16 and loses where it has to convert, so the header tells
which such instructions there are. Writes benchmarks/results/precision.json; `python -m training.tables` makes the table.
"""

import argparse
import sys
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from benchmarks.machine import described, options_of, refused, save
from benchmarks.speed.rows import BATCHES
from models import compiled
from models.catalog import Catalog, Defense
from unperturb.measure import bf16_instructions, busy_percent, spread

RESULTS = Path(__file__).parents[1] / "results" / "precision.json"
WAYS = ("fp32", "onednn", "bf16")
MODEL = "cifar10"


def main(arguments: list[str] | None = None) -> int:
    options = _options(arguments)
    busy = busy_percent(options.look_s)
    if refused(busy, options.force):
        return 2
    header = described() | {"busy_percent_before": busy, "measured_rounds": options.rounds}
    header["hardware"] |= {"torch_threads": torch.get_num_threads(), "bf16_instructions": bf16_instructions()}
    rows = _measured(options.purifier, options.rounds)
    save(options.out, {"header": header, "rows": rows})
    return 0


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = options_of(__doc__, RESULTS)
    parser.add_argument("--purifier", action="append", help="only this one; may be repeated")
    parser.add_argument("--rounds", type=int, default=4, help="measured rounds, interleaved")
    return parser.parse_args(arguments)


def _measured(purifiers: list[str] | None, rounds: int) -> list[dict[str, Any]]:
    found = _defenses(purifiers)
    # Noise, which no skip rule leaves alone.
    x = torch.rand(max(BATCHES), 3, 32, 32, generator=torch.Generator().manual_seed(0))
    for (_, way), defense in found.items():
        with _by(way):
            defense.purify(x[:2], range(2))
    ms: dict[tuple[str, str, int], list[float]] = {(*key, batch): [] for key in found for batch in BATCHES}
    for turn in range(rounds + 1):
        print(f"round {turn} of {rounds}, the first warms up", file=sys.stderr)
        for purifier, way, batch in ms if turn % 2 else reversed(ms):
            started = time.perf_counter()
            found[purifier, way].purify(x[:batch], range(batch))
            if turn:
                ms[purifier, way, batch].append(1000 * (time.perf_counter() - started) / batch)
    return [
        {
            "purifier": purifier,
            "classifier": defense.card.classifier,
            "ms": {way: {batch: asdict(spread(ms[purifier, way, batch])) for batch in BATCHES} for way in WAYS},
        }
        for (purifier, way), defense in found.items()
        if way == WAYS[0]
    ]


def _defenses(purifiers: list[str] | None) -> dict[tuple[str, str], Defense]:
    """By purifier and way, beside the classifier that each is served with unasked."""
    catalogs = {way: Catalog.open(precision="bf16" if way == "bf16" else "fp32") for way in WAYS}
    names = purifiers or dict.fromkeys(each.purifier for each in catalogs["fp32"].offers() if each.model == MODEL)
    found = {}
    for name in names:
        for way, catalog in catalogs.items():
            with _by(way):
                found[name, way] = catalog.defense(MODEL, name)
    return found


def _by(way: str) -> AbstractContextManager[object]:
    """In it networks settle on that way's convolutions, which they do when they are first used: some as a defence is made."""
    return mock.patch.object(compiled, "loaded", return_value=None) if way == "onednn" else nullcontext()


if __name__ == "__main__":
    raise SystemExit(main())

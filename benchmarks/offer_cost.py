"""What each purifier of a zoo costs an image at batch 1, 8 and 64: time, passes, multiply-adds, side by side in one run.

    python -m benchmarks.offer_cost --out benchmarks/results/offer_cost.json

Time is that of `Defense.purify`, purification and classification together, in fp32. Multiply-adds are those of convolutions and
matrix products that PyTorch's counter saw at batch 64, divided by 64; backward passes included. Beside the zoo stand two AIDs of
Table 5's width with seeded random weights, which is what the counts of the authors' public code are of (`PUBLIC_AID`).
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.machine import described
from benchmarks.measure import spread, test_images
from models.catalog import ZOO, Catalog, Defense
from models.classifiers import Classifier, build_classifier, frozen
from models.networks.aid import AidDiscriminator
from models.purifiers.aid import AdversarialProbability
from models.purifiers.descent import DescentSettings, descend

BATCHES = (1, 8, 64)

# Multiply-adds an image of the authors' public AID, N = 10 and the classification, counted from its code with its settings: each
# of four taps in a forward of its own, two of them then multiplied by zero.
PUBLIC_AID = {"resnet18-thin": 1.44e9, "wide-resnet-preact": 271e9}


@dataclass(frozen=True)
class Row:
    """A defence and images for it, (64, C, H, W)."""

    name: str
    defense: Defense
    x: Tensor

    def run(self, batch: int) -> None:
        self.defense.purify(self.x[:batch], list(range(batch)))


def main(arguments: list[str] | None = None) -> int:
    options = _options(arguments)
    catalog = Catalog.open(options.zoo or [ZOO])
    rows = list(_rows(catalog, options.model))
    times: dict[tuple[str, int], list[float]] = {(row.name, batch): [] for row in rows for batch in BATCHES}
    for turn in range(options.warmup + options.rounds):
        for row in rows if turn % 2 else reversed(rows):
            for batch in BATCHES:
                started = time.perf_counter()
                row.run(batch)
                if turn >= options.warmup:
                    times[row.name, batch].append(1000 * (time.perf_counter() - started) / batch)
        print(f"round {turn + 1} of {options.warmup + options.rounds} done", file=sys.stderr)
    header = described()
    header["hardware"]["torch_threads"] = torch.get_num_threads()
    header |= {"precision": "fp32", "warmup_rounds": options.warmup, "measured_rounds": options.rounds}
    found = {row.name: _described(row, times) for row in rows}
    report = {"header": header, "rows": found}
    if options.model == "cifar10":
        report["aid"] = [_aid_at_full_width(*each) for each in WIDE]
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 0


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="cifar10")
    parser.add_argument("--zoo", type=Path, action="append", help="as of `unperturb serve`; default: the shipped one")
    parser.add_argument("--rounds", type=int, default=5, help="measured rounds, interleaved")
    parser.add_argument("--warmup", type=int, default=1, help="rounds before them that don't count")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/offer_cost.json"))
    return parser.parse_args(arguments)


def _rows(catalog: Catalog, model: str) -> Iterator[Row]:
    """Every purifier of the model, over the classifier that a request without one would get."""
    for name in dict.fromkeys(offer.purifier for offer in catalog.offers() if offer.model == model):
        defense = catalog.defense(model, name)
        x, _ = test_images(defense.card, max(BATCHES))
        yield Row(name, defense, x)


def _described(row: Row, times: dict[tuple[str, int], list[float]]) -> dict[str, Any]:
    info, card = row.defense.info, row.defense.card
    with FlopCounterMode(display=False) as counter:
        row.run(len(row.x))
    return {
        "classifier": card.classifier,
        "passes": {"forward": info.forward_passes, "backward": info.backward_passes},
        "multiply_adds": counter.get_total_flops() / 2 / len(row.x),
        "ms": {batch: asdict(spread(times[row.name, batch])) for batch in BATCHES},
    }


# Architecture, its arguments, and the taps that the public code doesn't multiply by zero: its first and its third.
WIDE: tuple[tuple[str, dict[str, int], tuple[str, str], tuple[int, int]], ...] = (
    ("resnet18-thin", {}, ("stem", "block4"), (16, 32)),
    ("wide-resnet-preact", {"depth": 34, "widen": 10}, ("stem", "block10"), (16, 320)),
)


def _aid_at_full_width(
    architecture: str, arguments: dict[str, int], taps: tuple[str, str], channels: tuple[int, int]
) -> dict[str, Any]:
    torch.manual_seed(0)
    classifier = frozen(build_classifier(architecture, **arguments))
    discriminator = AidDiscriminator(taps=taps, channels=channels, deeper=True).eval().requires_grad_(False)
    counted = aid_multiply_adds(classifier, discriminator)
    return {
        "architecture": architecture,
        "arguments": arguments,
        "multiply_adds": counted,
        "public_code": PUBLIC_AID[architecture],
        "share": counted / PUBLIC_AID[architecture],
    }


def aid_multiply_adds(classifier: Classifier, discriminator: AidDiscriminator, images: int = 16) -> float:
    """Of AID's purification by Table 6 (N = 10) and the classification, an image, in a batch of `images`."""
    settings = DescentSettings(selection="fixed", budgets=(8 / 255,), step_size=2 / 255, steps=10)
    x = torch.rand(images, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with FlopCounterMode(display=False) as counter:
        descend(AdversarialProbability(classifier, discriminator), x, settings)
    return counter.get_total_flops() / 2 / images


if __name__ == "__main__":
    raise SystemExit(main())

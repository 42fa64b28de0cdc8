"""What purification costs an image: ours against the published loop, side by side in one run, answers compared.

    python -m benchmarks.purify_cost --out benchmarks/results/purify_cost.json

"Ours" is the path that is served: `Defense.purify` on the frozen network. "Plain" is models/purifiers/reference.py: 11 budgets
of 5 steps each, from scratch, with autograd on the unfrozen network in eval mode, then one classification. Both in fp32.
Exits with 1 where a soap-lc min-aux row costs more than a quarter of plain, or an image is labelled otherwise.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.machine import described
from benchmarks.measure import spread, test_images
from models.catalog import ZOO, Defense, build_defense
from models.checkpoint import CARD, Card, Checkpoint, InputSpec, PurifierEntry, read_card
from models.classifiers import Classifier, build_classifier, frozen
from models.purifiers import Purified
from models.purifiers.reference import AuxLoss, purify_min_aux
from models.purifiers.soap import Reconstruction, RotationPrediction, flip_crop, label_consistency

REQUIRED = 0.25  # of plain's cost an image
CIFAR = {"budgets": [step * 4 / 255 for step in range(11)], "step_size": 4 / 255, "steps": 5}  # SOAP, Sec. 4
MNIST = {"budgets": [step / 10 for step in range(11)], "step_size": 0.1, "steps": 5}

Answer = tuple[Tensor, Tensor, Tensor]  # images (N, C, H, W), budgets (N,), logits (N, K)


@dataclass(frozen=True)
class Subject:
    """A network and its test images; `weights` and `inputs` say where they come from."""

    card: Card
    network: Classifier
    images: Tensor
    weights: str
    inputs: str


@dataclass(frozen=True)
class Row:
    """One purifier: how it is served and, for min-aux, the published way to the same answer."""

    name: str
    subject: Subject
    ours: Defense
    plain_loss: AuxLoss | None

    def run_ours(self) -> Purified:
        return self.ours.purify(self.subject.images)

    def run_plain(self) -> Answer:
        assert self.plain_loss is not None
        settings = self.ours.card.purifiers[self.name].settings
        x, loss = self.subject.images.contiguous(), self.plain_loss
        image, epsilon, _ = purify_min_aux(loss, x, settings["budgets"], settings["step_size"], settings["steps"])
        return image, epsilon, self.subject.network(image).detach()


def main(arguments: list[str] | None = None) -> int:
    options = _options(arguments)
    rows = list(_rows(options.images))
    times: dict[str, dict[str, list[float]]] = {row.name: {"ours": [], "plain": []} for row in rows}
    report: dict[str, Any] = {"header": _header(options), "rows": {}}
    for turn in range(options.warmup + options.rounds):
        for row in rows:
            ours, plain, spent = _measure(row, plain_first=turn % 2 == 1)
            if turn >= options.warmup:
                for side, seconds in spent.items():
                    times[row.name][side].append(1000 * seconds / options.images)
            if turn == 0:
                report["rows"][row.name] = _described(row, ours, plain)
        print(f"round {turn + 1} of {options.warmup + options.rounds} done", file=sys.stderr)
    for row in rows:
        found = report["rows"][row.name]
        found |= _summary(times[row.name])
        if row.name.startswith("soap-lc min-aux"):
            met = found["ratio"] <= REQUIRED and found["agreement"]["same_label"] == 1
            found |= {"required_ratio": REQUIRED, "requirement_met": met}
    _print_table(report["rows"])
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 0 if all(found.get("requirement_met", True) for found in report["rows"].values()) else 1


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=32, help="images in the batch")
    parser.add_argument("--rounds", type=int, default=5, help="measured rounds, interleaved")
    parser.add_argument("--warmup", type=int, default=1, help="rounds before them that don't count")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/purify_cost.json"))
    return parser.parse_args(arguments)


def _measure(row: Row, plain_first: bool) -> tuple[Purified | None, Answer | None, dict[str, float]]:
    answers: dict[str, Any] = {}
    spent: dict[str, float] = {}
    sides: dict[str, Callable[[], Any]] = {"ours": row.run_ours}
    if row.plain_loss is not None:
        sides["plain"] = row.run_plain
    for side in sorted(sides, reverse=plain_first):
        started = time.perf_counter()
        answers[side] = sides[side]()
        spent[side] = time.perf_counter() - started
    row.subject.network.zero_grad(set_to_none=True)
    return answers["ours"], answers.get("plain"), spent


def _rows(images: int) -> Iterator[Row]:
    """The rows of the table, in its order."""
    label = _subject("soap-lc", "cifar10", "resnet18-thin", {}, images)
    rotation = _subject("soap-rp", "cifar10", "resnet18-thin", {"aux": "rotation"}, images)
    decoder = _subject("soap-dr", "mnist", "cnn", {"aux": "decoder"}, images)
    exact, stopped = {"second_view_gradient": 1.0}, {"second_view_gradient": 0.0}

    def lc_exact(x: Tensor) -> Tensor:
        return label_consistency(label.network(x), label.network(flip_crop(x)))

    def lc_stopped(x: Tensor) -> Tensor:
        with torch.no_grad():
            second = label.network(flip_crop(x))
        return label_consistency(label.network(x), second)

    rotated, rebuilt = RotationPrediction(rotation.network), Reconstruction(decoder.network)
    grid, one = {"selection": "min-aux", **CIFAR}, {"selection": "best-iterate", **CIFAR, "budgets": [8 / 255]}
    yield _row("none", label, "none", {})
    yield _row("soap-lc min-aux, exact gradient", label, "soap-lc", {**grid, **exact}, lc_exact)
    yield _row("soap-lc min-aux, stop-gradient", label, "soap-lc", {**grid, **stopped}, lc_stopped)
    yield _row("soap-lc best-iterate, stop-gradient", label, "soap-lc", {**one, **stopped})
    yield _row("soap-rp min-aux", rotation, "soap-rp", grid, lambda x: rotated(x).loss)
    yield _row("soap-rp best-iterate", rotation, "soap-rp", one)
    yield _row(
        "soap-dr min-aux (cnn)", decoder, "soap-dr", {"selection": "min-aux", **MNIST}, lambda x: rebuilt(x).loss
    )


def _row(name: str, subject: Subject, kind: str, settings: dict[str, Any], plain: AuxLoss | None = None) -> Row:
    card = subject.card.model_copy(update={"purifiers": {name: PurifierEntry(kind=kind, settings=settings)}})
    return Row(name, subject, build_defense(name, card, frozen(subject.network)), plain)


def _subject(kind: str, model: str, architecture: str, arguments: dict[str, Any], images: int) -> Subject:
    """The shipped checkpoint that offers `kind`, else seeded random weights."""
    for path in sorted(ZOO.glob(f"*/{CARD}")):
        card = read_card(path.parent)
        if not isinstance(card, Card) or card.architecture != architecture:
            continue
        if any(entry.kind == kind for entry in card.purifiers.values()):
            network, weights = Checkpoint.open(path.parent).classifier(), f"models/zoo/{path.parent.name}"
            break
    else:
        torch.manual_seed(0)
        card, network = _toy_card(model, architecture, arguments), build_classifier(architecture, **arguments)
        weights = "seeded random, no shipped checkpoint offers this kind"
    x, inputs = test_images(card, images)
    return Subject(card, network.eval(), x, weights, inputs)


def _toy_card(model: str, architecture: str, arguments: dict[str, Any]) -> Card:
    size = (
        InputSpec(channels=1, height=28, width=28) if model == "mnist" else InputSpec(channels=3, height=32, width=32)
    )
    return Card(
        model=model,
        classifier="random",
        architecture=architecture,
        arguments=arguments,
        labels=tuple("0123456789"),
        input=size,
        purifiers={},
        training={},
        weights_sha256="0" * 64,
    )


def _described(row: Row, ours: Purified | None, plain: Answer | None) -> dict[str, Any]:
    assert ours is not None
    info = row.ours.info
    found: dict[str, Any] = {
        "weights": row.subject.weights,
        "inputs": row.subject.inputs,
        "architecture": row.subject.card.architecture,
        "passes": {"forward": info.forward_passes, "backward": info.backward_passes},
    }
    if plain is not None:
        image, epsilon, logits = plain
        apart = (image - ours.image).abs().amax(dim=(1, 2, 3))
        found["agreement"] = {
            "same_label": float((logits.argmax(1) == ours.logits.argmax(1)).float().mean()),
            "same_budget": float(torch.isclose(epsilon, ours.epsilon, atol=1e-6).float().mean()),
            "same_image": float((apart < 1e-6).float().mean()),
            "largest_pixel_difference": float(apart.max()),
        }
    return found


def _summary(times: dict[str, list[float]]) -> dict[str, Any]:
    found: dict[str, Any] = {side: asdict(spread(values)) for side, values in times.items() if values}
    if times["plain"]:
        found["ratio"] = found["ours"]["median_ms"] / found["plain"]["median_ms"]
    return found


def _print_table(rows: dict[str, dict[str, Any]]) -> None:
    print(f"{'ms an image: median (fastest to slowest)':38} {'ours':>24} {'plain':>24}  ratio  same label/budget/image")
    for name, row in rows.items():
        ratio = f"{row['ratio']:.3f}" if "ratio" in row else "-"
        cells = [_cell(row.get(side)) for side in ("ours", "plain")]
        agreement = row.get("agreement", {})
        shares = " / ".join(f"{agreement[key]:.0%}" for key in ("same_label", "same_budget", "same_image") if agreement)
        print(f"{name:38} {cells[0]:>24} {cells[1]:>24}  {ratio:>5}  {shares}")


def _cell(spread: dict[str, Any] | None) -> str:
    if spread is None:
        return "-"
    return f"{spread['median_ms']:.2f} ({spread['fastest_ms']:.2f} to {spread['slowest_ms']:.2f})"


def _header(options: argparse.Namespace) -> dict[str, Any]:
    found = described()
    found["hardware"]["torch_threads"] = torch.get_num_threads()
    return found | {
        "precision": "fp32",
        "images": options.images,
        "warmup_rounds": options.warmup,
        "measured_rounds": options.rounds,
    }


if __name__ == "__main__":
    raise SystemExit(main())

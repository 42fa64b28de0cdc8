"""Sample images: `python -m training.samples --data DATA` rewrites `samples/` and `tests/data/` from the full data sets.

samples/: clean test images and PGD images of the shipped classifiers, both where purification helps and where it does not,
with `samples.json` saying what each one is. They come from test images 2000 on, so none is in a measured table.
tests/data/: the first 256 training and test images of each data set, laid out as `training.data` expects them.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from models.catalog import Catalog, Defense
from training.attacks import AttackSettings
from training.attacks.blind import static
from training.data import ImageData, Split, load_data, to_float
from training.plan import load_plan

FIRST, TRIED, EACH, SUBSET = 2000, 192, 3, 256


@dataclass(frozen=True)
class Sample:
    """One file: `kind` is clean, helps (unpurified wrong, purified right) or fails (purified wrong)."""

    file: str
    model: str
    kind: str
    label: str
    test_index: int
    made_by: str


def main() -> None:
    """Rewrite both folders."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with cifar10.npz and MNIST/raw")
    root = Path(__file__).parents[1]
    data = parser.parse_args().data
    catalog = Catalog.open()
    folder = root / "samples"
    for old in folder.glob("*.png"):
        old.unlink()
    made = [
        sample
        for model, purifier in (("cifar10", "soap-lc"), ("mnist", "soap-dr"))
        for sample in _samples(catalog, model, purifier, _pgd(model), load_data(model, "test", data), folder)
    ]
    (folder / "samples.json").write_text(
        json.dumps([asdict(sample) for sample in made], indent=1) + "\n", encoding="utf-8"
    )
    write_subset(data, root / "tests" / "data")


def _pgd(data: str) -> AttackSettings:
    return next(attack for attack in load_plan("paper-soap", data).attacks if attack.name == "pgd")


def _samples(
    catalog: Catalog, model: str, purifier: str, attack: AttackSettings, test: ImageData, folder: Path
) -> Iterator[Sample]:
    undefended, defended = catalog.defense(model, "none"), catalog.defense(model, purifier)
    images, labels = test.images[FIRST : FIRST + TRIED], test.labels[FIRST : FIRST + TRIED]
    clean = to_float(images).contiguous(memory_format=torch.channels_last)
    # Rounded to what a PNG holds before anyone judges them.
    attacked = (static(defended.classifier, clean, labels, attack) * 255).round() / 255
    plain, plain_sure = _judged(undefended, attacked, labels)
    purified, purified_sure = _judged(defended, attacked, labels)
    sure = plain_sure & purified_sure
    clean_right = [right & certain for right, certain in (_judged(d, clean, labels) for d in (undefended, defended))]
    groups = {
        "clean": (clean, clean_right[0] & clean_right[1]),
        "helps": (attacked, sure & ~plain & purified),
        "fails": (attacked, sure & ~plain & ~purified),
    }
    for kind, (x, chosen) in groups.items():
        for i in _spread(chosen, labels):
            label = test.classes[int(labels[i])]
            file = f"{model}-{kind}-{label}-{FIRST + i}.png"
            _save(x[i], folder / file)
            by = "the test set" if kind == "clean" else f"{attack.text()}, white-box on {defended.card.classifier}"
            yield Sample(file, model, kind, label, FIRST + i, by)


def _judged(defense: Defense, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """(N,) bool each: right; and so sure of it, either way, that another CPU's rounding won't change it."""
    probability, label = defense.purify(x).logits.softmax(1).max(1)
    return label == labels, probability > 0.7


def _spread(chosen: Tensor, labels: Tensor) -> list[int]:
    """The first chosen image of each of the first few classes that turn up."""
    picked: dict[int, int] = {}
    for i in chosen.nonzero()[:, 0].tolist():
        picked.setdefault(int(labels[i]), i)
    return list(picked.values())[:EACH]


def _save(image: Tensor, path: Path) -> None:
    pixels = (image * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(path, optimize=True)


def write_subset(data: Path, folder: Path) -> None:
    """The first images of both data sets, as `cifar10.npz` and MNIST's IDX files."""
    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, np.ndarray] = {}
    prefixes: tuple[tuple[Split, str], ...] = (("train", "train"), ("test", "t10k"))
    for split, prefix in prefixes:
        cifar, mnist = load_data("cifar10", split, data), load_data("mnist", split, data)
        arrays[f"x_{split}"] = cifar.images[:SUBSET].numpy()
        arrays[f"y_{split}"] = cifar.labels[:SUBSET].numpy().astype(np.uint8)
        arrays["classes"] = np.array(cifar.classes)
        _write_idx(raw / f"{prefix}-images-idx3-ubyte", mnist.images[:SUBSET, :, :, 0].numpy())
        _write_idx(raw / f"{prefix}-labels-idx1-ubyte", mnist.labels[:SUBSET].numpy().astype(np.uint8))
    np.savez_compressed(folder / "cifar10.npz", **arrays)  # type: ignore[arg-type]


def _write_idx(path: Path, array: np.ndarray) -> None:
    """MNIST's IDX format: two zero bytes, type 8 (unsigned byte), rank, big-endian sizes, values."""
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, dtype=">i4").tobytes()
    path.write_bytes(header + array.tobytes())


if __name__ == "__main__":
    main()

"""Pictures for the pages: `python -m training.pictures` rewrites `docs/images/` from the shipped samples and results.

Needs matplotlib (`pip install 'unperturb[plot]'`).
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from models.catalog import Catalog, Defense
from training.data import to_float
from training.evaluate import Cell
from training.tables import RESULTS

ROOT = Path(__file__).parents[1]
IMAGES = ROOT / "docs" / "images"
LABELS = {
    "none": "no attack",
    "fgsm": "FGSM",
    "pgd": "PGD",
    "two-view": "two-view\n(knows it)",
    "bpda": "BPDA\n(knows it)",
    "unrolled": "unrolled\n(knows it)",
}


def main() -> None:
    """Rewrite every picture."""
    IMAGES.mkdir(parents=True, exist_ok=True)
    catalog = Catalog.open()
    for model, purifier in (("cifar10", "soap-lc"), ("mnist", "soap-dr")):
        strip(catalog.defense(model, "none"), catalog.defense(model, purifier), IMAGES / f"{model}-samples.png")
    bars("cifar10-resnet18-soap-lc-paper-soap.json", "soap-lc", IMAGES / "cifar10-attacks.png")


def strip(undefended: Defense, defense: Defense, path: Path) -> None:
    """SOAP Fig. 4's form: what came, what purification made of it, and the change ten times enlarged."""
    from matplotlib import pyplot as plt

    listed: list[dict[str, Any]] = json.loads((ROOT / "samples" / "samples.json").read_text(encoding="utf-8"))
    samples = [sample for sample in listed if sample["model"] == defense.card.model and sample["kind"] != "clean"]
    x = torch.cat([_read(ROOT / "samples" / sample["file"]) for sample in samples])
    before, purified = undefended.purify(x).logits.argmax(1), defense.purify(x)
    after = purified.logits.argmax(1)
    rows = (x, purified.image, (0.5 + 10 * (purified.image - x)).clamp(0, 1))
    figure, axes = plt.subplots(3, len(samples), figsize=(1.6 * len(samples), 5.4), squeeze=False)
    for column, sample in enumerate(samples):
        seen = (before[column], after[column], None)
        for row, images in enumerate(rows):
            _show(axes[row][column], images[column], seen[row], defense.card.labels, sample["label"])
    for row, title in enumerate(("adversarial", f"purified by {defense.name}", "change x 10")):
        axes[row][0].set_ylabel(title)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _read(file: Path) -> Tensor:
    pixels = torch.from_numpy(np.array(Image.open(file)))
    return to_float(pixels.reshape(1, *pixels.shape[:2], -1))


def _show(axis: Any, image: Tensor, seen: Tensor | None, labels: tuple[str, ...], truth: str) -> None:
    axis.imshow(image.permute(1, 2, 0).squeeze(-1).numpy(), cmap="gray", vmin=0, vmax=1)
    axis.set_xticks([])
    axis.set_yticks([])
    if seen is not None:
        label = labels[int(seen)]
        axis.set_xlabel(label, color="tab:green" if label == truth else "tab:red")


def bars(file: str, purifier: str, path: Path) -> None:
    """Accuracy with and without a purifier under each attack: the attackers who know it are the point."""
    from matplotlib import pyplot as plt

    cells = [Cell.model_validate(cell) for cell in json.loads((RESULTS / file).read_text(encoding="utf-8"))["cells"]]
    figure, axis = plt.subplots(figsize=(7, 3))
    for shift, name, colour in ((-0.2, "none", "tab:gray"), (0.2, purifier, "tab:blue")):
        mine = {cell.attack.name: 100 * cell.accuracy for cell in cells if cell.purifier == name and not cell.oracle}
        places = [place + shift for place, attack in enumerate(LABELS) if attack in mine]
        drawn = axis.bar(places, [mine[attack] for attack in LABELS if attack in mine], 0.4, color=colour, label=name)
        axis.bar_label(drawn, fmt="%.0f")
    axis.set_xticks(range(len(LABELS)), list(LABELS.values()))
    axis.set_ylabel("accuracy, %")
    axis.set_ylim(0, 105)
    axis.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    main()

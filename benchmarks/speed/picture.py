"""The picture of docs/performance.md: time an image of the three ways, at each batch size."""

from pathlib import Path
from typing import Any

FILE = Path(__file__).parents[2] / "docs" / "images" / "speed.png"
SIDES = {"published": "as published", "oracle": "the same loop, network frozen and folded", "ours": "as served"}


def draw(found: dict[str, Any], file: Path = FILE) -> None:
    """Bars on a logarithmic axis, a panel for each batch size; a tick below which no arithmetic gets."""
    from matplotlib.figure import Figure

    batches = ("1", "8", "64")
    rows: dict[str, Any] = found["rows"]
    figure = Figure(figsize=(13, 0.42 * len(rows) + 1.2), layout="constrained")
    panels = figure.subplots(1, len(batches), sharey=True)
    for panel, batch in zip(panels, batches, strict=True):
        for place, row in enumerate(rows.values()):
            for shift, side in enumerate(SIDES):
                ms = row["sides"].get(side, {}).get("ms", {}).get(batch)
                if ms is not None:
                    panel.barh(place + 0.27 * (shift - 1), ms["median_ms"], 0.25, color=f"C{shift}")
            if batch in row["sides"]["ours"]["ms"]:
                panel.plot([row["floor_ms"][batch]] * 2, [place - 0.4, place + 0.4], color="black", linewidth=1)
        panel.set(xscale="log", xlabel="ms an image", title=f"batch {batch}")
        panel.grid(axis="x", alpha=0.3)
    panels[0].set_yticks(range(len(rows)), list(rows))
    panels[0].invert_yaxis()
    handles = [panels[0].barh([0], [0], color=f"C{shift}", label=name) for shift, name in enumerate(SIDES.values())]
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), frameon=False)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=100)

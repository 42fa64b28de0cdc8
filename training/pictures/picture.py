"""What a picture is, and how all of them look."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.outcomes import wilson

# Okabe and Ito's colours, which nobody confuses. Markers differ too.
BLUE, ORANGE, GREEN, RED, PURPLE, SKY, BLACK = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#D55E00",
    "#CC79A7",
    "#56B4E9",
    "#000000",
)
COLOURS = (BLACK, BLUE, RED, GREEN, PURPLE, ORANGE, SKY)
MARKERS = "osD^vPX"


@dataclass(frozen=True)
class Picture:
    """name: its file. caption: what is shown, of how many images and which attacks. size: in inches. paint: on a Figure."""

    name: str
    caption: str
    size: tuple[float, float]
    paint: Callable[[Any], None]

    def save(self, folder: Path) -> None:
        """Draw it; the same input gives the same file."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=self.size, layout="constrained")
        self.paint(figure)
        figure.savefig(folder / self.name, dpi=110, metadata={"Software": None}, pil_kwargs={"optimize": True})


@dataclass(frozen=True)
class Point:
    """An accuracy of n images; x is whatever it is drawn against."""

    x: float
    share: float
    n: int


def curve(axis: Any, points: Sequence[Point], label: str, colour: str, marker: str = "o", style: str = "-") -> None:
    """Accuracies in percent, in Wilson's 95 % interval."""
    points = sorted(points, key=lambda point: point.x)
    x = [point.x for point in points]
    low, high = zip(*(wilson(point.share, point.n) for point in points), strict=True)
    axis.fill_between(x, [100 * one for one in low], [100 * one for one in high], color=colour, alpha=0.12, linewidth=0)
    axis.plot(x, [100 * point.share for point in points], style, color=colour, marker=marker, markersize=4, label=label)


def percent(axis: Any, what: str = "accuracy, %") -> None:
    """A vertical axis from 0 to 100, so that no difference looks larger than it is."""
    axis.set_ylabel(what)
    axis.set_ylim(-2, 102)
    axis.grid(alpha=0.25)


@dataclass(frozen=True)
class Unit:
    """How a data set's l_inf lengths are told: in 1/255, or where they are large as they are."""

    scale: float
    suffix: str

    @classmethod
    def of(cls, budget: float) -> "Unit":
        return cls(255.0, ", in 1/255") if budget < 0.2 else cls(1.0, "")

    def told(self, length: float) -> str:
        """A length for a sentence."""
        return f"{length * self.scale:.3g}" + ("/255" if self.scale == 255 else "")


def images(counts: Sequence[int]) -> str:
    """`1000 images`, `200 to 1000 images`."""
    low, high = min(counts), max(counts)
    return f"{low} images" if low == high else f"{low} to {high} images"

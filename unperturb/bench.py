"""`unperturb bench`: what each purifier costs on this machine, side by side in one run."""

import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Annotated, Any

import torch
import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from models.catalog import Catalog, Defense
from models.purifiers import Material, Purified, build_purifier, reference
from models.purifiers.descending import DescentPurifier
from service.threads import use_cores
from unperturb.measure import Spread, busy_percent, check_free, described, spread
from unperturb.options import Device, Json, Model, Threads, Zoo, open_catalog

BATCHES = (1, 8, 32)
ENOUGH_S = 0.4  # what has taken so long in all isn't repeated, so that the whole stays well under a minute
OURS, PLAIN, NONE = "ours", "plain loop", "none"

Run = Callable[[Tensor, Sequence[int]], Any]


@dataclass
class Cell:
    """One way to one purifier's answer for so many images at a time. ms: an image, one for each call."""

    defense: Defense
    way: str
    run: Run
    x: Tensor
    ms: list[float] = field(default_factory=list)
    answer: Any = None

    @property
    def key(self) -> tuple[Defense, int, str]:
        """What it is among all."""
        return self.defense, len(self.x), self.way

    def call(self) -> None:
        """Once, until the answer is there."""
        started = time.perf_counter()
        self.answer = self.run(self.x, range(len(self.x)))
        if self.x.is_cuda:
            torch.cuda.synchronize(self.x.device)
        self.ms.append(1000 * (time.perf_counter() - started) / len(self.x))

    @property
    def enough(self) -> bool:
        """Whether its time is spent."""
        return sum(self.ms) * len(self.x) >= 1000 * ENOUGH_S


def bench(
    model: Model = "cifar10",
    purifier: Annotated[
        list[str] | None,
        typer.Option(
            help="Only this purifier, or a chain such as nrp+aid; may be repeated. Default: all of the model."
        ),
    ] = None,
    batch: Annotated[
        list[int] | None,
        typer.Option(min=1, max=4096, help="Images at a time; may be repeated. Default: 1, 8 and 32."),
    ] = None,
    rounds: Annotated[
        int, typer.Option(min=1, max=1000, help="Calls of each, in turns; what takes long gets fewer.")
    ] = 5,
    threads: Threads = None,
    device: Device = "cpu",
    zoo: Zoo = None,
    force: Annotated[bool, typer.Option("--force", help="Measure on a busy machine all the same.")] = False,
    as_json: Json = False,
) -> None:
    """Measure what each purifier costs here, beside the published loop and beside a plain classification."""
    catalog = open_catalog(zoo, device)
    defenses = _chosen(catalog, model, purifier)
    busy = busy_percent(look_s=1.0)
    check_free(busy, force)
    if threads:
        use_cores(threads)
    rows = _measured(defenses, sorted(set(batch or BATCHES)), rounds)
    header = described() | {"busy_percent_before": busy, "device": device}
    header["hardware"]["torch_threads"] = torch.get_num_threads()
    if as_json:
        typer.echo(json.dumps({"header": header, "rows": rows}, indent=1))
    else:
        _show(rows, model, header)


def _chosen(catalog: Catalog, model: str, purifiers: Iterable[str] | None) -> list[Defense]:
    offered = [offer.purifier for offer in catalog.offers() if offer.model == model]
    names = purifiers or offered or ["none"]  # of a model that isn't there `none` neither is, and the catalog says so
    return [catalog.defense(model, name) for name in dict.fromkeys(names)]


def _measured(defenses: Sequence[Defense], batches: Sequence[int], rounds: int) -> list[dict[str, Any]]:
    cells = [cell for defense in defenses for cell in _cells(defense, batches)]
    for turn, cell in track(_turns(cells, batches, rounds), "measuring", console=Console(stderr=True), transient=True):
        if turn == 0:  # networks come into memory and libraries choose their ways, which counts for nobody
            replace(cell, ms=[]).call()
        elif not cell.enough:
            cell.call()
    found = {cell.key: cell for cell in cells}
    return [_row(defense, batch, found) for defense in defenses for batch in batches]


def _cells(defense: Defense, batches: Sequence[int]) -> Iterator[Cell]:
    ways: dict[str, Run] = {OURS: defense.purify}
    if isinstance(defense.purifier, DescentPurifier):
        ways[PLAIN] = reference.loop_of(defense.purifier)
    if defense.name != "none":
        plain = build_purifier("none", Material(defense.classifier, {}, ()))
        ways[NONE] = replace(defense, purifier=plain).purify
    spec = defense.card.input
    # Noise, which no skip rule leaves alone: what an attacked image costs.
    x = torch.rand(max(batches), spec.channels, spec.height, spec.width, generator=torch.Generator().manual_seed(0))
    x = x.to(defense.device)
    for batch in batches:
        for way, run in ways.items():
            yield Cell(defense, way, run, x[:batch])


def _turns(cells: Sequence[Cell], batches: Sequence[int], rounds: int) -> list[tuple[int, Cell]]:
    """In which order they are called, each second round backwards; round 0 warms up, with few images."""
    first = [(0, cell) for cell in cells if len(cell.x) == batches[0]]
    return first + [(turn, cell) for turn in range(1, rounds + 1) for cell in (cells if turn % 2 else reversed(cells))]


def _row(defense: Defense, batch: int, found: dict[tuple[Defense, int, str], Cell]) -> dict[str, Any]:
    """What is told of a purifier at one batch size; the loop is None where the purifier descends nothing."""
    ours, plain = found[defense, batch, OURS], found.get((defense, batch, PLAIN))
    ms, none = spread(ours.ms), spread(found.get((defense, batch, NONE), ours).ms)
    loop = spread(plain.ms) if plain else None
    answer: Purified = ours.answer
    return {
        "purifier": defense.name,
        "classifier": defense.card.classifier,
        "batch": batch,
        "forward_passes": float(answer.forward_passes.float().mean()),
        "backward_passes": float(answer.backward_passes.float().mean()),
        "ms": asdict(ms),
        "images_per_s": 1000 / ms.median_ms,
        "none_ms": asdict(none),
        "times_none": ms.median_ms / none.median_ms,
        "plain_loop_ms": asdict(loop) if loop else None,
        "times_as_fast": loop.median_ms / ms.median_ms if loop else None,
    }


def _show(rows: Sequence[dict[str, Any]], model: str, header: dict[str, Any]) -> None:
    columns = ("purifier", "passes", "batch", "ms", "from - to", "img/s", "x none", "loop", "faster")
    table = Table(
        *columns,
        title=f"{model} on {_where(header)}",
        box=SIMPLE_HEAD,
        padding=0,
        collapse_padding=True,
        pad_edge=False,
    )
    for column in table.columns[1:]:
        column.justify = "right"
    for row in rows:
        first = row["batch"] == rows[0]["batch"]
        passes = f"{row['forward_passes']:.0f}+{row['backward_passes']:.0f}"
        loop = row["plain_loop_ms"]
        table.add_row(
            *((row["purifier"], passes) if first else ("", "")),
            str(row["batch"]),
            f"{row['ms']['median_ms']:.2f}",
            _spread(Spread(**row["ms"])),
            f"{row['images_per_s']:.0f}",
            f"{row['times_none']:.1f}",
            f"{loop['median_ms']:.2f}" if loop else "",
            f"{row['times_as_fast']:.1f}x" if loop else "",
        )
    Console().print(table)
    typer.echo(
        "Milliseconds an image, purified and classified: the median, the fastest and the slowest round. The images are noise, "
        "which no purifier leaves alone. Passes: forwards + backwards. x none: in plain classifications by the same network. "
        "Loop: the published algorithm on it, without any sharing of work, and how much faster ours is."
    )


def _spread(ms: Spread) -> str:
    return f"{ms.fastest_ms:.3g} - {ms.slowest_ms:.3g}" if len(ms.rounds) > 1 else "one round"


def _where(header: dict[str, Any]) -> str:
    if header["device"] != "cpu":
        return f"{header['device']}, PyTorch {header['versions']['torch']}"
    hardware = header["hardware"]
    return f"{hardware['cpu']}, threads: {hardware['torch_threads']}, PyTorch {header['versions']['torch']}"

"""Progress bars for long work, on a terminal; one line an epoch where output goes to a file."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

T = TypeVar("T")


class Report(Protocol):
    """How far a training is: in epoch `epoch` (from 0), `step` steps are done (from 1); means of the epoch so far, by name."""

    def __call__(self, epoch: int, step: int, **values: float) -> None: ...


class Progress:
    """Where long work reports to. Writes to standard error, so that results on standard output stay clean."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)

    def _bars(self) -> Bars:
        return Bars(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[status]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=False),
            console=self.console,
            disable=not self.console.is_terminal,
        )

    @contextmanager
    def training(self, name: str, epochs: int, steps: int, done: int) -> Iterator[Report]:
        """A bar over all steps of a training."""
        with self._bars() as bars:
            task = bars.add_task(name, total=epochs * steps, completed=done * steps, status="")

            def report(epoch: int, step: int, **values: float) -> None:
                status = "  ".join([f"epoch {epoch + 1}/{epochs}", *(_shown(*each) for each in values.items())])
                bars.update(task, completed=epoch * steps + step, status=status)
                if step == steps and not self.console.is_terminal:
                    self.console.print(f"{name}: {status}", highlight=False)

            yield report

    @contextmanager
    def track(self, items: Sequence[T], name: str) -> Iterator[Iterator[T]]:
        """A bar over a sequence."""
        with self._bars() as bars:
            task = bars.add_task(name, total=len(items), status="")

            def each() -> Iterator[T]:
                for item in items:
                    yield item
                    bars.advance(task)

            yield each()

    def note(self, text: str) -> None:
        """A line of its own, above the bars."""
        self.console.print(text, highlight=False)


def _shown(name: str, value: float) -> str:
    return f"{name} {value:.1%}" if "accuracy" in name else f"{name} {value:.3f}"

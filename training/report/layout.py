"""Markdown tables, and how shares and intervals are written: in percent, everywhere."""

from collections.abc import Iterable, Sequence

from training.evaluate import Cell
from training.outcomes import wilson
from training.paper import reported
from training.results import Planned


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; "" without rows."""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([f"| {' | '.join(heads)} |", "|---" * len(heads) + "|", *lines]) if lines else ""


def percent(share: float | None) -> str:
    """One decimal; blank for what wasn't measured."""
    return "" if share is None else f"{100 * share:.1f}"


def interval(share: float, n: int) -> str:
    """Wilson's 95 % interval, in whole percent."""
    low, high = wilson(share, n)
    return f"{100 * low:.0f} to {100 * high:.0f}"


def beside(of: Planned, cell: Cell | None) -> str:
    """Measured, and the paper's figure in brackets where it has one; blank for what wasn't measured."""
    if cell is None:
        return ""
    paper = reported(of.plan, of.bench.model, of.classifier, cell.purifier, cell.attack.name, cell.oracle)
    return percent(cell.accuracy) + ("" if paper is None else f" ({percent(paper)})")


def kept(heads: dict[str, str], of: Sequence[Planned]) -> dict[str, str]:
    """The columns, attack by attack, that somebody measured."""
    measured = {cell.attack.name for each in of for cell in each.cells}
    return {name: head for name, head in heads.items() if name in measured}

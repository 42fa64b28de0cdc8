"""Markdown tables, and how shares and intervals are written: in percent, everywhere."""

from collections.abc import Iterable, Mapping, Sequence

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


def beside(of: Planned, purifier: str, attack: str, oracle: bool = False) -> str:
    """Measured, and the paper's figure in brackets; each where there is one."""
    cell = of.of(purifier, oracle).get(attack)
    paper = reported(of.plan, of.bench.model, of.classifier, purifier, attack, oracle)
    parts = percent(cell.accuracy if cell else None), "" if paper is None else f"({percent(paper)})"
    return " ".join(part for part in parts if part)


def theirs(figures: Mapping[str, float], heads: Iterable[str]) -> list[str]:
    """A row of a paper's own, in percent and in brackets; blank where it has no such column."""
    return [f"({figures[name]:.1f})" if name in figures else "" for name in heads]


def noted(shown: str, *lines: str) -> str:
    """A table with what is to be said of it below; "" without the table."""
    return "\n\n".join([shown, *lines]) if shown else ""


def kept(heads: dict[str, str], of: Sequence[Planned]) -> dict[str, str]:
    """The columns, attack by attack, that somebody measured."""
    measured = {cell.attack.name for each in of for cell in each.cells}
    return {name: head for name, head in heads.items() if name in measured}

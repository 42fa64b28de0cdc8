"""Result files of evaluations, read back and put together by what was measured.

Files of one classifier may be several, of different plans. Their outcomes are image by image, so only those of the same test
images, budget, weights and settings are one measurement.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from models.precision import Precision
from training.evaluate import Cell
from training.plan import EvaluationError


class Result(BaseModel):
    """One file. data: which test images. settings, addons: of each purifier, and the weights that it brings along.

    stem: the file's name.
    """

    model_config = ConfigDict(frozen=True)

    model: str
    classifier: str
    budget: float
    plan: str = ""
    data: str = ""
    precision: Precision = "fp32"
    votes: int = 1
    weights_sha256: str = ""
    settings: Mapping[str, Any] = {}
    addons: Mapping[str, Any] = {}
    cells: tuple[Cell, ...]
    stem: str = ""

    @property
    def title(self) -> str:
        return f"{self.model} / {self.classifier}"

    def purifiers(self) -> list[str]:
        """In the order of the file."""
        return list(dict.fromkeys(cell.purifier for cell in self.cells))

    def of(self, purifier: str) -> list[Cell]:
        """A purifier's cells, without the oracle, who is no defence."""
        return [cell for cell in self.cells if cell.purifier == purifier and not cell.oracle]

    @property
    def bench(self) -> "Bench":
        return Bench(self.model, self.classifier, self.budget, self.data)

    def defence(self, purifier: str) -> str:
        """What two files must agree in for a purifier to be the same one in both."""
        parts = [self.weights_sha256, self.settings.get(purifier, {}), self.addons.get(purifier, [])]
        parts += [each for each in (self.precision, self.votes) if each not in ("fp32", 1)]
        return json.dumps(parts, sort_keys=True)


@dataclass(frozen=True)
class Bench:
    """What outcomes must share to be compared image by image."""

    model: str
    classifier: str
    budget: float
    data: str


@dataclass(frozen=True)
class Measured:
    """A cell with the plan that it belongs to."""

    plan: str
    cell: Cell


Rows = dict[str, list[Measured]]  # by purifier


def result_files(folder: Path) -> list[Path]:
    """The results of a folder, without the comparisons of settings that were left behind (`variants-*`)."""
    return sorted(file for file in folder.glob("*.json") if not file.name.startswith("variants-"))


def read_results(files: Iterable[Path]) -> list[Result]:
    """The results among these files; JSON that holds no cells is something else.

    Raises:
        EvaluationError: a file is broken.
    """
    found = []
    for file in files:
        try:
            body = json.loads(file.read_text(encoding="utf-8"))
            if isinstance(body, dict) and "cells" in body:
                found.append(Result.model_validate({**body, "stem": file.stem}))
        except (json.JSONDecodeError, ValidationError) as error:
            raise EvaluationError(f"{file} is no result of `unperturb evaluate`: {error}") from error
    return found


def every_result(folder: Path) -> list[Result]:
    """Those of a folder, variants too.

    Raises:
        EvaluationError: a file is broken.
    """
    return read_results(sorted(folder.glob("*.json")))


def load_results(folder: Path) -> list[Result]:
    """Every result of a folder.

    Raises:
        EvaluationError: there is no such folder, or nothing in it; the message says what to run.
    """
    found = read_results(result_files(folder))
    if not found:
        what = "holds no results" if folder.is_dir() else "is no folder"
        raise EvaluationError(
            f"{folder} {what}; `unperturb evaluate CLASSIFIER --plan standard` measures a checkpoint and writes "
            "runs/results/MODEL-CLASSIFIER-standard.json, then run `unperturb report runs/results`"
        )
    return found


def benches(results: Sequence[Result]) -> dict[Bench, Rows]:
    """Everything measured, by what can be compared image by image; without the oracle, who is no defence.

    Raises:
        EvaluationError: two files hold a purifier of the same name that isn't the same one.
    """
    found: dict[Bench, Rows] = {}
    known: dict[tuple[Bench, str], str] = {}
    for result in results:
        bench = result.bench
        rows = found.setdefault(bench, {})
        for cell in result.cells:
            if known.setdefault((bench, cell.purifier), result.defence(cell.purifier)) != result.defence(cell.purifier):
                raise EvaluationError(
                    f"the results of {cell.purifier!r} on {result.model}/{result.classifier} come from different weights or "
                    "settings; give each its own folder, or evaluate the older one again"
                )
            if not cell.oracle:
                rows.setdefault(cell.purifier, []).append(Measured(result.plan, cell))
    return found


@dataclass(frozen=True)
class Planned:
    """The cells of one plan on one classifier, from all files of that plan; of two alike the one with more images."""

    bench: Bench
    plan: str
    cells: tuple[Cell, ...]

    @property
    def classifier(self) -> str:
        return self.bench.classifier

    def purifiers(self) -> list[str]:
        """In the order of the file."""
        return list(dict.fromkeys(cell.purifier for cell in self.cells))

    def of(self, purifier: str, oracle: bool = False) -> dict[str, Cell]:
        """A purifier's cells by the name of their attack."""
        return {cell.attack.name: cell for cell in self.cells if (cell.purifier, cell.oracle) == (purifier, oracle)}


def planned(results: Sequence[Result], plan: str, model: str | None = None) -> list[Planned]:
    """What there is of a plan, by classifier."""
    found: dict[Bench, dict[tuple[str, str, bool], Cell]] = {}
    for result in results:
        if result.plan != plan or model not in (None, result.model):
            continue
        cells = found.setdefault(result.bench, {})
        for cell in result.cells:
            key = cell.purifier, cell.attack.name, cell.oracle
            if key not in cells or cells[key].n < cell.n:
                cells[key] = cell
    return [Planned(bench, plan, tuple(cells.values())) for bench, cells in found.items()]

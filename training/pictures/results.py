"""The result files that pictures are made of."""

import json
from pathlib import Path

from training import results
from training.evaluate import Cell


class Result(results.Result):
    """One file of `unperturb evaluate`. stem: its name."""

    stem: str

    @property
    def title(self) -> str:
        return f"{self.model} / {self.classifier}"

    def purifiers(self) -> list[str]:
        """In the order of the file."""
        return list(dict.fromkeys(cell.purifier for cell in self.cells))

    def of(self, purifier: str) -> list[Cell]:
        """A purifier's cells, without the oracle, who is no defence."""
        return [cell for cell in self.cells if cell.purifier == purifier and not cell.oracle]


def read(folder: Path) -> list[Result]:
    """Every result of a folder, variants too; JSON that holds no cells is something else."""
    found = []
    for file in sorted(folder.glob("*.json")):
        body = json.loads(file.read_text(encoding="utf-8"))
        if isinstance(body, dict) and "cells" in body:
            found.append(Result.model_validate({**body, "stem": file.stem}))
    return found

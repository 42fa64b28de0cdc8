"""Pictures for the pages and for `unperturb report`: `python -m training.pictures` rewrites those of docs/results, and captions.

One file a kind of picture, each a function from results to `Picture`s; strips.py needs no results but the shipped checkpoints.
Needs matplotlib (`pip install 'unperturb[plot]'`).
"""

from pathlib import Path

from training.pictures import bars, budgets, purification, roc, steps, tradeoff
from training.pictures.picture import Picture
from training.results import every_result

KINDS = (bars, budgets, purification, steps, tradeoff, roc)


def pictures_of(results: Path) -> list[Picture]:
    """Every picture that the result files of a folder allow, none of them drawn yet."""
    found = every_result(results)
    return [picture for kind in KINDS for picture in kind.pictures(found)]


def draw(results: Path, out: Path) -> list[tuple[str, str]]:
    """Draw every picture that the result files of a folder allow; their file names in `out`, and captions."""
    out.mkdir(parents=True, exist_ok=True)
    made = pictures_of(results)
    for picture in made:
        picture.save(out)
    return [(picture.name, picture.caption) for picture in made]

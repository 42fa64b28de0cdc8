"""Markdown tables from the committed results: `python -m training.tables` rewrites those in the pages.

A table stands between `<!-- table:NAME -->` and `<!-- end -->`. No accuracy there is typed by hand, and a test compares
the pages with the results. The tables themselves are in training/report/.
"""

import re
from collections.abc import Callable
from functools import cache
from pathlib import Path

from training.report import aid, costs, details, nrp, overall, peers, pix2pix, precision, reverse, soap
from training.results import Result, load_results, read_results, result_files

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "results"
PAGES = (
    ROOT / "README.md",
    *(ROOT / "docs" / f"{name}.md" for name in ("soap", "addons", "robustness", "performance")),
)
NOTHING = "*Not measured yet.*"


def main() -> None:
    """Rewrite every page."""
    for page in PAGES:
        page.write_text(rendered(page.read_text(encoding="utf-8")), encoding="utf-8")


def rendered(text: str) -> str:
    """`text` with each marked table made anew."""

    def replace(match: re.Match[str]) -> str:
        return f"{match['open']}\n{TABLES[match['name']]() or NOTHING}\n<!-- end -->"

    return re.sub(r"(?P<open><!-- table:(?P<name>[\w-]+) -->)\n.*?<!-- end -->", replace, text, flags=re.S)


def evaluations() -> list[Path]:
    """The results of shipped checkpoints, without the comparisons of settings that were left behind."""
    return result_files(RESULTS)


@cache
def _shipped() -> list[Result]:
    return load_results(RESULTS)


def _search() -> list[Result]:
    """The settings that were tried beside the adversarially trained network."""
    return read_results([RESULTS / "variants-resnet18-at.json", RESULTS / "variants-resnet18-at-eot.json"])


def _voted() -> list[Result]:
    """Defences that draw random numbers, by majority."""
    return read_results(sorted(RESULTS.glob("variants-votes-*.json")))


def _beside_the_bare(results: list[Result]) -> list[Result]:
    """These, and what their classifiers keep without any purifier."""
    names = {result.classifier for result in results}
    bare = (result.model_copy(update={"cells": tuple(result.of("none"))}) for result in _shipped())
    return [*results, *(result for result in bare if result.cells and result.classifier in names)]


def _variants(name: str) -> Callable[[], str]:
    return lambda: soap.variants(read_results([RESULTS / name]))


def _precisions() -> list[Result]:
    return read_results(sorted(RESULTS.glob("variants-precision-*.json")))


TABLES: dict[str, Callable[[], str]] = {
    "purifiers": costs.purifiers,
    "speed": costs.speed,
    "speed-short": lambda: costs.speed(short=True),
    "speed-goals": costs.speed_goals,
    "growth": costs.growth,
    "aid-cost": costs.aid_cost,
    "peers": peers.peers,
    "chunks": costs.chunks,
    "serving": costs.serving,
    "startup": costs.startup,
    "precision": lambda: precision.precisions(_precisions()),
    "precision-cost": costs.precision,
    "train-speed": costs.train_speed,
    "overall": lambda: overall.overall(_shipped()),
    "in-l2": lambda: overall.in_l2(_shipped()),
    "overall-short": lambda: overall.overall(_shipped(), short=True),
    "legend": lambda: overall.LEGEND,
    "random-legend": lambda: details.RANDOM,
    "suspicion-legend": lambda: details.SUSPICION,
    "random": lambda: details.random_defences(_shipped()),
    "search": lambda: overall.overall(_beside_the_bare(_search())),
    "votes": lambda: overall.overall(_beside_the_bare(_voted())),
    "votes-random": lambda: details.random_defences(_voted()),
    "reverse-random": lambda: details.random_defences(read_results([RESULTS / "variants-reverse-eot.json"])),
    "search-random": lambda: details.random_defences(_search()),
    "cifar10": lambda: soap.white_box(_shipped(), "cifar10"),
    "mnist": lambda: soap.white_box(_shipped(), "mnist"),
    "soap-black-box": lambda: soap.black_box(_shipped()),
    "soap-joint": lambda: soap.joint(_shipped(), "paper-soap"),
    "detector-cifar10": lambda: details.suspicion(_shipped(), "cifar10"),
    "detector-mnist": lambda: details.suspicion(_shipped(), "mnist"),
    "variants-lc": _variants("variants-soap-lc.json"),
    "variants-rp": _variants("variants-soap-rp.json"),
    "variants-dr": _variants("variants-soap-dr.json"),
    "aid": lambda: aid.exhaustive(_shipped()),
    "addons": lambda: aid.attacked(_shipped(), aid.BLIND),
    "aid-worst": lambda: aid.worst(_shipped()),
    "aid-joint": lambda: soap.joint(_shipped(), "paper-aid"),
    "aid-sensitivity": lambda: aid.sensitivity(_shipped()),
    "aid-black-box": lambda: aid.black_box(_shipped()),
    "aid-autoattack": lambda: aid.autoattack(_shipped()),
    "reverse": lambda: reverse.gains(_shipped()),
    "reverse-l2": lambda: reverse.gains_l2(_shipped()),
    "reverse-joint": lambda: soap.joint(_shipped(), "paper-reverse"),
    "nrp-transferred": lambda: nrp.transferred(_shipped()),
    "nrp-generality": lambda: nrp.generality(_shipped()),
    "pix2pix-features": lambda: pix2pix.features(_shipped()),
    "pix2pix-recovery": lambda: pix2pix.recovery(_shipped()),
    "pix2pix-gradients": lambda: pix2pix.gradients(_shipped()),
}

if __name__ == "__main__":
    main()

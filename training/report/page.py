"""The page that `unperturb report` writes: README.md of a folder of results."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from training.checks import of_results
from training.report import aid, details, nrp, overall, pix2pix, reverse, soap
from training.results import Bench, Result, benches, load_results

Drawn = Sequence[tuple[str, str]]  # file names and captions
PICTURES = "## Pictures"

PAPERS = """\
In brackets what the paper reports, on other networks, most of them larger and trained for longer: compare directions, not
levels; alone where we measured nothing. Below each table stands what of the paper's is left out, and why. "Before" a purifier:
the classifier alone on the images that were sent to it, which are clean where those fool the defence already."""

ATTACKS = """\
Seconds are of attack and defence, on whatever machine it was; what is made once for several purifiers counts with the first.
Passes likewise."""


def write_report(folder: Path, out: Path, draw: Callable[[Path, Path], Drawn] | None = None) -> Path:
    """Write the page of a folder's results to `out`, and what `draw` makes of them beside it; the page's path.

    Raises:
        EvaluationError: there are no results.
    """
    results = load_results(folder)
    out.mkdir(parents=True, exist_ok=True)
    page = out / "README.md"
    page.write_text(report(results, draw(folder, out) if draw else ()), encoding="utf-8")
    return page


def report(results: Sequence[Result], pictures: Drawn = ()) -> str:
    """The page as Markdown."""
    parts = [
        "# Results",
        "Written by `unperturb report` from the files beside this page; run it again after an evaluation.",
        "## Every defence",
        overall.overall(results) or "No defence was attacked by anybody who knew it, so nothing can be said of one.",
        overall.LEGEND,
        *_section("In l_2", overall.in_l2(results)),
        *_section("Defences that draw random numbers", details.random_defences(results), details.RANDOM),
        *_suspicion(results),
        *_papers(results),
        *_attacks(results),
        *_flaws(results),
        *_pictures(pictures),
    ]
    return "\n\n".join(parts) + "\n"


def _section(title: str, shown: str, *before: str, level: str = "##") -> list[str]:
    return [f"{level} {title}", *before, shown] if shown else []


def _suspicion(results: Sequence[Result]) -> list[str]:
    found = [
        part
        for model in dict.fromkeys(result.model for result in results)
        for part in _section(model, details.suspicion(results, model), level="###")
    ]
    return ["## Suspicion", details.SUSPICION, *found] if found else []


def _papers(results: Sequence[Result]) -> list[str]:
    models = dict.fromkeys(result.model for result in results if result.plan == "paper-soap")
    tables = {
        **{f"SOAP, Tables 1 to 3: {model}": soap.white_box(results, model) for model in models},
        "SOAP, Table 4: substitutes": soap.black_box(results),
        "SOAP, Fig. 5: joint attacks by beta": soap.joint(results, "paper-soap"),
        "AID, Tables 1 and 7: the worst of five": aid.worst(results),
        "AID, Tables 3 and 10": aid.exhaustive(results),
        "AID, Table 4: queries and transfer": aid.black_box(results),
        "AID, Fig. 4: joint attacks by beta": soap.joint(results, "paper-aid"),
        "AID, Table 11: budget and steps": aid.sensitivity(results),
        "AID, Table 13: AutoAttack": aid.autoattack(results),
        "NRP, Table 1: success of transferred attacks": nrp.transferred(results),
        "NRP, Table 2: other attacks": nrp.generality(results),
        "Reverse, Table 1": reverse.gains(results),
        "Reverse, Table 5: l_2": reverse.gains_l2(results),
        "Reverse, Table 6: joint attacks by lambda": soap.joint(results, "paper-reverse"),
        "Pix2Pix, Table 1: distorted features": pix2pix.features(results),
        "Pix2Pix, Table 3: recovery": pix2pix.recovery(results),
        "Pix2Pix, Tables 2 and 4: FGSM and PGD": pix2pix.gradients(results),
    }
    found = [part for title, shown in tables.items() for part in _section(title, shown, level="###")]
    return ["## The papers' tables", PAPERS, *found] if found else []


def _attacks(results: Sequence[Result]) -> Iterable[str]:
    yield "## Every attack"
    yield ATTACKS
    for bench, rows in benches(results).items():
        yield f"### {_title(bench)}"
        yield details.attacks(bench, rows)


def _title(bench: Bench) -> str:
    return f"{bench.model}/{bench.classifier}: l_inf {bench.budget:.4g}, {bench.data}"


def _flaws(results: Sequence[Result]) -> Iterable[str]:
    """What of these results can't be believed as it is."""
    yield "## Symptoms of masked gradients"
    found = [f"- {_title(each.bench)}, {each.plan}: {flaw}" for each in results for flaw in of_results(each.cells)]
    yield "\n".join(found) or "The accuracies show none of those that `unperturb evaluate` looks for."


def _pictures(pictures: Drawn) -> Iterable[str]:
    if pictures:
        yield PICTURES
        yield from (f"![{caption}]({name})" for name, caption in pictures)

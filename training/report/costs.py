"""What purification costs: from the benchmarks' results and the shipped zoo."""

import json
from pathlib import Path
from typing import Any

from models.catalog import Catalog

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"


def _read(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((RESULTS / name).read_text(encoding="utf-8"))
    return found


def _setup(head: dict[str, Any]) -> str:
    """On what, and how often, a benchmark was run."""
    hardware = head["hardware"]
    return (
        f"fp32, {hardware['torch_threads']} threads, {hardware['cpu']}, PyTorch {head['versions']['torch']}, median of "
        f"{head['measured_rounds']} interleaved rounds"
    )


def offer_cost() -> str:
    """Every purifier of the zoo: time at three batch sizes, passes and multiply-adds."""
    found = _read("offer_cost.json")
    rows = [
        f"{_setup(found['header'])}; ms an image.\n",
        "| purifier | classifier | batch 1 | batch 8 | batch 64 | passes | million multiply-adds |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in found["rows"].items():
        ms = " | ".join(f"{row['ms'][batch]['median_ms']:.2f}" for batch in ("1", "8", "64"))
        passes = f"{row['passes']['forward']} + {row['passes']['backward']}"
        rows.append(f"| `{name}` | {row['classifier']} | {ms} | {passes} | {row['multiply_adds'] / 1e6:.0f} |")
    return "\n".join(rows)


def aid_cost() -> str:
    """AID at the paper's width, counted beside what the public code spends."""
    found = _read("offer_cost.json")
    rows = ["| classifier | ours, million multiply-adds | public code | share |", "|---|---|---|---|"]
    for row in found["aid"]:
        ours, public = row["multiply_adds"] / 1e6, row["public_code"] / 1e6
        rows.append(f"| {row['architecture']} | {ours:.0f} | {public:.0f} | {row['share']:.1%} |")
    return "\n".join(rows)


def purifiers() -> str:
    """What the shipped zoo offers, and what it costs."""
    catalog = Catalog.open()
    rows: dict[tuple[str, ...], list[str]] = {}
    for offer in catalog.offers():
        info = catalog.load(offer).info
        change = (
            "" if not info.eps_pfy else f"{255 * info.eps_pfy:.0f}/255" if info.eps_pfy < 0.2 else f"{info.eps_pfy:g}"
        )
        passes = f"{info.forward_passes} + {info.backward_passes}"
        star = " \\*" if catalog.resolve(offer.model, offer.purifier) is offer else ""
        row = f"`{offer.purifier}`", offer.model, offer.entry.note or info.summary, change, passes
        rows.setdefault(row, []).append(offer.classifier + star)
    lines = ["| purifier | model | what it does | largest change | passes | classifiers |", "|---|---|---|---|---|---|"]
    return "\n".join(
        [*lines, *(f"| {' | '.join(row)} | {', '.join(classifiers)} |" for row, classifiers in sorted(rows.items()))]
    )


def cost() -> str:
    """Time of a batch against the published loop, both measured in one run."""
    found = _read("purify_cost.json")
    rows = [
        f"Batch of {found['header']['images']}, {_setup(found['header'])}.\n",
        "| purifier | ms an image | published loop, ms | ours / published | same label / budget / image, % |",
        "|---|---|---|---|---|",
    ]
    for name, row in found["rows"].items():
        ours, plain, same = row["ours"]["median_ms"], row.get("plain"), row.get("agreement")
        against = f"{plain['median_ms']:.1f} | {row['ratio']:.2f}" if plain else " | "
        shares = ("same_label", "same_budget", "same_image")
        agree = " / ".join(f"{100 * same[share]:.0f}" for share in shares) if same else ""
        rows.append(f"| {name} | {ours:.2f} | {against} | {agree} |")
    return "\n".join(rows)

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
    count = head["hardware"]["torch_threads"]
    return (
        f"{count} thread{'s' * (count != 1)}, {head['hardware']['cpu']}, PyTorch {head['versions']['torch']}, median of "
        f"{head['measured_rounds']} interleaved rounds"
    )


def offer_cost() -> str:
    """Every purifier of the zoo: time at three batch sizes, passes and multiply-adds."""
    found = _read("offer_cost.json")
    rows = [
        f"fp32, {_setup(found['header'])}; ms an image.\n",
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
        f"Batch of {found['header']['images']}, fp32, {_setup(found['header'])}.\n",
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


def train_speed() -> str:
    """Images a second that each recipe learns from, by precision, layout and compilation."""
    if not (RESULTS / "train_speed.json").exists():
        return "Not measured yet: `python -m benchmarks.train_speed`."
    found = _read("train_speed.json")
    head, rows = found["header"], found["rows"]
    names = list(dict.fromkeys(name for row in rows.values() for name in row["options"]))
    lines = [
        f"Images a second, in brackets the slowest and the fastest round; \\* is what the recipe says today. "
        f"{_setup(head)}; before it the machine was {head['busy_percent_before']:.0f} % busy.\n",
        f"| recipe | batch | {' | '.join(names)} | s to compile | fastest |",
        "|" + "---|" * (len(names) + 4),
    ]
    for recipe, row in rows.items():
        speeds = [_speed(row["options"].get(name, {})) + " \\*" * (name == row["own"]) for name in names]
        compiled = [f"{each['compile_s']:.0f}" for each in row["options"].values() if "compile_s" in each]
        cells = [f"`{recipe}`", str(row["batch_size"]), *speeds, ", ".join(compiled), _fastest(row)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, *_unavailable(rows)])


def _speed(option: dict[str, Any]) -> str:
    if "ms" not in option:
        return "unavailable" if option else ""
    slowest, fastest = 1000 / option["ms"]["slowest_ms"], 1000 / option["ms"]["fastest_ms"]
    return f"{option['images_per_s']:.0f} ({slowest:.0f} to {fastest:.0f})"


def _fastest(row: dict[str, Any]) -> str:
    """The option that is faster in each round than the recipe's own in any, and how much by the medians."""
    timed = {name: each for name, each in row["options"].items() if "ms" in each}
    if row["own"] not in timed:
        return ""
    own, best = timed[row["own"]], max(timed, key=lambda name: timed[name]["images_per_s"])
    if timed[best]["ms"]["slowest_ms"] >= own["ms"]["fastest_ms"]:
        return "\\*"
    return f"{best}, {timed[best]['images_per_s'] / own['images_per_s']:.2f}x"


def _unavailable(rows: dict[str, Any]) -> list[str]:
    """Below the table: each reason, and which recipes it keeps from which option."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for recipe, row in rows.items():
        for name, option in row["options"].items():
            if "unavailable" in option:
                reasons.setdefault((name, option["unavailable"]), []).append(f"`{recipe}`")
    return [f"\nNo {name} for {', '.join(recipes)}: {why}" for (name, why), recipes in reasons.items()]

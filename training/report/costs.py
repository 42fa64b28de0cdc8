"""What purification costs: from the benchmarks' results and the shipped zoo."""

import json
from pathlib import Path
from statistics import median
from typing import Any

from models.catalog import Catalog
from training.report import layout

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"


def _read(name: str) -> dict[str, Any] | None:
    """A benchmark's results; None before it was run."""
    file = RESULTS / name
    found: dict[str, Any] | None = json.loads(file.read_text(encoding="utf-8")) if file.exists() else None
    return found


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


def _setup(head: dict[str, Any]) -> str:
    """On what, and how often, a benchmark was run."""
    count = head["hardware"]["torch_threads"]
    return (
        f"{count} thread{'s' * (count != 1)}, {head['hardware']['cpu']}, PyTorch {head['versions']['torch']}, median of "
        f"{head['measured_rounds']} interleaved rounds"
    )


def speed(short: bool = False) -> str:
    """Purifiers as published and as served, at three batch sizes. short: without passes, oracle and floor."""
    found = _read("speed.json")
    if found is None:
        return ""
    setup = f"fp32, {_setup(found['header'])}; ms an image at batch 1 / 8 / 64.\n"
    columns = ["purifier", "ours", "published loop", "times as fast"]
    if not short:
        columns += ["oracle", "share of the floor, %", "passes", "million multiply-adds, ours / published"]
        columns += ["authors' code, ms", "same label / budget / pixels as the oracle, %"]
    rows = [setup, f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    for name, row in found["rows"].items():
        cells = [name, _ms(row, "ours"), _ms(row, "published"), _three(row["times_published"], ".1f")]
        if not short:
            cells += _details(row)
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def _details(row: dict[str, Any]) -> list[str]:
    own, loop = row["sides"]["ours"], row["sides"].get("published")
    adds = f"{own['multiply_adds'] / 1e6:.0f}" + (f" / {loop['multiply_adds'] / 1e6:.0f}" if loop else "")
    same = row["agreement"].get("oracle")
    return [
        _ms(row, "oracle"),
        _three({batch: 100 * share for batch, share in row["share_of_floor"].items()}, ".0f"),
        f"{row['passes']['forward']} + {row['passes']['backward']}",
        adds,
        _three(row["authors_ms"], ".0f"),
        " / ".join(f"{100 * same[what]:.0f}" for what in ("label", "budget", "image")) if same else "",
    ]


def _ms(row: dict[str, Any], side: str) -> str:
    times = row["sides"].get(side, {}).get("ms", {})
    return _three({batch: found["median_ms"] for batch, found in times.items()}, ".2f")


def _three(values: dict[str, float | None], form: str) -> str:
    """At batch 1, 8 and 64; nothing where none was measured."""
    found = [None if (value := values.get(batch)) is None else f"{value:{form}}" for batch in ("1", "8", "64")]
    return " / ".join(each or "–" for each in found) if any(found) else ""


def speed_goals() -> str:
    """What a purifier was to reach, and whether it did.

    Goals in ms were set on another machine; what they ask for beside the authors' code there is what this one can be held to.
    """
    found = _read("speed.json")
    if found is None:
        return ""
    in_ms = ["goal, ms", "floor here", "measured", "met"]
    heads = ["purifier", "batch", *in_ms, "goal, times the published loop", "measured", "met"]
    rows = [
        [name, batch, *_in_ms(goal["ms"], row, batch), *_in_times(goal, row, batch)]
        for name, row in found["rows"].items()
        for batch, goal in row["goals"].items()
    ]
    return layout.table(heads, rows)


def _in_ms(most: float | None, row: dict[str, Any], batch: str) -> list[str]:
    if most is None:
        return [""] * 4
    ms = row["sides"]["ours"]["ms"][batch]["median_ms"]
    return [f"<= {most:g}", f"{row['floor_ms'][batch]:.2f}", f"{ms:.2f}", _met(ms <= most)]


def _in_times(goal: dict[str, Any], row: dict[str, Any], batch: str) -> list[str]:
    if not goal["times"] and not row["authors_ms"]:
        return [""] * 3
    least, times = goal["times"] or row["authors_ms"][batch] / goal["ms"], row["times_published"][batch]
    return [f">= {least:.3g}", f"{times:.1f}", _met(times >= least)]


def _met(met: bool) -> str:
    return "yes" if met else "**no**"


def aid_cost() -> str:
    """AID at the paper's width, counted beside what the public code spends."""
    found = _read("speed.json")
    if found is None:
        return ""
    rows = ["| classifier | ours, million multiply-adds | public code | share |", "|---|---|---|---|"]
    for row in found["aid"]:
        ours, public = row["multiply_adds"] / 1e6, row["public_code"] / 1e6
        rows.append(f"| {row['architecture']} | {ours:.0f} | {public:.0f} | {row['share']:.1%} |")
    return "\n".join(rows)


def growth() -> str:
    """How the time of an image grows along each axis, and how multiply-adds do."""
    found = _read("growth.json")
    if found is None:
        return ""
    rows = ["| axis | values | ms an image | million multiply-adds | time grows as | work grows as |", "|" + "---|" * 6]
    for name, axis in found["axes"].items():
        points = axis["points"]
        cells = (
            " / ".join(str(point["value"]) for point in points),
            " / ".join(f"{point['ms']['median_ms']:.2f}" for point in points),
            " / ".join(f"{point['multiply_adds'] / 1e6:.0f}" for point in points),
            f"value^{axis['time_exponent']:.2f}",
            f"value^{axis['work_exponent']:.2f}",
        )
        rows.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(rows)


def chunks() -> str:
    """What an image takes by how many go through the network together, and how far the size that is used is from the best."""
    found = _read("chunks.json")
    if found is None:
        return ""
    head, used = found["header"], str(found["header"]["chunk"])
    sizes = list(found["rows"][0]["ms"])
    lines = [
        f"{head['hardware']['cpu']}, PyTorch {head['versions']['torch']}, median of {head['measured_rounds']} interleaved "
        f"rounds; ms an image.\n",
        f"| purifier | threads | {' | '.join(sizes)} | {used} is slower than the best by |",
        "|" + "---|" * (len(sizes) + 3),
    ]
    for row in found["rows"]:
        ms = {size: row["ms"][size]["median_ms"] for size in sizes}
        apart = 100 * (ms[used] / min(ms.values()) - 1)
        times = " | ".join(f"{each:.2f}" for each in ms.values())
        lines.append(f"| `{row['purifier']}` | {row['threads']} | {times} | {apart:.0f} % |")
    return "\n".join(lines)


def precision() -> str:
    """What an image takes with networks in fp32, by Winograd and by oneDNN, and in bf16, and how much faster each is."""
    found = _read("precision.json")
    if found is None:
        return ""
    instructions = ", ".join(found["header"]["hardware"]["bf16_instructions"]) or "none"
    setup = (
        f"{_setup(found['header'])}; instructions for bfloat16: {instructions}. ms an image at batch 1 / 8 / 64.\n\n"
    )
    rows = []
    for row in found["rows"]:
        served, onednn, rough = (
            {batch: ms["median_ms"] for batch, ms in row["ms"][each].items()} for each in ("fp32", "onednn", "bf16")
        )
        gains = [{batch: other[batch] / ms for batch, ms in served.items()} for other in (onednn, rough)]
        times = [_three(each, ".2f") for each in (onednn, served, rough)]
        rows.append([f"`{row['purifier']}`", row["classifier"], *times, *(_three(each, ".1f") for each in gains)])
    head = [
        "purifier",
        "classifier",
        "fp32, oneDNN",
        "fp32, as served",
        "bf16",
        "times as fast as by oneDNN",
        "as in bf16",
    ]
    return setup + layout.table(head, rows)


def serving() -> str:
    """What an image costs the service beside the network, and where that goes."""
    found = _read("serving.json")
    if found is None:
        return ""
    head, ms = found["header"], found["ms"]
    busy = head["busy_percent_before"]
    setup = (
        f"{head['hardware']['cpu']}, {head['hardware']['cores']} cores; {found['callers']} callers, {found['images']} images in "
        f"batches of {found['mean_batch_size']:.0f} on average; before it the machine was {busy:.0f} % busy.\n\n"
    )
    helpers = ms["helpers"] - ms["network"]
    rows = [
        ["**beside the network**", f"**{ms['beside the network']:.2f}**"],
        ["in helpers: decoding, copying to and from, gathering a batch", f"{helpers:.2f}"],
        ["in the service's process", f"{ms['service']:.2f}"],
        *([f"– {part}", f"{each:.2f}"] for part, each in ms["event loop"].items()),
        ["– threads that talk to helpers", f"{ms['threads that talk to helpers']:.2f}"],
        ["the network, for comparison", f"{ms['network']:.2f}"],
    ]
    return setup + layout.table(["", "the processor's ms an image"], rows)


def startup() -> str:
    """How soon the service is ready, and what its first requests take beside later ones."""
    found = _read("startup.json")
    if found is None:
        return ""
    head, starts = found["header"], found["starts"]
    ready, goal_s = [start["ready_s"] for start in starts], 5
    said = "" if max(ready) < goal_s else f"; **the goal is under {goal_s} s**"
    lines = [
        f"{head['hardware']['cpu']}, {head['hardware']['cores']} cores, PyTorch {head['versions']['torch']}; before it the "
        f"machine was {head['busy_percent_before']:.0f} % busy. Ready after {median(ready):.1f} s ({min(ready):.1f} to "
        f"{max(ready):.1f} in {len(starts)} starts{said}). Milliseconds of requests, one "
        "after the other; medians over the starts.\n",
        "| purifier | asked | first | second | third | tenth | median of the later ones | first / tenth |",
        "|" + "---|" * 8,
    ]
    for settle_s in dict.fromkeys(start["settle_s"] for start in starts):
        asked = [start["ms"] for start in starts if start["settle_s"] == settle_s]
        when = f"{settle_s:.0f} s later" if settle_s else "at once"
        lines += [f"| {_name(name)} | {when} | {_requests([ms[name] for ms in asked])} |" for name in asked[0]]
    return "\n".join(lines)


def _name(purifier: str) -> str:
    return "the default" if purifier == "default" else f"`{purifier}`"


def _requests(starts: list[list[float]]) -> str:
    """The first requests after several starts, as cells."""
    ms = [median(each) for each in zip(*starts, strict=True)]
    return " | ".join(
        [*(f"{ms[place]:.1f}" for place in (0, 1, 2, 9)), f"{median(ms[10:]):.1f}", f"{ms[0] / ms[9]:.1f}"]
    )


def train_speed() -> str:
    """Images a second that each recipe learns from, by precision, layout and compilation."""
    found = _read("train_speed.json")
    if found is None:
        return ""
    rows = found["rows"]
    runs = [row["run"] for row in rows.values()]
    head = found["header"] | {"measured_rounds": min(run["measured_rounds"] for run in runs)}
    busy = max(run["busy_percent_before"] for run in runs)
    names = list(dict.fromkeys(name for row in rows.values() for name in row["options"]))
    lines = [
        f"Images a second, in brackets the slowest and the fastest round; \\* is what the recipe says today. "
        f"{_setup(head)}; before it the machine was at most {busy:.0f} % busy.\n",
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

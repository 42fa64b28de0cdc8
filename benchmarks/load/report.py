"""Requirements, tables and the picture, made from the JSON: `python -m benchmarks.load.report` makes the page anew."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "service_load.json"
PAGE = ROOT / "docs" / "service-load.md"
PICTURE = ROOT / "docs" / "images" / "service-load.png"
NOTHING = "Not measured yet: `python -m benchmarks.service_load`."

BATCHES = 3.0  # p99 below capacity, in batch times
KEPT = 0.9  # goodput above capacity, as a share of it
REFUSED_MS = 50.0  # p99 of a refusal
GROWTH = 0.05  # of the memory, over the second half of a level
HTTP = {("none", 1): 0.75, ("none", 16): 0.75, ("soap-lc", 1): 0.95}  # by images in a request: of the engine's images/s

Found = dict[str, Any]


def main() -> None:
    """Rewrite the page's tables and the picture."""
    found = json.loads(RESULTS.read_text(encoding="utf-8"))
    PAGE.write_text(rendered(PAGE.read_text(encoding="utf-8"), found), encoding="utf-8")
    draw(found, PICTURE)


def committed() -> Found | None:
    """The results in the repository, if there are any yet."""
    return json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else None


def rendered(text: str, found: Found | None) -> str:
    """`text` with each marked table made anew."""

    def replace(match: re.Match[str]) -> str:
        table = NOTHING if found is None else TABLES[match["name"]](found)
        return f"{match['open']}\n{table}\n<!-- end -->"

    return re.sub(r"(?P<open><!-- table:(?P<name>[\w-]+) -->)\n.*?<!-- end -->", replace, text, flags=re.S)


def checks(found: Found) -> list[Found]:
    """Each requirement: what it asks, what was measured, whether it is met."""
    made = [check for each in found["levels"] for check in _level_checks(each, found["capacity"]["goodput_per_s"])]
    rise, batch = _rise(found["fairness"]), found["fairness"]["flood_itself"]["batch_ms"]["p50"]
    made.append(_check("p99 of none rises under the flood, ms", f"<= {batch:.1f}", rise, rise <= batch))
    for each in found["overhead"]:
        least, ratio = HTTP[each["purifier"], each["images"]], each["median"]["ratio"]
        name = f"{each['purifier']} over HTTP{_forms(each['images'])} against the engine"
        made.append(_check(name, f">= {least}", ratio, ratio >= least))
    return made


def _forms(images: int) -> str:
    return "" if images == 1 else f", {images} images in a request,"


def _level_checks(each: Found, full: float) -> list[Found]:
    name, growth, limit = f"{each['load']:.0%}", each["memory"]["second_half_growth_mib"], each["memory"]["rss_mib_max"]
    made = [
        _check(f"{name}: errors", "0", sum(each["errors"].values()), not each["errors"]),
        _check(f"{name}: growth, MiB", f"<= {GROWTH * limit:.0f}", growth, growth <= GROWTH * limit),
    ]
    if each["load"] < 1:
        lost = each["shed"] + each["expired"]
        made.append(_check(f"{name}: shed or expired", "0", lost, lost == 0))
        ratio = round(_p99(each["latency_ms"]) / _p99(each["batch_ms"]), 2)
        made.append(_check(f"{name}: p99 in batch times (p99)", f"<= {BATCHES}", ratio, ratio <= BATCHES))
        return made
    kept, bare = round(each["goodput_per_s"] / full, 3), each["shed_without_retry_after"]
    refused = (each["refusal_ms"] or {"p99": 0.0})["p99"]
    return [
        *made,
        _check(f"{name}: goodput against capacity", f">= {KEPT}", kept, kept >= KEPT),
        _check(f"{name}: shed without Retry-After", "0", bare, bare == 0),
        _check(f"{name}: p99 of a refusal, ms", f"<= {REFUSED_MS:.0f}", refused, refused <= REFUSED_MS),
    ]


def _check(name: str, required: str, measured: float, met: bool) -> Found:
    return {"name": name, "required": required, "measured": measured, "met": met}


def _rise(fairness: Found) -> float:
    """How much longer the slowest percent of `none` takes under the flood, ms."""
    return round(_p99(fairness["under_flood"]["latency_ms"]) - _p99(fairness["alone"]["latency_ms"]), 2)


def _p99(times: Found | None) -> float:
    """Endless where nothing was served."""
    return float("inf") if times is None else float(times["p99"])


def machine(found: Found) -> str:
    head, plan = found["header"], found["plan"]
    mix = ", ".join(f"{100 * share:.0f} % `{name}`" for name, share in plan["mix"].items())
    versions = ", ".join(f"{name} {number}" for name, number in head["versions"].items())
    return (
        f"{head['date']}, {head['hardware']['cores']} cores of {head['hardware']['cpu']}, shared by service and client; "
        f"{versions}. Model {plan['model']}, {mix}; seed {plan['seed']}. Capacity, closed loop of "
        f"{found['capacity']['concurrency']}: {found['capacity']['goodput_per_s']:.0f} requests/s."
    )


def load(found: Found) -> str:
    rows = [
        "| load | offered /s | goodput /s | served | shed | expired | errors | latency p50 / p99, ms "
        "| batch p50 / p99, ms | refusal p50 / p99, ms | memory max, MiB | growth, MiB | client, cores |",
        "|" + "---|" * 13,
    ]
    for each in found["levels"]:
        times = " | ".join(_pair(each[key]) for key in ("latency_ms", "batch_ms", "refusal_ms"))
        memory = f"{each['memory']['rss_mib_max']:.0f} | {each['memory']['second_half_growth_mib']:+.1f}"
        numbers = f"{each['served']} | {each['shed']} | {each['expired']} | {sum(each['errors'].values())}"
        rates = f"{each['load']:.0%} | {each['offered_per_s']:.0f} | {each['goodput_per_s']:.0f}"
        rows.append(f"| {rates} | {numbers} | {times} | {memory} | {each['cpu']['client_cores']:.2f} |")
    return "\n".join(rows)


def fairness(found: Found) -> str:
    own = found["fairness"]
    rows = [
        f"`{own['flood']}` is asked for {own['flood_offered_per_s']:.0f} times a second, three times what it can do.\n",
        "| requests | sent | served | shed | expired | latency p50 / p99, ms | batch p50 / p99, ms |",
        "|" + "---|" * 7,
    ]
    names = {"alone": "`none` alone", "under_flood": "`none` under the flood", "flood_itself": "the flood itself"}
    for key, name in names.items():
        numbers = " | ".join(str(own[key][count]) for count in ("sent", "served", "shed", "expired"))
        rows.append(f"| {name} | {numbers} | {_pair(own[key]['latency_ms'])} | {_pair(own[key]['batch_ms'])} |")
    return "\n".join(rows)


def overhead(found: Found) -> str:
    rows = [
        "| purifier | images in a request | over HTTP, images/s | engine alone, images/s | ratio (rounds) | mean batch "
        "| client, cores |",
        "|" + "---|" * 7,
    ]
    for each in found["overhead"]:
        middle, rounds = each["median"], each["rounds"]
        ratios = f"{min(r['ratio'] for r in rounds):.2f} to {max(r['ratio'] for r in rounds):.2f}"
        batch = sum(r["mean_batch_size"] for r in rounds) / len(rounds)
        client = sum(r["cpu"]["client_cores"] for r in rounds) / len(rounds)
        rates = f"{middle['http_per_s']:.0f} | {middle['engine_per_s']:.0f} | {middle['ratio']:.2f} ({ratios})"
        rows.append(f"| `{each['purifier']}` | {each['images']} | {rates} | {batch:.1f} | {client:.2f} |")
    return "\n".join(rows)


def requirements(found: Found) -> str:
    rows = ["| requirement | asked | measured | met |", "|---|---|---|---|"]
    for each in found["checks"]:
        rows.append(
            f"| {each['name']} | {each['required']} | {each['measured']} | {'yes' if each['met'] else '**no**'} |"
        )
    return "\n".join(rows)


def _pair(times: Found | None) -> str:
    return "" if times is None else f"{times['p50']:.1f} / {times['p99']:.1f}"


def draw(found: Found, file: Path) -> None:
    """Goodput against offered load, latency at each load, memory over time."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.6), layout="constrained")
    rates, latency, memory = figure.subplots(1, 3)
    offered = [each["offered_per_s"] for each in found["levels"]]
    rates.plot(offered, [each["goodput_per_s"] for each in found["levels"]], "o-", label="served in time")
    rates.plot(offered, [each["shed"] / each["seconds"] for each in found["levels"]], "s--", label="shed")
    rates.axvline(found["capacity"]["goodput_per_s"], color="grey", linewidth=0.8, label="capacity")
    rates.set(xlabel="offered, requests/s", ylabel="requests/s", ylim=(0, None))
    for each in found["levels"]:
        name = f"{each['load']:.0%} of capacity"
        latency.plot(each["latency_quantiles_ms"], range(101), label=name)
        memory.plot(*zip(*each["memory"]["samples"], strict=True), label=name)
    latency.set(xlabel="latency from the scheduled moment, ms", ylabel="% of the answers", xscale="log")
    memory.set(xlabel="s", ylabel="resident memory, MiB", ylim=(0, None))
    for each in (rates, latency, memory):
        each.legend(frameon=False)
        each.grid(alpha=0.3)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=110)


TABLES: dict[str, Callable[[Found], str]] = {
    "machine": machine,
    "load": load,
    "fairness": fairness,
    "overhead": overhead,
    "requirements": requirements,
}

if __name__ == "__main__":
    main()

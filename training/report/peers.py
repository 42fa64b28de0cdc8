"""The service beside others that wrap the same networks: from the results of `benchmarks.peers`."""

import json
from typing import Any

from training.report.costs import RESULTS

FILE = RESULTS / "peers.json"
OTHERS = {"litserve": "LitServe", "ray": "Ray Serve"}
NOTHING = "*Not measured yet: `python -m benchmarks.peers`.*"


def peers() -> str:
    """Images a second and p99 of each server by purifier and concurrency, and our numbers as shares of the others'."""
    if not FILE.exists():
        return NOTHING
    found = json.loads(FILE.read_text(encoding="utf-8"))
    names = ["ours", *OTHERS.values()]
    shares = [f"ours / {name}: images/s, p99" for name in OTHERS.values()]
    head = ["purifier", "connections", f"images/s: {names[0]}", *names[1:], f"p99, ms: {names[0]}", *names[1:], *shares]
    rows = [" | ".join(_row(row, found["checks"])) for row in found["rows"]]
    lines = [_setup(found), "", f"| {' | '.join(head)} |", "|" + "---|" * len(head), *(f"| {row} |" for row in rows)]
    return "\n".join([*lines, "", _asked(found["checks"])])


def _setup(found: dict[str, Any]) -> str:
    head, plan, hardware = found["header"], found["plan"], found["header"]["hardware"]
    versions = ", ".join(f"{name} {number}" for name, number in head["versions"].items())
    cores = f"{hardware['cores']} cores of {hardware['cpu']}, shared by server and client"
    where = f"{cores}, {hardware['torch_threads']} threads in {hardware['processes']} processes"
    rounds = f"median (lowest to highest) of {plan['rounds']} rounds in turns, {plan['seconds']:g} s each"
    batches = f"Batches of up to {plan['max_batch_size']}"
    return f"{head['date']}, {where} of PyTorch; {versions}. {batches}; {rounds}. In bold what misses its requirement."


def _row(row: dict[str, Any], checks: list[dict[str, Any]]) -> list[str]:
    servers = [row["servers"][name] for name in ("unperturb", *OTHERS)]
    own = [check for check in checks if all(check.get(key) == row[key] for key in ("purifier", "connections"))]
    shares = [", ".join(_share(check) for check in own if check["peer"] == peer) for peer in OTHERS]
    rates = [_spread(each["images_per_s"], ".0f") for each in servers]
    times = [_spread(each["p99_ms"], ".1f") for each in servers]
    return [f"`{row['purifier']}`", str(row["connections"]), *rates, *times, *shares]


def _share(check: dict[str, Any]) -> str:
    text = f"{check['measured']:.2f}"
    return text if check["met"] else f"**{text}**"


def _spread(found: dict[str, Any], digits: str) -> str:
    return f"{found['median']:{digits}} ({found['lowest']:{digits}} to {found['highest']:{digits}})"


def _asked(checks: list[dict[str, Any]]) -> str:
    """Each requirement once, and at how many of its places it is met."""
    kinds = dict.fromkeys((check.get("peer"), check["name"], check["required"]) for check in checks)
    told = []
    for peer, name, required in kinds:
        met = [check["met"] for check in checks if (check.get("peer"), check["name"]) == (peer, name)]
        told.append(f"{name}{f' of {OTHERS[peer]}' if peer else ''} {required}: met {sum(met)} times of {len(met)}")
    return f"Required: {'; '.join(told)}."

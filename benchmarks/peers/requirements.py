"""What is asked of our service beside its peers, and whether it is so."""

from typing import Any

from benchmarks.peers.servers import OURS, PEERS

Found = dict[str, Any]

# Of each peer: so many times its images a second at least, so much of its p99 at most. Ahead of Ray Serve is better in both.
LEAST_RATE = {"litserve": 1.3, "ray": 1.0}
MOST_P99 = {"litserve": 0.5, "ray": 1.0}


def checks(rows: list[Found]) -> list[Found]:
    """Each requirement: where it holds, what it asks, what was measured, whether it is met."""
    made = [check for row in rows for peer in PEERS for check in _against(peer, row)]
    lost = sum(each["lost"] for row in rows for each in row["servers"].values())
    return [*made, _check("no good answer", "0", lost, lost == 0)]


def _against(peer: str, row: Found) -> list[Found]:
    """Of one purifier and concurrency: our numbers as shares of the peer's."""
    ours, theirs = row["servers"][OURS], row["servers"][peer]
    where = {"purifier": row["purifier"], "connections": row["connections"], "peer": peer}
    least, most = LEAST_RATE[peer], MOST_P99[peer]
    rate, p99 = (ours[key]["median"] / theirs[key]["median"] for key in ("images_per_s", "p99_ms"))
    return [
        where | _check("images/s", f">= {least}", round(rate, 3), rate >= least),
        where | _check("p99", f"<= {most}", round(p99, 3), p99 <= most),
    ]


def _check(name: str, required: str, measured: float, met: bool) -> Found:
    return {"name": name, "required": required, "measured": measured, "met": met}


def told(check: Found) -> str:
    """A line about one of `checks`."""
    where = " ".join(str(check[key]) for key in ("purifier", "connections", "peer") if key in check)
    met = "met    " if check["met"] else "NOT MET"
    return f"{met} {where or 'everywhere'}: {check['name']} {check['measured']} ({check['required']})"

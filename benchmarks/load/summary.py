"""Outcomes to numbers."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from benchmarks.load.client import FAILED, Outcome

SHED = (429, 503)
EXPIRED = 504
MIB = 2**20


def percentiles(values: Iterable[float]) -> dict[str, float] | None:
    """p50, p90, p99 and the largest; None of nothing."""
    found = list(values)
    if not found:
        return None
    p50, p90, p99 = (round(float(value), 2) for value in np.percentile(found, [50, 90, 99]))
    return {"p50": p50, "p90": p90, "p99": p99, "max": round(max(found), 2)}


def served(outcomes: Iterable[Outcome]) -> list[Outcome]:
    return [each for each in outcomes if each.status == 200]


def goodput(outcomes: Iterable[Outcome], seconds: float) -> float:
    """Images a second that were classified while requests were still being sent."""
    return round(sum(len(each.batch_sizes) for each in served(outcomes) if each.ended <= seconds) / seconds, 2)


def counts(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """What became of the requests; whatever nobody should get stands in `errors`, by status, 0 for no answer at all."""
    by_status = Counter(each.status for each in outcomes)
    shed = [each for each in outcomes if each.status in SHED]
    expected = {200, *SHED, EXPIRED}
    return {
        "sent": len(outcomes),
        "served": by_status[200],
        "shed": len(shed),
        "shed_without_retry_after": sum(not each.retry_after for each in shed),
        "expired": by_status[EXPIRED],
        "errors": {str(status): n for status, n in sorted(by_status.items()) if status not in expected},
    }


def described(outcomes: Sequence[Outcome], seconds: float) -> dict[str, Any]:
    """Everything about one phase. `seconds`: how long requests were sent."""
    good = served(outcomes)
    refused = [each.latency_ms for each in outcomes if each.status not in (200, EXPIRED, FAILED)]
    return {
        "seconds": seconds,
        **counts(outcomes),
        "goodput_per_s": goodput(outcomes, seconds),
        "latency_ms": percentiles(each.latency_ms for each in good),
        "refusal_ms": percentiles(refused),
        "batch_ms": percentiles(each.batch_ms for each in good),
        "mean_batch_size": mean_batch_size(good),
        "client_late_ms": percentiles(1000 * (each.sent - each.due) for each in outcomes),
        "by_purifier": {name: _of_one(outcomes, name) for name in sorted({each.purifier for each in outcomes})},
        "latency_quantiles_ms": _quantiles([each.latency_ms for each in good]),
    }


def mean_batch_size(good: Sequence[Outcome]) -> float | None:
    sizes = [size for each in good for size in each.batch_sizes]
    return round(len(sizes) / sum(1 / size for size in sizes), 2) if sizes else None


def memory(samples: Sequence[tuple[float, int]]) -> dict[str, Any]:
    """Resident memory; growth is that of a straight line through the second half of the samples, over that half."""
    seconds, mib = np.array([s[0] for s in samples]), np.array([s[1] for s in samples]) / MIB
    half = len(samples) // 2
    growth = np.polyfit(seconds[half:], mib[half:], 1)[0] * (seconds[-1] - seconds[half]) if len(samples) > 4 else 0.0
    return {
        "rss_mib_max": round(float(mib.max()), 1),
        "rss_mib_first": round(float(mib[0]), 1),
        "second_half_growth_mib": round(float(growth), 2),
        "samples": [[round(float(s), 1), round(float(m), 1)] for s, m in zip(seconds, mib, strict=True)],
    }


def _of_one(outcomes: Sequence[Outcome], purifier: str) -> dict[str, Any]:
    own = [each for each in outcomes if each.purifier == purifier]
    good = served(own)
    return {
        **counts(own),
        "latency_ms": percentiles(each.latency_ms for each in good),
        "batch_ms": percentiles(each.batch_ms for each in good),
        "mean_batch_size": mean_batch_size(good),
    }


def _quantiles(values: Sequence[float]) -> list[float]:
    """0 to 100 %, for a plot; empty of nothing."""
    return [round(float(value), 2) for value in np.percentile(values, range(101))] if values else []

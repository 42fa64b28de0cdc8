"""The log format. Nothing is configured on import; `serve` calls `configure` once."""

import logging
import sys
import warnings

FORMAT = "%(asctime)s %(levelname)-7s %(name)s %(message)s"


def configure(level: str) -> None:
    """Log to stderr from `level` ("debug", "info", "warning", "error") on; a second call replaces the first."""
    logging.basicConfig(stream=sys.stderr, level=level.upper(), format=FORMAT, force=True)
    # Damaged metadata in a sender's file is no news to an operator, and would be a way to fill the log.
    warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
    # We say ourselves where we listen and what was asked.
    logging.getLogger("uvicorn").setLevel(logging.WARNING)


def pairs(**facts: object) -> str:
    """Facts for a log line, "a=1 b=2.5"; floats get one decimal."""
    return " ".join(
        f"{key}={value:.1f}" if isinstance(value, float) else f"{key}={value}" for key, value in facts.items()
    )

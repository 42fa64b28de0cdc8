"""The log formats. Nothing is configured on import; `serve` calls `configure` once.

Both formats hold the same facts, one line a record, and nothing that a stranger typed can end a line or begin one.
"""

import json
import logging
import sys
import warnings
from contextlib import nullcontext, suppress
from datetime import UTC, datetime
from typing import Literal, TextIO

FORMAT = "%(asctime)s %(levelname)-7s %(name)s %(message)s"


def configure(level: str, log_format: Literal["text", "json"] = "text") -> None:
    """Log to stderr from `level` ("debug", "info", "warning", "error") on; a second call replaces the first."""
    handler = Lines(sys.stderr)
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter(FORMAT))
    logging.basicConfig(handlers=[handler], level=level.upper(), force=True)
    # Damaged metadata in a sender's file is no news to an operator, and would be a way to fill the log.
    warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
    # We say ourselves where we listen and what was asked; and Pillow's debugging prints parts of the image.
    for name in ("uvicorn", "PIL"):
        logging.getLogger(name).setLevel(logging.WARNING)


def gather(on: bool) -> None:
    """Whether lines may wait for the next `flush`, for the few others that come until then. Off until asked for."""
    for handler in _handlers():
        handler.gathers = on
        handler.flush()


def flush() -> None:
    """Write the lines that wait."""
    for handler in _handlers():
        handler.flush()


def _handlers() -> list["Lines"]:
    return [each for each in logging.getLogger().handlers if isinstance(each, Lines)]


class Lines(logging.StreamHandler[TextIO]):
    """Writes lines at once, or while it `gathers` many together: each write gives Python's lock away, and whoever answers
    requests would wait for it every time. Warnings and worse never wait.
    """

    # As many lines as wait at most.
    most = 1000

    def __init__(self, stream: TextIO) -> None:
        self.gathers = False
        self._waiting: list[str] = []
        super().__init__(stream)

    def emit(self, record: logging.LogRecord) -> None:
        """See logging."""
        try:
            self._waiting.append(self.format(record) + self.terminator)
        except Exception:  # the border of logging: a line that can't be made fails nobody's request
            self.handleError(record)
        if not self.gathers or record.levelno >= logging.WARNING or len(self._waiting) >= self.most:
            self.flush()

    def flush(self) -> None:
        """Write what waits. What nobody can read any more, since stderr is closed or its reader gone, is let go."""
        with self.lock or nullcontext(), suppress(OSError, ValueError):
            text = "".join(self._waiting)
            self._waiting.clear()
            if text:
                self.stream.write(text)
            super().flush()


def event(log: logging.Logger, level: int, name: str, /, **facts: object) -> None:
    """Log facts: `name a=1 b=2.5` as text, a key for each as JSON. Those that are None are left out."""
    if log.isEnabledFor(level):
        known = {key: value for key, value in facts.items() if value is not None}
        log.log(level, "%s %s", name, pairs(**known), extra={"event": name, "facts": known})


def pairs(**facts: object) -> str:
    """Facts for a log line, "a=1 b=2.5"; floats get one decimal, and what isn't one plain word is quoted."""
    return " ".join(f"{key}={_word(value)}" for key, value in facts.items())


class TextFormatter(logging.Formatter):
    """For people. A traceback stands below its line, indented, so that nothing in it can pass for a record."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return _printable(super().formatMessage(record))

    def formatException(self, ei: "logging._SysExcInfoType") -> str:
        return "\n".join(f"    {_printable(line)}" for line in super().formatException(ei).split("\n"))


class JsonFormatter(logging.Formatter):
    """For programs: an object a line, with `event`'s facts beside time, level, logger and message."""

    def format(self, record: logging.LogRecord) -> str:
        facts: dict[str, object] = getattr(record, "facts", {})
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": getattr(record, "event", None) or record.getMessage(),
            **{key: round(value, 3) if isinstance(value, float) else value for key, value in facts.items()},
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def _word(value: object) -> str:
    text = f"{value:.1f}" if isinstance(value, float) else str(value)
    plain = text and text.isprintable() and " " not in text and '"' not in text
    return text if plain else json.dumps(text)


def _printable(text: str) -> str:
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)

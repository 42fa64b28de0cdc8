"""A second uvicorn in the event loop of the first, on this machine only: the admin's port or Unix socket."""

import asyncio
import errno
import logging
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import uvicorn

from service.settings import Settings

log = logging.getLogger(__name__)


def bind(settings: Settings) -> socket.socket | None:
    """Take the admin's address; None where the settings want no admin.

    Raises:
        SystemExit: the address is taken.
    """
    try:
        if settings.admin_port is not None:
            return socket.create_server(("127.0.0.1", settings.admin_port))
        if settings.admin_socket is not None:
            return _bind_unix(settings.admin_socket)
    except OSError as error:
        where = settings.admin_socket or f"127.0.0.1:{settings.admin_port}"
        raise SystemExit(f"the admin can't listen on {where}: {error}") from error
    return None


def _bind_unix(path: Path) -> socket.socket:
    _remove_stale(path)
    listener = socket.socket(socket.AF_UNIX)
    try:
        listener.bind(str(path))
        path.chmod(0o600)  # before it listens, so nobody ever connects with other rights
    except OSError:
        listener.close()
        raise
    return listener


def _remove_stale(path: Path) -> None:
    """A process that was killed leaves its socket behind."""
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except FileNotFoundError:
            return
        except ConnectionRefusedError:
            if path.is_socket():  # anything else stays, and binding says so
                path.unlink()
            return
    raise OSError(errno.EADDRINUSE, "another process listens there")


class AdminServer(uvicorn.Server):
    """Started and stopped by the main server, which alone hears signals."""

    def __init__(self, config: uvicorn.Config, listener: socket.socket) -> None:
        super().__init__(config)
        self._listener, self._address = listener, listener.getsockname()
        self._task: asyncio.Task[None] | None = None

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave them to the main server."""
        yield

    def start(self) -> None:
        """Serve until `stop`."""
        self._task = asyncio.create_task(self.serve(sockets=[self._listener]))
        unix = isinstance(self._address, str)
        log.info("admin on %s", f"unix:{self._address}" if unix else f"http://{self._address[0]}:{self._address[1]}")

    async def stop(self) -> None:
        """Take nothing more, finish what is under way."""
        self.should_exit = True
        if self._task is not None:
            await self._task
        if isinstance(self._address, str):
            Path(self._address).unlink(missing_ok=True)

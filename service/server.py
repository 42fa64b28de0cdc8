"""Run the service under uvicorn."""

import asyncio
import logging
import math
import signal
import socket
import time
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI
from prometheus_client import disable_created_metrics

from models.catalog import Catalog
from service import admin_server, crew, logs
from service.admin import create_admin
from service.app import create_app
from service.engine import Engine
from service.settings import Settings
from service.threads import spare_collector, use_cores
from service.warming import warm_others

log = logging.getLogger(__name__)

# How long an idle connection stays open: longer than the usual proxies keep theirs (60 s), for who closes first while the other
# sends makes a request fail.
KEEP_ALIVE_S = 75


def serve(settings: Settings) -> None:
    """Serve until SIGINT or SIGTERM, then finish what is under way.

    Raises:
        CheckpointError: a zoo folder is unusable; better no service than one that is never ready.
        SystemExit: the address is taken; or status 0, after a SIGTERM.
    """
    signal.signal(signal.SIGTERM, _leave)
    logs.configure(settings.log_level, settings.log_format)
    disable_created_metrics()  # a second series for each counter, of no use to Prometheus
    log.info("settings %s", settings.model_dump_json())
    crew.prepare(settings)
    use_cores(1)  # before a checkpoint is loaded, see there
    app = create_app(settings, Catalog.open(settings.zoo, settings.torch_device(), settings.precision))
    spare_collector()  # while the helpers still import; once the service is ready it would hold up the first request
    build_server(settings, app).run()


def _leave(_signal: int, _frame: FrameType | None) -> None:
    """SIGTERM outside of uvicorn's hands: during the start, and a second one, passed on once it has stopped. No failures."""
    raise SystemExit(0)


def build_server(settings: Settings, app: FastAPI) -> uvicorn.Server:
    """A server that says in one line where it listens; with the admin's beside it where the settings want one.

    Raises:
        SystemExit: the admin's address is taken.
    """
    return _Server(_config(settings, app, host=settings.host, port=settings.port), settings)


def _config(settings: Settings, app: FastAPI, **more: Any) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        ws="none",
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        # No request outlives its deadline, so nothing needs longer than this.
        timeout_graceful_shutdown=math.ceil(settings.timeout_ms / 1000) + 1,
        **more,
    )


class _Server(uvicorn.Server):
    """Leaves politely: SIGTERM turns /readyz red; after a delay nothing new is taken, and what was taken is finished."""

    def __init__(self, config: uvicorn.Config, settings: Settings) -> None:
        super().__init__(config)
        self._settings = settings
        self._leaves_at = math.inf
        self._warming: asyncio.Task[None] | None = None
        self._admin: admin_server.AdminServer | None = None
        self._admin_listener = admin_server.bind(settings)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first SIGTERM starts the delay, which ends with exit code 0; another signal ends it at once."""
        if sig != signal.SIGTERM or self._leaves_at < math.inf:
            super().handle_exit(sig, frame)
            return
        self._leaves_at = time.monotonic() + self._settings.shutdown_delay_ms / 1000
        if (engine := self._engine()) is not None:
            engine.drain()

    async def on_tick(self, counter: int) -> bool:
        """Whether to leave; called ten times a second."""
        logs.flush()
        engine = self._engine() if self._settings.warm_all and self._warming is None else None
        if engine is not None and engine.unready() is None:
            self._warming = asyncio.create_task(warm_others(engine))
        if time.monotonic() >= self._leaves_at:
            self.should_exit = True
        return await super().on_tick(counter)

    def _engine(self) -> Engine | None:
        return getattr(self.config.app.state, "engine", None)  # type: ignore[union-attr]

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for address in self.addresses():
            log.info("listening on %s", address)
        if self._admin_listener is not None:
            state = self.config.app.state  # type: ignore[union-attr]
            admin = create_admin(state.engine, state.metrics)
            config = _config(self._settings, admin, lifespan="off")
            self._admin = admin_server.AdminServer(config, self._admin_listener)
            self._admin.start()
        logs.gather(True)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        logs.gather(False)  # nobody ticks from here on
        if self._warming is not None:
            self._warming.cancel()
            await asyncio.gather(self._warming, return_exceptions=True)
        if self._admin is not None:
            self._admin.should_exit = True
        await super().shutdown(sockets)
        if self._admin is not None:
            await self._admin.stop()

    def addresses(self) -> list[str]:
        """Where it listens, with the port that was really taken."""
        names = [each.getsockname() for server in getattr(self, "servers", []) for each in server.sockets]
        return [f"http://[{name[0]}]:{name[1]}" if ":" in name[0] else f"http://{name[0]}:{name[1]}" for name in names]

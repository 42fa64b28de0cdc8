"""API keys and their rate limits. Off until keys are set; then everything but the probes needs one.

A key is a line `name:sha256`, or `name:sha256:rate` with a rate in images a second; `unperturb key` makes both. Only the
hash is kept here. Keys are 256 random bits, which nobody finds by trying, so a fast hash without salt does: slow ones
protect passwords that people choose.

**What a request costs**: every request but GET and HEAD costs its key one image when it arrives, whatever becomes of it;
a batch of n costs the other n - 1 once it has been read, and each vote but the first one more, before any work
(`charge`). A key saves up
`rate_limit_burst_s` seconds of its rate and never less than one image.
"""

import hashlib
import hmac
import math
import re
import secrets
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from service.errors import Problem, RateLimited, TooManyImages, Unauthorized
from service.middleware import respond
from service.settings import Settings

# Whoever probes the process has no key and learns nothing but its health.
PROBES = frozenset({"/livez", "/readyz", "/v2/health/live", "/v2/health/ready"})
METRICS = "/metrics"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_HASH = re.compile(r"[0-9a-f]{64}")
_FREE_METHODS = ("GET", "HEAD")
MAX_RATE = 1e6


class KeysError(ValueError):
    """The keys that are set can't be used; says which one and why, and never repeats it: it may be a key in the open."""


@dataclass(frozen=True)
class ApiKey:
    """One line. rate: images a second, None without a limit."""

    name: str
    sha256: str
    rate: float | None = None

    @classmethod
    def generate(cls, name: str, rate: float | None = None) -> "tuple[str, ApiKey]":
        """A new key in the open, and what is kept of it."""
        key = secrets.token_urlsafe(32)
        return key, cls.parse(cls(name, _hash(key.encode()), rate).line())

    @classmethod
    def parse(cls, line: str) -> "ApiKey":
        """Of `name:sha256` or `name:sha256:rate`.

        Raises:
            KeysError.
        """
        name, _, rest = line.partition(":")
        sha256, *rate = rest.split(":")
        if len(rate) > 1:
            raise KeysError("more than three parts; expected name:sha256 or name:sha256:rate")
        if not _NAME.fullmatch(name):
            raise KeysError("the name must be 1 to 64 letters, digits, dots, dashes or underscores")
        if not _HASH.fullmatch(sha256):
            raise KeysError("the second part must be a SHA-256 as 64 lower-case hex digits, never the key itself")
        return cls(name, sha256, _rate(rate[0]) if rate else None)

    def line(self) -> str:
        """As it stands in the file."""
        return f"{self.name}:{self.sha256}" + (f":{self.rate:.12g}" if self.rate is not None else "")


class Bucket:
    """Tokens that come at `rate` a second, up to `capacity`, which it starts with. clock: seconds, for tests."""

    def __init__(self, rate: float, capacity: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.rate, self.capacity = rate, capacity
        self._clock, self._tokens, self._at = clock, capacity, clock()

    def take(self, count: int) -> bool:
        """Take `count` if so many are there, else none."""
        enough = self.missing_s(count) < 1e-9  # who waits exactly as long as told is not refused for a rounding error
        if enough:
            self._tokens -= count
        return enough

    def missing_s(self, count: int) -> float:
        """Seconds until `count` are there; 0 if they are."""
        now = self._clock()
        self._tokens = min(self.capacity, self._tokens + self.rate * (now - self._at))
        self._at = now
        return max(0.0, (count - self._tokens) / self.rate)


@dataclass(frozen=True)
class Client:
    """Who asks: a key, and what is left of its share; no bucket where it has no limit."""

    key: ApiKey
    bucket: Bucket | None

    def charge(self, images: int, attempt: int) -> None:
        """Take `images` from the share. attempt: what the same request will cost in all when it comes again.

        Raises:
            RateLimited: with the time until it can succeed.
            TooManyImages: it never can.
        """
        if self.bucket is None or self.bucket.take(images):
            return
        if attempt > self.bucket.capacity:
            raise TooManyImages(int(self.bucket.capacity))
        raise RateLimited(self.bucket.rate, self.bucket.missing_s(attempt))


def charge(request: Request, images: int) -> None:
    """What a request that purifies several times costs beyond the one that it paid when it arrived. Call it before any work.

    Raises:
        RateLimited, TooManyImages.
    """
    client: Client | None = getattr(request.state, "client", None)
    if client is not None and images > 1:
        client.charge(images - 1, attempt=images)


class Keys:
    """All keys that are known."""

    def __init__(self, keys: Iterable[ApiKey], burst_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._clients = [
            Client(key, None if key.rate is None else Bucket(key.rate, max(1.0, key.rate * burst_s), clock))
            for key in keys
        ]

    def client(self, headers: Headers) -> Client:
        """Whose key it is that came, as X-API-Key or as Authorization: Bearer.

        Raises:
            Unauthorized.
        """
        scheme, _, bearer = headers.get("authorization", "").partition(" ")
        came = headers.get("x-api-key") or (bearer.strip() if scheme.lower() == "bearer" else "")
        digest = _hash(came.encode("latin-1"))  # headers are decoded so
        # All are compared, in a time that doesn't depend on how much of a hash is right.
        found = [client for client in self._clients if hmac.compare_digest(client.key.sha256, digest)]
        if not came or not found:
            raise Unauthorized(bool(came))
        return found[0]

    def names(self) -> list[str]:
        """For the log."""
        return [client.key.name for client in self._clients]


class KeyGate:
    """Lets nothing through without a key but the probes: routes that are added later are closed from the start."""

    def __init__(self, app: ASGIApp, keys: Keys, open_metrics: bool) -> None:
        self._app, self._keys = app, keys
        self._open = PROBES | {METRICS} if open_metrics else PROBES

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in self._open:
            try:
                self._admit(scope)
            except Problem as problem:
                return await respond(Request(scope), problem)(scope, receive, send)
        await self._app(scope, receive, send)

    def _admit(self, scope: Scope) -> None:
        client = scope["state"]["client"] = self._keys.client(Headers(scope=scope))
        scope["state"]["facts"]["key"] = client.key.name
        if scope["method"] not in _FREE_METHODS:
            client.charge(1, attempt=1)


def load(settings: Settings) -> Keys | None:
    """The keys of the settings; None where none are set, and nothing asks for one.

    Raises:
        KeysError: one can't be used, or keys were wanted and there are none: better no service than an open one.
        OSError: the file can't be read.
    """
    if settings.api_keys_file is None and settings.api_keys is None:
        return None
    found: dict[str, ApiKey] = {}
    for where, line in _lines(settings):
        try:
            key = ApiKey.parse(line)
        except KeysError as error:
            raise KeysError(f"{where}: {error}") from None
        twin = next((known for known in found.values() if known.name == key.name or known.sha256 == key.sha256), None)
        if twin is not None:
            raise KeysError(f"{where}: the same name or hash as the key {twin.name!r} before it")
        found[key.name] = key
    if not found:
        raise KeysError("API keys are wanted but there are none; unset api_keys and api_keys_file to do without")
    return Keys(found.values(), settings.rate_limit_burst_s)


def _lines(settings: Settings) -> Iterator[tuple[str, str]]:
    """Each key's line and where it stands."""
    if settings.api_keys_file is not None:
        text = settings.api_keys_file.read_text(encoding="utf-8", errors="replace")
        for number, line in enumerate(text.splitlines(), start=1):
            if line.strip() and not line.lstrip().startswith("#"):
                yield f"{settings.api_keys_file}, line {number}", line.strip()
    if settings.api_keys is not None:
        entries = settings.api_keys.get_secret_value().replace(",", " ").split()
        yield from ((f"api_keys, entry {number}", entry) for number, entry in enumerate(entries, start=1))


def _hash(key: bytes) -> str:
    return hashlib.sha256(key).hexdigest()


def _rate(text: str) -> float:
    try:
        rate = float(text)
    except ValueError:
        rate = math.nan
    if not 0 < rate <= MAX_RATE:
        raise KeysError(f"the rate must be a number of images a second above 0 and at most {MAX_RATE:g}")
    return rate

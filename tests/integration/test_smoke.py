"""scripts/smoke.sh against a real service, and against one that gives a single wrong answer."""

import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "smoke.sh"
Wrong = Callable[[httpx.Response], httpx.Response]


def smoke(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(SCRIPT), *arguments], capture_output=True, text=True, check=False)


@contextmanager
def before(url: str, path: str, change: Wrong) -> Iterator[str]:
    """A server that passes on what the one at `url` answers, changed where the request is for `path`."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            headers = {"Content-Type": self.headers.get("Content-Type", "")}
            answer = httpx.request(self.command, url + self.path, content=body, headers=headers)
            if self.path == path:
                answer = change(answer)
            self.send_response(answer.status_code)
            self.send_header("Content-Type", answer.headers["Content-Type"])
            self.send_header("Content-Length", str(len(answer.content)))
            self.end_headers()
            self.wfile.write(answer.content)

        do_POST = do_GET

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def replaced(status: int, type: str, text: str) -> Wrong:
    return lambda _: httpx.Response(status, headers={"Content-Type": type}, text=text)


def test_a_service_that_works_passes(url: str) -> None:
    found = smoke(url + "/")
    assert (found.returncode, found.stderr) == (0, ""), found.stdout
    *steps, end = found.stdout.splitlines()
    assert {step.split()[0] for step in steps} == {"ok"}
    assert len(steps) == 11
    assert end == f"Every answer of {url} is right."


PROBLEM = replaced(503, "application/problem+json", '{"code": "not-ready", "detail": "warming"}')


@pytest.mark.parametrize(
    ("path", "change", "step"),
    [
        ("/livez", PROBLEM, "live"),
        ("/readyz", PROBLEM, "ready"),
        ("/classify?purifier=soap-lc&top_k=2", PROBLEM, "classify, purified"),
        (
            "/classify?purifier=none",
            replaced(200, "application/json", '{"purifier":"soap-lc"}'),
            "classify, as it came",
        ),
        ("/classify", PROBLEM, "classify a form"),
        ("/classify/batch", replaced(200, "application/json", '{"items":[{"result":{}}]}'), "classify a batch"),
        ("/purify?purifier=soap-lc", replaced(200, "image/png", "GIF"), "purify"),
        ("/purifiers", replaced(200, "application/json", "[]"), "purifiers"),
        ("/models", replaced(200, "text/html", "cifar10"), "models"),
        ("/metrics", replaced(200, "text/plain", "# TYPE unperturb_requests_total counter"), "metrics"),
    ],
)
def test_the_first_wrong_answer_ends_it_and_is_shown(url: str, path: str, change: Wrong, step: str) -> None:
    with before(url, path, change) as server:
        found = smoke(server)
    assert found.returncode == 1
    passed, failed = found.stdout.split("FAILED  ")
    assert failed.startswith(f"{step}: expected ")
    assert f"ok      {step}" not in passed
    assert change(httpx.Response(200)).text in failed


def test_a_bad_image_must_be_refused(url: str) -> None:
    def generous(answer: httpx.Response) -> httpx.Response:
        return answer if answer.status_code == 200 else replaced(200, "application/json", '"a cat"')(answer)

    with before(url, "/classify", generous) as server:
        found = smoke(server)
    assert found.returncode == 1
    assert "FAILED  a file that is no image: expected 400 application/problem+json" in found.stdout
    assert '"a cat"' in found.stdout


def test_nobody_there_is_told_with_curls_reason() -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        url = f"http://127.0.0.1:{server.server_port}"
    found = smoke(url)
    assert (found.returncode, found.stderr) == (1, "")
    assert found.stdout.startswith(f"FAILED  live: no answer from {url}/livez: curl: (7)")

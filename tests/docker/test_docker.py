"""The image and the compose file keep their promises. No Docker needed: the files are read, and what they run is run here."""

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.settings import Settings

ROOT = Path(__file__).parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile as (instruction, arguments), comments dropped and continued lines joined."""
    text = (ROOT / "docker" / "Dockerfile").read_text(encoding="utf-8")
    text = re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE).replace("\\\n", " ")
    pairs = [line.split(maxsplit=1) for line in text.splitlines() if line.strip()]
    return [(instruction, arguments) for instruction, arguments in pairs]


def final_stage() -> list[tuple[str, str]]:
    found = instructions()
    start = max(i for i, (instruction, _) in enumerate(found) if instruction == "FROM")
    return found[start:]


def arguments(stage: list[tuple[str, str]], instruction: str) -> list[str]:
    return [found for name, found in stage if name == instruction]


def image_settings() -> dict[str, str]:
    """The UNPERTURB_... variables of the image."""
    return dict(pair.split("=", 1) for env in arguments(final_stage(), "ENV") for pair in env.split() if "=" in pair)


@pytest.mark.parametrize("service", SERVICES)
def test_services_are_hardened(service: str) -> None:
    found = SERVICES[service]
    assert found["read_only"] is True
    assert found["cap_drop"] == ["ALL"]
    assert found["security_opt"] == ["no-new-privileges:true"]
    assert [mount.split(":")[0] for mount in found["tmpfs"]] == ["/tmp"]
    assert not {"privileged", "cap_add", "volumes", "user"} & set(found)


@pytest.mark.parametrize("service", SERVICES)
def test_services_answer_on_port_8000_and_come_back(service: str) -> None:
    assert SERVICES[service]["ports"] == ["8000:8000"]
    assert SERVICES[service]["restart"] == "unless-stopped"


@pytest.mark.parametrize("service", SERVICES)
def test_shutdown_waits_for_running_requests(service: str) -> None:
    assert int(SERVICES[service]["stop_grace_period"].removesuffix("s")) > Settings().timeout_ms / 1000


def test_compose_up_starts_the_cpu_service_alone() -> None:
    assert [name for name, service in SERVICES.items() if "profiles" not in service] == ["cpu"]
    assert SERVICES["gpu"]["profiles"] == ["gpu"]


def test_builds_use_the_dockerfile() -> None:
    known = {argument.split("=")[0] for argument in arguments(instructions(), "ARG")}
    for service in SERVICES.values():
        build = service["build"]
        assert (ROOT / build["context"] / build["dockerfile"]).samefile(ROOT / "docker" / "Dockerfile")
        assert {argument.split("=")[0] for argument in build["args"]} <= known


@pytest.mark.parametrize("where", ["image", *SERVICES])
def test_settings_exist_and_repeat_no_default(where: str) -> None:
    given = image_settings() if where == "image" else SERVICES[where].get("environment", {})
    settings = {name: value for name, value in given.items() if name.startswith("UNPERTURB_")}
    for name, value in settings.items():
        field = Settings.model_fields[name.removeprefix("UNPERTURB_").lower()]
        assert str(value) != str(field.default), name


def test_image_listens_on_all_its_addresses() -> None:
    assert image_settings()["UNPERTURB_HOST"] == "0.0.0.0"
    assert arguments(final_stage(), "EXPOSE") == [str(Settings.model_fields["port"].default)]


def test_image_runs_the_service_as_nobody_in_particular() -> None:
    (user,) = arguments(final_stage(), "USER")
    assert all(int(part) >= 1000 for part in user.split(":"))
    (entrypoint,), (command,) = arguments(final_stage(), "ENTRYPOINT"), arguments(final_stage(), "CMD")
    assert json.loads(entrypoint) + json.loads(command) == ["unperturb", "serve"]


def test_image_takes_the_environment_and_the_healthcheck_only() -> None:
    copied = arguments(final_stage(), "COPY")
    assert copied == [
        "--from=build /opt/unperturb /opt/unperturb",
        "docker/healthcheck.py /opt/unperturb/healthcheck.py",
    ]


def test_image_is_made_of_what_serving_needs() -> None:
    copied = {source for found in arguments(instructions(), "COPY") for source in found.split()[:-1]}
    packages = {source for source in copied if (ROOT / source / "__init__.py").exists()}
    assert packages == {"models", "service", "unperturb"}


def test_dockerignore_lets_in_exactly_what_is_copied() -> None:
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    allowed = {line.removeprefix("!") for line in lines if line.startswith("!")}
    copied = {
        source for found in arguments(instructions(), "COPY") if "--from" not in found for source in found.split()[:-1]
    }
    assert "*" in lines
    assert allowed == copied


def test_healthcheck_is_wired() -> None:
    (healthcheck,) = arguments(final_stage(), "HEALTHCHECK")
    assert json.loads(healthcheck.split("CMD", 1)[1]) == ["python", "/opt/unperturb/healthcheck.py"]


@contextmanager
def answering(status: int) -> Iterator[int]:
    """A server that answers /readyz with `status` and everything else with 404; its port."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/readyz" else 404)
            self.end_headers()
            self.wfile.write(b"loading")

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


def healthcheck(port: int) -> subprocess.CompletedProcess[str]:
    # A proxy is what Docker's client configuration may put into every container.
    env = {**os.environ, "UNPERTURB_PORT": str(port), "http_proxy": "http://127.0.0.1:9"}
    command = [sys.executable, str(ROOT / "docker" / "healthcheck.py")]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False)


def test_healthcheck_is_content_with_a_ready_service() -> None:
    with answering(200) as port:
        assert healthcheck(port).returncode == 0


def test_healthcheck_tells_why_a_service_is_not_ready() -> None:
    with answering(503) as port:
        found = healthcheck(port)
    assert found.returncode == 1
    assert found.stderr == "503: loading\n"


def test_healthcheck_tells_that_nobody_answers() -> None:
    with answering(200) as port:
        pass
    found = healthcheck(port)
    assert found.returncode == 1
    assert found.stderr.startswith("no answer: ")


def test_serving_works_without_the_training_package() -> None:
    code = (
        "import sys; sys.modules['training'] = None; sys.argv = ['unperturb', 'serve', '--help']\n"
        "import service.server\n"
        "from unperturb.cli import main; main()"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    assert "--port" in re.sub(r"\x1b\[[0-9;]*m", "", found.stdout)

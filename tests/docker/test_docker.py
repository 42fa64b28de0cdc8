"""The image and the compose file keep their promises. No Docker needed: the files are read, and what they run is run here."""

import json
import os
import re
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.settings import Settings

ROOT = Path(__file__).parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = {name: service for name, service in SERVICES.items() if "build" in service}
THEIRS = {name: service for name, service in SERVICES.items() if "build" not in service}


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
    assert not {"privileged", "cap_add", "user", "network_mode"} & set(found)
    assert (found["restart"], found["logging"]) == ("unless-stopped", {"driver": "local"})


@pytest.mark.parametrize("service", OURS)
def test_the_service_answers_on_port_8000_and_keeps_nothing(service: str) -> None:
    assert OURS[service]["ports"] == ["8000:8000"]
    assert "volumes" not in OURS[service]


@pytest.mark.parametrize("service", THEIRS)
def test_monitoring_is_reached_from_this_machine_alone(service: str) -> None:
    assert all(port.startswith("127.0.0.1:") for port in THEIRS[service]["ports"])


@pytest.mark.parametrize("service", THEIRS)
def test_monitoring_writes_to_its_own_volume_only(service: str) -> None:
    mounts = [mount.split(":") for mount in THEIRS[service]["volumes"]]
    assert [mount[0] for mount in mounts if mount[2:] != ["ro"]] == [service]
    assert service in COMPOSE["volumes"]
    assert all((ROOT / mount[0]).is_dir() for mount in mounts if mount[2:] == ["ro"])


@pytest.mark.parametrize("service", THEIRS)
def test_images_of_others_are_pinned(service: str) -> None:
    assert re.fullmatch(r"[\w/]+:v?\d+\.\d+\.\d+", THEIRS[service]["image"])


@pytest.mark.parametrize("service", OURS)
def test_shutdown_waits_for_running_requests(service: str) -> None:
    assert int(OURS[service]["stop_grace_period"].removesuffix("s")) > Settings().timeout_ms / 1000


@pytest.mark.parametrize("service", OURS)
def test_shutdown_is_heard_from_the_first_moment(service: str) -> None:
    """Python takes signals only once it has started; process 1 ignores them until then."""
    assert OURS[service]["init"] is True
    assert arguments(final_stage(), "STOPSIGNAL") == []  # Docker's default is the SIGTERM that the service expects


def test_compose_up_starts_the_cpu_service_alone() -> None:
    assert {name: service.get("profiles") for name, service in SERVICES.items()} == {
        "cpu": None,
        "gpu": ["gpu"],
        "prometheus": ["monitoring"],
        "grafana": ["monitoring"],
    }


def test_compose_up_demands_no_variable() -> None:
    """Compose fills in the whole file before it looks at profiles: `${X:?}` would be asked of everybody."""
    text = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
    code = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    assert re.findall(r"(?<!\$)\$\{[^}]*\?[^}]*\}", "\n".join(code)) == []


def grafana_start(**env: str) -> subprocess.CompletedProcess[str]:
    """Grafana's entrypoint, run as Compose would hand it over, with an echo in place of Grafana."""
    command = [part.replace("$$", "$").replace("/run.sh", "echo started") for part in SERVICES["grafana"]["entrypoint"]]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("env", [{}, {"GF_SECURITY_ADMIN_PASSWORD": ""}])
def test_grafana_refuses_to_start_without_a_password(env: dict[str, str]) -> None:
    found = grafana_start(**env)
    assert (found.returncode != 0, found.stdout) == (True, "")
    assert "put GRAFANA_PASSWORD=... into .env" in found.stderr


def test_grafana_starts_with_the_password_that_is_given_and_for_nobody_else() -> None:
    assert grafana_start(GF_SECURITY_ADMIN_PASSWORD="a b $c").stdout == "started\n"
    given = SERVICES["grafana"]["environment"]
    assert given["GF_SECURITY_ADMIN_PASSWORD"] == "${GRAFANA_PASSWORD:-}"
    assert given["GF_AUTH_ANONYMOUS_ENABLED"] == "false"


def test_builds_use_the_dockerfile() -> None:
    known = {argument.split("=")[0] for argument in arguments(instructions(), "ARG")}
    for service in OURS.values():
        build = service["build"]
        assert (ROOT / build["context"] / build["dockerfile"]).samefile(ROOT / "docker" / "Dockerfile")
        assert {argument.split("=")[0] for argument in build["args"]} <= known


@pytest.mark.parametrize("where", ["image", *OURS])
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


def test_image_adds_no_program_to_the_slim_python() -> None:
    """What compiles and installs stays in the first stage; of pip the last one only gets rid."""
    assert len(arguments(instructions(), "FROM")) == 2
    assert arguments(final_stage(), "FROM")[0].endswith("-slim")
    (run,) = arguments(final_stage(), "RUN")
    assert [command.split()[0] for command in run.split("&&")] == ["pip", "useradd"]
    assert run.startswith("pip uninstall --yes")


def build_code(part: str) -> str:
    """The Python that a RUN of the Dockerfile hands to `python -c`: the one that has `part` in it."""
    found = [code for run in arguments(instructions(), "RUN") for code in re.findall(r"-c '(.*?)'", run)]
    (code,) = (code for code in found if part in code)
    return code


def test_build_installs_what_the_package_declares() -> None:
    command = [sys.executable, "-c", build_code("tomllib")]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert found.splitlines() == project["dependencies"]


@pytest.mark.parametrize(("build", "flavour"), [("None", "cpu"), ("'13.0'", "cuda")])
def test_build_stops_at_the_wrong_pytorch(build: str, flavour: str, tmp_path: Path) -> None:
    torch = f"from types import SimpleNamespace\n__version__, version = '2', SimpleNamespace(cuda={build})\n"
    (tmp_path / "torch.py").write_text(torch, encoding="utf-8")
    for wanted in ("any", "cpu", "cuda"):
        command = [sys.executable, "-c", build_code("torch"), wanted]
        found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        stops = wanted not in ("any", flavour)
        assert found.stderr == f"FLAVOUR={wanted}, but PyTorch 2 is a {flavour} build\n" * stops
        assert found.returncode == stops


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


def distributions(requirements: list[str]) -> set[str]:
    return {re.split(r"[^\w-]", each)[0].lower() for each in requirements}


def test_serving_needs_neither_training_nor_the_extras() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = distributions([each for extra in project["optional-dependencies"].values() for each in extra])
    extras -= distributions(project["dependencies"]) | {"unperturb"}
    provided = {module: {name.lower() for name in by} for module, by in packages_distributions().items()}
    absent = {"training"} | {module for module, by in provided.items() if by <= extras}
    assert {"matplotlib", "pytest", "yaml"} <= absent
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({absent})); sys.argv = ['unperturb', 'serve', '--help']\n"
        "import service.server\n"
        "from unperturb.cli import main; main()"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    assert "--port" in re.sub(r"\x1b\[[0-9;]*m", "", found.stdout)

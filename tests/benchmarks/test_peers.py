"""The comparison with other servers: who is measured when, what is asked, what the table says. Without the peers themselves."""

import json
import os
import sys
from collections import Counter
from pathlib import Path

import psutil
import pytest

from benchmarks.peers import __main__ as benchmark
from benchmarks.peers import environment, requirements, servers
from benchmarks.peers.network import Network
from benchmarks.peers.servers import OURS, SERVERS, Peer
from benchmarks.service_load import IMAGES
from training.report import peers as report

# What a peer is to the benchmark: it answers a POST, and has children. `broken` as its purifier ends it at once.
PEER = """
import http.server, json, pathlib, subprocess, sys

class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        body = json.dumps({"timings": {"purify_ms": 1.0, "batch_size": 1}}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass

if sys.argv[1] == "broken":
    raise SystemExit("no such purifier")
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print("child", child.pid, flush=True)
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[2])), Handler).serve_forever()
"""


@pytest.fixture
def _unset(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("UNPERTURB_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def _stand_ins(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Both peers are the script above, run by this interpreter."""
    (tmp_path / "stand_in.py").write_text(PEER, encoding="utf-8")
    for name in servers.PEERS:
        monkeypatch.setitem(servers.PEERS, name, Peer(name, name, "stand_in", {"PYTHONPATH": str(tmp_path)}))


def measured(server: str, rate: float, p99: float, number: int = 0, connections: int = 4) -> benchmark.Measured:
    return benchmark.Measured(
        benchmark.Turn(number, "none", server), connections, rate, p99, mean_batch_size=2.0, lost=0
    )


def found(ours: tuple[float, float]) -> dict[str, object]:
    """A result in which the peers serve 100 images a second with a p99 of 40 ms."""
    made = benchmark.rows([measured(OURS, *ours), measured("litserve", 100, 40), measured("ray", 100, 40)])
    hardware = {"cpu": "Some CPU", "cores": 2, "torch_threads": 2, "processes": 2}
    return {
        "header": {"date": "2026-01-02", "hardware": hardware, "versions": {"litserve": "0.2.19", "ray": "2.60.0"}},
        "plan": {"max_batch_size": 32, "rounds": 1, "seconds": 5.0},
        "rows": made,
        "checks": requirements.checks(made),
    }


def test_servers_take_turns_and_the_second_round_goes_backwards() -> None:
    order = list(benchmark.turns(2, ["none", "nrp"]))
    assert Counter((turn.purifier, turn.server) for turn in order) == {
        (purifier, server): 2 for purifier in ("none", "nrp") for server in SERVERS
    }
    assert [turn.server for turn in order[:3]] == list(SERVERS)
    assert [turn.server for turn in order[-3:]] == list(SERVERS)[::-1]


def test_rounds_become_a_median_with_its_spread() -> None:
    (row,) = benchmark.rows([measured(OURS, rate, 10, number) for number, rate in enumerate((90.0, 100.0, 140.0))])
    rates = row["servers"][OURS]["images_per_s"]
    assert (rates["median"], rates["lowest"], rates["highest"]) == (100, 90, 140)


def test_concurrencies_stay_apart() -> None:
    rows = benchmark.rows([measured(OURS, 10, 1, connections=1), measured(OURS, 20, 2, connections=2)])
    assert [row["servers"][OURS]["images_per_s"]["median"] for row in rows] == [10, 20]


@pytest.mark.parametrize(
    ("ours", "missed"),
    [
        ((130, 20), set()),
        ((129, 20), {("litserve", "images/s")}),
        ((130, 21), {("litserve", "p99")}),
        ((99, 41), {(peer, name) for peer in ("litserve", "ray") for name in ("images/s", "p99")}),
    ],
)
def test_requirements_are_met_up_to_their_bounds(ours: tuple[float, float], missed: set[tuple[str, str]]) -> None:
    checks = found(ours)["checks"]
    assert {(check.get("peer"), check["name"]) for check in checks if not check["met"]} == missed


def test_a_lost_request_is_told_whoever_lost_it() -> None:
    rows = found((200, 10))["rows"]
    rows[0]["servers"]["ray"]["lost"] = 3
    (check,) = [check for check in requirements.checks(rows) if not check["met"]]
    assert requirements.told(check) == "NOT MET everywhere: no good answer 3 (0)"


def test_the_table_has_the_servers_side_by_side(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(report, "FILE", tmp_path / "peers.json")
    assert report.peers() == report.NOTHING
    report.FILE.write_text(json.dumps(found((120, 20))), encoding="utf-8")
    lines = report.peers().splitlines()
    rates, times = "120 (120 to 120) | 100 (100 to 100) | 100 (100 to 100)", "20.0 (20.0 to 20.0)"
    assert (
        f"| `none` | 4 | {rates} | {times} | 40.0 (40.0 to 40.0) | 40.0 (40.0 to 40.0) | **1.20**, 0.50 | 1.20, 0.50 |"
        in lines
    )
    assert lines[2].count("|") == lines[3].count("|") == lines[4].count("|")
    assert "images/s of LitServe >= 1.3: met 0 times of 1; p99 of LitServe <= 0.5: met 1 times of 1" in lines[-1]


def test_what_the_peers_run_needs_no_peer_to_compile() -> None:
    folder = Path(servers.__file__).parent
    for file in (folder / "litserve_app.py", folder / "ray_app.py"):
        compile(file.read_text(encoding="utf-8"), file, "exec")
    assert {"litserve", "ray"}.isdisjoint(sys.modules)


@pytest.mark.usefixtures("_unset")
def test_each_image_gets_the_answer_it_gets_alone() -> None:
    network = Network("none")
    images = [network.decode(path.read_bytes()) for path in IMAGES[:3]]
    together, alone = network.answers(images), [network.answers([image])[0] for image in images]
    assert (
        [each["label"] for each in together] == [each["label"] for each in alone] == ["airplane", "automobile", "dog"]
    )
    assert [each["timings"]["batch_size"] for each in together] == [3, 3, 3]
    assert all(0.1 <= each["probability"] <= 1 for each in together)


def test_the_environment_sees_our_packages_and_is_made_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setattr(environment, "REQUIREMENTS", ("pip",))  # is there already
    python = environment.prepared(tmp_path)
    assert environment.versions(python, "numpy", "torch") == environment.versions(
        Path(sys.executable), "numpy", "torch"
    )
    monkeypatch.setattr(environment.subprocess, "run", lambda *_, **__: pytest.fail("made again"))
    assert environment.prepared(tmp_path) == python


def test_another_list_of_packages_makes_the_environment_anew(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / environment.INSTALLED).write_text("something else", encoding="utf-8")
    monkeypatch.setattr(environment.subprocess, "run", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        environment.prepared(tmp_path)
    assert not (tmp_path / environment.INSTALLED).exists()


@pytest.mark.usefixtures("_stand_ins")
def test_a_peer_is_stopped_with_its_children(tmp_path: Path) -> None:
    with servers.running("ray", "none", Path(sys.executable), 1, 1, tmp_path, b"image") as url:
        child = psutil.Process(int((tmp_path / "peer.log").read_text().split()[1]))
        assert url.startswith("http://127.0.0.1:")
        assert child.is_running()
    assert not child.is_running()


@pytest.mark.usefixtures("_stand_ins")
def test_a_peer_that_does_not_start_says_why(tmp_path: Path) -> None:
    start = servers.running("litserve", "broken", Path(sys.executable), 1, 1, tmp_path, b"image")
    with pytest.raises(RuntimeError, match="no such purifier"), start:
        pass


@pytest.mark.usefixtures("_unset", "_stand_ins")
def test_a_short_run_measures_every_server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(environment, "prepared", lambda folder: Path(sys.executable))
    monkeypatch.setattr(environment, "versions", lambda python, *packages: dict.fromkeys(packages, "1"))
    file = tmp_path / "peers.json"
    short = ["--force", "--look-s=0.1", "--seconds=0.5", "--warmup-s=0.2", "--rounds=1", "--threads=1", "--processes=1"]
    # The exit status goes by times, which say nothing here.
    assert benchmark.main([*short, "--purifiers", "none", "--connections", "1", "2", f"--out={file}"]) in (0, 1)
    result = json.loads(file.read_text(encoding="utf-8"))
    assert [(row["connections"], set(row["servers"])) for row in result["rows"]] == [
        (1, set(SERVERS)),
        (2, set(SERVERS)),
    ]
    assert all(
        each["lost"] == 0 < each["p99_ms"]["median"] for row in result["rows"] for each in row["servers"].values()
    )
    monkeypatch.setattr(report, "FILE", file)
    assert report.peers().count("| `none` |") == 2


def test_a_busy_machine_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("unperturb.measure.busy_cores", lambda look_s: [60.0])
    monkeypatch.setattr(environment, "prepared", lambda folder: pytest.fail("went on"))
    assert benchmark.main([f"--out={tmp_path / 'never.json'}"]) == 2
    assert not list(tmp_path.iterdir())

"""Prometheus, its alerts and Grafana's dashboard fit each other, the compose file and what the service exposes."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from service.metrics import Metrics
from service.settings import Settings

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
DASHBOARD: dict[str, Any] = json.loads((DOCKER / "grafana/dashboards/unperturb.json").read_text(encoding="utf-8"))
PANELS: list[dict[str, Any]] = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


def load(path: str) -> Any:
    return yaml.safe_load((ROOT / path).read_text(encoding="utf-8"))


def families() -> dict[str, str]:
    """What the service exposes: metric -> counter, histogram or gauge."""
    registry = Metrics(torch.device("cpu")).registry
    return {family.name: family.type for family in registry.collect() if family.name.startswith("unperturb_")}


def series() -> dict[str, str]:
    """The same by the names that are scraped: requests_total, suspicion_bucket..."""
    suffixes = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"], "gauge": [""]}
    return {name + suffix: kind for name, kind in families().items() for suffix in suffixes[kind]}


def rules() -> list[dict[str, Any]]:
    return [rule for group in load("docker/prometheus/alerts.yml")["groups"] for rule in group["rules"]]


def shown() -> list[str]:
    return [target["expr"] for panel in PANELS for target in panel["targets"]]


def queries() -> list[str]:
    variables = [each["definition"] for each in DASHBOARD["templating"]["list"] if each["type"] == "query"]
    return shown() + variables + [rule["expr"] for rule in rules()]


def names(query: str) -> list[str]:
    return re.findall(r"\bunperturb_\w+", query)


@pytest.mark.parametrize("query", queries())
def test_queries_name_what_the_service_exposes(query: str) -> None:
    assert names(query) or query.startswith("up{")
    assert set(names(query)) <= set(series())


def test_everything_that_is_exposed_is_on_the_dashboard() -> None:
    found = {re.sub("_(total|bucket|sum|count)$", "", name) for query in shown() for name in names(query)}
    assert found == set(families())


@pytest.mark.parametrize("query", queries())
def test_rates_are_taken_of_what_counts_up_and_of_nothing_else(query: str) -> None:
    """A counter as it stands tells how long the process runs; the rate of a gauge tells nothing."""
    rated = re.findall(r"\b(?:rate|increase)\((\w+)", query)
    counting = [name for name in names(query) if series()[name] != "gauge"]
    assert rated == ([] if query.startswith("label_values(") else counting)


@pytest.mark.parametrize("query", [query for query in queries() if "_bucket" in query])
def test_buckets_are_summed_by_their_bound(query: str) -> None:
    assert re.search(r"by \([^)]*\ble\b[^)]*\)", query)


@pytest.mark.parametrize("query", [query for query in queries() if "histogram_quantile" in query])
def test_quantiles_are_of_buckets(query: str) -> None:
    assert all(name.endswith("_bucket") for name in names(query))


@pytest.mark.parametrize("query", queries())
def test_brackets_close_in_order(query: str) -> None:
    text = re.sub(r'"[^"]*"', "", query)
    assert '"' not in text
    text = re.sub(r"[^][(){}]", "", text)
    while text != (text := re.sub(r"\(\)|\[\]|\{\}", "", text)):
        pass
    assert text == ""


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_every_panel_says_what_it_shows(panel: dict[str, Any]) -> None:
    assert panel["title"]
    assert panel["description"].endswith(".")
    assert panel["fieldConfig"]["defaults"]["unit"]


def test_panels_are_distinct_and_do_not_overlap() -> None:
    places = [panel["gridPos"] for panel in DASHBOARD["panels"]]
    cells = [(x, y) for p in places for x in range(p["x"], p["x"] + p["w"]) for y in range(p["y"], p["y"] + p["h"])]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(places)
    assert len({panel["title"] for panel in PANELS}) == len(PANELS)


def test_panels_and_variables_ask_the_data_source_that_is_chosen() -> None:
    asking = [each for each in DASHBOARD["templating"]["list"] if each["type"] == "query"] + PANELS
    asked = [each["datasource"] for panel in asking for each in (panel, *panel.get("targets", []))]
    assert all(each == {"type": "prometheus", "uid": "${datasource}"} for each in asked)


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule["alert"])
def test_every_alert_says_how_bad_it_is_and_what_to_do(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in ("warning", "critical")
    assert set(rule["annotations"]) == {"summary", "description"}


def test_every_alert_has_a_case() -> None:
    """Run by promtool, see the head of that file; here it only can't be forgotten."""
    cases = [case for test in load("docker/prometheus/alerts.test.yml")["tests"] for case in test["alert_rule_test"]]
    assert {case["alertname"] for case in cases if "exp_alerts" in case} == {rule["alert"] for rule in rules()}


def test_the_page_lists_the_alerts() -> None:
    page = (ROOT / "docs" / "deployment.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| `(Unperturb\w+)` \|", page, flags=re.M) == [rule["alert"] for rule in rules()]


def test_slow_means_half_of_the_default_deadline() -> None:
    (rule,) = (rule for rule in rules() if rule["alert"] == "UnperturbSlow")
    assert float(rule["expr"].rsplit(">", 1)[1]) == Settings.model_fields["timeout_ms"].default / 2000


def test_prometheus_asks_the_service_by_the_name_that_compose_gives_it() -> None:
    config = load("docker/prometheus/prometheus.yml")
    (target,) = config["scrape_configs"][0]["static_configs"][0]["targets"]
    name, port = target.split(":")
    services = load("docker-compose.yml")["services"]
    assert all(name in services[each]["networks"]["default"]["aliases"] for each in ("cpu", "gpu"))
    assert int(port) == Settings.model_fields["port"].default
    assert config["rule_files"] == ["alerts.yml"]


def test_grafana_asks_prometheus_as_often_as_that_asks_the_service() -> None:
    (source,) = load("docker/grafana/provisioning/datasources/prometheus.yml")["datasources"]
    assert source["url"] == "http://prometheus:9090"
    assert source["jsonData"]["timeInterval"] == load("docker/prometheus/prometheus.yml")["global"]["scrape_interval"]
    (variable,) = (each for each in DASHBOARD["templating"]["list"] if each["name"] == "datasource")
    assert variable["current"]["value"] == source["uid"]


def test_grafana_finds_the_dashboard_where_compose_puts_it() -> None:
    grafana = load("docker-compose.yml")["services"]["grafana"]
    mounts = {mount.split(":")[1]: ROOT / mount.split(":")[0] for mount in grafana["volumes"]}
    (provider,) = load("docker/grafana/provisioning/dashboards/unperturb.yml")["providers"]
    home = Path(grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])
    assert str(home.parent) == provider["options"]["path"]
    assert (mounts[str(home.parent)] / home.name).is_file()
    assert {"/etc/grafana/provisioning/datasources", "/etc/grafana/provisioning/dashboards"} < set(mounts)

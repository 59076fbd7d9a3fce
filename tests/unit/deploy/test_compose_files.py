"""The Compose files as values: what they open, what they ask for, and that every setting in them is one of the service's."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tessera.config import ServiceConfig
from tessera.gateway.config import GatewayConfig
from tessera.node_agent.config import NodeAgentConfig
from tessera.profiler.config import ProfilerConfig
from tessera.registry.config import RegistryConfig
from tessera.scheduler.config import SchedulerConfig

DEPLOY = Path(__file__).resolve().parents[3] / "deploy"
CONFIGS: dict[str, type[ServiceConfig]] = {
    "gateway": GatewayConfig,
    "registry": RegistryConfig,
    "scheduler-a": SchedulerConfig,
    "scheduler-b": SchedulerConfig,
    "profiler": ProfilerConfig,
    "node-a": NodeAgentConfig,
    "node-b": NodeAgentConfig,
}
_VARIABLE = re.compile(r"\$\{(\w+):-([^}]*)\}")


def read(name: str) -> dict[str, Any]:
    """A Compose file with every variable at its default."""
    text = (DEPLOY / "compose" / name).read_text()
    found: dict[str, Any] = yaml.safe_load(_VARIABLE.sub(lambda match: match[2], text))
    return found


def services(*overrides: str) -> dict[str, dict[str, Any]]:
    """With overrides laid over, as far as environments go."""
    found: dict[str, dict[str, Any]] = read("compose.yaml")["services"]
    for override in overrides:
        for name, service in read(f"compose.{override}.yaml")["services"].items():
            inner = found.setdefault(name, {})
            inner["environment"] = inner.get("environment", {}) | service.get("environment", {})
    return found


@pytest.fixture
def clean(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in list(os.environ):
        if name.startswith("TESSERA_"):
            monkeypatch.delenv(name)
    return monkeypatch


@pytest.mark.parametrize("overrides", [(), ("gpu",), ("observability",), ("pool",)])
@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_every_setting_is_one_of_its_service_and_taken(name: str, overrides: tuple[str, ...], clean: pytest.MonkeyPatch) -> None:
    environment = services(*overrides)[name]["environment"]
    for key, value in environment.items():
        assert isinstance(value, str), f"{key} of {name}: Compose passes text"
        clean.setenv(key, value)
    known = {f"TESSERA_{field.upper()}" for field in CONFIGS[name].model_fields}
    assert set(environment) <= known
    config = CONFIGS[name]()
    assert config.advertise_host == name
    assert config.model_dump()["etcd_endpoints"] == ["etcd:2379"]
    assert (config.otlp_endpoint is None) == ("observability" not in overrides)


def test_only_the_gateway_publishes_ports_and_only_nodes_have_the_engine() -> None:
    found = services()
    assert [name for name, service in found.items() if "ports" in service] == ["gateway"]
    assert [name for name, service in found.items() if "docker.sock" in json.dumps(service)] == ["node-a", "node-b"]
    admin = [port for port in found["gateway"]["ports"] if port.endswith(":8003")]
    assert admin == ["127.0.0.1:8003:8003"], "admin is never on a public address"
    assert read("compose.yaml")["networks"]["inside"] == {"internal": True}


def test_schedulers_have_the_engine_where_they_are_to_add_nodes_and_name_a_container_that_there_is() -> None:
    found = read("compose.pool.yaml")["services"]
    assert [name for name, service in found.items() if "docker.sock" in json.dumps(service)] == ["scheduler-a", "scheduler-b"]
    for name in ("scheduler-a", "scheduler-b"):
        assert found[name]["group_add"] == services()["node-a"]["group_add"]
        assert found[name]["environment"]["TESSERA_NODE_LIKE"] == found["node-a"]["container_name"]


def test_every_service_is_checked_started_again_and_confined() -> None:
    for name, service in services().items():
        assert service["healthcheck"]["test"], name
        assert service["restart"] == "unless-stopped", name
        assert (service["read_only"], service["cap_drop"]) == (True, ["ALL"]), name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["mem_limit"], name
        assert service["pids_limit"], name
        assert name == "etcd" or service["depends_on"]["etcd"] == {"condition": "service_healthy"}


def test_stores_are_tmpfs_volumes_with_room_for_their_budget() -> None:
    for name in ("node-a", "node-b"):
        volume = read("compose.yaml")["volumes"][f"{name}-store"]
        assert (volume["driver"], volume["driver_opts"]["type"]) == ("local", "tmpfs")
        size = int(re.search(r"size=(\d+)m,", volume["driver_opts"]["o"])[1]) << 20  # type: ignore[index]
        (store,) = json.loads(services()[name]["environment"]["TESSERA_STORES"])
        assert store["budget_bytes"] < size
        assert f"{name}-store:{store['folder']}" in services()[name]["volumes"]


def metrics_in_the_code() -> set[str]:
    """Names of metrics as Prometheus shows them: counters with _total, histograms with their parts."""
    found = set()
    for path in (DEPLOY.parent / "services").rglob("*.py"):
        text = path.read_text()
        for kind, name in re.findall(r"(Counter|Gauge|Histogram)(?:MetricFamily)?\(\s*\"(tessera_\w+)\"", text):
            parts = {"Counter": ("_total",), "Gauge": ("",), "Histogram": ("_bucket", "_sum", "_count")}[kind]
            found |= {name + part for part in parts}
    return found


@pytest.mark.parametrize("board", sorted((DEPLOY / "dashboards").glob("*.json")), ids=lambda path: path.stem)
def test_dashboards_show_metrics_that_there_are(board: Path) -> None:
    panels = json.loads(board.read_text())["panels"]
    expressions = [target["expr"] for panel in panels for target in panel["targets"]]
    named = {name for expression in expressions for name in re.findall(r"tessera_\w+", expression)}
    assert named
    assert named <= metrics_in_the_code()


def test_what_prometheus_scrapes_is_where_services_show_metrics() -> None:
    scraped = yaml.safe_load((DEPLOY / "compose" / "observability" / "prometheus.yaml").read_text())["scrape_configs"]
    targets = {target for job in scraped for group in job["static_configs"] for target in group["targets"]} - {"otel-collector:8889"}
    shown = {
        f"{name}:{service['environment']['TESSERA_METRICS_ADDRESS'].rpartition(':')[2]}"
        for name, service in services().items()
        if "TESSERA_METRICS_ADDRESS" in service.get("environment", {})
    }
    assert targets == shown

"""What `tessera doctor` and `tessera up` say where the services are not installed."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from tessera.cli.embedded.control import check_can_start
from tessera.cli.embedded.doctor import examine
from tessera.cli.embedded.layout import Layout
from tessera.domain.errors import FailedPrecondition


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """tessera-cli without its extra."""
    find = importlib.util.find_spec
    services = {"tessera.gateway", "tessera.registry", "tessera.scheduler", "tessera.node_agent", "tessera.profiler"}

    def without(name: str, package: str | None = None) -> Any:
        return None if name in services else find(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", without)


@pytest.mark.usefixtures("alone")
def test_missing_services_are_named_with_what_installs_them(tmp_path: Path) -> None:
    (finding,) = [each for each in examine(Layout(tmp_path / "state")) if each.check == "services"]
    assert finding.status == "warn"
    assert finding.detail == (
        "not installed: tessera.registry, tessera.scheduler, tessera.profiler, tessera.node_agent, tessera.gateway; "
        "a platform on this machine needs: pip install 'tessera-cli[platform]'"
    )


@pytest.mark.usefixtures("alone")
def test_up_refuses_without_services_and_makes_nothing(tmp_path: Path) -> None:
    with pytest.raises(FailedPrecondition, match=r"not installed: tessera\.registry, .*'tessera-cli\[platform\]'"):
        check_can_start(Layout(tmp_path / "state"))
    assert not (tmp_path / "state").exists()


def test_services_that_are_there_are_ok(tmp_path: Path) -> None:
    (finding,) = [each for each in examine(Layout(tmp_path / "state")) if each.check == "services"]
    assert finding.status == "ok"

"""`tessera config show` where nothing runs any more: each service is asked what its file means."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tessera.cli.embedded import state as platform
from tessera.cli.embedded.effective import effective_settings
from tessera.cli.embedded.layout import Layout
from tessera.domain.errors import FailedPrecondition, Unavailable

ENDED = platform.ProcessState("supervisor", 2**22 + 1, 0.0)
"""No process has an id above the kernel's limit."""


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    """A platform that was started once, of which the registry's file is left."""
    found = Layout(tmp_path / "state", otlp_endpoint="127.0.0.1:4317", run_folder=tmp_path / "tessera-run")
    found.config.mkdir(parents=True)
    platform.PlatformState.of(found, "stopped", ENDED).save(found.state)
    write(found, found.services()["registry"][1])
    return found


def write(layout: Layout, settings: object) -> None:
    (layout.config / "registry.yaml").write_text(yaml.safe_dump(settings))


def test_file_defaults_and_variables_are_shown(layout: Layout, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("TESSERA_LOG_LEVEL", "warning")
    found = effective_settings(layout.state)
    assert set(found) == {"registry"}
    shown = found["registry"]
    assert (shown["otlp_endpoint"], shown["repository_url"]) == ("127.0.0.1:4317", layout.repository_url)
    assert (shown["trace_ring_size"], shown["log_level"]) == (4096, "warning")
    assert "nothing runs" in capsys.readouterr().err


def test_a_file_that_the_service_refuses_is_told_in_its_words(layout: Layout) -> None:
    write(layout, {"no_such_setting": 1})
    with pytest.raises(FailedPrecondition, match=r"(?s)registry does not take its settings.*no_such_setting: unknown key"):
        effective_settings(layout.state)


def test_a_folder_without_a_platform_is_named(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match=f"no platform was ever started on {tmp_path}"):
        effective_settings(tmp_path)

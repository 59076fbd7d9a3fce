"""A test that is left out is counted, whichever way, in this run's last line or for make's."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TESTS = """
import pytest

@pytest.fixture
def absent():
    pytest.importorskip("no_such_module_anywhere")

@pytest.mark.root
def test_needs_root(): ...

def test_skips_itself(absent): ...

def test_skips_itself_too(absent): ...

@pytest.mark.xfail(reason="known")
def test_expected_to_fail():
    assert False

def test_runs(): ...
"""


@pytest.fixture
def session(tmp_path: Path) -> Path:
    """Tests below a copy of our conftest, on a machine where nobody is root."""
    (tmp_path / "conftest.py").write_text((ROOT / "tests" / "conftest.py").read_text() + '\nNEEDS["root"] = lambda: "not root"\n')
    (tmp_path / "test_some.py").write_text(TESTS)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = root: needs root\n")
    return tmp_path


def run(session: Path, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TESSERA_")}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options, str(session)]
    return subprocess.run(command, capture_output=True, text=True, env=kept | environment, cwd=session, timeout=60, check=False)


SKIPPED = "could not import 'no_such_module_anywhere': No module named 'no_such_module_anywhere'"


@pytest.mark.parametrize("options", [(), ("-n", "2")], ids=["one process", "workers"])
def test_one_run_says_it_itself(session: Path, options: tuple[str, ...]) -> None:
    done = run(session, *options)
    assert done.returncode == 0, done.stdout
    assert f"left out here: 2 ({SKIPPED}), 1 (needs root: not root)" in done.stdout


def test_several_runs_are_counted_by_make_at_the_end(session: Path) -> None:
    file = session / "left-out"
    for _ in range(2):
        done = run(session, TESSERA_LEFT_OUT=str(file))
        assert "left out here" not in done.stdout
    assert sorted(file.read_text().splitlines()) == [SKIPPED] * 4 + ["needs root: not root"] * 2
    (session / "Makefile").write_text(f"include {ROOT}/Makefile\nsay:\n\t@$(LEFT_OUT) {file}\n")
    said = subprocess.run(["make", "-s", "-C", str(session), "say"], capture_output=True, text=True, timeout=60, check=True).stdout
    assert said.count("\n") == 1
    assert said.startswith("left out here: ")
    assert f"4 ({SKIPPED})" in said
    assert "2 (needs root: not root)" in said


@pytest.mark.parametrize("options", [(), ("-n", "2")], ids=["one process", "workers"])
def test_leaving_out_can_be_forbidden(session: Path, options: tuple[str, ...]) -> None:
    done = run(session, *options, TESSERA_REQUIRE_ROOT="1")
    assert done.returncode != 0
    assert "TESSERA_REQUIRE_ROOT=1, but tests that need it cannot run: not root" in done.stdout + done.stderr

"""Example packages, installed as anybody would, into a folder of the test's own."""

from __future__ import annotations

import importlib
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """install(name of the example) -> the folder that it is importable from, metadata and all; it is on `sys.path` and PYTHONPATH."""

    def make(name: str) -> Path:
        source, target = tmp_path / "source" / name, tmp_path / "site"
        shutil.copytree(EXAMPLES / name, source)  # building leaves folders in the source
        pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--no-build-isolation", "--target", str(target)]
        done = subprocess.run([*pip, str(source)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        monkeypatch.syspath_prepend(str(target))
        monkeypatch.setenv("PYTHONPATH", str(target), prepend=":")
        importlib.invalidate_caches()
        return target

    return make

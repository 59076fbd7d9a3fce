"""What a distribution imports of Tessera's own comes with it, without an extra."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
OWN = {"tessera-api": "proto/python", "tessera-pkg": "pkg", "tessera-runtime": "runtime", "tessera-sdk": "sdk"}
DEPENDENT = ["pkg", "runtime", "sdk", "cli", *sorted(f"services/{path.parent.name}" for path in ROOT.glob("services/*/pyproject.toml"))]
IMPORT = re.compile(r"^(?:from|import) tessera\.(\w+)", re.MULTILINE)


def needed(folder: str) -> set[str]:
    """Tessera's distributions that come with the one in `folder`, itself aside."""
    found: set[str] = set()
    waiting = [folder]
    while waiting:
        declared = tomllib.loads((ROOT / waiting.pop() / "pyproject.toml").read_text())["project"].get("dependencies", [])
        names = {re.split(r"[^\w-]", text)[0] for text in declared} & set(OWN)
        waiting += [OWN[name] for name in names - found]
        found |= names
    return found


def packages(folder: str) -> set[str]:
    """The packages below `tessera` that it brings."""
    source = ROOT / folder / ("tessera" if folder == OWN["tessera-api"] else "src/tessera")
    return {path.stem if path.suffix == ".py" else path.name for path in source.iterdir()}


@pytest.mark.parametrize("folder", DEPENDENT)
def test_every_own_package_that_is_imported_comes_along(folder: str) -> None:
    imported = {name for path in (ROOT / folder / "src").rglob("*.py") for name in IMPORT.findall(path.read_text())}
    assert imported
    there = packages(folder).union(*(packages(OWN[name]) for name in needed(folder)))
    assert imported <= there, f"{sorted(imported - there)}: of no distribution among {sorted(needed(folder))}"

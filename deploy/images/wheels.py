"""The wheelhouse: every library at the version that this environment runs and tests, and Tessera's own distributions, as wheels."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from importlib.metadata import distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name, parse_wheel_filename

from deploy.images.spec import LAYERS, ROOT

OWN_PREFIX = "tessera-"
_OWN_FOLDERS = ("proto/python", "pkg", "runtime", "sdk", "services/gateway", "services/scheduler", "services/node-agent",
                "services/profiler", "services/registry")  # fmt: skip
_SOURCE_DATE = "315532800"
"""1980, the earliest that a zip knows: the same sources make the same wheel, so that an image's cached layer stays valid."""


def closure(requirement: str) -> frozenset[str]:
    """Names of all distributions that a requirement needs, itself included, as they are installed here.

    Raises: PackageNotFoundError: one of them is not installed.
    """
    found: set[str] = set()
    seen: set[tuple[str, str]] = set()
    waiting = [Requirement(requirement)]
    while waiting:
        wanted = waiting.pop()
        name = canonicalize_name(wanted.name)
        found.add(name)
        # "" stands for what is needed without any extra.
        for extra in {"", *wanted.extras} - {extra for known, extra in seen if known == name}:
            seen.add((name, extra))
            for text in distribution(name).requires or ():
                inner = Requirement(text)
                if inner.marker is None or inner.marker.evaluate({"extra": extra}):
                    waiting.append(inner)
    return frozenset(found)


def own(names: Iterable[str]) -> frozenset[str]:
    return frozenset(name for name in names if name.startswith(OWN_PREFIX))


def libraries(layers: Iterable[str]) -> dict[str, frozenset[str]]:
    """Layer to what it adds to the layers before it."""
    found: dict[str, frozenset[str]] = {}
    for layer in layers:
        names = closure(LAYERS[layer])
        found[layer] = names - own(names) - frozenset().union(*found.values())
    return found


class Wheelhouse:
    """A folder of wheels; `say` gets a line for what takes time."""

    def __init__(self, folder: Path, say: Callable[[str], None]) -> None:
        self._libraries = folder / "libraries"
        self._own = folder / "own"
        self._say = say
        for each in (self._libraries, self._own):
            each.mkdir(parents=True, exist_ok=True)

    def fill(self, names: Iterable[str]) -> dict[str, Path]:
        """Gets what is missing through pip, as the environment was made: the same index, the same versions. Returns name to wheel."""
        wanted = {name: distribution(name).version for name in names}
        missing = sorted(f"{name}=={version}" for name, version in wanted.items() if self._find(name, version) is None)
        if missing:
            self._say(f"wheelhouse: {len(missing)} libraries by pip{' (' + ', '.join(missing) + ')' if len(missing) <= 3 else ''}")
            _pip_wheel(self._libraries, missing)
        return {name: self._have(name, version) for name, version in wanted.items()}

    def _find(self, name: str, version: str) -> Path | None:
        for path in self._libraries.glob("*.whl"):
            found_name, found_version, _, _ = parse_wheel_filename(path.name)
            if found_name == name and str(found_version) == version:
                return path
        return None

    def _have(self, name: str, version: str) -> Path:
        path = self._find(name, version)
        assert path is not None, f"pip made no wheel of {name}=={version}"
        return path

    def build_own(self) -> dict[str, Path]:
        """Wheels of Tessera's distributions; only what changed is built."""
        found = {}
        for folder in _OWN_FOLDERS:
            source = ROOT / folder
            folder_of_wheel = self._own / _hash_of(source)
            if not any(folder_of_wheel.glob("*.whl")):
                self._say(f"wheelhouse: building {folder}")
                shutil.rmtree(folder_of_wheel, ignore_errors=True)
                with tempfile.TemporaryDirectory(prefix="tessera-wheel-") as scratch:
                    copy = Path(scratch) / "source"  # setuptools would leave a build folder, and take what is deleted from it
                    shutil.copytree(source, copy, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info", "build"))
                    _pip_wheel(folder_of_wheel, [str(copy)])
            wheel = next(folder_of_wheel.glob("*.whl"))
            found[str(parse_wheel_filename(wheel.name)[0])] = wheel
        self._forget_old({path.parent for path in found.values()})
        return found

    def _forget_old(self, current: set[Path]) -> None:
        for folder in set(self._own.iterdir()) - current:
            shutil.rmtree(folder)


def _pip_wheel(folder: Path, what: list[str]) -> None:
    # -qq: an index that lacks a package is no news; errors come through.
    command = [sys.executable, "-m", "pip", "wheel", "-qq", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), *what]
    subprocess.run(command, check=True, env={**os.environ, "SOURCE_DATE_EPOCH": _SOURCE_DATE, "PIP_DISABLE_PIP_VERSION_CHECK": "1"})


def _hash_of(source: Path) -> str:
    """Of every file that goes into the wheel, by name and content."""
    digest = hashlib.sha256()
    for path in sorted(source.rglob("*")):
        if path.is_file() and path.suffix in (".py", ".pyi", ".typed", ".toml") and "build" not in path.relative_to(source).parts:
            digest.update(f"{path.relative_to(source)}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]

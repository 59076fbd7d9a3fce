"""What each image holds. Values only.

Libraries come in layers, each in a folder of its own below /opt/tessera: images that need the same layer share it on disk and in the
build cache. Tessera's own code is the last and smallest.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
WHEELHOUSE = ROOT / ".wheelhouse"
PULLED_BASE = "python:3.11-slim-bookworm"
IMPORTED_BASE = "tessera-base:bookworm"
PREFIX = "tessera-"

LAYERS = {
    "core": "tessera-pkg",
    "engine": "tessera-pkg[engine]",
    "ort": "tessera-runtime[ort]",
    "bake": "tessera-runtime[bake]",
    "agent": "tessera-node-agent",
    "aten": "tessera-runtime[aten]",
    "import": "tessera-registry[import]",
    "parquet": "tessera-profiler[parquet]",
}
"""Layer to the requirement whose libraries it adds to those of the layers before it in `Image.layers`."""


@dataclass(frozen=True)
class Image:
    """`requirement` is one of Tessera's distributions; "" for an image without Python libraries."""

    name: str
    dockerfile: Path
    requirement: str
    layers: tuple[str, ...]

    def reference(self, tag: str) -> str:
        return f"{PREFIX}{self.name}:{tag}"


def _service(name: str, requirement: str, *layers: str) -> Image:
    return Image(name, ROOT / "services" / name / "Dockerfile", requirement, ("core", *layers))


def _runtime(flavour: str) -> Image:
    return Image(f"runtime-{flavour}", ROOT / "runtime" / f"{flavour}.Dockerfile", f"tessera-runtime[{flavour}]", ("core", flavour))


IMAGES = {
    image.name: image
    for image in (
        _runtime("ort"),
        _runtime("aten"),
        _service("gateway", "tessera-gateway"),
        _service("scheduler", "tessera-scheduler", "engine"),
        _service("profiler", "tessera-profiler[parquet]", "parquet"),
        _service("node-agent", "tessera-node-agent", "ort", "bake", "agent"),
        _service("registry", "tessera-registry[import]", "aten", "ort", "bake", "import"),
        Image("etcd", ROOT / "deploy" / "images" / "etcd.Dockerfile", "", ()),
    )
}

"""What is in the images, and what is not."""

from __future__ import annotations

import pytest
from e2e_cluster import TAG, build_images

from deploy.compose import engine

pytestmark = [pytest.mark.docker, pytest.mark.slow, pytest.mark.timeout(900)]

LOOK = "import importlib.util, os, {module}; print(os.getuid(), importlib.util.find_spec('torch') is not None)"


@pytest.fixture(scope="module", autouse=True)
def images() -> None:
    build_images()


@pytest.mark.parametrize(
    ("name", "module", "torch"),
    [
        ("gateway", "tessera.gateway.app", False),
        ("scheduler", "tessera.scheduler.app", False),
        ("profiler", "tessera.profiler.app", False),
        ("node-agent", "tessera.node_agent.app, tessera.runtime.baked_graph", False),
        ("runtime-ort", "tessera.runtime.server, onnxruntime", False),
        ("runtime-aten", "tessera.runtime.server, torch", True),
        ("registry", "tessera.registry.app, transformers, onnxscript, pytorchcv", True),
    ],
)
def test_an_image_runs_as_nobody_special_and_has_torch_only_where_it_is_needed(name: str, module: str, torch: bool) -> None:
    command = ("python", "-c", LOOK.format(module=module))
    said = engine.docker(
        "run",
        "--rm",
        "--network",
        "none",
        "--read-only",
        "--tmpfs",
        "/tmp",
        "--entrypoint",
        command[0],
        f"tessera-{name}:{TAG}",
        *command[1:],
    )
    assert said.splitlines()[-1] == f"10001 {torch}"

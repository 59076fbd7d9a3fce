"""What `tessera ps` and `tessera node list` say about memory is what the kernel says, within 5 %, for every runtime and the store."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from e2e_platform import Platform, until

TOLERANCE = 0.05
VARIANTS = ("ort-fp32", "aten-fp32")


@dataclass
class Kernel:
    """Of one process, in bytes: `private` is Private_Clean + Private_Dirty of what is no store file, `shared` the resident store files."""

    private: int = 0
    shared: int = 0


def smaps(pid: int, store: Path) -> Kernel:
    found, in_store = Kernel(), False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        fields = line.split()
        if not fields[0].endswith(":"):
            in_store = len(fields) > 5 and fields[5].startswith(f"{store}/")
        elif fields[0] == "Rss:" and in_store:
            found.shared += int(fields[1]) * 1024
        elif fields[0] in ("Private_Clean:", "Private_Dirty:") and not in_store:
            found.private += int(fields[1]) * 1024
    return found


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """A platform with a ResNet-18 that has answered in both of its variants; instances are parked after two seconds."""
    found = Platform(tmp_path_factory.mktemp("memory") / "state", env={"TESSERA_IDLE_AFTER_S": "2"})
    try:
        found.up()
        with found.client() as client:
            arguments = {"name": "resnet18"}
            client.register("resnet18", "pytorchcv.model_provider:get_model", builder_args=arguments, seed=5, wait=True)
        yield found
    finally:
        found.end()


def ask(platform: Platform) -> dict[str, np.ndarray]:
    """Both variants' answers to one image."""
    image = np.random.default_rng(0).standard_normal((1, 3, 224, 224), dtype=np.float32)
    with platform.client() as client:
        return {variant: next(iter(client.infer(f"resnet18@1/{variant}", {"image": image}).outputs.values())) for variant in VARIANTS}


def close(told: int, kernel: int) -> bool:
    return abs(told - kernel) <= TOLERANCE * kernel


def agree(platform: Platform) -> list[dict[str, Any]] | None:
    """The runtimes as the CLI shows them, when every figure agrees with the kernel's at this moment."""
    store = platform.store_folder()
    (node,) = platform.json("node", "list")
    before = {runtime["pid"]: smaps(runtime["pid"], store) for runtime in node["runtimes"]}
    instances = platform.json("ps")
    for runtime in [*node["runtimes"], *(instance["runtime"] for instance in instances)]:
        kernel = before[runtime["pid"]]
        if not close(runtime["private_bytes"], kernel.private) or not close(runtime["shared_bytes"], kernel.shared):
            return None
    files = sum(path.stat().st_blocks * 512 for path in (store / "blobs").iterdir())
    (told,) = node["stores"]
    assert close(told["used_bytes"], files), (told, files)
    found: list[dict[str, Any]] = node["runtimes"]
    return found


def test_open_and_parked_agree_with_smaps_and_answer_alike(measured: Platform) -> None:
    first = ask(measured)
    runtimes = until(lambda: agree(measured), "ps and node list agree with smaps")
    weights = 46_800_000
    loaded = [runtime for runtime in runtimes if runtime["instances"]]
    assert sorted(runtime["flavour"] for runtime in loaded) == ["aten", "ort"]
    assert all(runtime["shared_bytes"] > 0.9 * weights for runtime in loaded)
    assert all(runtime["kind"] == "process" for runtime in runtimes)

    def all_parked() -> bool:
        found = [item for item in measured.json("ps") if item["state"] == "ready" and item["model"] == "resnet18"]
        return len(found) == len(VARIANTS) and all(item["parked"] for item in found)

    until(all_parked, "both are parked")
    generations = {item["id"]: item["runtime_id"] for item in measured.json("ps")}
    until(lambda: agree(measured), "ps and node list agree with smaps while parked")
    again = ask(measured)
    assert all(first[variant].tobytes() == again[variant].tobytes() for variant in VARIANTS)
    assert {item["id"]: item["runtime_id"] for item in measured.json("ps")} == generations


def test_a_node_says_what_the_machine_has(measured: Platform) -> None:
    (node,) = measured.json("node", "list")
    total = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemTotal"))
    assert node["memory_bytes"] == int(total.split()[1]) * 1024
    assert 0 < node["memory_available_bytes"] < node["memory_bytes"]
    assert 0 <= node["memory_pressure"] <= 1
    until(lambda: measured.json("node", "list")[0]["cpu_cores"] > 0, "the node's CPU use is known")

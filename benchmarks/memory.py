"""What one more fine-tuned sibling costs in memory: make bench NAME=memory

Siblings of resnet50 and bert-base share a frozen trunk; 1, 2, 4, 8 of them are loaded and answer, with sharing and with sharing off.
*Private*: growth of the runtimes' private memory (smaps_rollup). *Proportional*: growth of their proportional set size. Both per added
instance, from the first to the last.

    BENCH_SIBLINGS=8 BENCH_MODELS=resnet50,bert-base make bench NAME=memory
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from benchmarks.embedded import STATE, platform
from benchmarks.models import BY_NAME, BenchModel, arrays
from benchmarks.report import Report
from benchmarks.siblings import sibling_paths
from tessera.sdk import Client

MIB = 1 << 20
SLACK_MIB = 8.0
FOLDER = STATE.parent / "bench-siblings"
RUNTIMES = {"ort-fp32": "ort", "aten-fp32": "aten"}


def _rollup(pid: int) -> dict[str, int]:
    """Bytes by field of /proc/PID/smaps_rollup."""
    fields = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        name, value, _ = line.split()
        fields[name.rstrip(":")] = int(value) * 1024
    return fields


def _memory(client: Client, flavour: str) -> tuple[float, float]:
    """(private, proportional) MiB of all runtimes of a flavour."""
    pids = [runtime.pid for node in client.nodes() for runtime in node.runtimes if runtime.flavour == flavour]
    rolls = [_rollup(pid) for pid in pids]
    private = sum(roll["Private_Dirty"] + roll["Private_Clean"] for roll in rolls)
    return private / MIB, sum(roll["Pss"] for roll in rolls) / MIB


def _names(model: BenchModel, count: int) -> list[str]:
    return [f"{model.name}-sibling{index}" for index in range(count)]


def _register(client: Client, model: BenchModel, count: int) -> None:
    subprocess.run([sys.executable, "-W", "ignore", "-m", "benchmarks.siblings", model.name, str(count), str(FOLDER)], check=True)
    for name, weights in zip(_names(model, count), sibling_paths(model.name, count, FOLDER), strict=True):
        result = client.register(name, model.source, builder_args=model.arguments, weights=weights, wait=True)
        if not result.unchanged:
            shared = result.tensor_bytes_already_stored / MIB
            print(f"registered {name}: {result.tensor_bytes / MIB:.0f} MiB, {shared:.0f} MiB of them already stored", flush=True)


def _own_mib(client: Client, model: BenchModel, count: int, variant: str) -> float:
    """Bytes of the last sibling's variant that no earlier one has."""
    info = client.model(_names(model, count)[-1]).versions[0]
    found = next(each for each in info.variants if each.key.variant == variant)
    return (found.tensor_bytes - found.tensor_bytes_shared) / MIB


def _measure(client: Client, report: Report, model: BenchModel, count: int, variant: str, sharing: bool) -> dict[int, float]:
    flavour = RUNTIMES[variant]
    inputs = None
    grown: dict[int, float] = {}
    first: tuple[float, float] | None = None
    for index, name in enumerate(_names(model, count), start=1):
        if inputs is None:
            inputs = dict(zip([spec.name for spec in client.metadata(name).inputs], arrays(model), strict=True))
        for _ in range(3):
            client.infer(f"{name}@1/{variant}", inputs)
        if index & (index - 1):
            continue
        private, proportional = _memory(client, flavour)
        first = first or (private, proportional)
        row: dict[str, object] = {"model": model.name, "variant": variant, "sharing": "on" if sharing else "off", "instances": index}
        row |= {"private_mib": private, "proportional_mib": proportional}
        if index > 1:
            grown[index] = (private - first[0]) / (index - 1)
            row |= {"private_per_added_mib": grown[index], "proportional_per_added_mib": (proportional - first[1]) / (index - 1)}
        report.row(**row)
    return grown


def main() -> None:
    count = int(os.environ.get("BENCH_SIBLINGS", "8"))
    chosen = [BY_NAME[name] for name in os.environ.get("BENCH_MODELS", "resnet50,bert-base").split(",")]
    report = Report("memory")
    for sharing in (True, False):
        for variant in RUNTIMES:
            for model in chosen:
                with platform(*([] if sharing else ["--no-sharing"]), store="8G") as client:
                    _register(client, model, count)
                    client.infer("identity", {"INPUT0": np.zeros(1, np.float32)})
                    own = _own_mib(client, model, count, variant)
                    grown = _measure(client, report, model, count, variant, sharing)
                    if sharing and variant == "ort-fp32" and grown:
                        # The kernel counts pages that one process alone maps as private to it, the sibling's own tensors among them.
                        overhead = max(grown.values()) - own
                        report.goal(f"sibling_overhead_mib.{model.name}", overhead, "<=", SLACK_MIB, "MiB beyond its own tensors")
                    report.row(model=model.name, variant=variant, sharing="on" if sharing else "off", note=f"own tensors {own:.1f} MiB")
                print(f"{model.name} {variant} sharing {'on' if sharing else 'off'}: done", flush=True)
    report.finish()


if __name__ == "__main__":
    main()

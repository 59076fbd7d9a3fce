"""What every benchmark leaves: a table on stdout and `benchmarks/results/NAME.json` (docs/performance.md says what it means)."""

from __future__ import annotations

import json
import operator
import os
import platform
import statistics
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).parent / "results"
CUDA = "not measured, on whatever machine: backends run on CPUs alone, nothing is implemented on CUDA"
"""What a table says that has no row for it."""

_OPERATORS = {"<": operator.lt, "<=": operator.le, ">=": operator.ge}
_LIBRARIES = ("torch", "onnxruntime", "grpcio", "protobuf", "uvloop", "numpy")


def machine() -> dict[str, Any]:
    """What a figure depends on: CPU, cores, memory, kernel, huge pages, library versions."""
    cpu = next(
        (line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")), ""
    )
    flags = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags")), "").split()
    huge = Path("/sys/kernel/mm/transparent_hugepage/shmem_enabled")
    versions = {}
    for name in _LIBRARIES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return {
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0)),
        "isa": [name for name in ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile") if name in flags],
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "kernel": platform.release(),
        "huge_pages_shmem": huge.read_text().strip() if huge.exists() else "",
        "can_mount": os.geteuid() == 0,
        "python": platform.python_version(),
        **versions,
    }


def percentile(values: list[float], share: float) -> float:
    """The value below which `share` (0..1) of the values lie, by the nearest rank."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, round(share * len(ordered) + 0.5) - 1))]


def median(values: list[float]) -> float:
    return statistics.median(values)


@dataclass
class Report:
    """Rows in the order of adding, goals by key."""

    name: str
    rows: list[dict[str, Any]] = field(default_factory=list)
    goals: dict[str, dict[str, Any]] = field(default_factory=dict)
    machine: dict[str, Any] = field(default_factory=machine)

    def row(self, **values: Any) -> None:
        self.rows.append({key: round(value, 4) if isinstance(value, float) else value for key, value in values.items()})

    def goal(self, key: str, value: float, op: str, goal: float, unit: str) -> None:
        self.goals[key] = {"value": round(value, 4), "op": op, "goal": goal, "unit": unit, "met": bool(_OPERATORS[op](value, goal))}

    def finish(self) -> None:
        """Prints the tables and writes the JSON. Whether goals are met does not matter for the exit code."""
        console = Console(width=200)
        columns = list(dict.fromkeys(key for row in self.rows for key in row))
        table = Table(title=self.name, box=None, header_style="bold")
        for column in columns:
            table.add_column(column, overflow="fold")
        for row in self.rows:
            table.add_row(*(str(row.get(column, "")) for column in columns))
        console.print(table)
        goals = Table(title="goals", box=None, header_style="bold")
        for column in ("goal", "value", "wanted", "unit", "met"):
            goals.add_column(column)
        for key, goal in self.goals.items():
            goals.add_row(key, str(goal["value"]), f"{goal['op']} {goal['goal']}", goal["unit"], "yes" if goal["met"] else "NO")
        console.print(goals)
        RESULTS.mkdir(parents=True, exist_ok=True)
        path = RESULTS / f"{self.name}.json"
        path.write_text(json.dumps(asdict(self), indent=1))
        console.print(f"written: {path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path}")

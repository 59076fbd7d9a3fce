"""First answers of known models: `bind`, `fork` and `container` against a fresh process, by stage; starts that fetch their bytes.
make bench NAME=start

The store has the bytes already. *Platform part*: what the client waited for the first answer, less the kernel's own run, less the same of
a warm answer after the same pause. *Difference*: first answer less warm answer, the kernel's jitter included. Fresh processes do what
users do, in between.

    BENCH_MODELS=resnet18,minilm BENCH_BIND=200 BENCH_FORK=50 BENCH_FRESH=5 BENCH_CONTAINERS=resnet18 BENCH_FETCH=resnet50 \\
        make bench NAME=start

Containers need an engine and the runtime images (`make images`); without them their rows say so.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import docker
import numpy as np

from benchmarks import fetched
from benchmarks.embedded import SETTLE_S, STATE, platform, register, stop_all
from benchmarks.models import BY_NAME, MODELS, BenchModel, arrays
from benchmarks.report import Report, median, percentile
from tessera.sdk import Client

VARIANT = "ort-fp32"
WARM = 3
BIND_P50_MS, BIND_P99_MS, FORK_P50_MS, BIND_VS_FRESH = 6.0, 15.0, 20.0, 0.01
MS_PER_MIB_WITHOUT_HUGE_PAGES = 0.09
FRESH = STATE.parent / "bench-fresh"
FORK_ENV = {"TESSERA_WARM_RUNTIMES": "0", "TESSERA_POOL_POLICY": "constant", "TESSERA_RUNTIME_KEEP_ALIVE_S": "0"}
"""No empty runtime waits and none stays: every start forks."""
RUNTIME_IMAGES = {"ort": "tessera-runtime-ort:dev"}
CONTAINER_ENV = {
    "TESSERA_RUNTIMES": "container",
    "TESSERA_FLAVOURS": json.dumps(list(RUNTIME_IMAGES)),
    "TESSERA_RUNTIME_IMAGES": json.dumps(RUNTIME_IMAGES),
}
NEW_CONTAINERS = 5


@dataclass
class Starts:
    """Milliseconds of many starts along one path."""

    platform: list[float] = field(default_factory=list)
    difference: list[float] = field(default_factory=list)
    first: list[float] = field(default_factory=list)
    stages: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    other_paths: int = 0


def _timed(client: Client, name: str, inputs: dict[str, np.ndarray]) -> tuple[float, str, str]:
    begun = time.perf_counter()
    answer = client.infer(name, inputs)
    return (time.perf_counter() - begun) * 1e3, answer.start_path, answer.request_id


def _after_a_pause(client: Client, name: str, inputs: dict[str, np.ndarray]) -> tuple[float, str, str]:
    """A warm answer as cold in the processors' caches as the first one was: the pause before a first request makes both slower, and only
    what the start adds is the platform's part."""
    time.sleep(SETTLE_S)
    return _timed(client, name, inputs)


def _stages(client: Client, request_id: str) -> dict[str, float]:
    return {stage.stage: stage.ms for stage in client.explain(request_id).stages}


def _inputs(client: Client, model: BenchModel) -> dict[str, np.ndarray]:
    names = [spec.name for spec in client.metadata(model.name).inputs]
    return dict(zip(names, arrays(model), strict=True))


def measure(client: Client, model: BenchModel, wanted: str, count: int) -> Starts:
    """`count` starts along the path `wanted`; starts that took another path are counted and left out."""
    name = f"{model.name}@1/{VARIANT}"
    inputs = _inputs(client, model)
    for _ in range(2):  # the store's bytes, and the first run of everything
        stop_all(client, model.name)
        client.infer(name, inputs)
    found = Starts()
    for _ in range(2 * count):
        if len(found.platform) == count:
            break
        stop_all(client, model.name)
        first_ms, path, request_id = _timed(client, name, inputs)
        stages = _stages(client, request_id)
        if path != wanted:
            found.other_paths += 1
            continue
        warm = [_after_a_pause(client, name, inputs) for _ in range(WARM)]
        over = [ms - _stages(client, warm_id).get("run", 0.0) for ms, _, warm_id in warm]
        found.platform.append(first_ms - stages.get("run", 0.0) - median(over))
        found.difference.append(first_ms - median([ms for ms, _, _ in warm]))
        found.first.append(first_ms)
        for stage, ms in stages.items():
            found.stages[stage].append(ms)
    stop_all(client, model.name)
    return found


def fresh(model: BenchModel, kind: str) -> dict[str, float]:
    words = [sys.executable, "-W", "ignore", "-m", "benchmarks.fresh", kind, model.name, str(FRESH)]
    answer: dict[str, float] = json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout)
    return answer


def _row(report: Report, model: BenchModel, path: str, found: Starts, mebibytes: float) -> None:
    if not found.platform:
        report.row(model=model.name, path=path, starts=0, note=f"{found.other_paths} starts took another path")
        return
    stages = ", ".join(f"{stage} {median(ms):.2f}" for stage, ms in found.stages.items() if stage != "run")
    report.row(
        model=model.name,
        mib=mebibytes,
        path=path,
        starts=len(found.platform),
        platform_p50_ms=median(found.platform),
        platform_p99_ms=percentile(found.platform, 0.99),
        difference_p50_ms=median(found.difference),
        first_p50_ms=median(found.first),
        stages_p50=stages,
        note=f"{found.other_paths} others" if found.other_paths else "",
    )


def _bind_goals(report: Report, key: str, found: Starts, slack_ms: float = 0.0) -> None:
    if found.platform:
        report.goal(f"bind_p50_ms.{key}", median(found.platform), "<=", BIND_P50_MS + slack_ms, "ms")
        report.goal(f"bind_p99_ms.{key}", percentile(found.platform, 0.99), "<=", BIND_P99_MS + slack_ms, "ms")


def _containers(report: Report, models: list[BenchModel], mebibytes: dict[str, float], binds: int) -> None:
    """The same platform with container runtimes: `bind` into warm ones, and what a new one takes."""
    lacking = _lacks_containers()
    if lacking:
        report.row(path="container", note=f"left out: {lacking}")
        return
    with platform(env=CONTAINER_ENV) as client:
        for model in models:
            found = measure(client, model, "bind", binds)
            _row(report, model, "bind, containers", found, mebibytes[model.name])
            _bind_goals(report, f"containers.{model.name}", found)
            print(f"bind in containers {model.name}: done", flush=True)
    with platform(env={**CONTAINER_ENV, **FORK_ENV}) as client:
        for model in models[:1]:
            _row(report, model, "container", measure(client, model, "container", NEW_CONTAINERS), mebibytes[model.name])


def _lacks_containers() -> str:
    """Why there can be no container runtimes here, or nothing."""
    try:
        engine = docker.from_env(timeout=5)
        for image in RUNTIME_IMAGES.values():
            engine.images.get(image)
    except (docker.errors.DockerException, OSError) as error:
        return str(error).splitlines()[0][:120]
    return ""


def main() -> None:
    chosen = [BY_NAME[name] for name in os.environ["BENCH_MODELS"].split(",")] if "BENCH_MODELS" in os.environ else list(MODELS)
    binds, forks, freshes = (int(os.environ.get(f"BENCH_{what}", default)) for what, default in (("BIND", 200), ("FORK", 50), ("FRESH", 5)))
    report = Report("start")
    fresh_ms: dict[str, float] = {}
    mebibytes: dict[str, float] = {}
    Path(FRESH).mkdir(parents=True, exist_ok=True)
    with platform() as client:
        for model in chosen:
            subprocess.run([sys.executable, "-W", "ignore", "-m", "benchmarks.fresh", "prepare", model.name, str(FRESH)], check=True)
            register(client, model)
            info = client.model(model.name).versions[0]
            mebibytes[model.name] = next(each.tensor_bytes for each in info.variants if each.key.variant == VARIANT) / 2**20
        huge = client.nodes()[0].stores[0].huge_pages
        client.infer("identity", {"INPUT0": np.zeros(1, np.float32)})
        for model in chosen:
            eager = [fresh(model, "eager") for _ in range(freshes)]
            archive = [fresh(model, "export") for _ in range(freshes)]
            found = measure(client, model, "bind", binds)
            _row(report, model, "bind", found, mebibytes[model.name])
            for kind, runs in (("fresh process", eager), ("torch.export.load", archive)):
                medians = {stage: median([run[stage] for run in runs]) for stage in runs[0]}
                shown = ", ".join(f"{stage} {ms:.0f}" for stage, ms in medians.items() if stage != "total")
                report.row(model=model.name, path=kind, starts=len(runs), first_p50_ms=medians["total"], stages_p50=shown)
            fresh_ms[model.name] = median([run["total"] - run["first_run"] for run in eager])
            if found.platform:
                slack = 0.0 if huge else MS_PER_MIB_WITHOUT_HUGE_PAGES * mebibytes[model.name]
                _bind_goals(report, model.name, found, slack)
                ratio = median(found.platform) / fresh_ms[model.name]
                report.goal(
                    f"bind_vs_fresh.{model.name}", ratio, "<=", BIND_VS_FRESH, "of a fresh process, both without the kernel's first run"
                )
            print(f"bind {model.name}: done", flush=True)
    contained = os.environ.get("BENCH_CONTAINERS", ",".join(model.name for model in chosen)).split(",")
    _containers(report, [model for model in chosen if model.name in contained], mebibytes, binds)
    with platform(env=FORK_ENV) as client:
        for model in chosen:
            found = measure(client, model, "fork", forks)
            _row(report, model, "fork", found, mebibytes[model.name])
            if found.platform:
                report.goal(f"fork_p50_ms.{model.name}", median(found.platform), "<=", FORK_P50_MS, "ms")
            print(f"fork {model.name}: done", flush=True)
    fetched.measure(report, os.environ.get("BENCH_FETCH", "resnet50,bert-base").split(","), int(os.environ.get("BENCH_FETCHES", "5")))
    report.finish()


if __name__ == "__main__":
    main()

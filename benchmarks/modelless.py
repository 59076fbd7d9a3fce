"""Saying what is needed against fixing variants, live: make bench NAME=modelless

The three published shapes of load on one task, and twenty models of unequal demand, each under three objectives (`workload`), open loop,
against a platform of real processes. Sides: *static* (the fastest variant at batch 1 that meets the objectives, as many instances as
requests start: Clipper, SageMaker), *static, scaled* (the same with autoscaling), *single best* (one variant for all, by name) and
*tessera*. A side has the platform for itself, brought up for it; sides take turns shape by shape, another one first each time.

A rate is a multiple of what eager PyTorch answered in one process just before. First every side gets the published rate, the same requests
at the same moments; then the highest rate is looked for at which at most 2 % are violated: late, refused, or answered with less than was
asked. Violations are compared at the lowest rate that all sides were given and at which the best other side has at least 20. Cost is what
was reserved at the published rate, per thousand requests that got what they asked for: each instance from its start until it is gone pays
its share of the node (by threads or by memory, whichever is more) at the node's price.

    BENCH_QUICK=1 make bench NAME=modelless      three minutes once the models are registered: whether it works, no figures
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.arrivals import FLAT, FLUCTUATING, RISE, STEADY, Shape, arrivals
from benchmarks.eager import eager_items_per_s
from benchmarks.embedded import platform, stop_all
from benchmarks.judging import Bill, Held, Tally, best_of, fewer_violations, highest, next_factor, share_of, tally
from benchmarks.openloop import send
from benchmarks.report import Report
from benchmarks.workload import MODELS, Workload, mixed, photos, prepare, profiles_here
from tessera.api.node.v1 import node_pb2
from tessera.sdk import AsyncClient, Client

STATE = Path(".demo/bench-modelless").resolve()
PREPARING = {"TESSERA_FULL_SECONDS_PER_ROW": "0.3", "TESSERA_VARIANT_BUDGET_S": "6", "TESSERA_IMPORT_NICE": "0"}
SHAPES = (FLAT, RISE, FLUCTUATING, STEADY)
LOOK_S = 0.5
SEED = 23
FIRST_RATE = 3.0
"""The rate that is tried first, in multiples of eager PyTorch's."""


@dataclass(frozen=True)
class Side:
    """`fixed`: asks for one variant by name."""

    name: str
    env: Mapping[str, str]
    fixed: bool = False


def _settings(variant: str, autoscaling: str) -> dict[str, str]:
    return {"TESSERA_VARIANT_POLICY": variant, "TESSERA_AUTOSCALING_POLICY": autoscaling}


OURS = Side("tessera", _settings("tessera", "tessera"))
SIDES = (
    Side("static", _settings("static", "none")),
    Side("static, scaled", _settings("static", "tessera")),
    Side("single best", _settings("static", "none"), fixed=True),
    OURS,
)


@dataclass(frozen=True)
class Length:
    """Seconds, and how many rates are tried."""

    equal_s: float
    probe_s: float
    probes: int
    eager_s: float


FULL = Length(10.0, 5.0, 4, 1.0)
QUICK = Length(3.0, 2.0, 2, 0.5)


@dataclass
class Found:
    """Of one side under one shape: the tally and the bill at each multiple of the shape, 1 being the published rate."""

    rate_per_s: float
    at: dict[float, Tally] = field(default_factory=dict)
    bills: dict[float, Bill] = field(default_factory=dict)

    @property
    def highest_per_s(self) -> float:
        return highest({factor: one.kept for factor, one in self.at.items()}) * self.rate_per_s

    @property
    def bounded(self) -> bool:
        """The search has met a rate that was too high."""
        return not all(one.kept for one in self.at.values())

    @property
    def usd_per_1000_kept(self) -> float:
        one = self.at[1.0]
        return 1000.0 * self.bills[1.0].usd / max(1, one.requests - one.violations)


Results = dict[tuple[str, str], Found]
"""By shape and side."""


def visits(quick: bool) -> Iterator[tuple[Side, Sequence[Shape]]]:
    """Who gets the platform, for which shapes: one at a time and each time another side first; a quick run brings each side up once."""
    if quick:
        yield from ((side, SHAPES) for side in SIDES)
        return
    for at, shape in enumerate(SHAPES):
        yield from ((side, (shape,)) for side in (*SIDES[at:], *SIDES[:at]))


def held_of(node: node_pb2.NodeStatus, usd_per_hour: float) -> list[Held]:
    threads = {runtime.runtime_id: runtime.threads for runtime in node.runtimes}
    return [
        Held(
            f"{one.variant.model}/{one.variant.variant}",
            share_of(threads.get(one.runtime_id, 1), node.cpu_count, one.shared_bytes + one.private_bytes, node.memory_bytes),
            usd_per_hour,
            one.load_state or "active",
            one.queue,
        )
        for one in node.instances
        if one.state not in ("gone", "failed")
    ]


@asynccontextmanager
async def billed(client: AsyncClient, usd_per_hour: float, bill: Bill) -> AsyncIterator[None]:
    """Looks at what is held until the context ends."""

    last_s = time.monotonic()

    async def look() -> None:
        nonlocal last_s
        for node in await client.nodes():
            now_s = time.monotonic()
            bill.add(now_s - last_s, held_of(node, usd_per_hour), sum(runtime.cpu_cores for runtime in node.runtimes))
            last_s = now_s

    async def look_on() -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            await look()

    async with asyncio.TaskGroup() as group:
        looking = group.create_task(look_on())
        try:
            yield
        finally:
            looking.cancel()
    await look()


async def measure(side: Side, shape: Shape, workload: Workload, length: Length, usd_per_hour: float) -> Found:
    """The published rate, then the search for the highest."""
    forms = workload.fixed if side.fixed else workload.forms
    found = Found(shape.mean * workload.eager_items_per_s)

    async with AsyncClient(state=STATE) as client:

        async def run(factor: float, duration_s: float, seed: int) -> bool:
            rate_per_s = factor * workload.eager_items_per_s
            schedule = arrivals(shape, rate_per_s, duration_s, workload.weights, seed)
            bill = found.bills[factor] = Bill()
            async with billed(client, usd_per_hour, bill):
                ends_s = time.monotonic() + duration_s
                found.at[factor] = tally(await send(client.target.endpoint, forms, schedule))
                await asyncio.sleep(max(0.0, ends_s - time.monotonic()))
            return found.at[factor].kept

        await run(1.0, length.equal_s, SEED)
        tried: dict[float, bool] = {}
        for probe in range(length.probes):
            factor = next_factor(tried, FIRST_RATE / shape.mean)
            tried[factor] = await run(factor, length.probe_s, SEED + 1 + probe)
    return found


def _words(counts: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {round(count, 1):g}" for name, count in sorted(counts.items(), key=lambda each: (-each[1], each[0]))[:6])


def rows(report: Report, shape: Shape, side: str, found: Found) -> None:
    """One per rate, so that one sees who served, what was late and why."""
    for factor, one in sorted(found.at.items()):
        bill = found.bills[factor]
        report.row(
            shape=shape.name, side=side, rate_per_s=factor * found.rate_per_s, published=factor == 1.0, requests=one.requests,
            violations=one.violations, why=_words(one.reasons), p50_ms=one.p50_ms, p99_ms=one.p99_ms, client_lag_p99_ms=one.lag_p99_ms,
            starts=one.starts, served_by=_words(one.served_by), instances=_words(bill.most), waiting=bill.waiting,
            troubled_s=_words(bill.troubled_s), usd=f"{bill.usd:.3g}", instance_s=bill.instance_s, core_s=bill.core_s,
        )  # fmt: skip


def compared_at(found: Mapping[str, Found]) -> tuple[float, float] | None:
    """The lowest factor that all sides were given and at which the best of the others has enough violations, and how many times fewer."""
    others = {name: one for name, one in found.items() if name != OURS.name}
    for factor in sorted(set.intersection(*(set(one.at) for one in found.values()))):
        _, theirs = best_of({name: one.at[factor].violations for name, one in others.items()}, largest=False)
        ratio = fewer_violations(round(theirs), found[OURS.name].at[factor].violations)
        if ratio is not None:
            return factor, ratio
    return None


def goals(report: Report, shape: Shape, found: Mapping[str, Found]) -> None:
    ours, others = found[OURS.name], {name: one for name, one in found.items() if name != OURS.name}
    name, theirs = best_of({name: one.highest_per_s for name, one in others.items()}, largest=True)
    if theirs > 0 and others[name].bounded:
        report.goal(f"throughput_vs_best.{shape.name}", ours.highest_per_s / theirs, ">=", 1.3, f"of {name}'s {theirs:.0f}/s")
    compared = compared_at(found)
    if compared is not None:
        factor, ratio = compared
        report.goal(f"violations_vs_best.{shape.name}", ratio, ">=", 1.6, f"times fewer, at {factor * ours.rate_per_s:.0f}/s")
    name, theirs = best_of({name: one.usd_per_1000_kept for name, one in others.items()}, largest=False)
    if theirs > 0:
        report.goal(f"cost_vs_best.{shape.name}", ours.usd_per_1000_kept / theirs, "<", 1.0, f"of {name}'s {theirs:.3g} USD per 1,000 kept")


def _empty(client: Client) -> None:
    for model in {instance.variant.model for _, instance in client.instances()}:
        stop_all(client, model)


def main() -> None:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # whoever ends it, the platform is taken down
    quick = bool(os.environ.get("BENCH_QUICK"))
    length = QUICK if quick else FULL
    report = Report("modelless")
    with platform(env=PREPARING, state=STATE) as client:
        prepare(client)
        _empty(client)
        rates = eager_items_per_s([model.name for model in MODELS], length.eager_s)
        workloads = {shape.name: photos(client, rates) for shape in SHAPES} | {STEADY.name: mixed(client, rates)}
        usd_per_hour = max(profile.usd_per_hour for profile in profiles_here(client, MODELS[0].name))
    for name in (FLAT.name, STEADY.name):
        report.row(side="eager PyTorch, one process", shape=name, rate_per_s=workloads[name].eager_items_per_s)
    results: Results = {}
    for side, shapes in visits(quick):
        with platform(env=side.env, state=STATE) as client:
            for shape in shapes:
                print(f"{shape.name}: {side.name}", flush=True)
                found = asyncio.run(measure(side, shape, workloads[shape.name], length, usd_per_hour))
                results[shape.name, side.name] = found
                _empty(client)
    for shape in SHAPES:
        of_shape = {side.name: results[shape.name, side.name] for side in SIDES}
        for name, found in of_shape.items():
            rows(report, shape, name, found)
        goals(report, shape, of_shape)
    report.finish()


if __name__ == "__main__":
    main()

"""What a platform makes of plain PyTorch, against eager PyTorch: make bench NAME=variants

Each model is registered as PyTorch, lossy variants allowed, and nothing else is said. The platform makes variants, measures how they agree,
profiles them on its node. The offered one that answers the most then runs in turn with eager PyTorch in a process of its own, each at its
best batch with all cores, in blocks, so that noise hits both; and with the variant that is best at batch 1. The platform's figures are
those of the runtime on the node; beside them what a client gets end to end. Then: what decisions predicted (`benchmarks.predicted`).

    BENCH_MODELS=resnet18,minilm BENCH_ROUNDS=5 BENCH_BLOCK_S=3 BENCH_REQUESTS=40 make bench NAME=variants
    BENCH_QUICK=1 BENCH_MODELS=mobilenetv2_w1 make bench NAME=variants    # shorter profiles, two rounds: says little
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from benchmarks import blocks, predicted
from benchmarks.blocks import Block, Cell, Eager, OnNode
from benchmarks.embedded import STATE, platform, register
from benchmarks.models import BY_NAME, BenchModel, arrays
from benchmarks.offers import Offer, goal, most, offer_of, static, without_gain
from benchmarks.report import Report, median
from tessera.api.registry.v1 import registry_pb2
from tessera.cli.embedded.state import known_layout
from tessera.profiler.core.grid import BATCHES
from tessera.registry.core.recipes import BASE, DEFAULT_RECIPES
from tessera.sdk import Client

CHOSEN = "resnet18,resnet50,mobilenetv2_w1,bert-base,minilm"
MADE_S = 1800.0
CLIENTS = 2
"""Requests in flight end to end: one executes, one is ready for the next batch."""
ALONE = 20
PREDICTED_ERROR = 0.15
QUICK_ENV = {"TESSERA_VARIANT_BUDGET_S": "15", "TESSERA_FULL_SECONDS_PER_ROW": "0.5"}


@dataclass(frozen=True)
class Effort:
    rounds: int
    block_s: float
    requests: int
    quick: bool

    @classmethod
    def from_environment(cls) -> Effort:
        quick = bool(os.environ.get("BENCH_QUICK"))
        rounds, block_s, requests = ("2", "0.5", "12") if quick else ("5", "3", "40")
        return cls(
            int(os.environ.get("BENCH_ROUNDS", rounds)),
            float(os.environ.get("BENCH_BLOCK_S", block_s)),
            int(os.environ.get("BENCH_REQUESTS", requests)),
            quick,
        )


def made(client: Client, model: BenchModel) -> list[registry_pb2.VariantInfo]:
    """Waits until every variant is ready or has failed; those beside the base ones are begun when these are there."""
    deadline_s = time.monotonic() + MADE_S
    while True:
        found = list(client.model(model.name).versions[-1].variants)
        if all(info.state in ("ready", "failed") for info in found) and any(info.recipe not in BASE for info in found):
            return found
        if time.monotonic() > deadline_s:
            raise SystemExit(f"variants of {model.name} are not made: {', '.join(f'{info.key.variant} {info.state}' for info in found)}")
        time.sleep(0.5)


def profiled(client: Client, model: BenchModel, threads: int, effort: Effort) -> tuple[dict[str, registry_pb2.VariantInfo], list[Offer]]:
    """All that was made, by name, and with its figures. Rows are measured anew, but in a quick run."""
    infos = made(client, model)
    for event in client.run_profile(model.name, again=not effort.quick):
        if event.HasField("profile"):
            print(event.message, flush=True)
    profiles = client.profiles(model.name)
    cores = client.nodes()[0].cpu_count
    return {info.key.variant: info for info in infos}, [offer_of(info, profiles, threads, cores // threads) for info in infos]


def in_turn(
    process: Eager, on_node: OnNode, variants: Sequence[tuple[registry_pb2.VariantInfo, Cell]], eager_batch: int, effort: Effort
) -> tuple[list[Block], list[list[Block]]]:
    """Rounds of eager PyTorch and each of the variants, one after the other."""
    eagerly: list[Block] = []
    found: list[list[Block]] = [[] for _ in variants]
    for _ in range(effort.rounds):
        eagerly.append(process.block(eager_batch, effort.block_s))
        for taken, (info, cell) in zip(found, variants, strict=True):
            taken.append(on_node.block(info, cell, effort.block_s))
    return eagerly, found


def end_to_end(client: Client, model: BenchModel, variant: str, batch: int, seconds: float) -> tuple[float, float]:
    """Items a second of an SDK client that has its next batch there while one executes, and its median latency at batch 1 in ms."""
    names = [spec.name for spec in client.metadata(model.name).inputs]
    one, full = (dict(zip(names, arrays(model, size), strict=True)) for size in (1, batch))

    def timed_s(inputs: Mapping[str, np.ndarray]) -> float:
        began_s = time.perf_counter()
        client.infer(f"{model.name}@1/{variant}", inputs)
        return time.perf_counter() - began_s

    def keep_asking(until_s: float) -> int:
        count = 0
        while time.perf_counter() < until_s:
            timed_s(full)
            count += batch
        return count

    for _ in range(blocks.WARM_RUNS):
        timed_s(full)
    took_ms = [1e3 * timed_s(one) for _ in range(ALONE)]
    began_s = time.perf_counter()
    with ThreadPoolExecutor(CLIENTS) as pool:
        items = sum(pool.map(keep_asking, [began_s + seconds] * CLIENTS))
        return items / (time.perf_counter() - began_s), median(took_ms)


def against(theirs: Sequence[Block], ours: Sequence[Block]) -> float:
    return median([our.items_per_s / their.items_per_s for our, their in zip(ours, theirs, strict=True)])


def side_by_side(
    client: Client, report: Report, model: BenchModel, infos: Mapping[str, registry_pb2.VariantInfo], offers: Sequence[Offer],
    threads: int, effort: Effort,
) -> None:  # fmt: skip
    chosen, fixed = most(offers), static(offers)
    together = client.nodes()[0].cpu_count // threads
    cells = [(infos[one.variant], Cell(one.batch, threads, together)) for one in ((chosen,) if fixed is chosen else (chosen, fixed))]
    with blocks.eager(model.name, threads * together) as process:
        swept = [process.block(batch, effort.block_s / 2) for batch in BATCHES if batch <= infos[chosen.variant].max_batch]
        eager_batch = max(swept, key=lambda block: block.items_per_s).batch
        eagerly, found = in_turn(process, OnNode(client), cells, eager_batch, effort)
    for what, batch, taken, p50_ms in (
        ("eager PyTorch, in turn", eager_batch, eagerly, swept[0].p50_ms),
        *((f"{info.key.variant}, in turn", cell.batch, taken, "") for (info, cell), taken in zip(cells, found, strict=True)),
    ):
        report.row(model=model.name, what=what, p50_ms=p50_ms, batch=batch, items_per_s=median([block.items_per_s for block in taken]))
    note = f"{against(found[-1], found[0]):.2f} times {fixed.variant}, which is best at batch 1"
    items_per_s, one_ms = end_to_end(client, model, chosen.variant, chosen.batch, 2 * effort.block_s)
    report.row(
        model=model.name, what=f"{chosen.variant}, end to end", p50_ms=one_ms, batch=chosen.batch, items_per_s=items_per_s, note=note
    )
    unit = f"x eager PyTorch ({chosen.variant} at {chosen.batch}, eager at {eager_batch})"
    report.goal(f"vs_eager.{model.name}", against(eagerly, found[0]), ">=", goal(model.family, report.machine["isa"]), unit)


def predictions(client: Client, report: Report, model: BenchModel, offers: Sequence[Offer], effort: Effort) -> list[float]:
    errors: list[float] = []
    for found in predicted.measure(client, model, offers, effort.requests):
        if not found.errors:
            report.row(model=model.name, what=f"predicted, {found.in_flight} at a time", batch=found.batch, note="no answer came warm")
            continue
        report.row(
            model=model.name, what=f"predicted, {found.in_flight} at a time", batch=found.batch, note=", ".join(sorted(found.variants)),
            requests=len(found.errors), predicted_ms=median(found.predicted_ms), actual_ms=median(found.actual_ms),
            run_ms=median(found.run_ms), around_ms=median(found.around_ms), error=median(found.errors),
        )  # fmt: skip
        errors += found.errors
    report.row(model=model.name, what="predicted", requests=len(errors), error=median(errors or [1.0]))
    return errors


def measure(client: Client, report: Report, model: BenchModel, threads: int, effort: Effort) -> tuple[list[float], list[str]]:
    """The errors of predictions, and the int8 variants that are offered and gain nothing."""
    register(client, model, lossy=True)
    infos, offers = profiled(client, model, threads, effort)
    for one in offers:
        report.row(
            model=model.name, what=one.variant, state=one.state, p50_ms=one.p50_ms.get(1, ""), batch=one.batch, items_per_s=one.items_per_s,
            weights_mib=one.weights_mib, private_mib=one.private_mib, loss=one.loss, note="; ".join(filter(None, (one.compared, one.why))),
        )  # fmt: skip
    side_by_side(client, report, model, infos, offers, threads, effort)
    return predictions(client, report, model, offers, effort), [f"{model.name}/{name}" for name in without_gain(offers)]


def main() -> None:
    effort = Effort.from_environment()
    report = Report("variants")
    errors: list[float] = []
    idle: list[str] = []
    recipes = {"TESSERA_RECIPES": json.dumps(DEFAULT_RECIPES)}
    with platform(env=recipes | (QUICK_ENV if effort.quick else {})) as client:
        threads = known_layout(STATE).runtime_threads
        for name in os.environ.get("BENCH_MODELS", CHOSEN).split(","):
            found, gains_nothing = measure(client, report, BY_NAME[name], threads, effort)
            errors += found
            idle += gains_nothing
            print(f"{name}: done", flush=True)
    report.goal("int8_wins", len(idle), "<=", 0, f"int8 variants on offer that gain nothing{': ' if idle else ''}{', '.join(idle)}")
    report.goal("predicted_error", median(errors or [1.0]), "<=", PREDICTED_ERROR, f"of what happened, median of {len(errors)} requests")
    report.finish()


if __name__ == "__main__":
    main()

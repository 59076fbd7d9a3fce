"""Idle models that become others, against loading them: make bench NAME=transform

In one runtime that has imported everything, on one thread: a live `aten` instance becomes each other one of its family, 200 random pairs
across families, and of each family the largest a sibling (its graph, other weights). *Scratch*: the module built by its library, weights
read and loaded into it (no import, as Optimus has it). *Bind*: the artifact loaded into the same runtime, from mapped tensors. *Transform*:
the same with a donor and a delta, of the plan that the scheduler's leader makes: by graphs alone, by the planner for programs of that size.
*Kept* and *cost* are of that plan; cost is what the cost lines say that were fitted to every other pair's times. *Planning* is what making
a plan takes beforehand, by each planner, and planners are compared, on whole programs with the digests of their tensors.

Bind and transform start alike: nothing of the target mapped, its artifact and its graph not read. Siblings are bound beside the donor,
whose graph the runtime has read then; those that are *mapped still* as well, and both find what a runtime keeps of what it unloaded.
Weights that are mapped are read when they are used, which copied ones are not: *first* times go to the end of the first answer, on all
sides. Each target's answers are compared with a fresh load's, bit for bit.

    BENCH_QUICK=1 make bench NAME=transform      one family and the cells, three repeats
"""

from __future__ import annotations

import asyncio
import gc
import os
import random
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.architectures import ALL, CELLS, Architecture, export_load_ms, scratch_ms
from benchmarks.report import CUDA, Report, median, percentile
from benchmarks.transformpairs import (
    PLANNERS,
    SEED,
    Model,
    Pair,
    against_bind,
    against_first,
    against_scratch,
    beyond,
    carried_out,
    kind_of,
    largest_of_each,
    models,
    observed,
    pairs_of,
    plan,
    ratio,
    sibling,
)
from tessera.clock import SystemClock
from tessera.domain.ids import Generation, InstanceId
from tessera.domain.transformation import MetaOperator
from tessera.policy.transform import registry
from tessera.policy.transform.costs import MetaCosts
from tessera.policy.transform.delta import planned
from tessera.policy.transform.fitting import fit, relative_error
from tessera.runtime import measure
from tessera.runtime.backends.aten.program import read_plan
from tessera.runtime.loads import Becoming, LoadRequest
from tessera.runtime.manager import InstanceManager, RuntimeConfig
from tessera.tensorstore.local import LocalTensorStore
from tessera.tensorstore.mount import prepare_store_folder, remove_store_folder

STORE_BYTES = 6 << 30
ACROSS = 200
SLOW = 12
"""Architectures whose `torch.export.load` is timed: it takes seconds."""


class Runtime:
    """One runtime over the store, in this process."""

    def __init__(self, manager: InstanceManager, repeats: int) -> None:
        self.manager = manager
        self.repeats = repeats
        self._generation = 0

    async def load(self, name: str, model: Model, donor: str = "", delta: bytes = b"") -> float:
        """Milliseconds."""
        self._generation += 1
        becoming = Becoming(InstanceId(donor), delta) if donor else None
        reference = f"{model.architecture.name}@1/aten-fp32"
        request = LoadRequest(InstanceId(name), Generation(self._generation), reference, model.artifact_digest, donor=becoming)
        begun = time.perf_counter()
        await self.manager.load(request)
        return (time.perf_counter() - begun) * 1e3

    async def unload(self, name: str) -> None:
        await self.manager.unload(InstanceId(name), 0)

    async def forget(self) -> None:
        """What a runtime that has never seen a model has not: its mappings, its artifact, its graph."""
        await self.forget_model()
        read_plan.cache_clear()

    async def forget_model(self) -> None:
        """What a runtime has not that has seen a sibling alone."""
        await self.manager.trim()
        self.manager._artifact.cache_clear()
        self.manager._graph.cache_clear()

    async def bind(self, model: Model) -> None:
        found, first = [], []
        for _ in range(self.repeats):
            await self.forget()
            found.append(await self.load("one", model))
            model.answers, took_ms = self.answers("one")
            first.append(found[-1] + took_ms)
            await self.unload("one")
        model.bind_ms, model.bind_first_ms = median(found), median(first)

    async def transform(self, pair: Pair, delta: bytes) -> None:
        found, first, bound = [], [], []
        if pair.mapped:
            await self.load("one", pair.target)
            await self.unload("one")
        for _ in range(self.repeats):
            await self.load("donor", pair.source)
            if pair.siblings:
                await self._unseen(pair)
                bound.append(await self.load("beside", pair.target))
                await self.unload("beside")
            await self._unseen(pair)
            found.append(await self.load("one", pair.target, "donor", delta))
            answers, took_ms = self.answers("one")
            first.append(found[-1] + took_ms)
            pair.differs |= answers != pair.target.answers
            await self.unload("one")
        pair.ms, pair.first_ms = median(found), median(first)
        pair.bind_ms = median(bound) if bound else pair.target.bind_ms

    async def _unseen(self, pair: Pair) -> None:
        if not pair.mapped:
            await (self.forget_model() if pair.siblings else self.forget())

    def answers(self, name: str) -> tuple[tuple[bytes, ...], float]:
        """To made-up inputs of one row, with the milliseconds that this took."""
        (instance,) = [each for each in self.manager.instances if each.identity.instance_id == name]
        assert instance.loaded is not None
        given = measure.synthetic_inputs(instance.artifact.signature, 1)
        begun = time.perf_counter()
        found = instance.loaded.run(given)
        took_ms = (time.perf_counter() - begun) * 1e3
        return tuple(np.ascontiguousarray(found[key].array).tobytes() for key in sorted(found)), took_ms


def family_rows(report: Report, pairs: Sequence[Pair]) -> None:
    families: dict[str, list[Pair]] = {}
    for pair in pairs:
        families.setdefault(kind_of(pair), []).append(pair)
    for name, some in families.items():
        report.row(
            pairs=f"{name} ({len(some)})",
            operations=f"{min(p.target.operations for p in some)}-{max(p.target.operations for p in some)}",
            transform_ms=median([pair.ms for pair in some]),
            bind_ms=median([pair.bind_ms for pair in some]),
            scratch_ms=median([pair.target.scratch_ms for pair in some]),
            vs_bind=median(against_bind(some)),
            vs_scratch=median(against_scratch(some)),
            best_vs_scratch=min(against_scratch(some)),
            first_ms=median([pair.first_ms for pair in some]),
            bind_first_ms=median([pair.target.bind_first_ms for pair in some]),
            scratch_first_ms=median([pair.target.scratch_first_ms for pair in some]),
            vs_scratch_first=median(against_first(some)),
            faster_than_bind=f"{sum(change < 0 for change in against_bind(some))} of {len(some)}",
            beyond_bind=f"{sum(beyond(pair) for pair in some)} of {len(some)}",
            kept=median([len(p.carried_out.kept) / p.target.operations for p in some]),
            cost_ms=median([pair.expected_ms for pair in some]),
            **{f"{planner}_plan_ms": median([pair.planning_ms[planner] for pair in some]) for planner in PLANNERS},
            ours_over_munkres=median([ratio(pair) for pair in some]),
            group_over_munkres=median([ratio(pair, "group") for pair in some]),
        )


def published_rows(report: Report, pairs: Sequence[Pair], known: Sequence[Model]) -> None:
    """Optimus's observations, on this machine."""
    families = [pair for pair in pairs if kind_of(pair) == pair.source.architecture.family]
    down = [pair.ms for pair in families if pair.source.operations > pair.target.operations]
    up = [pair.ms for pair in families if pair.source.operations < pair.target.operations]
    report.row(
        pairs="structure's share of loading from scratch", transform_ms=median([model.build_ms / model.scratch_ms for model in known])
    )
    report.row(pairs="large to small", transform_ms=median(down))
    report.row(pairs="small to large", transform_ms=median(up))


def cuda_row(report: Report) -> None:
    report.row(pairs="CUDA", operations=CUDA)


def group_planner_ms(known: Sequence[Model], costs: MetaCosts) -> float:
    """For a thousand operations: what a plan and its delta take between the two largest of different graphs, in proportion."""
    largest = sorted({model.graph: model for model in known}.values(), key=lambda model: -model.operations)[:2]
    source, target = (model.program.structure for model in largest)
    ends, planner = (largest[0].graph, largest[1].graph), registry.make("group")
    found = []
    for _ in range(9):
        begun = time.perf_counter()
        planned(source, target, planner, costs, ends)
        found.append((time.perf_counter() - begun) * 1e3)
    return median(found) * 1000 / len(source.operations)


async def run(store: LocalTensorStore, folder: Path, chosen: Sequence[Architecture], repeats: int, across: int, report: Report) -> None:
    import torch

    torch.set_num_threads(1)
    known = models(chosen, store)
    config = RuntimeConfig("bench", "aten", "default", store.root, folder)
    config.folder.mkdir(parents=True)
    manager = InstanceManager(config, SystemClock())
    await manager.start()
    runtime = Runtime(manager, repeats)
    await manager.warm()
    gc.collect()
    gc.freeze()  # as a runtime does
    for model in known:
        model.scratch_ms, model.build_ms, model.scratch_first_ms = scratch_ms(model.architecture, max(2, repeats // 2))
        await runtime.bind(model)
    others = [sibling(model, store) for model in largest_of_each(known)]
    for model in others:
        await runtime.bind(model)
    pairs = list(pairs_of(known, others, across))
    for at, pair in enumerate(pairs):
        pair.carried_out, delta = carried_out(pair.source, pair.target)
        await runtime.transform(pair, delta)
        if at % 100 == 0:
            print(f"{at} of {len(pairs)} pairs", flush=True)
    await manager.close(0)
    # each half's costs are fitted to the other half, so that nothing is predicted from itself
    halves = (pairs[::2], pairs[1::2])
    errors = []
    for half, other in (halves, halves[::-1]):
        costs = fit([observed(pair) for pair in other])
        errors.append(relative_error(costs, [observed(pair) for pair in half]))
        for pair in half:
            plan(pair, costs)
            pair.expected_ms = costs.ms(pair.carried_out.sums())
    family_rows(report, pairs)
    published_rows(report, pairs, known)
    slow = random.Random(SEED).sample(list(known), min(SLOW, len(known)))
    loads = [export_load_ms(model.architecture) for model in slow]
    report.row(pairs=f"torch.export.load of {len(slow)}", transform_ms=median(loads))
    within = [pair for pair in pairs if kind_of(pair) == pair.source.architecture.family]
    report.row(pairs="answers that differ from a fresh load's", transform_ms=float(sum(pair.differs for pair in pairs)))
    report.row(pairs="median error of predicted times", transform_ms=statistics.mean(errors))
    lines = fit([observed(pair) for pair in pairs])
    for operator in MetaOperator:
        line = lines.line(operator, "")
        report.row(pairs=f"cost of {operator}", transform_ms=line.fixed_ms, bind_ms=line.per_mib_ms)
    report.row(pairs="cost of any", transform_ms=lines.base_ms)
    unmapped = [pair for pair in pairs if not pair.mapped]
    report.goal("best_vs_scratch", min(against_scratch(unmapped)), "<=", -0.999, "of the time of loading from scratch, the best pair")
    report.goal("median_family_vs_scratch", median(against_scratch(within)), "<=", -0.95, "the same, median within families")
    report.row(pairs="to the first answer, against scratch: best, median within families", transform_ms=min(against_first(unmapped)),
               bind_ms=median(against_first(within)))  # fmt: skip
    report.goal("beyond_bind", sum(map(beyond, pairs)) / len(pairs), "<=", 0.0, "of pairs, by more than 5 % and 1 ms: no start takes these")
    report.goal("group_planner_ms", group_planner_ms(known, MetaCosts()), "<", 5.0, "ms for 1,000 operations")
    report.goal("ours_vs_munkres", median([ratio(pair) for pair in pairs]), "<=", 1.1, "times the optimum's cost, median")
    over = [pair.ms - pair.bind_ms for pair in pairs]
    report.row(
        pairs="transform beyond bind, ms: p50, p90, p99",
        transform_ms=median(over),
        bind_ms=percentile(over, 0.9),
        scratch_ms=percentile(over, 0.99),
    )
    cuda_row(report)


def main() -> None:
    quick = bool(os.environ.get("BENCH_QUICK"))
    chosen = [each for each in ALL if each.family in ("squeezenet",) or each in CELLS[:4]] if quick else list(ALL)
    report = Report("transform")
    with tempfile.TemporaryDirectory() as scratch:
        point = Path(scratch) / "store"
        prepared = prepare_store_folder(point, STORE_BYTES)
        store = LocalTensorStore(prepared.path, STORE_BYTES, SystemClock())
        try:
            asyncio.run(run(store, Path(scratch), chosen, 3 if quick else 5, 10 if quick else ACROSS, report))
        finally:
            store.close()
            remove_store_folder(point)
    report.finish()


if __name__ == "__main__":
    main()

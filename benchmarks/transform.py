"""Idle models that become others, against loading them: make bench NAME=transform

In one runtime that has imported everything, on one thread: a live `aten` instance becomes each other one of its family, 200 random pairs
across families, and of each family the largest a sibling (its graph, other weights). *Scratch*: the module built by its library, weights
read and loaded into it (no import, as Optimus has it). *Bind*: the artifact loaded into the same runtime, from mapped tensors. *Transform*:
the same with a donor and a delta, of the plan that the scheduler's leader makes: by graphs alone, by the planner for programs of that size.
*Kept* and *cost* are of that plan; cost is what the cost lines say that were fitted to every other pair's times. *Planning* is what each
planner takes beforehand, and planners are compared, on whole programs with the digests of their tensors.

Bind and transform start alike: nothing of the target mapped and no graph read (but for siblings that are *mapped still*, as a runtime keeps
what it unloaded for ten minutes). Each target's answers are compared with a fresh load's, bit for bit.

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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import permutations
from pathlib import Path

import numpy as np

from benchmarks.architectures import ALL, CELLS, FOLDER, Architecture, artifact_of, export_load_ms, scratch_ms
from benchmarks.report import CUDA, Report, median, percentile
from tessera.clock import SystemClock
from tessera.domain.artifact import Artifact
from tessera.domain.ids import Digest, Generation, InstanceId
from tessera.domain.transformation import MetaOperator, Observation, TransformationPlan
from tessera.policy.transform import registry
from tessera.policy.transform.by_size import planner_for
from tessera.policy.transform.costs import MetaCosts
from tessera.policy.transform.delta import planned
from tessera.policy.transform.fitting import fit, relative_error
from tessera.policy.transform.matrix import CostMatrix
from tessera.policy.transform.plan import plan_of
from tessera.policy.transform.structure import Program, structure_of
from tessera.runtime import measure
from tessera.runtime.backends.aten.program import read_plan
from tessera.runtime.loads import Becoming, LoadRequest
from tessera.runtime.manager import InstanceManager, RuntimeConfig
from tessera.tensorstore.artifact import decode, encode
from tessera.tensorstore.local import LocalTensorStore
from tessera.tensorstore.mount import prepare_store_folder, remove_store_folder
from tessera.testing.blobs import put

PLANNERS = ("group", "tessera", "munkres")
STORE_BYTES = 6 << 30
ACROSS = 200
SEED = 5
NOISE = 0.01
SLOW = 12
"""Architectures whose `torch.export.load` is timed: it takes seconds."""


NOTHING = TransformationPlan("", (), (), 0.0, 0.0)


@dataclass
class Model:
    architecture: Architecture
    artifact_digest: Digest
    artifact: Artifact
    program: Program
    scratch_ms: float = 0.0
    build_ms: float = 0.0
    bind_ms: float = 0.0
    answers: tuple[bytes, ...] = ()

    @property
    def graph(self) -> Digest:
        assert self.artifact.graph is not None
        return self.artifact.graph.digest

    @property
    def operations(self) -> int:
        return len(self.program.structure.operations)


@dataclass
class Pair:
    source: Model
    target: Model
    plans: dict[str, TransformationPlan] = field(default_factory=dict)
    planning_ms: dict[str, float] = field(default_factory=dict)
    carried_out: TransformationPlan = NOTHING
    mapped: bool = False
    ms: float = 0.0
    expected_ms: float = 0.0
    differs: bool = False


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
        """What a runtime that has never seen an architecture has not: its mappings, its graph."""
        await self.manager.trim()
        read_plan.cache_clear()

    async def bind(self, model: Model) -> None:
        found = []
        for _ in range(self.repeats):
            await self.forget()
            found.append(await self.load("one", model))
            if not model.answers:
                model.answers = self.answers("one")
            await self.unload("one")
        model.bind_ms = median(found)

    async def transform(self, pair: Pair, delta: bytes) -> None:
        found = []
        for at in range(self.repeats):
            await self.load("donor", pair.source)
            if pair.mapped:
                read_plan.cache_clear()
            else:
                await self.forget()
            found.append(await self.load("one", pair.target, "donor", delta))
            if not at:
                pair.differs = self.answers("one") != pair.target.answers
            await self.unload("one")
        pair.ms = median(found)

    def answers(self, name: str) -> tuple[bytes, ...]:
        """Of made-up inputs of one row."""
        (instance,) = [each for each in self.manager.instances if each.identity.instance_id == name]
        assert instance.loaded is not None
        found = instance.loaded.run(measure.synthetic_inputs(instance.artifact.signature, 1))
        return tuple(np.ascontiguousarray(found[key].array).tobytes() for key in sorted(found))


def models(names: Sequence[Architecture], store: LocalTensorStore) -> list[Model]:
    found = []
    for each in names:
        digest = artifact_of(each)
        data = (FOLDER / "blobs" / digest).read_bytes()
        artifact = decode(data)
        put(store, data)
        for blob in artifact.blobs():
            if not store.has(blob.digest):
                put(store, (FOLDER / "blobs" / blob.digest).read_bytes())
        assert artifact.graph is not None, "a flat program has one"
        structure = structure_of((FOLDER / "blobs" / artifact.graph.digest).read_bytes())
        digests = {ref.slot: ref.digest for ref in artifact.tensors}
        found.append(Model(each, digest, artifact, Program(structure, tuple(digests[tensor.name] for tensor in structure.tensors))))
    return found


def sibling(model: Model, store: LocalTensorStore) -> Model:
    """Of the same graph, every large tensor another one."""
    draw = np.random.default_rng(SEED)
    refs = []
    for ref in model.artifact.tensors:
        if ref.pack_offset is None and ref.dtype == "FP32":
            array = np.fromfile(store.path(ref.digest), np.float32)
            data = (array * (1 + NOISE * draw.standard_normal(array.shape, dtype=np.float32))).astype(np.float32).tobytes()
            ref = replace(ref, digest=put(store, data))
        refs.append(ref)
    artifact = replace(model.artifact, tensors=tuple(refs))
    digests = {ref.slot: ref.digest for ref in refs}
    tensors = model.program.structure.tensors
    program = Program(model.program.structure, tuple(digests[tensor.name] for tensor in tensors))
    return replace(model, artifact_digest=put(store, encode(artifact)), artifact=artifact, program=program, answers=())


def largest_of_each(known: Sequence[Model]) -> list[Model]:
    found: dict[str, Model] = {}
    for model in known:
        best = found.get(model.architecture.family)
        if best is None or model.operations > best.operations:
            found[model.architecture.family] = model
    return list(found.values())


def pairs_of(known: Sequence[Model], siblings: Sequence[Model], across: int) -> Iterator[Pair]:
    by_name = {model.architecture.name: model for model in known}
    for mapped in (False, True):
        yield from (Pair(by_name[other.architecture.name], other, mapped=mapped) for other in siblings)
    families: dict[str, list[Model]] = {}
    for model in known:
        families.setdefault(model.architecture.family, []).append(model)
    for members in families.values():
        yield from (Pair(source, target) for source, target in permutations(members, 2))
    draw = random.Random(SEED)
    for _ in range(across):
        source, target = draw.sample(list(known), 2)
        while source.architecture.family == target.architecture.family:
            source, target = draw.sample(list(known), 2)
        yield Pair(source, target)


def plan(pair: Pair, costs: MetaCosts) -> None:
    for name in PLANNERS:
        planner = registry.make(name)
        begun = time.perf_counter()
        matrix = CostMatrix(pair.source.program, pair.target.program, costs)
        kept = planner.pairs(matrix)
        pair.planning_ms[name] = (time.perf_counter() - begun) * 1e3
        pair.plans[name] = plan_of(matrix, kept, name, costs)


def carried_out(source: Model, target: Model) -> tuple[TransformationPlan, bytes]:
    """As the scheduler's leader plans it: with assumed costs, for all siblings. With its delta."""
    here, there = source.program.structure, target.program.structure
    return planned(here, there, planner_for(here, there), MetaCosts(), (source.graph, target.graph))


def kind_of(pair: Pair) -> str:
    if pair.source.architecture is pair.target.architecture:
        return "siblings, mapped still" if pair.mapped else "siblings"
    return pair.source.architecture.family if pair.source.architecture.family == pair.target.architecture.family else "across"


def against(pairs: Sequence[Pair], what: str) -> list[float]:
    """Changes of time, -1 to ...: transform against loading the target otherwise."""
    return [pair.ms / getattr(pair.target, what) - 1 for pair in pairs]


def family_rows(report: Report, pairs: Sequence[Pair]) -> None:
    families: dict[str, list[Pair]] = {}
    for pair in pairs:
        families.setdefault(kind_of(pair), []).append(pair)
    for name, some in families.items():
        report.row(
            pairs=f"{name} ({len(some)})",
            operations=f"{min(p.target.operations for p in some)}-{max(p.target.operations for p in some)}",
            transform_ms=median([pair.ms for pair in some]),
            bind_ms=median([pair.target.bind_ms for pair in some]),
            scratch_ms=median([pair.target.scratch_ms for pair in some]),
            vs_bind=median(against(some, "bind_ms")),
            vs_scratch=median(against(some, "scratch_ms")),
            best_vs_scratch=min(against(some, "scratch_ms")),
            faster_than_bind=f"{sum(change < 0 for change in against(some, 'bind_ms'))} of {len(some)}",
            kept=median([len(p.carried_out.kept) / p.target.operations for p in some]),
            cost_ms=median([pair.expected_ms for pair in some]),
            **{f"{planner}_plan_ms": median([pair.planning_ms[planner] for pair in some]) for planner in PLANNERS},
            ours_over_munkres=median([_ratio(pair) for pair in some]),
            group_over_munkres=median([_ratio(pair, "group") for pair in some]),
        )


def _ratio(pair: Pair, planner: str = "tessera") -> float:
    best = pair.plans["munkres"].cost_ms
    return pair.plans[planner].cost_ms / best if best else 1.0


def observed(pair: Pair) -> Observation:
    return Observation(pair.carried_out.sums(), pair.ms)


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
    """For a thousand operations: the time of the largest pair, in proportion."""
    largest = max(known, key=lambda model: model.operations)
    planner = registry.make("group")
    found = []
    for _ in range(9):
        begun = time.perf_counter()
        planner.pairs(CostMatrix(largest.program, largest.program, costs))
        found.append((time.perf_counter() - begun) * 1e3)
    return median(found) * 1000 / largest.operations


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
        model.scratch_ms, model.build_ms = scratch_ms(model.architecture, max(2, repeats // 2))
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
    report.goal("best_vs_scratch", min(against(pairs, "scratch_ms")), "<=", -0.999, "of the time of loading from scratch, the best pair")
    report.goal("median_family_vs_scratch", median(against(within, "scratch_ms")), "<=", -0.95, "the same, median within families")
    report.goal("group_planner_ms", group_planner_ms(known, MetaCosts()), "<", 5.0, "ms for 1,000 operations")
    report.goal("ours_vs_munkres", median([_ratio(pair) for pair in pairs]), "<=", 1.1, "times the optimum's cost, median")
    over = [pair.ms - pair.target.bind_ms for pair in pairs]
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

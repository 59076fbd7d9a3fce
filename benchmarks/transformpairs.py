"""Models, pairs of them and their plans, for `benchmarks.transform`."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import permutations

import numpy as np

from benchmarks.architectures import FOLDER, Architecture, artifact_of
from tessera.domain.artifact import Artifact
from tessera.domain.ids import Digest
from tessera.domain.transformation import Observation, TransformationPlan
from tessera.policy.transform import registry
from tessera.policy.transform.by_size import planner_for
from tessera.policy.transform.costs import MetaCosts
from tessera.policy.transform.delta import planned
from tessera.policy.transform.matrix import CostMatrix
from tessera.policy.transform.plan import plan_of
from tessera.policy.transform.structure import Program, structure_of
from tessera.tensorstore.artifact import decode, encode
from tessera.tensorstore.local import LocalTensorStore
from tessera.testing.blobs import put

PLANNERS = ("group", "tessera", "munkres")
SEED = 5
NOISE = 0.01

NOTHING = TransformationPlan("", (), (), 0.0, 0.0)


@dataclass
class Model:
    architecture: Architecture
    artifact_digest: Digest
    artifact: Artifact
    program: Program
    scratch_ms: float = 0.0
    scratch_first_ms: float = 0.0
    build_ms: float = 0.0
    bind_ms: float = 0.0
    bind_first_ms: float = 0.0
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
    first_ms: float = 0.0
    bind_ms: float = 0.0
    """Of the target, where the donor is."""
    expected_ms: float = 0.0
    differs: bool = False

    @property
    def siblings(self) -> bool:
        return self.source.graph == self.target.graph


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
        pair.plans[name] = plan_of(matrix, planner.pairs(matrix), name, costs)
        pair.planning_ms[name] = (time.perf_counter() - begun) * 1e3


def carried_out(source: Model, target: Model) -> tuple[TransformationPlan, bytes]:
    """As the scheduler's leader plans it: with assumed costs, for all siblings. With its delta."""
    here, there = source.program.structure, target.program.structure
    return planned(here, there, planner_for(here, there), MetaCosts(), (source.graph, target.graph))


def kind_of(pair: Pair) -> str:
    if pair.siblings:
        return "siblings, mapped still" if pair.mapped else "siblings"
    return pair.source.architecture.family if pair.source.architecture.family == pair.target.architecture.family else "across"


def against_scratch(pairs: Sequence[Pair]) -> list[float]:
    """Changes of time, -1 to ...: transform against building and loading the target."""
    return [pair.ms / pair.target.scratch_ms - 1 for pair in pairs]


def against_first(pairs: Sequence[Pair]) -> list[float]:
    """The same to the end of the first answer."""
    return [pair.first_ms / pair.target.scratch_first_ms - 1 for pair in pairs]


def against_bind(pairs: Sequence[Pair]) -> list[float]:
    """The same against binding the target, where the donor is."""
    return [pair.ms / pair.bind_ms - 1 for pair in pairs]


def beyond(pair: Pair) -> bool:
    """Slower than binding by more than 5 % and more than 1 ms."""
    return pair.ms - pair.bind_ms > max(0.05 * pair.bind_ms, 1.0)


def ratio(pair: Pair, planner: str = "tessera") -> float:
    best = pair.plans["munkres"].cost_ms
    return pair.plans[planner].cost_ms / best if best else 1.0


def observed(pair: Pair) -> Observation:
    return Observation(pair.carried_out.sums(), pair.ms)

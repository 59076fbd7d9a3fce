"""Who is asked for what: one task with two networks, and twenty models, each under three objectives. Registered and measured once.

Objectives are multiples of what the profile says of the model as it was registered (`aten-fp32`; of a task: of its most accurate model), so
that they mean the same on every machine.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.models import BY_NAME, SMALL_CNN, TINY_BERTS, TINY_CNNS, BenchModel, arrays
from benchmarks.openloop import Form
from tessera.api.profiler.v1 import profiler_pb2
from tessera.domain.objectives import Objectives
from tessera.sdk import Client
from tessera.sdk._infer import infer_request

TASK = "photos"
PHOTOS = {SMALL_CNN.name: 0.65, "resnet18": 0.70}
"""Stated accuracies, the best one last: what these architectures reach on ImageNet. Weights are drawn, so that nothing can be measured."""
MODELS = (*(BY_NAME[name] for name in reversed(PHOTOS)), BY_NAME["minilm"], *TINY_CNNS, *TINY_BERTS)
"""Twenty, the heaviest first: the share of the one at place n (from 1) is as 1 / n."""
LEAST_LATENCY_MS = 25.0
"""What a request that needs no work takes on a busy machine is not the platform's choice of variant."""
BUILD_S = 600.0


@dataclass(frozen=True)
class Objective:
    """`latency` and `cost` as multiples, `accuracy` as a share of the registered model's figures. `cost` None: nothing is said of it."""

    name: str
    weight: float
    latency: float
    accuracy: float
    cost: float | None = None


OBJECTIVES = (
    Objective("quick", 0.4, latency=2.0, accuracy=0.9),
    Objective("exact", 0.3, latency=4.0, accuracy=1.0),
    Objective("cheap", 0.3, latency=8.0, accuracy=0.9, cost=1.0),
)


@dataclass(frozen=True)
class Measured:
    """A variant by its profile. `usd_per_1000` None: nobody said a price."""

    model: str
    variant: str
    latency_ms: float
    accuracy: float
    usd_per_1000: float | None

    @property
    def reference(self) -> str:
        return f"{self.model}@1/{self.variant}"


@dataclass(frozen=True)
class Workload:
    """`forms` ask by model or task, `fixed` ask the single best variant for the same. `eager_items_per_s`: what a process that answers this
    mixture with eager PyTorch reaches."""

    forms: tuple[Form, ...]
    fixed: tuple[Form, ...]
    weights: tuple[float, ...]
    eager_items_per_s: float


def as_registered(variants: Iterable[Measured]) -> Measured:
    """The model as it was registered; of several models the most accurate one."""
    return max((one for one in variants if one.variant == "aten-fp32"), key=lambda one: one.accuracy)


def asked_for(objective: Objective, base: Measured) -> Objectives:
    return Objectives(
        latency_ms=round(max(LEAST_LATENCY_MS, objective.latency * base.latency_ms), 1),
        min_accuracy=round(objective.accuracy * base.accuracy, 6),
        max_cost=objective.cost * base.usd_per_1000 if objective.cost is not None and base.usd_per_1000 is not None else None,
    )


def single_best(variants: Iterable[Measured]) -> Measured:
    """The best latency at batch 1 of those that are accurate enough for every objective: who fixes one variant fixes it for all."""
    known = list(variants)
    least = max(objective.accuracy for objective in OBJECTIVES) * as_registered(known).accuracy
    return min((one for one in known if one.accuracy >= least - 1e-9), key=lambda one: (one.latency_ms, one.variant))


def mixture_items_per_s(rates: Mapping[str, float], weights: Mapping[str, float]) -> float:
    """Of one process that answers models one after another, each as often as its weight says."""
    return sum(weights.values()) / sum(weight / rates[name] for name, weight in weights.items())


def zipf(names: Sequence[str]) -> dict[str, float]:
    return {name: 1.0 / place for place, name in enumerate(names, start=1)}


def prepare(client: Client) -> None:
    """Registers, waits for the variants, measures: minutes the first time, seconds when all is there."""
    for model in MODELS:
        _register(client, model)
    for model in MODELS:
        ready = _made(client, model.name)
        if ready - {profile.variant.variant for profile in profiles_here(client, model.name)}:
            for _ in client.run_profile(model.name):
                pass


def profiles_here(client: Client, model: str) -> list[profiler_pb2.Profile]:
    """Those of this machine's class: a state folder may have seen others."""
    (node,) = client.nodes()
    return [profile for profile in client.profiles(model) if profile.profile_class == node.profile_class]


def _register(client: Client, model: BenchModel) -> None:
    began_s = time.monotonic()
    found = client.register(
        model.name,
        model.source,
        task=TASK if model.name in PHOTOS else "",
        accuracy=PHOTOS.get(model.name),
        builder_args=model.arguments or None,
        seed=model.seed,
        variants=["ort-int8" if model.family == "cnn" else "ort-int8-dynamic"],
        wait=True,
    )
    if not found.unchanged:
        print(f"registered {model.name} in {time.monotonic() - began_s:.0f} s", flush=True)


def _made(client: Client, model: str) -> set[str]:
    """The variants that are ready, once each is made or has failed."""
    deadline_s = time.monotonic() + BUILD_S
    while True:
        states = {variant.key.variant: variant.state for version in client.model(model).versions for variant in version.variants}
        if not {"pending", "building"}.intersection(states.values()):
            return {name for name, state in states.items() if state == "ready"}
        if time.monotonic() > deadline_s:
            raise SystemExit(f"the variants of {model} are not made within {BUILD_S:.0f} s")
        time.sleep(0.2)


def measured(client: Client, model: str) -> list[Measured]:
    """The variants that are offered, at batch 1 with the node's threads."""
    found = []
    for profile in profiles_here(client, model):
        ones = [row for row in profile.rows if row.batch == 1 and row.concurrency <= 1]
        if ones and not profile.withheld and profile.HasField("accuracy"):
            found.append(_measured(profile, max(ones, key=lambda row: row.threads).p50_ms))
    return found


def _measured(profile: profiler_pb2.Profile, latency_ms: float) -> Measured:
    price = profile.usd_per_1000 if profile.HasField("usd_per_1000") else None
    return Measured(profile.variant.model, profile.variant.variant, latency_ms, profile.accuracy, price)


def photos(client: Client, rates: Mapping[str, float]) -> Workload:
    """One task. The rate is eager PyTorch's of the network that is accurate enough for every objective."""
    variants = [one for name in PHOTOS for one in measured(client, name)]
    best = as_registered(variants).model
    return _workload(client, {f"task:{TASK}": (BY_NAME[best], variants)}, {f"task:{TASK}": 1.0}, rates[best])


def mixed(client: Client, rates: Mapping[str, float]) -> Workload:
    weights = zipf([model.name for model in MODELS])
    asked = {model.name: (model, measured(client, model.name)) for model in MODELS}
    return _workload(client, asked, weights, mixture_items_per_s(rates, weights))


def _workload(
    client: Client, asked: Mapping[str, tuple[BenchModel, Sequence[Measured]]], weights: Mapping[str, float], eager_items_per_s: float
) -> Workload:
    forms: list[Form] = []
    fixed: list[Form] = []
    shares: list[float] = []
    for name, (model, variants) in asked.items():
        named = [tensor.name for tensor in client.metadata(model.name).inputs]
        inputs = dict(zip(named, arrays(model), strict=True))
        base, best = as_registered(variants), single_best(variants)
        for objective in OBJECTIVES:
            wanted = asked_for(objective, base)
            assert wanted.latency_ms is not None
            for reference, into in ((name, forms), (best.reference, fixed)):
                into.append(Form(reference, objective.name, wanted.latency_ms, infer_request(reference, inputs, objectives=wanted)))
            shares.append(weights[name] * objective.weight)
    return Workload(tuple(forms), tuple(fixed), tuple(shares), eager_items_per_s)

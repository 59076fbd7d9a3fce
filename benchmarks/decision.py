"""What a decision costs in the gateway's memory: make bench NAME=decision

1,000 models in 50 tasks, 10 variants each, 100 nodes of four classes, 5,000 instances. The whole decision: parameters read, name resolved,
variant and instance chosen, what is missed found out, all of it recorded for explain. Requests of every form, 5,000 a second by the count
(a fifth as many updates come in between, as etcd's watches bring them: mostly instances, then load states, profiles, variants, nodes).
The time of an update itself is shown beside: it is the loop's, not the decision's.

    BENCH_DECISIONS=100000 BENCH_POLICY=tessera BENCH_INSTANCES=two-choices make bench NAME=decision
"""

from __future__ import annotations

import gc
import os
import random
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from benchmarks.report import Report, median, percentile
from tessera.coord import keys
from tessera.domain.accuracy import Agreement
from tessera.domain.errors import TesseraError
from tessera.domain.ids import (
    DEFAULT_TRUST_DOMAIN,
    BuildClass,
    Generation,
    InstanceId,
    ModelName,
    ProfileClass,
    RuntimeId,
    VariantKey,
    VariantName,
    VersionNumber,
)
from tessera.domain.objectives import NO_OBJECTIVES
from tessera.domain.records import InstanceRecord, LoadRecord, LoadState, NodeRecord, ProfileRecord, VariantRecord
from tessera.frames.openinference import Parameters
from tessera.gateway.core.catalogue import Catalogue
from tessera.gateway.core.decisions import Decision, DecisionLog
from tessera.gateway.core.requests import AskedFor, queue_budget_s
from tessera.gateway.core.routes import slot_of_choice
from tessera.gateway.core.slots import InstanceSlot
from tessera.policy.instance import registry as instance_policies
from tessera.policy.variant import registry as policies
from tessera.testing.builders import a_latency_row, a_load_cost, a_model, a_node, a_profile, a_variant, a_version, an_instance

TASKS, MODELS_PER_TASK, NODES, INSTANCES = 50, 20, 100, 5000
CLASSES = tuple((BuildClass(f"build-{at}"), ProfileClass(f"profile-{at}"), 1 + at % 2, 0.05 * (at + 1)) for at in range(4))
RECIPES = (
    ("ort-fp32", "ort"), ("aten-fp32", "aten"), ("ort-fp32-prepacked", "ort"), ("ort-int8", "ort"), ("ort-int8-dynamic", "ort"),
    ("aten-bf16", "aten"), ("aoti-fp32", "aten"), ("ort-fp32.b", "ort"), ("ort-int8.b", "ort"), ("aten-int8", "aten"),
)  # fmt: skip
DECISIONS_PER_UPDATE = 5
ROUNDS = 5
DOMAIN = DEFAULT_TRUST_DOMAIN


Decide = Callable[[str, Parameters], object]


class World:
    """A catalogue of that size, and what happens to it. Seeded: every run sees the same."""

    def __init__(self, policy: str, instances: str) -> None:
        self.draw = random.Random(11)
        self.catalogue = Catalogue(DOMAIN, policies.make(policy), instance_policies.make(instances, self.draw.random))
        self.models = [f"model-{number}" for number in range(TASKS * MODELS_PER_TASK)]
        self.keys: list[VariantKey] = []
        self.nodes = [self._node(number) for number in range(NODES)]
        self.instances: dict[str, InstanceRecord] = {}
        self.variants: dict[VariantKey, VariantRecord] = {}
        self.profiles: list[ProfileRecord] = []
        self.troubled: list[LoadRecord] = []
        self._number = 0
        self._fill()

    def _node(self, number: int) -> NodeRecord:
        build, profile, threads, price = CLASSES[number % len(CLASSES)]
        return a_node(f"node-{number}", build_class=build, profile_class=profile, runtime_threads=threads, usd_per_hour=price, cpu_count=8)

    def _fill(self) -> None:
        catalogue, draw = self.catalogue, self.draw
        for node in self.nodes:
            catalogue.put(keys.node(DOMAIN, node.node_id), node)
        for number, name in enumerate(self.models):
            catalogue.put(
                keys.model(DOMAIN, ModelName(name)), a_model(name, task=f"task-{number % TASKS}", accuracy=draw.uniform(0.6, 0.99))
            )
            version = a_version(name)
            catalogue.put(keys.version(a_variant(name).key.version_key), version)
            base_ms = draw.lognormvariate(2.5, 1.0)
            for at, (recipe, flavour) in enumerate(RECIPES):
                self._add_variant(name, recipe, flavour, at, base_ms)
        for _ in range(INSTANCES):
            self._start()
        for slot in catalogue.fleet.slots():
            slot.in_flight = draw.choice((0, 0, 0, 1, 2, 5, 12))

    def _add_variant(self, model: str, recipe: str, flavour: str, at: int, base_ms: float) -> None:
        key = VariantKey(DOMAIN, ModelName(model), VersionNumber(1), VariantName(recipe))
        lossy = "int8" in recipe or "bf16" in recipe
        agreement = Agreement(0.05, self.draw.uniform(0.97, 0.9999), 64) if lossy else None
        record = a_variant(model, recipe, backend=flavour, flavour=flavour, agreement=agreement, build_class=None)
        self.keys.append(key)
        self.variants[key] = record
        self.catalogue.put(keys.variant(key), record)
        for _, profile_class, threads, _ in CLASSES:
            one_ms = base_ms * (0.4 + 0.15 * at) * self.draw.uniform(0.7, 1.4)
            rows = tuple(a_latency_row(batch, threads, one_ms * (1 + 0.6 * (batch - 1))) for batch in (1, 4, 8))
            profile = a_profile(key, profile_class=profile_class, rows=rows, load=(a_load_cost(load_ms=self.draw.uniform(2, 60)),))
            self.profiles.append(profile)
            self.catalogue.put(keys.profile(key, profile_class), profile)

    # --- updates

    def _start(self) -> None:
        """Half of the models are cold: instances go to the others."""
        self._number += 1
        key = self.keys[self.draw.randrange(len(self.keys) // 2)]
        node = self.nodes[self.draw.randrange(NODES)]
        name = InstanceId(f"i{self._number}")
        record = an_instance(name, node.node_id, variant=key, generation=Generation(self._number), runtime_id=RuntimeId(f"r{self._number}"))
        self.instances[keys.instance(DOMAIN, node.node_id, name)] = record
        self.catalogue.put(keys.instance(DOMAIN, node.node_id, name), record)

    def _stop(self) -> None:
        key = next(iter(self.instances))
        del self.instances[key]
        self.catalogue.remove(key)
        # No node is lost here: what its record no longer says was stopped in order.
        slot = self.catalogue.fleet.slot(InstanceId(key.rpartition("/")[2]))
        if slot is not None:
            self.catalogue.fleet.mark_stale(slot)

    def _trouble(self) -> None:
        if len(self.troubled) > 50:
            record = self.troubled.pop(0)
            self.catalogue.remove(keys.load(DOMAIN, record.node_id, record.instance_id))
            return
        instance = self.draw.choice(list(self.instances.values()))
        record = LoadRecord(instance.instance_id, instance.node_id, instance.variant, LoadState.OVERLOADED, 0.0, "at its peak")
        self.troubled.append(record)
        self.catalogue.put(keys.load(DOMAIN, record.node_id, record.instance_id), record)

    def _measure(self) -> None:
        at = self.draw.randrange(len(self.profiles))
        profile = self.profiles[at]
        rows = tuple(replace(row, p50_ms=row.p50_ms * self.draw.uniform(0.95, 1.05)) for row in profile.rows)
        self.profiles[at] = replace(profile, rows=rows)
        self.catalogue.put(keys.profile(profile.variant, profile.profile_class), self.profiles[at])

    def _rebuild(self) -> None:
        key = self.draw.choice(self.keys)
        record = replace(self.variants[key], withheld="" if self.variants[key].withheld else "loses 3 points")
        self.variants[key] = record
        self.catalogue.put(keys.variant(key), record)

    def _renode(self) -> None:
        """A node is away and comes back: its class stays."""
        node = self.draw.choice(self.nodes)
        key = keys.node(DOMAIN, node.node_id)
        if node.node_id in self.catalogue.nodes:
            self.catalogue.remove(key)
        else:
            self.catalogue.put(key, node)

    def update(self) -> None:
        kind = self.draw.random()
        if kind < 0.40:
            self._start()
        elif kind < 0.80:
            self._stop()
        elif kind < 0.90:
            self._trouble()
        elif kind < 0.97:
            self._measure()
        elif kind < 0.99:
            self._rebuild()
        else:
            self._renode()

    # --- requests

    def objectives(self) -> Parameters:
        """Of a dozen that this kind of client knows; every fourth asks for a latency of its own."""
        draw = self.draw
        asked: Parameters = {}
        if draw.random() < 0.7:
            asked["latency_ms"] = draw.choice((10.0, 20.0, 50.0, 100.0)) if draw.random() < 0.75 else round(draw.uniform(5, 200), 1)
        if draw.random() < 0.7:
            asked["min_accuracy"] = draw.choice((0.7, 0.8, 0.9))
        if draw.random() < 0.2:
            asked["max_cost"] = draw.choice((0.001, 0.01))
        return asked

    def request(self, form: str) -> tuple[str, Parameters]:
        model = self.draw.choice(self.models)
        if form == "model":
            return model, {}
        if form == "variant":
            key = self.draw.choice(self.keys)
            return f"{key.model}@1/{key.variant}", {}
        if form == "model with objectives":
            return model, self.objectives()
        task = f"task:task-{self.draw.randrange(TASKS)}"
        return task, {} if form == "task" else self.objectives()


FORMS = ("model", "variant", "model with objectives", "task", "task with objectives")


class Decider:
    """The gateway's decision as `Inference` makes it, without the request around it."""

    def __init__(self, world: World) -> None:
        self.catalogue = world.catalogue
        self.asked_for = AskedFor()
        self.log = DecisionLog(8192)
        self.count = 0

    def decide(self, name: str, parameters: Parameters) -> Decision | None:
        decision = Decision(self.count.to_bytes(16), b"12345678", "", False, 0.0)
        self.count += 1
        objectives = NO_OBJECTIVES
        if parameters:
            queue_budget_s(parameters)
            objectives = self.asked_for.objectives(parameters)
        route = decision.route = self.catalogue.route(name, "", objectives)
        choice = decision.choice = self.catalogue.choose(route)
        if objectives is not NO_OBJECTIVES and choice is not None:
            decision.missed = route.missed(choice)
        decision.slot = slot_of_choice(choice) if choice is not None else None
        self.log.add(decision)
        return decision

    def unrecorded(self, name: str, parameters: Parameters) -> None:
        """The same without keeping anything for explain: metrics and spans need the request's own state all the same."""
        decision = Decision(self.count.to_bytes(16), b"12345678", "", False, 0.0)
        self.count += 1
        decision.slot = self.bare(name, parameters)

    def bare(self, name: str, parameters: Parameters) -> InstanceSlot | None:
        """The choice alone."""
        objectives = NO_OBJECTIVES
        if parameters:
            queue_budget_s(parameters)
            objectives = self.asked_for.objectives(parameters)
        route = self.catalogue.route(name, "", objectives)
        choice = self.catalogue.choose(route)
        if objectives is not NO_OBJECTIVES and choice is not None:
            route.missed(choice)
        return slot_of_choice(choice) if choice is not None else None


class Times:
    """Microseconds by the wall clock and of the processor alone: on a busy machine the first say who else was running."""

    def __init__(self) -> None:
        self.wall: list[float] = []
        self.processor: list[float] = []

    def time(self, work: Callable[[], object]) -> None:
        used, began = time.thread_time_ns(), time.perf_counter_ns()
        try:
            work()
        except TesseraError:
            pass  # a name that an update has just taken away
        ended, used_after = time.perf_counter_ns(), time.thread_time_ns()
        self.wall.append((ended - began) / 1000)
        self.processor.append((used_after - used) / 1000)


def timed(world: World, decide: Decide, forms: tuple[str, ...], count: int, updates: bool) -> tuple[Times, Times]:
    """Of each decision, and of each update."""
    took, updated = Times(), Times()
    requests = [world.request(forms[at % len(forms)]) for at in range(count)]
    for at, request in enumerate(requests):
        if updates and at % DECISIONS_PER_UPDATE == 0:
            updated.time(world.update)
        took.time(partial(decide, *request))
    return took, updated


def main() -> None:
    count = int(os.environ.get("BENCH_DECISIONS", "50000"))
    policy = os.environ.get("BENCH_POLICY", "tessera")
    instances = os.environ.get("BENCH_INSTANCES", "two-choices")
    report = Report("decision")
    began = time.perf_counter()
    world = World(policy, instances)
    filled_s = time.perf_counter() - began
    decider = Decider(world)
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)  # as the gateway does once it has read its records
    worst: list[float] = []
    # Every name and every objective once or twice: what is measured is a gateway that has been up for a minute.
    for form in FORMS:
        timed(world, decider.decide, (form,), 3 * count, False)
    for label, forms, updates in (
        *((form, (form,), False) for form in FORMS),
        *((form, (form,), True) for form in FORMS),
        ("all forms", FORMS, False),
        ("all forms", FORMS, True),
    ):
        timed(world, decider.decide, forms, count // 10, updates)
        rounds = [timed(world, decider.decide, forms, count // ROUNDS, updates) for _ in range(ROUNDS)]
        p99 = median([percentile(took.wall, 0.99) for took, _ in rounds])
        changed = [one for _, updated in rounds for one in updated.wall]
        report.row(
            policy=policy, instances=instances, form=label, updates_per_s=1000 if updates else 0, decisions=count,
            p50_us=median([percentile(took.wall, 0.5) for took, _ in rounds]), p99_us=p99,
            processor_p50_us=median([percentile(took.processor, 0.5) for took, _ in rounds]),
            processor_p99_us=median([percentile(took.processor, 0.99) for took, _ in rounds]),
            update_p50_us=percentile(changed, 0.5) if changed else "", update_p99_us=percentile(changed, 0.99) if changed else "",
        )  # fmt: skip
        worst = [p99] if label == "all forms" and updates else worst
    # In turns: what a decision costs whole, without being kept for explain, and without the request's own state (ids, times, outcome).
    recording, state = [], []
    for _ in range(ROUNDS * 2):
        full, unrecorded, bare = (
            median(timed(world, one, FORMS, count // ROUNDS, False)[0].processor)
            for one in (decider.decide, decider.unrecorded, decider.bare)
        )
        recording.append(1 - unrecorded / full)
        state.append((unrecorded - bare) / full)
    report.row(policy=policy, form="recording, share of a decision", p50_us=median(recording))
    report.row(policy=policy, form="the request's own state, share", p50_us=median(state))
    report.row(policy=policy, form="reading all records, seconds", p50_us=filled_s)
    report.goal("p99_us", worst[0], "<=", 50.0, "us")
    report.goal("recording_share", median(recording), "<=", 0.05, "of a decision")
    report.finish()


if __name__ == "__main__":
    main()

"""Start requests: decide from memory, tell the agent, answer. Nothing here waits for etcd or a disk.

Invariants: at most one start in flight per variant and build class; a start, once told to an agent, is carried to its end whoever
goes away; each waiter keeps to its own budget and, when a start fails, decides again on its own.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from tessera.clock import Clock
from tessera.domain.errors import DeadlineExceeded, InvalidInput, StaleTerm, TesseraError, Unavailable
from tessera.domain.ids import BuildClass, Digest, Generation, InstanceId, NodeId, RequestId, TrustDomain, VariantKey
from tessera.domain.instance import Stage, StageTime, StartPath
from tessera.domain.records import AssignmentRecord, VariantState
from tessera.domain.source import Source
from tessera.policy.start.base import StartDecision, StartOption, StartPolicy, StartQuestion
from tessera.policy.view import Candidate, NodeView
from tessera.program import Tasks
from tessera.scheduler.core.attempts import Attempts, Failure
from tessera.scheduler.core.cluster import Cluster
from tessera.scheduler.core.explanations import Explanations
from tessera.scheduler.core.merging import MergeKey, MergeTable
from tessera.scheduler.core.observed import ObservedInstance, begun
from tessera.scheduler.core.refusing import refused
from tessera.scheduler.core.snapshot import with_coming
from tessera.scheduler.core.sources import sources_of
from tessera.scheduler.loops.donating import Donating
from tessera.scheduler.loops.leading import Leading
from tessera.scheduler.loops.learning import Learning
from tessera.scheduler.loops.pulse import Pulse
from tessera.scheduler.ports import Agents, ArtifactBlobs, Meter, RandomBytes, Records, StartOrder
from tessera.telemetry import get_logger, span

log = get_logger("tessera.scheduler")


NOTE_AFTER_S = 0.002
"""A decision is written to the log while the agent is at work on it, not before the agent knows of it."""

PATIENT_SHARE = 0.8
"""How much of a request's budget a refusal that may pass is waited out at most."""


@dataclass(frozen=True, slots=True)
class StartRequest:
    """`ready_within_ms`: so that who waits is in time; None: nobody said."""

    request_id: RequestId
    candidates: tuple[VariantKey, ...]
    budget_s: float
    ready_within_ms: float | None = None


@dataclass(frozen=True, slots=True)
class StartAnswer:
    """`instance.start_path` is `warm` where it was there already; `stages` has the scheduler's own time as `schedule`."""

    instance: ObservedInstance
    stages: tuple[StageTime, ...]


@dataclass(frozen=True, slots=True)
class StartLimits:
    """Seconds, and how often one request is tried; as often again by transformations that are refused. `patience_s`: how long a refusal
    that may pass is waited out."""

    provisional_s: float = 30.0
    least_budget_s: float = 10.0
    settle_s: float = 2.0
    patience_s: float = 5.0
    retry_s: float = 0.25
    attempts: int = 4


@dataclass(slots=True)
class Flight:
    option: StartOption
    done: asyncio.Future[ObservedInstance | Failure]


class Starter:
    def __init__(
        self,
        *,
        clock: Clock,
        tasks: Tasks,
        leading: Leading,
        cluster: Cluster,
        records: Records,
        policy: StartPolicy,
        agents: Agents,
        blobs: ArtifactBlobs,
        random_bytes: RandomBytes,
        explanations: Explanations,
        changed: Pulse,
        wake: asyncio.Event,
        meter: Meter,
        limits: StartLimits,
        donors: Donating,
        learning: Learning,
    ) -> None:
        """`changed` fires when a report or a record came in; `wake` is set when there is a record to write."""
        self._clock = clock
        self._tasks = tasks
        self._leading = leading
        self._cluster = cluster
        self._records = records
        self._policy = policy
        self._agents = agents
        self._blobs = blobs
        self._random_bytes = random_bytes
        self._explanations = explanations
        self._changed = changed
        self._wake = wake
        self._meter = meter
        self._limits = limits
        self._donors = donors
        self._learning = learning
        self._flights: MergeTable[Flight] = MergeTable()

    @property
    def waited_for(self) -> frozenset[VariantKey]:
        """Variants of the starts in flight."""
        return self._flights.variants()

    @property
    def donors(self) -> frozenset[InstanceId]:
        """Donors of the starts in flight: what is ready still, and about to be something else."""
        return self._donors.taken

    async def start(self, request: StartRequest) -> StartAnswer:
        """Answers with a ready instance of one of the candidates.

        Raises:
            InvalidInput: no candidates, candidates of several trust domains, no budget.
            Unavailable: another scheduler leads (named), or no node can take it now.
            ResourceExhausted, FailedPrecondition: no node can take it; every refusal is counted.
            DeadlineExceeded: the budget is used up.
            TesseraError: the agent's own reason, when nothing else is left to try.
        """
        began_s = self._clock.monotonic_s()
        _check(request)
        try:
            async with asyncio.timeout(request.budget_s):
                answer = await self._start(request, began_s)
        except TimeoutError:
            self._meter.refused(DeadlineExceeded.kind)
            words = f"budget of {request.budget_s * 1e3:.0f} ms used up while {request.candidates[0]} was starting"
            raise DeadlineExceeded(words) from None
        except TesseraError as error:
            self._meter.refused(error.kind)
            raise
        elapsed_s = self._clock.monotonic_s() - began_s
        self._explanations.ended(request.request_id, elapsed_s * 1e3)
        self._meter.started(answer.instance.start_path, elapsed_s)
        return answer

    async def add(self, variant: VariantKey, nodes: Collection[NodeId], budget_s: float) -> ObservedInstance:
        """Starts one more instance of a variant on one of the nodes, whatever there is already. One try, by the same policy and filters.

        Raises:
            Unavailable: another scheduler leads, or a start of the variant is in flight on that class of nodes.
            TesseraError: no node can take it, or the agent's own reason.
        """
        request = StartRequest(RequestId(self._random_bytes(16).hex()), (variant,), budget_s)
        _check(request)
        self._leading.require()
        views = self._views()
        decision = self._decide(request, Attempts(), [replace(node, ready={}) for node in views if node.node_id in nodes])
        if decision.chosen is None:
            raise refused(decision, {})
        build_class = self._cluster.observed[decision.chosen.node_id].report.build_class
        if self._flights.find((variant, build_class)) is not None:
            raise Unavailable(f"a start of {variant} on {build_class} is in flight already")
        outcome = await self._carried_out(request, decision.chosen)
        if isinstance(outcome, Failure):
            raise outcome.error
        return outcome

    async def _start(self, request: StartRequest, began_s: float) -> StartAnswer:
        self._leading.require()
        await self._settled()
        tried = Attempts()
        # Not to the budget's very end: the refusal says more than "too late".
        patient_until_s = self._clock.monotonic_s() + min(self._limits.patience_s, PATIENT_SHARE * request.budget_s)
        while True:
            self._leading.require()
            decision = self._decide(request, tried, self._views())
            if decision.chosen is None:
                await self._wait_or_raise(decision, tried, patient_until_s)
                continue
            warm = decision.chosen.instance
            if warm is not None and (instance := self._cluster.find(warm.instance_id)) is not None:
                return self._answer(replace(instance, start_path=StartPath.WARM, fetched=False, stages=()), began_s)
            outcome = await self._carried_out(request, decision.chosen)
            if isinstance(outcome, ObservedInstance):
                return self._answer(outcome, began_s)
            tried.add(outcome, request.candidates)
            if tried.count >= self._limits.attempts:
                raise refused(replace(decision, explanation=f"{tried.count} attempts"), tried.failures)

    async def _settled(self) -> None:
        """A new leader waits a moment for the reports of the nodes that it knows of: what lives must not be started twice."""
        until_s = self._leading.since_s + self._limits.settle_s
        while (left_s := until_s - self._clock.monotonic_s()) > 0 and not self._all_reported():
            await self._changed.wait(left_s)

    def _all_reported(self) -> bool:
        observed, records = self._cluster.observed, self._records.nodes()
        return bool(records) and all(node_id in observed and observed[node_id].live for node_id in records)

    def _decide(self, request: StartRequest, tried: Attempts, nodes: Sequence[NodeView]) -> StartDecision:
        began_s = self._clock.monotonic_s()
        with span("tessera.scheduler.decide", request_id=request.request_id) as found:
            candidates, unusable = self._candidates(request.candidates)
            donors, no_donors = self._donors.of(candidates, nodes) if tried.transformations < self._limits.attempts else ({}, {})
            profiles, within_ms, seen = self._records.profiles(), request.ready_within_ms, self._learning.seen
            question = StartQuestion(candidates, tuple(nodes), profiles, tried.words(), donors, within_ms, no_donors, seen)
            decision = self._policy.decide(question)
            if unusable:
                text = "; ".join(part for part in (decision.explanation, *unusable) if part)
                decision = replace(decision, explanation=text, may_pass=True)
            words = _words(decision)
            found.set_attributes(words)
        self._meter.decided(self._clock.monotonic_s() - began_s)
        self._explanations.decided(request.request_id, decision)
        note = functools.partial(log.info, "start decided", request_id=request.request_id, **words)
        asyncio.get_running_loop().call_later(NOTE_AFTER_S, note)
        return decision

    def _views(self) -> tuple[NodeView, ...]:
        """With what the starts in flight are fetching, and without the donors that they have: a donor sends its requests on before its
        start is answered, and whoever asks for its variant then must not hear that it is there."""
        coming: dict[tuple[NodeId, TrustDomain], set[Digest]] = {}
        for variant, node_id, flight in self._flights.all():
            record = self._records.variant(variant) if flight.option.bytes_to_fetch else None
            if record is not None and record.artifact and (blobs := self._blobs.blobs(record.artifact)):
                coming.setdefault((node_id, variant.trust_domain), set()).update(blob.digest for blob in blobs)
        return with_coming(self._cluster.views(self._records.nodes(), self._flights.starting(), also=self._donors.taken), coming)

    def _candidates(self, wanted: Sequence[VariantKey]) -> tuple[tuple[Candidate, ...], list[str]]:
        """Candidates that are ready, and why the others are not; a record may be on its way from etcd still."""
        candidates: list[Candidate] = []
        unusable: list[str] = []
        for key in wanted:
            record = self._records.variant(key)
            if record is None:
                unusable.append(f"variant {key} is not known here")
            elif record.state is not VariantState.READY:
                unusable.append(f"variant {key} is {record.state}")
            else:
                blobs = self._blobs.blobs(record.artifact) if record.artifact else ()
                if blobs is None and record.artifact:
                    self._blobs.want(record.artifact)
                candidates.append(Candidate(record, blobs))
        return tuple(candidates), unusable

    async def _wait_or_raise(self, decision: StartDecision, tried: Attempts, patient_until_s: float) -> None:
        left_s = patient_until_s - self._clock.monotonic_s()
        error = refused(decision, tried.failures)
        if left_s <= 0:
            raise error
        if tried.failures and tried.forget_passing():
            await self._clock.sleep(self._limits.retry_s)
        elif decision.may_pass:
            await self._changed.wait(left_s)
        else:
            raise error

    async def _carried_out(self, request: StartRequest, option: StartOption) -> ObservedInstance | Failure:
        """Joins the flight of this variant and class, or opens one. A waiter that leaves does not end the flight."""
        node = self._cluster.observed[option.node_id]
        key: MergeKey = (option.variant, node.report.build_class)
        flight = self._flights.find(key)
        if flight is None:
            flight = self._open(key, request, option)
        else:
            self._meter.merged()
        return await asyncio.shield(flight.done)

    def _open(self, key: MergeKey, request: StartRequest, option: StartOption) -> Flight:
        order = self._order(request, option, key[1])
        address = self._cluster.start_address(order.node_id, self._records.nodes())
        if address is None:
            raise Unavailable(f"node {order.node_id} has no address")
        flight = Flight(option, asyncio.get_running_loop().create_future())
        self._flights.open(key, order.node_id, flight)
        self._cluster.planned(_record(order), self._clock.monotonic_s())
        if order.donor is not None:
            self._donors.take(order.donor)
        self._tasks.start(f"start {order.instance_id}", self._fly(key, flight, address, order))
        return flight

    def _order(self, request: StartRequest, option: StartOption, build_class: BuildClass) -> StartOrder:
        """A new instance, or the one that an agent is starting already for a leader before this one: never a second."""
        term = self._leading.require().term
        record = self._records.variant(option.variant)
        artifact = record.artifact if record is not None else None
        there = begun(self._cluster.observed.values(), option.variant, build_class)
        if there is not None:
            artifact = there.artifact or artifact
            names = (there.node_id, there.instance_id, there.generation)
        else:
            # A generation of 0 would read as "not set" on the wire.
            generation = int.from_bytes(self._random_bytes(8), "big") or 1
            names = (option.node_id, InstanceId(f"i-{self._random_bytes(8).hex()}"), Generation(generation))
        budget_s = max(request.budget_s, self._limits.least_budget_s)
        path, donor = (option.start_path, option.donor) if there is None else (there.start_path.again, None)
        sources = self._sources(option.variant, artifact, names[0])
        # No record stands behind it while it is waited for.
        expires_after_s = budget_s + self._limits.provisional_s
        return StartOrder(
            term, *names, option.variant, artifact, path, expires_after_s, budget_s, request.request_id, sources, donor,
            self._donors.delta(donor, option.variant) if donor is not None else b"", self._donors.idle_s,
        )  # fmt: skip

    def _sources(self, variant: VariantKey, artifact: Digest | None, target: NodeId) -> tuple[Source, ...]:
        if artifact is None:
            return ()
        holdings = self._cluster.holdings(variant.trust_domain, self._flights.starting())
        return sources_of(artifact, self._blobs.blobs(artifact), target, holdings)

    async def _fly(self, key: MergeKey, flight: Flight, address: str, order: StartOrder) -> None:
        """Carries a start out. Its outcome is a value for all who wait; only the end of the process raises here."""
        outcome: ObservedInstance | Failure = Failure(flight.option.key, Unavailable("the scheduler is stopping"), unreachable=True)
        try:
            outcome = await self._tell(flight.option, address, order)
        finally:
            self._flights.close(key)
            if order.donor is not None:
                self._donors.release(order.donor)
            if isinstance(outcome, Failure):
                self._cluster.failed(order.instance_id)
                if not outcome.unreachable:
                    self._cluster.refused(order.node_id, order.instance_id)
                if order.donor is not None:
                    self._donors.failed(order.donor, order.variant, outcome.error)
            else:
                self._cluster.answered(outcome, self._clock.monotonic_s())
                if order.donor is not None and outcome.start_path is StartPath.TRANSFORM:
                    self._donors.became(order.donor, outcome)
                self._wake.set()
            flight.done.set_result(outcome)
            self._changed.fire()

    async def _tell(self, option: StartOption, address: str, order: StartOrder) -> ObservedInstance | Failure:
        try:
            async with asyncio.timeout(order.budget_s + 1.0):
                return await self._agents.start(address, order)
        except StaleTerm as error:
            # The agent has obeyed somebody newer: look who leads before anything else is done.
            self._leading.doubt.set()
            failure = Failure(option.key, Unavailable(f"another scheduler leads: {error.message}"), unreachable=True)
        except TesseraError as error:
            failure = Failure(option.key, error, isinstance(error, Unavailable | DeadlineExceeded))
        except TimeoutError:
            late = DeadlineExceeded(f"the agent of {order.node_id} did not answer within {order.budget_s:.1f} s")
            failure = Failure(option.key, late, unreachable=True)
        log.warning(
            "start failed", instance=order.instance_id, node=order.node_id, variant=str(order.variant), reason=failure.error.message
        )
        return failure

    def _answer(self, instance: ObservedInstance, began_s: float) -> StartAnswer:
        total_ms = (self._clock.monotonic_s() - began_s) * 1e3
        own_ms = max(0.0, total_ms - sum(stage.ms for stage in instance.stages))
        return StartAnswer(instance, (StageTime(Stage.SCHEDULE, own_ms), *instance.stages))


def _check(request: StartRequest) -> None:
    if not request.candidates:
        raise InvalidInput("candidates", None, "at least one variant must be named")
    domains = sorted({key.trust_domain for key in request.candidates})
    if len(domains) > 1:
        raise InvalidInput("candidates", domains, "all must be of one trust domain")
    if request.budget_s <= 0:
        raise InvalidInput("budget_us", int(request.budget_s * 1e6), "must be more than 0")


def _record(order: StartOrder) -> AssignmentRecord:
    artifact = order.artifact or Digest("")
    return AssignmentRecord(order.instance_id, order.node_id, order.variant, artifact, order.generation, order.start_path, order.term)


def _words(decision: StartDecision) -> Mapping[str, str | float]:
    option = decision.chosen
    if option is None:
        return {"refused": decision.explanation}
    return {
        "variant": str(option.variant),
        "node": option.node_id,
        "start_path": option.start_path.value,
        "expected_ms": round(option.expected_ms, 2),
        "reason": option.reason,
        "losers": len(decision.losers),
    }

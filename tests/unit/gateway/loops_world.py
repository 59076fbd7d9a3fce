"""The gateway's loops in virtual time, without sockets: fakes of what they need, and the words to run them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any

from tessera.domain.errors import TesseraError, Unavailable
from tessera.domain.ids import Generation, InstanceId, VariantKey
from tessera.domain.instance import Stage, StageTime
from tessera.frames import FrameResponse, RequestHeader
from tessera.gateway.adapters.identifiers import Identifiers
from tessera.gateway.core.catalogue import Catalogue
from tessera.gateway.core.decisions import DecisionLog
from tessera.gateway.core.slots import InstanceSlot, slot_of
from tessera.gateway.loops.inference import Inference
from tessera.gateway.loops.starts import StartQueues
from tessera.gateway.ports import StartedInstance
from tessera.policy.variant.plain import PlainVariantPolicy
from tessera.program import Stop, Tasks
from tessera.testing import LoopClock, run_virtual
from tessera.testing.builders import a_model, a_node, a_variant, a_version, an_instance

REQUEST = b"\x0a\x06digits"


class SilentMeter:
    def decided(self, seconds: float) -> None: ...
    def answered(self, labels: tuple[str, str, str, str], outcome: str, seconds: float) -> None: ...
    def waiting(self, change: int) -> None: ...
    def started(self, start_path: str, stages: Sequence[StageTime]) -> None: ...


class FakeLink:
    """Answers after `delay_s` with what `answer` makes."""

    def __init__(self) -> None:
        self.delay_s = 0.001
        self.answer: Callable[[RequestHeader], FrameResponse] = lambda header: FrameResponse(0, 1, 0, 0, 1000, b"")
        self.headers: list[RequestHeader] = []
        self.cancelled = 0

    async def request(self, header: RequestHeader, body: bytes, suffix: bytes) -> FrameResponse:
        self.headers.append(header)
        try:
            await asyncio.sleep(self.delay_s)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        answer = self.answer(header)
        return answer if answer.status else answer._replace(body=bytes(answer.body) + suffix)


class FakeLinks:
    def __init__(self) -> None:
        self.link = FakeLink()
        self.reachable = True
        self.dead: set[InstanceId] = set()
        self.mute: set[InstanceId] = set()
        """Nothing comes back from where they are."""

    def connected(self, slot: InstanceSlot) -> Any:
        return self.link if self.reachable and slot.instance_id not in self.dead | self.mute else None

    async def connect(self, slot: InstanceSlot) -> Any:
        if not self.reachable or slot.instance_id in self.dead:
            raise Unavailable("nobody listens")
        if slot.instance_id in self.mute:
            await asyncio.sleep(3600)
        return self.link


class FakeScheduler:
    """Starts an instance after `delay_s`; `errors` come first, one per call. `takes`: which of the candidates."""

    def __init__(self) -> None:
        self.delay_s = 1.0
        self.errors: list[TesseraError] = []
        self.takes = 0
        self.asked: list[list[VariantKey]] = []
        self.calls: list[float] = []
        self.within: list[float] = []
        self.generation = 100
        self.fixed_generation: int | None = None
        self.starts = an_instance()
        """What the instances are like, but for their names."""

    async def start_instance(
        self, candidates: Sequence[VariantKey], request_id: str, budget_s: float, ready_within_s: float
    ) -> StartedInstance:
        self.asked.append(list(candidates))
        self.calls.append(budget_s)
        self.within.append(ready_within_s)
        await asyncio.sleep(self.delay_s)
        if self.errors:
            raise self.errors.pop(0)
        self.generation += 1
        generation = self.fixed_generation or self.generation
        names = {"generation": Generation(generation), "instance_id": InstanceId(f"i{generation}")}
        record = replace(self.starts, variant=candidates[self.takes], **names)
        return StartedInstance(slot_of(record), "bind", False, (StageTime(Stage.LOAD, self.delay_s * 1000),))


class Parts:
    def __init__(self, tasks: Tasks, *, limit: int = 8, budget_s: float = 30.0) -> None:
        self.clock = LoopClock()
        self.catalogue = Catalogue(a_model().trust_domain, PlainVariantPolicy())
        for key, record in {"m": a_model(), "v": a_version(), "x": a_variant(build_class=None), "n": a_node()}.items():
            self.catalogue.put(key, record)  # type: ignore[arg-type] # four kinds of record
        self.links, self.scheduler, self.decisions = FakeLinks(), FakeScheduler(), DecisionLog(100)
        meter = SilentMeter()
        self.starts = StartQueues(self.catalogue, self.scheduler, self.links, tasks, self.clock, meter, limit=limit, budget_s=budget_s)
        self.inference = Inference(
            self.catalogue, lambda: True, self.links, self.starts, self.decisions, self.clock, meter, Identifiers(),
            default_budget_s=60.0, held_bytes_limit=1 << 20,
        )  # fmt: skip


def virtually(test: Callable[[Parts], Awaitable[None]], **settings: Any) -> None:
    async def main() -> None:
        stop = Stop()
        async with Tasks(stop) as tasks:
            parts = Parts(tasks, **settings)
            try:
                await test(parts)
            finally:
                parts.inference.close()
        assert stop.error is None

    run_virtual(main)

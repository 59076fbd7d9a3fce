"""What decisions predicted against what happened, by the gateway's own account: requests with objectives at several batches.

Two latencies are asked for at each batch: one that only the fastest variants keep, and one that nearly all do, so that the least work wins.
Requests come one at a time, and then four at a time with one item each. Starts are not counted: `make bench NAME=start` is about them.
Where a prediction is off, `run_ms` says what the kernel took of what happened, and `around_ms` what neither it nor a queue did.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from benchmarks.models import BenchModel, arrays
from benchmarks.offers import Offer, error, fastest_ms
from tessera.domain.objectives import Objectives
from tessera.sdk import Client, InferResult

BATCHES = (1, 2, 4, 8)
AT_A_TIME = 4
LOW_ACCURACY = 0.5
TIGHT, LOOSE = 1.5, 10.0
"""Times what the fastest variant takes by its profile."""
SETTLING = 3


@dataclass
class Predicted:
    """Of one batch and way of asking. `errors` are shares of what happened."""

    batch: int
    in_flight: int
    errors: list[float] = field(default_factory=list)
    predicted_ms: list[float] = field(default_factory=list)
    actual_ms: list[float] = field(default_factory=list)
    run_ms: list[float] = field(default_factory=list)
    around_ms: list[float] = field(default_factory=list)
    variants: set[str] = field(default_factory=set)

    def note(self, client: Client, answer: InferResult) -> None:
        if answer.start_path != "warm":
            return
        told = client.explain(answer.request_id)
        self.errors.append(error(told.predicted_ms, told.actual_ms))
        self.predicted_ms.append(told.predicted_ms)
        self.actual_ms.append(told.actual_ms)
        stages = {stage.stage: stage.ms for stage in told.stages}
        self.run_ms.append(stages.get("run", 0.0))
        self.around_ms.append(told.actual_ms - sum(stages.values()))
        self.variants.add(answer.variant)


def measure(client: Client, model: BenchModel, offers: Sequence[Offer], count: int) -> Iterator[Predicted]:
    """`count` requests of each kind."""
    names = [spec.name for spec in client.metadata(model.name).inputs]
    for batch, in_flight in (*((batch, 1) for batch in BATCHES), (1, AT_A_TIME)):
        found = Predicted(batch, in_flight)
        inputs: Mapping[str, np.ndarray] = dict(zip(names, arrays(model, batch), strict=True))
        for times in (TIGHT, LOOSE):
            asked = Objectives(latency_ms=times * fastest_ms(offers, batch * in_flight), min_accuracy=LOW_ACCURACY)

            def ask(_: int, inputs: Mapping[str, np.ndarray] = inputs, asked: Objectives = asked) -> InferResult:
                return client.infer(model.name, inputs, objectives=asked)

            with ThreadPoolExecutor(in_flight) as pool:
                list(pool.map(ask, range(SETTLING * in_flight)))
                answers = list(pool.map(ask, range(count // 2)))
            for answer in answers:
                found.note(client, answer)
        yield found

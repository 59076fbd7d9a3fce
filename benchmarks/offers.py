"""What a platform made of a model and measured, and what follows from it. Values in, values out."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace

from tessera.api.profiler.v1 import profiler_pb2
from tessera.api.registry.v1 import registry_pb2
from tessera.wire import decode_agreement, decode_latency_row

MIB = 1 << 20
VNNI = frozenset({"avx512_vnni", "avx_vnni"})
CNN_GOAL, TRANSFORMER_GOAL = 1.4, 1.1
CNN_GOAL_VNNI, TRANSFORMER_GOAL_VNNI = 4.0, 2.0


@dataclass(frozen=True)
class Offer:
    """A variant with its figures on the node, all cores busy. `p50_ms` by batch, empty where nothing was measured. `batch`, `items_per_s`:
    where it answers the most. `weights_mib` are mapped and shared with whoever has the same, `private_mib` are an instance's own."""

    variant: str
    precision: str
    state: str
    why: str
    loss: float
    compared: str
    p50_ms: Mapping[int, float] = field(default_factory=dict)
    batch: int = 0
    items_per_s: float = 0.0
    weights_mib: float = 0.0
    private_mib: float = 0.0

    @property
    def one_ms(self) -> float:
        return self.p50_ms[1]

    @property
    def memory_mib(self) -> float:
        return self.weights_mib + self.private_mib


def offer_of(info: registry_pb2.VariantInfo, profiles: Iterable[profiler_pb2.Profile], threads: int, concurrency: int) -> Offer:
    """Of what `concurrency` instances with `threads` each answer."""
    agreement = decode_agreement(info.agreement) if info.HasField("agreement") else None
    state = "withheld" if info.withheld else "offered" if info.state == "ready" else info.state
    compared = "" if agreement is None else f"cosine {agreement.cosine:.4f}, error {agreement.max_error:.2g}, {agreement.samples} samples"
    found = Offer(
        info.key.variant, info.precision, state, info.withheld or info.reason, agreement.loss if agreement is not None else 0.0, compared,
        weights_mib=info.tensor_bytes / MIB,
    )  # fmt: skip
    measured = next((profile for profile in profiles if profile.variant == info.key), None)
    if measured is None:
        return found
    rows = [row for row in map(decode_latency_row, measured.rows) if (row.threads, row.concurrency) == (threads, concurrency)]
    by_batch = {row.batch: row for row in rows}
    if 1 not in by_batch:
        return found
    at = max(rows, key=lambda row: row.items_per_s)
    private = max((load.peak_private_bytes for load in measured.load), default=0) + by_batch[1].peak_private_bytes
    p50_ms = {batch: row.p50_ms for batch, row in by_batch.items()}
    return replace(found, p50_ms=p50_ms, batch=at.batch, items_per_s=at.items_per_s, private_mib=private / MIB)


def offered(offers: Iterable[Offer]) -> list[Offer]:
    """Those that a request may get without naming them, as far as they were measured."""
    return [one for one in offers if one.state == "offered" and one.p50_ms]


def most(offers: Iterable[Offer]) -> Offer:
    """Of those that are offered the one that answers the most."""
    return max(offered(offers), key=lambda one: one.items_per_s)


def static(offers: Iterable[Offer]) -> Offer:
    """What somebody chooses who looks at batch 1 alone."""
    return min(offered(offers), key=lambda one: one.one_ms)


def fastest_ms(offers: Iterable[Offer], batch: int) -> float:
    """Of those that are offered; a batch that one was not measured at takes it as long as its items one after another."""
    return min(one.p50_ms.get(batch, batch * one.one_ms) for one in offered(offers))


def without_gain(offers: Iterable[Offer]) -> list[str]:
    """Offered int8 variants that are neither faster at batch 1 nor smaller than every offered variant of another precision."""
    all_ = offered(offers)
    others = [one for one in all_ if one.precision != "int8"]
    return [
        one.variant
        for one in all_
        if one.precision == "int8"
        and any(one.one_ms >= other.one_ms for other in others)
        and any(one.memory_mib >= other.memory_mib for other in others)
    ]


def goal(family: str, isa: Collection[str]) -> float:
    """Times eager PyTorch that a CPU with these instructions is asked for."""
    vnni = not VNNI.isdisjoint(isa)
    if family == "cnn":
        return CNN_GOAL_VNNI if vnni else CNN_GOAL
    return TRANSFORMER_GOAL_VNNI if vnni else TRANSFORMER_GOAL


def error(predicted_ms: float, actual_ms: float) -> float:
    """By what share of what happened the prediction was off."""
    return abs(predicted_ms - actual_ms) / actual_ms

"""What a profile says about every batch of an instance, made when it is first asked for."""

from __future__ import annotations

from tessera.domain.fit import predict_ms
from tessera.domain.records import ProfileRecord


class ProfiledLatency:
    """Latency by batch on a profile class, with the threads that runtimes there have or, where those were not measured, with the fastest
    that were. A batch beyond all that is known takes as long as its items one after another."""

    __slots__ = ("_ms", "_profile", "_threads", "one_ms")

    def __init__(self, profile: ProfileRecord, threads: int, one_ms: float) -> None:
        self._profile = profile
        self._threads = threads
        self.one_ms = one_ms
        self._ms: dict[int, float] = {1: one_ms}

    @classmethod
    def of(cls, profile: ProfileRecord | None, threads: int) -> ProfiledLatency | None:
        """None where batch 1 was not measured."""
        ones = {row.threads: row.p50_ms for row in profile.rows if row.batch == 1 and row.concurrency == 1} if profile is not None else {}
        if profile is None or not ones:
            return None
        measured = threads if threads in ones else min(ones, key=ones.__getitem__)
        return cls(profile, measured, ones[measured])

    def at(self, batch: int) -> float:
        known = self._ms.get(batch)
        if known is None:
            predicted = predict_ms(self._profile, batch, self._threads)
            known = self._ms[batch] = self.one_ms * batch if predicted is None else predicted
        return known

"""Who may wait for a starting instance, and when a start is tried again after it failed."""

from __future__ import annotations

from dataclasses import dataclass, replace

from tessera.domain.errors import DeadlineExceeded, ResourceExhausted, TesseraError, error_of

FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 30.0


@dataclass(frozen=True, slots=True)
class StartForecast:
    """What a start is expected to take, from the profile: the least measured load and the latency at batch 1, in seconds."""

    load_s: float | None
    latency_s: float | None


def refusal(
    *, variant: str, waiting: int, limit: int, budget_s: float, forecast: StartForecast, running_for_s: float
) -> TesseraError | None:
    """Why a request may not wait for this start, or None. `running_for_s`: how long the start has been going on already.

    Only what is sure to miss is refused early: the forecast is the least that was ever measured.
    """
    if waiting >= limit:
        return ResourceExhausted(f"{waiting} requests wait for {variant} to start: at most start_queue_limit = {limit}")
    if forecast.load_s is None:
        return None
    needed_s = max(0.0, forecast.load_s - running_for_s) + (forecast.latency_s or 0.0)
    if needed_s > budget_s:
        return DeadlineExceeded(
            f"{variant} is not active and would answer in {needed_s * 1000:.0f} ms at best, {budget_s * 1000:.0f} ms are left"
        )
    return None


@dataclass(frozen=True, slots=True)
class FailedStart:
    """A start that failed for a reason that another try right away would meet again."""

    kind: str
    message: str
    failures: int
    until_s: float

    def error(self, now_s: float) -> TesseraError:
        """What requests are told until the next try."""
        return error_of(self.kind, f"{self.message} (failed {self.failures} times; next try in {max(0.0, self.until_s - now_s):.1f} s)")

    @property
    def pause_s(self) -> float:
        return min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** min(self.failures - 1, 10))


def after_failure(before: FailedStart | None, error: TesseraError, now_s: float) -> FailedStart:
    """The pause after one more failure: 0.5 s, doubled each time, 30 s at most."""
    failed = FailedStart(error.kind, error.message, before.failures + 1 if before else 1, now_s)
    return replace(failed, until_s=now_s + failed.pause_s)

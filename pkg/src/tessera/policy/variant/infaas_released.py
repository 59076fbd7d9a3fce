"""What INFaaS's released code does (queryfe), which is not Algorithm 1: recent winners first, then the slowest that is fast enough.

- The last five winners are tried first, the latest first, if they run and meet the requirements.
- Not all candidates are looked at: max(3, 15 % of the latency asked for / 0.6 ms of a metadata look-up).
- Of those that run, the one whose latency is the closest to the latency asked for; one that does not run counts 1000 ms more.
- Overloaded or interfered ones (its "blacklist") are passed over, except by each tenth request.
Left out: rules for GPUs (refusing them for loose objectives, exclusive ones), and the blacklist of a worker by its requests a second.
"""

from __future__ import annotations

from collections import deque

from tessera.policy.instance.base import InstancePolicy
from tessera.policy.instance.least_in_flight import LeastInFlight
from tessera.policy.variant.base import Candidate, Choice, Ranking
from tessera.policy.variant.misses import closest
from tessera.policy.variant.plain import PlainVariantPolicy, within

RECENT = 5
LEAST_LOOKED_AT = 3
LOOKING_SHARE = 0.15
LOOK_UP_MS = 0.6
NOT_LOADED_MS = 1000.0
BLACKLISTED_ONE_IN = 10

_LEAST_LOADED = LeastInFlight()


class InfaasReleasedVariantPolicy(PlainVariantPolicy):
    """Remembers its winners and counts its requests, as the released code does: the one policy that depends on what it chose."""

    name = "infaas-released"

    def __init__(self) -> None:
        self._recent: deque[Candidate] = deque(maxlen=RECENT)
        self._requests = 0

    def choose(self, ranking: Ranking, latency_ms: float | None, instances: InstancePolicy, items: int) -> Choice | None:
        self._requests += 1
        fitting = within(ranking.meeting, latency_ms, items)
        even_troubled = self._requests % BLACKLISTED_ONE_IN == 0
        for recent in self._recent:
            if recent in fitting and _runs(recent, even_troubled):
                return self._won(recent, items)
        asked_ms = latency_ms or 0.0
        looked_at = fitting[: max(LEAST_LOOKED_AT, int(LOOKING_SHARE * asked_ms / LOOK_UP_MS))]
        able = [one for one in looked_at if one.activity.instances or not one.nowhere]
        open_ = [one for one in able if _runs(one, even_troubled) or not one.activity.instances] or able
        if not open_:
            return closest(ranking, latency_ms, _LEAST_LOADED, items)
        return self._won(min(open_, key=lambda one: _slack_ms(one, asked_ms, items)), items)

    def _won(self, candidate: Candidate, items: int) -> Choice:
        if candidate in self._recent:
            self._recent.remove(candidate)
        self._recent.appendleft(candidate)
        if candidate.activity.instances:
            return Choice(candidate, _LEAST_LOADED.pick(candidate.activity.instances), candidate.expected_ms(items))
        return Choice(candidate, None, candidate.started_ms(items))


def _runs(candidate: Candidate, even_troubled: bool) -> bool:
    return bool(candidate.activity.instances) and (even_troubled or not candidate.activity.troubled)


def _slack_ms(candidate: Candidate, asked_ms: float, items: int) -> float:
    """What is left of the latency asked for; without one, the latency itself."""
    slack_ms = abs(asked_ms - (candidate.expected_ms(items) or 0.0))
    return slack_ms if candidate.activity.instances else slack_ms + NOT_LOADED_MS

"""The profiler's gRPC face: wire in, one call, wire out. Errors of the domain become statuses in `tessera.rpc`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from tessera.api.profiler.v1 import profiler_pb2, profiler_pb2_grpc
from tessera.domain.ids import TrustDomain, checked_name
from tessera.profiler.core.valuing import Valued
from tessera.profiler.loops import Profiler, RunRequest
from tessera.wire import encode_meta_costs, encode_profile


class ProfilerServer(profiler_pb2_grpc.ProfilerServicer):
    def __init__(self, profiler: Profiler) -> None:
        self._profiler = profiler

    async def RunProfile(self, request: profiler_pb2.RunProfileRequest, context: Any) -> AsyncIterator[profiler_pb2.ProfileEvent]:
        wanted = RunRequest(
            TrustDomain(checked_name("trust_domain", request.trust_domain)),
            request.model,
            request.version,
            request.variant,
            request.profile_class,
            request.quick,
            request.again,
        )
        # When the caller went away, measuring ends now.
        async with aclosing(self._profiler.run(wanted)) as run:
            async for progress in run:
                profile = encode_profile(progress.profile) if progress.profile is not None else None
                yield profiler_pb2.ProfileEvent(message=progress.message, fraction=progress.fraction, profile=profile)

    async def GetProfiles(self, request: profiler_pb2.GetProfilesRequest, context: Any) -> profiler_pb2.GetProfilesResponse:
        domain = TrustDomain(checked_name("trust_domain", request.trust_domain))
        found = await self._profiler.profiles(domain, request.model, request.version)
        return profiler_pb2.GetProfilesResponse(profiles=[_profile_message(each) for each in found])

    async def GetMetaCosts(self, request: profiler_pb2.GetMetaCostsRequest, context: Any) -> profiler_pb2.GetMetaCostsResponse:
        found = await self._profiler.meta_costs(TrustDomain(checked_name("trust_domain", request.trust_domain)))
        return profiler_pb2.GetMetaCostsResponse(costs=[encode_meta_costs(each) for each in found])


def _profile_message(found: Valued) -> profiler_pb2.Profile:
    message = encode_profile(found.record)
    message.usd_per_hour = found.usd_per_hour
    message.cpu_count = found.cpu_count
    message.withheld = found.withheld
    if found.usd_per_1000 is not None:
        message.usd_per_1000 = found.usd_per_1000
    if found.accuracy is not None:
        message.accuracy = found.accuracy.value
        message.accuracy_source = found.accuracy.source.value
    return message

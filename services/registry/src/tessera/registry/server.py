"""The registry's gRPC face: wire in, one call, wire out. Errors of the domain become statuses in `tessera.rpc`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any

from tessera.api.registry.v1 import registry_pb2, registry_pb2_grpc
from tessera.domain.accuracy import DEFAULT_ALLOWANCE
from tessera.domain.errors import FailedPrecondition, InvalidInput, VersionNotFound
from tessera.domain.ids import (
    DEFAULT_TRUST_DOMAIN,
    Digest,
    JobId,
    ModelName,
    TrustDomain,
    VariantKey,
    VersionKey,
    VersionNumber,
    checked_digest,
    checked_name,
)
from tessera.domain.records import AliasRecord, VariantRecord, VariantState, VersionRecord
from tessera.registry.core.manifest import SourceFile, UploadLimits, checked_manifest
from tessera.registry.core.promotion import Comparison, Guard, checked_guard
from tessera.registry.core.recipes import ATEN
from tessera.registry.core.source import BUILT_IN, BuilderCall, Demands, Registration, checked_registration, parse_argument
from tessera.registry.loops.aliases import Aliases
from tessera.registry.loops.catalogue import Catalogue, Known
from tessera.registry.loops.imports import Imports
from tessera.registry.loops.joblog import JobLog, JobProgress
from tessera.registry.loops.planning import Planning
from tessera.registry.loops.shelf import Shelf
from tessera.registry.loops.variants import VariantMaker
from tessera.registry.ports import IncomingFile, Uploads
from tessera.wire import encode_signature, encode_variant_info, encode_variant_key

_MAX_PIECE_BYTES = 4 << 20

Progress = Callable[[VariantKey], str]


class RegistryServer(registry_pb2_grpc.RegistryServicer):
    def __init__(
        self,
        *,
        domains: Iterable[TrustDomain],
        uploads: Uploads,
        limits: UploadLimits,
        allowed_builders: tuple[str, ...],
        catalogue: Catalogue,
        aliases: Aliases,
        imports: Imports,
        variants: VariantMaker,
        planning: Planning,
        shelf: Shelf,
        log: JobLog,
    ) -> None:
        self._domains = frozenset(domains)
        self._uploads = uploads
        self._limits = limits
        self._allowed_builders = allowed_builders
        self._catalogue = catalogue
        self._aliases = aliases
        self._imports = imports
        self._variants = variants
        self._planning = planning
        self._shelf = shelf
        self._log = log

    def _domain(self, text: str) -> TrustDomain:
        domain = TrustDomain(checked_name("trust_domain", text or DEFAULT_TRUST_DOMAIN))
        if domain not in self._domains:
            raise InvalidInput("trust_domain", domain, f"this registry serves {', '.join(sorted(self._domains))}")
        return domain

    async def BeginUpload(self, request: registry_pb2.BeginUploadRequest, context: Any) -> registry_pb2.BeginUploadResponse:
        registration = checked_registration(self._registration(request.registration), self._allowed_builders)
        return registry_pb2.BeginUploadResponse(missing_digests=await self._imports.missing(registration))

    async def UploadFiles(
        self, request_iterator: AsyncIterator[registry_pb2.UploadFilesRequest], context: Any
    ) -> registry_pb2.UploadFilesResponse:
        domain: TrustDomain | None = None
        incoming: IncomingFile | None = None
        total = 0
        try:
            async for piece in request_iterator:
                if domain is None:
                    domain = self._domain(piece.trust_domain)
                if len(piece.data) > _MAX_PIECE_BYTES:
                    raise InvalidInput("data", len(piece.data), f"at most {_MAX_PIECE_BYTES} bytes a message")
                digest = checked_digest("digest", piece.digest)
                if incoming is not None and incoming.digest != digest:
                    await self._finish(domain, incoming)
                    incoming = None
                if incoming is None:
                    incoming = self._uploads.receive(domain, digest)
                await asyncio.to_thread(incoming.write, piece.offset, piece.data)
                total += len(piece.data)
                if total > self._limits.total_bytes:
                    raise InvalidInput("files", total, f"at most {self._limits.total_bytes} bytes an upload")
            if incoming is not None and domain is not None:
                await self._finish(domain, incoming)
                incoming = None
        finally:
            if incoming is not None:
                incoming.discard()
        return registry_pb2.UploadFilesResponse(received_bytes=total)

    async def _finish(self, domain: TrustDomain, incoming: IncomingFile) -> None:
        await asyncio.to_thread(incoming.finish)
        self._uploads.arrived(domain, incoming.digest)

    async def RegisterModel(self, request: registry_pb2.RegisterModelRequest, context: Any) -> AsyncIterator[registry_pb2.JobEvent]:
        registration = checked_registration(self._registration(request), self._allowed_builders)
        events = self._imports.register(registration, wait=request.wait_for_variants)
        try:
            async for progress in events:
                yield await self._event(progress)
        finally:
            await events.aclose()

    def _registration(self, request: registry_pb2.RegisterModelRequest) -> Registration:
        kind = request.WhichOneof("source")
        builder: BuilderCall | None = None
        if kind == "directory":
            files = checked_manifest(_files(request.directory.files), self._limits)
        elif kind == "builder":
            given = request.builder
            arguments = {name: parse_argument(name, text) for name, text in given.arguments.items()}
            builder = BuilderCall(given.reference, arguments, given.seed if given.HasField("seed") else 0)
            files = checked_manifest(_files(given.weights), self._limits) if given.weights else ()
        else:
            raise InvalidInput("source", None, "a directory or a builder")
        evaluation = self._set("evaluation", request.evaluation.file) if request.evaluation.HasField("file") else None
        demands = Demands(
            evaluation=evaluation,
            metric=request.evaluation.metric,
            calibration=self._set("calibration", request.calibration) if request.HasField("calibration") else None,
            allow_loss=request.allow_loss if request.HasField("allow_loss") else DEFAULT_ALLOWANCE,
            recipes=tuple(request.variants.recipes) if request.HasField("variants") else None,
        )
        return Registration(
            trust_domain=self._domain(request.trust_domain),
            name=ModelName(request.name),
            task=request.task,
            dataset=request.dataset,
            accuracy=request.accuracy if request.HasField("accuracy") else None,
            files=files,
            builder=builder,
            demands=demands,
            lossy=request.lossy if request.HasField("lossy") else None,
        )

    def _set(self, what: str, message: registry_pb2.SourceFile) -> SourceFile:
        """A set's file, called by what it is: its own name is nobody's business."""
        (file,) = checked_manifest([SourceFile(f"{what} set", message.size_bytes, Digest(message.digest))], self._limits)
        return file

    async def WatchJob(self, request: registry_pb2.WatchJobRequest, context: Any) -> AsyncIterator[registry_pb2.JobEvent]:
        async for progress in self._log.follow(JobId(request.job_id), request.after_sequence):
            yield await self._event(progress)

    async def StopVariants(self, request: registry_pb2.StopVariantsRequest, context: Any) -> registry_pb2.StopVariantsResponse:
        stopped = await self._variants.stop(
            self._domain(request.trust_domain),
            ModelName(checked_name("model name", request.model)),
            VersionNumber(request.version) if request.version else None,
            request.variant and checked_name("variant", request.variant),
        )
        return registry_pb2.StopVariantsResponse(stopped=[encode_variant_key(key) for key in stopped])

    async def _event(self, progress: JobProgress) -> registry_pb2.JobEvent:
        event = registry_pb2.JobEvent(
            job_id=progress.job_id, sequence=progress.sequence, step=progress.step, message=progress.message, fraction=progress.fraction
        )
        if progress.error is not None:
            event.error = str(progress.error)
        if progress.version is not None:
            event.result.CopyFrom(_result(progress.version, await self._catalogue.variants_of(progress.version), progress.unchanged))
        return event

    async def GetModel(self, request: registry_pb2.GetModelRequest, context: Any) -> registry_pb2.GetModelResponse:
        domain = self._domain(request.trust_domain)
        known = await self._catalogue.model(domain, ModelName(checked_name("model name", request.name)))
        return registry_pb2.GetModelResponse(model=_model(known, self._variants.progress))

    async def ShowPlan(self, request: registry_pb2.ShowPlanRequest, context: Any) -> registry_pb2.ShowPlanResponse:
        found = await self._planning.show(
            self._domain(request.trust_domain), request.source, request.target, request.planner, request.profile_class
        )
        steps = [
            registry_pb2.ShowPlanResponse.Step(
                operator=step.operator, kind=step.kind, source=step.source, target=step.target, new_bytes=step.new_bytes,
                cost_ms=step.cost_ms,
            )
            for step in found.plan.steps
        ]  # fmt: skip
        answer = registry_pb2.ShowPlanResponse(
            source=str(found.source.key), target=str(found.target.key), planner=found.plan.planner, steps=steps, kept=len(found.plan.kept),
            source_operations=found.operations[0], target_operations=found.operations[1], base_ms=found.costs.base_ms,
            expected_ms=found.costs.base_ms + found.plan.expected_ms,
        )  # fmt: skip
        if found.record is not None:
            answer.profile_class, answer.error = found.record.profile_class, found.record.error
            answer.observations, answer.measured_unix_s = found.record.observations, found.record.measured_unix_s
        return answer

    async def ListModels(self, request: registry_pb2.ListModelsRequest, context: Any) -> registry_pb2.ListModelsResponse:
        if request.task:
            checked_name("task", request.task)
        found = await self._catalogue.models(self._domain(request.trust_domain))
        models = [_model(known, self._variants.progress) for known in found if request.task in ("", known.model.task)]
        return registry_pb2.ListModelsResponse(models=models)

    async def DeleteModel(self, request: registry_pb2.DeleteModelRequest, context: Any) -> registry_pb2.DeleteModelResponse:
        domain = self._domain(request.trust_domain)
        name = ModelName(checked_name("model name", request.name))
        if name == BUILT_IN:
            raise FailedPrecondition(f"model {name!r} is built in and cannot be deleted")
        removed = await self._catalogue.delete(domain, name, VersionNumber(request.version) if request.version else None)
        return registry_pb2.DeleteModelResponse(freed_bytes=await self._shelf.discard(removed))

    async def SetAlias(self, request: registry_pb2.SetAliasRequest, context: Any) -> registry_pb2.SetAliasResponse:
        await self._aliases.set(self._domain(request.trust_domain), *_move(request))
        return registry_pb2.SetAliasResponse()

    async def PromoteAlias(self, request: registry_pb2.PromoteAliasRequest, context: Any) -> registry_pb2.PromoteAliasResponse:
        limits = {field.name: value for field, value in request.guard.ListFields()}
        guard = checked_guard(Guard(**limits))
        found = await self._aliases.promote(self._domain(request.trust_domain), *_move(request), guard, force=request.force)
        return registry_pb2.PromoteAliasResponse(
            alias=_alias(found.alias), comparisons=map(_comparison, found.comparisons), unchanged=found.unchanged
        )

    async def RollBackAlias(self, request: registry_pb2.RollBackAliasRequest, context: Any) -> registry_pb2.RollBackAliasResponse:
        found = await self._aliases.roll_back(self._domain(request.trust_domain), ModelName(checked_name("alias", request.alias)))
        return registry_pb2.RollBackAliasResponse(alias=_alias(found))

    async def DeleteAlias(self, request: registry_pb2.DeleteAliasRequest, context: Any) -> registry_pb2.DeleteAliasResponse:
        await self._aliases.delete(self._domain(request.trust_domain), ModelName(checked_name("alias", request.alias)))
        return registry_pb2.DeleteAliasResponse()


def _move(request: registry_pb2.SetAliasRequest | registry_pb2.PromoteAliasRequest) -> tuple[ModelName, ModelName, VersionNumber | None]:
    return (
        ModelName(checked_name("alias", request.alias)),
        ModelName(checked_name("model", request.model)),
        VersionNumber(request.version) if request.version else None,
    )


def _files(messages: Iterable[registry_pb2.SourceFile]) -> list[SourceFile]:
    return [SourceFile(message.path, message.size_bytes, Digest(message.digest)) for message in messages]


def _result(version: VersionKey, variants: list[VariantRecord], unchanged: bool) -> registry_pb2.RegistrationResult:
    """Raises: VersionNotFound when it was deleted meanwhile."""
    if not variants:
        raise VersionNotFound(version.model, version.version)
    # The registered numbers themselves; what came as ONNX has them in the first variant that was baked.
    base = min(variants, key=lambda v: (v.key.variant != ATEN, v.state is not VariantState.READY, v.key))
    return registry_pb2.RegistrationResult(
        model=version.model,
        version=version.version,
        unchanged=unchanged,
        tensor_bytes=base.tensor_bytes,
        tensor_bytes_already_stored=base.tensor_bytes_shared,
        variants=[encode_variant_info(variant) for variant in sorted(variants, key=lambda v: v.key)],
    )


def _model(known: Known, progress: Progress) -> registry_pb2.ModelInfo:
    model = known.model
    info = registry_pb2.ModelInfo(
        trust_domain=model.trust_domain,
        name=model.name,
        task=model.task,
        dataset=model.dataset,
        lossy=model.lossy,
        versions=[_version(version, known.variants, progress) for version in known.versions],
        aliases=[_alias(alias) for alias in sorted(known.aliases, key=lambda alias: alias.alias)],
    )
    if model.accuracy is not None:
        info.accuracy = model.accuracy
    return info


def _version(version: VersionRecord, variants: Iterable[VariantRecord], progress: Progress) -> registry_pb2.VersionInfo:
    own = sorted((variant for variant in variants if variant.key.version == version.version), key=lambda v: v.key)
    return registry_pb2.VersionInfo(
        version=version.version,
        signature=encode_signature(version.signature),
        source_kind=version.source_kind,
        source_digest=version.source_digest,
        created_unix_s=version.created_unix_s,
        metric=version.evaluation.metric if version.evaluation else "",
        evaluation_digest=version.evaluation.digest if version.evaluation else "",
        calibration_digest=version.calibration.digest if version.calibration else "",
        allow_loss=version.allowance,
        variants=[encode_variant_info(variant, progress(variant.key)) for variant in own],
    )


def _alias(alias: AliasRecord) -> registry_pb2.AliasInfo:
    return registry_pb2.AliasInfo(
        alias=alias.alias,
        model=alias.model,
        version=alias.version or 0,
        since_unix_s=alias.since_unix_s,
        reason=alias.reason,
        before=[
            registry_pb2.AliasStep(model=step.model, version=step.version, since_unix_s=step.since_unix_s, reason=step.reason)
            for step in alias.before
        ],
    )


def _comparison(found: Comparison) -> registry_pb2.Comparison:
    return registry_pb2.Comparison(
        measure=found.measure,
        on=found.on,
        current=found.current,
        candidate=found.candidate,
        words=found.words,
        refused=found.refused,
    )

"""The synchronous client. `_async_client` is its twin; what they share stands in the modules beside."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, Unpack

import numpy.typing as npt

from tessera.api.batch.v1 import batch_pb2, batch_pb2_grpc
from tessera.api.common.v1 import common_pb2
from tessera.api.gateway.v1 import gateway_pb2, gateway_pb2_grpc
from tessera.api.node.v1 import node_pb2, node_pb2_grpc
from tessera.api.open_inference import inference_pb2 as oip
from tessera.api.profiler.v1 import profiler_pb2, profiler_pb2_grpc
from tessera.api.registry.v1 import registry_pb2, registry_pb2_grpc
from tessera.api.scheduler.v1 import scheduler_pb2, scheduler_pb2_grpc
from tessera.domain.errors import TesseraError
from tessera.domain.objectives import Objectives
from tessera.rpc import connect_sync
from tessera.sdk._infer import MODEL_INFER, InferResult, Parameter, infer_request, infer_result, note, request_context
from tessera.sdk._requests import (
    LONG_S,
    NODE_METADATA,
    BatchOptions,
    PromotionOptions,
    batch_request,
    explain_request,
    profile_request,
    promote_request,
    result_of,
)
from tessera.sdk._source import Demands, Progress, chunks, local_files, register_request, sets_of, source_of
from tessera.sdk._target import find_target

OnEvent = Callable[[registry_pb2.JobEvent], None]


class Client:
    """Talks to one platform. Thread-safe. Close it, or use it with `with`.

    Args:
        endpoint: HOST:PORT of the gateway (see `find_target` for what is tried without it).
        state: the state folder of an embedded platform; gives endpoint and token.
        trust_domain: whose models are meant.
    """

    def __init__(
        self,
        endpoint: str | None = None,
        *,
        admin_endpoint: str | None = None,
        token: str | None = None,
        state: str | os.PathLike[str] | None = None,
        trust_domain: str = "default",
    ) -> None:
        self.target = find_target(endpoint, admin_endpoint=admin_endpoint, token=token, state=state, trust_domain=trust_domain)
        self.trust_domain = trust_domain
        self._channel = connect_sync(self.target.endpoint)
        self._admin = connect_sync(self.target.admin_endpoint, token=self.target.token)
        self._infer: Any = self._channel.unary_unary(MODEL_INFER)
        self._registry = registry_pb2_grpc.RegistryStub(self._admin)
        self._gateway = gateway_pb2_grpc.GatewayStub(self._admin)
        self._profiler = profiler_pb2_grpc.ProfilerStub(self._admin)
        self._batch = batch_pb2_grpc.BatchStub(self._admin)
        self._scheduler = scheduler_pb2_grpc.SchedulerStub(self._admin)
        self._node = node_pb2_grpc.NodeAgentStub(self._admin)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._channel.close()
        self._admin.close()

    # Inference

    def infer(
        self,
        model: str,
        inputs: Mapping[str, npt.ArrayLike],
        *,
        version: int | str | None = None,
        outputs: Sequence[str] | None = None,
        parameters: Mapping[str, Parameter] | None = None,
        objectives: Objectives | None = None,
        id: str = "",
        timeout_s: float | None = None,
        request_id: str | None = None,
    ) -> InferResult:
        """Runs a model: arrays by input name in, arrays by output name out.

        `model` is NAME, NAME@VERSION, NAME@VERSION/VARIANT, an alias or `task:NAME`; `objectives` is what the answer shall meet.
        `timeout_s` is the whole budget, queueing and starting included. `id` is echoed in the answer; `request_id` (32 hex digits, a W3C
        trace id) is what explain and trace know the request by, made up where it is not given; an error carries it as a note.
        A request holds 64 MiB of numbers, or 131,072 texts (or `bytes`); so does an answer.

        Raises:
            InvalidInput, ModelNotFound, ResourceExhausted, Unavailable, DeadlineExceeded, Internal: see `tessera.domain.errors`.
            FailedPrecondition: strict objectives that nothing meets.
        """
        request = infer_request(
            model, inputs, version=version, outputs=outputs, parameters=parameters, objectives=objectives, request_id=id
        )
        known_as, metadata = request_context(request_id)
        try:
            answer: bytes = self._infer(request, timeout=timeout_s, metadata=metadata)
        except TesseraError as error:
            note(error, known_as)
            raise
        return infer_result(answer)

    def _open_inference(self, method: str, request: Any, answer_type: Any) -> Any:
        call: Any = self._channel.unary_unary(
            f"/inference.GRPCInferenceService/{method}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=answer_type.FromString,
        )
        return call(request)

    def is_live(self) -> bool:
        return bool(self._open_inference("ServerLive", oip.ServerLiveRequest(), oip.ServerLiveResponse).live)

    def is_ready(self, model: str | None = None, version: int | str | None = None) -> bool:
        """The server, or a model: servable now or on demand."""
        if model is None:
            return bool(self._open_inference("ServerReady", oip.ServerReadyRequest(), oip.ServerReadyResponse).ready)
        request = oip.ModelReadyRequest(name=model, version="" if version is None else str(version))
        return bool(self._open_inference("ModelReady", request, oip.ModelReadyResponse).ready)

    def metadata(self, model: str, version: int | str | None = None) -> oip.ModelMetadataResponse:
        request = oip.ModelMetadataRequest(name=model, version="" if version is None else str(version))
        answer: oip.ModelMetadataResponse = self._open_inference("ModelMetadata", request, oip.ModelMetadataResponse)
        return answer

    def config(self, model: str, version: int | str | None = None) -> oip.ModelConfig:
        """Maximum batch size, and dims without the batch dimension."""
        request = oip.ModelConfigRequest(name=model, version="" if version is None else str(version))
        answer: oip.ModelConfigResponse = self._open_inference("ModelConfig", request, oip.ModelConfigResponse)
        return answer.config

    def repository_index(self, ready: bool = False) -> list[oip.RepositoryIndexResponse.ModelIndex]:
        """Every version of every model with its state; with `ready` only those that can be served now or on demand."""
        request = oip.RepositoryIndexRequest(ready=ready)
        answer: oip.RepositoryIndexResponse = self._open_inference("RepositoryIndex", request, oip.RepositoryIndexResponse)
        return list(answer.models)

    # Models

    def register(
        self,
        name: str,
        path_or_builder: str | os.PathLike[str],
        *,
        task: str = "",
        dataset: str = "",
        accuracy: float | None = None,
        builder_args: Mapping[str, Any] | None = None,
        seed: int | None = None,
        weights: Path | None = None,
        evaluation: Path | None = None,
        metric: str = "",
        allow_loss: float | None = None,
        lossy: bool | None = None,
        calibration: Path | None = None,
        variants: Sequence[str] | None = None,
        wait: bool = False,
        on_event: OnEvent | None = None,
        on_upload: Progress | None = None,
    ) -> registry_pb2.RegistrationResult:
        """Registers a local folder, a `.pt2` or `.onnx` file or a builder reference; returns when it is durable (`wait`: and its base
        variants are made).

        Only files that the registry does not have are sent. The same content again is recognised before anything is sent, and answered
        at once.

        Args:
            evaluation: a `.npz` file with an array per input and the right answers (`labels`, or by an output's name), scored by `metric`.
            allow_loss: what a lossy variant may lose, as a share of 1, and still be offered (0.01).
            lossy: whether plain requests may get a lossy variant that is offered; None leaves what the model says.
            calibration: a `.npz` file with inputs, from which int8 variants take the ranges of activations.
            variants: recipes to make beside the base ones; None is the registry's own list.

        Raises:
            InvalidInput: names the field, the file or the operation that is refused, and what would work.
        """
        source = source_of(path_or_builder, builder_args, seed, weights)
        files = local_files(source)
        demands = Demands(evaluation, metric, allow_loss, lossy, calibration, variants)
        sets = sets_of(demands)
        request = register_request(
            self.trust_domain, name, source, files, demands, sets, task=task, dataset=dataset, accuracy=accuracy, wait=wait
        )
        if uploads := [*files, *sets.files]:
            missing = set(self._registry.BeginUpload(registry_pb2.BeginUploadRequest(registration=request)).missing_digests)
            if missing:
                self._registry.UploadFiles(
                    chunks(self.trust_domain, uploads, missing, on_upload or (lambda sent, total: None)), timeout=LONG_S
                )
        last: registry_pb2.JobEvent | None = None
        for event in self._registry.RegisterModel(request, timeout=LONG_S):
            if on_event is not None:
                on_event(event)
            last = event if event.HasField("result") else last
        return result_of(last)

    def models(self, task: str = "") -> list[registry_pb2.ModelInfo]:
        return list(self._registry.ListModels(registry_pb2.ListModelsRequest(trust_domain=self.trust_domain, task=task)).models)

    def model(self, name: str) -> registry_pb2.ModelInfo:
        """A model or an alias."""
        return self._registry.GetModel(registry_pb2.GetModelRequest(trust_domain=self.trust_domain, name=name)).model

    def plan(self, source: str, target: str, planner: str = "", profile_class: str = "") -> registry_pb2.ShowPlanResponse:
        """What turns an instance of one variant into one of another; references as MODEL, MODEL@VERSION or MODEL@VERSION/VARIANT. `planner`
        "": the one whose plans are carried out. Costs are those of `profile_class`; "": those that were measured last, or assumed ones."""
        request = registry_pb2.ShowPlanRequest(
            trust_domain=self.trust_domain, source=source, target=target, planner=planner, profile_class=profile_class
        )
        return self._registry.ShowPlan(request)

    def delete_model(self, name: str, version: int | None = None) -> int:
        """Deletes a version, or every version; returns the bytes that the repository got back."""
        request = registry_pb2.DeleteModelRequest(trust_domain=self.trust_domain, name=name, version=version or 0)
        return self._registry.DeleteModel(request).freed_bytes

    def stop_variants(self, name: str, version: int | None = None, variant: str = "") -> list[common_pb2.VariantKey]:
        """Stops making what is not made yet of a model, a version or one variant; the base variants are made nevertheless."""
        request = registry_pb2.StopVariantsRequest(trust_domain=self.trust_domain, model=name, version=version or 0, variant=variant)
        return list(self._registry.StopVariants(request).stopped)

    def set_alias(self, alias: str, model: str, version: int | None = None) -> None:
        """Points an alias at a model (whichever version of it answers) or at one version; moves atomically."""
        request = registry_pb2.SetAliasRequest(trust_domain=self.trust_domain, alias=alias, model=model, version=version or 0)
        self._registry.SetAlias(request)

    def promote(
        self, alias: str, model: str, version: int | None = None, **options: Unpack[PromotionOptions]
    ) -> registry_pb2.PromoteAliasResponse:
        """Points an alias at a version (None: what is the newest now) that is not worse than the one it names; says what was compared.

        Raises:
            FailedPrecondition: it is worse, or there is no common measure: names the figures, the limits and the way round.
        """
        return self._registry.PromoteAlias(promote_request(self.trust_domain, alias, model, version, **options))

    def roll_back(self, alias: str) -> registry_pb2.AliasInfo:
        """Points an alias at what it named before; done twice it goes back twice.

        Raises:
            FailedPrecondition: it named nothing before that is there still. Conflict: it was moved in the same moment.
        """
        request = registry_pb2.RollBackAliasRequest(trust_domain=self.trust_domain, alias=alias)
        return self._registry.RollBackAlias(request).alias

    def delete_alias(self, alias: str) -> None:
        self._registry.DeleteAlias(registry_pb2.DeleteAliasRequest(trust_domain=self.trust_domain, alias=alias))

    def watch_job(self, job_id: str, after: int = 0) -> Iterator[registry_pb2.JobEvent]:
        yield from self._registry.WatchJob(registry_pb2.WatchJobRequest(job_id=job_id, after_sequence=after), timeout=LONG_S)

    # Profiles

    def run_profile(
        self,
        model: str,
        *,
        version: int | None = None,
        variant: str = "",
        profile_class: str = "",
        quick: bool = False,
        again: bool = False,
    ) -> Iterator[profiler_pb2.ProfileEvent]:
        """Measures what is not measured yet; ends when all is. Stop iterating to stop measuring: what is done stays."""
        request = profile_request(self.trust_domain, model, version, variant, profile_class, quick, again)
        yield from self._profiler.RunProfile(request, timeout=LONG_S)

    def profiles(self, model: str, version: int | None = None) -> list[profiler_pb2.Profile]:
        request = profiler_pb2.GetProfilesRequest(trust_domain=self.trust_domain, model=model, version=version or 0)
        return list(self._profiler.GetProfiles(request).profiles)

    def meta_costs(self) -> list[profiler_pb2.MetaCosts]:
        """What transformations take, on each profile class where it was measured."""
        request = profiler_pb2.GetMetaCostsRequest(trust_domain=self.trust_domain)
        return list(self._profiler.GetMetaCosts(request).costs)

    # Batch jobs

    def submit_batch(self, model: str, input_url: str, output_url: str, **options: Unpack[BatchOptions]) -> batch_pb2.BatchInfo:
        """Queues offline requests: every row at the input URL answered once, at low priority, into the output URL.

        `model` as in `infer`, or task:NAME. URLs are the platform's: `file:///...` is a path there, below a root that it allows.

        Raises:
            InvalidInput, PermissionDenied, NotFound, AlreadyExists: names what is wrong with it.
        """
        request = batch_request(self.trust_domain, model, input_url, output_url, **options)
        return self._batch.SubmitBatch(request).batch

    def batches(self) -> list[batch_pb2.BatchInfo]:
        """Newest first."""
        return list(self._batch.ListBatches(batch_pb2.ListBatchesRequest(trust_domain=self.trust_domain)).batches)

    def batch(self, job_id: str) -> batch_pb2.BatchInfo:
        return self._batch.GetBatch(batch_pb2.GetBatchRequest(trust_domain=self.trust_domain, job_id=job_id)).batch

    def cancel_batch(self, job_id: str) -> batch_pb2.BatchInfo:
        """Asks for its end; what is written stays, and a submission with `if_exists="resume"` goes on there."""
        return self._batch.CancelBatch(batch_pb2.CancelBatchRequest(trust_domain=self.trust_domain, job_id=job_id)).batch

    def watch_batch(self, job_id: str) -> Iterator[batch_pb2.BatchInfo]:
        """The job now and whenever it has changed, until it has ended. Stop iterating as you like: the job goes on."""
        yield from self._batch.WatchBatch(batch_pb2.WatchBatchRequest(trust_domain=self.trust_domain, job_id=job_id), timeout=LONG_S)

    # The platform

    def platform(self) -> gateway_pb2.GetPlatformResponse:
        """Services and nodes, as the gateway sees them."""
        return self._gateway.GetPlatform(gateway_pb2.GetPlatformRequest())

    def nodes(self) -> list[node_pb2.NodeStatus]:
        return list(self.platform().nodes)

    def instances(self) -> list[tuple[str, node_pb2.Instance]]:
        """(node, instance) of every node."""
        return [(node.node_id, instance) for node in self.nodes() for instance in node.instances]

    def check_stores(self, node: str = "", *, deep: bool = False) -> node_pb2.CheckStoresResponse:
        """Compares a node's stores with the disk, its runtimes and the kernel's mappings; with `deep` every blob is hashed as well. `node`
        may be left out where there is only one."""
        metadata = ((NODE_METADATA, node),) if node else ()
        answer: node_pb2.CheckStoresResponse = self._node.CheckStores(
            node_pb2.CheckStoresRequest(deep=deep), metadata=metadata, timeout=LONG_S
        )
        return answer

    def stop_instance(self, node: str, instance_id: str) -> None:
        """Drains and stops one instance; the next request starts one again."""
        self._scheduler.StopInstance(scheduler_pb2.StopInstanceRequest(node_id=node, instance_id=instance_id))

    def explain(self, request_id: str) -> gateway_pb2.ExplainResponse:
        """Why this variant, node and start path, with the losers and their numbers."""
        return self._gateway.Explain(gateway_pb2.ExplainRequest(request_id=request_id))

    def explain_model(self, model: str, objectives: Objectives | None = None) -> gateway_pb2.ExplainResponse:
        """Where a request for the model, alias, variant or `task:NAME` would go now, with the losers and their numbers."""
        return self._gateway.Explain(explain_request(model, objectives))

    def trace(self, request_id: str) -> gateway_pb2.GetTraceResponse:
        return self._gateway.GetTrace(gateway_pb2.GetTraceRequest(request_id=request_id))

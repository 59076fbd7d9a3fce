"""`inference.GRPCInferenceService` on raw bytes: ModelInfer is never parsed as a message here, and nothing is loaded into a pool
that tritonclient might share.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import grpc
import grpc.aio

from tessera.api.open_inference import inference_pb2 as pb
from tessera.domain.errors import Internal, InvalidInput, TesseraError, Unavailable, Unsupported
from tessera.gateway.core.catalogue import Catalogue
from tessera.gateway.core.routes import Route
from tessera.gateway.loops.inference import Inference
from tessera.gateway.server import descriptions
from tessera.rpc import abort

SERVICE = "inference.GRPCInferenceService"
PREFIX = f"/{SERVICE}/"
MODEL_INFER = PREFIX + "ModelInfer"
EXTENSIONS = ("model_configuration",)
"""Only what is implemented: perf_analyzer acts on it."""

Context = grpc.aio.ServicerContext[Any, Any]


class OpenInferenceHandler(grpc.GenericRpcHandler):
    """Every method of the service, those that Tessera does not have answered with UNIMPLEMENTED and a clear text.

    Args:
        ready: whether the gateway can answer for what it has.
    """

    def __init__(self, inference: Inference, catalogue: Catalogue, ready: Callable[[], bool]) -> None:
        self._inference = inference
        self._catalogue = catalogue
        self._ready = ready
        self._handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            MODEL_INFER: grpc.unary_unary_rpc_method_handler(self._model_infer),
            **{
                PREFIX + name: _unary(answer, request)
                for name, answer, request in (
                    ("ServerLive", self._server_live, pb.ServerLiveRequest),
                    ("ServerReady", self._server_ready, pb.ServerReadyRequest),
                    ("ServerMetadata", self._server_metadata, pb.ServerMetadataRequest),
                    ("ModelReady", self._model_ready, pb.ModelReadyRequest),
                    ("ModelMetadata", self._model_metadata, pb.ModelMetadataRequest),
                    ("ModelConfig", self._model_config, pb.ModelConfigRequest),
                    ("RepositoryIndex", self._repository_index, pb.RepositoryIndexRequest),
                )
            },
        }
        self._unknown: grpc.RpcMethodHandler[Any, Any] = grpc.stream_stream_rpc_method_handler(_unimplemented)

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any] | None:
        method: str = handler_call_details.method
        if not method.startswith(PREFIX):
            return None
        handler: grpc.RpcMethodHandler[Any, Any] = self._handlers.get(method, self._unknown)
        if method == MODEL_INFER:
            # Here the metadata is there already; asking the call's context for it makes it anew.
            for key, value in handler_call_details.invocation_metadata or ():
                if key == "traceparent" and isinstance(value, str):
                    return grpc.unary_unary_rpc_method_handler(partial(self._model_infer, traceparent=value))
        return handler

    async def _model_infer(self, body: bytes, context: Context, traceparent: str = "") -> bytes:
        try:
            return await self._inference.infer(body, context.time_remaining(), traceparent)
        except TesseraError as error:
            await abort(context, error)

    def _server_live(self, _request: pb.ServerLiveRequest) -> pb.ServerLiveResponse:
        return pb.ServerLiveResponse(live=True)

    def _server_ready(self, _request: pb.ServerReadyRequest) -> pb.ServerReadyResponse:
        return pb.ServerReadyResponse(ready=self._ready())

    def _server_metadata(self, _request: pb.ServerMetadataRequest) -> pb.ServerMetadataResponse:
        return pb.ServerMetadataResponse(name="tessera", version=own_version(), extensions=EXTENSIONS)

    def _model_ready(self, request: pb.ModelReadyRequest) -> pb.ModelReadyResponse:
        """Servable now or on demand. An unknown model is not ready, which is no error (as in Triton)."""
        try:
            route = self._route(request.name, request.version)
        except InvalidInput:
            raise
        except TesseraError:
            return pb.ModelReadyResponse(ready=False)
        return pb.ModelReadyResponse(ready=self._catalogue.choose(route) is not None)

    def _model_metadata(self, request: pb.ModelMetadataRequest) -> pb.ModelMetadataResponse:
        route = self._route(request.name, request.version)
        versions = sorted(self._catalogue.versions[route.name.version.model]) if route.name.version is not None else []
        return descriptions.metadata(request.name, versions, self._catalogue.signature(route))

    def _model_config(self, request: pb.ModelConfigRequest) -> pb.ModelConfigResponse:
        route = self._route(request.name, request.version)
        config = descriptions.config(request.name, self._catalogue.signature(route), self._max_batch(route))
        return pb.ModelConfigResponse(config=config)

    def _repository_index(self, request: pb.RepositoryIndexRequest) -> pb.RepositoryIndexResponse:
        """Every version of every model; READY: now or on demand. The names of repositories mean nothing here: there is one."""
        rows = []
        for model in sorted(self._catalogue.models):
            for number in sorted(self._catalogue.versions.get(model, ())):
                route = self._catalogue.route(model, str(number))
                reason = "" if self._catalogue.choose(route) is not None else self._catalogue.refusal(route)
                if not (request.ready and reason):
                    rows.append(descriptions.index_row(model, number, reason))
        return pb.RepositoryIndexResponse(models=rows)

    def _route(self, name: str, wanted: str) -> Route:
        if not self._ready():
            raise Unavailable("the gateway is not ready: it has not read the models yet, or is going away")
        return self._catalogue.route(name, wanted)

    def _max_batch(self, route: Route) -> int:
        """What everyone takes who may answer: which one does is decided per request."""
        usable = [one.record.max_batch for one in route.ranking.meeting if one.activity.instances or not one.nowhere]
        return min(usable, default=max((one.record.max_batch for one in route.name.group.candidates), default=1))


def own_version() -> str:
    try:
        return version("tessera-gateway")
    except PackageNotFoundError:
        return "unknown"


def _unary(answer: Callable[[Any], Any], request_type: type[Any]) -> grpc.RpcMethodHandler[Any, Any]:
    """A small method: parse, answer, serialise. Errors pass to what the server wraps it in."""

    async def call(request: bytes, _context: Context) -> bytes:
        try:
            message = request_type.FromString(request)
        except Exception:  # protobuf's error type differs between its implementations
            raise InvalidInput(request_type.__name__, None, f"{len(request)} bytes that are no such message") from None
        encoded = answer(message).SerializeToString()
        if not isinstance(encoded, bytes):
            raise Internal(f"{request_type.__name__}: no answer")
        return encoded

    return grpc.unary_unary_rpc_method_handler(call)


async def _unimplemented(_requests: Any, _context: Context) -> None:
    raise Unsupported(
        "Tessera answers ServerLive, ServerReady, ServerMetadata, ModelReady, ModelMetadata, ModelInfer, ModelConfig and RepositoryIndex "
        "of inference.GRPCInferenceService; models are loaded and unloaded by demand, and there is no shared memory, statistics, trace "
        "or stream method"
    )

"""What every call to a server passes: the token, the trace context, and errors turned into statuses.

Handlers are wrapped where they are registered, once per method: an interceptor of grpc.aio costs every call two coroutines, also the
calls that it leaves alone. Nothing wraps the context: `abort` on a wrapped one is how other instrumentation lost statuses
(opentelemetry-python-contrib, issue 1475).
"""

from __future__ import annotations

import asyncio
import hmac
import inspect
import re
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeAlias

import grpc
import grpc.aio

from tessera import telemetry
from tessera.domain.errors import Internal, TesseraError, Unauthenticated, Unavailable
from tessera.rpc._status import abort

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Context = grpc.aio.ServicerContext[Any, Any]

_HEALTH = "/grpc.health.v1.Health/"
_UNTRACED = (_HEALTH, "/grpc.reflection.", "/tessera.api.common.v1.Traces/")
_MAX_WRAPPED = 1024
_WORD_START = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")

_log = telemetry.get_logger("tessera.rpc")


class GuardingServer:
    """Looks like a server to the functions that add handlers to it, and guards what they add.

    Handlers that are registered by method would be found before generic ones, without metadata and so without a token; generated code
    adds both kinds, of which only the generic one is taken.
    """

    def __init__(self, server: grpc.aio.Server, token: str | None, untouched: frozenset[str]) -> None:
        self._server = server
        self._token = token
        self._untouched = untouched

    def add_generic_rpc_handlers(self, handlers: Sequence[grpc.GenericRpcHandler]) -> None:
        self._server.add_generic_rpc_handlers(tuple(GuardedHandler(handler, self._token, self._untouched) for handler in handlers))

    def add_registered_method_handlers(self, service_name: str, method_handlers: dict[str, Handler]) -> None:
        """Not taken: see above."""


class GuardedHandler(grpc.GenericRpcHandler):
    """`untouched`: full method names ("/package.Service/Method") whose handler does all of this by itself, token included."""

    def __init__(self, inner: grpc.GenericRpcHandler, token: str | None, untouched: frozenset[str]) -> None:
        self._find = inner.service
        self._expected = None if token is None else f"Bearer {token}".encode()
        self._untouched = untouched
        self._wrapped: dict[str, tuple[Handler, Handler, Handler]] = {}

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Handler | None:
        handler = self._find(handler_call_details)
        method = handler_call_details.method
        if handler is None or method in self._untouched:
            return handler
        known = self._wrapped.get(method)
        if known is None or known[0] is not handler:
            if len(self._wrapped) >= _MAX_WRAPPED:
                # A generic handler may answer for any name; names come from outside.
                self._wrapped.clear()
            known = self._wrapped[method] = (handler, _wrap(handler, method), _wrap_denied(handler))
        allowed = self._expected is None or method.startswith(_HEALTH) or self._has_token(handler_call_details)
        return known[1] if allowed else known[2]

    def _has_token(self, details: grpc.HandlerCallDetails) -> bool:
        given = next((value for key, value in details.invocation_metadata or () if key == "authorization"), "")
        return hmac.compare_digest(given.encode() if isinstance(given, str) else given, self._expected or b"")


def span_name(method: str) -> str:
    """ "/tessera.api.scheduler.v1.Scheduler/StartInstance" on a scheduler is "tessera.scheduler.start_instance"."""
    verb = _WORD_START.sub("_", method.rpartition("/")[2]).lower()
    service = telemetry.service_name()
    return f"tessera.{service}.{verb}" if service else f"tessera.{verb}"


def _wrap(handler: Handler, method: str) -> Handler:
    traced = not method.startswith(_UNTRACED)
    behaviour = _behaviour(handler)
    if handler.response_streaming:
        return _like(handler, _streaming(behaviour, method, traced))
    return _like(handler, _unary(behaviour, method, traced))


def _unary(behaviour: Callable[..., Any], method: str, traced: bool) -> Callable[..., Any]:
    if inspect.iscoroutinefunction(behaviour):
        return _guarded(behaviour, method, traced)

    async def run(request: Any, context: Context) -> Any:
        answer = behaviour(request, context)
        return await answer if inspect.isawaitable(answer) else answer

    return _guarded(run, method, traced)


def _streaming(behaviour: Callable[..., Any], method: str, traced: bool) -> Callable[..., Any]:
    async def run(request: Any, context: Context) -> None:
        stream = behaviour(request, context)
        if inspect.isawaitable(stream):
            # The other style: a coroutine that calls context.write.
            await stream
            return
        try:
            async for message in stream:
                await context.write(message)
        finally:
            # When the client leaves, the handler's own clean-up must run now, not when the garbage collector comes by.
            if hasattr(stream, "aclose"):
                await stream.aclose()

    return _guarded(run, method, traced)


def _guarded(run: Callable[[Any, Context], Awaitable[Any]], method: str, traced: bool) -> Callable[..., Any]:
    """Cancellation of the call passes through both: the call is over then, and the span says "cancelled"."""
    name = span_name(method)

    async def untraced(request: Any, context: Context) -> Any:
        try:
            return await run(request, context)
        except asyncio.CancelledError:
            await _fail_cancelled(context, method)
        except Exception as error:
            await _fail(context, error, method)

    async def call(request: Any, context: Context) -> Any:
        try:
            return await in_span(name, _parent(context), run, request, context)
        except asyncio.CancelledError:
            await _fail_cancelled(context, method)
        except Exception as error:
            await _fail(context, error, method)

    return call if traced else untraced


async def in_span(
    name: str, parent: telemetry.TraceContext | None, run: Callable[[Any, Any], Awaitable[Any]], request: Any, context: Any
) -> Any:
    """Answers in a span that tells the kind of a domain error."""
    with telemetry.span(name, parent=parent) as span:
        try:
            return await run(request, context)
        except TesseraError as error:
            span.set_attribute("error_kind", error.kind)
            raise


def _wrap_denied(handler: Handler) -> Handler:
    async def deny(_request: Any, context: Context) -> Any:
        await abort(context, Unauthenticated("metadata 'authorization: Bearer <token>' is missing or wrong"))

    return _like(handler, deny)


async def _fail(context: Context, error: Exception, method: str) -> None:
    """Ends the call with the error's status. Without effect where the call is over already."""
    if isinstance(error, grpc.aio.AbortError):
        raise error
    if not isinstance(error, TesseraError):
        if context.done():
            return
        error = unexpected(error, method)
    if not context.done():
        await abort(context, error)


def unexpected(error: Exception, method: str) -> Internal:
    """Logs what no handler should raise; returns what the caller may know of it."""
    _log.error("unexpected error in a handler", method=method, error=repr(error), exc_info=error)
    return Internal(f"{type(error).__name__} in {method.rpartition('/')[2]}; the log has the details")


async def _fail_cancelled(context: Context, method: str) -> None:
    """Passes a cancellation of the call on. When it was not the call but something it waited for that was cancelled, gRPC would
    send no status at all and the client would wait for its deadline; it gets one here.
    """
    task = asyncio.current_task()
    if task is None or task.cancelling() or context.done():
        raise asyncio.CancelledError
    await abort(context, Unavailable(f"what {method.rpartition('/')[2]} waited for was cancelled"))


def _parent(context: Context) -> telemetry.TraceContext | None:
    for key, value in context.invocation_metadata() or ():
        if key == "traceparent":
            return telemetry.parse_traceparent(value if isinstance(value, str) else value.decode("ascii", "replace"))
    return None


def _behaviour(handler: Handler) -> Callable[..., Any]:
    found: Callable[..., Any]
    if handler.request_streaming:
        found = handler.stream_stream if handler.response_streaming else handler.stream_unary  # type: ignore[assignment] # set for this kind
    else:
        found = handler.unary_stream if handler.response_streaming else handler.unary_unary  # type: ignore[assignment] # set for this kind
    return found


def _like(handler: Handler, behaviour: Callable[..., Any]) -> Handler:
    if handler.request_streaming:
        make = grpc.stream_stream_rpc_method_handler if handler.response_streaming else grpc.stream_unary_rpc_method_handler
    else:
        make = grpc.unary_stream_rpc_method_handler if handler.response_streaming else grpc.unary_unary_rpc_method_handler
    return make(behaviour, request_deserializer=handler.request_deserializer, response_serializer=handler.response_serializer)
